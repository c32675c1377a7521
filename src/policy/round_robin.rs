//! One after the other, exactly, over all shards: the turn is shared, since the next request may come in
//! on another core. Each role of each model has its own.

use std::sync::atomic::Ordering;

use super::{Ask, Candidate, Policy, Spec};

pub const SPEC: Spec = Spec {
    name: "round_robin",
    about: "one instance after the other",
    ring: false,
    lengths: false,
    build: || Box::new(RoundRobin),
};

struct RoundRobin;

impl Policy for RoundRobin {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        let count = candidates.len() as u64;
        // The place itself is kept, not a count of picks: when candidates come and go, the next one is
        // still the one behind the last.
        let next = |turn: u64| Some(turn % count + 1);
        let turn = ask
            .turn
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        (turn.unwrap_or_default() % count) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;
    use crate::config::Role;

    #[test]
    fn all_are_visited_in_turn() {
        let scene = Scene::default();
        let picks: Vec<_> = (0..6)
            .map(|_| RoundRobin.pick(&candidates(3), &scene.ask(Role::Decode)))
            .collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    /// Position mod number of candidates; then the position is that plus one.
    #[test]
    fn the_turn_goes_on_when_candidates_come_and_go() {
        let scene = Scene::default();
        let pick = |n| RoundRobin.pick(&candidates(n), &scene.ask(Role::Decode));
        assert_eq!([pick(3), pick(3), pick(3)], [0, 1, 2]);
        assert_eq!([pick(2), pick(2)], [1, 0]);
        assert_eq!([pick(1), pick(3)], [0, 1]);
    }

    #[test]
    fn threads_share_the_turn_and_nobody_is_skipped() {
        use std::sync::atomic::AtomicUsize;
        let turn = std::sync::atomic::AtomicU64::new(0);
        let picked: [AtomicUsize; 5] = Default::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let scene = Scene::default();
                    let five = candidates(5);
                    for _ in 0..1000 {
                        let ask = Ask {
                            turn: &turn,
                            ..scene.ask(Role::Decode)
                        };
                        picked[RoundRobin.pick(&five, &ask)].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(picked.map(AtomicUsize::into_inner), [800; 5]);
    }
}
