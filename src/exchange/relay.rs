//! Relaying an opened answer to the client: one read, one write, to the end.
//!
//! | engine sends | to an HTTP/1.1 client | to an HTTP/1.0 client |
//! |---|---|---|
//! | Content-Length | the same | the same |
//! | chunked | as it came, checked | de-chunked, until close |
//! | until close | each read as one chunk | as it came, until close |
//! | any, through a rewrite | in chunks | until close |
//!
//! If the engine fails in the middle, the client must not take what it has for the whole: on a chunk
//! boundary of an event stream it gets an `error` event, and in every case its connection is broken off
//! without the final chunk. Clients count a clean end as success.

use std::borrow::Cow;
use std::time::Instant;

use crate::error::{Error, Kind, Stage};
use crate::metrics::{Broken, Counter, Failure, Histogram};
use crate::net::buffer::{Appetite, Buffers, CHUNK, LARGE, SMALL};
use crate::net::sweep::{Fired, OnGone, Wait};
use crate::wire::chunk::{self, ChunkScan};
use crate::wire::head::Framing;
use crate::wire::openai::error_body;
use crate::wire::sse::{self, EventEdge};

use super::rewrite::{Edited, Rewrite};
use super::send::Opened;
use super::{Exchange, Reply, Stop, gone};

/// How body bytes travel from the engine's framing to the client's.
enum Mode {
    /// Bytes still to come.
    Length(u64),
    /// Chunked to chunked: checked, passed on as they are.
    Verbatim(ChunkScan),
    /// Chunked to a client that knows no chunks.
    Decode(ChunkScan),
    /// Until close, to chunks.
    Encode,
    /// Until close, to close.
    UntilClose,
    /// Through a rewrite, until that is over.
    Edited(Box<Edited>),
    Nothing,
}

struct Relay {
    mode: Mode,
    /// Where an error event could go; `None` when the answer is no event stream.
    edge: Option<EventEdge>,
    /// The engine sent more than its body.
    excess: bool,
    /// The rewrite that is over, to be told of the end.
    rewritten: Option<Box<dyn Rewrite>>,
}

/// What one read amounts to.
enum Step {
    /// Send the buffer as it is (its first `n` bytes).
    Same(usize),
    /// Send these bytes instead.
    Other(Vec<u8>),
}

impl Relay {
    fn new(
        framing: Framing,
        http11: bool,
        events: bool,
        rewrite: Option<Box<dyn Rewrite>>,
    ) -> Relay {
        let mode = match (framing, http11) {
            (Framing::Length(0), _) => Mode::Nothing,
            (Framing::Length(n), _) => Mode::Length(n),
            (Framing::Chunked, true) => Mode::Verbatim(ChunkScan::default()),
            (Framing::Chunked, false) => Mode::Decode(ChunkScan::default()),
            (Framing::Close, true) => Mode::Encode,
            (Framing::Close, false) => Mode::UntilClose,
        };
        let mut relay = Relay {
            mode,
            edge: events.then(EventEdge::default),
            excess: false,
            rewritten: None,
        };
        match rewrite {
            Some(rewrite) if matches!(relay.mode, Mode::Nothing) => relay.rewritten = Some(rewrite),
            Some(rewrite) => {
                relay.mode = Mode::Edited(Box::new(Edited::new(framing, http11, rewrite)));
            }
            None => {}
        }
        relay
    }

    fn client_framing(&self, engine: Framing) -> Framing {
        match &self.mode {
            Mode::Verbatim(_) | Mode::Encode => Framing::Chunked,
            Mode::Decode(_) | Mode::UntilClose => Framing::Close,
            Mode::Edited(edited) if edited.chunks => Framing::Chunked,
            Mode::Edited(_) => Framing::Close,
            Mode::Length(_) | Mode::Nothing => engine,
        }
    }

