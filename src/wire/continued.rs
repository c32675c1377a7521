//! A stream or answer that D has gone on with from P's token: P's token goes in front, and all of it is one
//! answer, with one id and a usage that counts the token as made.
//!
//! ```text
//!  D:              | " two" | " three" | finish | usage | [DONE]
//!  client:  "one"  | " two" | " three" | finish | usage'| [DONE]        completions
//!  client:  role | "one" | " two" ..., each as chat.completion.chunk    chat, answered by completions
//! ```
//!
//! For a chat without a token of P's, only the role goes in front.

use std::borrow::Cow;
use std::ops::Range;

use super::first_token::Token;
use super::json::{self, Edit, Object};
use super::lmcache::corrected_usage;
use super::{sse, transcode};

/// An event larger than this is none that we know.
const HELD_MAX: usize = 4 << 20;
const DEPTH_MAX: usize = 64;

/// What the client's answer takes from P's.
#[derive(Debug, Clone, Default)]
pub struct Opening {
    pub chat: bool,
    /// As JSON, with quotes.
    id: Option<Vec<u8>>,
    created: Option<Vec<u8>>,
    model: Option<Vec<u8>>,
    /// P's token as JSON, without quotes; empty: D makes them all.
    text: String,
    choices: u32,
}

impl Opening {
    /// `token`: what D goes on from. `choices`: how many a chat has.
    pub fn of(
        answer: &[u8],
        object: &Object,
        chat: bool,
        token: Option<&Token<'_>>,
        choices: u32,
    ) -> Opening {
        let member = |key| object.get(answer, key).map(<[u8]>::to_vec);
        let id = member("id").filter(|id| id.starts_with(b"\""));
        Opening {
            chat,
            id: if chat {
                id.map(|id| transcode::chat_id(&id))
            } else {
                id
            },
            created: member("created"),
            model: member("model"),
            text: token.map_or(String::new(), |t| {
                String::from_utf8_lossy(t.raw).into_owned()
            }),
            choices,
        }
    }

    fn has_token(&self) -> bool {
        !self.text.is_empty()
    }

