//! OpenAI request and answer bodies, as far as a prefill/decode proxy must know them.
//!
//! Source: the OpenAI API reference, and vLLM 0.32 as seen running (its prefill leg answers 400 to a
//! `min_tokens` above `max_tokens`, so that goes; with `n` above 1 it would hold a KV grant per child).

use super::json::{self, Edit, Object};
use super::spare::List;
use std::borrow::Cow;

/// The nixl template that asks P to keep its KV for a remote D (vLLM NixlConnector, all versions).
pub const NIXL_TEMPLATE: &[u8] = br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

pub const KV_PARAMS: &str = "kv_transfer_params";

/// Which conversation a request belongs to: for proxies, no engine knows it.
pub const CONVERSATION_ID: &str = "conversation_id";
pub const CONVERSATION_FIELD: &str = "x-conversation-id";

/// What routing and scheduling read from a generate body; ranges were scanned once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub stream: bool,
    /// How many prompts the request holds; more than one is a batch, which no single KV grant can
    /// carry. Members that an endpoint ignores are counted too: a wrong "batch" only costs speed.
    pub prompts: usize,
    /// Bytes of the prompt, messages or input without base64 media: the base of the length estimate.
    pub prompt_bytes: usize,
    /// `max_completion_tokens`, else `max_tokens`, else `max_output_tokens`, where it is a number.
    pub max_tokens: Option<u64>,
    /// Where in the body the value of `model` is.
    pub model: Option<(u32, u32)>,
}

impl Summary {
    pub fn of(bytes: &[u8], object: &Object) -> Summary {
        let mut summary = Summary::default();
        let mut embeds = 0;
        for member in object.members() {
            // The last of a name counts, so later ones simply overwrite.
            let value = &bytes[member.value()];
            if member.is(bytes, "stream") {
                summary.stream = value == b"true";
            } else if member.is(bytes, "prompt") {
                summary.prompts = prompts_in(value);
                summary.prompt_bytes = value.len();
            } else if member.is(bytes, "model") {
                let range = member.value();
                summary.model = Some((range.start as u32, range.end as u32));
            } else if member.is(bytes, "prompt_embeds") {
                embeds = prompts_in(value);
            } else if member.is(bytes, "messages") || member.is(bytes, "input") {
                summary.prompt_bytes = value.len() - media_bytes(value);
            }
        }
        // vLLM runs the embedded prompts and the written ones of one request.
        summary.prompts = (summary.prompts + embeds).max(1);
        summary.max_tokens = ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .into_iter()
            .find_map(|key| number(object.get(bytes, key)?));
        summary
    }
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// How many prompts a `prompt` value holds: a string or one token list is one.
fn prompts_in(value: &[u8]) -> usize {
    if value == b"null" {
        return 0;
    }
    if value.first() != Some(&b'[') {
        return 1;
    }
    let inner = value[1..].trim_ascii_start();
    match inner.first() {
        Some(b'"' | b'[' | b'{') => elements(value),
        _ => 1,
    }
}

/// Elements of a JSON array that the body scan has already found to be well nested.
fn elements(array: &[u8]) -> usize {
    let mut depth = 0usize;
    let mut count = 1;
    let mut at = 0;
    while at < array.len() {
        match array[at] {
            b'"' => at = string_end(array, at),
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => count += 1,
            _ => {}
        }
        at += 1;
    }
    count
}

/// Offset of the closing quote of the string that opens at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
    {
        at += found;
        if bytes[at] == b'"' {
            return at;
        }
        at += 2;
    }
    bytes.len()
}

/// Bytes in base64 `data:` URLs: they say nothing about the number of prompt tokens.
fn media_bytes(value: &[u8]) -> usize {
    let mut total = 0;
    let mut at = 0;
    while let Some(found) = memchr::memmem::find(&value[at..], b"\"data:") {
        let start = at + found;
        let end = string_end(value, start);
        total += end.min(value.len()) - start;
        at = end.min(value.len());
    }
    total
}

