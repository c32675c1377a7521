//! Looking at how an answer begins before the client gets any of it.

use std::ops::Range;

use crate::error::{Kind, Stage};
use crate::metrics::Failure;
use crate::net::buffer::{CHUNK, SMALL};
use crate::net::sweep::{OnGone, Wait};
use crate::wire::chunk::ChunkScan;
use crate::wire::head::Framing;
use crate::wire::{json, openai, sse};

use super::{Exchange, Opened, Stop};

impl Exchange {
    /// Reads on until `events` of a stream are here (or the whole of another answer), and has `begun` take them in. All
    /// of it stays in `opened`, to be relayed. May be called again, for more.
    pub async fn hold(
        &self,
        opened: &mut Opened,
        begun: &mut Beginning,
        events: usize,
    ) -> Result<(), Stop> {
        let stream = opened.is_good_event_stream();
        let max = self.config.limits.answer_bytes_max;
        let guard = self.slot.watch_upstream(opened.lease.stream.fd());
        if opened.fetching() {
            let release = self.config.timeouts.release;
            self.slot.when_gone(OnGone::Finish(release));
        }
        let mut ended = false;
        let result = loop {
            let whole = match begun.take(opened, events, stream && begun.sparing) {
                Ok(whole) => whole,
                Err(what) => break Err((Kind::BadResponse, what)),
            };
            if whole || ended || (stream && begun.events >= events) {
                break Ok(());
            }
            if opened.bytes.len() > max {
                break Err((
                    Kind::AnswerTooLarge,
                    "its answer is too large to be looked at",
                ));
            }
            let wait = self.config.timeouts.between_chunks;
            self.slot.arm(Wait::BetweenChunks, wait);
            let mut bytes = std::mem::take(&mut opened.bytes);
            if bytes.capacity() - bytes.len() < CHUNK {
                bytes.reserve(SMALL.max(bytes.len()));
            }
            let (result, back) = opened.lease.stream.read(bytes).await;
            opened.bytes = back;
            self.touch(&opened.picked);
            if let (Ok(1..), Some(h)) = (&result, &mut opened.handover) {
                h.first = false;
                let decode = opened.picked.instance();
                self.tools.met.note(&h.prefill, decode, h.starts);
                self.slot.when_gone(OnGone::Cut);
            }
            match result {
                Ok(1..) => {}
                Ok(_) if opened.framing == Framing::Close && self.slot.fired().is_none() => {
                    ended = true;
                }
                _ => break Err((Kind::Reset, "its answer was cut short")),
            }
        };
        self.slot.disarm();
        drop(guard);
        result.map_err(|(kind, what)| {
            if let Some(error) = self.ended_at(&opened.picked, Stage::DecodeHead) {
                return Stop::Error(error);
            }
            match kind {
                Kind::AnswerTooLarge => {
                    // Another instance would say as much: counted, but not held against this one.
                    self.count_failure(opened.picked.instance(), Failure::BadResponse);
                    return Stop::Error(opened.failed(kind, what));
                }
                Kind::BadResponse => self.charge_failure(&opened.picked, Failure::BadResponse),
                _ => self.charge_failure(&opened.picked, Failure::Reset),
            }
            Stop::Again(opened.failed(kind, what))
        })
    }

    /// Waits for the first event of a stream whose D takes KV from a P. vLLM sends the head of a stream before it has
    /// the KV. If it cannot get it (P died meanwhile), what follows that 200 is one `error` event and a clean end,
    /// which a client would have to take for its answer: as long as the client has nothing, others can do better.
    pub(super) async fn begun_well(&self, opened: &mut Opened) -> Result<(), Stop> {
        // Comments, and whatever else says nothing, may come first.
        let (mut begun, mut events) = (Beginning::of_events(), 1);
        let data = loop {
            self.hold(opened, &mut begun, events).await?;
            match first_data(begun.whole_events(events)) {
                Some(data) => break data,
                None if events == SILENT_MAX || begun.events < events => return Ok(()),
                None => events += 1,
            }
        };
        let error = json::value(&begun.payload[data], "error", 64);
        let Some(error) = error.filter(|raw| *raw != b"null") else {
            return Ok(());
        };
        if openai::clients_error(error).is_some() {
            return Ok(());
        }
        if let Some(handover) = &opened.handover {
            // Either may be why the KV did not come.
            self.avoid.borrow_mut().push(handover.prefill.index);
        }
        let said = json::value(error, "message", 64).and_then(json::string_value);
        let said = said.unwrap_or_default();
        let cause = format!(
            "its stream began with an error: {}",
            String::from_utf8_lossy(&said[..said.len().min(SAID_MAX)])
        );
        Err(self.others_may_know_better(opened.picked.instance(), cause))
    }

