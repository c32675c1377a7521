//! P's one token as the first event of D's stream: the surgery, byte by byte.
//!
//! ```text
//!  D:       role | "one" | " two" | finish | [DONE]         the events as D sends them
//!  client:  role | P's   | " two" | finish | [DONE]         P's token wears D's id, created and model
//! ```
//!
//! * P's event is D's first event with other `choices`, so that id, created, model and whatever else D
//!   puts into each event are D's. It goes out behind D's role event (chat), else in front of the first
//!   event that has choices.
//! * From there on the text of P's token is taken off the front of D's text: an event that is all of it
//!   is dropped, one that has more keeps the rest (engines join tokens when their client is slow), one
//!   that has less waits for the next (engines hold text back that could begin a stop string). All other
//!   bytes pass as D sent them.
//! * If D's first text is another than P's, its first token event is dropped all the same, and
//!   [`End::Differed`] tells.
//! * An event that must go but carries a `finish_reason` stays, with its text emptied.
//! * What is no token event as expected (an error, reasoning, a tool call, an end without text) ends the
//!   surgery; if P's token has not gone out by then, it does not.

use std::borrow::Cow;
use std::ops::Range;

use super::json::{self, Edit, Object, string_value};
use super::sse;

/// An event larger than this is no token event.
const HELD_MAX: usize = 1 << 20;
const DEPTH_MAX: usize = 64;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// P's token went out, and D's text began with it.
    Same,
    /// P's token went out, and D had begun with another: the text is not that of either.
    Differed,
    /// The stream is D's alone.
    Unused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// P's token is not out yet.
    Waiting,
    /// It is, and `left` of its text has still to come from D.
    Stripping,
    Over(End),
}

/// Fed with D's payload, gives the client's.
#[derive(Debug, Clone)]
pub struct FirstToken {
    chat: bool,
    /// P's text as JSON has it, without quotes.
    raw: Vec<u8>,
    text: Vec<u8>,
    left: Vec<u8>,
    /// The half event at the end of what was fed.
    held: Vec<u8>,
    searched: usize,
    state: State,
}

impl FirstToken {
    pub fn new(token: &Token<'_>, chat: bool) -> FirstToken {
        FirstToken {
            chat,
            raw: token.raw.to_vec(),
            text: token.text.to_vec(),
            left: token.text.to_vec(),
            held: Vec::new(),
            searched: 0,
            state: State::Waiting,
        }
    }

    /// Nothing of a token has gone out yet.
    pub fn waiting(&self) -> bool {
        self.state == State::Waiting
    }

    /// Whatever comes now passes as it is.
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Over(end) => Some(end),
            _ => None,
        }
    }

    /// Takes the next bytes of D's payload, and appends what the client gets of them.
    pub fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if self.end().is_some() {
            out.extend_from_slice(payload);
            return;
        }
        self.held.extend_from_slice(payload);
        let held = std::mem::take(&mut self.held);
        let mut at = 0;
        while self.end().is_none()
            && let Some(end) = sse::event_end(&held[at..], self.searched)
        {
            self.searched = 0;
            self.event(&held[at..at + end], out);
            at += end;
        }
        let rest = &held[at..];
        if rest.len() > HELD_MAX {
            self.give_up();
        }
        if self.end().is_some() {
            out.extend_from_slice(rest);
        } else {
            self.searched = rest.len();
            self.held.extend_from_slice(rest);
        }
    }

    /// D's payload is over: what is still held passes.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.give_up();
    }

    fn give_up(&mut self) {
        self.state = match self.state {
            State::Waiting => State::Over(End::Unused),
            State::Stripping => State::Over(End::Differed),
            over => over,
        };
    }

    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) {
        let Some(data) = sse::data_of(event) else {
            // A comment, or a blank line to keep the connection alive.
            return out.extend_from_slice(event);
        };
        let what = match read_event(event, data, self.chat) {
            Read::Piece(what) => what,
            Read::Empty => return out.extend_from_slice(event),
            Read::Other => {
                self.give_up();
                return out.extend_from_slice(event);
            }
        };
        if self.state == State::Stripping {
            return self.strip(event, &what, out);
        }
        match (what.text.is_empty(), what.finished, what.role) {
            // D ended without a token. It is D who knows.
            (true, true, _) => {
                self.give_up();
                out.extend_from_slice(event);
            }
            (true, false, _) => {
                out.extend_from_slice(event);
                what.put_token(event, &self.raw, self.chat, out);
                self.state = State::Stripping;
            }
            // Role and token in one event: it cannot be dropped, so D's token it is.
            (false, _, true) => {
                self.give_up();
                out.extend_from_slice(event);
            }
            (false, _, false) => {
                what.put_token(event, &self.raw, self.chat, out);
                self.state = State::Stripping;
                self.strip(event, &what, out);
            }
        }
    }

    fn strip(&mut self, event: &[u8], what: &Piece<'_>, out: &mut Vec<u8>) {
        let text = what.text.as_ref();
        if text.is_empty() {
            if what.finished {
                self.give_up();
            }
            return out.extend_from_slice(event);
        }
        let rest: Option<&[u8]> = if self.left.starts_with(text) {
            self.left.drain(..text.len());
            if self.left.is_empty() {
                self.state = State::Over(End::Same);
            } else if what.finished {
                self.give_up();
            }
            None
        } else if let Some(rest) = text.strip_prefix(self.left.as_slice()) {
            self.state = State::Over(End::Same);
            Some(rest)
        } else if self.left.len() == self.text.len() {
            self.give_up();
            None
        } else {
            // It began like P's token and went on otherwise: nothing of this event was said before.
            self.give_up();
            return out.extend_from_slice(event);
        };
        match rest {
            Some(rest) => what.put_text(event, rest, out),
            None if what.finished => what.put_text(event, b"", out),
            None => {}
        }
    }
}

