//! A JSON value as Python's `json.dumps(value, sort_keys=True)` writes it: what two programs that hash a
//! value must agree on. Goes out in pieces, so that nothing large is copied.

use std::fmt::Write as _;

use super::json::{Object, elements, unescape};

/// Beyond this a value goes out as it is: no engine would read it.
const DEPTH_MAX: usize = 1000;

/// Gives the bytes of `value`, which was found to be well nested, to `out`, piece by piece.
pub fn put_sorted(value: &[u8], out: &mut impl FnMut(&[u8])) {
    put(value.trim_ascii(), out, 0);
}

fn put(value: &[u8], out: &mut impl FnMut(&[u8]), depth: usize) {
    match value.first() {
        _ if depth > DEPTH_MAX => out(value),
        Some(b'{') => object(value, out, depth),
        Some(b'[') => {
            out(b"[");
            for (i, element) in elements(value).enumerate() {
                if i > 0 {
                    out(b", ");
                }
                put(element, out, depth + 1);
            }
            out(b"]");
        }
        Some(b'"') => string(value, out),
        _ => number(value, out),
    }
}

fn object(value: &[u8], out: &mut impl FnMut(&[u8]), depth: usize) {
    let Ok(object) = Object::scan(value, usize::MAX) else {
        return out(value);
    };
    let mut members: Vec<(Vec<u8>, &[u8])> = Vec::new();
    for member in object.members() {
        let key = member.key(value).into_owned();
        // Of two members of one name the last one counts.
        members.retain(|(known, _)| *known != key);
        members.push((key, &value[member.value()]));
    }
    // By code point, which is the order of UTF-8's bytes.
    members.sort_by(|a, b| a.0.cmp(&b.0));
    out(b"{");
    for (i, (key, value)) in members.iter().enumerate() {
        if i > 0 {
            out(b", ");
        }
        out(b"\"");
        text(key, out);
        out(b"\": ");
        put(value, out, depth + 1);
    }
    out(b"}");
}

/// A string with its quotes.
fn string(value: &[u8], out: &mut impl FnMut(&[u8])) {
    let inner = value.get(1..value.len().saturating_sub(1));
    let inner = inner.unwrap_or_default();
    let plain = |b: &u8| (0x20..0x7f).contains(b) && *b != b'\\';
    out(b"\"");
    match inner.iter().all(plain) {
        true => out(inner),
        false => text(&unescape(inner), out),
    }
    out(b"\"");
}

/// Text as a string's content, all of it ASCII.
fn text(text: &[u8], out: &mut impl FnMut(&[u8])) {
    let mut written = String::with_capacity(text.len());
    for c in String::from_utf8_lossy(text).chars() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            ' '..='~' => {
                written.push(c);
                continue;
            }
            _ => "",
        };
        written += short;
        if short.is_empty() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(written, "\\u{unit:04x}");
            }
        }
    }
    out(written.as_bytes());
}

/// Python keeps whole numbers as they are, and writes others in their shortest form.
fn number(value: &[u8], out: &mut impl FnMut(&[u8])) {
    let float = value.iter().any(|b| matches!(b, b'.' | b'e' | b'E'));
    let parsed = std::str::from_utf8(value).ok();
    let parsed = parsed.filter(|_| float).and_then(|v| v.parse::<f64>().ok());
    let Some(number) = parsed.filter(|n| n.is_finite()) else {
        return out(value);
    };
    let size = number.abs();
    if number == 0.0 || (1e-4..1e16).contains(&size) {
        return out(format!("{number:?}").as_bytes());
    }
    // `1e+16`, `1.5e-07`: a sign and two digits at least.
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    out(format!("{digits}e{sign}{:02}", exponent.abs()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::put_sorted;

    fn sorted(value: &str) -> String {
        let mut out = Vec::new();
        put_sorted(value.as_bytes(), &mut |piece| out.extend_from_slice(piece));
        String::from_utf8(out).unwrap()
    }

    /// The right side is what Python 3.12 prints.
    #[test]
    fn values_are_written_as_python_writes_them() {
        for (value, python) in [
            (
                r#" {"type":"input_audio","input_audio":{"format":"wav","data":"AAA="}} "#,
                r#"{"input_audio": {"data": "AAA=", "format": "wav"}, "type": "input_audio"}"#,
            ),
            (r#"{"b":1,"a":[],"b":{}}"#, r#"{"a": [], "b": {}}"#),
            (
                r#"["é😀\u007f\/\n",null,true]"#,
                r#"["\u00e9\ud83d\ude00\u007f/\n", null, true]"#,
            ),
            (
                "[1.50,1e3,-0.0,1e16,1.5e-7,0.0001,12345678901234567890]",
                "[1.5, 1000.0, -0.0, 1e+16, 1.5e-07, 0.0001, 12345678901234567890]",
            ),
            (r#"{"\u0062":1,"a":"\""}"#, r#"{"a": "\"", "b": 1}"#),
        ] {
            assert_eq!(sorted(value), python);
        }
    }
}
