//! Server-sent events: enough to end a broken stream in a way that clients notice, and to find the events
//! of a stream that has to be changed.

use std::ops::Range;

/// Remembers whether the payload seen so far ends at an event boundary (a blank line).
#[derive(Debug, Clone, Copy, Default)]
pub struct EventEdge {
    /// The last bytes of the payload, newest in the low byte; CR is not counted.
    tail: u16,
    any: bool,
}

impl EventEdge {
    pub fn feed(&mut self, payload: &[u8]) {
        let start = payload.len().saturating_sub(4);
        for byte in &payload[start..] {
            self.any = true;
            if *byte != b'\r' {
                self.tail = self.tail << 8 | u16::from(*byte);
            }
        }
    }

    /// Nothing yet, or the last event is complete.
    pub fn clean(&self) -> bool {
        !self.any || self.tail == 0x0a0a
    }
}

/// The `data:` event that tells a client its stream failed. `mid_event`: a blank line goes first, so that
/// the half event before it does not swallow it.
pub fn error_event(error_json: &[u8], mid_event: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(error_json.len() + 16);
    if mid_event {
        out.extend_from_slice(b"\n\n");
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(error_json);
    out.extend_from_slice(b"\n\n");
    out
}

/// Where the first event of `bytes` ends, its blank line included; `None` while it is not all there.
/// `searched`: so many bytes have been looked at before. Lines end in LF or CR LF, as all engines write.
pub fn event_end(bytes: &[u8], searched: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes.get(searched..)?)
        .map(|at| searched + at)
        .find(|at| {
            let line = &bytes[..*at];
            let before = line.strip_suffix(b"\r").unwrap_or(line);
            before.is_empty() || before.ends_with(b"\n")
        })
        .map(|at| at + 1)
}

/// The value of an event's one `data:` line. `None` if it has no such line (a comment), or several.
pub fn data_of(event: &[u8]) -> Option<Range<usize>> {
    let mut found = None;
    let mut start = 0;
    for line in event.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b"data:") {
            let mut value = start + 5..start + line.trim_ascii_end().len();
            if event.get(value.start) == Some(&b' ') && value.start < value.end {
                value.start += 1;
            }
            if found.replace(value).is_some() {
                return None;
            }
        }
        start += line.len();
    }
    found
}
