//! MessagePack, as far as a notice that KV has arrived needs it: `{"type":"ProxyNotif","req_id":"1"}`.
//!
//! Read leniently: senders of several years and forks write it. Any order of keys, any other keys, a
//! `type` that only ends in `ProxyNotif` (older ones say `NixlProxyNotif`) or is not there at all, text as
//! `bin`. Source: the MessagePack specification, and messages written by msgspec.

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice<'a> {
    /// One rank's KV of this request is there.
    Arrived(&'a str),
    /// It will not come.
    Failed(&'a str),
}

/// Why a message is no notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// No MessagePack map, or more than that.
    Malformed,
    /// Something else of the same senders.
    OtherType,
    NoId,
}

/// A derivative of the sender says with it that the transfer failed.
const FAILED: &str = "::error";

/// Reads a whole message.
pub fn notice(message: &[u8]) -> Result<Notice<'_>, Unread> {
    let mut rest = Rest(message);
    let (mut kind, mut id) = (None, None);
    let pairs = rest.map_size().ok_or(Unread::Malformed)?;
    for _ in 0..pairs {
        let key = rest.value().ok_or(Unread::Malformed)?;
        let value = rest.value().ok_or(Unread::Malformed)?;
        match key {
            Value::Text(b"type") => kind = Some(value),
            Value::Text(b"req_id") => id = Some(value),
            _ => {}
        }
    }
    if !rest.0.is_empty() {
        return Err(Unread::Malformed);
    }
    match kind {
        None => {}
        Some(Value::Text(name)) if name.ends_with(b"ProxyNotif") => {}
        Some(_) => return Err(Unread::OtherType),
    }
    let Some(Value::Text(id)) = id else {
        return Err(Unread::NoId);
    };
    let id = std::str::from_utf8(id).map_err(|_| Unread::Malformed)?;
    Ok(match id.strip_suffix(FAILED) {
        Some(id) => Notice::Failed(id),
        None => Notice::Arrived(id),
    })
}

#[derive(Clone, Copy)]
enum Value<'a> {
    /// `str` or `bin`.
    Text(&'a [u8]),
    Other,
}

/// What is left of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    /// A length of `n` bytes, big end first.
    fn length(&mut self, n: usize) -> Option<usize> {
        let bytes = self.take(n)?;
        Some(
            bytes
                .iter()
                .fold(0, |length, b| length << 8 | usize::from(*b)),
        )
    }

    fn map_size(&mut self) -> Option<usize> {
        match self.byte()? {
            fixed @ 0x80..=0x8f => Some(usize::from(fixed & 0x0f)),
            0xde => self.length(2),
            0xdf => self.length(4),
            _ => None,
        }
    }

    /// One value, with all that is in it. Counted, not by recursion: no message can overflow the stack.
    fn value(&mut self) -> Option<Value<'a>> {
        let first = self.one()?;
        let mut open = match first {
            One::Text(text) => return Some(Value::Text(text)),
            One::Other => return Some(Value::Other),
            One::Inner(values) => values,
        };
        while open > 0 {
            open -= 1;
            if let One::Inner(values) = self.one()? {
                open = open.checked_add(values)?;
            }
            // Each value has at least a byte, so that a made-up count ends here.
            if open > self.0.len() {
                return None;
            }
        }
        Some(Value::Other)
    }

    fn one(&mut self) -> Option<One<'a>> {
        let byte = self.byte()?;
        let skip = match byte {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            0x80..=0x8f => return Some(One::Inner(2 * usize::from(byte & 0x0f))),
            0x90..=0x9f => return Some(One::Inner(usize::from(byte & 0x0f))),
            0xa0..=0xbf => return self.take(usize::from(byte & 0x1f)).map(One::Text),
            0xc1 => return None,
            // bin and str, with lengths of 1, 2 and 4 bytes.
            0xc4..=0xc6 | 0xd9..=0xdb => {
                let width = 1 << ((byte - if byte < 0xd0 { 0xc4 } else { 0xd9 }) as usize);
                let length = self.length(width)?;
                return self.take(length).map(One::Text);
            }
            // ext: a length, a byte of type, the bytes.
            0xc7..=0xc9 => 1 + self.length(1 << (byte - 0xc7))?,
            0xca | 0xce | 0xd2 => 4,
            0xcb | 0xcf | 0xd3 => 8,
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xd4..=0xd8 => 1 + (1 << (byte - 0xd4)),
            0xdc | 0xdd => {
                return self
                    .length(if byte == 0xdc { 2 } else { 4 })
                    .map(One::Inner);
            }
            0xde | 0xdf => {
                let pairs = self.length(if byte == 0xde { 2 } else { 4 })?;
                return pairs.checked_mul(2).map(One::Inner);
            }
        };
        self.take(skip).map(|_| One::Other)
    }
}

enum One<'a> {
    Text(&'a [u8]),
    Other,
    /// So many values follow that are within it.
    Inner(usize),
}
