//! `/start_profile` and `/stop_profile`: one engine of each role is asked, at the same time.

use crate::cluster::Instance;
use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Stop, join, shape};

use super::Said;

const DISABLED: &str = "Profiling endpoints are disabled on all clusters";

/// An engine that has no such path is passed over; another failure is the answer, with its status.
pub async fn ask(x: &Exchange) -> Said {
    let groups: [(&str, &[Role]); 3] = [
        ("encode", &[Role::Encode]),
        ("prefill", &[Role::Prefill]),
        ("decode", &[Role::Decode, Role::Aggregated]),
    ];
    let chosen = groups.map(|(name, roles)| {
        let crew: Vec<_> = roles.iter().flat_map(|role| x.crew(*role)).collect();
        let at = x.tools.rng.next() as usize % crew.len().max(1);
        (name, crew.into_iter().nth(at))
    });
    let branches = [x.branch(), x.branch(), x.branch()];
    let work = chosen.iter().zip(&branches).map(|((_, one), branch)| {
        let work: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
            match one {
                Some(one) => profile(branch, one).await,
                None => Ok(None),
            }
        });
        work
    });
    let answers = join::all(work.collect()).await;
    let mut out = Vec::new();
    let mut any = false;
    for ((name, _), answer) in chosen.iter().zip(answers) {
        let value = match answer {
            Ok(value) => value,
            Err(said) => return said,
        };
        any |= value.is_some();
        out.push(if out.is_empty() { b'{' } else { b',' });
        out.extend_from_slice(format!("\"{name}\":").as_bytes());
        out.extend_from_slice(value.as_deref().unwrap_or(b"null"));
    }
    out.push(b'}');
    match any {
        true => (200, out),
        false => (503, shape::detail(DISABLED)),
    }
}

/// What it answers, as JSON; `None`: it has no such path.
async fn profile(x: &Exchange, one: &std::sync::Arc<Instance>) -> Result<Option<Vec<u8>>, Said> {
    // As an encoder's, an answer that is no JSON is as good as another: engines answer with nothing.
    let mut leg = Leg::new(Stage::Encode);
    leg.verbatim = true;
    leg.alone = true;
    leg.plain_answer = true;
    match x.call(x.pick_this(one), leg).await {
        Ok(answer) => {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(answer.body()).is_ok();
            Ok(Some(if json {
                answer.body().to_vec()
            } else {
                b"{}".to_vec()
            }))
        }
        Err(Stop::Answer(answer)) if answer.head.status == 404 => Ok(None),
        Err(Stop::Answer(answer)) => {
            let text = String::from_utf8_lossy(answer.body());
            Err((answer.head.status, shape::detail(&text)))
        }
        Err(Stop::Error(error) | Stop::Again(error) | Stop::Broken(error)) => {
            Err((error.kind.status(), shape::detail(&error.to_string())))
        }
        Err(Stop::Said(said)) => Err(*said),
    }
}
