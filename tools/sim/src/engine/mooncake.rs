//! MooncakeConnector: P's bootstrap server says which engine it is; P and D get one transfer id at the same time, D
//! asks P's workers for what has this id, and P sends it when it has computed it.
//!
//! What is refused, and how, is vLLM's (its `mooncake_connector.py`, September 2026); prefill engines run as
//! `kv_producer`, decode engines as `kv_consumer`:
//! * a producer that is to load, or a consumer that is to hold, dies of an assertion;
//! * P without a transfer id holds nothing; D without all three of its params computes by itself (both only warn);
//! * an engine id that is not at the bootstrap place: the load fails at once, a 500 (or D computes, by policy);
//! * an id that P never hears of, or whose KV was fetched before: D waits (480 s), then the same;
//! * P holds KV only if the limit ended its answer: of one that stopped, D waits in vain (vllm-project/vllm#46008);
//! * `X-data-parallel-rank` of a rank that is not there: 400.

use super::Engine;
use super::ask::Ask;
use super::error::ApiError;
use super::kv::{KvAsk, Source};
use super::tie::{Kind, Lost, Tie, name, whose};
use crate::json::{boolean, is_null, is_string, members, string};
use crate::meeting::{Entered, Name, Seat, Side};
use crate::options::Role;
use crate::world::World;

#[derive(Default)]
struct Params {
    prefill: bool,
    decode: bool,
    engine: Option<String>,
    place: Option<String>,
    transfer: Option<String>,
}

impl Params {
    fn read(object: &[u8]) -> Params {
        let mut params = Params::default();
        for (key, value) in members(object) {
            let text = || is_string(value).then(|| String::from_utf8_lossy(&string(value)).into());
            match key {
                b"do_remote_prefill" => params.prefill = boolean(value) == Some(true),
                b"do_remote_decode" => params.decode = boolean(value) == Some(true),
                b"remote_engine_id" => params.engine = text(),
                b"remote_bootstrap_addr" => params.place = text(),
                b"transfer_id" if !is_null(value) => params.transfer = text(),
                _ => {}
            }
        }
        params.transfer = params.transfer.filter(|id| !id.is_empty());
        params
    }
}

pub(crate) fn read(
    engine: &Engine,
    rank: &[u8],
    params: Option<&[u8]>,
    ask: &Ask,
) -> Result<(Tie, KvAsk), ApiError> {
    let (world, index, role) = (&engine.world, engine.index, engine.options().role);
    let rank = rank_of(engine, rank)?;
    let Some(params) = params.map(Params::read) else {
        return Ok((Tie::None, KvAsk::Nothing));
    };
    let malformed = |what: &str| world.ledger.malformed(|| format!("engine {index}: {what}"));
    if params.prefill && params.decode {
        malformed("do_remote_decode and do_remote_prefill at once");
    }
    let dies = |what: &str| {
        engine.crash(what);
        Err(ApiError::internal(
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        ))
    };
    if params.prefill {
        if role == Role::Prefill {
            return dies("a kv_producer was asked to load (do_remote_prefill)");
        }
        return Ok(take(engine, &params, ask.prompts.len()));
    }
    if !params.decode {
        return Ok((Tie::None, KvAsk::Nothing));
    }
    if role != Role::Prefill {
        return dies("a kv_consumer was asked to hold KV (do_remote_decode)");
    }
    let Some(transfer) = params.transfer else {
        malformed("do_remote_decode without a transfer_id");
        return Ok((Tie::None, KvAsk::Nothing));
    };
    if ask.stream || ask.max_tokens != 1 || ask.choices() != 1 {
        world.ledger.violation(|| {
            format!(
                "engine {index}: a prefill for transfer is one prompt's one token, without a stream"
            )
        });
    }
    if engine.options().kv_elsewhere {
        return Ok((Tie::None, KvAsk::Nothing));
    }
    let place = name(world, index, text(rank, &transfer));
    let seat = Seat::take(world, place, Side::Prefill);
    if seat.entered != Entered::First {
        world
            .ledger
            .violation(|| format!("engine {index}: transfer id {transfer} again"));
    }
    Ok((Tie::Give(Kind::Mooncake, vec![seat]), KvAsk::Nothing))
}

