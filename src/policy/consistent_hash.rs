//! A session stays where it is: the `X-Session-Id` field, else the body's `user`, else the client's address
//! is hashed to a place on a ring, and the next instance clockwise is the one. An instance that goes takes
//! only its own sessions with it.

use super::{Ask, Candidate, Policy, Spec, clockwise};

pub const SPEC: Spec = Spec {
    name: "consistent_hash",
    about: "the same instance for the same session: X-Session-Id, else user, else client address",
    ring: true,
    lengths: false,
    build: || Box::new(ConsistentHash),
};

struct ConsistentHash;

impl Policy for ConsistentHash {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        clockwise(candidates, ask.facts.session(), ask)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;

    fn pick(ring: &Scene, of: usize, key: &str) -> usize {
        ConsistentHash.pick(&candidates(of), &ring.session(key))
    }

    /// Seen on xPyD-proxy 1.8.0.
    #[test]
    fn keys_are_where_the_old_proxy_had_them() {
        let prefill = Scene::ring(&["10.0.0.1:8100", "10.0.0.2:8100"], 160);
        let decode = Scene::ring(&["10.0.0.3:8200", "10.0.0.4:8200"], 160);
        for (key, p, d) in [
            ("s1", 1, 1),
            ("user-42", 0, 0),
            ("127.0.0.1", 1, 0),
            ("__default__", 1, 1),
        ] {
            let places = (pick(&prefill, 2, key), pick(&decode, 2, key));
            assert_eq!(places, (p, d), "{key}");
        }
    }

    /// The rule as it is written: all points of all workers in one list, and a walk to the first eligible.
    #[test]
    fn it_is_the_walk_along_one_sorted_ring() {
        use crate::cluster::ring::place;
        let names: Vec<String> = (0..5).map(|i| format!("10.1.0.{i}:8000")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let ring = Scene::ring(&names, 40);
        let mut all: Vec<(u128, usize)> = Vec::new();
        for (worker, name) in names.iter().enumerate() {
            all.extend((0..40).map(|i| (place(format!("{name}#{i}").as_bytes()), worker)));
        }
        all.sort_unstable();
        for key in 0..500 {
            let key = format!("key-{key}");
            let at = place(key.as_bytes());
            let next = all.iter().find(|(point, _)| *point > at).unwrap_or(&all[0]);
            assert_eq!(pick(&ring, 5, &key), next.1, "{key}");
        }
        // Strictly behind: a key that stands on a point belongs to the next one.
        let on = ConsistentHash.pick(&candidates(5), &ring.session_at(all[7].0));
        assert_eq!(on, all[8].1);
        // Behind the last point the ring begins anew.
        let last = ring.session_at(all[all.len() - 1].0);
        assert_eq!(ConsistentHash.pick(&candidates(5), &last), all[0].1);
    }

    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn keys_are_spread_and_only_those_of_a_lost_instance_move(
            hosts in 2usize..9,
            gone in any::<prop::sample::Index>(),
            net in 0u8..255,
        ) {
            let names: Vec<String> = (0..hosts).map(|i| format!("10.{net}.0.{i}:80")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let ring = Scene::ring(&names, 160);
            let (all, gone) = (candidates(hosts), gone.index(hosts));
            let mut rest = all.clone();
            rest.remove(gone);
            let mut counts = vec![0; hosts];
            for key in 0..2000 {
                let ask = ring.session(&format!("{net}-{key}"));
                let before = ConsistentHash.pick(&all, &ask);
                counts[before] += 1;
                let after = rest[ConsistentHash.pick(&rest, &ask)].position;
                prop_assert!(after != gone && (after == before || before == gone));
            }
            // With 160 points each, shares differ by some 8 %; five times that never happens.
            let (least, most) = (2000 * 6 / hosts / 10, 2000 * 14 / hosts / 10);
            prop_assert!(counts.iter().all(|n| (least..=most).contains(n)), "{counts:?}");
        }
    }
}
