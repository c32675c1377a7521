//! Media items in a chat's messages, or in the `input` of a Responses body: where they stand, found in one pass and
//! without a copy.
//!
//! The body was found to be well nested before. What is malformed in another way ends the search: an
//! engine that gets the request will refuse it in its own words.

use std::ops::Range;

use super::json::{Patch, Piece, Pieces, patch, put_string, string_value, unescape};

/// What a content item holds. (Names: the OpenAI API and vLLM's extensions of it.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Image,
    Audio,
    InputAudio,
    Video,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Image, Kind::Audio, Kind::InputAudio, Kind::Video];

    /// The item's `type` in a chat, which is also the member that holds the media.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Image => "image_url",
            Kind::Audio => "audio_url",
            Kind::InputAudio => "input_audio",
            Kind::Video => "video_url",
        }
    }

    /// The `type` of an item that refers to what an encoder has made of this one.
    pub const fn embeds(self) -> &'static str {
        match self {
            Kind::Image => "image_embeds",
            Kind::Audio | Kind::InputAudio => "audio_embeds",
            Kind::Video => "video_embeds",
        }
    }

    /// The item's `type` in a Responses body, where it has one.
    const fn input_name(self) -> Option<&'static str> {
        match self {
            Kind::Image => Some("input_image"),
            Kind::InputAudio => Some("input_audio"),
            Kind::Audio | Kind::Video => None,
        }
    }

    pub const fn is_audio(self) -> bool {
        matches!(self, Kind::Audio | Kind::InputAudio)
    }
}

/// Which API a body is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `messages`
    Chat,
    /// `input`
    Responses,
}

/// One media item; ranges into the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: Kind,
    pub form: Form,
    /// The object, with its braces.
    pub whole: Range<usize>,
    /// The value of its `uuid`, whatever that is.
    pub uuid: Option<Range<usize>>,
    /// Where the media is, a string with its quotes; `None` for what comes without a url.
    pub url: Option<Range<usize>>,
}

