//! The top level of one JSON object as ranges, and edits to it by range: the splice.
//!
//! A body is read once, without recursion and without a tree. What the scan does not need to know stays
//! as the client wrote it: numbers keep their digits, strings their escapes, members their order. Two
//! rules keep proxy and engine from reading one body differently: of duplicate keys the *last* counts
//! (as in Python's json), and an edit removes *all* of them; keys with escapes are compared unescaped.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;

use super::spare::{List, spare};

/// Members at the top level beyond this are refused: no engine has so many parameters.
const MEMBERS_MAX: usize = 1024;

const NOT_TEXT: &str = "it is not UTF-8";

/// Why a body is no object that can be spliced. `at` is a byte offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadJson {
    pub at: usize,
    pub what: &'static str,
}

/// One `"key": value` of the top level; ranges into the scanned bytes. The key range has no quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    key: (u32, u32),
    value: (u32, u32),
    escaped: bool,
}

impl Member {
    pub fn value(&self) -> Range<usize> {
        self.value.0 as usize..self.value.1 as usize
    }

    /// The name, unescaped.
    pub fn key<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        unescape(self.written_key(bytes))
    }

    /// The name as it is written, without quotes.
    pub fn written_key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.key.0 as usize..self.key.1 as usize]
    }

    /// From the key's opening quote to the end of the value.
    fn whole(&self) -> Range<usize> {
        self.key.0 as usize - 1..self.value.1 as usize
    }

    pub fn is(&self, bytes: &[u8], key: &str) -> bool {
        let raw = &bytes[self.key.0 as usize..self.key.1 as usize];
        if self.escaped {
            // One character takes at most six bytes escaped, so a huge key is not unescaped per look-up.
            raw.len() <= 6 * key.len() && unescape(raw) == key.as_bytes()
        } else {
            raw == key.as_bytes()
        }
    }
}

spare!(Member);
spare!(Edit);

/// The index of one object's members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    members: List<Member>,
    /// Offset of the closing brace.
    close: u32,
}

impl Object {
    /// Scans a whole JSON text that must be one object with nothing but whitespace around it.
    pub fn scan(bytes: &[u8], depth_max: usize) -> Result<Object, BadJson> {
        // Whoever has the bytes from a reader that has looked at them already.
        Object::scan_from(bytes, depth_max, bytes.len())
    }

    /// The same, of bytes from outside: they must also be UTF-8. Both are looked at piece by piece, so that a body of
    /// megabytes comes from memory once: the second look finds its piece in the core's own cache.
    pub fn scan_text(bytes: &[u8], depth_max: usize) -> Result<Object, BadJson> {
        Object::scan_from(bytes, depth_max, 0)
    }

    fn scan_from(bytes: &[u8], depth_max: usize, text: usize) -> Result<Object, BadJson> {
        let mut members = List::lent();
        let close = scan_whole(bytes, depth_max, text, |member| members.push(member))?;
        Ok(Object { members, close })
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The value that an engine will see: the last member of this name.
    pub fn get<'a>(&self, bytes: &'a [u8], key: &str) -> Option<&'a [u8]> {
        self.range(bytes, key).map(|r| &bytes[r])
    }

    pub fn range(&self, bytes: &[u8], key: &str) -> Option<Range<usize>> {
        self.members
            .iter()
            .rev()
            .find(|m| m.is(bytes, key))
            .map(Member::value)
    }

    pub fn has(&self, bytes: &[u8], key: &str) -> bool {
        self.members.iter().any(|m| m.is(bytes, key))
    }
}

/// The value of this name in a JSON text that must be one object, where one member is all that is wanted of it: as
/// [`Object::scan`] and [`Object::get`], without an index. `None`: it has none, or is no such text.
pub fn value<'a>(bytes: &'a [u8], key: &str, depth_max: usize) -> Option<&'a [u8]> {
    let mut found = None;
    let end = scan_whole(bytes, depth_max, bytes.len(), |member| {
        if member.is(bytes, key) {
            found = Some(member.value());
        }
    });
    end.ok()?;
    found.map(|range| &bytes[range])
}

