//! `call`: a leg whose whole answer is wanted (prefill, encode, a decode that has to be told otherwise).

use std::borrow::Cow;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::cluster::Instance;
use crate::error::{Error, Kind, Stage};
use crate::metrics::{Failure, InstanceCounter};
use crate::net::buffer::Buffers;
use crate::wire::cap::{self, Api};
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{Framing, ResponseHead};
use crate::wire::json::{Edit, Object};
use crate::wire::openai;
use crate::wire::spare::List;

use super::send::{Handover, Leg, Opened};
use super::{Exchange, Picked, Request, Stop};

/// A whole answer of one stage.
pub struct Answer {
    pub head: ResponseHead,
    /// Who answered.
    pub instance: Arc<Instance>,
    bytes: Vec<u8>,
    head_len: usize,
    /// The body, if it came chunked; else it follows the head.
    decoded: Option<Vec<u8>>,
    /// The index of the body; empty if it is no JSON object.
    object: Object,
    /// Where its bytes go back to.
    buffers: Rc<Buffers>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.bytes));
    }
}

impl Answer {
    pub fn head_bytes(&self) -> &[u8] {
        &self.bytes[..self.head_len]
    }

    pub fn body(&self) -> &[u8] {
        match &self.decoded {
            Some(body) => body,
            None => &self.bytes[self.head_len..],
        }
    }

    /// As an answer that only says how it went.
    pub fn without_body(mut self) -> Answer {
        self.bytes.truncate(self.head_len);
        self.decoded = None;
        self.object = Object::default();
        self
    }

    fn good(&self) -> bool {
        (200..300).contains(&self.head.status)
    }

    pub fn object(&self) -> &Object {
        &self.object
    }

    /// A top-level member of the answer, as raw JSON.
    pub fn field(&self, key: &str) -> Option<&[u8]> {
        self.object.get(self.body(), key)
    }
}

impl Exchange {
    /// The client's request as a prefill leg: one token, one choice, a whole answer.
    pub fn prefill_leg(&self) -> Leg {
        let mut leg = Leg::new(Stage::Prefill);
        leg.plain_answer = true;
        let request = self.request();
        if let Some(pins) = &self.pins {
            leg.edits = pins.prefill_edits(&request).into();
            return leg;
        }
        if Api::of(request.path()) == Api::Responses {
            leg.edits = responses_edits(&request).into();
            leg.edits.push(Edit::Remove(openai::KV_PARAMS));
            return leg;
        }
        leg.edits = openai::prefill_edits();
        let stream = request.object.get(request.body(), "stream");
        if matches!(stream, None | Some(b"false" | b"null")) {
            // Engines reject such options without a stream. Were they taken out here, P would hold KV
            // for a request that D then rejects, and nothing would free it before its lease ends.
            leg.edits
                .retain(|edit| !matches!(edit, Edit::Remove("stream_options")));
        }
        leg.edits.push(Edit::Remove(openai::KV_PARAMS));
        leg
    }

    /// What makes a leg one token and a whole answer, in the terms of the API that the client speaks.
    pub fn one_token_edits(&self) -> List<Edit> {
        let request = self.request();
        match Api::of(request.path()) {
            Api::Responses if self.pins.is_none() => responses_edits(&request).into(),
            _ => openai::whole_answer_edits(),
        }
    }

    /// Sends the leg and leaves the answer's body flowing, to be relayed.
    pub async fn open(&self, picked: Picked, mut leg: Leg) -> Result<Opened, Stop> {
        let began = Instant::now();
        if leg.edits.is_empty() && leg.pieces.is_none() && !leg.verbatim {
            leg.edits.push(Edit::Remove(openai::KV_PARAMS));
        }
        let mut opened = self.send(picked, &leg).await?;
        self.trace
            .decode_head
            .set(Some(opened.at.saturating_duration_since(began)));
        if let Some(grant) = &leg.grant {
            let decode = opened.picked.instance();
            opened.handover = Some(Handover {
                prefill: grant.prefill.clone(),
                starts: (grant.prefill_starts, decode.starts()),
                first: !self.tools.met.warm(&grant.prefill, decode),
            });
        }
        if !leg.verbatim && self.listed(opened.head.status) {
            // Read in full, so that another instance can be tried, or else this be the answer.
            let answer = Box::pin(self.read_answer(opened, &leg, began)).await?;
            return Err(Stop::Answer(Box::new(answer)));
        }
        // Beside an engine its stream is the answer, whatever is in it.
        if opened.handover.is_some() && self.pins.is_none() && opened.is_good_event_stream() {
            self.begun_well(&mut opened).await?;
        }
        Ok(opened)
    }

