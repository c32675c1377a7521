//! Engines that share what they cache (LMCache, a common store): D is asked first where the client says how much of
//! the prompt must be cached for that, and P only if it is not.
//!
//! ```text
//!  client      proxy                        P           D
//!    |--req------>|--req (has cache_hit_threshold)----->|
//!    |            |<--finish_reason cache_threshold-----|     else its answer is the client's
//!    |            |--1 token, threshold 0-->|           |
//!    |            |<--answer----------------|           |
//!    |            |--req, threshold 0------------------>|
//!    |<==tokens===|<====================================|
//! ```
//!
//! * Without a `cache_hit_threshold` P comes first, at once.
//! * The oldest sidecar (g1, its `lmcache`) knows no threshold: P, then D with the body as it came.

use std::borrow::Cow;

use crate::config::Role;
use crate::config::sidecar::Generation;
use crate::error::Stage;
use crate::exchange::{Beginning, Exchange, Leg, Opened, Reply, Stop};
use crate::wire::json::Edit;
use crate::wire::openai::finish_reason;

use super::beside::chunked;
use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "shared_storage",
    about: "a common store: decode first where cache_hit_threshold asks for it, then prefill and decode",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(SharedStorage)),
};

const THRESHOLD: &str = "cache_hit_threshold";
/// Why D stopped before it began.
const MISSED: &[u8] = b"cache_threshold";
/// The first may be a role without a word.
const EVENTS: usize = 2;

struct SharedStorage;

impl Handshake for SharedStorage {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let oldest = x.pins.as_ref();
    let oldest = oldest.is_some_and(|pins| pins.sidecar().generation == Generation::G1);
    let request = x.request();
    // Where encoders have worked, P has to look at what they made.
    let encoded = x
        .pins
        .as_ref()
        .is_some_and(|pins| !pins.edits.borrow().is_empty());
    if !oldest
        && !encoded
        && !chunked::applies(x)
        && request.object.has(request.body(), THRESHOLD)
        && let Some(stream) = Box::pin(decode_first(x)).await?
    {
        return reply.relay(x, stream).await;
    }
    drop(request);
    if !x.skip_prefill() {
        let mut leg = x.prefill_leg();
        leg.edits.retain(|edit| edit.key() != "min_tokens");
        leg.edits.push(Edit::Remove("min_tokens"));
        let one = Cow::Borrowed(&b"1"[..]);
        leg.edits
            .retain(|edit| edit.key() != "max_completion_tokens");
        leg.edits.push(Edit::Set("max_completion_tokens", one));
        threshold(&mut leg, oldest);
        Box::pin(x.call(x.pick(Role::Prefill)?, leg)).await?;
    }
    let mut leg = Leg::new(Stage::DecodeHead);
    threshold(&mut leg, oldest);
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    if chunked::applies(x) {
        return Box::pin(chunked::decode(x, reply, &leg.edits, None)).await;
    }
    leg.verbatim = leg.edits.is_empty();
    let decode = x.pick(Role::Decode)?;
    let stream = Box::pin(x.open(decode, leg)).await?;
    reply.relay(x, stream).await
}

fn threshold(leg: &mut Leg, oldest: bool) {
    if !oldest {
        leg.edits.push(Edit::Set(THRESHOLD, Cow::Borrowed(b"0")));
    }
}

/// D's answer, unless D has too little of the prompt.
async fn decode_first(x: &Exchange) -> Result<Option<Opened>, Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.verbatim = true;
    leg.plain_answer = true;
    let mut opened = x.open(x.pick(Role::Decode)?, leg).await?;
    if opened.head.status >= 300 {
        return Ok(Some(opened));
    }
    let mut begun = Beginning::default();
    x.hold(&mut opened, &mut begun, EVENTS).await?;
    let missed = finish_reason(&begun.payload).is_some_and(|reason| reason == MISSED);
    // Dropped, its connection is closed: D need not say more.
    Ok((!missed).then_some(opened))
}
