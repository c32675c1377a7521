//! Broken streams: where an event is open, and that a client sees our error event whatever came before.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::openai::error_body;
use pdrelay::wire::sse::{EventEdge, error_event};
use pdrelay_fuzz::{Dice, splits};

fuzz_target!(|data: &[u8]| {
    let standard = lines(data);
    let open = !(data.is_empty() || standard.last() == Some(&Line::Blank));
    let lone_cr = data
        .split(|b| *b == b'\n')
        .any(|line| line.strip_suffix(b"\r").unwrap_or(line).contains(&b'\r'))
        || data.ends_with(b"\r");
    for pieces in splits(data, &mut Dice::of(data)) {
        let mut edge = EventEdge::default();
        pieces.iter().for_each(|piece| edge.feed(piece));
        if edge.clean() {
            assert!(!open, "half an event passes for a whole one");
        } else if !lone_cr {
            // One blank line alone is not counted: the events that matter have a line before it.
            assert!(
                open || data == b"\n" || data == b"\r\n",
                "a whole event passes for half"
            );
        }
        shown(data, !edge.clean());
    }
});

/// The last event that a client dispatches is ours.
fn shown(before: &[u8], mid_event: bool) {
    let error = error_body("prefill answered \"\n\n\" and went", "bad_gateway", 502);
    let mut stream = before.to_vec();
    stream.extend_from_slice(&error_event(&error, mid_event));
    let mut last = None;
    let mut data: Option<Vec<u8>> = None;
    for line in lines(&stream) {
        match line {
            Line::Blank => last = data.take().or(last),
            Line::Text(text) => {
                let value = match text.strip_prefix(b"data:") {
                    Some(rest) => rest.strip_prefix(b" ").unwrap_or(rest),
                    None if text == b"data" => b"",
                    None => continue,
                };
                let data = data.get_or_insert_default();
                if !data.is_empty() {
                    data.push(b'\n');
                }
                data.extend_from_slice(value);
            }
        }
    }
    assert!(data.is_none());
    assert_eq!(
        last.as_deref(),
        Some(&error[..]),
        "the client does not see the error"
    );
}

#[derive(Debug, PartialEq)]
enum Line<'a> {
    Blank,
    /// Ended, or still open at the end of the bytes.
    Text(&'a [u8]),
}

/// Lines as the standard has them: CR LF, LF and CR each end one.
fn lines(stream: &[u8]) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'));
        let Some(end) = end else {
            lines.push(Line::Text(rest));
            break;
        };
        lines.push(match end {
            0 => Line::Blank,
            _ => Line::Text(&rest[..end]),
        });
        let two = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(two)..];
    }
    lines
}
