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
use crate::wire::continued::Continued;
use crate::wire::first_token::{self, Ask, End, FirstToken, Token};
use crate::wire::json::Edit;

use super::reply::Own;
use super::rewrite::Rewrite;
use super::{Answer, Exchange, Leg, Opened, Reply, Stop, gone};

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

impl First {
    /// P's token as a change of D's answer, if there is one and the answer has a place for it.
    pub fn rewrite(self, x: &Exchange, opened: &Opened) -> Option<Box<dyn Rewrite>> {
        match self {
            First::Token(token) if opened.is_good_event_stream() => Some(token),
            First::Token(_) => {
                x.count_end(End::Unused);
                None
            }
            First::Decode | First::Whole(_) => None,
        }
    }
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
    /// A whole answer of an instance, edited, as the last act of a script.
    pub async fn whole_answer(
        &mut self,
        x: &Exchange,
        answer: &Answer,
        edits: &[Edit],
    ) -> Result<(), Stop> {
        x.still_wanted(Stage::Stream)?;
        x.trace.ttft.set(Some(x.trace.started.elapsed()));
        self.chunks += 1;
        match self.answer_edited(x, answer, edits).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let error = x.ended(Stage::Stream);
                Err(Stop::Broken(error.unwrap_or_else(|| gone(Stage::Stream))))
            }
        }
    }

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

impl Rewrite for Continued {
    fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        Continued::feed(self, payload, out);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        Continued::finish(self, out);
    }

    fn over(&self) -> bool {
        Continued::over(self)
    }

    fn waiting(&self) -> bool {
        Continued::waiting(self)
    }
}

impl Rewrite for FirstToken {
    fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        FirstToken::feed(self, payload, out);
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        FirstToken::finish(self, out);
    }

    fn over(&self) -> bool {
        self.end().is_some()
    }

    fn waiting(&self) -> bool {
        FirstToken::waiting(self)
    }

    fn ended(&mut self, x: &Exchange) {
        if let Some(end) = self.end() {
            x.count_end(end);
        }
    }
}
