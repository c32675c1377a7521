//! A small fast random generator (SplitMix64) for ids, jitter and sampling; not for secrets.

use std::cell::Cell;

pub struct Rng(Cell<u64>);

impl Rng {
    pub fn seeded(seed: u64) -> Rng {
        Rng(Cell::new(seed))
    }

    /// Seeded by the kernel.
    pub fn from_entropy() -> Rng {
        let mut seed = [0u8; 8];
        // SAFETY: eight bytes of room. If the kernel gives none, the clock has to do.
        let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
        if got != 8 {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            seed = (now.map_or(1, |d| d.as_nanos() as u64)).to_ne_bytes();
        }
        Rng::seeded(u64::from_ne_bytes(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