fn take(engine: &Engine, params: &Params, prompts: usize) -> (Tie, KvAsk) {
    let (world, index) = (&engine.world, engine.index);
    let malformed = |what: String| world.ledger.malformed(|| format!("engine {index}: {what}"));
    let lost = |how| (Tie::Lost(Kind::Mooncake, how), KvAsk::Nothing);
    let (Some(id), Some(place), Some(transfer)) = (&params.engine, &params.place, &params.transfer)
    else {
        malformed("params lack remote_engine_id, remote_bootstrap_addr or transfer_id".into());
        return (Tie::None, KvAsk::Nothing);
    };
    if engine.options().kv_elsewhere {
        return (Tie::None, KvAsk::Load(Source::Elsewhere));
    }
    let there = place.strip_prefix("http://").and_then(|place| {
        let (host, port) = place.rsplit_once(':')?;
        whose(world, index, host, port.parse().ok()?)
    });
    let Some(there) = there else {
        malformed(format!("no bootstrap server is at {place}"));
        return lost(Lost::AtOnce);
    };
    let Some((prefill, incarnation, rank)) = find(world, id) else {
        malformed(format!("no engine is {id}"));
        return lost(Lost::AtOnce);
    };
    if prefill != there {
        malformed(format!("{id} is not at {place}"));
        return lost(Lost::AtOnce);
    }
    let place = Name {
        incarnation,
        ..name(world, prefill, text(rank, transfer))
    };
    if place != name(world, prefill, text(rank, transfer)) {
        // Of a P that was restarted.
        return lost(Lost::AtOnce);
    }
    let seat = Seat::take(world, place, Side::Decode);
    if seat.entered != Entered::First {
        world.ledger.reused_id(index, transfer);
        return lost(Lost::InTheEnd);
    }
    if prompts > 1 {
        world
            .ledger
            .violation(|| format!("engine {index}: a batch of prompts under one transfer id"));
    }
    (Tie::Take(Kind::Mooncake, vec![seat]), KvAsk::Nothing)
}

/// Each rank has workers of its own, which know what they were asked for.
fn text(rank: u32, transfer: &str) -> Vec<u8> {
    format!("{rank}/{transfer}").into_bytes()
}

fn rank_of(engine: &Engine, given: &[u8]) -> Result<u32, ApiError> {
    let ranks = engine.options().ranks;
    let given = std::str::from_utf8(given).unwrap_or_default().trim();
    // What is no number is as if it were not there.
    let Ok(rank) = given.parse::<i64>() else {
        return Ok(0);
    };
    u32::try_from(rank)
        .ok()
        .filter(|rank| *rank < ranks)
        .ok_or_else(|| {
            let what = format!("data_parallel_rank {rank} is out of range [0, {ranks}).");
            ApiError::value(None, what)
        })
}

/// The engine id of a rank.
pub(crate) fn engine_id(world: &World, engine: usize, incarnation: u32, rank: u32) -> String {
    let id = world.engine_id(engine, incarnation);
    let id = String::from_utf8_lossy(&id).into_owned();
    match world.engines[engine].options.ranks {
        1 => id,
        _ => format!("{id}_dp{rank}"),
    }
}

fn find(world: &World, id: &str) -> Option<(usize, u32, u32)> {
    let (whole, rank) = match id.split_once("_dp") {
        Some((whole, rank)) => (whole, rank.parse().ok()?),
        None => (id, 0),
    };
    let (engine, incarnation) = world.find_engine(whole.as_bytes())?;
    let ranks = world.engines[engine].options.ranks;
    let same = rank < ranks && engine_id(world, engine, incarnation, rank) == id;
    same.then_some((engine, incarnation, rank))
}

/// What the bootstrap server of `engine` says at `/query`.
pub(crate) fn query(engine: &Engine) -> String {
    let (world, index) = (&engine.world, engine.index);
    let incarnation = engine.incarnation.get();
    let ranks: Vec<String> = (0..engine.options().ranks)
        .map(|rank| {
            let id = engine_id(world, index, incarnation, rank);
            let port = 27_500 + index * 16 + rank as usize;
            format!(
                "\"{rank}\":{{\"engine_id\":\"{id}\",\"worker_addr\":{{\"0\":{{\"0\":\
                 \"tcp://127.0.0.1:{port}\"}}}}}}"
            )
        })
        .collect();
    format!("{{{}}}", ranks.join(","))
}

/// D refuses a request whose params it has seen: P need not hold its KV, or will not have to.
pub(crate) fn reject(engine: &Engine, params: &[u8]) {
    let params = Params::read(params);
    if engine.options().role == Role::Prefill || !params.prefill {
        return;
    }
    // Dropped, its seat says so.
    drop(take(engine, &params, 1));
}