/// Scans a whole text, of which the first `text` bytes are known to be UTF-8, and says where its closing brace is.
fn scan_whole(
    bytes: &[u8],
    depth_max: usize,
    text: usize,
    each: impl FnMut(Member),
) -> Result<u32, BadJson> {
    if bytes.len() > u32::MAX as usize {
        return Err(BadJson {
            at: 0,
            what: "the body is too large to index",
        });
    }
    let mut scan = Scan {
        bytes,
        pos: 0,
        depth_max,
        text,
    };
    scan.text_to(PIECE)?;
    scan.space();
    let close = scan.object(each)?;
    scan.space();
    if scan.pos != bytes.len() {
        return scan.bad("there is something after the closing brace");
    }
    scan.text_to(bytes.len())?;
    Ok(close)
}

/// What of a body is looked at in one go: less than the smallest first-level cache in use.
const PIECE: usize = 16 << 10;

struct Scan<'a> {
    bytes: &'a [u8],
    pos: usize,
    depth_max: usize,
    /// What is before this is UTF-8.
    text: usize,
}

impl Scan<'_> {
    fn bad<T>(&self, what: &'static str) -> Result<T, BadJson> {
        Err(BadJson { at: self.pos, what })
    }

    fn peek(&self) -> u8 {
        self.bytes.get(self.pos).copied().unwrap_or(0)
    }

    /// Makes sure that everything before `end` is UTF-8, but for a character that reaches beyond it.
    fn text_to(&mut self, end: usize) -> Result<(), BadJson> {
        let bytes = self.bytes;
        let mut end = end.min(bytes.len());
        if end <= self.text {
            return Ok(());
        }
        if end < bytes.len() {
            // Back to the beginning of a character, which is at most four bytes long.
            let back = bytes[self.text..end].iter().rev().take(4);
            end -= back.take_while(|b| **b & 0xC0 == 0x80).count();
            end -= usize::from(end > self.text && bytes[end - 1] >= 0xC0);
        }
        match simdutf8::basic::from_utf8(&bytes[self.text..end]) {
            Ok(_) => self.text = end,
            Err(_) => {
                let good = std::str::from_utf8(&bytes[self.text..end])
                    .map_or_else(|e| e.valid_up_to(), str::len);
                let at = self.text + good;
                return Err(BadJson { at, what: NOT_TEXT });
            }
        }
        Ok(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.pos += 1;
        }
    }

    fn object(&mut self, mut each: impl FnMut(Member)) -> Result<u32, BadJson> {
        if self.peek() != b'{' {
            return self.bad("the body is not a JSON object");
        }
        self.pos += 1;
        let mut members = 0;
        self.space();
        if self.peek() != b'}' {
            loop {
                each(self.member()?);
                members += 1;
                if members > MEMBERS_MAX {
                    return self.bad("the object has more than 1024 members");
                }
                self.space();
                match self.peek() {
                    b',' => self.pos += 1,
                    b'}' => break,
                    _ => return self.bad("expected ',' or '}'"),
                }
                self.space();
            }
        }
        let close = self.pos as u32;
        self.pos += 1;
        Ok(close)
    }

    fn member(&mut self) -> Result<Member, BadJson> {
        if self.peek() != b'"' {
            return self.bad("expected a key in double quotes");
        }
        let key_start = self.pos + 1;
        let escaped = self.string()?;
        let key = (key_start as u32, self.pos as u32 - 1);
        self.space();
        if self.peek() != b':' {
            return self.bad("expected ':' after a key");
        }
        self.pos += 1;
        self.space();
        let start = self.pos as u32;
        self.value()?;
        Ok(Member {
            key,
            value: (start, self.pos as u32),
            escaped,
        })
    }

    /// Skips one string, the cursor on its opening quote. True if it has escapes.
    fn string(&mut self) -> Result<bool, BadJson> {
        let mut at = self.pos + 1;
        let mut escaped = false;
        let bytes = self.bytes;
        loop {
            if at >= self.text {
                self.text_to(at + PIECE)?;
            }
            let piece = at.min(self.text)..self.text;
            match memchr::memchr2(b'"', b'\\', &bytes[piece]) {
                None if self.text < bytes.len() => at = at.max(self.text),
                None => {
                    self.pos = bytes.len();
                    return self.bad("a string has no end");
                }
                Some(found) => {
                    at += found;
                    if bytes[at] == b'"' {
                        self.pos = at + 1;
                        return Ok(escaped);
                    }
                    escaped = true;
                    at += 2;
                }
            }
        }
    }

    fn value(&mut self) -> Result<(), BadJson> {
        match self.peek() {
            b'"' => self.string().map(|_| ()),
            b'{' | b'[' => self.nested(),
            _ => self.scalar(),
        }
    }

    /// Numbers and words. Python's json also reads NaN and Infinity, so engines may: they pass.
    fn scalar(&mut self) -> Result<(), BadJson> {
        let start = self.pos;
        while matches!(self.peek(), b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.') {
            self.pos += 1;
        }
        let word = &self.bytes[start..self.pos];
        let number = word
            .first()
            .is_some_and(|b| b.is_ascii_digit() || *b == b'-')
            && word
                .iter()
                .all(|b| matches!(b, b'0'..=b'9' | b'e' | b'E' | b'+' | b'-' | b'.'));
        let words: [&[u8]; 6] = [
            b"true",
            b"false",
            b"null",
            b"NaN",
            b"Infinity",
            b"-Infinity",
        ];
        if number || words.contains(&word) {
            Ok(())
        } else {
            self.pos = start;
            self.bad("expected a value")
        }
    }

    /// Skips one array or object by matching brackets, with a stack of one bit per level: no recursion,
    /// so no body can overflow the stack.
    fn nested(&mut self) -> Result<(), BadJson> {
        let mut stack = Levels::default();
        loop {
            // Everything but strings and brackets is skipped unread: the engine judges it.
            let rest = &self.bytes[self.pos.min(self.bytes.len())..];
            let Some(skip) = rest.iter().position(|b| STRUCTURAL[*b as usize]) else {
                self.pos = self.bytes.len();
                return self.bad("a bracket is not closed");
            };
            self.pos += skip;
            match self.peek() {
                b'"' => {
                    self.string()?;
                    continue;
                }
                open @ (b'{' | b'[') => {
                    // +2: the object around us, and the level being opened.
                    if stack.depth + 2 > self.depth_max {
                        return self.bad("the body is nested too deeply");
                    }
                    stack.push(open == b'{');
                }
                close => {
                    if stack.pop() != Some(close == b'}') {
                        return self.bad("a bracket closes what was not opened");
                    }
                }
            }
            self.pos += 1;
            if stack.depth == 0 {
                return Ok(());
            }
        }
    }
}

