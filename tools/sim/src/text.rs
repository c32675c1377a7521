//! The "model": a tokenizer that cuts every three bytes, and text that is a pure function of prompt,
//! choice and position. Every token carries a mark of its prompt, so another request's bytes show.

/// Bytes per token.
const PIECE: usize = 3;
pub(crate) const IMAGE_TOKENS: u32 = 256;
/// Tokens that share a block of KV, and the bytes that they stand for.
pub(crate) const BLOCK_TOKENS: u32 = 16;
pub(crate) const BLOCK_BYTES: usize = BLOCK_TOKENS as usize * PIECE;
/// Length of one generated token: ` w` + six hex digits of the prompt's mark + four of the position.
pub(crate) const TOKEN_BYTES: usize = 12;
/// What a hash is turned by when D read the wrong KV: the text is fluent, and wrong.
const STALE: u64 = 0x5bd1_e995_97f4_a7c5;

/// Multiply and fold: cheap and well spread; no claim beyond that.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Four chains side by side, as one would spend its time waiting for each product.
pub(crate) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let start = mix(seed, bytes.len() as u64);
    let mut lanes = [start, start ^ 1, start ^ 2, start ^ 3];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (lane, eight) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*eight));
        }
    }
    let mut h = mix(mix(lanes[0], lanes[1]), mix(lanes[2], lanes[3]));
    for part in rest.chunks(8) {
        let mut last = [0; 8];
        last[..part.len()].copy_from_slice(part);
        h = mix(h, u64::from_le_bytes(last));
    }
    h
}

pub(crate) fn stale(prompt: u64) -> u64 {
    mix(prompt, STALE)
}

pub(crate) fn count(bytes: &[u8]) -> u32 {
    bytes.len().div_ceil(PIECE) as u32
}

/// The token ids of a text. An id is the piece's bytes with its length on top, so `detokenize` can
/// give back exactly what went in.
pub fn tokenize(bytes: &[u8]) -> Vec<u32> {
    let id = |piece: &[u8]| {
        let bytes = piece
            .iter()
            .rev()
            .fold(0u32, |id, b| id << 8 | u32::from(*b));
        (piece.len() as u32 - 1) << 24 | bytes
    };
    bytes.chunks(PIECE).map(id).collect()
}

/// The text of token ids, or `None` if one of them is not of our making.
pub fn detokenize(ids: &[u32]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(ids.len() * PIECE);
    for id in ids {
        let length = (id >> 24) as usize + 1;
        if length > PIECE {
            return None;
        }
        text.extend_from_slice(&id.to_le_bytes()[..length]);
    }
    Some(text)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

pub(crate) fn push_hex(out: &mut Vec<u8>, value: u64, digits: usize) {
    for digit in (0..digits).rev() {
        out.push(HEX[(value >> (4 * digit)) as usize & 15]);
    }
}

/// Appends token `index` of choice `choice`.
pub(crate) fn push_token(out: &mut Vec<u8>, prompt: u64, choice: u32, index: u32) {
    out.extend_from_slice(b" w");
    push_hex(out, prompt >> 40, 6);
    push_hex(
        out,
        mix(prompt, u64::from(choice) << 32 | u64::from(index)),
        4,
    );
}

pub(crate) fn token_id(prompt: u64, choice: u32, index: u32) -> u32 {
    (mix(prompt, u64::from(choice) << 32 | u64::from(index)) >> 32) as u32 & 0x2ff_ffff
}

/// The mark that every token of an answer to this prompt starts with (` w` and six hex digits).
/// Takes the hash that [`crate::prompt_hash`] gives.
pub fn mark(prompt_hash: u64) -> String {
    let mut out = b" w".to_vec();
    push_hex(&mut out, prompt_hash >> 40, 6);
    String::from_utf8(out).unwrap_or_default()
}

/// The text of tokens `0..tokens` of one choice, as an engine with the right KV writes it.
pub fn expected(prompt_hash: u64, choice: u32, tokens: u32) -> String {
    let mut out = Vec::with_capacity(tokens as usize * TOKEN_BYTES);
    (0..tokens).for_each(|i| push_token(&mut out, prompt_hash, choice, i));
    String::from_utf8(out).unwrap_or_default()
}

pub(crate) fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_give_back_the_text() {
        for text in ["", "a", "ab\0", "héllo wörld"] {
            let ids = tokenize(text.as_bytes());
            assert_eq!(ids.len() as u32, count(text.as_bytes()));
            assert_eq!(detokenize(&ids).unwrap(), text.as_bytes());
        }
        assert_eq!(detokenize(&[u32::MAX]), None);
    }
}
