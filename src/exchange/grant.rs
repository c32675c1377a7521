//! A grant: KV blocks that a prefill instance holds for this request until some D fetches them.
//!
//! Its params may be given to at most one D that could have read them: a second use answers 200 with
//! wrong text on a real engine. So a grant is *spent* at the first byte handed to a D's socket, and until
//! then may go to another D.

use std::cell::Cell;

use crate::exchange::Answer;
use crate::metrics::{Counter, Grant as Outcome, ShardMetrics};
use std::rc::Rc;

pub struct Grant {
    params: Vec<u8>,
    spent: Cell<bool>,
    metrics: Rc<ShardMetrics>,
}

impl Grant {
    /// The grant in P's answer; `None` if it has none (absent or null: P stopped on its first token, or
    /// transfers nothing), and then D computes the prompt itself.
    pub fn from_answer(answer: &Answer, key: &str, metrics: &Rc<ShardMetrics>) -> Option<Grant> {
        match answer.field(key) {
            Some(params) if params != b"null" => Some(Grant {
                params: params.to_vec(),
                spent: Cell::new(false),
                metrics: metrics.clone(),
            }),
            _ => {
                metrics.inc(Counter::kv_grants(Outcome::None));
                None
            }
        }
    }

    /// The params, opaque and whole.
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// A byte is about to be handed to a D.
    pub fn spend(&self) {
        if !self.spent.replace(true) {
            self.metrics.inc(Counter::kv_grants(Outcome::Spent));
        }
    }

    pub fn spent(&self) -> bool {
        self.spent.get()
    }
}

impl Drop for Grant {
    /// Unspent: P keeps the blocks until its lease ends.
    fn drop(&mut self) {
        if !self.spent.get() {
            self.metrics
                .inc(Counter::kv_grants(Outcome::ExpiredUnreleased));
        }
    }
}
