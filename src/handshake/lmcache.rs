//! LMCache: P pushes its KV to D's workers, and each of P's ranks says when it is there.
//!
//! ```text
//!  client      proxy              P              D
//!    |--req------>|--tokenize---->|              |    (or D: by turns)
//!    |            |<--tokens------|              |
//!    |            |--1 token, --->|              |
//!    |            |  disagg_spec  |==KV=========>|
//!    |            |<--first_tok---|              |
//!    |            |<~~notice~~~~~~|  per rank, by ZeroMQ, before or after P's answer
//!    |            |--tokens + first_tok--------->|
//!    |<=first_tok=|                              |    once D's head is 2xx
//!    |<==tokens===|<=============================|
//! ```
//!
//! * D must be chosen before P is asked: its receiver travels with P's leg. If D is then gone, all is done
//!   again with another one.
//! * Not all notices within `notice_timeout`, or one that says `::error`: D is asked all the same, and
//!   computes what it lacks (or `on_timeout: error`, a 504). LMCache transfers no prompt that is shorter than
//!   a block: none is waited for.
//! * D goes on from P's token where that can be (`wire/lmcache.rs`): then the answer is put together from
//!   both (`wire/continued.rs`). Else (several choices, logprobs, grammars, half a character) D gets what
//!   the client sent, and makes the first token itself from the same KV.
//! * A chat takes the engines' chat path, so that tools, media and reasoning survive. Where P has none (404)
//!   or `chat: completions` asks for it, tokens go to both, and D's completion is told as a chat.
//! * One token asked for, or P ended on its token: P's answer is all of it.
//! * Several prompts in one request go to D alone: one notice id cannot stand for many prompts.
//! * `variant: first_token` is this without receiver and notices, `plain` without P's token, too.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::config::lmcache::{Chat, Lmcache as Section, OnTimeout, Variant};
use crate::config::{Config, FirstTokenSource, Role};
use crate::error::{Error, Kind, Stage};
use crate::exchange::first_token::First;
use crate::exchange::notice::{Came, NoticeSocket, Ticket};
use crate::exchange::{Answer, Exchange, Leg, Picked, Reply, Request, Stop};
use crate::log;
use crate::metrics::{Counter, NoticeWait, Skip};
use crate::shared::Striped;
use crate::wire::continued::{Continued, Opening};
use crate::wire::first_token::{Ask, Token, whole_stream};
use crate::wire::json::{Edit, Piece};
use crate::wire::lmcache::{self as wire, Receiver, Tokens};
use crate::wire::openai::{self, KV_PARAMS};

use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "lmcache",
    about: "LMCache: P pushes KV to D, and ZeroMQ notices say when it is there",
    needs: &[Role::Prefill, Role::Decode],
    build,
};

const COMPLETIONS: &str = "/v1/completions";
/// What engines generate if a completion names no limit.
const USUAL_TOKENS: u64 = 16;
const BOUND_MAX: usize = 1 << 20;
const BOUND_FOR: Duration = Duration::from_secs(24 * 3600);

struct Lmcache {
    section: Section,
    socket: Option<NoticeSocket>,
    /// Prefill and decode instance of each value of the `bound_by` field.
    bound: Striped<Box<[u8]>, [usize; 2]>,
    turns: AtomicU64,
    ranks: Ranks,
}

fn build(config: &Config) -> io::Result<Box<dyn Handshake>> {
    let section = config.lmcache.clone();
    let socket = match section.variant {
        Variant::Notified if section.receivers.is_empty() => {
            return Err(io::Error::other(
                "lmcache.receivers names no decode instance",
            ));
        }
        Variant::Notified => {
            let keep = config.timeouts.request + section.notice_timeout;
            Some(NoticeSocket::bind(&section.host, section.port, keep)?)
        }
        _ => None,
    };
    Ok(Box::new(Lmcache {
        section,
        socket,
        bound: Striped::new(BOUND_MAX, BOUND_FOR),
        turns: AtomicU64::new(0),
        ranks: Ranks::default(),
    }))
}

impl Handshake for Lmcache {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(self.script(x, reply))
    }

    fn notices(&self) -> Option<&NoticeSocket> {
        self.socket.as_ref()
    }
}

/// What is left to do once P has done its part.
enum Next {
    /// D is asked, and its answer passes.
    Pass(Picked, Leg, First),
    /// D goes on from tokens: its answer is one with P's.
    Go(Picked, Leg, Box<Opening>),
    /// P's answer is all of it.
    Done(Answer, Ask),
}

/// What P is told, and what comes of it.
struct Transfer {
    ticket: Ticket,
    receiver: Receiver,
}

