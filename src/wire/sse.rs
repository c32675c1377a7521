//! Server-sent events: enough to end a broken stream in a way that clients notice.

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
