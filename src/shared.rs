//! The only cross-thread cells. Shards read these without locks on the way of a request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