    /// The answer has ended, in whatever way.
    fn ended(&mut self, x: &Exchange) {
        if let Some(mut rewrite) = self.rewritten.take() {
            rewrite.ended(x);
        } else if let Mode::Edited(edited) = &mut self.mode {
            edited.rewrite().ended(x);
        }
    }

    /// Is the first token still to come, as far as a rewrite knows?
    fn awaits_token(&self) -> bool {
        matches!(&self.mode, Mode::Edited(edited) if edited.waiting())
    }

    fn done(&self) -> bool {
        match &self.mode {
            Mode::Length(left) => *left == 0,
            Mode::Verbatim(scan) | Mode::Decode(scan) => scan.done(),
            Mode::Encode | Mode::UntilClose => false,
            Mode::Edited(edited) => edited.done(),
            Mode::Nothing => true,
        }
    }

    /// Takes what was read. On an error nothing of it is sent, and the state is as before it.
    fn take(&mut self, bytes: &[u8]) -> Result<Step, &'static str> {
        let mut edge = self.edge;
        let used = match &mut self.mode {
            Mode::Length(left) => {
                let n = (bytes.len() as u64).min(*left) as usize;
                *left -= n as u64;
                self.excess = n < bytes.len();
                return Ok(Step::Same(n));
            }
            Mode::Nothing => {
                self.excess = true;
                return Ok(Step::Same(0));
            }
            Mode::Verbatim(scan) => {
                let mut next = scan.clone();
                let used = next
                    .feed(bytes, |data| {
                        if let Some(edge) = &mut edge {
                            edge.feed(data);
                        }
                    })
                    .map_err(|bad| bad.0)?;
                *scan = next;
                used
            }
            Mode::Decode(scan) => {
                let mut out = Vec::with_capacity(bytes.len());
                let used = scan
                    .feed(bytes, |data| out.extend_from_slice(data))
                    .map_err(|bad| bad.0)?;
                self.excess = used < bytes.len();
                return Ok(Step::Other(out));
            }
            Mode::Encode => {
                let mut out = Vec::with_capacity(bytes.len() + 16);
                chunk::put_chunk(&mut out, bytes);
                if let Some(edge) = &mut self.edge {
                    edge.feed(bytes);
                }
                return Ok(Step::Other(out));
            }
            Mode::UntilClose => return Ok(Step::Same(bytes.len())),
            Mode::Edited(edited) => {
                let taken = edited.take(bytes, |sent| {
                    if let Some(edge) = &mut self.edge {
                        edge.feed(sent);
                    }
                })?;
                self.excess = taken.used < bytes.len();
                if let Some(scan) = edited.verbatim()
                    && let Mode::Edited(edited) =
                        std::mem::replace(&mut self.mode, Mode::Verbatim(scan))
                {
                    self.rewritten = Some(edited.into_rewrite());
                }
                return Ok(Step::Other(taken.out));
            }
        };
        self.edge = edge;
        self.excess = used < bytes.len();
        Ok(Step::Same(used))
    }

    /// The engine closed. Is that the end of its body, and what does the client still need to see it?
    fn close(&mut self) -> Result<Vec<u8>, &'static str> {
        let tail = match &mut self.mode {
            Mode::Encode => Some(chunk::END.to_vec()),
            Mode::UntilClose => Some(Vec::new()),
            Mode::Edited(edited) => edited.close(|_| {}),
            _ => None,
        };
        let tail = tail.ok_or("the engine closed in the middle of its answer")?;
        if let Mode::Edited(edited) = std::mem::replace(&mut self.mode, Mode::Nothing) {
            self.rewritten = Some(edited.into_rewrite());
        }
        Ok(tail)
    }

    /// Is the end of the connection the end of the body to this client?
    fn ends_with_connection(&self) -> bool {
        match &self.mode {
            Mode::Edited(edited) => !edited.chunks,
            mode => matches!(mode, Mode::Decode(_) | Mode::UntilClose),
        }
    }

    /// May a chunk of ours be put here?
    fn room_for_event(&self) -> Option<bool> {
        let boundary = match &self.mode {
            Mode::Verbatim(scan) => scan.at_boundary(),
            Mode::Encode => true,
            Mode::Edited(edited) => edited.chunks,
            _ => false,
        };
        self.edge.filter(|_| boundary).map(|edge| !edge.clean())
    }
}

