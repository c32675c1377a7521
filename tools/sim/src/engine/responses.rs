//! `/v1/responses`, the way vLLM takes it: its `input` becomes the messages of a chat, and from there on it is one.
//! What its schema does not name is dropped from content parts (a `uuid` too), and of media it takes images only,
//! by url.

use std::borrow::Cow;

use super::Engine;
use super::answer::{push_text, put};
use super::error::ApiError;
use super::job::Job;
use crate::json::{Member, elements, is_null, is_string, members, push_string, string, unescape};
use crate::text::push_number;

/// Members that mean the same in a chat; the second name is the chat's.
const SAME: [(&str, &str); 12] = [
    ("model", "model"),
    ("max_output_tokens", "max_completion_tokens"),
    ("stream", "stream"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("seed", "seed"),
    ("ignore_eos", "ignore_eos"),
    ("mm_processor_kwargs", "mm_processor_kwargs"),
    ("priority", "priority"),
    ("kv_transfer_params", "kv_transfer_params"),
    ("ec_transfer_params", "ec_transfer_params"),
];

fn wrong(message: impl std::fmt::Display) -> ApiError {
    ApiError::field("input", message)
}

fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let named = members(object).filter(|(key, _)| *key == name.as_bytes());
    named.map(|(_, value)| value).last()
}

fn text(value: Option<&[u8]>) -> Option<Cow<'_, [u8]>> {
    value.filter(|v| is_string(v)).map(string)
}

/// The same request as a chat.
pub(crate) fn as_chat(body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let mut top: Vec<Member> = Vec::new();
    if let Err(invalid) = crate::json::object(body, &mut top) {
        let message = format!("JSON decode error: expected {}", invalid.what);
        return Err(ApiError::field(&invalid.at.to_string(), message));
    }
    let get = |name: &str| {
        let named =
            |m: &&Member| *unescape(&body[m.key.0 as usize..m.key.1 as usize]) == *name.as_bytes();
        let member = top.iter().rev().find(named)?;
        let value = &body[member.value.0 as usize..member.value.1 as usize];
        (!is_null(value)).then_some(value)
    };
    if let Some(id) = text(get("previous_response_id")) {
        // Nothing is stored here.
        let message = format!(
            "Response with id '{}' not found.",
            String::from_utf8_lossy(&id)
        );
        return Err(ApiError {
            status: 404,
            kind: "invalid_request_error",
            ..ApiError::rule("previous_response_id", message)
        });
    }
    let input = get("input").ok_or_else(|| wrong("Field required"))?;
    let mut out = b"{\"messages\":[".to_vec();
    if let Some(instructions) = get("instructions").filter(|v| is_string(v)) {
        put(&mut out, b"{\"role\":\"system\",\"content\":");
        put(&mut out, instructions);
        put(&mut out, b"},");
    }
    match input[0] {
        b'"' => {
            put(&mut out, b"{\"role\":\"user\",\"content\":");
            put(&mut out, input);
            put(&mut out, b"},");
        }
        b'[' => {
            for item in elements(input) {
                push_item(&mut out, item)?;
                out.push(b',');
            }
        }
        _ => return Err(wrong("Input should be a valid list")),
    }
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
    for (name, in_chat) in SAME {
        if let Some(value) = get(name) {
            put(&mut out, format!(",\"{in_chat}\":").as_bytes());
            put(&mut out, value);
        }
    }
    out.push(b'}');
    Ok(out)
}

fn push_item(out: &mut Vec<u8>, item: &[u8]) -> Result<(), ApiError> {
    if item[0] != b'{' {
        return Err(wrong("Input should be a valid dictionary"));
    }
    let kind = text(member(item, "type"));
    let (role, content) = match kind.as_deref() {
        None | Some(b"message") => (
            text(member(item, "role")).ok_or_else(|| wrong("Field required: role"))?,
            member(item, "content"),
        ),
        Some(b"function_call_output") => (Cow::Borrowed(&b"tool"[..]), member(item, "output")),
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            return Err(wrong(format!("Unsupported input item type: {other}")));
        }
    };
    put(out, b"{\"role\":");
    push_string(out, &String::from_utf8_lossy(&role));
    put(out, b",\"content\":");
    match content {
        Some(content) if is_string(content) => put(out, content),
        Some(content) if content[0] == b'[' => {
            out.push(b'[');
            for (n, part) in elements(content).enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                push_part(out, part)?;
            }
            out.push(b']');
        }
        _ => return Err(wrong("Input should be a valid string")),
    }
    out.push(b'}');
    Ok(())
}

