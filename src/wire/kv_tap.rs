//! Taking `kv_transfer_params` out of an answer while it flows, and listening to what the answer says.
//!
//! A scan, not a parse: it follows strings and braces byte by byte and keeps no event. Nothing is held back
//! but the bytes of what may become the key (`,"kv_tra`), and those only while they may.
//!
//! * Only the top level of a `data:` line, or of the one object of a JSON answer, is meant: a model may say
//!   `"kv_transfer_params":` itself, and tools may have a member of that name.
//! * `null` stays: it tells nobody anything, and is what engines send that transfer nothing.
//! * What is no JSON passes as it is.

use super::json::unescape;
use sha2::{Digest, Sha256};

const KEY: &[u8] = super::openai::KV_PARAMS.as_bytes();
const DATA: &[u8] = b"data:";
/// Larger params are taken out and forgotten.
const PARAMS_MAX: usize = 1 << 20;
/// One string of the answer that is larger is not listened to.
const STRING_MAX: usize = 16 << 20;
/// White space around the key beyond this is no engine's, and nothing is taken out any more.
const HELD_MAX: usize = 4 << 10;
pub const DEPTH_MAX: usize = 64;
/// Members' names that are told apart are no longer than this.
const NAME_MAX: usize = 24;

/// What a member is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Other,
    Params,
    Error,
    Choices,
    Index,
    Text,
    /// `delta` or `message`.
    Message,
    Role,
    Content,
    TokenIds,
    StopReason,
}

fn name(key: &[u8]) -> Name {
    match key {
        KEY => Name::Params,
        b"error" => Name::Error,
        b"choices" => Name::Choices,
        b"index" => Name::Index,
        b"text" => Name::Text,
        b"delta" | b"message" => Name::Message,
        b"role" => Name::Role,
        b"content" => Name::Content,
        b"token_ids" => Name::TokenIds,
        b"stop_reason" => Name::StopReason,
        _ => Name::Other,
    }
}

/// Where in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So many bytes of `data:` have been seen at the start of a line.
    LineStart(u8),
    /// Before the first byte of a value at the top.
    Top,
    /// In a line that means nothing to us.
    Rest,
    /// The whole text is no JSON: it passes.
    GivenUp,
    /// Before a member's name, or the end of an object.
    Key,
    /// In a member's name; is it after a backslash?
    InKey(bool),
    Colon,
    Value,
    /// In a string value.
    InString(bool),
    /// In a number or a word.
    InScalar,
    AfterValue,
}

/// What is done with the bytes of the value that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Text,
    Id,
    Index,
    /// It must be empty, or the answer says more than its text.
    Empty,
}

/// What the answer says, as far as a later turn can be held to it.
#[derive(Debug, Clone)]
pub struct Said {
    /// Fed with the text, or with the token ids.
    hash: Sha256,
    ids: bool,
    /// Bytes of text, or token ids.
    pub length: u64,
    /// It says something that is no plain text, or in more than one voice: nobody can repeat it exactly.
    pub more: bool,
    first: u8,
    last: u8,
}

impl Said {
    /// `hash`: what comes before. `ids`: it is token ids that are repeated, not text.
    pub fn after(hash: Sha256, ids: bool) -> Said {
        Said {
            hash,
            ids,
            length: 0,
            more: false,
            first: 0,
            last: 0,
        }
    }

    fn text(&mut self, raw: &[u8]) {
        let text = unescape(raw);
        let (Some(first), Some(last)) = (text.first(), text.last()) else {
            return;
        };
        if self.length == 0 {
            self.first = *first;
        }
        self.last = *last;
        self.length += text.len() as u64;
        self.hash.update(&text);
    }

    fn id(&mut self, digits: &[u8]) {
        self.length += 1;
        put_id(&mut self.hash, digits);
    }