impl Opened {
    /// A stream of events that an engine sends because it does what it was asked.
    pub fn is_good_event_stream(&self) -> bool {
        self.head.status < 300 && self.head.is_event_stream(self.head_bytes())
    }

    /// Is this D taking KV from a P that it has never met, without a sign yet that it has?
    pub(super) fn fetching(&self) -> bool {
        let first_contact = self.handover.as_ref().is_some_and(|h| h.first);
        first_contact && self.head.status < 300 && self.bytes.len() <= self.head_len
    }

    /// The head and what came with it have been sent: their buffer goes back to the shard.
    fn let_go(&mut self, buffers: &Buffers) {
        let rest = self.bytes.len() > self.head_len;
        buffers.give(std::mem::take(&mut self.bytes));
        self.head_len = 0;
        self.head.forget_fields();
        if rest {
            // What is known of the hand-over stays known: a body byte has come.
            if let Some(handover) = &mut self.handover {
                handover.first = false;
            }
        }
    }

    /// The client has left. A D on its first contact with P is read up to its first byte all the same:
    /// cut off before, it could not tell P that the blocks are free.
    async fn first_byte(&mut self, x: &Exchange) {
        if !self.fetching() {
            return;
        }
        let guard = x.slot.watch_upstream(self.lease.stream.fd());
        x.slot.arm(Wait::Release, x.config.timeouts.release);
        let buf = x.tools.buffers.lend(CHUNK);
        let (result, buf) = self.lease.stream.read(buf).await;
        if let (Ok(1..), Some(h)) = (&result, &self.handover) {
            x.tools
                .met
                .note(&h.prefill, self.picked.instance(), h.starts);
        }
        x.tools.buffers.give(buf);
        x.slot.disarm();
        drop(guard);
    }
}

impl Reply {
    /// Gives the client the opened answer: status, end-to-end head fields, and every body byte.
    pub fn relay(
        &mut self,
        x: &Exchange,
        opened: Opened,
    ) -> impl Future<Output = Result<(), Stop>> {
        self.relay_through(x, opened, None)
    }

    /// The same, changed on its way. Its length is not the engine's then: it goes out in chunks.
    // An async fn holds what it is given by value twice; a stream may rest in here for hours.
    #[allow(clippy::manual_async_fn)]
    pub fn relay_through(
        &mut self,
        x: &Exchange,
        mut opened: Opened,
        rewrite: Option<Box<dyn Rewrite>>,
    ) -> impl Future<Output = Result<(), Stop>> {
        async move {
            let stage = opened.stage;
            if let Err(stop) = x.still_wanted(stage) {
                Box::pin(opened.first_byte(x)).await;
                return Err(stop);
            }
            let began = Instant::now();
            let event_stream = opened.head.is_event_stream(opened.head_bytes());
            let mut relay = Relay::new(opened.framing, self.http11, event_stream, rewrite);
            let first = self.first_write(x, &opened, &mut relay)?;
            x.trace.stage.set(Stage::Stream);
            if !relay.awaits_token() {
                x.trace.ttft.set(Some(x.trace.started.elapsed()));
                if self.chunks > 0 {
                    x.trace.first_chunk.set(x.trace.ttft.get());
                }
            }
            x.let_go();
            let (result, back) = self.write(first).await;
            self.tools.buffers.give(back);
            opened.let_go(&self.tools.buffers);
            if result.is_err() {
                let stop = self.client_lost(x, &relay);
                Box::pin(opened.first_byte(x)).await;
                return Err(stop);
            }
            let end = match relay.done() {
                true => Ok(()),
                false => self.pump(x, &opened, &mut relay).await,
            };
            x.trace.stream.set(Some(began.elapsed()));
            relay.ended(x);
            end?;
            if let Some(h) = &opened.handover {
                let decode = opened.picked.instance();
                x.tools.met.note(&h.prefill, decode, h.starts);
            }
            let Opened {
                lease,
                head,
                framing,
                ..
            } = opened;
            if head.reusable(framing) && !relay.excess && self.slot.fired().is_none() {
                lease.finish(self.tools.sweep.clock.coarse_ms());
            }
            Ok(())
        }
    }

