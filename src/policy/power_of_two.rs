//! Two instances at random, and of them the one with fewer requests: nearly as good as asking all, and
//! only two counters are read.

use super::{Ask, Candidate, Policy, Spec};

pub const SPEC: Spec = Spec {
    name: "power_of_two",
    about: "the less busy of two random instances",
    ring: false,
    lengths: false,
    build: || Box::new(PowerOfTwo),
};

struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        let count = candidates.len() as u64;
        if count < 2 {
            return 0;
        }
        let first = ask.rng.next() % count;
        // Among the others: those from `first` on move up by one.
        let second = ask.rng.next() % (count - 1);
        let second = second + u64::from(second >= first);
        let (first, second) = (first as usize, second as usize);
        let requests = |at: usize| ask.facts.load(candidates[at].position).requests;
        match requests(second) < requests(first) {
            true => second,
            false => first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;
    use crate::config::Role;

    fn picks(loads: &[(i64, i64)], times: usize) -> Vec<usize> {
        let scene = Scene::with_loads(loads);
        let mut counts = vec![0; loads.len()];
        for _ in 0..times {
            counts[PowerOfTwo.pick(&candidates(loads.len()), &scene.ask(Role::Decode))] += 1;
        }
        counts
    }

    #[test]
    fn the_busiest_of_all_is_never_taken() {
        let counts = picks(&[(3, 0), (9, 0), (3, 0)], 1000);
        assert_eq!(counts[1], 0);
        assert!(counts[0] > 300 && counts[2] > 300, "{counts:?}");
    }

    /// Each of n(n-1) ordered pairs is as likely as another, so the least busy of four is in half of them.
    #[test]
    fn pairs_are_distinct_and_even() {
        let counts = picks(&[(0, 0), (1, 0), (2, 0), (3, 0)], 60_000);
        for (count, share) in counts.iter().zip([3.0, 2.0, 1.0, 0.0]) {
            let wanted = share / 6.0 * 60_000.0;
            assert!((*count as f64 - wanted).abs() < 600.0, "{counts:?}");
        }
        let even = picks(&[(5, 0); 4], 60_000);
        assert!(even.iter().all(|n| n.abs_diff(15_000) < 600), "{even:?}");
    }

    #[test]
    fn one_is_enough() {
        assert_eq!(picks(&[(7, 7)], 3), [3]);
    }
}
