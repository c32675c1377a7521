//! `first_token_source: prefill`: the client's first token is the one that P has made.
//!
//! ```text
//!  client      proxy          P           D
//!    |--req------>|--1 token-->|           |
//!    |            |<--token----|           |      ended there? then P's answer is the whole stream
//!    |            |--req------------------>|
//!    |            |<==role=================|      its head is 2xx: only now anything is sent
//!    |<=role======|                        |
//!    |<=P's token=|<==first token==========|      dropped
//!    |<==tokens===|<=======================|      as D sends them
//! ```
//!
//! A handshake plans it, has the plan read P's answer, and relays with what came of it; see
//! `sequential.rs`. For streams of one choice of plain text; all others (`Ask::of`) are decode-first, and
//! counted. An answer of D that is no 2xx event stream passes as it is. P's token needs D's id, so it
//! waits for D's first event with choices: the role of a chat, or, of a completion, its first token. An
//! engine that speaks its role only with its first token (vLLM) therefore brings no earlier token.
//!
//! **Two engines, one token?** D does not go on from P's token: it has P's KV of the *prompt*, and makes
//! its own first token. Only if that is the same one does the rest fit to it. Greedy requests
//! (`temperature: 0`, `top_k: 1`) and seeded ones make the same token on both. To a request that is
//! neither, both legs get one `seed` of ours, so that both draw the same; without it the text would be
//! two texts, cut and joined. Where they still differ (engines that know no seeds, other hardware, a tie)
//! the client gets P's token, as asked for, and `pdrelay_first_tokens_total{outcome="differed"}` counts
//! it: if that grows, use `first_token_source: decode`.

use std::borrow::Cow;

use crate::config::FirstTokenSource;
use crate::error::Stage;
use crate::metrics::{Counter, FirstTokens};
use crate::wire::chunk::{self, ChunkScan};
use crate::wire::first_token::{self, Ask, End, FirstToken, Token};
use crate::wire::head::Framing;
use crate::wire::json::Edit;

use super::reply::Own;
use super::{Answer, Exchange, Leg, Reply, Stop, gone};

/// Who makes the first token of this request.
#[derive(Default)]
pub struct Plan {
    ask: Option<Ask>,
    /// The seed of both legs, as JSON.
    seed: Option<Vec<u8>>,
}

/// What P's answer made of the plan.
#[derive(Default)]
pub enum First {
    /// D makes it, as ever.
    #[default]
    Decode,
    /// Here it is.
    Token(Box<FirstToken>),
    /// It is also the last: the whole stream for the client.
    Whole(Vec<u8>),
}

impl Exchange {
    pub fn first_token_plan(&self) -> Plan {
        if self.config.first_token_source != FirstTokenSource::Prefill {
            return Plan::default();
        }
        let request = self.request();
        if !request.summary.stream {
            return Plan::default();
        }
        let chat = request.path().ends_with("/chat/completions");
        let known = chat || request.path().ends_with("/completions");
        let prompts = request.summary.prompts;
        let ask = Ask::of(request.body(), &request.object, prompts, chat).filter(|_| known);
        if ask.is_none() {
            self.count_first_token(FirstTokens::Fallback);
        }
        let unseeded = ask.is_some_and(|ask| ask.unseeded);
        Plan {
            ask,
            seed: unseeded.then(|| (self.tools.rng.next() >> 33).to_string().into_bytes()),
        }
    }

    fn count_first_token(&self, outcome: FirstTokens) {
        self.tools.metrics.inc(Counter::first_tokens(outcome));
    }

    pub(super) fn count_end(&self, end: End) {
        self.count_first_token(match end {
            End::Same => FirstTokens::Sent,
            End::Differed => FirstTokens::Differed,
            End::Unused => FirstTokens::Unused,
        });
    }
}

impl Plan {
    /// Makes a leg draw its token as the other one does.
    pub fn seed(&self, leg: &mut Leg) {
        if let Some(seed) = &self.seed {
            leg.edits.push(Edit::Set("seed", Cow::Owned(seed.clone())));
        }
    }

    /// Reads P's token out of its answer.
    pub fn read(&mut self, x: &Exchange, answer: &Answer) -> First {
        let Some(ask) = self.ask else {
            return First::Decode;
        };
        let request = x.request();
        let stop = request.object.get(request.body(), "stop");
        let (body, object) = (answer.body(), answer.object());
        match Token::of(body, object, ask.chat) {
            Some(token) if token.ended() => {
                First::Whole(first_token::whole_stream(body, object, &token, &ask))
            }
            Some(token) if token.whole(stop) => {
                First::Token(Box::new(FirstToken::new(&token, ask.chat)))
            }
            _ => {
                x.count_first_token(FirstTokens::Fallback);
                // D is alone: it need not draw as P did.
                self.seed = None;
                First::Decode
            }
        }
    }
}

