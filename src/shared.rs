//! The only cross-thread cells. Shards read these without locks on the way of a request.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

/// A value that the control thread replaces whole and shards read by snapshot.
pub struct Published<T> {
    generation: AtomicU64,
    current: Mutex<Arc<T>>,
}

impl<T> Published<T> {
    pub fn new(value: T) -> Published<T> {
        Published {
            generation: AtomicU64::new(1),
            current: Mutex::new(Arc::new(value)),
        }
    }

    pub fn publish(&self, value: T) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        // After the value: who sees the new number finds at least this value.
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub fn get(&self) -> Arc<T> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// A value as it was when a request began. Two counts: the outer one is the point, since it is not shared
/// between cores.
#[allow(clippy::redundant_allocation)]
pub type Snapshot<T> = Rc<Arc<T>>;

/// One shard's reading of a [`Published`]: per request it costs one load of the generation and one
/// count on a thread-local `Rc`, so that no cache line bounces between cores.
pub struct Reader<T> {
    source: Arc<Published<T>>,
    cached: RefCell<(u64, Snapshot<T>)>,
}

impl<T> Reader<T> {
    pub fn new(source: Arc<Published<T>>) -> Reader<T> {
        let generation = source.generation();
        let value = Rc::new(source.get());
        Reader {
            source,
            cached: RefCell::new((generation, value)),
        }
    }

    pub fn get(&self) -> Snapshot<T> {
        let generation = self.source.generation();
        let mut cached = self.cached.borrow_mut();
        if cached.0 != generation {
            *cached = (generation, Rc::new(self.source.get()));
        }
        cached.1.clone()
    }
}

/// Stripes of a [`Striped`]: so many threads can be in it at once.
const STRIPES: usize = 64;

/// A map that all threads share, for few and short accesses. Bounded, and what nobody takes out expires.
pub struct Striped<K, V> {
    stripes: Box<[Lane<K, V>]>,
    hasher: RandomState,
    each_max: usize,
    keep: Duration,
}

/// On lines of its own, so that one's lock does not slow another.
type Lane<K, V> = CachePadded<Mutex<Stripe<K, V>>>;

struct Stripe<K, V> {
    values: HashMap<K, Stored<V>>,
    /// Oldest first, with the turn of the value it stands for.
    order: VecDeque<(K, u64)>,
    turns: u64,
}

struct Stored<V> {
    value: V,
    since: Instant,
    turn: u64,
}

impl<K: Hash + Eq + Clone, V> Striped<K, V> {
    /// About `max` values, each for `keep`; beyond that the oldest go.
    pub fn new(max: usize, keep: Duration) -> Striped<K, V> {
        let stripe = || {
            CachePadded::new(Mutex::new(Stripe {
                values: HashMap::new(),
                order: VecDeque::new(),
                turns: 0,
            }))
        };
        Striped {
            stripes: std::iter::repeat_with(stripe).take(STRIPES).collect(),
            hasher: RandomState::new(),
            each_max: max.div_ceil(STRIPES).max(1),
            keep,
        }
    }

    fn stripe(&self, key: &K) -> MutexGuard<'_, Stripe<K, V>> {
        let at = self.hasher.hash_one(key) as usize % STRIPES;
        let stripe = self.stripes[at].lock();
        stripe.unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what was there.
    pub fn put(&self, key: K, value: V) {
        let now = Instant::now();
        let mut stripe = self.stripe(&key);
        stripe.turns += 1;
        let turn = stripe.turns;
        stripe.order.push_back((key.clone(), turn));
        let since = now;
        stripe.values.insert(key, Stored { value, since, turn });
        stripe.shrink(self.each_max, self.keep, now);
    }

    /// Looks at a value, and may change it. `None`: there is none, or it has expired.
    pub fn with<R>(&self, key: &K, look: impl FnOnce(&mut V) -> R) -> Option<R> {
        let mut stripe = self.stripe(key);
        let stored = stripe.values.get_mut(key)?;
        (stored.since.elapsed() < self.keep).then(|| look(&mut stored.value))
    }

    pub fn take(&self, key: &K) -> Option<V> {
        let stored = self.stripe(key).values.remove(key)?;
        (stored.since.elapsed() < self.keep).then_some(stored.value)
    }

    pub fn len(&self) -> usize {
        let of = |stripe: &Lane<K, V>| {
            stripe
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values
                .len()
        };
        self.stripes.iter().map(of).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Hash + Eq, V> Stripe<K, V> {
    /// Takes out what is too old or too much, and forgets the places of what was taken before.
    fn shrink(&mut self, max: usize, keep: Duration, now: Instant) {
        while let Some((key, turn)) = self.order.front() {
            let stored = self.values.get(key).filter(|stored| stored.turn == *turn);
            let goes = stored.map(|stored| {
                let old = now.saturating_duration_since(stored.since) >= keep;
                old || self.values.len() > max
            });
            match goes {
                Some(false) if self.order.len() <= 2 * max => return,
                // Behind a long-lived one stand many that were taken: put it where it cannot hide them.
                Some(false) => {
                    self.order.retain(|(key, turn)| {
                        self.values
                            .get(key)
                            .is_some_and(|stored| stored.turn == *turn)
                    });
                    return;
                }
                Some(true) => drop(self.values.remove(key)),
                None => {}
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_striped_map_is_bounded_and_forgets() {
        let map: Striped<u64, u64> = Striped::new(64 * STRIPES, Duration::from_secs(60));
        for i in 0..100_000 {
            map.put(i, i);
        }
        assert!(map.len() <= 64 * STRIPES, "{}", map.len());
        assert_eq!(map.take(&99_999), Some(99_999));
        assert_eq!(map.take(&99_999), None);
        assert_eq!(map.with(&99_998, |v| std::mem::replace(v, 1)), Some(99_998));
        assert_eq!(map.take(&99_998), Some(1));
        let brief: Striped<u64, u64> = Striped::new(1000, Duration::ZERO);
        brief.put(1, 1);
        assert_eq!(brief.take(&1), None);
        assert!(brief.is_empty());
    }

    #[test]
    fn a_long_lived_value_never_keeps_the_places_of_those_that_left() {
        let map: Striped<u64, u64> = Striped::new(STRIPES * 8, Duration::from_secs(60));
        map.put(0, 0);
        for i in 1..100_000 {
            map.put(i, i);
            map.take(&i);
        }
        assert_eq!(map.take(&0), Some(0));
        let places: usize = map
            .stripes
            .iter()
            .map(|s| s.lock().unwrap().order.len())
            .sum();
        assert!(places <= STRIPES * 18, "{places}");
    }
}
