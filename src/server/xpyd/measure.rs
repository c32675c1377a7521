//! What a finished request adds to xPyD-proxy's metrics. Its times are the trace's: no clock is read for it.

use std::rc::Rc;
use std::time::Duration;

use crate::config::Role;
use crate::error::{Kind, Stage};
use crate::exchange::{Exchange, Reply, Request, Trace};
use crate::log::End;
use crate::metrics::Endpoint;
use crate::metrics::xpyd::{Failure, Finished, Legs, Level, Levels, Part, UNKNOWN};
use crate::server::Shared;
use crate::server::shard::Shard;
use crate::wire::json;

/// Remembers the model that a request names: its bytes are gone when it is counted.
pub fn note_model(trace: &Trace, request: &Request) {
    let value = request.object.get(request.body(), "model");
    if let Some(name) = value.and_then(json::string_value) {
        *trace.model.borrow_mut() = Some(String::from_utf8_lossy(&name).into());
    }
}

/// A request that went no further than its body. (Of the wrong type: not counted, as ever.)
pub fn refused(shard: &Rc<Shard>, trace: &Trace, endpoint: Endpoint, kind: Kind) {
    if kind != Kind::UnsupportedMediaType {
        let finished = Finished {
            chat: endpoint == Endpoint::Chat,
            total: trace.started.elapsed(),
            model: None,
            legs: None,
            failure: None,
        };
        shard.shared.xpyd.finished(shard.index, &finished);
    }
}

/// A request that has been through its script.
pub fn finished(shard: &Rc<Shard>, x: &Exchange, reply: &Reply, endpoint: Endpoint, end: End) {
    let trace = &x.trace;
    let (prefill, decode) = (trace.prefill_at.borrow(), trace.decode_at.borrow());
    let model = trace.model.borrow();
    // An aggregated instance is noted as one that decodes; such requests have no stages.
    let decodes = |name: &str| {
        x.cluster
            .role(Role::Decode)
            .iter()
            .any(|i| *i.name == *name)
    };
    let staged = prefill.is_some() || decode.as_deref().is_some_and(decodes);
    let total = trace.started.elapsed();
    let legs = staged.then(|| Legs {
        prefill: prefill.as_deref(),
        decode: decode.as_deref(),
        times: times(x, reply, end, total),
    });
    let failure = failure(trace, reply, end).map(|failure| {
        let instance = match failure {
            Failure::NoInstance => None,
            Failure::Prefill => prefill.as_deref(),
            Failure::Decode => decode.as_deref(),
        };
        (instance.unwrap_or(UNKNOWN), failure)
    });
    let aggregated = !staged && decode.is_some();
    let finished = Finished {
        chat: endpoint == Endpoint::Chat,
        total,
        model: model.as_deref(),
        legs,
        failure: failure.filter(|_| !aggregated),
    };
    shard.shared.xpyd.finished(shard.index, &finished);
}

fn times(x: &Exchange, reply: &Reply, end: End, total: Duration) -> [Option<Duration>; 6] {
    let mut times = [None; 6];
    let trace = &x.trace;
    let mut set = |part: Part, time| times[part as usize] = Some(time);
    // D was asked as soon as P had answered; so from the start, whatever came before it.
    let prefilled =
        trace.prefill.get().map(
            |prefill| match (trace.ttft.get(), trace.decode_head.get()) {
                (Some(head_at), Some(head)) => head_at.saturating_sub(head),
                _ => {
                    let before = [trace.body.get(), trace.queue.get()];
                    before.into_iter().flatten().sum::<Duration>() + prefill
                }
            },
        );
    // Without a decode instance it was refused, not done.
    if let Some(prefilled) = prefilled.filter(|_| trace.decode_at.borrow().is_some()) {
        set(Part::Prefill, prefilled);
    }
    if end != End::Ok || reply.status >= 400 {
        return times;
    }
    set(Part::E2e, total);
    let (Some(first), Some(head_at)) = (trace.first_chunk.get(), trace.ttft.get()) else {
        return times;
    };
    set(Part::Ttft, first);
    if let Some(prefilled) = prefilled {
        set(Part::KvTransfer, first.saturating_sub(prefilled));
    }
    let last = head_at + trace.stream.get().unwrap_or_default();
    let decode = last.saturating_sub(first);
    set(Part::Decode, decode);
    if x.request().summary.stream && reply.chunks > 1 {
        set(
            Part::Tpot,
            decode / (reply.chunks - 1).min(u64::from(u32::MAX)) as u32,
        );
    }
    times
}

/// Whose failure it was, if an instance's (or the want of one).
fn failure(trace: &Trace, reply: &Reply, end: End) -> Option<Failure> {
    let at_stage = || match trace.stage.get() {
        Stage::Prefill => Some(Failure::Prefill),
        Stage::DecodeHead | Stage::Stream => Some(Failure::Decode),
        _ => None,
    };
    let by_instance = |name: &str| {
        [
            Kind::ConnectFailed,
            Kind::Reset,
            Kind::BadResponse,
            Kind::AnswerTooLarge,
            Kind::Timeout,
        ]
        .iter()
        .any(|kind| kind.name() == name)
    };
    match end {
        End::Error(name) if name == Kind::NoInstance.name() => Some(Failure::NoInstance),
        End::Error(name) | End::Broken(name) if by_instance(name) => at_stage(),
        // An engine's own words.
        End::Ok if reply.status >= 500 => at_stage(),
        _ => None,
    }
}

/// Appends its families to a page.
pub fn render(shared: &Shared, out: &mut String) {
    let cluster = shared.cluster.get();
    let config = shared.config.get();
    let mut levels = Levels {
        active: shared.in_flight.load(std::sync::atomic::Ordering::Relaxed) as i64,
        instances: Vec::new(),
    };
    for role in [Role::Prefill, Role::Decode] {
        for one in cluster.role(role) {
            let requests = one.load.read().requests;
            let known = levels
                .instances
                .iter_mut()
                .find(|level| *level.name == *one.name && level.prefill == (role == Role::Prefill));
            if let Some(level) = known {
                // One address listed twice.
                level.requests += requests;
                continue;
            }
            let own = one.model().map(|model| model.to_string());
            let named = Some(config.model.clone()).filter(|model| !model.is_empty());
            levels.instances.push(Level {
                name: one.name.to_string(),
                prefill: role == Role::Prefill,
                model: own.or(named).unwrap_or_else(|| UNKNOWN.into()),
                requests,
            });
        }
    }
    shared.xpyd.render(&levels, out);
}