/// The edits that turn a client's body into the prefill leg's: one token, whole answer, one choice.
pub fn prefill_edits() -> List<Edit> {
    let one = || Cow::Borrowed(&b"1"[..]);
    List::from([
        Edit::Set("stream", Cow::Borrowed(b"false")),
        Edit::Remove("stream_options"),
        Edit::Remove("min_tokens"),
        Edit::Remove("best_of"),
        Edit::Replace("n", one()),
        Edit::Replace("max_completion_tokens", one()),
        // Always, as every known proxy does: /v1/completions knows only this one and would otherwise
        // decode its default number of tokens on P.
        Edit::Set("max_tokens", one()),
    ])
}

/// The edits that make a leg one token and a whole answer of one choice, with only the limits that every API has.
pub fn whole_answer_edits() -> List<Edit> {
    let one = || Cow::Borrowed(&b"1"[..]);
    List::from([
        Edit::Set("max_tokens", one()),
        Edit::Replace("max_completion_tokens", one()),
        Edit::Replace("n", one()),
        Edit::Remove("best_of"),
        // Kept, engines refuse so few tokens.
        Edit::Remove("min_tokens"),
        Edit::Set("stream", Cow::Borrowed(b"false")),
        Edit::Remove("stream_options"),
    ])
}

/// Why the first choice ended, of a whole answer or of the first event that says so.
pub fn finish_reason(payload: &[u8]) -> Option<Vec<u8>> {
    let of = |text: &[u8]| {
        let object = Object::scan(text, 128).ok()?;
        let choice = json::elements(object.get(text, "choices")?).next()?;
        let inner = Object::scan(choice, 128).ok()?;
        let reason = json::string_value(inner.get(choice, "finish_reason")?)?;
        Some(reason.into_owned())
    };
    if payload.trim_ascii_start().first() == Some(&b'{') {
        return of(payload);
    }
    let lines = payload.split(|b| *b == b'\n');
    let mut data = lines.filter_map(|line| line.strip_prefix(b"data:"));
    data.find_map(|data| of(data.trim_ascii()))
}

/// A number that a body's member is, if it is one.
pub fn count(value: Option<&[u8]>) -> Option<u64> {
    number(value?)
}

/// Do these `stream_options` ask for the usage?
pub fn wants_usage(options: &[u8]) -> bool {
    json::value(options, "include_usage", 8) == Some(b"true")
}

/// A request for one token and a whole answer, made of these members.
pub fn one_token(members: impl Iterator<Item = (&'static str, Vec<u8>)>) -> Vec<u8> {
    let mut out = b"{".to_vec();
    for (key, value) in members {
        json::put_string(&mut out, key);
        out.push(b':');
        out.extend_from_slice(&value);
        out.push(b',');
    }
    out.extend_from_slice(br#""max_tokens":1,"stream":false}"#);
    out
}

/// An OpenAI error body, as clients of vLLM know it.
pub fn error_body(message: &str, kind: &str, code: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 80);
    out.extend_from_slice(br#"{"error":{"message":"#);
    json::put_string(&mut out, message);
    out.extend_from_slice(br#","type":"#);
    json::put_string(&mut out, kind);
    out.extend_from_slice(br#","param":null,"code":"#);
    out.extend_from_slice(itoa::Buffer::new().format(code).as_bytes());
    out.extend_from_slice(b"}}");
    out
}

/// The status that an `error` object names, if it is the client's request that is at fault (4xx).
pub fn clients_error(error: &[u8]) -> Option<u16> {
    let code = number(json::value(error, "code", 64)?)?.try_into().ok()?;
    (400..500).contains(&code).then_some(code)
}

/// `usage.prompt_tokens` of a whole answer, where it is there.
pub fn prompt_tokens(answer: &[u8], object: &Object) -> Option<u64> {
    let usage = object.get(answer, "usage")?;
    number(json::value(usage, "prompt_tokens", 8)?)
}
