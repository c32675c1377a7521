//! `kv_transfer_params`: read on the way in with all the strictness of NIXL, written on the way out
//! in the form of vLLM 0.32.

use super::error::ApiError;
use crate::json::{boolean, integer, is_null, is_string, members, string};
use crate::ledger::GrantName;
use crate::text::{hash, mix, push_hex, push_number};
use crate::world::World;

/// Members of the params that a P issues: fewer at D means that the proxy did not pass them whole.
const ISSUED_KEYS: u32 = 14;
const BLOCK_TOKENS: u32 = 128;

/// What a request wants done with KV.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvAsk {
    Nothing,
    /// Prefill and hold (after loading, in a later turn of a conversation).
    Produce {
        load: Option<Source>,
    },
    Load(Source),
    /// The real engine waits for a notification that never comes, and dies with the client.
    HangAndDie,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    Grant(GrantName),
    /// A grant of another process, believed.
    Elsewhere,
    /// Nothing can be read with these params.
    Unusable,
}

#[derive(Default)]
struct Params<'a> {
    prefill: bool,
    decode: bool,
    engine: Option<&'a [u8]>,
    request: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    blocks: Option<&'a [u8]>,
    keys: u32,
}

impl<'a> Params<'a> {
    fn read(object: &'a [u8]) -> Params<'a> {
        let mut params = Params::default();
        for (key, value) in members(object) {
            params.keys += 1;
            let place = match key {
                b"do_remote_prefill" => {
                    params.prefill = boolean(value) == Some(true);
                    continue;
                }
                b"do_remote_decode" => {
                    params.decode = boolean(value) == Some(true);
                    continue;
                }
                b"remote_engine_id" => &mut params.engine,
                b"remote_request_id" => &mut params.request,
                b"remote_host" => &mut params.host,
                b"remote_port" => &mut params.port,
                b"remote_block_ids" => &mut params.blocks,
                _ => continue,
            };
            *place = if is_null(value) { None } else { Some(value) };
        }
        params
    }
}

/// Reads the params that came to `me`.
pub(crate) fn read(world: &World, me: usize, object: &[u8]) -> Result<KvAsk, ApiError> {
    let params = Params::read(object);
    if params.decode && params.prefill {
        world
            .ledger
            .malformed(|| format!("engine {me}: do_remote_decode and do_remote_prefill at once"));
    }
    if params.decode {
        let load = params.engine.is_some().then(|| {
            whole(world, me, &params);
            source(world, me, &params)
        });
        return Ok(KvAsk::Produce { load });
    }
    if !params.prefill {
        if params.engine.is_some() {
            world
                .ledger
                .malformed(|| format!("engine {me}: params without do_remote_prefill"));
        }
        return Ok(KvAsk::Nothing);
    }
    if params.request.is_none() {
        world
            .ledger
            .malformed(|| format!("engine {me}: params without remote_request_id"));
        return Ok(KvAsk::HangAndDie);
    }
    if params.engine.is_none() || params.host.is_none() || params.port.is_none() {
        // The real one logs a warning and computes the prompt itself: slow, not wrong.
        world
            .ledger
            .malformed(|| format!("engine {me}: params lack engine id, host or port"));
        return Ok(KvAsk::Nothing);
    }
    whole(world, me, &params);
    Ok(KvAsk::Load(source(world, me, &params)))
}

fn whole(world: &World, me: usize, params: &Params) {
    if params.keys < ISSUED_KEYS && world.engines[me].options.strict.whole_params {
        let keys = params.keys;
        world
            .ledger
            .violation(|| format!("engine {me}: {keys} of {ISSUED_KEYS} params passed on"));
    }
}

fn source(world: &World, me: usize, params: &Params) -> Source {
    let texts = [params.engine, params.request, params.host];
    if world.engines[me].options.kv_elsewhere && texts.iter().all(|t| t.is_some_and(is_string)) {
        return Source::Elsewhere;
    }
    match named(world, params) {
        Ok(grant) => Source::Grant(grant),
        Err(why) => {
            world.ledger.malformed(|| format!("engine {me}: {why}"));
            Source::Unusable
        }
    }
}

fn named(world: &World, params: &Params) -> Result<GrantName, &'static str> {
    let text = |v: Option<&[u8]>| v.filter(|v| is_string(v)).map(|v| string(v).into_owned());
    let id = text(params.engine).ok_or("remote_engine_id is no string")?;
    let (engine, incarnation) = world.find_engine(&id).ok_or("unknown remote_engine_id")?;
    let request = text(params.request).ok_or("remote_request_id is no string")?;
    let host = text(params.host).ok_or("remote_host is no string")?;
    if ![&b"127.0.0.1"[..], b"localhost", b"::1"].contains(&host.as_slice()) {
        return Err("nobody is at this remote_host");
    }
    let port = params.port.and_then(integer);
    if port != Some(world.engines[engine].side_port(engine).into()) {
        return Err("wrong remote_port");
    }
    let hex = request
        .len()
        .checked_sub(8)
        .and_then(|at| request.get(at..));
    let hex = hex.and_then(|h| std::str::from_utf8(h).ok());
    let number = hex.and_then(|h| u32::from_str_radix(h, 16).ok());
    let number = number.ok_or("remote_request_id was not issued")? ^ veil(world, engine);
    if !params
        .blocks
        .is_some_and(|b| blocks_match(b, first_block(number)))
    {
        return Err("wrong remote_block_ids");
    }
    Ok(GrantName {
        engine,
        incarnation,
        number,
        name: hash(0, &request),
    })
}

