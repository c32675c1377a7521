//! The least busy instance for its weight: a prefill instance by the prompt tokens it is working on, a
//! decode instance by its requests and then by the tokens it holds. Ties start at a rotating place, or
//! all shards would herd on the first.

use std::cmp::Ordering;

use super::{Ask, Candidate, Policy, Spec};
use crate::config::Role;

pub const SPEC: Spec = Spec {
    name: "least_load",
    about: "the least busy instance for its weight; ties take turns",
    ring: false,
    lengths: false,
    build: || Box::new(LeastLoad),
};

struct LeastLoad;

impl Policy for LeastLoad {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        let start = (ask.rotation % candidates.len() as u64) as usize;
        let mut best = start;
        for step in 1..candidates.len() {
            let at = (start + step) % candidates.len();
            if less(&candidates[at], &candidates[best], ask.role) {
                best = at;
            }
        }
        best
    }
}

fn less(a: &Candidate, b: &Candidate, role: Role) -> bool {
    let by = |x: i64, y: i64| {
        let (x, y) = (x as f64 / a.weight, y as f64 / b.weight);
        x.partial_cmp(&y).unwrap_or(Ordering::Equal)
    };
    let requests = || by(a.load.requests, b.load.requests);
    let tokens = || by(a.load.tokens, b.load.tokens);
    let order = match role {
        Role::Prefill | Role::Encode => tokens().then_with(requests),
        Role::Decode | Role::Aggregated => requests().then_with(tokens),
    };
    order == Ordering::Less
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;
    use crate::cluster::load::Counts;

    fn pick(loads: &[(i64, i64)], role: Role, rotation: u64) -> usize {
        let mut list = candidates(loads.len());
        for (one, (requests, tokens)) in list.iter_mut().zip(loads) {
            one.load = Counts {
                requests: *requests,
                tokens: *tokens,
            };
        }
        let scene = Scene::default();
        let ask = Ask {
            rotation,
            ..scene.ask(role)
        };
        LeastLoad.pick(&list, &ask)
    }

    #[test]
    fn prefill_goes_where_fewest_tokens_are() {
        assert_eq!(pick(&[(1, 900), (7, 70), (1, 800)], Role::Prefill, 0), 1);
    }

    #[test]
    fn decode_goes_where_fewest_requests_are_then_tokens() {
        assert_eq!(pick(&[(2, 10), (1, 900), (1, 800)], Role::Decode, 0), 2);
    }

    #[test]
    fn ties_do_not_herd_on_the_first() {
        let picks = [0, 1, 2].map(|turn| pick(&[(0, 0); 3], Role::Decode, turn));
        assert_eq!(picks, [0, 1, 2]);
    }

    #[test]
    fn twice_the_weight_takes_twice_the_load() {
        let mut two = candidates(2);
        two[0].load.requests = 3;
        two[1].load.requests = 5;
        two[1].weight = 2.0;
        let scene = Scene::default();
        assert_eq!(LeastLoad.pick(&two, &scene.ask(Role::Decode)), 1);
    }
}
