//! What a sidecar does around any handshake: reads who is to serve, and takes it well or ill when P fails.
//!
//! ```text
//!  client      proxy        E*          P           D (next to us)
//!    |--req------>|--items--->|           |           |     named encoders, if there is an item
//!    |            |-- the handshake ----->|           |     a named P
//!    |            |           |           |           |
//!    |            |--req as it came------------------>|     no P
//!    |<==tokens===|<==================================|
//! ```
//!
//! * **For:** what all connectors have in common.
//! * **Must never:** know how KV travels: that is the handshake's.
//! * **To extend:** another policy for a failed P is an arm in [`after`].

pub mod chunked;
mod encode;

use std::borrow::Cow;

use crate::config::sidecar::{PinnedFailure, Sidecar};
use crate::config::{Config, Role};
use crate::error::Stage;
use crate::exchange::notice::NoticeSocket;
use crate::exchange::{Exchange, Leg, Reply, Stop};
use crate::metrics::{Counter, Skip};
use crate::wire::json::Edit;
use crate::wire::openai::KV_PARAMS;

use super::{Handshake, Running};

/// The handshake, as a sidecar runs it.
pub fn beside(inner: Box<dyn Handshake>, config: &Config) -> Box<dyn Handshake> {
    match config.sidecar {
        Some(_) => Box::new(Beside { inner }),
        None => inner,
    }
}

struct Beside {
    inner: Box<dyn Handshake>,
}

impl Handshake for Beside {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(self.script(x, reply))
    }

    fn notices(&self) -> Option<&NoticeSocket> {
        self.inner.notices()
    }
}

/// What is to be done about a P that has failed.
enum Next {
    Stop(Stop),
    Again,
    Alone,
}

impl Beside {
    async fn script(&self, x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
        x.read_pins()?;
        let Some(pins) = x.pins.clone() else {
            return self.inner.run(x, reply).await;
        };
        Box::pin(encode::stage(x, &pins)).await?;
        if !pins.prefills() {
            return alone(x, reply).await;
        }
        let mut tries = pins.sidecar().prefill_retries;
        loop {
            let Err(stop) = self.inner.run(x, reply).await else {
                return Ok(());
            };
            let prefill = x.trace.stage.get() == Stage::Prefill && !reply.committed;
            if !prefill || x.slot.fired().is_some() {
                return Err(stop);
            }
            match after(stop, pins.sidecar(), tries) {
                Next::Stop(stop) => return Err(stop),
                Next::Alone => {
                    x.tools
                        .metrics
                        .inc(Counter::prefill_skipped(Skip::NoPrefill));
                    return alone(x, reply).await;
                }
                Next::Again => {
                    tries -= 1;
                    x.trace.retried();
                    Box::pin(x.pause(pins.sidecar().prefill_backoff)).await;
                }
            }
        }
    }
}

fn after(stop: Stop, sidecar: &Sidecar, tries: u32) -> Next {
    let status = match &stop {
        Stop::Answer(answer) => answer.head.status,
        Stop::Error(error) | Stop::Again(error) => error.kind.status(),
        Stop::Said(_) | Stop::Broken(_) => return Next::Stop(stop),
    };
    match sidecar.prefill_failure {
        // What P says of the request itself, D would say, too.
        PinnedFailure::DecodeOnly if !(400..=451).contains(&status) => Next::Alone,
        PinnedFailure::Status => Next::Stop(match stop {
            Stop::Answer(answer) => Stop::Answer(Box::new(answer.without_body())),
            other => other,
        }),
        _ if tries > 0 && (502..=504).contains(&status) => Next::Again,
        _ => Next::Stop(stop),
    }
}

/// The engine next to us gets the request as it came.
pub(super) async fn alone(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    let pulls = x.config.handshake == "offloading"
        || x.pins.as_ref().is_some_and(|pins| pins.sidecar().p2p_pull);
    if pulls && let Some(source) = x.kv_source(None) {
        let params = format!(r#"{{"remote_kv_source":{source}}}"#).into_bytes();
        leg.edits.push(Edit::Set(KV_PARAMS, Cow::Owned(params)));
    }
    if chunked::applies(x) {
        return Box::pin(chunked::decode(x, reply, &leg.edits, None)).await;
    }
    leg.verbatim = leg.edits.is_empty();
    let engine = x.pick(Role::Decode)?;
    let stream = Box::pin(x.open(engine, leg)).await?;
    reply.relay(x, stream).await
}
