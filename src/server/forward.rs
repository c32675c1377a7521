//! Forward: a request without stages goes to one healthy instance as it is.

use std::rc::Rc;

use crate::config::Role;
use crate::error::{Kind, Stage};
use crate::exchange::{Exchange, Leg, Opened, Reply, Request, Stop, Trace};
use crate::metrics::Endpoint;

use super::attempt::{error_of, finish, settle};
use super::connection::Outcome;
use super::shard::Shard;

/// Which instances are asked, in this order: any of them can tokenize or name its models.
const ROLES: [Role; 3] = [Role::Prefill, Role::Aggregated, Role::Decode];

pub async fn forward(
    shard: &Rc<Shard>,
    request: Box<Request>,
    trace: Trace,
    reply: &mut Reply,
) -> Outcome {
    let x = Exchange::new(&shard.tools, Rc::from(request), reply.slot.clone(), trace);
    let result = run(&x, reply).await;
    let end = settle(shard, reply, &x.request().id, result.map_err(error_of)).await;
    finish(x, Endpoint::Forward, end)
}

async fn run(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let now = crate::cluster::breaker::now_ms();
    let mut roles = ROLES.to_vec();
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
