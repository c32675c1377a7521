//! vLLM's NixlConnector with bidirectional transfer: between two turns of a conversation D keeps the KV of
//! its answer, and the next P fetches it there instead of computing the history again. (Source: vLLM 0.32,
//! seen running; `disagg_proxy_multiturn.py`. The params are opaque here and travel whole.)
//!
//! ```text
//!  client      proxy                P            D
//!    |--turn 1--->|--1 token, ------>|            |
//!    |            |   template       |            |
//!    |            |<--params---------|            |
//!    |            |--req + params---------------->|
//!    |            |                  |<==blocks===|
//!    |<==tokens===|<==============================|
//!    |            |<--params of D, in the last chunk    kept: by whom, and where the turn ended
//!    |--turn 2--->|--1 token, ------>|            |
//!    |            |   params of D    |==blocks of turn 1==>|
//!    |            |<--params---------|            |      and so on
//! ```
//!
//! * A turn is of a conversation if it has a `conversation_id` (or the field `x-conversation-id`); engines
//!   get neither. Another client, by its credentials, has other conversations.
//! * What was kept is taken once, and used only if the request goes on from where that turn ended
//!   (`wire/history.rs`); else P gets the template. So it does if P fails on what it was given: a D that was
//!   restarted has no such blocks any more.
//! * P hands nothing over (params absent or null): D gets the request without any, never the template.
//! * D is asked as the client asks, and its answer passes as it is but for its params.

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::cluster::Instance;
use crate::config::{Config, RemoteHost, Role};
use crate::error::Stage;
use crate::exchange::conversation::memory::Memory;
use crate::exchange::conversation::redis::Redis;
use crate::exchange::conversation::{Entry, Found, Key, Store, key};
use crate::exchange::grant::Grant;
use crate::exchange::rewrite::Rewrite;
use crate::exchange::{Exchange, Leg, Opened, Reply, Request, Stop, Tools};
use crate::metrics::{Conversation, Counter, Skip};
use crate::wire::history::{Answering, Asked};
use crate::wire::json::{self, Edit, Object, put_string, string_value};
use crate::wire::kv_tap::{DEPTH_MAX, KvTap, Said};
use crate::wire::openai::{CONVERSATION_FIELD, CONVERSATION_ID, KV_PARAMS, NIXL_TEMPLATE};

use super::{Conversations, Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "multiturn",
    about: "vLLM NixlConnector, bidirectional: KV stays in D between the turns of a conversation",
    needs: &[Role::Prefill, Role::Decode],
    build,
};

struct Multiturn {
    store: Arc<dyn Store>,
}

fn build(config: &Config) -> io::Result<Box<dyn Handshake>> {
    let of = &config.multiturn;
    let store: Arc<dyn Store> = match &of.redis {
        Some(at) => Arc::new(Redis::new(at.clone(), of.ttl, of.redis_timeout)),
        None => Arc::new(Memory::new(of.entries_max, of.bytes_max, of.ttl)),
    };
    Ok(Box::new(Multiturn { store }))
}

impl Handshake for Multiturn {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(self, x, reply))
    }

    fn conversations(&self, tools: &Rc<Tools>) -> Option<Conversations> {
        let kept = self.store.kept(tools);
        let expired = self.store.expired();
        Some(Conversations { kept, expired })
    }
}

async fn script(all: &Multiturn, x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    // Boxed, all but the relay: a stream rests there, and should not be as large as what came before.
    let (stream, tap) = Box::pin(turn(all, x)).await?;
    reply.relay_through(x, stream, tap).await
}

type Opening = (Opened, Option<Box<dyn Rewrite>>);

async fn turn(all: &Multiturn, x: &Exchange) -> Result<Opening, Stop> {
    let mut turn = Turn::of(x);
    let grant = if x.request().summary.prompts > 1 {
        x.tools.metrics.inc(Counter::prefill_skipped(Skip::Batch));
        None
    } else if x.skip_prefill() {
        None
    } else {
        let known = match &turn {
            Some(turn) => turn.last(all, x).await,
            None => None,
        };
        prefill(x, known).await?
    };
    let stream = x.open(x.pick(Role::Decode)?, decode_leg(grant)).await?;
    let tap = tap(all, x, &stream, turn.take());
    Ok((stream, tap))
}

