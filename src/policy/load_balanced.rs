//! xPyD-proxy's default, exactly: a prefill instance by the prompt tokens it is working on, a decode
//! instance by its requests and then by the prompt tokens it holds, an aggregated one by its requests;
//! ties go to the first. Instances whose context the request seems not to fit are a last resort.
//!
//! It reads the counters that all shards share, so that ties mean the same on every one. That costs a
//! cache line per candidate; `least_load` does without, and spreads what ties.

use super::{Ask, Candidate, Policy, Spec};
use crate::cluster::load::Counts;
use crate::config::Role;

pub const SPEC: Spec = Spec {
    name: "load_balanced",
    about: "the least busy instance for its weight, the first of those that tie (xPyD-proxy)",
    ring: false,
    lengths: true,
    build: || Box::new(LoadBalanced),
};

struct LoadBalanced;

impl Policy for LoadBalanced {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        let mut best: Option<(Key, usize, Counts)> = None;
        for (at, one) in candidates.iter().enumerate() {
            let load = ask.facts.load(one.position);
            let key = (!fits(one, ask), rank(load, one.weight, ask.role));
            // Strictly less: the first of those that tie stays.
            if best.is_none_or(|(least, ..)| key < least) {
                best = Some((key, at, load));
            }
        }
        best.map_or(0, |(_, at, load)| {
            ask.facts.rests_on(load);
            at
        })
    }
}

/// What is least: whether it seems not to fit, and how busy it is.
type Key = (bool, (f64, f64));

/// The length is an estimate, so it only ranks.
fn fits(one: &Candidate, ask: &Ask) -> bool {
    ask.total_tokens <= u64::from(one.max_model_len)
}

fn rank(load: Counts, weight: f64, role: Role) -> (f64, f64) {
    let (requests, tokens) = (load.requests as f64 / weight, load.tokens as f64 / weight);
    match role {
        Role::Prefill | Role::Encode => (tokens, 0.0),
        Role::Decode if load.requests > 0 => (requests, tokens),
        // The first of the idle ones, and aggregated ones by requests alone.
        Role::Decode | Role::Aggregated => (requests, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;

    fn pick(loads: &[(i64, i64)], role: Role) -> usize {
        let scene = Scene::with_loads(loads);
        LoadBalanced.pick(&candidates(loads.len()), &scene.ask(role))
    }

    #[test]
    fn prefill_goes_where_fewest_tokens_are_whatever_the_requests() {
        assert_eq!(pick(&[(1, 900), (7, 70), (1, 800)], Role::Prefill), 1);
        assert_eq!(pick(&[(5, 70), (1, 70), (1, 80)], Role::Prefill), 0);
    }

    #[test]
    fn decode_goes_by_requests_then_by_prompt_tokens() {
        assert_eq!(pick(&[(2, 10), (1, 900), (1, 800)], Role::Decode), 2);
        assert_eq!(pick(&[(1, 800), (2, 10), (1, 800)], Role::Decode), 0);
    }

    #[test]
    fn an_idle_decode_instance_is_taken_in_order() {
        assert_eq!(pick(&[(1, 1), (0, 0), (0, 0)], Role::Decode), 1);
        // Tokens of a release that is half way: idle is idle.
        assert_eq!(pick(&[(0, 9), (0, 0)], Role::Decode), 0);
    }

    #[test]
    fn aggregated_instances_are_judged_by_requests_alone() {
        assert_eq!(pick(&[(2, 1), (1, 900), (1, 1)], Role::Aggregated), 1);
    }

    #[test]
    fn ties_go_to_the_first_however_often() {
        for role in Role::ALL {
            for _ in 0..5 {
                assert_eq!(pick(&[(0, 0); 4], role), 0);
            }
        }
    }

    #[test]
    fn a_length_that_seems_not_to_fit_only_ranks() {
        let scene = Scene::with_loads(&[(0, 0), (9, 9), (8, 8)]);
        let mut three = candidates(3);
        three[0].max_model_len = 100;
        let ask = Ask {
            total_tokens: 101,
            ..scene.ask(Role::Decode)
        };
        assert_eq!(LoadBalanced.pick(&three, &ask), 2);
        three.iter_mut().for_each(|one| one.max_model_len = 100);
        assert_eq!(LoadBalanced.pick(&three, &ask), 0, "none fits: all will do");
    }
}