    /// The head, and with it whatever of the body has already arrived.
    fn first_write(
        &mut self,
        x: &Exchange,
        opened: &Opened,
        relay: &mut Relay,
    ) -> Result<Vec<u8>, Stop> {
        let rest = &opened.bytes[opened.head_len..];
        let mut out = self.tools.buffers.lend(opened.bytes.len() + 256);
        let head = &opened.head;
        let framing = match opened.framing {
            // No body by the rules of the method or status: then only what the engine declared.
            Framing::Length(0) => match head.declared_length() {
                Some(n) if self.to_head || head.status == 304 => Some(Framing::Length(n)),
                _ if self.to_head || matches!(head.status, 204 | 304) => None,
                _ => Some(Framing::Length(0)),
            },
            framing => Some(relay.client_framing(framing)),
        };
        self.put_head(&mut out, x, head, opened.head_bytes(), framing);
        // A rewrite may have something to say before the engine has.
        if !rest.is_empty() || matches!(relay.mode, Mode::Edited(_)) {
            let head_len = out.len();
            match relay.take(rest) {
                Ok(Step::Same(n)) => out.extend_from_slice(&rest[..n]),
                Ok(Step::Other(bytes)) => out.extend_from_slice(&bytes),
                // Nothing has been sent yet: another try may do better, or it is an honest 502.
                Err(what) => {
                    x.charge_failure(&opened.picked, Failure::BadResponse);
                    return Err(Stop::Again(opened.failed(Kind::BadResponse, what)));
                }
            }
            self.chunks += u64::from(!rest.is_empty() || out.len() > head_len);
        }
        if relay.done() {
            opened.picked.in_flight.give_back();
        }
        Ok(out)
    }

    async fn pump(&mut self, x: &Exchange, opened: &Opened, relay: &mut Relay) -> Result<(), Stop> {
        let guard = self.slot.watch_upstream(opened.lease.stream.fd());
        let timeouts = &x.config.timeouts;
        let bulk = matches!(relay.mode, Mode::Length(n) if n > SMALL as u64);
        if opened.fetching() {
            self.slot.when_gone(OnGone::Finish(timeouts.release));
        }
        let mut buf = self.tools.buffers.lend(if bulk { LARGE } else { CHUNK });
        let mut appetite = Appetite::default();
        let mut last = Instant::now();
        let end = loop {
            if relay.done() {
                break Ok(());
            }
            self.slot.arm(Wait::BetweenChunks, timeouts.between_chunks);
            buf.clear();
            let (result, back) = opened.lease.stream.read(buf).await;
            buf = back;
            self.slot.when_gone(OnGone::Cut);
            x.touch(&opened.picked);
            let now = Instant::now();
            self.tools
                .metrics
                .observe(Histogram::chunk_gap(), now - last);
            last = now;
            if self.chunks == 0 {
                let since = now.saturating_duration_since(x.trace.started);
                x.trace.first_chunk.set(Some(since));
            }
            if self.slot.fired().is_some() {
                break Err(Box::pin(self.ended_by_us(x, opened, relay)).await);
            }
            let room = appetite.next(buf.len(), buf.capacity());
            let step = match result {
                Ok(0) => match relay.close() {
                    Ok(tail) => Ok(Step::Other(tail)),
                    Err(what) => Err((Kind::Reset, Broken::UpstreamClosed, what)),
                },
                Ok(_) => relay
                    .take(&buf)
                    .map_err(|w| (Kind::BadResponse, Broken::BadFraming, w)),
                Err(_) => Err((
                    Kind::Reset,
                    Broken::UpstreamReset,
                    "the engine's connection broke",
                )),
            };
            if x.trace.ttft.get().is_none() && !relay.awaits_token() {
                x.trace.ttft.set(Some(x.trace.started.elapsed()));
            }
            if relay.done() {
                opened.picked.in_flight.give_back();
            }
            match step {
                Ok(Step::Same(n)) => buf.truncate(n),
                Ok(Step::Other(bytes)) => {
                    self.tools.buffers.give(std::mem::replace(&mut buf, bytes))
                }
                Err((kind, why, what)) => {
                    break Err(Box::pin(self.broken(x, opened, relay, kind, why, what)).await);
                }
            }
            if relay.edge.is_some() {
                self.tools.pace.relaying();
            }
            let (written, back) = self.write(buf).await;
            buf = back;
            self.chunks += 1;
            if written.is_err() {
                break Err(self.client_lost(x, relay));
            }
            if buf.capacity() != room {
                let other = self.tools.buffers.lend(room);
                self.tools.buffers.give(std::mem::replace(&mut buf, other));
            }
        };
        self.slot.disarm();
        drop(guard);
        self.tools.buffers.give(buf);
        end
    }

