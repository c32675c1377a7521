//! LMCache's side of a request: what a prefill worker demands of `kv_transfer_params` and gives back, and
//! what a decode engine finds by the prompt's tokens.

use super::Engine;
use super::ask::Ask;
use super::error::ApiError;
use super::prompt::{of_ids, of_messages};
use crate::json::{Member, boolean, elements, integer, is_string, members, string};
use crate::options::Role;
use crate::text::{detokenize, hash, push_number, token_id};
use crate::transfer::{Order, receiver};

const KEY: u64 = 9;

/// What P was asked to do, or what D has found.
#[derive(Default)]
pub(crate) struct Lmcache {
    first_token: bool,
    order: Option<Order>,
    /// D: the prompt's KV is to be looked for.
    pub look: Option<u64>,
}

/// Reads and judges the request that came to `engine`. Changes `ask` where D goes on from P's token.
pub(crate) fn read(
    engine: &Engine,
    body: &[u8],
    top: &[Member],
    chat: bool,
    ask: &mut Ask,
) -> Result<Lmcache, ApiError> {
    let (world, index) = (&engine.world, engine.index);
    let violation = |what: &str| world.ledger.violation(|| format!("engine {index}: {what}"));
    let member = |name: &[u8]| {
        let named = |m: &&Member| &body[m.key.0 as usize..m.key.1 as usize] == name;
        let found = top.iter().rev().find(named)?;
        Some(&body[found.value.0 as usize..found.value.1 as usize])
    };
    let params = ask.kv.map(|(from, to)| &body[from..to]);
    let key = match (chat, member(if chat { b"messages" } else { b"prompt" })) {
        (true, Some(messages)) => {
            let mut text = Vec::new();
            let rendered = of_messages(messages, Some(&mut text), &super::ec::Lens::default());
            // With references to encoded media the whole of it is the key.
            Some(hash(KEY, if rendered.is_ok() { &text } else { messages }))
        }
        (false, Some(prompt)) => key_of_prompt(prompt, ask),
        _ => None,
    };
    if engine.options().role != Role::Prefill {
        if let Some(params) = params
            && members(params).any(|(name, _)| name != b"lmcache.pd_handoff_id")
        {
            violation("a decode engine got params that are P's");
        }
        return Ok(Lmcache {
            look: key,
            ..Lmcache::default()
        });
    }
    let field = |name: &[u8]| {
        members(params?)
            .filter(|(k, _)| *k == name)
            .map(|(_, v)| v)
            .last()
    };
    let first_token = field(b"ret_first_tok").and_then(boolean) == Some(true);
    let spec = field(b"disagg_spec");
    let Some(spec) = spec else {
        if engine.options().lmcache.producer {
            // The adapter of a producer asserts it, and its worker ends with the assertion.
            violation("a kv_producer was asked without a disagg_spec");
            engine.world.engines[index]
                .up
                .store(false, std::sync::atomic::Ordering::Release);
            return Err(ApiError::internal("EngineCore encountered an issue."));
        }
        return Ok(Lmcache {
            first_token,
            ..Lmcache::default()
        });
    };
    if ask.stream || ask.max_tokens != 1 || ask.choices() != 1 {
        violation("a prefill for transfer must ask for one token of one choice, without a stream");
    }
    let order = order(engine, spec, key.unwrap_or_default(), ask)?;
    Ok(Lmcache {
        first_token,
        order: Some(order),
        look: None,
    })
}

/// The hash of the prompt's text. A list of ids may end in P's token: then the answer goes on from there.
fn key_of_prompt(prompt: &[u8], ask: &mut Ask) -> Option<u64> {
    if prompt.first() == Some(&b'"') {
        return Some(hash(KEY, &string(prompt)));
    }
    let ids: Option<Vec<u32>> = elements(prompt)
        .map(|v| u32::try_from(integer(v)?).ok())
        .collect();
    let ids = ids?;
    if let Some((last, before)) = ids.split_last() {
        let of_before = of_ids(before);
        if !before.is_empty() && *last == token_id(of_before.hash, 0, 0) {
            ask.prompts[0] = super::prompt::Prompt {
                tokens: ids.len() as u32,
                lead: 1,
                ..of_before
            };
            return Some(hash(KEY, &detokenize(before)?));
        }
    }
    Some(hash(KEY, &detokenize(&ids)?))
}

fn order(engine: &Engine, spec: &[u8], prompt: u64, ask: &Ask) -> Result<Order, ApiError> {
    let field = |name: &[u8]| {
        members(spec)
            .filter(|(k, _)| *k == name)
            .map(|(_, v)| v)
            .last()
    };
    let bad =
        |what: &str| ApiError::value(Some("kv_transfer_params"), format!("disagg_spec: {what}"));
    let ports = |name: &[u8]| -> Option<Vec<u16>> {
        elements(field(name)?)
            .map(|v| u16::try_from(integer(v)?).ok())
            .collect()
    };
    let known: [&[u8]; 5] = [
        b"req_id",
        b"receiver_host",
        b"receiver_init_port",
        b"receiver_alloc_port",
        b"receiver_query_port",
    ];
    if members(spec).any(|(name, _)| !known.contains(&name)) {
        return Err(bad("a key that the adapter does not know"));
    }
    let request = field(b"req_id")
        .filter(|v| is_string(v))
        .ok_or_else(|| bad("no req_id"))?;
    let host = field(b"receiver_host").filter(|v| is_string(v));
    host.ok_or_else(|| bad("no receiver_host"))?;
    let init = ports(b"receiver_init_port").ok_or_else(|| bad("no receiver_init_port"))?;
    let alloc = ports(b"receiver_alloc_port").ok_or_else(|| bad("no receiver_alloc_port"))?;
    let ranks = engine.options().lmcache.ranks as usize;
    if init.len() != ranks || alloc.len() != ranks {
        return Err(bad("not a port of each kind per rank"));
    }
    let all: Vec<_> = engine
        .world
        .engines
        .iter()
        .map(|e| e.options.clone())
        .collect();
    let receiver =
        receiver(&all, &init, &alloc).ok_or_else(|| bad("nobody listens on these ports"))?;
    Ok(Order {
        request: String::from_utf8_lossy(&string(request)).into_owned(),
        receiver,
        prompt,
        tokens: ask.prompt_tokens() as u32,
    })
}

impl Lmcache {
    /// P has the KV: it goes out, and the answer says what was asked for.
    pub fn produce(&mut self, engine: &Engine, prompt: u64, params: &mut Vec<u8>) {
        if let Some(order) = self.order.take() {
            engine
                .world
                .transfers
                .push(&engine.world, engine.index, order);
        }
        if self.first_token {
            params.extend_from_slice(b"{\"first_tok\":");
            push_number(params, token_id(prompt, 0, 0).into());
            params.push(b'}');
        }
    }
}
