//! A grant: KV blocks that a prefill instance holds for this request until some D fetches them.
//!
//! Its params may be given to at most one D that could have read them: a second use answers 200 with
//! wrong text on a real engine. So a grant is *spent* at the first byte handed to a D's socket, and until
//! then may go to another D. Dropped unspent (the client left, a deadline, no D, a panic), it goes to the
//! shard's release queue: without that P would hold the blocks for its whole lease.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::release::Release;
use super::{Answer, Exchange, Request, Stop, Tools};
use crate::cluster::Instance;
use crate::error::{Error, Kind, Stage};
use crate::log;
use crate::metrics::{Counter, Failure, Grant as Outcome};

pub struct Grant {
    params: Vec<u8>,
    spent: Cell<bool>,
    /// Who holds the blocks.
    pub prefill: Arc<Instance>,
    /// Its starts ([`Instance::starts`]) when it granted them.
    pub prefill_starts: u64,
    /// It was in standing then. (One that is not is asked if there is no other, and may well serve.)
    prefill_stood: bool,
    request: Rc<Request>,
    tools: Rc<Tools>,
}

impl Grant {
    /// The grant in P's answer; `None` if it has none (absent or null: P stopped on its first token, or
    /// transfers nothing), and then D computes the prompt itself. Params that are no JSON object are P's
    /// failure: a real D hangs on them.
    pub fn from_answer(x: &Exchange, answer: &Answer, key: &str) -> Result<Option<Grant>, Stop> {
        match answer.field(key) {
            None | Some(b"null") => {
                x.tools.metrics.inc(Counter::kv_grants(Outcome::None));
                let name = &answer.instance.name;
                log::limited_for("no_grant", name, log::Level::Warning, || {
                    format!(
                        "prefill {name} hands no KV over, decode computes again: is its KV connector on?"
                    )
                });
                Ok(None)
            }
            Some(params) if params.first() != Some(&b'{') || !is_text(params) => {
                x.count_failure(&answer.instance, Failure::BadResponse);
                let what = format!("{key} in its answer is no JSON object");
                let error = Error::new(Kind::BadResponse, Stage::Prefill, what);
                Err(Stop::Again(error.at(&answer.instance.name)))
            }
            Some(params) => Ok(Some(Grant {
                params: params.to_vec(),
                spent: Cell::new(false),
                prefill: answer.instance.clone(),
                prefill_starts: answer.instance.starts(),
                prefill_stood: answer.instance.stands(),
                request: x.request(),
                tools: x.tools.clone(),
            })),
        }
    }

    /// The params, opaque and whole.
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// Changes how its params say something; they stay those of this grant.
    pub fn rephrase(&mut self, with: impl FnOnce(&[u8]) -> Vec<u8>) {
        self.params = with(&self.params);
    }

    /// Has P been seen to go since it granted? Then a D that fails may have failed for want of the blocks.
    pub fn prefill_is_gone(&self) -> bool {
        let fell = self.prefill_stood && !self.prefill.stands();
        fell || self.prefill.starts() != self.prefill_starts
    }

    /// A byte is about to be handed to a D.
    pub fn spend(&self) {
        if !self.spent.replace(true) {
            self.tools.metrics.inc(Counter::kv_grants(Outcome::Spent));
        }
    }

    pub fn spent(&self) -> bool {
        self.spent.get()
    }
}

fn is_text(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.spent.get() {
            self.tools.releases.push(Release {
                params: std::mem::take(&mut self.params),
                prefill: self.prefill.clone(),
                prefill_starts: self.prefill_starts,
                request: self.request.clone(),
            });
        }
    }
}
