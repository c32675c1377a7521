//! The breaker under threads that disagree: one opening, one trial, and always a way back.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use crate::cluster::breaker::{Breaker, State};
use crate::config::CircuitBreaker;
use crate::every_order;

const INITIAL: u64 = 1_000;
const MAX: u64 = 30_000;

fn breaker() -> Arc<Breaker> {
    Arc::new(Breaker::new(&CircuitBreaker {
        enabled: true,
        failure_threshold: 2,
        success_threshold: 2,
        ejection_initial: Duration::from_millis(INITIAL),
        ejection_max: Duration::from_millis(MAX),
        window: Duration::from_secs(60),
    }))
}

/// Each on a thread of its own, the last on this one; what they returned.
fn together<const N: usize>(breaker: &Arc<Breaker>, acts: [fn(&Breaker) -> bool; N]) -> Vec<bool> {
    let (here, others) = acts.split_last().expect("at least one");
    let threads: Vec<_> = others
        .iter()
        .map(|act| {
            let (act, breaker) = (*act, breaker.clone());
            thread::spawn(move || act(&breaker))
        })
        .collect();
    let last = here(breaker);
    let joined = threads.into_iter().map(|t| t.join().unwrap());
    joined
        .collect::<Vec<_>>()
        .into_iter()
        .chain([last])
        .collect()
}

fn trues(outcomes: &[bool]) -> usize {
    outcomes.iter().filter(|o| **o).count()
}

/// Whatever has happened by `now`: it is not shut for longer than the longest term, then there is one
/// trial at a time, and good answers close it.
fn comes_back(breaker: &Breaker, now: u64) {
    let late = now + MAX + MAX / 4;
    assert_ne!(breaker.state(late), State::Open, "open for ever");
    let mut trials = 0;
    while breaker.state(late) != State::Closed {
        assert!(breaker.claim_trial(late), "no trial");
        assert!(!breaker.claim_trial(late), "two trials");
        breaker.succeeded(late, true);
        trials += 1;
        assert!(trials <= 2, "good answers do not close it");
    }
    // And is as good as new.
    assert!(breaker.unreachable(late, 0.0, false));
    assert_eq!(
        breaker.state(late + INITIAL),
        State::HalfOpen,
        "a term too long"
    );
}

#[test]
fn many_that_cannot_reach_it_open_it_once() {
    every_order(Some(2), || {
        let b = breaker();
        let one = |b: &Breaker| b.unreachable(1, 0.0, false);
        assert_eq!(trues(&together(&b, [one, one, one])), 1);
        assert_eq!(b.falls(), 1);
        assert_eq!(b.state(INITIAL), State::Open);
        assert_eq!(
            b.state(INITIAL + 1),
            State::HalfOpen,
            "the term has doubled"
        );
        assert!(b.claim_trial(INITIAL + 1));
        assert!(b.unreachable(INITIAL + 1, 0.0, true));
        let end = INITIAL + 1 + 2 * INITIAL;
        assert_eq!(
            (b.state(end - 1), b.state(end)),
            (State::Open, State::HalfOpen)
        );
    });
}

#[test]
fn many_that_fail_open_it_once() {
    every_order(Some(2), || {
        let b = breaker();
        assert!(!b.failed(1, 0.0, false));
        let one = |b: &Breaker| b.failed(2, 0.0, false);
        let opened = trues(&together(&b, [one, one]));
        assert_eq!(opened, 1);
        assert_eq!(
            b.state(2 + INITIAL),
            State::HalfOpen,
            "the term has doubled"
        );
        comes_back(&b, 2);
    });
}

/// A first failure of each of two threads: the count may miss one of them at the turn of a window, but
/// not two.
#[test]
fn failures_are_counted_across_threads() {
    every_order(Some(2), || {
        let b = breaker();
        let one = |b: &Breaker| b.failed(1, 0.0, false);
        let opened = together(&b, [one, one]);
        assert!(trues(&opened) == 1 || b.failed(2, 0.0, false), "{opened:?}");
    });
}

#[test]
fn one_thread_gets_the_trial() {
    every_order(None, || {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        let claim = |b: &Breaker| b.claim_trial(1 + INITIAL);
        assert_eq!(trues(&together(&b, [claim, claim, claim])), 1);
    });
}

/// The trial fails while a probe says that it can be reached, and an old request is answered.
#[test]
fn a_way_back_from_unreachable() {
    every_order(Some(2), || {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        assert!(b.claim_trial(1 + INITIAL));
        together(
            &b,
            [
                |b| b.unreachable(1 + INITIAL, 0.0, true),
                |b| b.probed(),
                |b| b.succeeded(1 + INITIAL, false),
            ],
        );
        comes_back(&b, 1 + INITIAL);
    });
}

/// A good probe ends an unreachable time whoever claims a trial meanwhile.
#[test]
fn a_good_probe_is_never_lost() {
    every_order(None, || {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        let [.., probed] = together(&b, [|b| b.claim_trial(1 + INITIAL), |b| b.probed()])[..]
        else {
            unreachable!()
        };
        assert!(probed);
        assert_eq!(b.state(2 * INITIAL), State::Closed);
    });
}

/// A probe says that it can be reached, not that it answers well: it must not close what a failed trial
/// has just opened again.
#[test]
fn a_probe_never_closes_a_failing_instance() {
    every_order(None, || {
        let b = breaker();
        b.unreachable(1, 0.0, false);
        assert!(b.claim_trial(1 + INITIAL));
        let outcomes = together(&b, [|b| b.failed(2 + INITIAL, 0.0, true), |b| b.probed()]);
        // One of them came too late to change anything, or the failure came second and opened it again.
        let [failed, probed] = outcomes[..] else {
            unreachable!()
        };
        assert!(failed || probed);
        assert_eq!(b.state(2 + INITIAL) == State::Open, failed);
        comes_back(&b, 2 + INITIAL);
    });
}

/// Two trials (the first took longer than a term) succeed at once: closed, and it stays closed.
#[test]
fn a_late_trial_never_opens_what_another_has_closed() {
    every_order(None, || {
        let b = breaker();
        b.failed(1, 0.0, false);
        assert!(b.failed(1, 0.0, false));
        assert!(b.claim_trial(1 + INITIAL) && b.claim_trial(1 + 2 * INITIAL));
        let now = 2 + 2 * INITIAL;
        let outcomes = together(
            &b,
            [
                |b| b.succeeded(2 + 2 * INITIAL, true),
                |b| b.succeeded(2 + 2 * INITIAL, true),
            ],
        );
        assert_eq!(
            trues(&outcomes) == 1,
            b.state(now) == State::Closed,
            "{outcomes:?}"
        );
        comes_back(&b, now);
    });
}

/// Good and bad answers of old requests and of the trial, in any order.
#[test]
fn a_way_back_from_failing() {
    every_order(Some(2), || {
        let b = breaker();
        b.failed(1, 0.0, false);
        assert!(b.failed(1, 0.0, false));
        assert!(b.claim_trial(1 + INITIAL));
        together(
            &b,
            [
                |b| b.failed(2 + INITIAL, 0.0, true),
                |b| b.unreachable(2 + INITIAL, 0.0, false),
                |b| b.succeeded(2 + INITIAL, true),
            ],
        );
        comes_back(&b, 2 + INITIAL);
    });
}
