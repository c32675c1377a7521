//! LMCache's part of a prefill request and of its answer: `disagg_spec`, `ret_first_tok`, `first_tok`, and
//! the token ids that engines answer `/tokenize` and `/v1/chat/completions/render` with.
//!
//! Source: LMCache's vLLM adapter and proxy, as described in their documents and seen on the wire.

use super::first_token::Ask;
use super::json::{self, Edit, Object, elements};

const DEPTH_MAX: usize = 64;

/// Where P has to put the KV of one request: the workers of one decode instance, a port of each kind per
/// rank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receiver {
    pub host: String,
    pub init_ports: Vec<u16>,
    pub alloc_ports: Vec<u16>,
    /// Newer adapters look up what is there already.
    pub query_ports: Vec<u16>,
}

impl Receiver {
    /// So many notices say that all is there.
    pub fn ranks(&self) -> usize {
        self.init_ports.len()
    }
}

/// The value of P's `kv_transfer_params`. `to`: the request's id among the notices, and the receiver.
pub fn params(first_token: bool, to: Option<(&str, &Receiver)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(192);
    out.push(b'{');
    if first_token {
        out.extend_from_slice(br#""ret_first_tok":true"#);
    }
    if let Some((id, receiver)) = to {
        if first_token {
            out.push(b',');
        }
        out.extend_from_slice(br#""disagg_spec":{"req_id":"#);
        json::put_string(&mut out, id);
        out.extend_from_slice(br#","receiver_host":"#);
        json::put_string(&mut out, &receiver.host);
        let lists = [
            (&br#","receiver_init_port":"#[..], &receiver.init_ports),
            (br#","receiver_alloc_port":"#, &receiver.alloc_ports),
            (br#","receiver_query_port":"#, &receiver.query_ports),
        ];
        for (name, ports) in lists {
            if !ports.is_empty() {
                out.extend_from_slice(name);
                put_list(&mut out, ports);
            }
        }
        out.push(b'}');
    }
    out.push(b'}');
    out
}

fn put_list(out: &mut Vec<u8>, ports: &[u16]) {
    out.push(b'[');
    for (i, port) in ports.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(itoa::Buffer::new().format(*port).as_bytes());
    }
    out.push(b']');
}

/// Members with which D has to make the first token itself, besides those of [`Ask`]: they hang on which
/// tokens are the prompt's and which the answer's, or change the prompt on its way to tokens.
const DECODE_FIRST: [&str; 10] = [
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "truncate_prompt_tokens",
    "prompt_embeds",
];

/// May D go on from P's token as if that were the prompt's last?
pub fn continues(body: &[u8], object: &Object, prompts: usize, chat: bool) -> Option<Ask> {
    let plain = |key: &str| {
        let value = object.get(body, key).unwrap_or(b"null");
        matches!(value, b"null" | b"0" | b"0.0" | br#"{"type":"text"}"#)
    };
    Ask::of_any(body, object, prompts, chat).filter(|_| DECODE_FIRST.iter().all(|k| plain(k)))
}

/// Members of a chat that the completions path has no use for.
pub const CHAT_ONLY: [&str; 9] = [
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "max_completion_tokens",
];

/// What of a chat is lost on the completions path, if there is such a thing.
pub fn lost_without_chat(body: &[u8], object: &Object) -> Option<&'static str> {
    const LOST: [&str; 7] = [
        "tools",
        "functions",
        "logprobs",
        "top_logprobs",
        "response_format",
        "audio",
        "reasoning_effort",
    ];
    let set = |key: &&&str| {
        let value = object.get(body, key).unwrap_or(b"null");
        !matches!(
            value,
            b"null" | b"false" | b"[]" | b"0" | br#"{"type":"text"}"#
        )
    };
    if let Some(key) = LOST.iter().find(set) {
        return Some(key);
    }
    let messages = object.get(body, "messages").unwrap_or(b"[]");
    let media = elements(messages).any(|message| {
        let content = Object::scan(message, DEPTH_MAX).ok();
        let content = content.and_then(|inner| inner.get(message, "content").map(<[u8]>::to_vec));
        content.is_some_and(|content| content.starts_with(b"[") && elements(&content).any(no_text))
    });
    media.then_some("media in messages")
}

fn no_text(part: &[u8]) -> bool {
    let object = Object::scan(part, DEPTH_MAX).unwrap_or_default();
    part.starts_with(b"{") && object.get(part, "type") != Some(br#""text""#)
}

/// What has to be tokenized: the prompt alone, or the messages with what its template needs.
pub fn tokenize_body(body: &[u8], object: &Object, chat: bool) -> Vec<u8> {
    const CHAT: [&str; 6] = [
        "messages",
        "chat_template",
        "chat_template_kwargs",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
    ];
    let keys: &[&str] = if chat {
        &CHAT
    } else {
        &["prompt", "add_special_tokens"]
    };
    let mut out = b"{".to_vec();
    for key in keys {
        let Some(value) = object.get(body, key).filter(|v| *v != b"null") else {
            continue;
        };
        if out.len() > 1 {
            out.push(b',');
        }
        json::put_string(&mut out, key);
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
    out
}

/// Token ids as JSON, without the brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u8>,
    pub count: usize,
}

impl Tokens {
    /// A JSON array of token ids, and nothing but such.
    pub fn of(array: &[u8]) -> Option<Tokens> {
        let ids = array.strip_prefix(b"[")?.strip_suffix(b"]")?;
        let is_id = |id: &[u8]| !id.is_empty() && id.iter().all(u8::is_ascii_digit);
        let mut count = 0;
        for id in elements(array) {
            if !is_id(id) {
                return None;
            }
            count += 1;
        }
        let ids = ids.trim_ascii().to_vec();
        (count > 0).then_some(Tokens { ids, count })
    }

    /// Out of an answer to `/tokenize` (`tokens`) or to `render` (`token_ids`, here or in its one prompt).
    pub fn of_answer(answer: &[u8], object: &Object) -> Option<Tokens> {
        const NAMES: [&str; 3] = ["tokens", "token_ids", "prompt_token_ids"];
        let of = |bytes: &[u8], object: &Object| {
            let mut found = NAMES.iter().filter_map(|name| object.get(bytes, name));
            found.find_map(Tokens::of)
        };
        of(answer, object).or_else(|| {
            let inner = ["engine_prompts", "prompts"]
                .iter()
                .find_map(|name| object.get(answer, name))?;
            let prompt = elements(inner).next()?;
            of(prompt, &Object::scan(prompt, DEPTH_MAX).ok()?)
        })
    }

    /// As a `prompt`; `more`: a token that comes behind.
    pub fn prompt(&self, more: Option<u64>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.ids.len() + 24);
        out.push(b'[');
        out.extend_from_slice(&self.ids);
        if let Some(token) = more {
            out.push(b',');
            out.extend_from_slice(itoa::Buffer::new().format(token).as_bytes());
        }
        out.push(b']');
        out
    }
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A number at the top level of an answer.
pub fn whole_number(answer: &[u8], object: &Object, key: &str) -> Option<u64> {
    number(object.get(answer, key)?)
}

/// `kv_transfer_params.first_tok` of P's answer.
pub fn first_tok(answer: &[u8], object: &Object) -> Option<u64> {
    let params = object.get(answer, super::openai::KV_PARAMS)?;
    let inner = Object::scan(params, DEPTH_MAX).ok()?;
    number(inner.get(params, "first_tok")?)
}

/// D's usage counts P's token as prompt: as if D had made it itself. `None`: there is nothing to correct.
pub fn corrected_usage(usage: &[u8]) -> Option<Vec<u8>> {
    let object = Object::scan(usage, DEPTH_MAX).ok()?;
    let moved = |key: &'static str, by: i64| {
        let value = number(object.get(usage, key)?)?.checked_add_signed(by)?;
        Some(Edit::Replace(key, value.to_string().into_bytes().into()))
    };
    let edits = [moved("prompt_tokens", -1)?, moved("completion_tokens", 1)?];
    let pieces = json::splice(usage, &object, &edits);
    let mut out = Vec::with_capacity(usage.len() + 2);
    json::put_pieces(&mut out, usage, &pieces);
    Some(out)
}