    /// Does it begin or end in white space? Chat templates trim that.
    pub fn padded(&self) -> bool {
        self.first.is_ascii_whitespace() || self.last.is_ascii_whitespace()
    }

    pub fn digest(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

/// A token id, as all who compare hash it.
pub fn put_id(hash: &mut Sha256, digits: &[u8]) {
    hash.update(digits);
    hash.update(b",");
}

/// Fed with an answer's payload, gives the client's.
#[derive(Debug)]
pub struct KvTap {
    /// An event stream; else one JSON object.
    events: bool,
    /// Nothing is taken out; the params are only copied.
    expose: bool,
    at: At,
    depth: usize,
    /// One bit per depth: an object (else an array).
    objects: u64,
    /// The names on the way down to here.
    names: [Name; 6],
    key: [u8; NAME_MAX],
    key_len: usize,
    /// Bytes of earlier feeds that may belong to the key.
    held: Vec<u8>,
    holding: bool,
    /// A comma is among them.
    comma: bool,
    /// The value is being taken out.
    taking: bool,
    /// It was the first member: the comma behind it goes as well.
    swallow: bool,
    /// The value is being copied, and is not too large.
    copying: bool,
    copy: Vec<u8>,
    too_large: bool,
    keep: Keep,
    scratch: Vec<u8>,
    params: Option<Vec<u8>>,
    said: Option<Said>,
    whole: bool,
}

impl KvTap {
    /// `said`: listens to what the answer says.
    pub fn new(events: bool, expose: bool, said: Option<Said>) -> KvTap {
        KvTap {
            events,
            expose,
            at: if events { At::LineStart(0) } else { At::Top },
            depth: 0,
            objects: 0,
            names: [Name::Other; 6],
            key: [0; NAME_MAX],
            key_len: 0,
            held: Vec::new(),
            holding: false,
            comma: false,
            taking: false,
            swallow: false,
            copying: false,
            copy: Vec::new(),
            too_large: false,
            keep: Keep::Nothing,
            scratch: Vec::new(),
            params: None,
            said,
            whole: false,
        }
    }

    /// The last params that were an object.
    pub fn params(&mut self) -> Option<Vec<u8>> {
        self.params.take()
    }

    pub fn said(&mut self) -> Option<Said> {
        self.said.take()
    }

    /// The answer came to its own end: `[DONE]`, or the last brace.
    pub fn whole(&self) -> bool {
        self.whole
    }

    /// Takes the next bytes of the payload, and appends what the client gets of them.
    pub fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let mut pass = Pass {
            payload,
            from: 0,
            copy_from: 0,
            out,
        };
        let mut i = 0;
        while i < payload.len() {
            i = self.step(i, &mut pass);
        }
        if self.copying {
            self.copied(&payload[pass.copy_from..]);
        }
        if self.holding {
            self.held.extend_from_slice(&payload[pass.from..]);
            if self.held.len() > HELD_MAX {
                pass.from = payload.len();
                self.release(&mut pass);
                self.give_up();
            }
        } else if !self.taking {
            pass.emit(payload.len());
        }
    }

    /// The payload is over: what is still held passes.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.holding = false;
        self.at = At::GivenUp;
    }

