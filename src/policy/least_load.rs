//! The least busy instance for its weight: a prefill instance by the prompt tokens it is working on, a
//! decode instance by its requests and then by the tokens it holds. Ties start at a rotating place, or
//! all shards would herd on the first.

use std::cmp::Ordering;

use super::{Ask, Candidate, Policy, Spec};
use crate::config::Role;

pub const SPEC: Spec = Spec {
    name: "least_load",
    about: "the least busy instance for its weight",
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
