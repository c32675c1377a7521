//! Attempt: runs the handshake for one generate request, and tells the client how it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::{PrefillFailure, Surface};
use crate::error::{Blame, Error, Kind, Stage};
use crate::exchange::shape::NOT_CONFIGURED;
use crate::exchange::{Exchange, Reply, Request, Stop, Trace, gone};
use crate::log;
use crate::metrics::{Counter, Endpoint, ErrorKind, Retry};
use crate::net::sweep::{Fired, Wait};
use crate::wire::json::Object;
use crate::wire::openai::Summary;

use super::Shared;
use super::connection::Outcome;
use super::shard::Shard;
use super::surface::xpyd;
use super::xpyd::measure;

/// Answers one generate request.
pub async fn generate(
    shard: &Rc<Shard>,
    mut request: Rc<Request>,
    reply: &mut Reply,
    endpoint: Endpoint,
) -> Outcome {
    let xpyd_face = shard.tools.config().surface == Surface::Xpyd;
    let admitted = match admit(shard, Request::unshared(&mut request), endpoint) {
        Ok(admitted) => admitted,
        Err(error) => return Box::pin(turned_away(shard, &request, reply, endpoint, error)).await,
    };
    if request.summary.stream {
        reply.inbox.expect_little();
    }
    let trace = Trace::of(&request);
    let x = Exchange::new(&shard.tools, request, reply.slot.clone(), trace);
    if xpyd_face {
        measure::note_model(&x.trace, &x.request());
    }
    let result = begin(shard, &x, reply).await;
    let end = settle(shard, reply, &x.request().id, result).await;
    drop(admitted);
    if xpyd_face {
        measure::finished(shard, &x, reply, endpoint, end);
    }
    finish(x, endpoint, end)
}

/// A request that goes no further than its body.
async fn turned_away(
    shard: &Rc<Shard>,
    request: &Request,
    reply: &mut Reply,
    endpoint: Endpoint,
    error: Error,
) -> Outcome {
    let trace = Trace::of(request);
    if shard.tools.config().surface == Surface::Xpyd {
        measure::refused(shard, &trace, endpoint, error.kind);
    }
    let end = settle(shard, reply, &request.id, Err(error)).await;
    Outcome {
        endpoint,
        trace,
        end,
    }
}

/// The exchange is over: its buffer goes back to the shard.
pub fn finish(x: Exchange, endpoint: Endpoint, end: log::End) -> Outcome {
    x.let_go();
    Outcome {
        endpoint,
        trace: x.trace,
        end,
    }
}

async fn begin(shard: &Rc<Shard>, x: &Exchange, reply: &mut Reply) -> Result<(), Error> {
    x.find_model()?;
    let _begun = x.begin().await?;
    run(shard, x, reply).await
}

/// Runs the script until it succeeds, or fails in a way that another try would not mend, or there is no
/// try left. Never after the first byte reached the client.
async fn run(shard: &Rc<Shard>, x: &Exchange, reply: &mut Reply) -> Result<(), Error> {
    let retry = &x.config.retry;
    let mut tries = if retry.enabled { retry.max_retries } else { 0 };
    x.tools.budget.earn();
    let mut script = shard.shared.script(x);
    // Boxed, as all that few requests come to: a stream that rests should be small.
    let mut before: Option<Box<Error>> = None;
    loop {
        let Err(stop) = script.run(x, reply).await else {
            return Ok(());
        };
        let slow = too_slow(x, &stop);
        let open = !reply.committed && (slow || x.slot.fired().is_none());
        if let Some(reason) = again(x, &stop, slow).filter(|_| open && tries > 0)
            && x.tools.budget.spend(x.tools.sweep.clock.coarse_ms())
        {
            tries -= 1;
            if slow {
                x.slot.forgive();
            }
            x.tools.metrics.inc(Counter::retries(reason));
            x.trace.retried();
            before = failed_try(x, stop).map(Box::new);
            Box::pin(back_off(x, retry.max_retries - tries)).await;
            continue;
        }
        if open && nobody_left(&stop) && x.trace.handshake.get().is_none() {
            // A request that names no model may have others to go to.
            script = shard.shared.script(x);
            if x.trace.handshake.get().is_some() {
                continue;
            }
        }
        if open && decode_only(x, &stop) {
            if slow {
                x.slot.forgive();
            }
            x.without_prefill.set(true);
            continue;
        }
        return match stop {
            // An instance's own words, with its own status.
            Stop::Answer(answer) => match Box::pin(reply.answer(x, &answer)).await {
                Ok(()) => Ok(()),
                Err(_) => Err(gone(x.trace.stage.get())),
            },
            Stop::Said(said) => match Box::pin(reply.said(&x.request().id, &said)).await {
                Ok(()) => Ok(()),
                Err(_) => Err(gone(x.trace.stage.get())),
            },
            stop if nobody_left(&stop) => Err(after(error_of(stop), before)),
            stop => Err(error_of(stop)),
        };
    }
}

