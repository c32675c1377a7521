//! Prefill, then decode with the original body; the engines share KV by themselves (a common store, or
//! each other's cache). The `direct` mode of xPyD-proxy.
//!
//! ```text
//!  client      proxy          P           D
//!    |--req------>|--1 token-->|           |
//!    |            |<--answer---|           |
//!    |            |--req------------------>|
//!    |<==tokens===|<=======================|
//! ```
//!
//! With `first_token_source: prefill`, the first token of a stream is P's: `exchange/first_token.rs`.

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::first_token::{First, Plan};
use crate::exchange::rewrite::Begun;
use crate::exchange::{Exchange, Leg, Reply, Stop};
use crate::wire::json::Edit;
use crate::wire::openai::KV_PARAMS;

use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "sequential",
    about: "prefill, then decode with the original body",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(Sequential)),
};

struct Sequential;

impl Handshake for Sequential {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    // Boxed, all but the relay: a stream rests there, and should not be as large as what came before.
    let Some((stream, rewrite)) = Box::pin(legs(x, reply)).await? else {
        return Ok(());
    };
    reply.relay_through(x, stream, rewrite).await
}

/// Up to what D has begun to answer; `None`: the client has been answered.
async fn legs(x: &Exchange, reply: &mut Reply) -> Result<Option<Begun>, Stop> {
    let mut plan = Plan::default();
    let mut first = First::default();
    if !x.skip_prefill() {
        plan = x.first_token_plan();
        let mut leg = x.prefill_leg();
        plan.seed(&mut leg);
        let answer = x.call(x.pick(Role::Prefill)?, leg).await?;
        first = plan.read(x, &answer);
    }
    if let First::Whole(stream) = &first {
        Box::pin(reply.whole_stream(x, stream)).await?;
        return Ok(None);
    }
    let decode = x.pick(Role::Decode)?;
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(Edit::Remove(KV_PARAMS));
    plan.seed(&mut leg);
    let stream = x.open(decode, leg).await?;
    let rewrite = first.rewrite(x, &stream);
    Ok(Some((stream, rewrite)))
}
