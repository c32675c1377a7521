//! What a conversation has said so far, as a digest: does this request go on from where the last turn ended?
//!
//! KV is right only for the very tokens it was made of, so what is compared is *meaning*, and whatever might
//! change a prompt counts: all messages as they were sent, the answer as the engine gave it, the model, the
//! tools, every member that is not known to leave the prompt alone. White space between JSON tokens and the
//! spelling of escapes do not count. In doubt a turn is another conversation, and is computed again.
//!
//! | request | goes on if |
//! |---|---|
//! | chat | it begins with the messages of the last turn, then the assistant's with the text answered |
//! | completion, text | its prompt begins with the last prompt and the text that was answered |
//! | completion, token ids | the same, with the ids that were answered |

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::json::{Object, elements, string_value, unescape};
use super::kv_tap::{Said, put_id};

/// Members that leave the prompt as it is, or are compared by themselves.
const NO_MATTER: &[&str] = &[
    "best_of",
    "conversation_id",
    "frequency_penalty",
    "ignore_eos",
    "kv_transfer_params",
    "length_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "priority",
    "prompt",
    "prompt_logprobs",
    "repetition_penalty",
    "request_id",
    "return_token_ids",
    "seed",
    "service_tier",
    "stop",
    "stop_token_ids",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
];

/// Members that make the answer something else than what came out of the engine.
const UNREPEATABLE: &[&str] = &["echo", "include_stop_str_in_output", "use_beam_search"];

/// How a prompt is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
    Ids,
}

impl Form {
    pub const ALL: [Form; 3] = [Form::Chat, Form::Text, Form::Ids];

    pub const fn name(self) -> &'static str {
        match self {
            Form::Chat => "chat",
            Form::Text => "text",
            Form::Ids => "ids",
        }
    }
}

/// Where a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    pub form: Form,
    /// Messages before the answer; bytes or ids with it.
    pub count: u64,
    pub digest: [u8; 32],
}

/// The request of a turn, to be compared with where the last one ended.
pub struct Asked<'a> {
    form: Form,
    /// `messages`, or `prompt`.
    value: &'a [u8],
    about: Sha256,
}

impl<'a> Asked<'a> {
    /// `None`: it is of a kind that cannot be compared (a batch, no prompt), and is its own conversation.
    pub fn of(body: &'a [u8], object: &Object) -> Option<Asked<'a>> {
        let (form, value) = match (object.get(body, "messages"), object.get(body, "prompt")) {
            (Some(messages), None) if messages.starts_with(b"[") => (Form::Chat, messages),
            (None, Some(prompt)) if prompt.starts_with(b"\"") => (Form::Text, prompt),
            (None, Some(prompt)) if prompt.starts_with(b"[") => {
                let mut ids = elements(prompt).peekable();
                ids.peek()?;
                if !ids.all(|id| id.iter().all(u8::is_ascii_digit)) {
                    return None;
                }
                (Form::Ids, prompt)
            }
            _ => return None,
        };
        let set = |key: &&str| !matches!(object.get(body, key), None | Some(b"false" | b"null"));
        if UNREPEATABLE.iter().any(set) {
            return None;
        }
        Some(Asked {
            form,
            value,
            about: about(body, object, form),
        })
    }

    /// Does it go on from there?
    pub fn continues(&self, past: &Past) -> bool {
        if past.form != self.form {
            return false;
        }
        let mut hash = self.about.clone();
        let count = usize::try_from(past.count).unwrap_or(usize::MAX);
        match self.form {
            Form::Chat => {
                let mut messages = elements(self.value);
                for message in messages.by_ref().take(count) {
                    put_message(&mut hash, message);
                }
                let Some(answer) = messages.next().and_then(answered) else {
                    return false;
                };
                hash.update(&answer);
            }
            Form::Text => {
                let text = string_value(self.value).unwrap_or_default();
                let Some(start) = text.get(..count) else {
                    return false;
                };
                hash.update(start);
            }
            Form::Ids => {
                let mut seen = 0;
                for id in elements(self.value).take(count) {
                    put_id(&mut hash, id);
                    seen += 1;
                }
                if seen < count {
                    return false;
                }
            }
        }
        past.digest == <[u8; 32]>::from(hash.finalize())
    }

    /// To listen to the answer with; what it becomes is for [`Answering::past`].
    pub fn answering(&self) -> (Said, Answering) {
        let mut hash = self.about.clone();
        let mut count = 0u64;
        match self.form {
            Form::Chat => {
                for message in elements(self.value) {
                    put_message(&mut hash, message);
                    count += 1;
                }
            }
            Form::Text => {
                let text = string_value(self.value).unwrap_or_default();
                hash.update(&text);
                count = text.len() as u64;
            }
            Form::Ids => {
                for id in elements(self.value) {
                    put_id(&mut hash, id);
                    count += 1;
                }
            }
        }
        let form = self.form;
        let said = Said::after(hash, form == Form::Ids);
        (said, Answering { form, count })
    }
}

/// A turn that is being answered.
#[derive(Debug, Clone, Copy)]
pub struct Answering {
    form: Form,
    count: u64,
}

impl Answering {
    /// Where it ended, if the next request can be held to that.
    pub fn past(self, said: Said) -> Option<Past> {
        if said.more || said.length == 0 || (self.form == Form::Chat && said.padded()) {
            return None;
        }
        let count = match self.form {
            Form::Chat => self.count,
            Form::Text | Form::Ids => self.count + said.length,
        };
        Some(Past {
            form: self.form,
            count,
            digest: said.digest(),
        })
    }
}

/// All that a prompt may hang on besides itself; the order of the members does not count.
fn about(body: &[u8], object: &Object, form: Form) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(form.name());
    let mut members: Vec<_> = object
        .members()
        .iter()
        .filter(|member| !NO_MATTER.iter().any(|key| member.is(body, key)))
        .map(|member| (member.key(body), &body[member.value()]))
        .filter(|(_, value)| *value != b"null")
        .collect();
    // Stable: of one name the last counts with engines, and all do here.
    members.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, value) in members {
        put_text(&mut hash, &key);
        put_value(&mut hash, value);
    }
    hash.update(b"\0");
    hash
}