    /// The slot was fired: the client left, or the engine fell silent.
    async fn ended_by_us(&mut self, x: &Exchange, opened: &Opened, relay: &Relay) -> Stop {
        match x.ended(Stage::Stream) {
            Some(error) if error.kind == Kind::Timeout => {
                let why = Broken::Timeout;
                self.broken(x, opened, relay, Kind::Timeout, why, error.cause)
                    .await
            }
            Some(error) if error.kind == Kind::Draining => {
                let why = Broken::Shutdown;
                self.broken(x, opened, relay, Kind::Draining, why, error.cause)
                    .await
            }
            _ => {
                self.break_off();
                Stop::Broken(gone(Stage::Stream))
            }
        }
    }

    async fn broken(
        &mut self,
        x: &Exchange,
        opened: &Opened,
        relay: &Relay,
        kind: Kind,
        why: Broken,
        what: impl Into<Cow<'static, str>>,
    ) -> Stop {
        let error = Error::new(kind, Stage::Stream, what).at(&opened.picked.instance().name);
        let failure = match why {
            Broken::Timeout => Failure::Timeout,
            Broken::BadFraming => Failure::BadResponse,
            _ => Failure::Reset,
        };
        // A stream that outlives the request's own limit, or the proxy, is no fault of its engine.
        let ours = [Wait::Request, Wait::Drain].map(|wait| Some(Fired::Deadline(wait)));
        if !ours.contains(&self.slot.fired()) {
            x.charge_failure(&opened.picked, failure);
        }
        self.broken = true;
        x.tools.metrics.inc(Counter::broken_streams(why));
        if let Some(mid_event) = relay.room_for_event() {
            let body = error_body(&error.to_string(), kind.class(), kind.status());
            let mut out = Vec::with_capacity(body.len() + 32);
            chunk::put_chunk(&mut out, &sse::error_event(&body, mid_event));
            let _ = self.write(out).await;
            // A FIN without the final chunk; what was written must still arrive, so no reset.
            self.keep_alive = false;
        } else {
            self.reset = relay.ends_with_connection();
            self.keep_alive = false;
        }
        Stop::Broken(error)
    }

    fn client_lost(&mut self, x: &Exchange, relay: &Relay) -> Stop {
        self.reset = relay.ends_with_connection();
        let error = x
            .ended(Stage::Stream)
            .unwrap_or_else(|| gone(Stage::Stream));
        self.break_off();
        Stop::Broken(error)
    }
}
