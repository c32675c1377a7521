//! Request ids: the client's own, or a random UUID (version 4), as the proxies we replace make them.

use crate::rng::Rng;

/// A client's id longer than this, or with other than visible ASCII in it, is replaced: it goes into
/// heads and logs.
pub const ID_MAX: usize = 256;

pub fn usable(id: &[u8]) -> bool {
    !id.is_empty() && id.len() <= ID_MAX && id.iter().all(u8::is_ascii_graphic)
}

/// A new id, 36 characters.
pub fn fresh(rng: &Rng) -> String {
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&rng.next().to_ne_bytes());
    bytes[8..].copy_from_slice(&rng.next().to_ne_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut id = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        id.push(HEX[(byte >> 4) as usize] as char);
        id.push(HEX[(byte & 15) as usize] as char);
    }
    id
}