impl Lmcache {
    async fn script(&self, x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
        // Boxed, all but the relay: a stream rests there, and should not be as large as what came before.
        let (stream, usage) = streams(&x.request());
        match Box::pin(self.prefill(x)).await? {
            Next::Pass(decode, leg, First::Whole(stream)) => {
                drop((decode, leg));
                Box::pin(reply.whole_stream(x, &stream)).await
            }
            Next::Pass(decode, leg, first) => {
                let opened = Box::pin(x.open(decode, leg)).await.map_err(redo)?;
                reply.relay_after(x, opened, first).await
            }
            Next::Go(decode, leg, opening) if stream => {
                let opened = Box::pin(x.open(decode, leg)).await.map_err(redo)?;
                let told = Box::new(Continued::new(*opening, usage));
                let told = opened.is_good_event_stream().then_some(told as _);
                reply.relay_through(x, opened, told).await
            }
            Next::Go(decode, leg, opening) => {
                Box::pin(whole(x, reply, decode, leg, &opening)).await
            }
            Next::Done(answer, ask) => Box::pin(prefill_alone(x, reply, answer, ask, stream)).await,
        }
    }

    async fn prefill(&self, x: &Exchange) -> Result<Next, Stop> {
        let request = x.request();
        let alone = match (request.summary.prompts > 1, self.section.variant) {
            (true, Variant::Notified) => Some(Skip::Batch),
            _ => None,
        };
        if alone.is_some() || x.skip_prefill() {
            alone.map(|why| x.tools.metrics.inc(Counter::prefill_skipped(why)));
            return Ok(Next::Pass(
                x.pick(Role::Decode)?,
                self.decode_leg(None),
                First::Decode,
            ));
        }
        let (prefill, decode) = self.pick(x, &request)?;
        let transfer = match self.transfer(x, &decode) {
            Some(transfer) => transfer,
            None => {
                x.tools.metrics.inc(Counter::prefill_skipped(Skip::Other));
                return Ok(Next::Pass(decode, self.decode_leg(None), First::Decode));
            }
        };
        if !request.path().ends_with("/chat/completions") {
            let continues = self.section.first_token == FirstTokenSource::Prefill
                && self.section.variant != Variant::Plain
                && wire::continues(
                    request.body(),
                    &request.object,
                    request.summary.prompts,
                    false,
                )
                .is_some();
            return match continues {
                true => {
                    self.by_tokens(x, &request, prefill, decode, transfer, false)
                        .await
                }
                false => self
                    .by_same(x, prefill, decode, transfer)
                    .await
                    .map_err(|(stop, ..)| stop),
            };
        }
        match self.section.chat {
            Chat::Completions => {
                self.by_tokens(x, &request, prefill, decode, transfer, true)
                    .await
            }
            Chat::Render => self.by_render(x, &request, prefill, decode, transfer).await,
            Chat::Native | Chat::Auto => {
                let at = prefill.instance().index;
                match self.by_same(x, prefill, decode, transfer).await {
                    Ok(next) => Ok(next),
                    Err((Stop::Answer(answer), Some((decode, transfer))))
                        if self.section.chat == Chat::Auto && no_chat(&answer) =>
                    {
                        let prefill = x.pick_again(Role::Prefill, Some(at))?;
                        self.by_tokens(x, &request, prefill, decode, transfer, true)
                            .await
                    }
                    Err((stop, _)) => Err(stop),
                }
            }
        }
    }

