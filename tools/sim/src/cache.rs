//! Blocks of prompts whose KV is kept: by each engine for itself, and in a store that several share. A block's key
//! hangs on everything before it, so KV that is found is always that of the prompt.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::ledger::lock;
use crate::text::{BLOCK_BYTES, BLOCK_TOKENS, hash, mix};

const KEY: u64 = 11;
/// Blocks that are remembered; then all are forgotten, as a full cache would forget some.
const REMEMBERED: usize = 1 << 18;

/// Keys of the whole blocks of a prompt, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks(pub Vec<u64>);

impl Blocks {
    /// `media`: what is in the prompt besides its text.
    pub fn of(text: &[u8], media: u64) -> Blocks {
        let mut before = mix(KEY, media);
        let whole = text.chunks_exact(BLOCK_BYTES);
        Blocks(
            whole
                .map(|block| {
                    before = hash(before, block);
                    before
                })
                .collect(),
        )
    }

    pub fn tokens(&self) -> u64 {
        self.0.len() as u64 * u64::from(BLOCK_TOKENS)
    }
}

#[derive(Default)]
pub(crate) struct Cache(Mutex<HashSet<u64>>);

impl Cache {
    /// Tokens that a prompt with these blocks begins with and that are here.
    pub fn hit(&self, blocks: &Blocks) -> u64 {
        let here = lock(&self.0);
        let found = blocks.0.iter().take_while(|key| here.contains(key)).count();
        found as u64 * u64::from(BLOCK_TOKENS)
    }

    pub fn put(&self, blocks: &Blocks) {
        let mut here = lock(&self.0);
        if here.len() + blocks.0.len() > REMEMBERED {
            here.clear();
        }
        here.extend(&blocks.0);
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_alike_is_found() {
        let text = |n: usize, last: u8| [vec![b'a'; n], vec![last; 100]].concat();
        let cache = Cache::default();
        cache.put(&Blocks::of(&text(96, b'x'), 0));
        assert_eq!(cache.hit(&Blocks::of(&text(96, b'x'), 0)), 64);
        assert_eq!(cache.hit(&Blocks::of(&text(96, b'y'), 0)), 32);
        assert_eq!(cache.hit(&Blocks::of(&text(96, b'x'), 1)), 0);
        // The same block behind another one is another block.
        assert_eq!(cache.hit(&Blocks::of(&text(48, b'x'), 0)), 16);
    }
}