/// What an event is to us.
enum Read<'a> {
    Piece(Piece<'a>),
    /// It has no choices (usage).
    Empty,
    /// The end, an error, or nothing that we know.
    Other,
}

/// A piece of the one choice's text.
struct Piece<'a> {
    data: Range<usize>,
    /// The index of the event's JSON.
    object: Object,
    /// Between the text's quotes, in the event. `None` if it is null or not there.
    place: Option<Range<usize>>,
    text: Cow<'a, [u8]>,
    role: bool,
    finished: bool,
}

impl Piece<'_> {
    /// The event with these choices' text put in the place of its own.
    fn put_text(&self, event: &[u8], text: &[u8], out: &mut Vec<u8>) {
        let Some(place) = &self.place else {
            return out.extend_from_slice(event);
        };
        out.extend_from_slice(&event[..place.start]);
        let mut quoted = Vec::with_capacity(text.len() + 2);
        json::put_string(&mut quoted, &String::from_utf8_lossy(text));
        out.extend_from_slice(&quoted[1..quoted.len() - 1]);
        out.extend_from_slice(&event[place.end..]);
    }

    /// P's token as an event like this one.
    fn put_token(&self, event: &[u8], raw: &[u8], chat: bool, out: &mut Vec<u8>) {
        let mut choices = b"[".to_vec();
        put_choice(&mut choices, raw, chat, b"null", None);
        choices.push(b']');
        let edits = [
            Edit::Set("choices", Cow::Owned(choices)),
            // That of D's own token comes with D's own events.
            Edit::Replace("usage", Cow::Borrowed(b"null")),
        ];
        let data = &event[self.data.clone()];
        let pieces = json::splice(data, &self.object, &edits);
        out.extend_from_slice(&event[..self.data.start]);
        json::put_pieces(out, data, &pieces);
        out.extend_from_slice(&event[self.data.end..]);
    }
}

fn read_event(event: &[u8], data: Range<usize>, chat: bool) -> Read<'_> {
    let bytes = &event[data.clone()];
    let Ok(object) = Object::scan(bytes, DEPTH_MAX) else {
        return Read::Other;
    };
    if set(object.get(bytes, "error")) {
        return Read::Other;
    }
    let Some(choices) = object.range(bytes, "choices") else {
        return Read::Other;
    };
    let Some((choice, at)) = only(&bytes[choices.clone()]) else {
        return match nothing(&bytes[choices]) {
            true => Read::Empty,
            false => Read::Other,
        };
    };
    let base = data.start + choices.start + at.start;
    let bytes = &event[base..data.start + choices.start + at.end];
    let finished = set(choice.get(bytes, "finish_reason"));
    let (inner, base, role) = if chat {
        let Some(delta) = choice.range(bytes, "delta") else {
            return Read::Other;
        };
        let bytes = &bytes[delta.clone()];
        let Ok(inner) = Object::scan(bytes, DEPTH_MAX) else {
            return Read::Other;
        };
        if OTHER_TEXT.iter().any(|key| set(inner.get(bytes, key))) {
            return Read::Other;
        }
        let role = set(inner.get(bytes, "role"));
        (inner, base + delta.start, role)
    } else {
        (choice, base, false)
    };
    let bytes = &event[base..];
    let place = match inner.range(bytes, if chat { "content" } else { "text" }) {
        Some(value) if bytes[value.start] == b'"' => {
            Some(base + value.start + 1..base + value.end - 1)
        }
        Some(value) if &bytes[value.clone()] != b"null" => return Read::Other,
        _ => None,
    };
    let text = match &place {
        Some(place) => json::unescape(&event[place.clone()]),
        None => Cow::Borrowed(&b""[..]),
    };
    Read::Piece(Piece {
        data,
        object,
        place,
        text,
        role,
        finished,
    })
}

