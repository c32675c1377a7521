//! Conversations in this process's memory, common to all shards.
//!
//! In stripes, so that two shards seldom meet; what is over its time goes as others come or ask.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Entry, Found, Key, Store, Taking, Tools};
use crate::metrics::{Conversation, Counter};

/// What an entry costs besides its params: the key twice, the digest, the tables.
const OVERHEAD: usize = 256;
const STRIPES_MAX: usize = 64;
/// Fewer entries than this per stripe, and the bounds would be far from exact.
const STRIPE_ENTRIES_MIN: usize = 64;
/// Fewer bytes, and the params of a long context would not fit into any.
const STRIPE_BYTES_MIN: usize = 1 << 20;

pub struct Memory {
    stripes: Box<[Mutex<Stripe>]>,
    /// Of one stripe.
    entries_max: usize,
    bytes_max: usize,
    ttl: Duration,
    expired: AtomicUsize,
}

#[derive(Default)]
struct Stripe {
    kept: HashMap<Key, Kept>,
    /// In the order in which they came, and so in that in which they expire. An entry that was taken or
    /// replaced leaves its number behind.
    order: VecDeque<(u64, Key)>,
    next: u64,
    bytes: usize,
}

struct Kept {
    entry: Entry,
    number: u64,
    until: Instant,
}

impl Stripe {
    fn remove(&mut self, key: &Key) -> Option<Kept> {
        let kept = self.kept.remove(key)?;
        self.bytes -= size(&kept.entry);
        Some(kept)
    }

    /// The oldest one that is still there.
    fn oldest(&mut self) -> Option<Key> {
        while let Some((number, key)) = self.order.front() {
            if self
                .kept
                .get(key)
                .is_some_and(|kept| kept.number == *number)
            {
                return Some(*key);
            }
            self.order.pop_front();
        }
        None
    }

    /// Drops what is over its time, and says how many.
    fn expire(&mut self, now: Instant) -> usize {
        let mut count = 0;
        while let Some(key) = self.oldest()
            && self.kept.get(&key).is_some_and(|kept| kept.until <= now)
        {
            self.remove(&key);
            count += 1;
        }
        count
    }

    /// Numbers without an entry must not outgrow the entries.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.kept.len() + 16 {
            let kept = &self.kept;
            self.order
                .retain(|(number, key)| kept.get(key).is_some_and(|k| k.number == *number));
        }
    }
}

fn size(entry: &Entry) -> usize {
    entry.params.len() + OVERHEAD
}

impl Memory {
    pub fn new(entries_max: usize, bytes_max: usize, ttl: Duration) -> Memory {
        let stripes = (entries_max / STRIPE_ENTRIES_MIN)
            .min(bytes_max / STRIPE_BYTES_MIN)
            .clamp(1, STRIPES_MAX);
        Memory {
            stripes: (0..stripes).map(|_| Mutex::default()).collect(),
            entries_max: entries_max / stripes,
            bytes_max: bytes_max / stripes,
            ttl,
            expired: AtomicUsize::new(0),
        }
    }

    fn stripe(&self, key: &Key) -> MutexGuard<'_, Stripe> {
        let at = usize::from(key[0]) % self.stripes.len();
        self.stripes[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note_expired(&self, tools: &Tools, count: usize) {
        if count > 0 {
            self.expired.fetch_add(count, Ordering::Relaxed);
            let outcome = Counter::conversations(Conversation::Expired);
            tools.metrics.add(outcome, count as u64);
        }
    }

    fn take_now(&self, tools: &Tools, key: &Key) -> Found {
        let taken = self.stripe(key).remove(key);
        match taken {
            None => Found::Nothing,
            Some(kept) if kept.until <= Instant::now() => {
                self.expired.fetch_add(1, Ordering::Relaxed);
                let outcome = Counter::conversations(Conversation::Expired);
                tools.metrics.inc(outcome);
                Found::Expired
            }
            Some(kept) => Found::Entry(kept.entry),
        }
    }
}

impl Store for Memory {
    fn take<'a>(&'a self, tools: &'a Rc<Tools>, key: &'a Key) -> Taking<'a> {
        Box::pin(std::future::ready(self.take_now(tools, key)))
    }

    fn put(&self, tools: &Rc<Tools>, key: Key, entry: Entry) {
        let now = Instant::now();
        let mut stripe = self.stripe(&key);
        let expired = stripe.expire(now);
        stripe.remove(&key);
        let mut evicted = 0;
        let fits = size(&entry) <= self.bytes_max;
        while fits
            && (stripe.kept.len() >= self.entries_max
                || stripe.bytes + size(&entry) > self.bytes_max)
            && let Some(oldest) = stripe.oldest()
        {
            stripe.remove(&oldest);
            evicted += 1;
        }
        let stored = fits && self.entries_max > 0;
        if stored {
            let number = stripe.next;
            stripe.next += 1;
            stripe.bytes += size(&entry);
            stripe.order.push_back((number, key));
            let until = now + self.ttl;
            stripe.kept.insert(
                key,
                Kept {
                    entry,
                    number,
                    until,
                },
            );
        } else {
            evicted += 1;
        }
        stripe.tidy();
        drop(stripe);
        self.note_expired(tools, expired);
        let count = |outcome, n| tools.metrics.add(Counter::conversations(outcome), n);
        count(Conversation::Evicted, evicted);
        count(Conversation::Stored, u64::from(stored));
    }

    fn kept(&self, tools: &Rc<Tools>) -> Option<usize> {
        let now = Instant::now();
        let mut kept = 0;
        let mut expired = 0;
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            expired += stripe.expire(now);
            kept += stripe.kept.len();
        }
        self.note_expired(tools, expired);
        Some(kept)
    }

    fn expired(&self) -> usize {
        self.expired.swap(0, Ordering::Relaxed)
    }
}
