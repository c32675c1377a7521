//! Forward: a request without stages goes to one healthy instance as it is.

use std::rc::Rc;

use crate::cluster::breaker::{State, now_ms};
use crate::config::Role;
use crate::error::{Error, Kind, Stage};
use crate::exchange::{Exchange, Leg, Opened, Picked, Reply, Request, Stop, Trace};
use crate::log;
use crate::metrics::Endpoint;

use super::attempt::{self, error_of, finish, settle};
use super::connection::Outcome;
use super::epd;
use super::shard::Shard;
use super::surface::xpyd;

/// Which instances are asked, in this order: any of them can tokenize or name its models.
const ROLES: [Role; 3] = [Role::Prefill, Role::Aggregated, Role::Decode];

pub async fn forward(shard: &Rc<Shard>, request: Rc<Request>, reply: &mut Reply) -> Outcome {
    let trace = Trace::of(&request);
    let x = Exchange::new(&shard.tools, request, reply.slot.clone(), trace);
    let result = run(&x, reply, &ROLES).await;
    let end = settle(shard, reply, &x.request().id, result.map_err(error_of)).await;
    finish(x, Endpoint::Forward, end)
}

/// To one instance that answers clients: these know what prefill instances were never told.
pub async fn decode(shard: &Rc<Shard>, request: Rc<Request>, reply: &mut Reply) -> Outcome {
    let trace = Trace::of(&request);
    let x = Exchange::new(&shard.tools, request, reply.slot.clone(), trace);
    let result = run(&x, reply, &[Role::Aggregated, Role::Decode]).await;
    let end = settle(shard, reply, &x.request().id, result.map_err(error_of)).await;
    finish(x, Endpoint::Forward, end)
}

/// One instance of each role begins or ends its profile.
pub async fn profile(shard: &Rc<Shard>, request: Rc<Request>, reply: &mut Reply) -> Outcome {
    let trace = Trace::of(&request);
    let x = Exchange::new(&shard.tools, request, reply.slot.clone(), trace);
    let end = match epd::page::profiles(&x, reply).await {
        Ok(()) => log::End::Ok,
        Err(_) => log::End::ClientGone,
    };
    finish(x, Endpoint::Other, end)
}

async fn run(x: &Exchange, reply: &mut Reply, roles: &[Role]) -> Result<(), Stop> {
    let _begun = x.begin().await?;
    let now = now_ms();
    let mut roles = roles.to_vec();
    roles.retain(|role| !x.cluster.role(*role).is_empty());
    roles.sort_by_key(|role| !x.cluster.available(*role, now));
    let last = roles.pop().unwrap_or(Role::Decode);
    for role in roles {
        match open(x, role).await {
            // Nobody of this role can be reached; those of the next know as much.
            Err(Stop::Error(error))
                if matches!(error.kind, Kind::ConnectFailed | Kind::NoInstance) => {}
            opened => return reply.relay(x, opened?).await,
        }
    }
    let stream = open(x, last).await?;
    reply.relay(x, stream).await
}

async fn open(x: &Exchange, role: Role) -> Result<Opened, Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.verbatim = true;
    x.open(x.pick(role)?, leg).await
}

/// A request for one of an engine's other paths, on a surface that checks what it asks: to the first
/// instance that can take it, in configured order, prefill before aggregated before decode.
pub async fn checked(
    shard: &Rc<Shard>,
    mut request: Rc<Request>,
    reply: &mut Reply,
    members: &[&str],
) -> Outcome {
    let config = shard.tools.config();
    let good = match attempt::index(
        Request::unshared(&mut request),
        config.limits.json_depth_max,
    ) {
        Ok(()) => xpyd::check_members(request.body(), &request.object, members),
        Err(error) => {
            let absent = xpyd::lacks(members);
            Err(xpyd::unreadable(request.body(), absent, error))
        }
    };
    let trace = Trace::of(&request);
    let x = Exchange::new(&shard.tools, request, reply.slot.clone(), trace);
    let result = match good {
        Ok(()) => to_first(&x, reply).await.map_err(error_of),
        Err(error) => Err(error),
    };
    let end = settle(shard, reply, &x.request().id, result).await;
    finish(x, Endpoint::Forward, end)
}

async fn to_first(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    x.find_model()?;
    let _begun = x.begin().await?;
    let nobody = "no instance is available";
    let mut last = Error::new(Kind::NoInstance, Stage::DecodeHead, nobody);
    let mut tried = Vec::new();
    while let Some(picked) = first(x, &tried) {
        tried.push(picked.instance().index);
        let mut leg = Leg::new(Stage::DecodeHead);
        leg.verbatim = true;
        leg.alone = true;
        leg.json = true;
        match x.open(picked, leg).await {
            Ok(opened) => return reply.relay(x, opened).await,
            Err(Stop::Error(error)) if error.kind == Kind::ConnectFailed => last = error,
            Err(stop) => return Err(stop),
        }
        x.trace.retried();
    }
    Err(last.into())
}

/// The first that would be picked now and has not been tried: by role, in configured order.
fn first(x: &Exchange, tried: &[usize]) -> Option<Picked> {
    let now = now_ms();
    for one in ROLES.iter().flat_map(|role| x.members(*role)) {
        let out = one.draining() || !one.in_standing(now);
        if out || tried.contains(&one.index) {
            continue;
        }
        let trial = one.breaker.state(now) == State::HalfOpen;
        if !trial || one.breaker.claim_trial(now) {
            return Some(Picked {
                in_flight: x.tools.view.charge(one, 0),
                trial,
            });
        }
    }
    None
}