    /// What goes in front of D's events.
    fn put(&self, out: &mut Vec<u8>) {
        if self.chat {
            for index in 0..self.choices {
                self.put_event(out, |out| {
                    out.extend_from_slice(br#"{"index":"#);
                    out.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
                    out.extend_from_slice(br#","delta":{"role":"assistant","content":""},"#);
                    out.extend_from_slice(br#""logprobs":null,"finish_reason":null}"#);
                });
            }
        }
        if self.has_token() {
            self.put_event(out, |out| {
                let open: &[u8] = match self.chat {
                    true => br#"{"index":0,"delta":{"content":""#,
                    false => br#"{"index":0,"text":""#,
                };
                let close: &[u8] = match self.chat {
                    true => br#""},"logprobs":null,"finish_reason":null}"#,
                    false => br#"","logprobs":null,"finish_reason":null,"stop_reason":null}"#,
                };
                out.extend_from_slice(open);
                out.extend_from_slice(self.text.as_bytes());
                out.extend_from_slice(close);
            });
        }
    }

    fn put_event(&self, out: &mut Vec<u8>, choice: impl FnOnce(&mut Vec<u8>)) {
        out.extend_from_slice(b"data: {");
        self.put_members(out, |_| None);
        out.extend_from_slice(br#""choices":["#);
        choice(out);
        let end: &[u8] = if self.chat {
            b"]}\n\n"
        } else {
            b"],\"usage\":null}\n\n"
        };
        out.extend_from_slice(end);
    }

    /// id, object, created and model, each with a comma behind it. `other`: where P said nothing.
    fn put_members<'a>(&self, out: &mut Vec<u8>, other: impl Fn(&str) -> Option<&'a [u8]>) {
        let kind: &[u8] = match self.chat {
            true => br#""chat.completion.chunk""#,
            false => br#""text_completion""#,
        };
        let said = [
            ("id", &self.id),
            ("created", &self.created),
            ("model", &self.model),
        ];
        for (i, (key, value)) in said.into_iter().enumerate() {
            if let Some(value) = value.as_deref().or_else(|| other(key)) {
                transcode::put_member(out, key, value);
            }
            if i == 0 {
                transcode::put_member(out, "object", kind);
            }
        }
    }

    /// The edits that make D's whole answer the client's. `None`: it is not what a completion looks like.
    pub fn edits(&self, answer: &[u8], object: &Object) -> Option<Vec<Edit>> {
        let choices = object.get(answer, "choices")?;
        let mut told = Vec::with_capacity(choices.len() + 256);
        let mut edits = Vec::with_capacity(6);
        if self.chat {
            transcode::put_messages(&mut told, choices, &self.text)?;
            let kind = Cow::Borrowed(&br#""chat.completion""#[..]);
            edits.push(Edit::Set("object", kind));
        } else {
            transcode::put_lengthened(&mut told, choices, &self.text)?;
        }
        edits.push(Edit::Set("choices", Cow::Owned(told)));
        if let Some(id) = &self.id {
            edits.push(Edit::Set("id", Cow::Owned(id.clone())));
        }
        if self.has_token()
            && let Some(usage) = object.get(answer, "usage").and_then(corrected_usage)
        {
            edits.push(Edit::Set("usage", Cow::Owned(usage)));
        }
        edits.push(Edit::Remove(super::openai::KV_PARAMS));
        Some(edits)
    }
}

/// Fed with D's payload, gives the client's.
#[derive(Debug, Clone)]
pub struct Continued {
    opening: Opening,
    /// What went in front is out.
    begun: bool,
    /// A token is out.
    told: bool,
    /// D says all as it is to be said, so that the rest can pass.
    over: bool,
    /// D's events carry a usage.
    usage: bool,
    /// The half event at the end of what was fed.
    held: Vec<u8>,
    searched: usize,
}

impl Continued {
    /// `usage`: the client has asked for one.
    pub fn new(opening: Opening, usage: bool) -> Continued {
        Continued {
            opening,
            begun: false,
            told: false,
            over: false,
            usage,
            held: Vec::new(),
            searched: 0,
        }
    }

    /// No token has gone out yet.
    pub fn waiting(&self) -> bool {
        !self.told
    }

    /// Whatever comes now passes as it is.
    pub fn over(&self) -> bool {
        self.over
    }

    /// Takes the next bytes of D's payload (there may be none yet), and appends what the client gets.
    pub fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if !self.begun {
            self.begun = true;
            self.told = self.opening.has_token();
            self.opening.put(out);
        }
        if self.over {
            return out.extend_from_slice(payload);
        }
        self.held.extend_from_slice(payload);
        let held = std::mem::take(&mut self.held);
        let mut at = 0;
        while !self.over
            && let Some(end) = sse::event_end(&held[at..], self.searched)
        {
            self.searched = 0;
            self.event(&held[at..at + end], out);
            at += end;
        }
        let rest = &held[at..];
        if self.over || rest.len() > HELD_MAX {
            self.over = true;
            out.extend_from_slice(rest);
        } else {
            self.searched = rest.len();
            self.held.extend_from_slice(rest);
        }
    }

    /// D's payload is over: what is still held passes.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.over = true;
    }

    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) {
        self.told = true;
        let told = sse::data_of(event).and_then(|data| {
            let bytes = &event[data.clone()];
            let object = Object::scan(bytes, DEPTH_MAX).ok()?;
            // An error is told as it is.
            object.get(bytes, "choices")?;
            match self.opening.chat {
                true => self.chunk(bytes, &object, out),
                false => self.same(event, data, &object, out),
            }
        });
        if told.is_none() {
            out.extend_from_slice(event);
        }
    }

    /// A completion's event as a chat's. The end of it is a blank line.
    fn chunk(&mut self, bytes: &[u8], object: &Object, out: &mut Vec<u8>) -> Option<()> {
        let mut choices = Vec::with_capacity(bytes.len());
        transcode::put_deltas(&mut choices, object.get(bytes, "choices")?)?;
        out.extend_from_slice(b"data: {");
        self.opening.put_members(out, |key| object.get(bytes, key));
        out.extend_from_slice(br#""choices":"#);
        out.extend_from_slice(&choices);
        if let Some(usage) = object.get(bytes, "usage").filter(|_| self.usage) {
            out.extend_from_slice(br#","usage":"#);
            out.extend_from_slice(&self.usage_of(usage));
        }
        out.extend_from_slice(b"}\n\n");
        Some(())
    }

    fn usage_of<'a>(&self, usage: &'a [u8]) -> Cow<'a, [u8]> {
        match self.opening.has_token() {
            true => corrected_usage(usage).map_or(Cow::Borrowed(usage), Cow::Owned),
            false => Cow::Borrowed(usage),
        }
    }

    /// D's own event, with the id and the time of the answer's beginning.
    fn same(
        &mut self,
        event: &[u8],
        data: Range<usize>,
        object: &Object,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let bytes = &event[data.clone()];
        let mut edits = Vec::new();
        let said = [("id", &self.opening.id), ("created", &self.opening.created)];
        for (key, value) in said {
            if let Some(value) = value.as_deref()
                && object.get(bytes, key).is_some_and(|theirs| theirs != value)
            {
                edits.push(Edit::Replace(key, Cow::Owned(value.to_vec())));
            }
        }
        if let Some(usage) = object.get(bytes, "usage").and_then(corrected_usage) {
            edits.push(Edit::Replace("usage", Cow::Owned(usage)));
        }
        if edits.is_empty() {
            // Nothing of it is said otherwise, nor will be.
            self.over = !self.usage;
            return None;
        }
        out.extend_from_slice(&event[..data.start]);
        json::put_pieces(out, bytes, &json::splice(bytes, object, &edits));
        out.extend_from_slice(&event[data.end..]);
        Some(())
    }
}