    /// All of an answer of which only the head was wanted so far.
    pub async fn whole(&self, opened: Opened) -> Result<Answer, Stop> {
        let leg = Leg::new(opened.stage);
        self.read_answer(opened, &leg, Instant::now()).await
    }

    /// Sends the leg and reads its whole answer. An answer that is not a 2xx ends the request: it is
    /// what the client gets.
    pub async fn call(&self, picked: Picked, leg: Leg) -> Result<Answer, Stop> {
        let began = Instant::now();
        let opened = self.send(picked, &leg).await?;
        let answer = self.read_answer(opened, &leg, began).await?;
        let span = match leg.stage {
            Stage::Prefill => Some(&self.trace.prefill),
            Stage::DecodeHead => Some(&self.trace.decode_head),
            _ => None,
        };
        if let Some(span) = span {
            span.set(Some(began.elapsed()));
        }
        if !answer.good() {
            return Err(Stop::Answer(Box::new(answer)));
        }
        let answer = self.unless_denied(answer)?;
        self.bind(&answer.instance);
        if leg.stage == Stage::Prefill
            && let Some(tokens) = openai::prompt_tokens(answer.body(), &answer.object)
        {
            self.cluster
                .estimate
                .learn(self.request().summary.prompt_bytes, tokens);
        }
        Ok(answer)
    }

    /// Some engines put an error into a 200. One whose code is a 4xx is the client's own: the answer, with that
    /// status. Of others another instance may know better. No breaker counts them: what a client can cause
    /// must not eject an engine.
    fn unless_denied(&self, mut answer: Answer) -> Result<Answer, Stop> {
        let Some(raw) = answer.field("error").filter(|raw| *raw != b"null") else {
            return Ok(answer);
        };
        if let Some(status) = openai::clients_error(raw) {
            answer.head.override_status(status);
            return Err(Stop::Answer(Box::new(answer)));
        }
        let cause = "its answer is an error with the status of a success";
        Err(self.others_may_know_better(&answer.instance, cause))
    }

    pub(super) fn others_may_know_better(
        &self,
        instance: &Instance,
        cause: impl Into<Cow<'static, str>>,
    ) -> Stop {
        self.count_failure(instance, Failure::BadResponse);
        let error = Error::new(Kind::BadResponse, self.trace.stage.get(), cause);
        Stop::Again(error.at(&instance.name))
    }

    /// `began`: when the leg did; its one limit is for all of it.
    async fn read_answer(&self, opened: Opened, leg: &Leg, began: Instant) -> Result<Answer, Stop> {
        let Opened {
            lease,
            picked,
            head,
            bytes,
            head_len,
            framing,
            stage,
            at,
            handover: _,
        } = opened;
        let fail = |kind, cause: &'static str| {
            let error = Error::new(kind, stage, cause).at(&picked.instance().name);
            match kind {
                Kind::AnswerTooLarge => {
                    // Another instance would say as much: counted, but not held against this one.
                    let counter = InstanceCounter::failures(Failure::BadResponse);
                    picked.instance().metrics.inc(&self.tools.metrics, counter);
                    Stop::Error(error)
                }
                Kind::Reset => {
                    self.charge_failure(&picked, Failure::Reset);
                    Stop::Again(error)
                }
                _ => {
                    self.charge_failure(&picked, Failure::BadResponse);
                    Stop::Again(error)
                }
            }
        };
        let max = self.config.limits.answer_bytes_max;
        let guard = self.slot.watch_upstream(lease.stream.fd());
        self.slot.when_gone(self.on_gone(leg, &picked));
        let limit = leg.limit(&self.config.timeouts);
        self.slot.arm(
            leg.wait(),
            limit.saturating_sub(at.saturating_duration_since(began)),
        );
        let mut body = Body::new(framing, bytes, head_len);
        let result = loop {
            let progress = body.progress();
            if body.received() > max {
                let what = "its answer is larger than limits.answer_bytes_max";
                break Err((Kind::AnswerTooLarge, what));
            }
            match progress {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(what) => break Err((Kind::BadResponse, what)),
            }
            let (result, back) = lease.stream.read(body.room()).await;
            body.bytes = back;
            match result {
                Ok(n) if n > 0 => {}
                Ok(_) if framing == Framing::Close => {
                    body.ended = true;
                }
                end => break Err((Kind::Reset, cut(&end))),
            }
        };
        self.slot.disarm();
        drop(guard);
        if let Err((kind, what)) = result {
            return Err(match self.ended_at(&picked, leg.stage) {
                Some(error) => Stop::Error(error),
                None => fail(kind, what),
            });
        }
        if head.reusable(framing) && body.exact() && self.slot.fired().is_none() {
            lease.finish(self.tools.sweep.clock.coarse_ms());
        }
        let mut answer = body.answer(head, picked.instance().clone(), &self.tools.buffers);
        if answer.good() {
            let depth = self.config.limits.json_depth_max;
            match Object::scan(answer.body(), depth) {
                Ok(object) => answer.object = object,
                // What an encoder answers may be of no use to anybody.
                Err(_) if leg.stage == Stage::Encode => {}
                Err(_) => return Err(fail(Kind::BadResponse, "its answer is no JSON object")),
            }
        }
        Ok(answer)
    }
}