impl Reply {
    /// P has said it all: the client gets that as a stream, and no D is asked.
    pub async fn whole_stream(&mut self, x: &Exchange, stream: &[u8]) -> Result<(), Stop> {
        x.still_wanted(Stage::Prefill)?;
        x.count_first_token(FirstTokens::Ended);
        x.trace.ttft.set(Some(x.trace.started.elapsed()));
        let own = Own {
            status: 200,
            content_type: "text/event-stream; charset=utf-8",
            body: stream,
            extra: &[],
        };
        self.chunks += 1;
        let id = x.request().id.clone();
        match self.own(Some(&id), own).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let error = x.ended(Stage::Stream);
                Err(Stop::Broken(error.unwrap_or_else(|| gone(Stage::Stream))))
            }
        }
    }
}

/// Where the engine's body ends.
enum Source {
    /// Bytes still to come.
    Length(u64),
    Chunked(ChunkScan),
    Close,
    Over,
}

/// A stream on its way through the surgery: taken out of the engine's framing, put into one of ours.
pub(super) struct Edited {
    token: FirstToken,
    source: Source,
    /// To the client in chunks; else until close.
    pub chunks: bool,
}

/// What one read gives the client.
pub(super) struct Taken {
    /// With framing.
    pub out: Vec<u8>,
    /// Bytes of the read that belong to the engine's body.
    pub used: usize,
}

impl Edited {
    pub fn new(framing: Framing, chunks: bool, token: FirstToken) -> Edited {
        Edited {
            token,
            source: match framing {
                Framing::Length(n) => Source::Length(n),
                Framing::Chunked => Source::Chunked(ChunkScan::default()),
                Framing::Close => Source::Close,
            },
            chunks,
        }
    }

    pub fn waiting(&self) -> bool {
        self.token.waiting()
    }

    pub fn end(&self) -> Option<End> {
        self.token.end()
    }

    pub fn done(&self) -> bool {
        match &self.source {
            Source::Length(left) => *left == 0,
            Source::Chunked(scan) => scan.done(),
            Source::Close => false,
            Source::Over => true,
        }
    }

    /// `sent`: is told the payload that the client gets.
    pub fn take(&mut self, bytes: &[u8], sent: impl FnOnce(&[u8])) -> Result<Taken, &'static str> {
        let mut payload = Cow::Borrowed(bytes);
        let used = match &mut self.source {
            Source::Length(left) => {
                let n = (bytes.len() as u64).min(*left) as usize;
                *left -= n as u64;
                payload = Cow::Borrowed(&bytes[..n]);
                n
            }
            Source::Chunked(scan) => {
                let mut data = Vec::with_capacity(bytes.len());
                let used = scan
                    .feed(bytes, |d| data.extend_from_slice(d))
                    .map_err(|bad| bad.0)?;
                payload = Cow::Owned(data);
                used
            }
            Source::Close => bytes.len(),
            Source::Over => 0,
        };
        let mut events = Vec::with_capacity(payload.len() + 512);
        self.token.feed(&payload, &mut events);
        let out = self.framed(events, sent);
        Ok(Taken { out, used })
    }

    /// The engine closed, which only ends a body without any other end.
    pub fn close(&mut self, sent: impl FnOnce(&[u8])) -> Option<Vec<u8>> {
        if !matches!(self.source, Source::Close) {
            return None;
        }
        self.source = Source::Over;
        Some(self.framed(Vec::new(), sent))
    }

    fn framed(&mut self, mut events: Vec<u8>, sent: impl FnOnce(&[u8])) -> Vec<u8> {
        let done = self.done();
        if done {
            self.token.finish(&mut events);
        }
        sent(&events);
        if !self.chunks {
            return events;
        }
        let mut out = Vec::with_capacity(events.len() + 32);
        chunk::put_chunk(&mut out, &events);
        if done {
            out.extend_from_slice(chunk::END);
        }
        out
    }

    /// The surgery is over and the engine is between two of its chunks: the rest can pass as it is.
    pub fn verbatim(&self) -> Option<ChunkScan> {
        match &self.source {
            Source::Chunked(scan)
                if self.chunks && self.end().is_some() && scan.at_boundary() && !scan.done() =>
            {
                Some(scan.clone())
            }
            _ => None,
        }
    }
}
