//! Floor 3: choose one of the candidates. Door 2: a policy is one file and its row in [`POLICIES`].
//!
//! * **For:** ranking instances by what is known of them and of the request.
//! * **Must never:** do I/O, read a clock or draw random numbers by itself (both come in the [`Ask`]), or
//!   remember a request: a pick that is not used must do no harm.
//! * **To extend:** write `src/policy/foo.rs` with `SPEC` and `pick`; add `mod foo;` and `foo::SPEC`.

mod least_load;
mod round_robin;

use crate::cluster::load::Counts;
use crate::config::Role;

/// One instance that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Position in the snapshot's list of this role: stable while the list is.
    pub position: usize,
    pub load: Counts,
    pub weight: f64,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub role: Role,
    /// Estimated.
    pub prompt_tokens: u64,
    /// Differs from pick to pick and from shard to shard: where ties begin.
    pub rotation: u64,
}

/// A way to choose. One object per role, shared by all shards.
pub trait Policy: Send + Sync {
    /// The index *in `candidates`*, which is never empty and in configured order.
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize;
}

/// A policy's row.
pub struct Spec {
    pub name: &'static str,
    /// One line for `--help` and error messages.
    pub about: &'static str,
    pub build: fn() -> Box<dyn Policy>,
}

pub const POLICIES: &[Spec] = &[round_robin::SPEC, least_load::SPEC];

/// The names, for the config to check against.
pub fn names() -> Vec<&'static str> {
    POLICIES.iter().map(|p| p.name).collect()
}

/// A new object of this policy. The config has checked the name.
pub fn build(name: &str) -> Option<Box<dyn Policy>> {
    POLICIES
        .iter()
        .find(|p| p.name == name)
        .map(|p| (p.build)())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(position: usize, requests: i64, tokens: i64) -> Candidate {
        Candidate {
            position,
            load: Counts { requests, tokens },
            weight: 1.0,
        }
    }

    fn ask(role: Role, rotation: u64) -> Ask {
        Ask {
            role,
            prompt_tokens: 10,
            rotation,
        }
    }

    #[test]
    fn round_robin_visits_all_in_turn() {
        let policy = build("round_robin").unwrap();
        let three = [candidate(0, 9, 9), candidate(1, 0, 0), candidate(2, 5, 5)];
        let picks: Vec<_> = (0..6)
            .map(|i| policy.pick(&three, &ask(Role::Decode, i)))
            .collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn prefill_goes_where_fewest_tokens_are() {
        let policy = build("least_load").unwrap();
        let three = [
            candidate(0, 1, 900),
            candidate(1, 7, 70),
            candidate(2, 1, 800),
        ];
        assert_eq!(policy.pick(&three, &ask(Role::Prefill, 0)), 1);
    }

    #[test]
    fn decode_goes_where_fewest_requests_are_then_tokens() {
        let policy = build("least_load").unwrap();
        let three = [
            candidate(0, 2, 10),
            candidate(1, 1, 900),
            candidate(2, 1, 800),
        ];
        assert_eq!(policy.pick(&three, &ask(Role::Decode, 0)), 2);
    }

    #[test]
    fn ties_do_not_herd_on_the_first() {
        let policy = build("least_load").unwrap();
        let three = [candidate(0, 0, 0), candidate(1, 0, 0), candidate(2, 0, 0)];
        let picks: Vec<_> = (0..3)
            .map(|i| policy.pick(&three, &ask(Role::Decode, i)))
            .collect();
        assert_eq!(picks, [0, 1, 2]);
    }

    #[test]
    fn twice_the_weight_takes_twice_the_load() {
        let policy = build("least_load").unwrap();
        let two = [
            Candidate {
                weight: 1.0,
                ..candidate(0, 3, 0)
            },
            Candidate {
                weight: 2.0,
                ..candidate(1, 5, 0)
            },
        ];
        assert_eq!(policy.pick(&two, &ask(Role::Decode, 0)), 1);
    }
}