fn put_message(hash: &mut Sha256, message: &[u8]) {
    put_value(hash, message);
    hash.update(b"\0");
}

/// A text, so that no other text and no other place of its end gives the same.
fn put_text(hash: &mut Sha256, text: &[u8]) {
    hash.update(b"\"");
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

/// A JSON value that was found to be well nested: its meaning, with members in their order.
fn put_value(hash: &mut Sha256, value: &[u8]) {
    let mut at = 0;
    let mut start = 0;
    while at < value.len() {
        match value[at] {
            b'"' => {
                hash.update(&value[start..at]);
                let end = string_end(value, at);
                let raw = &value[at + 1..end];
                let text = unescape(raw);
                put_text(hash, &text);
                if matches!(text, Cow::Owned(_)) && memchr::memmem::find(&text, REPLACED).is_some()
                {
                    // Half a surrogate has no other text: two of them are not the same.
                    put_text(hash, raw);
                }
                at = end + 1;
                start = at;
            }
            b' ' | b'\n' | b'\r' | b'\t' => {
                hash.update(&value[start..at]);
                // Between two numbers or words there is always something else, too.
                at += 1;
                start = at;
            }
            _ => at += 1,
        }
    }
    hash.update(&value[start.min(value.len())..]);
}

/// What stands for a character that is none.
const REPLACED: &[u8] = "\u{fffd}".as_bytes();

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

/// The text of an assistant's message that has nothing else. A lone text part is its text.
fn answered(message: &[u8]) -> Option<Cow<'_, [u8]>> {
    let object = Object::scan(message, super::kv_tap::DEPTH_MAX).ok()?;
    let mut text = None;
    let mut assistant = false;
    for member in object.members() {
        let value = &message[member.value()];
        if member.is(message, "role") {
            assistant = string_value(value).as_deref() == Some(b"assistant");
        } else if member.is(message, "content") {
            text = Some(content(value)?);
        } else if !nothing(value) {
            return None;
        }
    }
    text.filter(|_| assistant)
}

fn content(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    if let Some(text) = string_value(value) {
        return Some(text);
    }
    let mut parts = elements(value);
    let (part, None) = (parts.next()?, parts.next()) else {
        return None;
    };
    let object = Object::scan(part, super::kv_tap::DEPTH_MAX).ok()?;
    let kind = string_value(object.get(part, "type")?)?;
    let text = string_value(object.get(part, "text")?)?;
    (&*kind == b"text" && object.members().len() == 2).then_some(text)
}

/// Does a member with this value say nothing? Clients send back what they got, empty fields included.
fn nothing(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"") || {
        let inner = value
            .strip_prefix(b"[")
            .and_then(|v| v.strip_suffix(b"]"))
            .or_else(|| value.strip_prefix(b"{").and_then(|v| v.strip_suffix(b"}")));
        inner.is_some_and(|inner| inner.trim_ascii().is_empty())
    }
}
