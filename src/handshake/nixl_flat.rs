//! vLLM's first NIXL hand-over, whose fields stand at the top level (llm-d-routing-sidecar's `nixl`). (Source: the
//! sidecar of late 2025.)
//!
//! ```text
//!  client      proxy                       P            D
//!    |--req------>|--do_remote_decode---->|            |
//!    |            |<--remote_block_ids, --|            |
//!    |            |   engine_id, host, port            |
//!    |            |--req + these, do_remote_prefill--->|
//!    |<==tokens===|<===================================|
//! ```
//!
//! P is not told to stop after one token: such engines do that by themselves.

use std::borrow::Cow;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Reply, Stop};
use crate::wire::json::Edit;
use crate::wire::openai::KV_PARAMS;
use crate::wire::spare::List;

use super::beside::chunked;
use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "nixl_flat",
    about: "vLLM's first NIXL hand-over: remote_block_ids and the rest at the top level",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(NixlFlat)),
};

/// What P says and D is told.
const CARRIED: [&str; 4] = [
    "remote_block_ids",
    "remote_engine_id",
    "remote_host",
    "remote_port",
];

const TRUE: Cow<'static, [u8]> = Cow::Borrowed(b"true");

struct NixlFlat;

impl Handshake for NixlFlat {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(Edit::Remove(KV_PARAMS));
    if !x.skip_prefill() {
        Box::pin(prefill(x, &mut leg)).await?;
    }
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    if chunked::applies(x) {
        return Box::pin(chunked::decode(x, reply, &leg.edits, None)).await;
    }
    let decode = x.pick(Role::Decode)?;
    let stream = Box::pin(x.open(decode, leg)).await?;
    reply.relay(x, stream).await
}

async fn prefill(x: &Exchange, decode: &mut Leg) -> Result<(), Stop> {
    let mut leg = Leg::new(Stage::Prefill);
    leg.plain_answer = true;
    leg.edits = List::from([
        Edit::Set("stream", Cow::Borrowed(b"false")),
        Edit::Remove("stream_options"),
        Edit::Remove(KV_PARAMS),
        Edit::Set("do_remote_decode", TRUE),
    ]);
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    let answer = x.call(x.pick(Role::Prefill)?, leg).await?;
    decode.edits.push(Edit::Set("do_remote_prefill", TRUE));
    for key in CARRIED {
        if let Some(value) = answer.field(key) {
            let value = Cow::Owned(value.to_vec());
            decode.edits.push(Edit::Set(key, value));
        }
    }
    Ok(())
}