/// Members of a chat's message or delta that say something other than text.
const OTHER_TEXT: [&str; 6] = [
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
];

/// The one object in an array of one, and where it is in the array.
fn only(array: &[u8]) -> Option<(Object, Range<usize>)> {
    let inner = array.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let object = Object::scan(inner, DEPTH_MAX).ok()?;
    let start = 1 + inner.len() - inner.trim_ascii_start().len();
    Some((object, start..start + inner.trim_ascii().len()))
}

/// An empty array or object.
fn nothing(value: &[u8]) -> bool {
    match value {
        [b'[', rest @ .., b']'] | [b'{', rest @ .., b'}'] => rest.trim_ascii().is_empty(),
        _ => false,
    }
}

/// There, and something else than null, false or empty.
fn set(value: Option<&[u8]>) -> bool {
    value.is_some_and(|v| !matches!(v, b"null" | b"false" | b"\"\"") && !nothing(v))
}

/// One choice of a stream's event. `stop_reason`: as JSON, if the engine knows such a thing.
fn put_choice(out: &mut Vec<u8>, raw: &[u8], chat: bool, finish: &[u8], stop: Option<&[u8]>) {
    let open: &[u8] = if chat {
        br#"{"index":0,"delta":{"content":""#
    } else {
        br#"{"index":0,"text":""#
    };
    out.extend_from_slice(open);
    out.extend_from_slice(raw);
    out.extend_from_slice(if chat { b"\"}" } else { b"\"" });
    out.extend_from_slice(br#","logprobs":null,"finish_reason":"#);
    out.extend_from_slice(finish);
    if let Some(stop) = stop {
        out.extend_from_slice(br#","stop_reason":"#);
        out.extend_from_slice(stop);
    }
    out.push(b'}');
}

/// The one token of a prefill answer.
#[derive(Debug, PartialEq)]
pub struct Token<'a> {
    pub text: Cow<'a, [u8]>,
    /// The same as JSON, without quotes.
    pub raw: &'a [u8],
    /// `finish_reason` as JSON.
    finish: &'a [u8],
    /// `stop_reason` as JSON, if the engine has such a member.
    stop: Option<&'a [u8]>,
}

impl<'a> Token<'a> {
    /// `None` if the answer is not one choice of plain text.
    pub fn of(answer: &'a [u8], object: &Object, chat: bool) -> Option<Token<'a>> {
        let choices = object.get(answer, "choices")?;
        let (choice, at) = only(choices)?;
        let choice_bytes = &choices[at];
        let value = if chat {
            let message = choice.get(choice_bytes, "message")?;
            let inner = Object::scan(message, DEPTH_MAX).ok()?;
            if OTHER_TEXT.iter().any(|key| set(inner.get(message, key))) {
                return None;
            }
            inner.get(message, "content")?
        } else {
            choice.get(choice_bytes, "text")?
        };
        let value = if value == b"null" { b"\"\"" } else { value };
        Some(Token {
            text: string_value(value)?,
            raw: value.strip_prefix(b"\"")?.strip_suffix(b"\"")?,
            finish: choice.get(choice_bytes, "finish_reason").unwrap_or(b"null"),
            stop: choice.get(choice_bytes, "stop_reason"),
        })
    }

    /// P says that there is nothing after this token. `length` is our own doing. Engines that give no
    /// `stop_reason` are only believed with an empty text: xPyD's dummy nodes always say "stop", xpyd-sim
    /// does after one token (with a `stop_reason` of null), and to ask D is never wrong.
    pub fn ended(&self) -> bool {
        let named = self.stop.is_some_and(|reason| reason != b"null");
        !matches!(self.finish, b"null" | b"\"length\"") && (named || self.text.is_empty())
    }

    /// Can it stand for itself? Not if it is empty or half a character (D's first event then has other
    /// text), nor if its end could begin one of these stop strings (D might hold it back, or take it
    /// away). `stop`: the request's member.
    pub fn whole(&self, stop: Option<&[u8]>) -> bool {
        let text = self.text.as_ref();
        if text.is_empty() || memchr::memmem::find(text, "\u{fffd}".as_bytes()).is_some() {
            return false;
        }
        let Some(stops) = strings(stop.unwrap_or(b"null")) else {
            return false;
        };
        !stops.iter().any(|stop| {
            (1..=stop.len().min(text.len())).any(|n| text.ends_with(&stop[..n]))
                || (!stop.is_empty() && memchr::memmem::find(text, stop).is_some())
        })
    }
}

/// A string, or an array of them. `None` for anything else.
fn strings(value: &[u8]) -> Option<Vec<Cow<'_, [u8]>>> {
    if value == b"null" {
        return Some(Vec::new());
    }
    if let Some(one) = string_value(value) {
        return Some(vec![one]);
    }
    let mut rest = value.strip_prefix(b"[")?.strip_suffix(b"]")?.trim_ascii();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = string_end(rest)?;
        all.push(string_value(&rest[..end])?);
        rest = rest[end..].trim_ascii_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(b",")?.trim_ascii_start();
        }
    }
    Some(all)
}

