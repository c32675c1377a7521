//! Floor 3: choose one of the candidates. Door 2: a policy is one file and its row in [`POLICIES`].
//!
//! * **For:** ranking instances by what is known of them and of the request.
//! * **Must never:** do I/O, read a clock, or own randomness or state (turns and random numbers come in the
//!   [`Ask`]), or remember a request: a pick that is not used must do no harm.
//! * **To extend:** write `src/policy/foo.rs` with `SPEC` and `pick`; add `mod foo;` and `foo::SPEC`. What
//!   only some policies need to know is a question in [`Facts`], so that the others do not pay for it.

mod cache_aware;
mod consistent_hash;
mod least_load;
mod load_balanced;
mod power_of_two;
mod round_robin;

use std::sync::atomic::AtomicU64;

use crate::cluster::load::Counts;
use crate::cluster::ring::Points;
use crate::config::Role;
use crate::rng::Rng;

/// One instance that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Position in the snapshot's list of this role: stable while the list is.
    pub position: usize,
    /// As this shard sees it; see [`Facts::load`].
    pub load: Counts,
    pub weight: f64,
    /// Tokens of prompt and answer together.
    pub max_model_len: u32,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub role: Role,
    /// Estimated.
    pub prompt_tokens: u64,
    /// The prompt and what this stage may add to it; estimated.
    pub total_tokens: u64,
    /// Differs from pick to pick and from shard to shard: where ties begin.
    pub rotation: u64,
    /// Where taking turns has come to for this role and model, shared by all shards.
    pub turn: &'a AtomicU64,
    pub rng: &'a Rng,
    pub facts: &'a dyn Facts,
}

/// What only some policies want to know: worked out when they ask.
pub trait Facts {
    /// The load of the candidate at this position, exact over all shards at this moment.
    fn load(&self, position: usize) -> Counts;
    /// The pick rests on this load of the picked: if another shard is quicker, it is made again.
    fn rests_on(&self, _load: Counts) {}
    /// The place on the ring of whoever asks.
    fn session(&self) -> u128;
    /// The place on the ring of how the prompt begins.
    fn prefix(&self) -> u128;
    /// The points on the ring of the candidate at this position.
    fn points(&self, position: usize) -> &Points;
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
    /// Does it ask for [`Facts::points`]? Then they are worked out before the first request.
    pub ring: bool,
    /// Does it look at [`Candidate::max_model_len`]? Then instances are asked for it, come what may.
    pub lengths: bool,
    pub build: fn() -> Box<dyn Policy>,
}

pub const POLICIES: &[Spec] = &[
    round_robin::SPEC,
    least_load::SPEC,
    load_balanced::SPEC,
    consistent_hash::SPEC,
    cache_aware::SPEC,
    power_of_two::SPEC,
];

/// The names, for the config to check against.
pub fn names() -> Vec<&'static str> {
    POLICIES.iter().map(|p| p.name).collect()
}

pub fn find(name: &str) -> Option<&'static Spec> {
    POLICIES.iter().find(|p| p.name == name)
}

/// A new object of this policy. The config has checked the name.
pub fn build(name: &str) -> Option<Box<dyn Policy>> {
    find(name).map(|p| (p.build)())
}

/// The candidate that a walk from this place along the ring meets first. Of two at one point (an address
/// that is listed twice) it is the earlier.
fn clockwise(candidates: &[Candidate], place: u128, ask: &Ask) -> usize {
    let (mut ahead, mut round) = (None, None);
    for (at, one) in candidates.iter().enumerate() {
        let points = ask.facts.points(one.position);
        match points.after(place) {
            Some(point) if ahead.is_none_or(|(least, _)| point < least) => {
                ahead = Some((point, at));
            }
            // Only of use if nobody is ahead.
            None if ahead.is_none() && round.is_none_or(|(least, _)| points.first() < least) => {
                round = Some((points.first(), at));
            }
            _ => {}
        }
    }
    ahead.or(round).map_or(0, |(_, at)| at)
}

/// What policies are tried on: made-up candidates, loads and rings.
#[cfg(test)]
mod scene {
    use std::cell::Cell;

    use super::*;
    use crate::cluster::ring::place;

    pub fn candidates(count: usize) -> Vec<Candidate> {
        let one = |position| Candidate {
            position,
            load: Counts::default(),
            weight: 1.0,
            max_model_len: 131_072,
        };
        (0..count).map(one).collect()
    }

    #[derive(Default)]
    pub struct Known {
        loads: Vec<Counts>,
        points: Vec<Points>,
        session: Cell<u128>,
        prefix: Cell<u128>,
    }

    impl Facts for Known {
        fn load(&self, position: usize) -> Counts {
            self.loads[position]
        }

        fn session(&self) -> u128 {
            self.session.get()
        }

        fn prefix(&self) -> u128 {
            self.prefix.get()
        }

        fn points(&self, position: usize) -> &Points {
            &self.points[position]
        }
    }

    pub struct Scene {
        turn: AtomicU64,
        rng: Rng,
        known: Known,
    }

    impl Default for Scene {
        fn default() -> Self {
            Scene {
                turn: AtomicU64::new(0),
                rng: Rng::seeded(1),
                known: Known::default(),
            }
        }
    }

    impl Scene {
        pub fn with_loads(loads: &[(i64, i64)]) -> Scene {
            let counts = |(requests, tokens): &(i64, i64)| Counts {
                requests: *requests,
                tokens: *tokens,
            };
            Scene {
                known: Known {
                    loads: loads.iter().map(counts).collect(),
                    ..Known::default()
                },
                ..Scene::default()
            }
        }

        /// Instances on a ring, by address.
        pub fn ring(addresses: &[&str], virtual_nodes: u32) -> Scene {
            let points = |address: &&str| Points::of(address, virtual_nodes);
            Scene {
                known: Known {
                    points: addresses.iter().map(points).collect(),
                    ..Known::default()
                },
                ..Scene::default()
            }
        }

        pub fn session(&self, key: &str) -> Ask<'_> {
            self.session_at(place(key.as_bytes()))
        }

        pub fn session_at(&self, place: u128) -> Ask<'_> {
            self.known.session.set(place);
            self.ask(Role::Prefill)
        }

        pub fn prefix(&self, words: &str) -> Ask<'_> {
            self.known.prefix.set(place(words.as_bytes()));
            self.ask(Role::Prefill)
        }

        pub fn ask(&self, role: Role) -> Ask<'_> {
            Ask {
                role,
                prompt_tokens: 10,
                total_tokens: 11,
                rotation: 0,
                turn: &self.turn,
                rng: &self.rng,
                facts: &self.known,
            }
        }
    }
}
