//! Ejection: an instance that cannot be reached is left alone for a while, process-wide.
//!
//! Pure but for its atomics: time and randomness are arguments. Times are milliseconds of one clock that
//! all threads share (see [`now_ms`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds since the process first asked; the clock of ejections.
pub fn now_ms() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // Never 0, which means "not ejected".
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// Ejected for `initial`, doubling up to `max` while it keeps failing, plus up to a quarter of jitter so
/// that the shards of many proxies do not return together. When the time is over, one request is let
/// through as a trial; until it has an outcome (or as long again has passed) the others stay away.
pub struct Ejection {
    enabled: bool,
    initial_ms: u64,
    max_ms: u64,
    /// 0 = not ejected.
    until_ms: AtomicU64,
    /// Failures in a row.
    level: AtomicU32,
}

/// What an instance's ejection says to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Open,
    /// Its time is over: whoever claims the trial may go.
    Trial,
    Ejected,
}

impl Ejection {
    pub fn with(enabled: bool, initial_ms: u64, max_ms: u64) -> Ejection {
        Ejection {
            enabled,
            initial_ms: initial_ms.max(1),
            max_ms: max_ms.max(initial_ms).max(1),
            until_ms: AtomicU64::new(0),
            level: AtomicU32::new(0),
        }
    }

    pub fn admission(&self, now_ms: u64) -> Admission {
        match self.until_ms.load(Ordering::Relaxed) {
            0 => Admission::Open,
            until if now_ms < until => Admission::Ejected,
            _ => Admission::Trial,
        }
    }

    pub fn ejected(&self, now_ms: u64) -> bool {
        self.admission(now_ms) == Admission::Ejected
    }

    /// Claims the one trial: true for exactly one caller.
    pub fn claim_trial(&self, now_ms: u64) -> bool {
        let until = self.until_ms.load(Ordering::Relaxed);
        until != 0
            && until <= now_ms
            && self
                .until_ms
                .compare_exchange(
                    until,
                    now_ms + self.initial_ms,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// It could not be reached. `jitter` in `[0, 1)`. Returns true if this ejected it anew.
    pub fn failed(&self, now_ms: u64, jitter: f64) -> bool {
        if !self.enabled {
            return false;
        }
        let until = self.until_ms.load(Ordering::Relaxed);
        if until > now_ms && self.level.load(Ordering::Relaxed) > 0 {
            // Requests that were under way when it was ejected do not make it worse; a failed trial
            // comes here as well, and leaves with the trial's own term. See `trial_failed`.
            return false;
        }
        self.eject(now_ms, jitter);
        true
    }

    /// The claimed trial failed: twice as long.
    pub fn trial_failed(&self, now_ms: u64, jitter: f64) {
        if self.enabled {
            self.eject(now_ms, jitter);
        }
    }

    fn eject(&self, now_ms: u64, jitter: f64) {
        let level = self.level.fetch_add(1, Ordering::Relaxed).min(20);
        let term = self.initial_ms.saturating_mul(1 << level).min(self.max_ms);
        let term = term + (term as f64 * 0.25 * jitter) as u64;
        self.until_ms.store(now_ms + term, Ordering::Relaxed);
    }

    /// It answered, to a request or a probe. True if it had been ejected.
    pub fn succeeded(&self) -> bool {
        if self.until_ms.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.level.store(0, Ordering::Relaxed);
        self.until_ms.swap(0, Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_double_to_the_maximum() {
        let e = Ejection::with(true, 1_000, 30_000);
        let mut now = 1;
        for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert!(e.failed(now, 0.0));
            assert!(e.ejected(now + expected - 1));
            assert_eq!(e.admission(now + expected), Admission::Trial);
            now += expected;
        }
    }

    #[test]
    fn only_one_request_gets_the_trial() {
        let e = Ejection::with(true, 1_000, 30_000);
        e.failed(1, 0.0);
        assert!(!e.claim_trial(500));
        assert!(e.claim_trial(1_001));
        assert!(!e.claim_trial(1_001));
        // A trial without an outcome does not shut the instance out for ever.
        assert!(e.claim_trial(2_001));
        assert!(e.succeeded());
        assert_eq!(e.admission(2_002), Admission::Open);
    }

    #[test]
    fn late_failures_do_not_lengthen_an_ejection() {
        let e = Ejection::with(true, 1_000, 30_000);
        assert!(e.failed(1, 0.0));
        assert!(!e.failed(2, 0.0));
        assert_eq!(e.admission(1_001), Admission::Trial);
    }

    #[test]
    fn switched_off_never_ejects() {
        let e = Ejection::with(false, 1_000, 30_000);
        assert!(!e.failed(1, 0.0));
        assert_eq!(e.admission(1), Admission::Open);
    }
}
