//! Answers of `/v1/completions` as answers of `/v1/chat/completions`: choice by choice, whole or streamed.

use super::json::{self, Object, elements};

const DEPTH_MAX: usize = 64;

/// Appends the `choices` of one completions event as those of a chat's chunk. `None`: they are no array of
/// objects, and nothing was appended.
pub fn put_deltas(out: &mut Vec<u8>, choices: &[u8]) -> Option<()> {
    put_choices(out, choices, br#","delta":{"content":"#, b"}", "")
}

/// The same for a whole answer. `before`: JSON text without quotes that goes in front of the first one's.
pub fn put_messages(out: &mut Vec<u8>, choices: &[u8], before: &str) -> Option<()> {
    let open = br#","message":{"role":"assistant","content":"#;
    put_choices(out, choices, open, b"}", before)
}

fn put_choices(
    out: &mut Vec<u8>,
    choices: &[u8],
    open: &[u8],
    close: &[u8],
    before: &str,
) -> Option<()> {
    let start = out.len();
    out.push(b'[');
    for (i, choice) in elements(choices).enumerate() {
        let before = if i == 0 { before } else { "" };
        if put_choice(out, choice, i, open, close, before).is_none() {
            out.truncate(start);
            return None;
        }
    }
    out.push(b']');
    Some(())
}

fn put_choice(
    out: &mut Vec<u8>,
    choice: &[u8],
    at: usize,
    open: &[u8],
    close: &[u8],
    before: &str,
) -> Option<()> {
    let object = Object::scan(choice, DEPTH_MAX).ok()?;
    let get = |key| object.get(choice, key);
    let text = match get("text") {
        None | Some(b"null") => b"",
        Some(text) => text.strip_prefix(b"\"")?.strip_suffix(b"\"")?,
    };
    if at > 0 {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"index":"#);
    out.extend_from_slice(get("index").unwrap_or(b"0"));
    out.extend_from_slice(open);
    out.push(b'"');
    out.extend_from_slice(before.as_bytes());
    out.extend_from_slice(text);
    out.push(b'"');
    out.extend_from_slice(close);
    out.extend_from_slice(br#","logprobs":null,"finish_reason":"#);
    out.extend_from_slice(get("finish_reason").unwrap_or(b"null"));
    if let Some(reason) = get("stop_reason") {
        out.extend_from_slice(br#","stop_reason":"#);
        out.extend_from_slice(reason);
    }
    out.push(b'}');
    Some(())
}

/// The same choices, with JSON text (without quotes) in front of the first one's.
pub fn put_lengthened(out: &mut Vec<u8>, choices: &[u8], before: &str) -> Option<()> {
    let start = out.len();
    out.push(b'[');
    for (i, choice) in elements(choices).enumerate() {
        if i > 0 {
            out.push(b',');
            out.extend_from_slice(choice);
            continue;
        }
        let object = Object::scan(choice, DEPTH_MAX).ok();
        let text = object.and_then(|object| object.range(choice, "text"));
        let Some(text) = text.filter(|range| choice[range.start] == b'"') else {
            out.truncate(start);
            return None;
        };
        out.extend_from_slice(&choice[..=text.start]);
        out.extend_from_slice(before.as_bytes());
        out.extend_from_slice(&choice[text.start + 1..]);
    }
    out.push(b']');
    Some(())
}

/// The id of a chat, from that of the completion that stands for it. Both with quotes.
pub fn chat_id(id: &[u8]) -> Vec<u8> {
    match id.strip_prefix(b"\"cmpl-") {
        Some(rest) => [b"\"chatcmpl-", rest].concat(),
        None => id.to_vec(),
    }
}

/// Appends one member of an object that has others behind it.
pub fn put_member(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    json::put_string(out, key);
    out.push(b':');
    out.extend_from_slice(value);
    out.push(b',');
}
