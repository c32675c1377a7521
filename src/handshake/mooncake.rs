//! vLLM MooncakeConnector: P's bootstrap server says which engine it is; P and D then get one transfer id at once.
//!
//! ```text
//!  client      proxy                         P           D
//!    |--req------>|--GET /query------------>|           |     unless it was asked just now
//!    |            |<--engine ids------------|           |
//!    |            |--1 token, transfer id-->|           |
//!    |            |--req + transfer id, engine id------>|
//!    |            |                         |<==pulls===|
//!    |<==tokens===|<====================================|
//! ```
//!
//! D waits for a P that has failed until its patience ends (480 s): so P's failure ends D's leg, and is the answer.
//! When the client leaves, P goes on: D fetches what it was told of, and that frees it. Where no D was told, P ends.
//!
//! An engine that was restarted has another id, and a D that is sent to the old one waits for ever. So the ids are
//! kept for less time than an engine takes to start, and not at all once P has failed.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Address, Role};
use crate::error::{Blame, Error, Kind, Stage};
use crate::exchange::{Beginning, Exchange, Leg, Opened, Picked, Reply, Stop};
use crate::id;
use crate::log;
use crate::wire::json::{Edit, put_string};
use crate::wire::openai::KV_PARAMS;

use super::{Handshake, Running, Spec, aside, side_port, skips_batch};

pub const SPEC: Spec = Spec {
    name: "mooncake",
    about: "vLLM MooncakeConnector: engine ids from P's bootstrap server, one transfer id for both",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(Mooncake::default())),
};

const BOOTSTRAP_PORT: u16 = 8998;
/// No engine starts in less than this.
const KEPT: Duration = Duration::from_secs(5);
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// Of instances.
const KEPT_MAX: usize = 1024;

/// Ranks and their engine ids, as JSON strings without quotes.
type Ranks = Vec<(String, String)>;

#[derive(Default)]
struct Mooncake {
    /// By the index of the instance; with its starts and when that was.
    known: Mutex<HashMap<usize, (u64, Instant, Ranks)>>,
}

impl Handshake for Mooncake {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(self.script(x, reply))
    }
}

impl Mooncake {
    async fn script(&self, x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
        if skips_batch(x) || x.skip_prefill() {
            return Box::pin(alone(x, reply)).await;
        }
        let (prefill, decode) = (x.pick(Role::Prefill)?, x.pick(Role::Decode)?);
        let ranks = Box::pin(self.ranks(x, &prefill)).await?;
        let (rank, engine) = &ranks[(x.tools.rng.next() % ranks.len() as u64) as usize];
        let transfer = format!("xfer-{}", id::fresh(&x.tools.rng));
        let mut leg = Leg::new(Stage::Prefill);
        leg.edits = x.one_token_edits();
        until_the_limit(&mut leg.edits);
        let params = format!(
            r#"{{"do_remote_prefill":false,"do_remote_decode":true,"transfer_id":"{transfer}"}}"#
        );
        leg.edits
            .push(Edit::Set(KV_PARAMS, Cow::Owned(params.into_bytes())));
        leg.fields.push((
            Cow::Borrowed("x-data-parallel-rank"),
            rank.clone().into_bytes(),
        ));
        leg.alone = true;
        let host = host_of(&prefill);
        let mut there = Vec::new();
        let shown = Address::tcp(host, port(x, &prefill)).to_string();
        put_string(&mut there, &format!("http://{shown}"));
        let there = String::from_utf8_lossy(&there).into_owned();
        if let Some(pins) = &x.pins {
            pins.add_edits(&mut leg.edits);
        }
        let aside = aside::send(x, prefill, leg);
        let params = format!(
            r#"{{"do_remote_prefill":true,"do_remote_decode":false,"transfer_id":"{transfer}","remote_bootstrap_addr":{there},"remote_engine_id":"{engine}"}}"#
        );
        let mut leg = Leg::new(Stage::DecodeHead);
        leg.alone = true;
        // How it begins is looked at.
        leg.plain_answer = true;
        leg.edits
            .push(Edit::Set(KV_PARAMS, Cow::Owned(params.into_bytes())));
        if let Some(pins) = &x.pins {
            pins.add_edits(&mut leg.edits);
        }
        let handed = Rc::new(Cell::new(false));
        leg.handed = Some(handed.clone());
        let stream = Box::pin(aside.or_failure(x, begun(x, decode, leg))).await;
        if stream.is_err() && !handed.get() {
            // No D knows of what P would hold.
            aside.end();
        }
        aside.relay(x, reply, stream?).await
    }

