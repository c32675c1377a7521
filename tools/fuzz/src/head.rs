//! A line-by-line reader of heads, and the comparisons that both kinds of head share.

use pdrelay::wire::head::{BadHead, Fields, Framing, HeadScan, Name};

use crate::{Dice, splits};

/// A head without any choice of reading: the first line, and name and trimmed value of each field.
pub struct Clear<'a> {
    pub first: &'a [u8],
    pub fields: Vec<(&'a [u8], &'a [u8])>,
}

/// `None` where two programs could read it differently.
pub fn clear(head: &[u8]) -> Option<Clear<'_>> {
    let mut rest = head;
    let mut lines = Vec::new();
    loop {
        let lf = rest.iter().position(|b| *b == b'\n')?;
        let line = rest[..lf].strip_suffix(b"\r")?;
        rest = &rest[lf + 1..];
        if line.iter().any(|b| matches!(b, 0 | b'\r')) {
            return None;
        }
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let (first, lines) = lines.split_first()?;
    if !rest.is_empty() {
        return None;
    }
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|b| token(*b)) {
            return None;
        }
        fields.push((name, trim(value)));
    }
    Some(Clear { first, fields })
}

fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

impl Clear<'_> {
    pub fn named(&self, name: &str) -> Vec<&[u8]> {
        let same = |(n, _): &&(&[u8], &[u8])| n.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(same).map(|(_, v)| *v).collect()
    }

    /// What `Connection:` lists, in lower case.
    pub fn listed(&self) -> Vec<Vec<u8>> {
        let values = self.named("connection");
        let tokens = values.iter().flat_map(|v| v.split(|b| *b == b','));
        let tokens = tokens.map(|t| t.trim_ascii().to_ascii_lowercase());
        tokens.filter(|t| !t.is_empty()).collect()
    }

    pub fn lists(&self, token: &str) -> bool {
        self.listed().iter().any(|t| t == token.as_bytes())
    }

    /// Nothing in the fields that a strict reader might refuse.
    pub fn plain(&self) -> bool {
        let lengths = self.named("content-length");
        let codings = self.named("transfer-encoding");
        self.fields.len() <= 128
            && self.listed().len() <= 32
            && self
                .fields
                .iter()
                .all(|(_, v)| v.iter().all(|b| (0x20..0x7f).contains(b)))
            && lengths.len() + codings.len() <= 1
            && lengths
                .iter()
                .all(|v| (1..=18).contains(&v.len()) && v.iter().all(u8::is_ascii_digit))
            && codings.iter().all(|v| v.eq_ignore_ascii_case(b"chunked"))
    }

    /// The framing that the fields ask for.
    pub fn framing(&self) -> Option<Framing> {
        if let Some(length) = self.named("content-length").first() {
            let digits = std::str::from_utf8(length).expect("digits");
            return Some(Framing::Length(digits.parse().expect("a length")));
        }
        let chunked = !self.named("transfer-encoding").is_empty();
        chunked.then_some(Framing::Chunked)
    }
}

/// The end of the head, which must not depend on how the bytes arrive.
pub fn end_of(data: &[u8]) -> Result<Option<usize>, BadHead> {
    let whole = HeadScan::default().advance(data);
    for pieces in splits(data, &mut Dice::of(data)) {
        let mut scan = HeadScan::default();
        let mut seen = 0;
        let mut verdict = Ok(None);
        for piece in pieces {
            seen += piece.len();
            verdict = scan.advance(&data[..seen]);
            if verdict != Ok(None) {
                break;
            }
        }
        assert_eq!(verdict, whole, "the split changed the verdict");
    }
    if let Ok(Some(end)) = whole {
        assert!(data[..end].ends_with(b"\r\n"));
        assert!(!data[..end - 2].windows(4).any(|w| w == b"\r\n\r\n"));
        // What follows a head is not its business.
        assert_eq!(HeadScan::default().advance(&data[..end]), whole);
    }
    whole
}

/// Fields as both readers see them, and which of them may travel.
pub fn same_fields(head: &[u8], ours: &Fields, clear: &Clear) {
    let read: Vec<_> = ours.iter().map(|f| (f.name(head), f.value(head))).collect();
    assert_eq!(read, clear.fields);
    assert!(clear.plain_framing(), "an ambiguous framing passed");
    assert_eq!(ours.close, clear.lists("close"));
    assert_eq!(ours.keep_alive, clear.lists("keep-alive"));
    let listed = clear.listed();
    for field in ours.iter() {
        let name = field.name(head).to_ascii_lowercase();
        let always: [&[u8]; 9] = [
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"proxy-authenticate",
            b"proxy-authorization",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
        ];
        let kept: [&[u8]; 2] = [b"content-length", b"host"];
        let words: [&[u8]; 2] = [b"close", b"keep-alive"];
        let declared = listed.contains(&name) && !words.contains(&&name[..]);
        let stays = always.contains(&&name[..]) || (declared && !kept.contains(&&name[..]));
        assert_eq!(
            ours.end_to_end(head, field),
            !stays,
            "{}",
            name.escape_ascii()
        );
        let first = ours.get(head, std::str::from_utf8(&name).expect("a token"));
        assert_eq!(
            first,
            clear
                .named(std::str::from_utf8(&name).unwrap())
                .first()
                .copied()
        );
        if field.kind != Name::Other {
            assert!(ours.find(head, field.kind).is_some());
        }
    }
}

impl Clear<'_> {
    /// At most one statement of the body's length, and that a clear one.
    fn plain_framing(&self) -> bool {
        let lengths = self.named("content-length");
        let codings = self.named("transfer-encoding");
        lengths.len() + codings.len() <= 1
            && lengths
                .iter()
                .all(|v| !v.is_empty() && v.iter().all(u8::is_ascii_digit))
            && codings.iter().all(|v| v.eq_ignore_ascii_case(b"chunked"))
    }
}

/// A head written from what was read.
pub fn written(first: &str, head: &[u8], fields: &Fields) -> Vec<u8> {
    let mut out = format!("{first}\r\n").into_bytes();
    for field in fields.iter() {
        out.extend_from_slice(field.name(head));
        out.extend_from_slice(b": ");
        out.extend_from_slice(field.value(head));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}
