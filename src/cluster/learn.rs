//! What an instance says of itself: `GET /v1/models`, asked on the probes thread once per start of it.
//!
//! Nobody waits for the answer. Until it is here an instance has the default context length, and serves
//! the model that it is configured for.

use std::io;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Instance;
use crate::config::Secret;
use crate::log;
use crate::net::runtime::Driver;
use crate::net::stream::{Stream, Target};
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{Framing, HeadScan, ResponseHead};

/// Longest answer that is read.
const ANSWER_MAX: usize = 1 << 20;

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
        let answer = monoio::time::timeout(limit, models(instance, key)).await;
        let before = instance.model();
        match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
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
async fn models(instance: &Instance, key: Option<&Secret>) -> io::Result<Option<Model>> {
    let targets = instance.targets.get();
    let target = targets
        .first()
        .ok_or_else(|| io::Error::other("its name has no address"))?;
    let (status, body) = get(target, &instance.name, "/v1/models", key).await?;
    match status {
        200..=299 => {}
        400..=499 => return Ok(None),
        other => return Err(io::Error::other(format!("/v1/models answered {other}"))),
    }
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    let first = answer.and_then(|answer| answer.data.into_iter().next());
    Ok(first.filter(|model| !model.id.is_empty()))
}

/// One GET on a connection of its own: status and body, of limited size.
async fn get(
    target: &Target,
    name: &str,
    path: &str,
    key: Option<&Secret>,
) -> io::Result<(u16, Vec<u8>)> {
    let bad = |what: &str| io::Error::other(what.to_owned());
    let host = match target {
        Target::Tcp(_) => name,
        Target::Unix(_) => "localhost",
    };
    let key = match key {
        Some(key) => format!("authorization: Bearer {}\r\n", key.0),
        None => String::new(),
    };
    let stream = Stream::connect(target, Driver::Epoll, |_| {}).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: pdrelay\r\naccept: application/json\r\n\
         {key}connection: close\r\n\r\n"
    );
    stream.write_all(request.into_bytes()).await.0?;
    let mut bytes = Vec::with_capacity(16 << 10);
    let mut scan = HeadScan::default();
    loop {
        let (result, back) = stream.read(bytes).await;
        bytes = back;
        let n = result?;
        if bytes.len() > ANSWER_MAX {
            return Err(bad("its answer is too large"));
        }
        let head_len = scan.advance(&bytes).map_err(|e| bad(e.message()))?;
        if let Some(head_len) = head_len {
            let head = ResponseHead::parse(&bytes[..head_len]).map_err(|e| bad(e.message()))?;
            if let Some(body) = whole(head.framing(false), &bytes[head_len..], n == 0)? {
                return Ok((head.status, body));
            }
        }
        if n == 0 {
            return Err(bad("its answer was cut short"));
        }
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
    }
}

/// The body, once all of it is there.
fn whole(framing: Framing, bytes: &[u8], ended: bool) -> io::Result<Option<Vec<u8>>> {
    Ok(match framing {
        Framing::Length(n) => bytes.get(..n as usize).map(<[u8]>::to_vec),
        Framing::Close => ended.then(|| bytes.to_vec()),
        Framing::Chunked => {
            let (mut scan, mut body) = (ChunkScan::default(), Vec::new());
            scan.feed(bytes, |data| body.extend_from_slice(data))
                .map_err(|bad| io::Error::other(bad.0))?;
            scan.done().then_some(body)
        }
    })
}