    /// One byte, or a run of bytes that change nothing. Gives where to go on.
    fn step(&mut self, i: usize, pass: &mut Pass) -> usize {
        let rest = &pass.payload[i..];
        let byte = rest[0];
        match self.at {
            At::GivenUp => return pass.payload.len(),
            At::Rest => {
                return match memchr::memchr(b'\n', rest) {
                    Some(n) => {
                        self.at = At::LineStart(0);
                        i + n + 1
                    }
                    None => pass.payload.len(),
                };
            }
            At::LineStart(seen) => {
                let seen = usize::from(seen);
                self.at = match byte {
                    b'\n' => At::LineStart(0),
                    b if b == DATA[seen] && seen + 1 == DATA.len() => At::Top,
                    b if b == DATA[seen] => At::LineStart(seen as u8 + 1),
                    _ => At::Rest,
                };
            }
            At::InKey(_) | At::InString(_) => return self.string(i, pass),
            // A line end is white space in a JSON answer and the end of all things in an event.
            _ if byte == b'\n' && self.events => {
                self.broken(i, pass);
                self.at = At::LineStart(0);
            }
            At::InScalar => return self.scalar(i, pass),
            _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => {}
            At::Top => match byte {
                b'{' => {
                    self.depth = 0;
                    self.open(true);
                }
                b'[' if self.events => {
                    // `[DONE]`
                    self.whole = true;
                    self.at = At::Rest;
                }
                _ => self.broken(i, pass),
            },
            At::Key => self.key_start(byte, i, pass),
            At::Colon if byte == b':' => self.at = At::Value,
            At::Value => self.value_start(byte, i, pass),
            At::AfterValue => self.after_value(byte, i, pass),
            At::Colon => self.broken(i, pass),
        }
        i + 1
    }

    /// No JSON after all: the rest of the line (or of the answer) passes.
    fn broken(&mut self, i: usize, pass: &mut Pass) {
        self.release(pass);
        if self.taking {
            pass.from = i;
        }
        self.give_up();
    }

    fn give_up(&mut self) {
        self.at = if self.events { At::Rest } else { At::GivenUp };
        self.taking = false;
        self.swallow = false;
        self.copying = false;
        self.copy.clear();
        self.keep = Keep::Nothing;
        self.scratch.clear();
        self.depth = 0;
    }

    fn hold(&mut self, i: usize, pass: &mut Pass) {
        if !self.expose && !self.holding {
            pass.emit(i);
            self.holding = true;
        }
    }

    fn release(&mut self, pass: &mut Pass) {
        if self.holding {
            pass.out.append(&mut self.held);
            self.holding = false;
            self.comma = false;
        }
    }

    fn open(&mut self, object: bool) {
        self.depth += 1;
        let bit = 1u64 << (self.depth - 1);
        if object {
            self.objects |= bit;
        } else {
            self.objects &= !bit;
        }
        self.at = if object { At::Key } else { At::Value };
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects & 1 << (self.depth - 1) != 0
    }

    /// `choices[..]`, an object of it.
    fn in_choice(&self) -> bool {
        self.depth >= 3 && self.names[0] == Name::Choices && self.objects & 0b110 == 0b100
    }

    fn in_message(&self) -> bool {
        self.depth >= 4
            && self.in_choice()
            && self.names[2] == Name::Message
            && self.objects & 0b1000 != 0
    }

    fn key_start(&mut self, byte: u8, i: usize, pass: &mut Pass) {
        match byte {
            b'"' => {
                if self.depth == 1 {
                    self.hold(i, pass);
                }
                self.key_len = 0;
                self.at = At::InKey(false);
                self.says_more(4);
            }
            b'}' => self.close(i, pass),
            _ => self.broken(i, pass),
        }
    }

    /// Something is inside a member of a message that should be empty.
    fn says_more(&mut self, above: usize) {
        if self.depth > above
            && self.in_message()
            && !matches!(self.names[3], Name::Role)
            && let Some(said) = &mut self.said
        {
            said.more = true;
        }
    }

