//! Load: how busy each instance is, exactly for this shard and recently for all.
//!
//! Every shard adds to one set of shared, padded counters per instance. Picking reads not those but a
//! shard's *view*: `own now + (everyone at the last refresh - own at the last refresh)`. Its own requests
//! count at once, the others' with a delay of at most `load_view_max_age`; and the counters' cache lines
//! travel between cores once per that time, not once per pick.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use crossbeam_utils::CachePadded;

use super::Instance;

/// What an instance is charged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests in flight.
    pub requests: i64,
    /// Prompt tokens (estimated) being prefilled, or held in decode.
    pub tokens: i64,
}

impl std::ops::Add for Counts {
    type Output = Counts;
    fn add(self, other: Counts) -> Counts {
        Counts {
            requests: self.requests + other.requests,
            tokens: self.tokens + other.tokens,
        }
    }
}

impl std::ops::Sub for Counts {
    type Output = Counts;
    fn sub(self, other: Counts) -> Counts {
        Counts {
            requests: self.requests - other.requests,
            tokens: self.tokens - other.tokens,
        }
    }
}

/// One instance's counters, written by all shards.
#[derive(Default)]
pub struct Load(CachePadded<LoadCells>);

#[derive(Default)]
struct LoadCells {
    requests: AtomicI64,
    tokens: AtomicI64,
}

impl Load {
    pub fn read(&self) -> Counts {
        Counts {
            requests: self.0.requests.load(Ordering::Relaxed),
            tokens: self.0.tokens.load(Ordering::Relaxed),
        }
    }

    /// Returns the requests that were there before.
    fn charge(&self, by: Counts) -> i64 {
        self.0.tokens.fetch_add(by.tokens, Ordering::Relaxed);
        self.0.requests.fetch_add(by.requests, Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    own: Counts,
    /// Everyone else's, at the last refresh.
    others: Counts,
    refreshed_us: u64,
}

/// One shard's view of all instances. Not shared between threads.
pub struct LoadView {
    entries: RefCell<Vec<Entry>>,
    max_age_us: u64,
}

impl LoadView {
    pub fn new(max_age: std::time::Duration) -> Rc<LoadView> {
        Rc::new(LoadView {
            entries: RefCell::default(),
            max_age_us: max_age.as_micros() as u64,
        })
    }

    /// The load to pick by.
    pub fn read(&self, instance: &Instance, now_us: u64) -> Counts {
        let mut entries = self.entries.borrow_mut();
        let entry = entry(&mut entries, instance.index);
        // The first reading (at 0) counts as too old.
        if entry.refreshed_us == 0 || now_us.saturating_sub(entry.refreshed_us) >= self.max_age_us {
            entry.others = instance.load.read() - entry.own;
            entry.refreshed_us = now_us.max(1);
        }
        entry.own + entry.others
    }

    /// Charges the instance until the returned unit is dropped.
    pub fn charge(self: &Rc<Self>, instance: &Arc<Instance>, tokens: u64) -> InFlight {
        self.charge_and_see(instance, tokens).0
    }

    /// Also: the instance's requests just before, over all shards.
    pub fn charge_and_see(
        self: &Rc<Self>,
        instance: &Arc<Instance>,
        tokens: u64,
    ) -> (InFlight, i64) {
        let charge = Counts {
            requests: 1,
            tokens: tokens as i64,
        };
        let before = self.add(instance, charge);
        let unit = InFlight {
            instance: instance.clone(),
            view: self.clone(),
            charge: Cell::new(charge),
        };
        (unit, before)
    }

    fn add(&self, instance: &Instance, by: Counts) -> i64 {
        let before = instance.load.charge(by);
        let mut entries = self.entries.borrow_mut();
        let entry = entry(&mut entries, instance.index);
        entry.own = entry.own + by;
        before
    }
}

fn entry(entries: &mut Vec<Entry>, index: usize) -> &mut Entry {
    if entries.len() <= index {
        entries.resize(index + 1, Entry::default());
    }
    &mut entries[index]
}

/// A held unit of load; dropping it gives it back.
pub struct InFlight {
    pub instance: Arc<Instance>,
    view: Rc<LoadView>,
    charge: Cell<Counts>,
}

impl InFlight {
    /// The instance is done with it, though the client may still be reading: given back before the client
    /// sees the end, so that its next request finds the instance free, whatever shard it comes in on.
    pub fn give_back(&self) {
        let charge = self.charge.take();
        if charge != Counts::default() {
            self.view.add(&self.instance, Counts::default() - charge);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Prompt tokens per byte of prompt, learned from the `usage` of answers. No tokenizer, no blocking; it
/// only ranks instances, it never rejects a request.
pub struct Estimate(AtomicU32);

impl Default for Estimate {
    fn default() -> Self {
        Estimate(AtomicU32::new(0.25f32.to_bits()))
    }
}

impl Estimate {
    pub fn tokens(&self, prompt_bytes: usize) -> u64 {
        (prompt_bytes as f32 * self.ratio()) as u64
    }

    pub fn ratio(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// One observation; a moving average over about sixteen, written only if it moves by more than 1 %.
    pub fn learn(&self, prompt_bytes: usize, prompt_tokens: u64) {
        if prompt_bytes < 16 || prompt_tokens == 0 {
            return;
        }
        let old = self.ratio();
        let seen = (prompt_tokens as f32 / prompt_bytes as f32).clamp(0.001, 4.0);
        let new = old + (seen - old) / 16.0;
        if (new - old).abs() > old * 0.01 {
            self.0.store(new.to_bits(), Ordering::Relaxed);
        }
    }
}