    /// Both instances: D first, since P is told where it is.
    fn pick(&self, x: &Exchange, request: &Request) -> Result<(Picked, Picked), Stop> {
        let name = self.section.bound_by.as_deref();
        let value = name.and_then(|name| request.head.fields.get(request.head_bytes(), name));
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            let decode = x.pick(Role::Decode)?;
            return Ok((x.pick(Role::Prefill)?, decode));
        };
        let key: Box<[u8]> = value.into();
        let bound = self.bound.with(&key, |bound| *bound);
        let decode = x.pick_again(Role::Decode, bound.map(|[_, d]| d))?;
        let prefill = x.pick_again(Role::Prefill, bound.map(|[p, _]| p))?;
        let now = [prefill.instance().index, decode.instance().index];
        if bound != Some(now) {
            self.bound.put(key, now);
        }
        Ok((prefill, decode))
    }

    /// The inner `None`: this variant has no receivers. The outer one: this D has none.
    fn transfer(&self, x: &Exchange, decode: &Picked) -> Option<Option<Transfer>> {
        let Some(socket) = &self.socket else {
            return Some(None);
        };
        let instance = decode.instance();
        let Some(receiver) = self.section.receivers.get(&instance.address) else {
            log::limited_for("no_receiver", &instance.name, log::Level::Warning, || {
                format!(
                    "decode {} is not in lmcache.receivers: it computes by itself",
                    instance.name
                )
            });
            return None;
        };
        Some(Some(Transfer {
            ticket: socket.notices.issue(x.tools.shard),
            receiver: receiver.clone(),
        }))
    }

    /// The client's request to both, on its own path; D makes the first token.
    #[allow(clippy::type_complexity)]
    async fn by_same(
        &self,
        x: &Exchange,
        prefill: Picked,
        decode: Picked,
        transfer: Option<Transfer>,
    ) -> Result<Next, (Stop, Option<(Picked, Option<Transfer>)>)> {
        let mut plan = x.first_token_plan();
        let mut leg = x.prefill_leg();
        set_params(&mut leg, &transfer, false);
        plan.seed(&mut leg);
        let answer = match x.call(prefill, leg).await {
            Ok(answer) => answer,
            Err(stop) => return Err((stop, Some((decode, transfer)))),
        };
        let first = plan.read(x, &answer);
        self.arrived(x, &transfer, &answer)
            .await
            .map_err(|stop| (stop, None))?;
        let mut leg = self.decode_leg(transfer.as_ref());
        plan.seed(&mut leg);
        Ok(Next::Pass(decode, leg, first))
    }

    /// P gets the tokens that it rendered itself; D gets the chat.
    async fn by_render(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: Picked,
        decode: Picked,
        transfer: Option<Transfer>,
    ) -> Result<Next, Stop> {
        let mut leg = Leg::new(Stage::Prefill);
        leg.path = Some("/v1/chat/completions/render".into());
        leg.edits.push(Edit::Remove(KV_PARAMS));
        leg.plain_answer = true;
        let at = Some(prefill.instance().index);
        let rendered = x.call(x.pick_again(Role::Prefill, at)?, leg).await?;
        let tokens = tokens_of(&rendered)?;
        let mut leg = x.prefill_leg();
        leg.path = Some(COMPLETIONS.into());
        leg.pieces = Some(vec![Piece::Own(prefill_body(request, &tokens, &transfer))]);
        let answer = x.call(prefill, leg).await?;
        self.arrived(x, &transfer, &answer).await?;
        Ok(Next::Pass(
            decode,
            self.decode_leg(transfer.as_ref()),
            First::Decode,
        ))
    }

    /// Tokens to both, on the completions path; D goes on from P's token if it can.
    async fn by_tokens(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: Picked,
        decode: Picked,
        transfer: Option<Transfer>,
        chat: bool,
    ) -> Result<Next, Stop> {
        let (body, object) = (request.body(), &request.object);
        if chat && let Some(what) = wire::lost_without_chat(body, object) {
            let what = format!(
                "{what} cannot be told by way of /v1/completions, which this proxy uses for chats: the \
                 engines need their chat path (lmcache.chat: native)"
            );
            return Err(Error::new(Kind::BadRequest, Stage::Body, what).into());
        }
        let ask = wire::continues(body, object, request.summary.prompts, chat);
        let first = self.section.first_token == FirstTokenSource::Prefill
            && self.section.variant != Variant::Plain;
        let ask = ask.filter(|_| first);
        let (tokens, context) = self.tokenize(x, request, &prefill, &decode, chat).await?;
        let limit = request.summary.max_tokens.or(match chat {
            true => context.map(|context| context.saturating_sub(tokens.count as u64)),
            false => Some(USUAL_TOKENS),
        });

        let mut leg = x.prefill_leg();
        leg.path = Some(COMPLETIONS.into());
        leg.edits
            .retain(|edit| !matches!(edit, Edit::Replace("max_completion_tokens", _)));
        leg.edits.push(Edit::Remove("stream_options"));
        set_prompt(&mut leg, &tokens, None);
        set_params(&mut leg, &transfer, ask.is_some());
        let answer = x.call(prefill, leg).await?;

        let (said, index) = (answer.body(), answer.object());
        let token = Token::of(said, index, false);
        if let Some(ask) = ask
            && let Some(token) = &token
            && (limit == Some(1) || token.ended())
        {
            return Ok(Next::Done(answer, ask));
        }
        self.arrived(x, &transfer, &answer).await?;
        let stop = object.get(body, "stop");
        let token = token.filter(|token| ask.is_some() && token.whole(stop));
        let token = token.zip(wire::first_tok(said, index));
        let choices = openai::count(object.get(body, "n"))
            .unwrap_or(1)
            .clamp(1, 1024) as u32;
        let opening = Opening::of(said, index, chat, token.as_ref().map(|(t, _)| t), choices);

        let mut leg = self.decode_leg(transfer.as_ref());
        leg.path = Some(COMPLETIONS.into());
        leg.plain_answer = true;
        set_prompt(&mut leg, &tokens, token.as_ref().map(|(_, id)| *id));
        if let Some(limit) = limit.filter(|_| chat || token.is_some()) {
            let left = limit.saturating_sub(u64::from(token.is_some()));
            leg.edits.push(Edit::Set(
                "max_tokens",
                Cow::Owned(left.to_string().into_bytes()),
            ));
        }
        match chat || token.is_some() {
            true => Ok(Next::Go(decode, leg, Box::new(opening))),
            false => Ok(Next::Pass(decode, leg, First::Decode)),
        }
    }

    /// The prompt's tokens, and how many fit into the model, where that is said.
    async fn tokenize(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: &Picked,
        decode: &Picked,
        chat: bool,
    ) -> Result<(Tokens, Option<u64>), Stop> {
        let prompt = request
            .object
            .get(request.body(), "prompt")
            .filter(|_| !chat);
        if let Some(tokens) = prompt.and_then(Tokens::of) {
            return Ok((tokens, None));
        }
        // Both roles can, and each takes its share.
        let (p, d) = (
            x.members(Role::Prefill).len(),
            x.members(Role::Decode).len(),
        );
        let turn = self.turns.fetch_add(1, Ordering::Relaxed) as usize;
        let (role, near) = match turn % (p + d).max(1) < p {
            true => (Role::Prefill, prefill),
            false => (Role::Decode, decode),
        };
        let mut leg = Leg::new(Stage::Prefill);
        leg.path = Some("/tokenize".into());
        let body = wire::tokenize_body(request.body(), &request.object, chat);
        leg.pieces = Some(vec![Piece::Own(body)]);
        leg.plain_answer = true;
        let answer = x
            .call(x.pick_again(role, Some(near.instance().index))?, leg)
            .await?;
        let context = wire::whole_number(answer.body(), answer.object(), "max_model_len");
        Ok((tokens_of(&answer)?, context))
    }

    /// Waits until P's KV is at D.
    async fn arrived(
        &self,
        x: &Exchange,
        transfer: &Option<Transfer>,
        answer: &Answer,
    ) -> Result<(), Stop> {
        let Some(Transfer { ticket, receiver }) = transfer else {
            return Ok(());
        };
        let tokens = openai::prompt_tokens(answer.body(), answer.object());
        if tokens.is_some_and(|n| n < self.section.short_prompt.into()) {
            x.tools
                .metrics
                .inc(Counter::notice_waits(NoticeWait::Short));
            return Ok(());
        }
        let wanted = receiver.ranks();
        let name = &answer.instance.name;
        match x
            .wait_notices(ticket, wanted, self.section.notice_timeout)
            .await?
        {
            Came::All => self.ranks.all(),
            Came::Failed => log::limited_for("transfer", name, log::Level::Warning, || {
                format!("prefill {name} could not transfer its KV: decode computes by itself")
            }),
            Came::Late(came) => {
                self.ranks.late(came, wanted);
                log::limited_for("no_notice", name, log::Level::Warning, || {
                    format!(
                        "{came} of {wanted} notices of prefill {name} came within lmcache.notice_timeout"
                    )
                });
                if self.section.on_timeout == OnTimeout::Error {
                    let what = format!("Timed out waiting for ZMQ notification {}", ticket.id);
                    return Err(Error::new(Kind::Timeout, Stage::Prefill, what).into());
                }
            }
        }
        Ok(())
    }

    /// D's leg, up to what a route changes of it.
    fn decode_leg(&self, transfer: Option<&Transfer>) -> Leg {
        let mut leg = Leg::new(Stage::DecodeHead);
        // With its KV pushed to this one, another one had to compute it all: rather the whole again.
        leg.alone = transfer.is_some();
        leg.edits
            .push(match transfer.filter(|_| self.section.handoff_id) {
                Some(Transfer { ticket, .. }) => {
                    let params = format!(r#"{{"lmcache.pd_handoff_id":"{}"}}"#, ticket.id);
                    Edit::Set(KV_PARAMS, Cow::Owned(params.into_bytes()))
                }
                None => Edit::Remove(KV_PARAMS),
            });
        leg
    }
}

