//! Watches one response go by: when its parts came, and whether it is what was asked for.

use serde_json::Value;

use crate::http::Sink;
use crate::request::ID_LEN;
use crate::sse::{Event, Sse};
use crate::stats::{Failure, Stats};

/// Bytes of an error body that are kept for the report.
const SAMPLE: usize = 200;
/// Bytes of a JSON answer that are kept to read its text.
const ANSWER_LIMIT: usize = 16 << 20;

/// Why a request failed, with words for the report.
pub type Failed = (Failure, String);

/// What is known of the response so far.
#[derive(Debug, Default)]
pub struct Observer {
    want_stream: bool,
    /// Texts are compared, so they have to be read.
    verify: bool,
    id: Option<[u8; ID_LEN]>,
    id_came_back: bool,
    status: u16,
    is_sse: bool,
    sse: Sse,
    first_chunk: Option<u64>,
    first_content: Option<u64>,
    last_chunk: u64,
    done: bool,
    /// Data came after `[DONE]`.
    after_done: bool,
    error_event: bool,
    body: Vec<u8>,
    text: TextHash,
}

/// The observer together with what it writes to during one read.
pub struct Watch<'a> {
    pub seen: &'a mut Observer,
    pub stats: &'a mut Stats,
    pub now: u64,
    /// The request was due inside the window.
    pub measured: bool,
    /// The window is open now.
    pub in_window: bool,
}

impl Observer {
    pub fn new(want_stream: bool, verify: bool) -> Self {
        Self {
            want_stream,
            verify,
            ..Self::default()
        }
    }

    /// Forgets the last response.
    pub fn reset(&mut self, id: Option<[u8; ID_LEN]>) {
        self.id_came_back = id.is_none();
        self.id = id;
        self.status = 0;
        self.is_sse = false;
        self.sse.reset(self.verify);
        self.first_chunk = None;
        self.first_content = None;
        self.done = false;
        self.after_done = false;
        self.error_event = false;
        self.body.clear();
        self.text = TextHash::default();
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// When the first token came. A stream whose every chunk was empty counts from its first chunk.
    pub fn first_token(&self) -> Option<u64> {
        self.first_content.or(self.first_chunk)
    }

    /// A failure that the response itself tells of; it outranks how the connection ended.
    pub fn told_failure(&self) -> Result<(), Failed> {
        if self.status != 0 && self.status != 200 {
            let body = String::from_utf8_lossy(&self.body[..self.body.len().min(SAMPLE)]);
            return Err((Failure::Status, format!("{} {body}", self.status)));
        }
        if self.error_event {
            return Err((Failure::SseError, "error event in the stream".into()));
        }
        Ok(())
    }

    /// Judges a response whose framing ended well. `expected`: the text that this prompt got before.
    pub fn verdict(&mut self, expected: impl FnOnce(u64) -> bool) -> Result<(), Failed> {
        self.told_failure()?;
        let fail = |failure, words: &str| Err((failure, words.to_owned()));
        if self.want_stream != self.is_sse {
            return fail(Failure::WrongType, "stream and JSON answer confused");
        }
        if self.is_sse && !self.done {
            return fail(Failure::MissingDone, "the stream ended without [DONE]");
        }
        if self.is_sse && (self.after_done || self.sse.unfinished()) {
            return fail(
                Failure::Protocol,
                "data after [DONE], or an event without its end",
            );
        }
        if !self.id_came_back {
            return fail(
                Failure::IdMismatch,
                "X-Request-Id did not come back as sent",
            );
        }
        if self.verify {
            if !self.is_sse {
                self.text.add(&self.body);
            }
            if !expected(self.text.value()) {
                return fail(Failure::TextMismatch, "the same prompt gave another text");
            }
        }
        Ok(())
    }
}

impl Sink for Watch<'_> {
    fn head(&mut self, status: u16, headers: &[httparse::Header<'_>]) {
        self.seen.status = status;
        for header in headers {
            match header.name.len() {
                12 if header.name.eq_ignore_ascii_case("content-type") => {
                    let sse = b"text/event-stream";
                    self.seen.is_sse = header
                        .value
                        .get(..sse.len())
                        .is_some_and(|start| start.eq_ignore_ascii_case(sse));
                }
                12 if header.name.eq_ignore_ascii_case("x-request-id") => {
                    if let Some(id) = &self.seen.id {
                        self.seen.id_came_back = header.value == id;
                    }
                }
                _ => {}
            }
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        let seen = &mut *self.seen;
        if !seen.is_sse {
            let keep = match (seen.status, seen.verify) {
                (200, true) => ANSWER_LIMIT,
                (200, false) => 0,
                _ => SAMPLE,
            };
            let room = keep.saturating_sub(seen.body.len()).min(bytes.len());
            seen.body.extend_from_slice(&bytes[..room]);
            return;
        }
        let mut sse = std::mem::take(&mut seen.sse);
        let seek = seen.first_content.is_none();
        sse.feed(bytes, seek, |event, data| self.event(event, data));
        self.seen.sse = sse;
    }
}

impl Watch<'_> {
    fn event(&mut self, event: Event, data: &[u8]) {
        let seen = &mut *self.seen;
        seen.after_done |= seen.done;
        match event {
            Event::Done => seen.done = true,
            Event::Error => seen.error_event = true,
            Event::Chunk { content } => {
                // Gaps count from the first token on: what comes before it belongs to TTFT.
                if seen.first_content.is_some() && self.measured {
                    self.stats
                        .itl
                        .record(self.now.saturating_sub(seen.last_chunk));
                }
                seen.last_chunk = self.now;
                seen.first_chunk.get_or_insert(self.now);
                if content {
                    seen.first_content.get_or_insert(self.now);
                }
                if seen.verify {
                    seen.text.add(data);
                }
            }
        }
        if self.in_window && !matches!(event, Event::Done) {
            self.stats.window.chunks += 1;
        }
    }
}

/// Hash of the generated text, per choice, wherever it is cut into chunks.
#[derive(Debug, Default)]
struct TextHash(Vec<u64>);

impl TextHash {
    /// Takes the text of one chunk, or of a whole answer.
    fn add(&mut self, json: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(json) else {
            return;
        };
        for choice in value["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(0).min(255) as usize;
            if self.0.len() <= index {
                self.0.resize(index + 1, 0xcbf2_9ce4_8422_2325);
            }
            let message = if choice["delta"].is_null() {
                "message"
            } else {
                "delta"
            };
            let parts = [
                &choice["text"],
                &choice[message]["reasoning_content"],
                &choice[message]["content"],
            ];
            for part in parts.into_iter().filter_map(Value::as_str) {
                for byte in part.bytes() {
                    self.0[index] = (self.0[index] ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
        }
    }

    /// Never 0: that means "not seen yet".
    fn value(&self) -> u64 {
        self.0
            .iter()
            .fold(1u64, |sum, hash| sum.rotate_left(7) ^ hash)
            | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_hash_ignores_how_text_is_cut() {
        let hash = |parts: &[&str]| {
            let mut hash = TextHash::default();
            for part in parts {
                hash.add(format!(r#"{{"choices":[{{"index":0,"text":"{part}"}}]}}"#).as_bytes());
            }
            hash.value()
        };
        assert_eq!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["ab"]), hash(&["ac"]));
    }
}
