//! Looking at how an answer begins before the client gets any of it.

use crate::error::{Error, Kind, Stage};
use crate::metrics::{Failure, InstanceCounter};
use crate::net::buffer::SMALL;
use crate::net::sweep::{OnGone, Wait};
use crate::wire::chunk::ChunkScan;
use crate::wire::head::Framing;
use crate::wire::{json, openai, sse};

use super::{Exchange, Opened, Stop};

impl Exchange {
    /// Reads on until `events` of a stream are here (or the whole of another answer), and gives their payload. All of
    /// it stays in `opened`, to be relayed.
    pub async fn hold(&self, opened: &mut Opened, events: usize) -> Result<Vec<u8>, Stop> {
        let stream = opened.is_good_event_stream();
        let max = self.config.limits.answer_bytes_max;
        let guard = self.slot.watch_upstream(opened.lease.stream.fd());
        let mut ended = false;
        let result = loop {
            let (payload, whole) = match begun(opened) {
                Ok(begun) => begun,
                Err(what) => break Err((Kind::BadResponse, what)),
            };
            if whole || ended || (stream && holds(&payload, events)) {
                break Ok(payload);
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
            bytes.reserve(SMALL.max(bytes.len()));
            let (result, back) = opened.lease.stream.read(bytes).await;
            opened.bytes = back;
            self.touch(&opened.picked);
            match result {
                Ok(1..) => {}
                Ok(_) if opened.framing == Framing::Close => ended = true,
                _ => break Err((Kind::Reset, "its answer was cut short")),
            }
        };
        self.slot.disarm();
        drop(guard);
        result.map_err(|(kind, what)| {
            if let Some(error) = self.ended_at(&opened.picked, Stage::DecodeHead) {
                return Stop::Error(error);
            }
            self.charge_failure(&opened.picked, Failure::Reset);
            Stop::Again(opened.failed(kind, what))
        })
    }

    /// Waits for the first bytes of a stream whose D takes KV from a P. vLLM sends the head of a stream before it has
    /// the KV. If it cannot get it (P died meanwhile), what follows that 200 is one `error` event and a clean end,
    /// which a client would have to take for its answer: as long as the client has nothing, others can do better.
    pub(super) async fn begun_well(&self, opened: &mut Opened) -> Result<(), Stop> {
        let guard = self.slot.watch_upstream(opened.lease.stream.fd());
        self.slot.when_gone(match opened.fetching() {
            true => OnGone::Finish(self.config.timeouts.release),
            false => OnGone::Cut,
        });
        let wait = self.config.timeouts.between_chunks;
        self.slot.arm(Wait::BetweenChunks, wait);
        let result = loop {
            match beginning(opened) {
                Ok(Beginning::Unknown) => {}
                Ok(known) => break Ok(known),
                Err(what) => break Err((Kind::BadResponse, Failure::BadResponse, what)),
            }
            let mut bytes = std::mem::take(&mut opened.bytes);
            bytes.reserve(SMALL);
            let (result, back) = opened.lease.stream.read(bytes).await;
            opened.bytes = back;
            self.touch(&opened.picked);
            if let (Ok(1..), Some(h)) = (&result, &mut opened.handover) {
                h.first = false;
                let decode = opened.picked.instance();
                self.tools.met.note(&h.prefill, decode, h.starts);
            }
            match result {
                Ok(1..) if self.slot.fired().is_none() => {}
                Ok(_) if opened.framing == Framing::Close && self.slot.fired().is_none() => {
                    break Ok(Beginning::Well);
                }
                _ => {
                    let what = "it ended before the first byte of its stream";
                    break Err((Kind::Reset, Failure::Reset, what));
                }
            }
        };
        self.slot.when_gone(OnGone::Cut);
        self.slot.disarm();
        drop(guard);
        match result {
            Ok(Beginning::Error) => Box::pin(self.refused_late(opened)).await,
            Ok(_) => Ok(()),
            Err((kind, failure, what)) => {
                if let Some(error) = self.ended_at(&opened.picked, Stage::DecodeHead) {
                    return Err(Stop::Error(error));
                }
                self.charge_failure(&opened.picked, failure);
                Err(Stop::Again(opened.failed(kind, what)))
            }
        }
    }

    /// The stream begins with an error. A 4xx is the client's own, and stays the answer. No breaker counts others: D
    /// may be well, and P is watched by itself; but another try asks others, if there are any.
    async fn refused_late(&self, opened: &mut Opened) -> Result<(), Stop> {
        let payload = self.hold(opened, 1).await?;
        let event = &payload[..sse::event_end(&payload, 0).unwrap_or(payload.len())];
        let data = sse::data_of(event).map_or(event, |data| &event[data]);
        let error = json::value(data, "error", 64).unwrap_or_default();
        if openai::error_code(error).is_some_and(|code| (400..500).contains(&code)) {
            return Ok(());
        }
        let instance = opened.picked.instance();
        let prefill = opened.handover.as_ref().map(|h| h.prefill.index);
        self.avoid.borrow_mut().extend(prefill);
        self.avoid.borrow_mut().push(instance.index);
        let counter = InstanceCounter::failures(Failure::BadResponse);
        instance.metrics.inc(&self.tools.metrics, counter);
        let said = json::value(error, "message", 64).and_then(json::string_value);
        let said = said.unwrap_or_default();
        let cause = format!(
            "its stream began with an error: {}",
            String::from_utf8_lossy(&said[..said.len().min(SAID_MAX)])
        );
        let error = Error::new(Kind::BadResponse, opened.stage, cause);
        Err(Stop::Again(error.at(&instance.name)))
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

/// So much of an engine's own words goes into ours.
const SAID_MAX: usize = 300;

/// How a stream begins, as far as it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Unknown,
    Well,
    Error,
}

fn beginning(opened: &Opened) -> Result<Beginning, &'static str> {
    let rest = &opened.bytes[opened.head_len..];
    let mut scan = ChunkScan::default();
    let mut words = Words::default();
    match opened.framing {
        Framing::Chunked => {
            let fed = scan.feed(rest, |data| words.feed(data));
            fed.map_err(|bad| bad.0)?;
        }
        _ => words.feed(rest),
    }
    let ended = match opened.framing {
        Framing::Length(n) => rest.len() as u64 >= n,
        Framing::Chunked => scan.done(),
        Framing::Close => false,
    };
    Ok(match words.beginning() {
        Beginning::Unknown if ended => Beginning::Well,
        known => known,
    })
}

/// Compares a stream's first words with those of an `error` event, spaces aside.
#[derive(Default)]
struct Words {
    same: usize,
    other: bool,
}

const ERROR_WORDS: &[u8] = b"data:{\"error\":{";

impl Words {
    fn feed(&mut self, data: &[u8]) {
        for byte in data {
            if self.other || self.same == ERROR_WORDS.len() {
                return;
            }
            match *byte {
                b' ' => {}
                byte if byte == ERROR_WORDS[self.same] => self.same += 1,
                _ => self.other = true,
            }
        }
    }

