//! One after the other, over all shards: the cursor is shared, since the next request may come in on
//! another core.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Ask, Candidate, Policy, Spec};

pub const SPEC: Spec = Spec {
    name: "round_robin",
    about: "one instance after the other",
    build: || Box::new(RoundRobin::default()),
};

#[derive(Default)]
struct RoundRobin {
    cursor: AtomicU64,
}

impl Policy for RoundRobin {
    fn pick(&self, candidates: &[Candidate], _ask: &Ask) -> usize {
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        (turn % candidates.len() as u64) as usize
    }
}