/// `known`: what D kept of the last turn.
async fn prefill(x: &Exchange, known: Option<Vec<u8>>) -> Result<Option<Grant>, Stop> {
    let answer = match known {
        Some(params) => {
            count(x, Conversation::Reused);
            let mut leg = prefill_leg(x, Cow::Owned(params));
            // Once P has it, it may have read the blocks, and nobody may do so again.
            leg.once = true;
            leg.unsure = true;
            match x.call(x.pick(Role::Prefill)?, leg).await {
                // What is wrong with it may be what was kept: then the client has nothing to do with it.
                Err(Stop::Answer(failed)) if failed.head.status >= 400 => {
                    x.trace.retried();
                    fresh(x).await?
                }
                other => other?,
            }
        }
        None => fresh(x).await?,
    };
    let mut grant = Grant::from_answer(x, &answer, KV_PARAMS)?;
    if let Some(grant) = &mut grant {
        let host = host(x, &answer.instance);
        grant.rephrase(|params| edited(params, &[], host.as_deref()));
    }
    Ok(grant)
}

async fn fresh(x: &Exchange) -> Result<crate::exchange::Answer, Stop> {
    let leg = prefill_leg(x, Cow::Borrowed(NIXL_TEMPLATE));
    x.call(x.pick(Role::Prefill)?, leg).await
}

fn prefill_leg(x: &Exchange, params: Cow<'static, [u8]>) -> Leg {
    let mut leg = x.prefill_leg();
    leg.edits
        .retain(|edit| !matches!(edit, Edit::Remove(KV_PARAMS)));
    leg.edits.push(Edit::Set(KV_PARAMS, params));
    leg.brings_grant = true;
    untold(leg)
}

fn decode_leg(grant: Option<Grant>) -> Leg {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(match &grant {
        Some(grant) => Edit::Set(KV_PARAMS, Cow::Owned(grant.params().to_vec())),
        None => Edit::Remove(KV_PARAMS),
    });
    leg.grant = grant;
    // Its params will be read by us.
    leg.plain_answer = true;
    untold(leg)
}

/// Which conversation it is, is not the engines' to know.
fn untold(mut leg: Leg) -> Leg {
    leg.edits.push(Edit::Remove(CONVERSATION_ID));
    leg.strip = &[CONVERSATION_FIELD];
    leg
}

fn count(x: &Exchange, outcome: Conversation) {
    x.tools.metrics.inc(Counter::conversations(outcome));
}

/// A request that is a turn of a conversation.
struct Turn {
    key: Key,
    request: Rc<Request>,
    said: Said,
    answering: Answering,
}

impl Turn {
    fn of(x: &Exchange) -> Option<Turn> {
        let request = x.request();
        let key = key(&request, &id(&request)?);
        match Asked::of(request.body(), &request.object).map(|asked| asked.answering()) {
            Some((said, answering)) => Some(Turn {
                key,
                request,
                said,
                answering,
            }),
            None => {
                count(x, Conversation::Unrepeatable);
                None
            }
        }
    }

    /// What D kept of the turn before, if this one goes on from there. It is taken in any case: params of a
    /// history that is not gone on with are of no more use.
    async fn last(&self, all: &Multiturn, x: &Exchange) -> Option<Vec<u8>> {
        let outcome = match all.store.take(&x.tools, &self.key).await {
            Found::Entry(entry) => {
                let asked = Asked::of(self.request.body(), &self.request.object);
                if !asked.is_some_and(|asked| asked.continues(&entry.past)) {
                    Conversation::Mismatch
                } else if !still_there(x, &entry) {
                    Conversation::Expired
                } else {
                    return Some(entry.params);
                }
            }
            Found::Nothing => Conversation::New,
            // The store has counted it.
            Found::Expired | Found::Failed => return None,
        };
        count(x, outcome);
        None
    }
}

/// Is the D that kept it still the same process, as far as we know?
fn still_there(x: &Exchange, entry: &Entry) -> bool {
    let Some((index, starts)) = entry.origin else {
        return true;
    };
    let mut instances = x.cluster.instances.iter();
    instances.any(|one| one.index == index && one.starts() == starts)
}