/// Which brackets are open: a bit each, true for a brace.
#[derive(Default)]
struct Levels {
    depth: usize,
    /// The innermost ones, the last of them in the lowest bit.
    near: u128,
    /// What has been pushed out of `near`; few texts are so deep.
    far: Vec<u128>,
}

impl Levels {
    fn push(&mut self, brace: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(128) {
            self.far.push(self.near);
        }
        self.near = self.near << 1 | u128::from(brace);
        self.depth += 1;
    }

    fn pop(&mut self) -> Option<bool> {
        self.depth = self.depth.checked_sub(1)?;
        let brace = self.near & 1 == 1;
        self.near >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(128) {
            self.near = self.far.pop().unwrap_or_default();
        }
        Some(brace)
    }
}

static STRUCTURAL: [bool; 256] = {
    let mut table = [false; 256];
    table[b'"' as usize] = true;
    table[b'{' as usize] = true;
    table[b'}' as usize] = true;
    table[b'[' as usize] = true;
    table[b']' as usize] = true;
    table
};

/// The bytes that a JSON string (without its quotes) stands for. Lone surrogates become U+FFFD.
pub fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        if raw[at] != b'\\' {
            out.push(raw[at]);
            at += 1;
            continue;
        }
        let (c, used) = escape(&raw[at + 1..]);
        at += 1 + used;
        let mut room = [0; 4];
        out.extend_from_slice(c.encode_utf8(&mut room).as_bytes());
    }
    Cow::Owned(out)
}

/// What one escape stands for, and how long it is; `rest` begins behind its backslash.
pub fn escape(rest: &[u8]) -> (char, usize) {
    let one = match rest.first() {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => {
            let (c, used) = unicode(&rest[1..]);
            return (c, 1 + used);
        }
        Some(other) if other.is_ascii() => *other as char,
        // Not an escape of JSON: whatever follows, for itself.
        Some(_) => {
            let next = rest[..rest.len().min(4)].utf8_chunks().next();
            let next = next.and_then(|chunk| chunk.valid().chars().next());
            let next = next.unwrap_or(char::REPLACEMENT_CHARACTER);
            return (next, next.len_utf8().min(rest.len()));
        }
        None => return ('\\', 0),
    };
    (one, 1)
}