/// Makes grant numbers look like the random suffix that they stand in for.
fn veil(world: &World, engine: usize) -> u32 {
    mix(world.seed, engine as u64 + 77) as u32
}

fn first_block(number: u32) -> u64 {
    (u64::from(number) + 1) * 2_654_435_761 % 60_000 + 1
}

/// `[[b, b + 1, ...]]`, whatever the whitespace.
fn blocks_match(value: &[u8], first: u64) -> bool {
    let mut brackets = 0;
    let mut expected = first;
    let mut number: Option<u64> = None;
    for byte in value {
        match byte {
            b'0'..=b'9' => {
                number = Some(number.unwrap_or(0).wrapping_mul(10) + u64::from(byte - b'0'));
                continue;
            }
            b'[' => brackets += 1,
            b']' | b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => return false,
        }
        if let Some(id) = number.take() {
            if id != expected {
                return false;
            }
            expected += 1;
        }
    }
    brackets == 2 && expected > first
}

/// Appends the id that P's request gets inside the engine: grant `number` of `engine`.
pub(crate) fn push_request_id(
    out: &mut Vec<u8>,
    world: &World,
    engine: usize,
    answer_id: &[u8],
    prompt: u32,
    number: u32,
) {
    out.extend_from_slice(answer_id);
    out.push(b'-');
    push_number(out, prompt.into());
    out.push(b'-');
    push_hex(out, (number ^ veil(world, engine)).into(), 8);
}

/// Appends the params object for grant `number`.
pub(crate) fn push_params(
    out: &mut Vec<u8>,
    world: &World,
    engine: usize,
    engine_id: &[u8],
    request_id: &[u8],
    number: u32,
    tokens: u32,
) {
    out.extend_from_slice(
        b"{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[",
    );
    let first = first_block(number);
    for block in 0..u64::from(tokens.div_ceil(BLOCK_TOKENS).max(1)) {
        if block > 0 {
            out.push(b',');
        }
        push_number(out, first + block);
    }
    out.extend_from_slice(b"]],\"remote_engine_id\":\"");
    out.extend_from_slice(engine_id);
    out.extend_from_slice(b"\",\"remote_request_id\":\"");
    out.extend_from_slice(request_id);
    out.extend_from_slice(b"\",\"remote_host\":\"");
    out.extend_from_slice(world.engines[engine].options.side_host.as_bytes());
    out.extend_from_slice(b"\",\"remote_port\":");
    push_number(out, world.engines[engine].side_port(engine).into());
    out.extend_from_slice(b",\"tp_size\":1,\"dcp_size\":1,\"pp_size\":1,\"remote_num_tokens\":");
    push_number(out, tokens.into());
    out.extend_from_slice(
        b",\"remote_blocks_expiry_time\":null,\"transfer_mode\":\"pull\",\
          \"remote_prefill_cached_tokens\":0}",
    );
}