/// Behind the closing quote of the string that `text` begins with.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = text.starts_with(b"\"").then_some(1)?;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The stream that P's answer is when P has said it all.
pub fn whole_stream(answer: &[u8], object: &Object, token: &Token, ask: &Ask) -> Vec<u8> {
    let chat = ask.chat;
    let mut out = Vec::with_capacity(answer.len() + 1024);
    let open = |out: &mut Vec<u8>| {
        out.extend_from_slice(b"data: {");
        for key in ["id", "created", "model", "system_fingerprint"] {
            if let Some(value) = object.get(answer, key) {
                json::put_string(out, key);
                out.push(b':');
                out.extend_from_slice(value);
                out.push(b',');
            }
        }
        out.extend_from_slice(br#""object":"#);
        let kind = if chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        json::put_string(out, kind);
        out.extend_from_slice(br#","choices":["#);
    };
    if chat {
        open(&mut out);
        out.extend_from_slice(
            br#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null"#,
        );
        out.extend_from_slice(br#","finish_reason":null}]}"#);
        out.extend_from_slice(b"\n\n");
    }
    if !token.text.is_empty() {
        open(&mut out);
        put_choice(&mut out, token.raw, chat, b"null", None);
        out.extend_from_slice(b"]}\n\n");
    }
    open(&mut out);
    put_choice(&mut out, b"", chat, token.finish, token.stop);
    out.extend_from_slice(b"]}\n\n");
    if ask.usage
        && let Some(usage) = object.get(answer, "usage")
    {
        open(&mut out);
        out.extend_from_slice(br#"],"usage":"#);
        out.extend_from_slice(usage);
        out.extend_from_slice(b"}\n\n");
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
    out
}

/// What a request says about its first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub chat: bool,
    /// `stream_options.include_usage`.
    pub usage: bool,
    /// Two engines may give two first tokens: it is sampled, and no seed says how.
    pub unseeded: bool,
}

/// Members with which P's token is not, or not alone, what D's first event would say.
const DECODE_FIRST: [&str; 14] = [
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "suffix",
    "audio",
    "use_beam_search",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "include_reasoning",
    "reasoning_effort",
    "thinking",
];

impl Ask {
    /// `None` if the first token has to be D's: several choices or prompts, or anything that hangs on
    /// the token besides its text.
    pub fn of(body: &[u8], object: &Object, prompts: usize, chat: bool) -> Option<Ask> {
        let streamed = object.get(body, "stream") == Some(b"true");
        Ask::of_any(body, object, prompts, chat).filter(|_| streamed)
    }

    /// The same, whether it is a stream or not.
    pub fn of_any(body: &[u8], object: &Object, prompts: usize, chat: bool) -> Option<Ask> {
        let get = |key| object.get(body, key);
        let plain = |key, allowed: &[u8]| get(key).is_none_or(|v| v == b"null" || v == allowed);
        let one = prompts == 1 && plain("n", b"1") && plain("best_of", b"1");
        // P is asked without it, so it may end where D must not.
        let free = plain("min_tokens", b"0");
        if !(one && free) || DECODE_FIRST.iter().any(|key| set(get(key))) {
            return None;
        }
        let options = get("stream_options").unwrap_or(b"null");
        let inner = Object::scan(options, DEPTH_MAX).unwrap_or_default();
        if set(inner.get(options, "continuous_usage_stats")) {
            return None;
        }
        let greedy = number(get("temperature")).is_some_and(|t| t < GREEDY_BELOW)
            || number(get("top_k")) == Some(1.0);
        Some(Ask {
            chat,
            usage: inner.get(options, "include_usage") == Some(b"true"),
            unseeded: !greedy && plain("seed", b"null"),
        })
    }
}

/// vLLM takes temperatures below this for 0.
const GREEDY_BELOW: f64 = 1e-5;

fn number(value: Option<&[u8]>) -> Option<f64> {
    std::str::from_utf8(value?).ok()?.parse().ok()
}
