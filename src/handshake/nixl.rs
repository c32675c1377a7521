//! vLLM NixlConnector: P keeps its KV blocks and says where; D fetches them. (Source: vLLM 0.32, seen
//! running; the params are opaque here and travel whole.)
//!
//! ```text
//!  client      proxy            P            D
//!    |--req------>|--1 token, --->|            |
//!    |            |   template    |            |
//!    |            |<--params------|            |
//!    |            |--req + params------------->|
//!    |            |               |<==blocks===|
//!    |<==tokens===|<===========================|
//! ```
//!
//! * No params (absent or null): P kept nothing (beam search; before 0.32 also a stop on the first
//!   token). D gets the request without them and computes by itself.
//! * Several prompts in one request skip P: through one grant every choice but the first would silently
//!   be wrong text.
//! * With `first_token_source: prefill`, the first token of a stream is P's: `exchange/first_token.rs`. If
//!   P ended on it, D is not asked and the grant is released.
//! * Beside an engine (llm-d's `nixlv2`) P's caps are the sidecar's, params that P does not give are `null` at D,
//!   and D's usage says how much of the prompt *P* had cached.
//! * vLLM sends a stream's head before it has the blocks. The client gets it together with the first event: if that
//!   is an `error` (P died meanwhile), another try is made, with a new prefill; `exchange/hold.rs`.
//! * Params that the *client* sent are dropped on every leg: with malformed ones a real D hangs, and
//!   dies when the client leaves.

use std::borrow::Cow;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::first_token::{First, Plan};
use crate::exchange::grant::Grant;
use crate::exchange::rewrite::{Begun, Rewrite};
use crate::exchange::{Exchange, Leg, Reply, Stop};
use crate::wire::cap::edited;
use crate::wire::json::Edit;
use crate::wire::openai::{KV_PARAMS, NIXL_TEMPLATE};
use crate::wire::usage::{Corrected, cached_tokens};

use super::beside::chunked;
use super::{Handshake, Running, Spec, skips_batch};

pub const SPEC: Spec = Spec {
    name: "nixl",
    about: "vLLM NixlConnector: kv_transfer_params from P to D",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(Nixl)),
};

struct Nixl;

impl Handshake for Nixl {
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
    let (grant, first) = prefill(x, &mut plan).await?;
    if let First::Whole(stream) = &first {
        // Nobody will fetch the KV: dropped, the grant is released.
        drop(grant);
        Box::pin(reply.whole_stream(x, stream)).await?;
        return Ok(None);
    }
    let mut leg = decode_leg(x, grant);
    if chunked::applies(x) {
        Box::pin(chunked::decode(x, reply, &leg.edits, leg.grant)).await?;
        return Ok(None);
    }
    let decode = x.pick(Role::Decode)?;
    plan.seed(&mut leg);
    let stream = x.open(decode, leg).await?;
    let rewrite: Option<Box<dyn Rewrite>> = match &x.pins {
        Some(pins) => {
            let events = stream.is_good_event_stream();
            Some(Box::new(Corrected::new(pins.cached_tokens.get(), events)))
        }
        None => first.rewrite(x, &stream),
    };
    Ok(Some((stream, rewrite)))
}

async fn prefill(x: &Exchange, plan: &mut Plan) -> Result<(Option<Grant>, First), Stop> {
    if skips_batch(x) || x.skip_prefill() {
        return Ok((None, First::Decode));
    }
    *plan = x.first_token_plan();
    let mut leg = x.prefill_leg();
    leg.edits
        .retain(|edit| !matches!(edit, Edit::Remove(KV_PARAMS)));
    leg.edits.push(Edit::Set(KV_PARAMS, template(x)));
    leg.brings_grant = true;
    plan.seed(&mut leg);
    let answer = x.call(x.pick(Role::Prefill)?, leg).await?;
    if let Some(pins) = &x.pins {
        let cached = cached_tokens(answer.body(), answer.object());
        pins.cached_tokens.set(cached);
    }
    let first = plan.read(x, &answer);
    Ok((Grant::from_answer(x, &answer, KV_PARAMS)?, first))
}

/// What asks P to keep its KV; and, beside an engine, whom it may pull a cached prefix from.
fn template(x: &Exchange) -> Cow<'static, [u8]> {
    let pulls = x.pins.as_ref().filter(|pins| pins.sidecar().p2p_pull);
    let prefill = pulls.and_then(|pins| pins.prefill());
    match prefill.and_then(|prefill| x.kv_source(Some(&prefill))) {
        None => Cow::Borrowed(NIXL_TEMPLATE),
        Some(source) => {
            let value = Cow::Owned(source.into_bytes());
            let own = [Edit::Set("remote_kv_source", value)];
            Cow::Owned(edited(NIXL_TEMPLATE, &own))
        }
    }
}

fn decode_leg(x: &Exchange, grant: Option<Grant>) -> Leg {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(match &grant {
        Some(grant) => Edit::Set(KV_PARAMS, Cow::Owned(grant.params().to_vec())),
        None if x.pins.is_some() => Edit::Set(KV_PARAMS, Cow::Borrowed(b"null")),
        None => Edit::Remove(KV_PARAMS),
    });
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
        // Its usage is corrected, which it must not hide.
        leg.plain_answer = true;
    }
    leg.grant = grant;
    leg
}
