//! LMCache: P pushes its KV to D's workers, and each of P's ranks says when it is there.
//!
//! * **For:** which way a request takes (here), by tokens (`tokens.rs`), and whether the KV is there
//!   (`arrival.rs`).
//! * **Must never:** read what LMCache's bytes look like (that is `wire/lmcache.rs`), or wait without an end.
//! * **To extend:** another way from P to D is a function that ends in a `Next`.
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

mod arrival;
mod tokens;

use std::borrow::Cow;
use std::io;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::config::lmcache::{Chat, Lmcache as Section, Variant};
use crate::config::{Config, FirstTokenSource, Role};
use crate::error::{Error, Kind, Stage};
use crate::exchange::first_token::First;
use crate::exchange::notice::NoticeSocket;
use crate::exchange::{Answer, Exchange, Leg, Picked, Reply, Request, Stop};
use crate::metrics::{Counter, Skip};
use crate::shared::Striped;
use crate::wire::continued::{Continued, Opening};
use crate::wire::first_token::{Ask, Token, whole_stream};
use crate::wire::json::Edit;
use crate::wire::lmcache as wire;
use crate::wire::openai::{self, KV_PARAMS};

use super::{Handshake, Running, Spec};
use arrival::{Ranks, Transfer, set_params};

pub const SPEC: Spec = Spec {
    name: "lmcache",
    about: "LMCache: P pushes KV to D, and ZeroMQ notices say when it is there",
    needs: &[Role::Prefill, Role::Decode],
    build,
};

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
            Some(NoticeSocket::bind(
                &section.host,
                section.port,
                keep,
                config.timeouts.head,
            )?)
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
                let rewrite = first.rewrite(x, &opened);
                reply.relay_through(x, opened, rewrite).await
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
            if let Some(why) = alone {
                x.tools.metrics.inc(Counter::prefill_skipped(why));
            }
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
            let continues = request.path().ends_with("/completions")
                && self.section.first_token == FirstTokenSource::Prefill
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
    let usage = options.is_some_and(openai::wants_usage);
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
