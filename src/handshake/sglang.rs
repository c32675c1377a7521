//! SGLang: P and D get the same body at once, and meet at P's bootstrap server in a room of ours.
//!
//! ```text
//!  client      proxy                        P           D
//!    |--req------>|--req + room------------>|           |
//!    |            |--req + room------------------------>|
//!    |            |                         |<==meet===>|
//!    |<==tokens===|<====================================|
//! ```
//!
//! P goes on when the client leaves (D's leg ends, and P's transfer with it), and what it answers is nobody's
//! business but the log's: D is who waits for it.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Picked, Reply, Stop};
use crate::wire::json::{Edit, put_string};
use crate::wire::openai::KV_PARAMS;

use super::{Handshake, Running, Spec, aside};

pub const SPEC: Spec = Spec {
    name: "sglang",
    about: "SGLang: both engines at once, with a bootstrap room",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(Sglang)),
};

/// SGLang's own default.
const BOOTSTRAP_PORT: u16 = 8998;

struct Sglang;

impl Handshake for Sglang {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let (prefill, decode) = (x.pick(Role::Prefill)?, x.pick(Role::Decode)?);
    let edits = meeting(x, &prefill);
    let mut leg = Leg::new(Stage::Prefill);
    leg.edits = edits.clone().into();
    leg.alone = true;
    aside::send(x, prefill, leg);
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits = edits.into();
    // Another D would wait in a room that P has left.
    leg.alone = true;
    let stream = Box::pin(x.open(decode, leg)).await?;
    reply.relay(x, stream).await
}

fn meeting(x: &Exchange, prefill: &Picked) -> Vec<Edit> {
    let place = prefill.instance().address.network();
    let (host, _) = place.unwrap_or(("localhost", 0));
    let mut name = Vec::new();
    put_string(&mut name, host);
    let sidecar = x.config.sidecar.as_ref();
    let port = sidecar.map_or(BOOTSTRAP_PORT, |sidecar| sidecar.bootstrap_port);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_nanos() as u64);
    // Below 2^63, as SGLang wants it.
    let room = (now + x.tools.rng.next() % 1000) & (u64::MAX >> 1);
    let own = |text: String| Cow::Owned(text.into_bytes());
    let mut edits = vec![
        Edit::Set("bootstrap_host", Cow::Owned(name)),
        Edit::Set("bootstrap_port", own(port.to_string())),
        Edit::Set("bootstrap_room", own(room.to_string())),
        Edit::Remove(KV_PARAMS),
    ];
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut edits);
    }
    edits
}
