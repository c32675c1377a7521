//! JSON as bytes: one validating pass that yields the top-level members as ranges (`object`), and
//! iterators over values known to be valid.

mod scan;

use std::borrow::Cow;

use memchr::memchr2;

pub(crate) use scan::{Member, object};

/// The end of the value that starts at `at`, in valid JSON.
fn skip(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0u32;
    loop {
        match text[at] {
            b'"' => {
                at += 1;
                loop {
                    at += memchr2(b'"', b'\\', &text[at..]).unwrap_or(0);
                    if text[at] == b'"' {
                        break;
                    }
                    at += 2;
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => at += 1,
            _ => {
                let ends = |b: &u8| b",]} \n\r\t:".contains(b);
                at += text[at..].iter().position(ends).unwrap_or(text.len() - at);
            }
        }
        if depth == 0 {
            return at;
        }
    }
}

fn gap(text: &[u8], at: usize) -> usize {
    let rest = &text[at..];
    at + rest
        .iter()
        .position(|b| !b" \n\r\t,:".contains(b))
        .unwrap_or(rest.len())
}

/// The elements of a valid array.
pub(crate) fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 1;
    std::iter::from_fn(move || {
        let from = gap(array, at);
        if array.get(from).is_none_or(|b| *b == b']') {
            return None;
        }
        at = skip(array, from);
        Some(&array[from..at])
    })
}

/// The members of a valid object: key without quotes (escapes as they are) and value.
pub(crate) fn members(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = 1;
    std::iter::from_fn(move || {
        let from = gap(object, at);
        if object.get(from).is_none_or(|b| *b == b'}') {
            return None;
        }
        let end = skip(object, from);
        let value = gap(object, end);
        at = skip(object, value);
        Some((&object[from + 1..end - 1], &object[value..at]))
    })
}

pub(crate) fn is_null(value: &[u8]) -> bool {
    value == b"null"
}

pub(crate) fn is_string(value: &[u8]) -> bool {
    value[0] == b'"'
}

/// The content of a valid string value with its escapes resolved; lone surrogates, which Python
/// accepts, become U+FFFD.
pub(crate) fn string(value: &[u8]) -> Cow<'_, [u8]> {
    unescape(&value[1..value.len() - 1])
}

pub(crate) fn unescape(inner: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'\\', inner) else {
        return Cow::Borrowed(inner);
    };
    let mut out = inner[..first].to_vec();
    let mut units: Vec<u16> = Vec::new();
    let mut at = first;
    while at < inner.len() {
        if inner[at] == b'\\' && inner[at + 1] == b'u' {
            let hex = std::str::from_utf8(&inner[at + 2..at + 6]).unwrap_or("fffd");
            units.push(u16::from_str_radix(hex, 16).unwrap_or(0xfffd));
            at += 6;
            continue;
        }
        flush(&mut units, &mut out);
        if inner[at] == b'\\' {
            out.push(match inner[at + 1] {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            at += 2;
        } else {
            out.push(inner[at]);
            at += 1;
        }
    }
    flush(&mut units, &mut out);
    Cow::Owned(out)
}

fn flush(units: &mut Vec<u16>, out: &mut Vec<u8>) {
    if !units.is_empty() {
        out.extend_from_slice(String::from_utf16_lossy(units).as_bytes());
        units.clear();
    }
}

pub(crate) fn number(value: &[u8]) -> Option<f64> {
    if !matches!(value[0], b'-' | b'0'..=b'9') {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// An integer, also when written as `16.0`: pydantic takes that.
pub(crate) fn integer(value: &[u8]) -> Option<i64> {
    if let Ok(n) = std::str::from_utf8(value).ok()?.parse::<i64>() {
        return Some(n);
    }
    number(value)
        .filter(|n| n.fract() == 0.0 && n.abs() < 9e15)
        .map(|n| n as i64)
}

pub(crate) fn boolean(value: &[u8]) -> Option<bool> {
    match value {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

/// An integer as pydantic takes it where one is asked for: also a boolean, or text that says one.
pub(crate) fn lax_integer(value: &[u8]) -> Option<i64> {
    match value {
        b"true" => Some(1),
        b"false" => Some(0),
        [b'"', ..] => integer(lax_text(&string(value))?),
        _ => integer(value),
    }
}

/// A number, likewise.
pub(crate) fn lax_number(value: &[u8]) -> Option<f64> {
    match value {
        [b'"', ..] => number(lax_text(&string(value))?),
        _ => number(value).or_else(|| lax_integer(value).map(|n| n as f64)),
    }
}

/// A boolean, likewise.
pub(crate) fn lax_boolean(value: &[u8]) -> Option<bool> {
    const YES: [&str; 6] = ["1", "on", "t", "true", "y", "yes"];
    const NO: [&str; 6] = ["0", "off", "f", "false", "n", "no"];
    if !is_string(value) {
        return boolean(value).or_else(|| match integer(value) {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        });
    }
    let text = string(value);
    let is = |word: &&str| text.eq_ignore_ascii_case(word.as_bytes());
    match (YES.iter().any(&is), NO.iter().any(is)) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

fn lax_text(text: &[u8]) -> Option<&[u8]> {
    Some(text.trim_ascii()).filter(|t| !t.is_empty())
}

/// Appends `text` as a JSON string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            c if (c as u32) < 0x20 => {
                out.extend_from_slice(b"\\u");
                crate::text::push_hex(out, c as u64, 4);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
