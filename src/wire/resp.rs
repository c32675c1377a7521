//! RESP2, the protocol of Redis: commands out, replies in; but for arrays, with which none of our commands is
//! answered. Pure: bytes in, values out.
//!
//! A reply is taken whole or not at all, so the reader may be fed in any pieces; what is no RESP is an error,
//! after which the connection is of no more use.

/// A line without an end, or a number with too many digits, is not RESP.
const LINE_MAX: usize = 4 << 10;
/// A larger reply is none that we asked for.
const BULK_MAX: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Status(Vec<u8>),
    /// `-ERR what`
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
}

/// The bytes are no RESP; what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadResp(pub &'static str);

/// Appends one command.
pub fn put_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    put_length(out, b'*', words.len());
    for word in words {
        put_length(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn put_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The reply at the start of `bytes`, and how long it is; `None` while it is not all there.
pub fn take(bytes: &[u8]) -> Result<Option<(Reply, usize)>, BadResp> {
    let mut at = 0;
    let reply = reply(bytes, &mut at)?;
    Ok(reply.map(|reply| (reply, at)))
}

fn reply(bytes: &[u8], at: &mut usize) -> Result<Option<Reply>, BadResp> {
    let Some(line) = line(bytes, at)? else {
        return Ok(None);
    };
    let Some((kind, rest)) = line.split_first() else {
        return Err(BadResp("an empty line"));
    };
    Ok(Some(match kind {
        b'+' => Reply::Status(rest.to_vec()),
        b'-' => Reply::Error(rest.to_vec()),
        b':' => Reply::Integer(number(rest)?),
        b'$' => match length(rest, BULK_MAX)? {
            None => Reply::Nil,
            Some(length) => {
                let end = *at + length;
                let Some(tail) = bytes.get(end..end + 2) else {
                    // Said early, where it can be: no need to wait for what will not be taken.
                    return match bytes.get(end) {
                        Some(byte) if *byte != b'\r' => Err(BadResp("a text of another length")),
                        _ => Ok(None),
                    };
                };
                if tail != b"\r\n" {
                    return Err(BadResp("a text of another length"));
                }
                let text = bytes[*at..end].to_vec();
                *at = end + 2;
                Reply::Bulk(text)
            }
        },
        b'*' => return Err(BadResp("an array, for which nobody asked")),
        _ => return Err(BadResp("a reply of no known kind")),
    }))
}

/// The next line, without its end.
fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, BadResp> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', rest) else {
        return match rest.len() {
            ..=LINE_MAX => Ok(None),
            _ => Err(BadResp("a line without an end")),
        };
    };
    *at += end + 1;
    let line = rest[..end].strip_suffix(b"\r");
    line.map(Some)
        .ok_or(BadResp("a line that ends in LF alone"))
}

fn number(digits: &[u8]) -> Result<i64, BadResp> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or(BadResp("no number where one is due"))
}

fn length(digits: &[u8], max: usize) -> Result<Option<usize>, BadResp> {
    match number(digits)? {
        -1 => Ok(None),
        n => match usize::try_from(n) {
            Ok(n) if n <= max => Ok(Some(n)),
            _ => Err(BadResp("a length out of bounds")),
        },
    }
}
