//! What an instance says of itself: `GET /v1/models`, asked on the probes thread once per start of it.
//!
//! Nobody waits for the answer. Until it is here an instance has the default context length, and serves
//! the model that it is configured for.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Instance;
use super::fetch::{self, Ask};
use crate::config::Secret;
use crate::log;

/// An instance that does not answer is asked again after this, and then half as often each time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Answer {
    data: Vec<Model>,
}

/// The first is the base model; behind it come adapters.
#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<u32>,
}

/// One instance's questioning.
pub struct Questions {
    /// Its starts when it last answered (see [`Instance::starts`]).
    answered_at: Option<u64>,
    again: Option<Instant>,
    wait: Duration,
}

impl Default for Questions {
    fn default() -> Self {
        Questions {
            answered_at: None,
            again: None,
            wait: AGAIN_FIRST,
        }
    }
}

impl Questions {
    /// Asks, if it is time to. True if it now serves another model than before.
    pub async fn ask(
        &mut self,
        instance: &Instance,
        key: Option<&Secret>,
        limit: Duration,
    ) -> bool {
        let starts = instance.starts();
        let waiting = self.again.is_some_and(|again| Instant::now() < again);
        if self.answered_at == Some(starts) || waiting {
            return false;
        }
        let answer = models(instance, key, limit).await;
        let before = instance.model();
        match answer {
            Ok(found) => {
                self.answered_at = Some(starts);
                (self.again, self.wait) = (None, AGAIN_FIRST);
                instance.learned(found.map(|model| (model.id, model.max_model_len)));
            }
            Err(why) => {
                self.again = Some(Instant::now() + self.wait);
                self.wait = (self.wait * 2).min(AGAIN_MAX);
                instance.learned(None);
                let (role, name) = (instance.role.name(), &instance.name);
                log::debug(|| format!("{role} {name} does not say what it serves: {why}"));
            }
        }
        instance.model() != before
    }
}

/// Its first model; `None` if it answers and names none (a 4xx will not change before it is started anew).
async fn models(
    instance: &Instance,
    key: Option<&Secret>,
    limit: Duration,
) -> Result<Option<Model>, String> {
    let targets = instance.targets.get();
    let ask = Ask {
        targets: &targets,
        host: &instance.host,
        prefix: &instance.prefix,
        path: "/v1/models",
        trust: instance.trust.get(),
        key: key.map(|key| key.0.as_str()),
    };
    let fetched = fetch::get(&ask, limit).await?;
    match fetched.status {
        200..=299 => {}
        400..=499 => return Ok(None),
        other => return Err(format!("/v1/models answered {other}")),
    }
    let answer: Option<Answer> = serde_json::from_slice(&fetched.body).ok();
    let first = answer.and_then(|answer| answer.data.into_iter().next());
    Ok(first.filter(|model| !model.id.is_empty()))
}
