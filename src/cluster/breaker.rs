//! The breaker: an instance that cannot be reached, or keeps failing, is left alone for a while,
//! process-wide.
//!
//! ```text
//!            unreachable once, or failure_threshold failures within the window
//!   Closed ------------------------------------------------------------------> Open
//!     ^                                                                          | its term is over
//!     |  one success (unreachable), success_threshold (failing)                  v
//!     +-------------------------------------------------------------------- HalfOpen
//!                                                     a failed trial: Open, twice as long
//! ```
//!
//! Pure but for its atomics: time and randomness are arguments. Times are milliseconds of one clock that
//! all threads share (see [`now_ms`]). It recovers by itself: HalfOpen lets one request at a time through.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::CircuitBreaker;

/// Milliseconds of the process's clock; the clock of breakers. Never 0, which means "not open".
pub fn now_ms() -> u64 {
    at_ms(crate::net::sweep::process_origin().elapsed())
}

/// The same, of a reading that has been taken already.
pub fn at_ms(since_start: Duration) -> u64 {
    since_start.as_millis() as u64 + 1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Open,
    /// Whoever claims the trial may go.
    HalfOpen,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// When an open breaker's term ends, how many times it was opened in a row (up to 31), and whether that was
/// because nothing could be reached (then a health probe can close it).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

const CLOSED: Word = Word(0);
const LEVEL_MAX: u64 = 31;

impl Word {
    fn open(until_ms: u64, level: u64, unreachable: bool) -> Word {
        Word(until_ms << 6 | level.min(LEVEL_MAX) << 1 | u64::from(unreachable))
    }

    /// The same, with another end.
    fn until(self, until_ms: u64) -> Word {
        Word::open(until_ms, self.level(), self.unreachable())
    }

    fn until_ms(self) -> u64 {
        self.0 >> 6
    }

    fn level(self) -> u64 {
        self.0 >> 1 & LEVEL_MAX
    }

    fn unreachable(self) -> bool {
        self.0 & 1 == 1
    }

    fn state(self, now_ms: u64) -> State {
        match self {
            CLOSED => State::Closed,
            word if now_ms < word.until_ms() => State::Open,
            _ => State::HalfOpen,
        }
    }
}

/// Open for `ejection_initial`, doubling up to `ejection_max` while it keeps failing, plus up to a quarter
/// of jitter, so that the shards of many proxies do not return together.
pub struct Breaker {
    enabled: bool,
    failure_threshold: u32,
    success_threshold: u32,
    initial_ms: u64,
    max_ms: u64,
    window_ms: u64,
    /// What decides, in one [`Word`], so that no thread sees half of a change. Whoever changes it does so
    /// from the word that it judged by.
    word: AtomicU64,
    failures: AtomicU32,
    window_began_ms: AtomicU64,
    successes: AtomicU32,
    /// Times it was seen to go away.
    falls: AtomicU64,
}

impl Breaker {
    pub fn new(config: &CircuitBreaker) -> Breaker {
        let initial_ms = (config.ejection_initial.as_millis() as u64).max(1);
        Breaker {
            enabled: config.enabled,
            failure_threshold: config.failure_threshold.max(1),
            success_threshold: config.success_threshold.max(1),
            initial_ms,
            max_ms: (config.ejection_max.as_millis() as u64).max(initial_ms),
            window_ms: config.window.as_millis() as u64,
            word: AtomicU64::new(CLOSED.0),
            failures: AtomicU32::new(0),
            window_began_ms: AtomicU64::new(0),
            successes: AtomicU32::new(0),
            falls: AtomicU64::new(0),
        }
    }

    fn word(&self) -> Word {
        Word(self.word.load(Relaxed))
    }

    /// True if nobody else was first.
    fn change(&self, seen: Word, to: Word) -> bool {
        let word = &self.word;
        word.compare_exchange(seen.0, to.0, Relaxed, Relaxed)
            .is_ok()
    }

    pub fn state(&self, now_ms: u64) -> State {
        self.word().state(now_ms)
    }

    /// Claims the one trial: true for exactly one caller. A trial without an outcome does not shut the
    /// instance out for ever: after `ejection_initial` there is another.
    pub fn claim_trial(&self, now_ms: u64) -> bool {
        let seen = self.word();
        let next = now_ms + self.initial_ms;
        seen.state(now_ms) == State::HalfOpen && self.change(seen, seen.until(next))
    }

    /// It could not be reached. `jitter` in `[0, 1)`. True if this opened it.
    pub fn unreachable(&self, now_ms: u64, jitter: f64, trial: bool) -> bool {
        let seen = self.word();
        if !self.enabled || (seen.state(now_ms) == State::Open && !trial) {
            // Requests that were under way when it opened do not make it worse.
            return false;
        }
        let opened = self.open(seen, true, now_ms, jitter);
        if opened {
            self.fell();
        }
        opened
    }

    /// It was reached, and failed: reset, timeout, garbage, 5xx. True if this opened it.
    pub fn failed(&self, now_ms: u64, jitter: f64, trial: bool) -> bool {
        let seen = self.word();
        if !self.enabled || (seen.state(now_ms) == State::Open && !trial) {
            return false;
        }
        // Two that begin a window at once may count as one: the next failure makes up for it.
        let began = self.window_began_ms.load(Relaxed);
        if began == 0 || now_ms.saturating_sub(began) > self.window_ms {
            self.window_began_ms.store(now_ms, Relaxed);
            self.failures.store(0, Relaxed);
        }
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        if !trial && failures < self.failure_threshold {
            return false;
        }
        self.open(seen, false, now_ms, jitter)
    }

    /// Of many that fail at once, one opens it: the term does not double with each.
    fn open(&self, seen: Word, unreachable: bool, now_ms: u64, jitter: f64) -> bool {
        let level = seen.level();
        let term = self.initial_ms.saturating_mul(1 << level).min(self.max_ms);
        let term = term + (term as f64 * 0.25 * jitter) as u64;
        if !self.change(seen, Word::open(now_ms + term, level + 1, unreachable)) {
            return false;
        }
        self.failures.store(0, Relaxed);
        self.successes.store(0, Relaxed);
        true
    }

    /// It answered a request. True if this closed it.
    pub fn succeeded(&self, now_ms: u64, trial: bool) -> bool {
        let seen = self.word();
        if seen == CLOSED {
            return false;
        }
        if seen.unreachable() {
            return self.reached();
        }
        // Answers to requests from before it opened prove nothing.
        if !trial {
            return false;
        }
        if self.successes.fetch_add(1, Relaxed) + 1 >= self.success_threshold {
            return self.close(seen);
        }
        // The next trial may go at once, unless the outcome of another one came first.
        self.change(seen, seen.until(now_ms.max(1)));
        false
    }

    /// Closed: what the time is makes no difference.
    pub fn at_rest(&self) -> bool {
        self.word() == CLOSED
    }

    /// Its health check passed: it can be reached. (It says nothing about failing requests.)
    pub fn probed(&self) -> bool {
        self.reached()
    }

    /// Closes it if it is open because nothing could be reached.
    fn reached(&self) -> bool {
        // Again as long as others change it: whoever claims a trial meanwhile is no reason to stay open.
        loop {
            let seen = self.word();
            if !seen.unreachable() {
                return false;
            }
            if self.close(seen) {
                return true;
            }
        }
    }

    fn close(&self, seen: Word) -> bool {
        let closed = self.change(seen, CLOSED);
        if closed {
            self.failures.store(0, Relaxed);
        }
        closed
    }

    /// It may have been restarted since: what other instances knew of it is void.
    pub fn fell(&self) {
        self.falls.fetch_add(1, Relaxed);
    }

    /// So that what was noted of another one before cannot be taken for what is known of this.
    pub fn begin_at(&self, falls: u64) {
        self.falls.store(falls, Relaxed);
    }

    pub fn falls(&self) -> u64 {
        self.falls.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn breaker() -> Breaker {
        Breaker::new(&CircuitBreaker {
            enabled: true,
            failure_threshold: 3,
            success_threshold: 2,
            ejection_initial: Duration::from_secs(1),
            ejection_max: Duration::from_secs(30),
            window: Duration::from_secs(60),
        })
    }

    #[test]
    fn terms_double_to_the_maximum() {
        let b = breaker();
        let mut now = 1;
        for expected in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert!(b.unreachable(now, 0.0, false));
            assert_eq!(b.state(now + expected - 1), State::Open);
            assert_eq!(b.state(now + expected), State::HalfOpen);
            now += expected;
        }
    }

    #[test]
    fn a_failed_trial_opens_it_for_twice_as_long() {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        assert!(b.claim_trial(1_001));
        assert!(b.unreachable(1_010, 0.0, true));
        assert_eq!(b.state(3_009), State::Open);
        assert_eq!(b.state(3_010), State::HalfOpen);
    }

    #[test]
    fn only_one_request_gets_the_trial_and_an_idle_instance_comes_back() {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        assert!(!b.claim_trial(500));
        assert!(b.claim_trial(1_001));
        assert!(!b.claim_trial(1_001));
        assert!(
            b.claim_trial(2_001),
            "a trial without an outcome must not be the last"
        );
        assert!(b.succeeded(2_010, true));
        assert_eq!(b.state(2_011), State::Closed);
    }

    #[test]
    fn failures_open_it_only_within_the_window() {
        let b = breaker();
        assert!(!b.failed(1, 0.0, false));
        assert!(!b.failed(2, 0.0, false));
        assert!(!b.failed(70_000, 0.0, false), "the first two are forgotten");
        assert!(!b.failed(70_001, 0.0, false));
        assert!(b.failed(70_002, 0.0, false));
    }

    #[test]
    fn a_failing_instance_must_succeed_twice_and_a_probe_does_not_close_it() {
        let b = breaker();
        for i in 1..=3 {
            b.failed(i, 0.0, false);
        }
        assert!(!b.probed());
        assert!(!b.succeeded(500, false), "an old answer proves nothing");
        assert!(b.claim_trial(1_003));
        assert!(!b.succeeded(1_004, true));
        assert!(b.claim_trial(1_004));
        assert!(b.succeeded(1_005, true));
    }

    #[test]
    fn late_failures_do_not_lengthen_a_term() {
        let b = breaker();
        assert!(b.unreachable(1, 0.0, false));
        assert!(!b.unreachable(2, 0.0, false));
        assert!(!b.failed(3, 0.0, false));
        assert_eq!(b.state(1_001), State::HalfOpen);
    }

    #[test]
    fn switched_off_never_opens() {
        let b = Breaker::new(&CircuitBreaker {
            enabled: false,
            ..CircuitBreaker::default()
        });
        assert!(!b.unreachable(1, 0.0, false));
        assert!((0..100).all(|i| !b.failed(i, 0.0, false)));
        assert_eq!(b.state(1), State::Closed);
    }
}