/// P keeps nothing of a response that will be D's.
fn responses_edits(request: &Request) -> Vec<Edit> {
    let mut edits = cap::edits(Api::Responses, false, request.body(), &request.object);
    edits.push(Edit::Set("store", Cow::Borrowed(b"false")));
    edits
}

fn cut(result: &io::Result<usize>) -> &'static str {
    match result {
        Ok(_) => "its answer was cut short",
        Err(_) => "the connection broke within its answer",
    }
}

/// An answer's body on its way in.
struct Body {
    framing: Framing,
    bytes: Vec<u8>,
    head_len: usize,
    scan: ChunkScan,
    /// Bytes of `bytes` that the chunk scan has taken.
    scanned: usize,
    decoded: Vec<u8>,
    ended: bool,
}

impl Body {
    fn new(framing: Framing, bytes: Vec<u8>, head_len: usize) -> Body {
        let scan = ChunkScan::default();
        Body {
            framing,
            bytes,
            head_len,
            scan,
            scanned: head_len,
            decoded: Vec::new(),
            ended: false,
        }
    }

    /// Takes in what has arrived. True when the body is complete.
    fn progress(&mut self) -> Result<bool, &'static str> {
        match self.framing {
            Framing::Length(n) => Ok(self.received() as u64 >= n),
            Framing::Close => Ok(self.ended),
            Framing::Chunked => {
                let decoded = &mut self.decoded;
                let used = self
                    .scan
                    .feed(&self.bytes[self.scanned..], |d| {
                        decoded.extend_from_slice(d)
                    })
                    .map_err(|bad| bad.0)?;
                self.scanned += used;
                Ok(self.scan.done())
            }
        }
    }

    fn received(&self) -> usize {
        self.bytes.len() - self.head_len
    }

    /// Nothing came after the body: the connection is in a known state.
    fn exact(&self) -> bool {
        match self.framing {
            Framing::Length(n) => self.received() as u64 == n,
            Framing::Chunked => self.scanned == self.bytes.len(),
            Framing::Close => false,
        }
    }

    /// The whole of it, without what came behind.
    fn answer(
        mut self,
        head: ResponseHead,
        instance: Arc<Instance>,
        buffers: &Rc<Buffers>,
    ) -> Answer {
        if let Framing::Length(n) = self.framing {
            self.bytes.truncate(self.head_len + n as usize);
        }
        Answer {
            head,
            instance,
            bytes: self.bytes,
            head_len: self.head_len,
            decoded: (self.framing == Framing::Chunked).then_some(self.decoded),
            object: Object::default(),
            buffers: buffers.clone(),
        }
    }

    fn room(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let free = bytes.capacity() - bytes.len();
        let wanted = match self.framing {
            Framing::Length(n) => (self.head_len as u64 + n).saturating_sub(bytes.len() as u64),
            _ => 1,
        };
        if (free as u64) < wanted.min(64 << 10) || free == 0 {
            bytes.reserve((wanted as usize).clamp(4 << 10, 1 << 20));
        }
        bytes
    }
}