/// Is it a stream, and is its usage wanted?
fn streams(request: &Request) -> (bool, bool) {
    let options = request.object.get(request.body(), "stream_options");
    let usage = options.is_some_and(|options| openai::wants_usage(options));
    (request.summary.stream, usage)
}

/// Nothing has been sent to a D that cannot be reached: all of it may be done again with another one.
fn redo(stop: Stop) -> Stop {
    match stop {
        Stop::Error(error) if error.kind == Kind::ConnectFailed => Stop::Again(error),
        stop => stop,
    }
}

/// An engine without a chat path. (One without the model says so again on the other path.)
fn no_chat(answer: &Answer) -> bool {
    matches!(answer.head.status, 404 | 405 | 501)
}

fn tokens_of(answer: &Answer) -> Result<Tokens, Stop> {
    Tokens::of_answer(answer.body(), answer.object()).ok_or_else(|| {
        let what = "its answer has no list of token ids";
        let error = Error::new(Kind::BadResponse, Stage::Prefill, what);
        Stop::Again(error.at(&answer.instance.name))
    })
}

/// Tells P that its first token is wanted, and where its KV is.
fn set_params(leg: &mut Leg, transfer: &Option<Transfer>, first_token: bool) {
    let to = transfer
        .as_ref()
        .map(|t| (t.ticket.id.as_str(), &t.receiver));
    if first_token || to.is_some() {
        leg.edits
            .retain(|edit| !matches!(edit, Edit::Remove(KV_PARAMS)));
        let params = wire::params(first_token, to);
        leg.edits.push(Edit::Set(KV_PARAMS, Cow::Owned(params)));
    }
}