fn unicode(rest: &[u8]) -> (char, usize) {
    let hex = |b: &[u8]| {
        // Checked first, since `from_str_radix` also reads a sign.
        let text = std::str::from_utf8(b)
            .ok()
            .filter(|_| b.iter().all(u8::is_ascii_hexdigit));
        text.and_then(|s| u32::from_str_radix(s, 16).ok())
    };
    let Some(first) = rest.get(..4).and_then(hex) else {
        return (char::REPLACEMENT_CHARACTER, rest.len().min(4));
    };
    if (0xd800..0xdc00).contains(&first)
        && rest.get(4..6) == Some(b"\\u")
        && let Some(low) = rest
            .get(6..10)
            .and_then(hex)
            .filter(|l| (0xdc00..0xe000).contains(l))
    {
        let code = 0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00);
        return (
            char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
            10,
        );
    }
    (
        char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER),
        4,
    )
}

/// A value's text if it is a string: what is between its quotes, unescaped.
pub fn string_value(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some(unescape(inner))
}

/// The elements of a JSON array that was found to be well nested, as raw JSON without the space around them.
pub fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = array
        .strip_prefix(b"[")
        .and_then(|rest| rest.strip_suffix(b"]"))
        .unwrap_or_default();
    let mut at = 0;
    std::iter::from_fn(move || {
        if inner.get(at..)?.trim_ascii().is_empty() {
            return None;
        }
        let start = at;
        let mut depth = 0usize;
        while let Some(byte) = inner.get(at) {
            match byte {
                b'"' => {
                    at += 1;
                    while let Some(found) = inner
                        .get(at..)
                        .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
                    {
                        at += found;
                        if inner[at] == b'"' {
                            break;
                        }
                        at += 2;
                    }
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => break,
                _ => {}
            }
            at += 1;
        }
        let element = inner[start..at.min(inner.len())].trim_ascii();
        at += 1;
        Some(element)
    })
}

/// Appends `text` as a JSON string, quotes included.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f | 0x7f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// One change to the top level.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Takes out every member of this name.
    Remove(&'static str),
    /// Gives the member this value (raw JSON): in place of the first of its name, others taken out;
    /// put at the end if there is none.
    Set(&'static str, Cow<'static, [u8]>),
    /// As `Set`, but only where the member exists.
    Replace(&'static str, Cow<'static, [u8]>),
}

impl Edit {
    pub fn key(&self) -> &'static str {
        match self {
            Edit::Remove(key) | Edit::Set(key, _) | Edit::Replace(key, _) => key,
        }
    }
}

/// A piece of an edited body: bytes of the source, or bytes of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    Source(Range<usize>),
    Own(Cow<'a, [u8]>),
}

/// Most edited bodies have so few that they need no memory of their own.
pub type Pieces<'a> = SmallVec<[Piece<'a>; 24]>;

impl Piece<'_> {
    /// For whoever outlives the edits.
    pub fn into_owned(self) -> Piece<'static> {
        match self {
            Piece::Source(range) => Piece::Source(range),
            Piece::Own(bytes) => Piece::Own(Cow::Owned(bytes.into_owned())),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Piece::Source(range) => range.len(),
            Piece::Own(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The edited body as pieces. Everything outside the edited members is a `Source` range, untouched.
pub fn splice<'a>(bytes: &[u8], object: &Object, edits: &'a [Edit]) -> Pieces<'a> {
    let mut out = Splice::default();
    let mut done = [false; 32];
    debug_assert!(edits.len() <= done.len());
    let mut kept_end: Option<usize> = None;
    for (i, member) in object.members.iter().enumerate() {
        let edit = edits.iter().position(|e| member.is(bytes, e.key()));
        let value = match edit.map(|e| (e, &edits[e])) {
            None => None,
            Some((e, Edit::Set(_, value) | Edit::Replace(_, value))) if !done[e] => {
                done[e] = true;
                Some(value)
            }
            Some(_) => {
                out.cut(cut_of(object, i, kept_end));
                continue;
            }
        };
        if let Some(value) = value {
            out.replace(member.value(), value);
        }
        kept_end = Some(member.whole().end);
    }
    append(&mut out, object, edits, &done, kept_end);
    out.finish(bytes.len())
}

