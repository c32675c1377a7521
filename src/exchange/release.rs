//! Release: making P free the KV blocks of a grant that nobody will fetch.
//!
//! Only a D can tell P that blocks are done with. So a D gets the request after all, and is ended in the
//! way that makes it tell P (seen on vLLM 0.32 with NIXL; the table is in `docs/failures.md`):
//!
//! ```text
//!  warm pair (this D has taken KV from this P before)      first contact
//!    proxy        D         P                        proxy        D         P
//!      |--params-->|         |                         |--params-->|         |
//!      |<--head----|         |                         | (1 token) |<==KV====|
//!      |--close--->|--free-->|                         |<--answer--|--free-->|
//! ```
//!
//! On a first contact a D that is cut off cannot notify a P that it has not yet met, so it is asked for
//! one token and left to finish. This work outlives the client; it is bounded in number and in time.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::{Exchange, Leg, Request, Stop, Tools, Trace};
use crate::cluster::Instance;
use crate::cluster::models::Scope;
use crate::config::Role;
use crate::error::Stage;
use crate::log;
use crate::metrics::{Counter, Gauge, Grant as Outcome};
use crate::wire::json::Edit;
use crate::wire::openai::{self, KV_PARAMS};

/// A grant to be released.
pub struct Release {
    pub params: Vec<u8>,
    pub prefill: Arc<Instance>,
    /// As in the [`Grant`](super::grant::Grant).
    pub prefill_starts: u64,
    pub request: Rc<Request>,
}

/// A shard's releases: a queue that `Drop` may push to, drained by one task.
#[derive(Default)]
pub struct Releases {
    queue: RefCell<VecDeque<Release>>,
    waker: RefCell<Option<Waker>>,
    /// Queued and under way.
    pending: Cell<usize>,
    max: usize,
    /// Grants that found the queue full, for the task to count.
    refused: Cell<u64>,
}

impl Releases {
    pub fn new(max: usize) -> Releases {
        Releases {
            max,
            ..Releases::default()
        }
    }

    pub fn pending(&self) -> usize {
        self.pending.get()
    }

    pub fn push(&self, release: Release) {
        if self.pending.get() >= self.max {
            self.refused.set(self.refused.get() + 1);
        } else {
            self.pending.set(self.pending.get() + 1);
            self.queue.borrow_mut().push_back(release);
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn next(&self) -> Option<Release> {
        poll_fn(|cx| {
            if let Some(release) = self.queue.borrow_mut().pop_front() {
                return Poll::Ready(Some(release));
            }
            if self.refused.get() > 0 {
                return Poll::Ready(None);
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Which pairs have completed a hand-over since both were last seen to start. What any shard has seen
/// stands in the P's [`Instance`]; this is the shard's own copy. Not knowing a pair is safe: it is then
/// treated as a first contact.
#[derive(Default)]
pub struct Met(RefCell<HashMap<(usize, usize), (u64, u64)>>);

impl Met {
    pub fn warm(&self, prefill: &Instance, decode: &Instance) -> bool {
        let pair = (prefill.index, decode.index);
        let starts = (prefill.starts(), decode.starts());
        if self.0.borrow().get(&pair) == Some(&starts) {
            return true;
        }
        let elsewhere = prefill.met(decode.index) == Some(starts);
        if elsewhere {
            self.0.borrow_mut().insert(pair, starts);
        }
        elsewhere
    }

    /// `starts` of both: of P when it granted, of D when it answered. (Either may be another process by the
    /// time that the stream has ended.)
    pub fn note(&self, prefill: &Instance, decode: &Instance, starts: (u64, u64)) {
        let pair = (prefill.index, decode.index);
        // Written once per pair and start, read per request.
        if self.0.borrow().get(&pair) != Some(&starts) {
            self.0.borrow_mut().insert(pair, starts);
            prefill.note_met(decode.index, starts);
        }
    }
}

/// The shard's release task: ends with the shard.
pub async fn run(tools: Rc<Tools>) {
    loop {
        let Some(release) = tools.releases.next().await else {
            let refused = tools.releases.refused.take();
            let outcome = Counter::kv_grants(Outcome::ExpiredUnreleased);
            tools.metrics.add(outcome, refused);
            log::limited("releases", log::Level::Warning, || {
                format!("limits.releases_max is reached: {refused} KV grants are left to expire")
            });
            continue;
        };
        let tools = tools.clone();
        monoio::spawn(async move {
            let held = tools.metrics.hold(Gauge::releases_pending(), 1);
            let prefill = release.prefill.clone();
            let released = one(&tools, release).await;
            let outcome = if released {
                Outcome::Released
            } else {
                Outcome::ExpiredUnreleased
            };
            tools.metrics.inc(Counter::kv_grants(outcome));
            if !released {
                log::limited_for("release", &prefill.name, log::Level::Warning, || {
                    format!(
                        "a KV grant of prefill {} could not be released",
                        prefill.name
                    )
                });
            }
            drop(held);
            tools.releases.pending.set(tools.releases.pending.get() - 1);
        });
    }
}

/// True if a D has taken the params and was ended in the right way.
async fn one(tools: &Rc<Tools>, release: Release) -> bool {
    let slot = tools.sweep.orphan();
    slot.begin_request(tools.config().timeouts.release);
    let trace = Trace::new(std::time::Instant::now());
    let x = Exchange::new(tools, release.request, slot, trace);
    if x.find_model().is_err() || x.scope.get() == Scope::All {
        x.bind(&release.prefill);
    }
    loop {
        let Ok(decode) = x.pick(Role::Decode) else {
            return false;
        };
        let taker = decode.instance().clone();
        let warm = tools.met.warm(&release.prefill, &taker);
        let starts = (release.prefill_starts, taker.starts());
        match deliver(&x, decode, &release.params, warm).await {
            Ok(status) if status < 500 => {
                if status < 300 && !warm {
                    tools.met.note(&release.prefill, &taker, starts);
                }
                return true;
            }
            // It refused before it took them (and has been charged for it); another one may not.
            Ok(_) if anyone_else(&x) => {}
            Ok(_) | Err(_) => return false,
        }
    }
}

/// Is there a D that has not refused?
fn anyone_else(x: &Exchange) -> bool {
    let avoided = x.avoid.borrow();
    x.members_now(Role::Decode)
        .iter()
        .filter(|d| !d.draining())
        .any(|d| !avoided.contains(&d.index))
}

/// Hands the params to this D and ends it. Returns its status.
async fn deliver(
    x: &Exchange,
    decode: super::Picked,
    params: &[u8],
    warm: bool,
) -> Result<u16, Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    // What P has accepted, so that D does not reject it and leave P without a word.
    leg.edits = openai::prefill_edits();
    if warm {
        // A stream's head comes before its tokens: closed there, no KV moves.
        leg.edits
            .retain(|edit| !matches!(edit, Edit::Set("stream", _)));
        leg.edits.push(Edit::Set("stream", b"true".into()));
    }
    leg.edits.push(Edit::Set(KV_PARAMS, params.to_vec().into()));
    // What no engine is told of, whatever the handshake.
    leg.edits.push(Edit::Remove(openai::CONVERSATION_ID));
    leg.strip = &[openai::CONVERSATION_FIELD];
    leg.plain_answer = true;
    leg.once = true;
    if warm {
        let opened = x.send(decode, &leg).await?;
        return Ok(opened.head.status);
    }
    match x.call(decode, leg).await {
        Ok(answer) => Ok(answer.head.status),
        Err(Stop::Answer(answer)) => Ok(answer.head.status),
        Err(stop) => Err(stop),
    }
}