/// What to tell of a try that another one followed.
fn failed_try(x: &Exchange, stop: Stop) -> Option<Error> {
    match stop {
        Stop::Error(error) | Stop::Again(error) => Some(error),
        Stop::Answer(answer) => {
            let said = format!("it answered {}", answer.head.status);
            let error = Error::new(Kind::BadResponse, x.trace.stage.get(), said);
            Some(error.at(&answer.instance.name))
        }
        Stop::Broken(_) | Stop::Said(_) => None,
    }
}

/// That nobody can be reached says little of what went wrong: the try before it does. (That there is nobody at all
/// says everything, and faces have words of their own for it.)
fn after(mut error: Error, before: Option<Box<Error>>) -> Error {
    if let Some(before) = before.filter(|_| !error.cause.ends_with(NOT_CONFIGURED)) {
        error.cause = format!("{}; before that: {before}", error.cause).into();
    }
    error
}

/// One instance was too slow for its stage's limit; the request as a whole is not yet.
fn too_slow(x: &Exchange, stop: &Stop) -> bool {
    let stage_ended = matches!(
        x.slot.fired(),
        Some(Fired::Deadline(Wait::Prefill | Wait::DecodeHead))
    );
    stage_ended && matches!(stop, Stop::Error(e) if e.kind == Kind::Timeout)
}

/// Might another try succeed? 4xx are answers, whoever gave them, but for those that are listed.
fn again(x: &Exchange, stop: &Stop, slow: bool) -> Option<Retry> {
    match stop {
        // The same one again would only be given twice the work.
        Stop::Error(_) if slow => anyone_new(x).then_some(Retry::Timeout),
        Stop::Again(error) if error.kind == Kind::BadResponse => Some(Retry::BadResponse),
        Stop::Again(_) => Some(Retry::Reset),
        Stop::Answer(a) if x.listed(a.head.status) => Some(Retry::Status),
        _ => None,
    }
}

fn nobody_left(stop: &Stop) -> bool {
    matches!(stop, Stop::Error(e) if matches!(e.kind, Kind::NoInstance | Kind::ConnectFailed))
}

fn decode_only(x: &Exchange, stop: &Stop) -> bool {
    let failed = match stop {
        Stop::Answer(answer) => answer.head.status >= 500,
        Stop::Error(error) | Stop::Again(error) => error.kind.blame() != Blame::Client,
        Stop::Broken(_) | Stop::Said(_) => false,
    };
    failed
        && x.config.prefill_failure == PrefillFailure::DecodeOnly
        && x.trace.stage.get() == Stage::Prefill
        && !x.without_prefill.get()
}

/// Is there an instance of the failed one's role that has not failed this request?
fn anyone_new(x: &Exchange) -> bool {
    let avoided = x.avoid.borrow();
    // It may have been picked from a newer list than the one the request began with.
    let now = x.tools.cluster.get();
    let mut known = x.cluster.instances.iter().chain(&now.instances);
    let failed = avoided.last().and_then(|i| known.find(|o| o.index == *i));
    failed.is_some_and(|failed| {
        x.members_now(failed.role)
            .iter()
            .any(|one| !avoided.contains(&one.index))
    })
}

/// Waits before try number `attempt`, but only if there is nobody new to ask.
async fn back_off(x: &Exchange, attempt: u32) {
    let retry = &x.config.retry;
    if anyone_new(x) {
        return;
    }
    let factor = retry
        .backoff_multiplier
        .powi(attempt.saturating_sub(1) as i32);
    let jitter = 1.0 + retry.jitter_factor * (2.0 * x.tools.rng.unit() - 1.0);
    let wait = retry.initial_backoff.as_secs_f64() * factor * jitter;
    let wait = wait.clamp(0.0, retry.max_backoff.as_secs_f64());
    x.pause(Duration::from_secs_f64(wait)).await;
}

pub fn error_of(stop: Stop) -> Error {
    match stop {
        Stop::Error(error) | Stop::Again(error) | Stop::Broken(error) => error,
        Stop::Answer(_) | Stop::Said(_) => {
            Error::new(Kind::Internal, Stage::Body, "an answer where none was due")
        }
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
    match Box::pin(reply.error(Some(id), &error)).await {
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
fn admit(shard: &Rc<Shard>, request: &mut Request, endpoint: Endpoint) -> Result<Admitted, Error> {
    let config = shard.tools.config();
    let strict = config.surface == Surface::Xpyd;
    if strict {
        xpyd::check_type(request)?;
    }
    let shared = &shard.shared;
    match index(request, config.limits.json_depth_max) {
        Ok(()) if strict => xpyd::check_generate(request.body(), &request.object, endpoint)?,
        Ok(()) => {}
        Err(error) if strict => {
            let absent = xpyd::nothing_asked(endpoint);
            return Err(xpyd::unreadable(request.body(), absent, error));
        }
        Err(error) => return Err(error),
    }
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

/// Reads a body that must be one JSON object, as far as we need to know it.
pub fn index(request: &mut Request, depth_max: usize) -> Result<(), Error> {
    let bad = |what: String| Error::new(Kind::BadRequest, Stage::Body, what);
    let body = request.body();
    let object = Object::scan_text(body, depth_max).map_err(|e| {
        bad(format!(
            "the body cannot be read at byte {}: {}",
            e.at, e.what
        ))
    })?;
    request.summary = Summary::of(body, &object);
    request.object = object;
    Ok(())
}