/// The conversation's name: in the body, or else in the head. A number is as good as a text.
fn id(request: &Request) -> Option<Cow<'_, [u8]>> {
    let named = request.object.get(request.body(), CONVERSATION_ID);
    let named = named.and_then(|value| match value.first() {
        Some(b'"') => string_value(value),
        Some(b'0'..=b'9' | b'-') => Some(Cow::Borrowed(value)),
        _ => None,
    });
    let head = request.head_bytes();
    let field = || request.head.fields.get(head, CONVERSATION_FIELD);
    let id = named.filter(|id| !id.is_empty());
    id.or_else(|| field().filter(|id| !id.is_empty()).map(Cow::Borrowed))
}

/// How engines should call this one, as a JSON string; `None`: as it calls itself.
fn host(x: &Exchange, instance: &Instance) -> Option<Vec<u8>> {
    if x.config.multiturn.remote_host == RemoteHost::AsGiven {
        return None;
    }
    let (host, _) = instance.address.network()?;
    let mut out = Vec::with_capacity(host.len() + 2);
    put_string(&mut out, host);
    Some(out)
}

/// The params with these changes; all else as the engine gave it.
fn edited(params: &[u8], edits: &[Edit], host: Option<&[u8]>) -> Vec<u8> {
    let mut edits = edits.to_vec();
    if let Some(host) = host {
        edits.push(Edit::Set("remote_host", Cow::Owned(host.to_vec())));
    }
    let mut out = Vec::with_capacity(params.len() + 64);
    match Object::scan(params, DEPTH_MAX) {
        Ok(object) => {
            let pieces = json::splice(params, &object, &edits);
            json::put_pieces(&mut out, params, &pieces);
        }
        // It was read as an object before: deeper than we follow, and passed on as it is.
        Err(_) => out.extend_from_slice(params),
    }
    out
}

/// Listens to D's answer, and takes its params out.
fn tap(
    all: &Multiturn,
    x: &Exchange,
    stream: &Opened,
    turn: Option<Turn>,
) -> Option<Box<dyn Rewrite>> {
    let coded = stream
        .head
        .fields
        .get(stream.head_bytes(), "content-encoding");
    let plain = coded.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
    if stream.head.status >= 300 || !plain {
        return None;
    }
    let decode = stream.picked.instance();
    let (said, keep) = match turn {
        Some(turn) => (
            Some(turn.said),
            Some(Keep {
                store: all.store.clone(),
                tools: x.tools.clone(),
                key: turn.key,
                answering: turn.answering,
                host: host(x, decode),
                origin: (decode.index, decode.starts()),
            }),
        ),
        None => (None, None),
    };
    let expose = x.config.multiturn.expose_kv_params;
    let tap = KvTap::new(stream.is_good_event_stream(), expose, said);
    Some(Box::new(Tap { tap, keep }))
}

struct Tap {
    tap: KvTap,
    keep: Option<Keep>,
}

/// How to keep what D leaves.
struct Keep {
    store: Arc<dyn Store>,
    tools: Rc<Tools>,
    key: Key,
    answering: Answering,
    host: Option<Vec<u8>>,
    origin: (usize, u64),
}

impl Rewrite for Tap {
    fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.tap.feed(payload, out);
        // Before the client sees the end: its next turn may come at once, and to another shard.
        if self.tap.whole()
            && let Some(keep) = self.keep.take()
        {
            keep.keep(&mut self.tap);
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.tap.finish(out);
    }
}

impl Keep {
    fn keep(self, tap: &mut KvTap) {
        let count = |outcome| self.tools.metrics.inc(Counter::conversations(outcome));
        let (Some(params), Some(said)) = (tap.params(), tap.said()) else {
            return count(Conversation::NoParams);
        };
        if simdutf8::basic::from_utf8(&params).is_err() {
            return;
        }
        let Some(past) = self.answering.past(said) else {
            return count(Conversation::Unrepeatable);
        };
        let flags = [
            Edit::Set("do_remote_decode", Cow::Borrowed(b"true")),
            Edit::Set("do_remote_prefill", Cow::Borrowed(b"false")),
        ];
        let entry = Entry {
            past,
            params: edited(&params, &flags, self.host.as_deref()),
            origin: Some(self.origin),
        };
        self.store.put(&self.tools, self.key, entry);
    }
}