/// What goes when member `i` goes: with the separator before it if an earlier member stays, else with
/// the separator after it, so that commas always fit.
fn cut_of(object: &Object, i: usize, kept_end: Option<usize>) -> Range<usize> {
    let whole = object.members[i].whole();
    if kept_end.is_some() {
        object.members[i - 1].whole().end..whole.end
    } else if let Some(next) = object.members.get(i + 1) {
        whole.start..next.whole().start
    } else {
        whole
    }
}

fn append<'a>(
    out: &mut Splice<'a>,
    object: &Object,
    edits: &'a [Edit],
    done: &[bool],
    kept_end: Option<usize>,
) {
    let mut comma = kept_end.is_some();
    for (e, edit) in edits.iter().enumerate() {
        let Edit::Set(key, value) = edit else {
            continue;
        };
        if done[e] {
            continue;
        }
        // After everything else: the closing brace is the one place no cut can cover.
        out.upto(object.close as usize);
        out.own(if comma { b",\"" } else { b"\"" });
        out.own_key(key);
        out.own(b"\":");
        out.own(value);
        comma = true;
    }
}

#[derive(Default)]
struct Splice<'a> {
    list: Pieces<'a>,
    copied: usize,
}

impl<'a> Splice<'a> {
    fn upto(&mut self, end: usize) {
        if self.copied < end {
            self.list.push(Piece::Source(self.copied..end));
            self.copied = end;
        }
    }

    fn cut(&mut self, range: Range<usize>) {
        self.upto(range.start);
        self.copied = self.copied.max(range.end);
    }

    fn replace(&mut self, range: Range<usize>, with: &'a [u8]) {
        self.upto(range.start);
        self.own(with);
        self.copied = range.end;
    }

    fn own(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.list.push(Piece::Own(Cow::Borrowed(bytes)));
        }
    }

    /// A name, between quotes that are already there.
    fn own_key(&mut self, key: &'a str) {
        let plain = |b: &u8| !matches!(b, b'"' | b'\\' | 0..=0x1f | 0x7f);
        if key.as_bytes().iter().all(plain) {
            return self.own(key.as_bytes());
        }
        let mut quoted = Vec::new();
        put_string(&mut quoted, key);
        let inner = quoted[1..quoted.len() - 1].to_vec();
        self.list.push(Piece::Own(Cow::Owned(inner)));
    }

    fn finish(mut self, end: usize) -> Pieces<'a> {
        self.upto(end);
        self.list
    }
}

/// A change below the top level: these bytes of the source become others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    pub at: Range<usize>,
    pub with: Vec<u8>,
}

/// The pieces with these patches, which are in the order of their places and do not overlap. A patch whose
/// place an edit has taken out goes with it.
pub fn patch<'a>(pieces: Pieces<'a>, patches: &[Patch]) -> Pieces<'a> {
    let mut out = Pieces::new();
    let mut rest = patches.iter().peekable();
    for piece in pieces {
        let Piece::Source(range) = piece else {
            out.push(piece);
            continue;
        };
        let mut copied = range.start;
        while let Some(next) = rest.next_if(|patch| patch.at.end <= range.end) {
            if next.at.start < copied {
                continue;
            }
            if next.at.start > copied {
                out.push(Piece::Source(copied..next.at.start));
            }
            if !next.with.is_empty() {
                out.push(Piece::Own(Cow::Owned(next.with.clone())));
            }
            copied = next.at.end;
        }
        if copied < range.end {
            out.push(Piece::Source(copied..range.end));
        }
    }
    out
}

/// The pieces as one buffer, appended to `out`.
pub fn put_pieces(out: &mut Vec<u8>, source: &[u8], pieces: &[Piece<'_>]) {
    for piece in pieces {
        match piece {
            Piece::Source(range) => out.extend_from_slice(&source[range.clone()]),
            Piece::Own(bytes) => out.extend_from_slice(bytes),
        }
    }
}

pub fn pieces_len(pieces: &[Piece<'_>]) -> usize {
    pieces.iter().map(Piece::len).sum()
}
