//! Server-sent events, read incrementally: what each event is, not what it says.

use memchr::memmem;

/// A line longer than this is cut: no engine sends one, and memory must have a bound.
const LINE_LIMIT: usize = 16 << 20;

/// What one event was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A `data:` event; `content` is only looked for while the caller asks for it.
    Chunk {
        content: bool,
    },
    Done,
    Error,
}

#[derive(Debug, Default)]
pub struct Sse {
    /// A line that has not ended yet.
    line: Vec<u8>,
    /// The data of the current event, kept only when `keep`.
    data: Vec<u8>,
    keep: bool,
    has_data: bool,
    content: bool,
    done: bool,
    error: bool,
}

impl Sse {
    /// Starts a new stream. `keep`: the caller wants to read the data of each event.
    pub fn reset(&mut self, keep: bool) {
        self.line.clear();
        self.keep = keep;
        self.next_event();
    }

    fn next_event(&mut self) {
        self.data.clear();
        self.has_data = false;
        self.content = false;
        self.done = false;
        self.error = false;
    }

    /// Calls `event` for every event that ends in `bytes`, with its data if it is kept.
    pub fn feed(&mut self, mut bytes: &[u8], seek: bool, mut event: impl FnMut(Event, &[u8])) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (head, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            let ended = if self.line.is_empty() {
                self.take_line(head, seek)
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                let ended = self.take_line(&line, seek);
                line.clear();
                self.line = line;
                ended
            };
            if let Some(kind) = ended {
                event(kind, &self.data);
                self.next_event();
            }
        }
        if self.line.len() + bytes.len() <= LINE_LIMIT {
            self.line.extend_from_slice(bytes);
        }
    }

    /// Bytes of an unfinished event are waiting: the stream was cut inside one.
    pub fn unfinished(&self) -> bool {
        !self.line.is_empty() || self.has_data
    }

    fn take_line(&mut self, line: &[u8], seek: bool) -> Option<Event> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.ended();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            self.has_data = true;
            self.done |= data == b"[DONE]";
            self.error |= is_error(data);
            self.content |= seek && has_content(data);
            if self.keep {
                self.data.extend_from_slice(data);
            }
        } else if let Some(name) = line.strip_prefix(b"event:") {
            self.error |= name.trim_ascii() == b"error";
        }
        None
    }

    fn ended(&mut self) -> Option<Event> {
        if !self.has_data {
            self.next_event();
            return None;
        }
        Some(if self.error {
            Event::Error
        } else if self.done {
            Event::Done
        } else {
            Event::Chunk {
                content: self.content,
            }
        })
    }
}

/// `{"error": ...}` or `{"object":"error", ...}`, the two shapes engines use inside a stream.
fn is_error(data: &[u8]) -> bool {
    let Some(inner) = data.strip_prefix(b"{") else {
        return false;
    };
    let inner = inner.trim_ascii_start();
    if inner.starts_with(b"\"error\"") {
        return !value_after(&inner[7..]).is_some_and(|value| value.starts_with(b"null"));
    }
    inner
        .strip_prefix(b"\"object\"")
        .is_some_and(|rest| value_after(rest).is_some_and(|value| value.starts_with(b"\"error\"")))
}

/// Does this chunk carry generated text? A chat stream opens with a chunk that only names the role, and the time
/// to the first token must not be taken from it.
pub fn has_content(data: &[u8]) -> bool {
    // `content"` also finds reasoning_content; arguments are those of a tool call.
    const KEYS: [&[u8]; 4] = [b"text\"", b"content\"", b"reasoning\"", b"arguments\""];
    KEYS.iter().any(|key| {
        memmem::find_iter(data, key).any(|at| {
            value_after(&data[at + key.len()..])
                .and_then(|value| value.strip_prefix(b"\""))
                .is_some_and(|text| text.first().is_some_and(|byte| *byte != b'"'))
        })
    })
}

fn value_after(rest: &[u8]) -> Option<&[u8]> {
    rest.trim_ascii_start()
        .strip_prefix(b":")
        .map(<[u8]>::trim_ascii_start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(parts: &[&[u8]]) -> Vec<Event> {
        let mut sse = Sse::default();
        sse.reset(false);
        let mut seen = Vec::new();
        for part in parts {
            sse.feed(part, true, |event, _| seen.push(event));
        }
        assert!(!sse.unfinished());
        seen
    }

    #[test]
    fn tells_events_apart_under_every_split() {
        let stream = b": hello\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\": \"hi\"}}]}\r\n\r\n\
            event: error\ndata: {}\n\ndata: {\"error\": {\"message\":\"x\"}}\n\ndata:[DONE]\n\n";
        let want = [
            Event::Chunk { content: false },
            Event::Chunk { content: true },
            Event::Error,
            Event::Error,
            Event::Done,
        ];
        for cut in 0..=stream.len() {
            assert_eq!(
                events(&[&stream[..cut], &stream[cut..]]),
                want,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_null_error_is_no_error() {
        assert_eq!(
            events(&[b"data: {\"error\":null}\n\n"]),
            [Event::Chunk { content: false }]
        );
        assert!(has_content(b"{\"choices\":[{\"text\":\" a\"}]}"));
        assert!(!has_content(
            b"{\"choices\":[{\"text\":\"\",\"logprobs\":null}]}"
        ));
        assert!(has_content(b"{\"delta\":{\"reasoning_content\":\"so\"}}"));
    }
}
