//! What the fuzz targets share: splits of the input, and slow, obvious readers of the same formats that
//! share no code with pdrelay.
//!
//! An input is always the format itself, so that seeds are plain text. What else a target chooses (where
//! to split, which edits to make) is drawn from a hash of the input: the same input fails again.

pub mod head;
pub mod json;

/// Choices that depend on the input alone.
pub struct Dice(u64);

impl Dice {
    pub fn of(data: &[u8]) -> Dice {
        // FNV-1a, stirred by each roll.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Dice(data.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// From 0 to `sides - 1`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % sides as u64) as usize
    }

    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

/// Ways to cut the input: whole, byte by byte, in two, in a few pieces of which some may be empty.
pub fn splits<'a>(data: &'a [u8], dice: &mut Dice) -> Vec<Vec<&'a [u8]>> {
    let mut all = vec![vec![data], data.chunks(1).collect()];
    for cuts in [1, 1, 4] {
        let mut at: Vec<usize> = (0..cuts).map(|_| dice.roll(data.len() + 1)).collect();
        at.push(data.len());
        at.sort_unstable();
        let mut start = 0;
        let mut pieces = Vec::new();
        for end in at {
            pieces.push(&data[start..end]);
            start = end;
        }
        all.push(pieces);
    }
    all
}
