//! Attempt: runs the handshake for one generate request, and tells the client how it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Kind, Stage};
use crate::exchange::{Exchange, Reply, Request, Stop, Trace};
use crate::log;
use crate::metrics::{Counter, Endpoint, ErrorKind, Retry};
use crate::wire::json::Object;
use crate::wire::openai::Summary;

use super::Shared;
use super::connection::Outcome;
use super::shard::Shard;

/// Answers one generate request.
pub async fn generate(
    shard: &Rc<Shard>,
    mut request: Request,
    trace: Trace,
    reply: &mut Reply,
    endpoint: Endpoint,
) -> Outcome {
    let admitted = match admit(shard, &mut request) {
        Ok(admitted) => admitted,
        Err(error) => {
            let end = settle(shard, reply, &request.id, Err(error)).await;
            return Outcome {
                endpoint,
                trace,
                end,
            };
        }
    };
    let tools = shard.tools.clone();
    let x = Exchange {
        cluster: tools.cluster.get(),
        slot: reply.slot.clone(),
        tools,
        request,
        trace,
    };
    let result = run(shard, &x, reply).await;
    let end = settle(shard, reply, &x.request.id, result).await;
    drop(admitted);
    finish(x, endpoint, end)
}

/// The exchange is over: its buffer goes back to the shard.
pub fn finish(x: Exchange, endpoint: Endpoint, end: log::End) -> Outcome {
    let Exchange {
        request,
        trace,
        tools,
        ..
    } = x;
    if let Some(buffer) = request.into_buffer() {
        tools.buffers.give(buffer);
    }
    Outcome {
        endpoint,
        trace,
        end,
    }
}

async fn run(shard: &Rc<Shard>, x: &Exchange, reply: &mut Reply) -> Result<(), Error> {
    let retry = &x.tools.config.retry;
    let tries = if retry.enabled { retry.max_retries } else { 0 };
    for attempt in 0.. {
        match shard.shared.handshake.run(x, reply).await {
            Ok(()) => return Ok(()),
            // An instance's own words, with its own status.
            Err(Stop::Answer(answer)) => {
                return match reply.answer(x, &answer).await {
                    Ok(()) => Ok(()),
                    Err(_) => Err(crate::exchange::gone(x.trace.stage.get())),
                };
            }
            Err(Stop::Again(error)) if attempt < tries && !reply.committed => {
                x.still_wanted(error.stage).map_err(error_of)?;
                x.tools.metrics.inc(Counter::retries(Retry::Reset));
                x.trace.retried();
            }
            Err(stop) => return Err(error_of(stop)),
        }
    }
    unreachable!("the loop has no end of its own")
}

pub fn error_of(stop: Stop) -> Error {
    match stop {
        Stop::Error(error) | Stop::Again(error) | Stop::Broken(error) => error,
        Stop::Answer(_) => Error::new(Kind::Internal, Stage::Body, "an answer where none was due"),
    }
}

/// Tells the client, if it can still be told, and says how it ended.
pub async fn settle(
    shard: &Rc<Shard>,
    reply: &mut Reply,
    id: &str,
    result: Result<(), Error>,
) -> log::End {
    let Err(error) = result else {
        return log::End::Ok;
    };
    let metrics = &shard.tools.metrics;
    if error.kind == Kind::ClientGone {
        reply.break_off();
        return log::End::ClientGone;
    }
    metrics.inc(Counter::request_errors(ErrorKind(error.kind.index())));
    if reply.committed {
        reply.keep_alive = false;
        return log::End::Broken(error.kind.name());
    }
    match reply.error(Some(id), &error).await {
        Ok(()) => log::End::Error(error.kind.name()),
        Err(_) => log::End::ClientGone,
    }
}

/// One unit of the process's in-flight limit.
struct Admitted(Arc<Shared>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Checks the body and indexes it; takes one unit of the in-flight limit.
fn admit(shard: &Rc<Shard>, request: &mut Request) -> Result<Admitted, Error> {
    let config = &shard.tools.config;
    let bad = |what: String| Error::new(Kind::BadRequest, Stage::Body, what);
    let body = request.body();
    if simdutf8::basic::from_utf8(body).is_err() {
        return Err(bad("the body is not UTF-8".into()));
    }
    let object = Object::scan(body, config.limits.json_depth_max).map_err(|e| {
        bad(format!(
            "the body cannot be read at byte {}: {}",
            e.at, e.what
        ))
    })?;
    request.summary = Summary::of(body, &object);
    request.object = object;
    let shared = &shard.shared;
    let before = shared.in_flight.fetch_add(1, Ordering::Relaxed);
    let admitted = Admitted(shared.clone());
    if before >= config.limits.in_flight_max {
        let what = format!(
            "limits.in_flight_max ({}) is reached",
            config.limits.in_flight_max
        );
        return Err(Error::new(Kind::Overloaded, Stage::Body, what));
    }
    Ok(admitted)
}