    /// Reads an answer that nobody wants to its end, so that its engine is not cut off. Gives its status.
    pub async fn read_off(&self, mut opened: Opened) -> Result<u16, Stop> {
        opened.stage = Stage::Prefill;
        let status = opened.head.status;
        let guard = self.slot.watch_upstream(opened.lease.stream.fd());
        let mut scan = ChunkScan::default();
        let mut left = match opened.framing {
            Framing::Length(n) => n,
            _ => u64::MAX,
        };
        let mut bytes = opened.bytes.split_off(opened.head_len);
        let whole = loop {
            left = left.saturating_sub(bytes.len() as u64);
            match opened.framing {
                Framing::Length(_) if left == 0 => break true,
                Framing::Chunked => match scan.feed(&bytes, |_| {}) {
                    Ok(_) if scan.done() => break true,
                    Ok(_) => {}
                    Err(_) => break false,
                },
                _ => {}
            }
            bytes.clear();
            bytes.reserve(SMALL);
            self.slot.arm(Wait::Prefill, self.config.timeouts.prefill);
            let (result, back) = opened.lease.stream.read(bytes).await;
            bytes = back;
            match result {
                Ok(1..) => {}
                Ok(_) => break opened.framing == Framing::Close,
                Err(_) => break false,
            }
        };
        self.slot.disarm();
        drop(guard);
        if !whole {
            self.charge_failure(&opened.picked, Failure::Reset);
            return Err(Stop::Error(
                opened.failed(Kind::Reset, "its answer was cut short"),
            ));
        }
        let reusable = opened.head.reusable(opened.framing) && opened.framing != Framing::Chunked;
        if reusable && self.slot.fired().is_none() {
            opened.lease.finish(self.tools.sweep.clock.coarse_ms());
        }
        Ok(status)
    }
}

/// So many events without data may come before it; what comes after more is not looked at.
const SILENT_MAX: usize = 4;

/// Where the data of the first event is that has some.
fn first_data(payload: &[u8]) -> Option<Range<usize>> {
    let mut at = 0;
    while at < payload.len() {
        let end = sse::event_end(payload, at).unwrap_or(payload.len());
        if let Some(data) = sse::data_of(&payload[at..end]) {
            return Some(at + data.start..at + data.end);
        }
        at = end;
    }
    None
}

/// So much of an engine's own words goes into ours.
const SAID_MAX: usize = 300;

/// How an answer begins: what is here of its body, freed of its framing. Each byte is looked at once, however many
/// reads a first event takes.
#[derive(Default)]
pub struct Beginning {
    pub payload: Vec<u8>,
    scan: ChunkScan,
    /// What is behind the events asked for is not taken in.
    sparing: bool,
    /// Bytes behind the head that have been taken in.
    taken: usize,
    /// Whole events, as far as they were asked for.
    events: usize,
    /// Where the next one starts.
    next: usize,
    /// So far it has been looked for its end.
    searched: usize,
}

impl Beginning {
    /// Of a stream only as much as has the events asked for: the first read of a fast engine's may bring all of it.
    fn of_events() -> Beginning {
        Beginning {
            sparing: true,
            ..Beginning::default()
        }
    }

    /// Takes in what has come, and counts `events` at most. Is it the whole body?
    fn take(
        &mut self,
        opened: &Opened,
        events: usize,
        sparing: bool,
    ) -> Result<bool, &'static str> {
        let rest = &opened.bytes[opened.head_len..];
        loop {
            self.count(events);
            if self.taken == rest.len() || (sparing && self.events >= events) {
                break;
            }
            let piece = if sparing { CHUNK } else { usize::MAX };
            let end = rest.len().min(self.taken.saturating_add(piece));
            let new = &rest[self.taken..end];
            match opened.framing {
                Framing::Chunked => {
                    let (scan, payload) = (&mut self.scan, &mut self.payload);
                    let fed = scan.feed(new, |data| payload.extend_from_slice(data));
                    fed.map_err(|bad| bad.0)?;
                }
                _ => self.payload.extend_from_slice(new),
            }
            self.taken = end;
        }
        Ok(match opened.framing {
            Framing::Chunked => self.scan.done(),
            Framing::Length(n) => self.taken as u64 >= n,
            Framing::Close => false,
        })
    }

    /// What can be read of it: what comes after the events asked for may be cut anywhere. Without so many, it is all
    /// there is.
    fn whole_events(&self, events: usize) -> &[u8] {
        if self.events < events {
            return &self.payload;
        }
        &self.payload[..self.next]
    }

    fn count(&mut self, events: usize) {
        while self.events < events {
            let searched = self.searched - self.next;
            match sse::event_end(&self.payload[self.next..], searched) {
                Some(end) => {
                    self.events += 1;
                    self.next += end;
                    self.searched = self.next;
                }
                None => {
                    self.searched = self.payload.len();
                    return;
                }
            }
        }
    }
}