impl Item {
    /// The name that the client gave it.
    pub fn given<'a>(&self, body: &'a [u8]) -> Option<std::borrow::Cow<'a, [u8]>> {
        let value = &body[self.uuid.clone()?];
        string_value(value).filter(|name| !name.is_empty())
    }

    /// What gives it this uuid.
    pub fn named(&self, uuid: &str) -> Patch {
        let mut with = Vec::with_capacity(uuid.len() + 12);
        let at = match &self.uuid {
            Some(range) => range.clone(),
            None => {
                with.extend_from_slice(br#","uuid":"#);
                self.whole.end - 1..self.whole.end - 1
            }
        };
        put_string(&mut with, uuid);
        Patch { at, with }
    }

    /// The item of a chat as pieces of the body, with a uuid if one is to be added.
    pub fn pieces(&self, uuid: Option<&str>) -> Pieces<'static> {
        let mut whole = Pieces::new();
        if let (Form::Responses, Kind::Image, Some(url)) = (self.form, self.kind, &self.url) {
            let own = |text: &'static [u8]| Piece::Own(text.into());
            whole.push(own(br#"{"type":"image_url","image_url":{"url":"#));
            whole.push(Piece::Source(url.clone()));
            whole.push(own(b"}}"));
            return whole;
        }
        whole.push(Piece::Source(self.whole.clone()));
        match uuid {
            Some(uuid) => patch(whole, &[self.named(uuid)]),
            None => whole,
        }
    }
}

/// The media in `messages[*].content`, in order of appearance. `messages`: where that value is.
pub fn items(body: &[u8], messages: Range<usize>) -> Vec<Item> {
    all(body, messages, Form::Chat)
}

/// The same of a Responses body's `input`, whose items are messages and what tools have given back. An image by
/// a file's id is left out: only the engine that was given the file knows it.
pub fn input_items(body: &[u8], input: Range<usize>) -> Vec<Item> {
    let mut found = all(body, input, Form::Responses);
    found.retain(|item| item.kind != Kind::Image || item.url.is_some());
    found
}

fn all(body: &[u8], messages: Range<usize>, form: Form) -> Vec<Item> {
    let mut found = Vec::new();
    let mut cursor = Cursor {
        bytes: &body[..messages.end],
        pos: messages.start,
    };
    let _malformed = cursor.array(|cursor| message(cursor, form, &mut found));
    found
}

fn message(cursor: &mut Cursor, form: Form, found: &mut Vec<Item>) -> Option<()> {
    if cursor.peek() != b'{' {
        return cursor.skip();
    }
    let before = found.len();
    cursor.object(|cursor, key| {
        let given_back = form == Form::Responses && cursor.is(&key, "output");
        if !given_back && !cursor.is(&key, "content") {
            return cursor.skip();
        }
        // Of two members of one name the last one counts.
        found.truncate(before);
        match cursor.peek() {
            b'[' => cursor.array(|cursor| item(cursor, form, found)),
            _ => cursor.skip(),
        }
    })
}

fn item(cursor: &mut Cursor, form: Form, found: &mut Vec<Item>) -> Option<()> {
    if cursor.peek() != b'{' {
        return cursor.skip();
    }
    let start = cursor.pos;
    let mut kind = None;
    let mut uuid = None;
    let mut urls: [Option<Range<usize>>; Kind::ALL.len()] = Default::default();
    cursor.object(|cursor, key| {
        let held = Kind::ALL.iter().find(|kind| cursor.is(&key, kind.name()));
        if let Some(held) = held {
            urls[*held as usize] = url(cursor)?;
            return Some(());
        }
        let (is_type, is_uuid) = (cursor.is(&key, "type"), cursor.is(&key, "uuid"));
        let value = cursor.value()?;
        if is_type {
            let name = string_value(&cursor.bytes[value]);
            let known = |kind: &&Kind| {
                let known = match form {
                    Form::Chat => Some(kind.name()),
                    Form::Responses => kind.input_name(),
                };
                known.is_some_and(|known| name.as_deref() == Some(known.as_bytes()))
            };
            kind = Kind::ALL.iter().find(known).copied();
        } else if is_uuid {
            uuid = Some(value);
        }
        Some(())
    })?;
    if let Some(kind) = kind {
        found.push(Item {
            kind,
            form,
            whole: start..cursor.pos,
            uuid,
            url: urls[kind as usize].take(),
        });
    }
    Some(())
}

/// `{"url": "..."}`, or the url alone. Outer `None`: malformed.
fn url(cursor: &mut Cursor) -> Option<Option<Range<usize>>> {
    let text = |cursor: &mut Cursor| {
        let value = cursor.value()?;
        Some(Some(value.clone()).filter(|_| cursor.bytes[value.start] == b'"'))
    };
    if cursor.peek() != b'{' {
        return text(cursor);
    }
    let mut found = None;
    cursor.object(|cursor, key| {
        match cursor.is(&key, "url") {
            true => found = text(cursor)?,
            false => cursor.skip()?,
        }
        Some(())
    })?;
    Some(found)
}

/// Walks over JSON that is well nested. `None`, from all of these: it is malformed.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> u8 {
        self.bytes.get(self.pos).copied().unwrap_or(0)
    }

    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.pos += 1;
        }
    }

    fn is(&self, key: &Range<usize>, name: &str) -> bool {
        let raw = &self.bytes[key.clone()];
        match raw.contains(&b'\\') {
            // One character takes at most six bytes escaped.
            true => raw.len() <= 6 * name.len() && unescape(raw) == name.as_bytes(),
            false => raw == name.as_bytes(),
        }
    }

    /// `each` is called at every element, and has to go over it.
    fn array(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.all(b'[', b']', |cursor| each(cursor))
    }

    /// `each` is called at every value with its key (without quotes), and has to go over the value.
    fn object(
        &mut self,
        mut each: impl FnMut(&mut Self, Range<usize>) -> Option<()>,
    ) -> Option<()> {
        self.all(b'{', b'}', |cursor| {
            let start = cursor.pos;
            cursor.string()?;
            let key = start + 1..cursor.pos - 1;
            cursor.space();
            if cursor.peek() != b':' {
                return None;
            }
            cursor.pos += 1;
            cursor.space();
            each(cursor, key)
        })
    }

    fn all(
        &mut self,
        open: u8,
        close: u8,
        mut each: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        if self.peek() != open {
            return None;
        }
        self.pos += 1;
        self.space();
        if self.peek() == close {
            self.pos += 1;
            return Some(());
        }
        loop {
            each(self)?;
            self.space();
            let byte = self.peek();
            self.pos += 1;
            match byte {
                b',' => self.space(),
                byte if byte == close => return Some(()),
                _ => return None,
            }
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.pos;
        self.skip()?;
        Some(start..self.pos)
    }

    fn string(&mut self) -> Option<()> {
        if self.peek() != b'"' {
            return None;
        }
        let mut at = self.pos + 1;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.bytes.get(at..)?)?;
            if self.bytes[at] == b'"' {
                self.pos = at + 1;
                return Some(());
            }
            at += 2;
        }
    }

    fn skip(&mut self) -> Option<()> {
        let mut depth = 0usize;
        loop {
            match self.peek() {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.pos += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.pos += 1;
                }
                _ if depth > 0 => {
                    let rest = self.bytes.get(self.pos..)?;
                    self.pos += rest.iter().position(|b| b"\"{}[]".contains(b))?;
                    continue;
                }
                _ => return self.scalar(),
            }
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn scalar(&mut self) -> Option<()> {
        let rest = self.bytes.get(self.pos..)?;
        let ends = |b: &u8| b",]}:\" \n\r\t".contains(b);
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        self.pos += length;
        (length > 0).then_some(())
    }
}