    fn beginning(&self) -> Beginning {
        if self.other {
            Beginning::Well
        } else if self.same == ERROR_WORDS.len() {
            Beginning::Error
        } else {
            Beginning::Unknown
        }
    }
}

/// What is here of the payload, and whether that is all.
fn begun(opened: &Opened) -> Result<(Vec<u8>, bool), &'static str> {
    let rest = &opened.bytes[opened.head_len..];
    match opened.framing {
        Framing::Length(n) => Ok((rest.to_vec(), rest.len() as u64 >= n)),
        Framing::Close => Ok((rest.to_vec(), false)),
        Framing::Chunked => {
            let (mut scan, mut payload) = (ChunkScan::default(), Vec::new());
            let fed = scan.feed(rest, |data| payload.extend_from_slice(data));
            fed.map_err(|bad| bad.0)?;
            Ok((payload, scan.done()))
        }
    }
}

fn holds(payload: &[u8], events: usize) -> bool {
    let mut rest = payload;
    for _ in 0..events {
        match sse::event_end(rest, 0) {
            Some(end) => rest = &rest[end..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beginning_of(parts: &[&str]) -> Beginning {
        let mut words = Words::default();
        parts.iter().for_each(|part| words.feed(part.as_bytes()));
        words.beginning()
    }

    #[test]
    fn errors_are_known_by_their_first_words_however_they_arrive() {
        let error = r#"data: {"error": {"message":"KV load failure","code":500}}"#;
        for at in 0..error.len() {
            let (a, b) = error.split_at(at);
            assert_eq!(beginning_of(&[a, b]), Beginning::Error, "split at {at}");
        }
        assert_eq!(beginning_of(&[]), Beginning::Unknown);
        assert_eq!(beginning_of(&[r#"data: {"err"#]), Beginning::Unknown);
        let well = [
            r#"data: {"id":"x","choices":[]}"#,
            r#"data: {"error":null,"id":"x"}"#,
            "data: [DONE]",
            ": a comment",
            "event: response.created",
        ];
        for stream in well {
            assert_eq!(beginning_of(&[stream]), Beginning::Well, "{stream}");
        }
    }
}