    fn value_start(&mut self, byte: u8, i: usize, pass: &mut Pass) {
        let here = match self.in_object() {
            true => self.names.get(self.depth - 1).copied(),
            false => None,
        };
        if byte == b']' && !self.in_object() {
            return self.close(i, pass);
        }
        if self.depth == 1 && here == Some(Name::Params) && byte != b'n' {
            if self.holding {
                // With the comma in front of it, if there is one; else with the one behind.
                self.swallow = !self.comma;
                self.held.clear();
                self.holding = false;
                self.comma = false;
                self.taking = true;
            }
            self.copying = byte == b'{';
            self.too_large = false;
            self.copy.clear();
            pass.copy_from = i;
        }
        self.release(pass);
        self.says_more(4);
        self.keep = self.wanted(here, byte);
        match byte {
            b'"' => {
                self.scratch.clear();
                self.at = At::InString(false);
            }
            b'{' | b'[' if self.depth < DEPTH_MAX => {
                if self.keep == Keep::Empty {
                    self.keep = Keep::Nothing;
                }
                self.open(byte == b'{');
            }
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                self.scratch.clear();
                self.scratch.push(byte);
                self.at = At::InScalar;
            }
            _ => self.broken(i, pass),
        }
    }

    /// What becomes of the value that begins here.
    fn wanted(&mut self, here: Option<Name>, byte: u8) -> Keep {
        let (depth, choice, message) = (self.depth, self.in_choice(), self.in_message());
        let Some(said) = &mut self.said else {
            return Keep::Nothing;
        };
        let text = match said.ids {
            true => Keep::Nothing,
            false => Keep::Text,
        };
        match (depth, here) {
            (1, Some(Name::Error)) if byte != b'n' => said.more = true,
            (3, Some(Name::Text)) if choice && byte == b'"' => return text,
            (3, Some(Name::Index)) if choice => return Keep::Index,
            // The tokens of a stop string are in the KV, and not in the text.
            (3, Some(Name::StopReason)) if choice && byte == b'"' => said.more = true,
            (4, None) if choice && self.names[2] == Name::TokenIds && said.ids => return Keep::Id,
            (4, Some(Name::Role)) if message => {}
            (4, Some(Name::Content)) if message && byte == b'"' => return text,
            (4, Some(_)) if message => {
                return match byte {
                    b'"' | b'[' | b'{' => Keep::Empty,
                    b'n' => Keep::Nothing,
                    _ => {
                        said.more = true;
                        Keep::Nothing
                    }
                };
            }
            _ => {}
        }
        Keep::Nothing
    }

    /// Inside a key or a string: to its end, or to the end of what is here.
    fn string(&mut self, i: usize, pass: &mut Pass) -> usize {
        let (escaped, key) = match self.at {
            At::InKey(escaped) => (escaped, true),
            At::InString(escaped) => (escaped, false),
            _ => return i + 1,
        };
        let rest = &pass.payload[i..];
        let at = |escaped| match key {
            true => At::InKey(escaped),
            false => At::InString(escaped),
        };
        if self.events && rest[0] == b'\n' {
            self.broken(i, pass);
            self.at = At::LineStart(0);
            return i + 1;
        }
        if escaped {
            self.piece(&rest[..1], key, pass);
            self.at = at(false);
            return i + 1;
        }
        let end = rest
            .iter()
            .position(|b| matches!(b, b'"' | b'\\' | b'\n'))
            .unwrap_or(rest.len());
        if end > 0 {
            self.piece(&rest[..end], key, pass);
        }
        match rest.get(end) {
            None => return pass.payload.len(),
            Some(b'"') if key => self.key_end(pass),
            Some(b'"') => {
                self.value_end(i + end + 1, pass);
            }
            Some(b'\\') => {
                self.piece(b"\\", key, pass);
                self.at = at(true);
            }
            // A line end, which `rest[0]` handles in an event stream.
            Some(_) if self.events => return i + end,
            Some(_) => self.piece(b"\n", key, pass),
        }
        i + end + 1
    }

    fn piece(&mut self, bytes: &[u8], key: bool, pass: &mut Pass) {
        if key {
            for byte in bytes {
                if self.key_len < NAME_MAX {
                    self.key[self.key_len] = *byte;
                }
                self.key_len += 1;
            }
            let seen = &self.key[..self.key_len.min(NAME_MAX)];
            if self.holding && !KEY.starts_with(seen) {
                self.release(pass);
            }
            return;
        }
        match self.keep {
            Keep::Text if self.scratch.len() + bytes.len() <= STRING_MAX => {
                self.scratch.extend_from_slice(bytes);
            }
            Keep::Text | Keep::Empty => {
                if let Some(said) = &mut self.said {
                    said.more = true;
                }
            }
            _ => {}
        }
    }

    fn key_end(&mut self, pass: &mut Pass) {
        let found = match self.key.get(..self.key_len) {
            Some(key) => name(key),
            None => Name::Other,
        };
        if self.holding && found != Name::Params {
            self.release(pass);
        }
        if let Some(place) = self.names.get_mut(self.depth - 1) {
            *place = found;
        }
        self.at = At::Colon;
    }

    fn scalar(&mut self, i: usize, pass: &mut Pass) -> usize {
        let byte = pass.payload[i];
        let inside = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
        if inside {
            if self.scratch.len() < NAME_MAX {
                self.scratch.push(byte);
            }
            return i + 1;
        }
        self.value_end(i, pass);
        // This byte is still to be looked at.
        i
    }

    /// The value ends before `end`.
    fn value_end(&mut self, end: usize, pass: &mut Pass) {
        let keep = std::mem::replace(&mut self.keep, Keep::Nothing);
        if let Some(said) = &mut self.said {
            match keep {
                Keep::Text => said.text(&self.scratch),
                Keep::Id if self.scratch.iter().all(u8::is_ascii_digit) => said.id(&self.scratch),
                Keep::Id => said.more = true,
                Keep::Index if self.scratch != b"0" => said.more = true,
                _ => {}
            }
        }
        self.scratch.clear();
        if self.depth == 1 && self.names[0] == Name::Params {
            self.params_end(end, pass);
        }
        self.at = At::AfterValue;
    }

    fn params_end(&mut self, end: usize, pass: &mut Pass) {
        if self.copying {
            self.copied(&pass.payload[pass.copy_from..end]);
            self.copying = false;
            let copy = std::mem::take(&mut self.copy);
            if !self.too_large {
                self.params = Some(copy);
            }
        }
        if self.taking {
            self.taking = false;
            pass.from = end;
        }
    }

    fn copied(&mut self, bytes: &[u8]) {
        if self.copy.len() + bytes.len() > PARAMS_MAX {
            self.too_large = true;
            self.copy.clear();
        }
        if !self.too_large {
            self.copy.extend_from_slice(bytes);
        }
    }

    fn after_value(&mut self, byte: u8, i: usize, pass: &mut Pass) {
        match byte {
            b',' => {
                if self.swallow && self.depth == 1 {
                    self.swallow = false;
                    pass.emit(i);
                    pass.from = i + 1;
                } else if self.depth == 1 {
                    self.hold(i, pass);
                    self.comma = self.holding;
                }
                self.at = match self.in_object() {
                    true => At::Key,
                    false => At::Value,
                };
            }
            b'}' | b']' => self.close(i, pass),
            _ => self.broken(i, pass),
        }
    }

    /// A bracket closes at `i`.
    fn close(&mut self, i: usize, pass: &mut Pass) {
        if (pass.payload[i] == b'}') != self.in_object() {
            return self.broken(i, pass);
        }
        self.release(pass);
        self.depth -= 1;
        if self.depth > 0 {
            return self.value_end(i + 1, pass);
        }
        self.swallow = false;
        if self.events {
            self.at = At::Rest;
        } else {
            self.whole = true;
            self.at = At::GivenUp;
        }
    }
}

/// One feed.
struct Pass<'a> {
    payload: &'a [u8],
    /// What comes before it has gone out, or never will.
    from: usize,
    copy_from: usize,
    out: &'a mut Vec<u8>,
}

impl Pass<'_> {
    fn emit(&mut self, to: usize) {
        if self.from < to {
            self.out.extend_from_slice(&self.payload[self.from..to]);
            self.from = to;
        }
    }
}
