//! SGLang's hand-over: P and D get one request at the same time, with the place of P's bootstrap server and a room in
//! it that is nobody else's. D says there where it wants the KV; P then computes and sends it, answers with its one
//! token when D has it, and D goes on.
//!
//! What each answers is SGLang's (facts from its repository, 2026):
//! * no room: 400, "Disaggregated request received without bootstrap room id" (its own PD test asks for it);
//! * a room that another request is in: both schedulers die of it (sgl-project/sglang#40125);
//! * a bootstrap place where nobody is: 500, "Could not fetch prefill parallel info" (15 tries there, one here);
//! * the other side never comes: 500 after 300 s on either side (`SGLANG_DISAGGREGATION_*_TIMEOUT`);
//! * a batch takes as many rooms as it has prompts, counted up from the given one; several samples of a prompt share
//!   one and fail with a 500 (#26486, #40297);
//! * a stream's head is not sent before its first chunk, so that errors have their status.
//!
//! Where SGLang is lenient and its routers are not, the ledger notes it: rooms outside of `0..2^63` (mini_lb and smg
//! draw from there), rooms used again, and requests with only some of the three fields (a missing port is P's
//! default). What both kinds of engine check is checked in vLLM's words.

use std::sync::atomic::Ordering;

use super::Engine;
use super::ask::Ask;
use super::error::ApiError;
use super::kv::{KvAsk, Source};
use super::tie::{Kind, Lost, Tie, name, whose};
use crate::json::{Member, elements, integer, is_null, is_string, string};
use crate::meeting::{Entered, Seat, Side};
use crate::options::Role;

/// A port that is not given is the engine's own.
const DEFAULT_PORT: u16 = 8998;

pub(crate) fn read(
    engine: &Engine,
    body: &[u8],
    top: &[Member],
    ask: &mut Ask,
) -> Result<(Tie, KvAsk), ApiError> {
    let (world, index, role) = (&engine.world, engine.index, engine.options().role);
    let malformed = |what: String| world.ledger.malformed(|| format!("engine {index}: {what}"));
    let field = |name: &[u8]| {
        let named = |m: &&Member| &body[m.key.0 as usize..m.key.1 as usize] == name;
        let found = top.iter().rev().find(named)?;
        let value = &body[found.value.0 as usize..found.value.1 as usize];
        (!is_null(value)).then_some(value)
    };
    let [host, port, room] =
        [&b"bootstrap_host"[..], b"bootstrap_port", b"bootstrap_room"].map(field);
    let given = [host, port, room].iter().flatten().count();
    if !matches!(role, Role::Prefill | Role::Decode) {
        return Ok((Tie::None, KvAsk::Nothing));
    }
    if (1..3).contains(&given) {
        malformed(format!("{given} of the 3 bootstrap fields"));
    }
    let Some(room) = room else {
        return Err(ApiError {
            status: 400,
            kind: "BadRequestError",
            ..ApiError::sglang(
                "Invalid request: Disaggregated request received without bootstrap room id.",
            )
        });
    };
    let Some(rooms) = rooms(room, ask.prompts.len() as i64) else {
        malformed("bootstrap_room is not in 0..2^63".into());
        return Err(ApiError::field(
            "bootstrap_room",
            "Input should be a valid integer",
        ));
    };
    if ask.n > 1 {
        return Err(ApiError::sglang(
            "Decode transfer failed: parallel samples share one bootstrap room",
        ));
    }
    if role == Role::Prefill {
        ask.max_tokens = 1;
    }
    if engine.options().kv_elsewhere {
        let load = match role {
            Role::Decode => KvAsk::Load(Source::Elsewhere),
            _ => KvAsk::Nothing,
        };
        return Ok((Tie::None, load));
    }
    let side = match role {
        Role::Prefill => Side::Prefill,
        _ => Side::Decode,
    };
    let prefill = match role {
        Role::Prefill => index,
        _ => {
            let host = host.filter(|v| is_string(v)).map(string);
            let host = String::from_utf8_lossy(host.as_deref().unwrap_or(b"None")).into_owned();
            let port = port.map_or(Some(i64::from(DEFAULT_PORT)), integer);
            let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
            let Some(prefill) = whose(world, index, &host, port) else {
                malformed(format!("nobody's bootstrap server is at {host}:{port}"));
                return Ok((Tie::Lost(Kind::Sglang, Lost::AtOnce), KvAsk::Nothing));
            };
            if !world.engines[prefill].up.load(Ordering::Acquire) {
                return Ok((Tie::Lost(Kind::Sglang, Lost::AtOnce), KvAsk::Nothing));
            }
            prefill
        }
    };
    let mut seats = Vec::new();
    for room in rooms {
        let mut seat = Seat::take(world, name(world, prefill, room.to_string().into()), side);
        match seat.entered {
            Entered::First => {}
            Entered::Again => {
                world
                    .ledger
                    .violation(|| format!("engine {index}: room {room} was used before"));
                seat.renew();
            }
            Entered::Beside => {
                engine.crash(&format!("two requests are in room {room}"));
                return Err(ApiError::sglang("Scheduler hit an exception"));
            }
        }
        seats.push(seat);
    }
    let tie = match role {
        Role::Prefill => Tie::Give(Kind::Sglang, seats),
        _ => Tie::Take(Kind::Sglang, seats),
    };
    Ok((tie, KvAsk::Nothing))
}

/// A room for each prompt: as listed, or counted up from one.
fn rooms(value: &[u8], prompts: i64) -> Option<Vec<i64>> {
    let number = |value: &[u8]| -> Option<i64> {
        let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
        (number >= 0).then_some(number)
    };
    if value[0] == b'[' {
        let rooms: Option<Vec<i64>> = elements(value).map(number).collect();
        return rooms.filter(|rooms| rooms.len() as i64 == prompts);
    }
    let first = number(value)?;
    first.checked_add(prompts - 1)?;
    Some((0..prompts).map(|i| first + i).collect())
}

#[cfg(test)]
mod tests {
    use super::rooms;

    #[test]
    fn rooms_are_counted_and_bounded() {
        assert_eq!(rooms(b"7", 3), Some(vec![7, 8, 9]));
        assert_eq!(rooms(b"[5,1]", 2), Some(vec![5, 1]));
        assert_eq!(rooms(b"9223372036854775807", 1), Some(vec![i64::MAX]));
        for (bad, prompts) in [
            (&b"-1"[..], 1),
            (b"9223372036854775807", 2),
            (b"9223372036854775808", 1),
            (b"1.5", 1),
            (b"\"7\"", 1),
            (b"[1]", 2),
            (b"{}", 1),
        ] {
            assert_eq!(rooms(bad, prompts), None);
        }
    }
}
