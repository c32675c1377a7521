//! Forward: a request without stages goes to one healthy instance as it is.

use std::rc::Rc;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Reply, Request, Stop, Trace};
use crate::metrics::Endpoint;

use super::attempt::{error_of, finish, settle};
use super::connection::Outcome;
use super::shard::Shard;

/// Which instances are asked, in this order: any of them can tokenize or name its models.
const ROLES: [Role; 3] = [Role::Prefill, Role::Aggregated, Role::Decode];

pub async fn forward(
    shard: &Rc<Shard>,
    request: Request,
    trace: Trace,
    reply: &mut Reply,
) -> Outcome {
    let x = Exchange::new(&shard.tools, Rc::new(request), reply.slot.clone(), trace);
    let result = run(&x, reply).await;
    let end = settle(shard, reply, &x.request().id, result.map_err(error_of)).await;
    finish(x, Endpoint::Forward, end)
}

async fn run(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let now = crate::cluster::breaker::now_ms();
    let has = |role: &&Role| !x.cluster.role(**role).is_empty();
    let role = ROLES
        .iter()
        .find(|role| x.cluster.available(**role, now))
        .or_else(|| ROLES.iter().find(has))
        .unwrap_or(&Role::Decode);
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.verbatim = true;
    let stream = x.open(x.pick(*role)?, leg).await?;
    reply.relay(x, stream).await
}
