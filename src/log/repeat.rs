//! Messages that would come a thousand times a second (an instance is down) are shown once a second,
//! with the number of those that were not.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{Level, enabled, write};

const INTERVAL: Duration = Duration::from_secs(1);
const SLOTS: usize = 512;
/// A key lives in the first free slot of so many; if none is free it shares the last of them.
const PROBES: usize = 8;

/// One kind of message. Only atomics: shards meet here when things go wrong, the worst time to wait.
struct Slot {
    /// Hash of the key; 0 is free. Keys are never removed: they are few.
    key: AtomicU64,
    /// When the next one may be shown, in milliseconds since the first message of the process.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl Slot {
    const fn free() -> Slot {
        Slot {
            key: AtomicU64::new(0),
            next_ms: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }
}

pub(super) struct Limiter {
    slots: [Slot; SLOTS],
}

static LIMITER: Limiter = Limiter::new();
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Logs at most once a second for each `key`. The text is made only if it is shown.
pub fn limited(key: &'static str, level: Level, text: impl FnOnce() -> String) {
    limited_for(key, "", level, text);
}

/// Logs at most once a second for each `key` and `subject`, such as an instance's address.
pub fn limited_for(key: &'static str, subject: &str, level: Level, text: impl FnOnce() -> String) {
    if !enabled(level) {
        return;
    }
    let now = u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX);
    match LIMITER.admit(key, subject, now) {
        None => {}
        Some(0) => write(level, text()),
        Some(n) => write(
            level,
            format!("{} ({n} more like this since the last)", text()),
        ),
    }
}

impl Limiter {
    pub const fn new() -> Limiter {
        Limiter {
            slots: [const { Slot::free() }; SLOTS],
        }
    }

    /// The number suppressed since the last one shown, if this one may be shown.
    pub fn admit(&self, key: &str, subject: &str, now_ms: u64) -> Option<u64> {
        let slot = self.slot(key, subject);
        let next = slot.next_ms.load(Relaxed);
        let later = now_ms.saturating_add(INTERVAL.as_millis() as u64);
        // Of several threads that find the second over, the exchange lets one through.
        let won = now_ms >= next
            && slot
                .next_ms
                .compare_exchange(next, later, Relaxed, Relaxed)
                .is_ok();
        if won {
            return Some(slot.suppressed.swap(0, Relaxed));
        }
        slot.suppressed.fetch_add(1, Relaxed);
        None
    }

    fn slot(&self, key: &str, subject: &str) -> &Slot {
        let mut hasher = DefaultHasher::new();
        (key, subject).hash(&mut hasher);
        let hash = hasher.finish().max(1);
        let at = |probe: usize| &self.slots[(hash as usize).wrapping_add(probe) % SLOTS];
        let ours = |slot: &&Slot| match slot.key.load(Relaxed) {
            0 => slot
                .key
                .compare_exchange(0, hash, Relaxed, Relaxed)
                .map_or_else(|k| k == hash, |_| true),
            key => key == hash,
        };
        (0..PROBES)
            .map(at)
            .find(ours)
            .unwrap_or_else(|| at(PROBES - 1))
    }
}
