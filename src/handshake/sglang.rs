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
//! Neither engine hears of the other's end before 300 s are over. So a P that fails ends D's wait, and a D that has
//! left the room before it answered (its client did, or it failed) ends P's.

use std::borrow::Cow;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Picked, Reply, Stop};
use crate::rng::Rng;
use crate::wire::json::{Edit, put_string};
use crate::wire::openai::KV_PARAMS;

use super::{Handshake, Running, Spec, aside, side_port};

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
    let aside = aside::send(x, prefill, leg);
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits = edits.into();
    // Another D would wait in a room that P has left.
    leg.alone = true;
    let opened = Box::pin(aside.or_failure(x, x.open(decode, leg))).await;
    if opened.is_err() {
        aside.end();
    }
    aside.relay(x, reply, opened?).await
}

/// Nobody else's, be it of another shard, another proxy, or a batch, which takes as many rooms from here on as it
/// has prompts: both engines die of a room that two requests are in. So not the time, as llm-d's sidecar has it,
/// but 62 bits of chance: below 2^63, as SGLang wants it, and with room to count up.
fn room(rng: &Rng) -> u64 {
    rng.next() >> 2
}

fn meeting(x: &Exchange, prefill: &Picked) -> Vec<Edit> {
    let place = prefill.instance().address.network();
    let (host, _) = place.unwrap_or(("localhost", 0));
    let mut name = Vec::new();
    put_string(&mut name, host);
    let port = side_port(x, prefill.instance(), |s| s.bootstrap_port, BOOTSTRAP_PORT);
    let room = room(&x.tools.rng);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_of_two_batches_never_overlap() {
        // As many requests as a day has, each a batch of a thousand prompts.
        let rng = Rng::seeded(7);
        let mut rooms: Vec<u64> = (0..100_000).map(|_| room(&rng)).collect();
        rooms.sort_unstable();
        assert!(rooms.windows(2).all(|w| w[1] - w[0] > 1000));
        assert!(rooms.last().unwrap() + 1000 < 1 << 63);
    }
}
