//! Request ids: the client's own, or a random UUID (version 4), as the proxies we replace make them.

use std::fmt;
use std::ops::Deref;

use crate::rng::Rng;

/// A client's id longer than this, or with other than visible ASCII in it, is replaced: it goes into
/// heads and logs.
pub const ID_MAX: usize = 256;

/// Characters of one of ours.
const FRESH: usize = 36;

pub fn usable(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= ID_MAX && id.iter().all(u8::is_ascii_graphic)
}

/// An id as text. Most are ours, and need no memory of their own.
#[derive(Clone)]
pub enum Id {
    /// ASCII.
    Fresh([u8; FRESH]),
    Given(Box<str>),
}

/// A new id, 36 characters.
pub fn fresh(rng: &Rng) -> Id {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&rng.next().to_ne_bytes());
    bytes[8..].copy_from_slice(&rng.next().to_ne_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut id = [b'-'; FRESH];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        id[at] = HEX[(byte >> 4) as usize];
        id[at + 1] = HEX[(byte & 15) as usize];
        at += 2;
    }
    Id::Fresh(id)
}

impl Deref for Id {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Id::Fresh(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            Id::Given(text) => text,
        }
    }
}

impl Default for Id {
    /// None, yet.
    fn default() -> Id {
        Id::Given(Box::default())
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Id {
        Id::Given(text.into())
    }
}

impl From<Box<str>> for Id {
    fn from(text: Box<str>) -> Id {
        Id::Given(text)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_id_is_a_random_uuid() {
        let rng = Rng::from_entropy();
        let (one, other) = (fresh(&rng), fresh(&rng));
        assert_ne!(*one, *other);
        let parts: Vec<&str> = one.split('-').collect();
        assert_eq!(
            parts.iter().map(|p| p.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert!(
            parts
                .concat()
                .bytes()
                .all(|b| b"0123456789abcdef".contains(&b))
        );
        assert!(parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]));
    }
}