fn set_prompt(leg: &mut Leg, tokens: &Tokens, more: Option<u64>) {
    leg.edits.extend(wire::CHAT_ONLY.map(Edit::Remove));
    leg.edits
        .push(Edit::Set("prompt", Cow::Owned(tokens.prompt(more))));
}

/// A prefill of these tokens, with what of a chat decides where its KV belongs.
fn prefill_body(request: &Request, tokens: &Tokens, transfer: &Option<Transfer>) -> Vec<u8> {
    let to = transfer
        .as_ref()
        .map(|t| (t.ticket.id.as_str(), &t.receiver));
    let kept = ["model", "cache_salt", "priority"]
        .into_iter()
        .filter_map(|key| {
            let value = request.object.get(request.body(), key)?;
            Some((key, value.to_vec()))
        });
    let prompt = [("prompt", tokens.prompt(None))];
    let params = to.map(|to| (KV_PARAMS, wire::params(false, Some(to))));
    openai::one_token(kept.chain(prompt).chain(params))
}

/// D's whole answer, with P's token in front.
async fn whole(
    x: &Exchange,
    reply: &mut Reply,
    decode: Picked,
    leg: Leg,
    opening: &Opening,
) -> Result<(), Stop> {
    let answer = x.call(decode, leg).await.map_err(redo)?;
    match opening.edits(answer.body(), answer.object()) {
        Some(edits) => reply.whole_answer(x, &answer, &edits).await,
        None => {
            let what = "its answer has no choices as a completion has them";
            let error = Error::new(Kind::BadResponse, Stage::DecodeHead, what);
            Err(Stop::Again(error.at(&answer.instance.name)))
        }
    }
}

/// P has said it all.
async fn prefill_alone(
    x: &Exchange,
    reply: &mut Reply,
    answer: Answer,
    ask: Ask,
    stream: bool,
) -> Result<(), Stop> {
    let (said, index) = (answer.body(), answer.object());
    if stream && let Some(token) = Token::of(said, index, false) {
        let stream = whole_stream(said, index, &token, &ask);
        return reply.whole_stream(x, &stream).await;
    }
    let opening = Opening::of(said, index, ask.chat, None, 1);
    let edits = opening.edits(said, index).unwrap_or_default();
    reply.whole_answer(x, &answer, &edits).await
}

/// What is learned of how many ranks send notices.
#[derive(Default)]
struct Ranks {
    all: AtomicU64,
    only_one: AtomicU64,
    told: AtomicBool,
}

impl Ranks {
    fn all(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// Once, when it is no chance any more.
    fn late(&self, came: u32, wanted: usize) {
        const SURE: u64 = 3;
        if came != 1 || wanted < 2 || self.all.load(Ordering::Relaxed) > 0 {
            return;
        }
        let seen = self.only_one.fetch_add(1, Ordering::Relaxed) + 1;
        if seen >= SURE && !self.told.swap(true, Ordering::Relaxed) {
            log::warning(|| {
                format!(
                    "only 1 of {wanted} ranks ever sends a notice, and every request waits for the others \
                     until lmcache.notice_timeout: with MLA (or if only the first rank saves) list one \
                     port in init_ports and alloc_ports"
                )
            });
        }
    }
}