fn push_part(out: &mut Vec<u8>, part: &[u8]) -> Result<(), ApiError> {
    let kind = Some(part).filter(|part| part[0] == b'{');
    let kind = kind.and_then(|part| text(member(part, "type")));
    let of = |name: &str| member(part, name).filter(|value| is_string(value));
    match (kind.as_deref(), of("text"), of("image_url")) {
        (Some(b"input_text" | b"output_text"), Some(text), _) => {
            put(out, b"{\"type\":\"text\",\"text\":");
            put(out, text);
        }
        (Some(b"input_image"), _, Some(url)) => {
            put(out, b"{\"type\":\"image_url\",\"image_url\":{\"url\":");
            put(out, url);
            out.push(b'}');
        }
        (kind, ..) => {
            let kind = String::from_utf8_lossy(kind.unwrap_or_default()).into_owned();
            return Err(wrong(format!(
                "Input should be input_text, input_image or input_file, not {kind}"
            )));
        }
    }
    out.push(b'}');
    Ok(())
}

/// `{"id":"resp_..","object":"response",..}`, so far; with its text and KV if it is `done`.
fn push_response(out: &mut Vec<u8>, engine: &Engine, job: &Job, done: bool) {
    let (length, stopped) = job.length(0);
    put(out, b"{\"id\":\"resp_");
    put(out, &job.answer_id);
    put(out, b"\",\"created_at\":");
    push_number(out, job.created);
    let incomplete: &[u8] = match (done, stopped) {
        (true, false) => b"{\"reason\":\"max_output_tokens\"}",
        _ => b"null",
    };
    put(out, b",\"incomplete_details\":");
    put(out, incomplete);
    put(out, b",\"model\":");
    push_string(out, &engine.options().model);
    put(out, b",\"object\":\"response\",\"output\":[");
    if done {
        put(
            out,
            b"{\"id\":\"msg_1\",\"content\":[{\"annotations\":[],\"text\":\"",
        );
        push_text(out, job, 0, 0, length);
        put(out, b"\",\"type\":\"output_text\",\"logprobs\":null}],\"role\":\"assistant\",\"status\":\"completed\",\"type\":\"message\"}");
    }
    put(out, b"],\"status\":\"");
    put(
        out,
        match (done, stopped) {
            (false, _) => b"in_progress",
            (true, true) => b"completed",
            (true, false) => b"incomplete",
        },
    );
    put(out, b"\",\"usage\":");
    if done {
        let prompt = job.ask.prompt_tokens();
        put(out, b"{\"input_tokens\":");
        push_number(out, prompt);
        put(out, b",\"output_tokens\":");
        push_number(out, length.into());
        put(out, b",\"total_tokens\":");
        push_number(out, prompt + u64::from(length));
        out.push(b'}');
    } else {
        put(out, b"null");
    }
    put(out, b",\"kv_transfer_params\":");
    let params: &[u8] = match done && !job.params.is_empty() {
        true => &job.params,
        false => b"null",
    };
    put(out, params);
    put(out, b",\"ec_transfer_params\":null}");
}

/// The whole answer of a request that does not stream.
pub(crate) fn push_answer(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    push_response(out, engine, job, true);
}

fn begin(out: &mut Vec<u8>, kind: &str) {
    put(
        out,
        format!("event: {kind}\ndata: {{\"type\":\"{kind}\"").as_bytes(),
    );
}

/// The first event.
pub(crate) fn push_created(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    begin(out, "response.created");
    put(out, b",\"sequence_number\":0,\"response\":");
    push_response(out, engine, job, false);
    put(out, b"}\n\n");
}

/// The event of one token.
pub(crate) fn push_delta(out: &mut Vec<u8>, job: &Job, index: u32) {
    begin(out, "response.output_text.delta");
    put(out, b",\"content_index\":0,\"item_id\":\"msg_1\",\"output_index\":0,\"logprobs\":[],\"sequence_number\":");
    push_number(out, u64::from(index) + 1);
    put(out, b",\"delta\":\"");
    push_text(out, job, 0, index, index + 1);
    put(out, b"\"}\n\n");
}

/// The last one; there is no `[DONE]` behind it.
pub(crate) fn push_completed(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    begin(out, "response.completed");
    put(out, b",\"sequence_number\":");
    push_number(out, u64::from(job.length(0).0) + 1);
    put(out, b",\"response\":");
    push_response(out, engine, job, true);
    put(out, b"}\n\n");
}