    async fn ranks(&self, x: &Exchange, prefill: &Picked) -> Result<Ranks, Stop> {
        let instance = prefill.instance();
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let starts = instance.starts();
        if let Some((then, at, ranks)) = lock().get(&instance.index)
            && *then == starts
            && at.elapsed() < KEPT
        {
            return Ok(ranks.clone());
        }
        let place = Address::tcp(host_of(prefill), port(x, prefill));
        let bootstrap = x.tools.hosts.guests.side(&place);
        let mut leg = Leg::new(Stage::Prefill);
        leg.get = true;
        leg.pieces = Some(Vec::new());
        leg.path = Some(Cow::Borrowed("/query"));
        leg.limit = Some(QUERY_LIMIT);
        leg.plain_answer = true;
        leg.alone = true;
        let blame = |error: Error| blame(error, &bootstrap.name, &prefill.instance().name);
        let bad = |what: &'static str| {
            Stop::Error(blame(Error::new(Kind::BadResponse, Stage::Prefill, what)))
        };
        // It is no prefill: what becomes of it stands in a trace of its own.
        x.trace.stage.set(Stage::Prefill);
        let asking = x.branch();
        // Whatever it says of itself, to the client it is a gateway that is bad.
        let answer = match asking.call(asking.pick_this(&bootstrap), leg).await {
            Ok(answer) => answer,
            Err(Stop::Answer(_)) => return Err(bad("it refuses /query")),
            Err(Stop::Error(error)) => return Err(Stop::Error(blame(error))),
            Err(Stop::Again(error)) => return Err(Stop::Again(blame(error))),
            Err(stop) => return Err(stop),
        };
        let ranks = read(answer.body()).ok_or_else(|| bad("/query names no engine"))?;
        let mut known = lock();
        if known.len() >= KEPT_MAX {
            known.retain(|_, (_, at, _)| at.elapsed() < KEPT);
        }
        known.insert(instance.index, (starts, Instant::now(), ranks.clone()));
        Ok(ranks)
    }
}

/// Its failure is not P's: whoever reads of it is to look at the right port.
fn blame(error: Error, bootstrap: &str, prefill: &str) -> Error {
    if error.kind.blame() != Blame::Instance {
        return error;
    }
    let who = format!("the bootstrap server {bootstrap} of prefill {prefill}");
    let what = match error.kind {
        Kind::ConnectFailed => {
            format!("{who} cannot be reached (--mooncake-bootstrap-port, side_port)")
        }
        _ => format!("{who}: {}", error.cause),
    };
    log::limited_for("bootstrap", bootstrap, log::Level::Warning, || what.clone());
    Error::new(error.kind, error.stage, what)
}

fn read(body: &[u8]) -> Option<Ranks> {
    let all: HashMap<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    let engine = |value: &serde_json::Value| {
        let id = value.get("engine_id")?.as_str()?;
        let plain = id
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        plain.then(|| id.to_owned())
    };
    let ranks = all
        .into_iter()
        .filter(|(rank, _)| rank.parse::<u32>().is_ok());
    let mut ranks: Ranks = ranks
        .filter_map(|(rank, v)| Some((rank, engine(&v)?)))
        .collect();
    ranks.sort();
    (!ranks.is_empty()).then_some(ranks)
}

fn host_of(prefill: &Picked) -> String {
    let place = prefill.instance().address.network();
    place.map_or_else(|| "localhost".into(), |(host, _)| host.to_owned())
}

fn port(x: &Exchange, prefill: &Picked) -> u16 {
    side_port(x, prefill.instance(), |s| s.mooncake_port, BOOTSTRAP_PORT)
}

/// D's answer, when it has begun: the head of a stream comes before P's KV does.
async fn begun(x: &Exchange, decode: Picked, leg: Leg) -> Result<Opened, Stop> {
    let mut opened = x.open(decode, leg).await?;
    if opened.is_good_event_stream() {
        x.hold(&mut opened, &mut Beginning::default(), 1).await?;
    }
    Ok(opened)
}

/// P keeps KV only if its limit ended the answer. Of one that its first token has stopped, D would wait in vain
/// (480 s), so nothing may stop it; D finds the end by itself.
fn until_the_limit(edits: &mut Vec<Edit>) {
    edits.push(Edit::Set("ignore_eos", Cow::Borrowed(b"true")));
    edits.extend(["stop", "stop_token_ids"].map(Edit::Remove));
}

/// D computes by itself: one transfer id is not for several prompts.
async fn alone(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(Edit::Remove(KV_PARAMS));
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    let stream = Box::pin(x.open(x.pick(Role::Decode)?, leg)).await?;
    reply.relay(x, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_read_and_junk_is_none() {
        let body = br#"{"1":{"engine_id":"b"},"0":{"engine_id":"a","x":1},"y":{"engine_id":"c"}}"#;
        let ranks = read(body).unwrap();
        assert_eq!(ranks, [("0".into(), "a".into()), ("1".into(), "b".into())]);
        for bad in ["{}", "[]", r#"{"0":{}}"#, r#"{"0":{"engine_id":"a\"b"}}"#] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
    }
}
