//! OffloadingConnector with its peer-to-peer tier: P keeps what it computes for the decoder that will come with a
//! request id, and D pulls it from P's peer port. Whatever D cannot pull it computes: KV is found by its content, so
//! nothing is ever wrong, only slow, and the ledger counts it (`recomputed`).
//!
//! From vLLM's own documentation of KV offloading and its `tiering/p2p` (2026): `remote_decoder` may stand beside
//! `remote_kv_source`, `remote_prefiller` with neither of them; P parks its blocks for 60 s; a D that comes first
//! waits; only whole blocks travel; a `remote_kv_source` is asked for what it has of the prompt.

use super::Engine;
use super::ask::Ask;
use super::kv::{KvAsk, Source};
use super::tie::{Kind, Lost, Tie, name, whose};
use crate::cache::Blocks;
use crate::json::{integer, is_null, is_string, members, string};
use crate::meeting::{Entered, Seat, Side};
use crate::options::Role;

/// What a role's object says.
struct Party {
    id: Option<String>,
    place: Option<(String, u16)>,
}

fn party(object: &[u8]) -> Party {
    let field = |name: &[u8]| {
        let of = members(object).filter(|(key, _)| *key == name);
        of.map(|(_, value)| value).last()
    };
    let text = |name: &[u8]| {
        let value = field(name).filter(|v| is_string(v))?;
        let text = String::from_utf8_lossy(&string(value)).into_owned();
        Some(text).filter(|text| !text.is_empty())
    };
    let port = field(b"remote_port").and_then(integer);
    let port = port.and_then(|port| u16::try_from(port).ok());
    Party {
        id: text(b"kv_request_id"),
        place: text(b"remote_host").zip(port),
    }
}

/// The tie, and the engine that cached blocks may be pulled from.
pub(crate) fn read(
    engine: &Engine,
    params: Option<&[u8]>,
    ask: &Ask,
    blocks: &Blocks,
) -> (Tie, KvAsk, Option<usize>) {
    let (world, index) = (&engine.world, engine.index);
    let malformed = |what: &str| world.ledger.malformed(|| format!("engine {index}: {what}"));
    let nothing = (Tie::None, KvAsk::Nothing, None);
    let Some(params) = params else {
        return nothing;
    };
    let role = |name: &[u8]| {
        let of = members(params).filter(|(key, value)| *key == name && !is_null(value));
        of.map(|(_, value)| value).last()
    };
    let [decoder, prefiller, source] = [
        &b"remote_decoder"[..],
        b"remote_prefiller",
        b"remote_kv_source",
    ]
    .map(role);
    let objects = [decoder, prefiller, source];
    if objects.iter().flatten().any(|value| value[0] != b'{') {
        malformed("a role that is no object");
        return nothing;
    }
    if prefiller.is_some() && (decoder.is_some() || source.is_some()) {
        malformed("remote_prefiller beside another role");
    }
    if engine.options().kv_elsewhere {
        let load = match prefiller {
            Some(_) => KvAsk::Load(Source::Elsewhere),
            None => KvAsk::Nothing,
        };
        return (Tie::None, load, None);
    }
    if let Some(prefiller) = prefiller {
        if engine.options().role == Role::Prefill {
            malformed("a prefill engine is to pull from a prefill engine");
        }
        return (
            take(engine, &party(prefiller), ask, blocks),
            KvAsk::Nothing,
            None,
        );
    }
    let from = source.and_then(|source| {
        let Party { id, place } = party(source);
        let there = place.and_then(|(host, port)| whose(world, index, &host, port));
        if id.is_none() || there.is_none() {
            malformed("remote_kv_source without an id or a peer that is there");
        }
        there.filter(|_| id.is_some())
    });
    let Some(decoder) = decoder else {
        return (Tie::None, KvAsk::Nothing, from);
    };
    if engine.options().role == Role::Decode {
        world
            .ledger
            .violation(|| format!("decode engine {index} was asked to keep KV for another"));
    }
    let Some(id) = party(decoder).id else {
        malformed("remote_decoder without a kv_request_id");
        return (Tie::None, KvAsk::Nothing, from);
    };
    if ask.stream || ask.max_tokens != 1 || ask.choices() != 1 {
        let what = "a prefill for transfer is one prompt's one token, without a stream";
        world.ledger.violation(|| format!("engine {index}: {what}"));
    }
    if blocks.0.is_empty() {
        return (Tie::None, KvAsk::Nothing, from);
    }
    let seat = Seat::take(
        world,
        name(world, index, id.clone().into_bytes()),
        Side::Prefill,
    );
    if seat.entered != Entered::First {
        world
            .ledger
            .violation(|| format!("engine {index}: kv_request_id {id} again"));
    }
    (
        Tie::Give(Kind::Offloading, vec![seat]),
        KvAsk::Nothing,
        from,
    )
}

fn take(engine: &Engine, from: &Party, ask: &Ask, blocks: &Blocks) -> Tie {
    let (world, index) = (&engine.world, engine.index);
    let malformed = |what: String| world.ledger.malformed(|| format!("engine {index}: {what}"));
    let (Some(id), Some((host, port))) = (&from.id, &from.place) else {
        malformed("remote_prefiller lacks kv_request_id, remote_host or remote_port".into());
        return Tie::Lost(Kind::Offloading, Lost::AtOnce);
    };
    let Some(prefill) = whose(world, index, host, *port) else {
        malformed(format!("no peer is at {host}:{port}"));
        return Tie::Lost(Kind::Offloading, Lost::AtOnce);
    };
    if ask.prompts.len() > 1 {
        world
            .ledger
            .violation(|| format!("engine {index}: a batch of prompts under one kv_request_id"));
    }
    if blocks.0.is_empty() {
        return Tie::None;
    }
    let place = name(world, prefill, id.clone().into_bytes());
    let seat = Seat::take(world, place, Side::Decode);
    if seat.entered != Entered::First {
        world.ledger.reused_id(index, id);
        return Tie::Lost(Kind::Offloading, Lost::AtOnce);
    }
    if seat.dead() {
        return Tie::Lost(Kind::Offloading, Lost::AtOnce);
    }
    Tie::Take(Kind::Offloading, vec![seat])
}
