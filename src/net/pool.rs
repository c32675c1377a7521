//! Idle upstream connections of one shard, per instance, newest first.
//!
//! The lease rule keeps one user's bytes from reaching another: a connection is *taken out* to be used
//! and comes back only through [`Lease::finish`], which its user calls after the last byte of a cleanly
//! framed answer. Every other way a lease ends closes the connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::stream::Stream;

struct Idle {
    stream: Stream,
    since_ms: u64,
}

#[derive(Default)]
pub struct Pool {
    /// By instance index, which is dense.
    shelves: RefCell<Vec<Vec<Idle>>>,
    idle: Cell<usize>,
    per_instance_max: usize,
    idle_ms_max: u64,
}

impl Pool {
    pub fn new(per_instance_max: usize, idle_ms_max: u64) -> Rc<Pool> {
        Rc::new(Pool {
            per_instance_max,
            idle_ms_max,
            ..Pool::default()
        })
    }

    /// The most recently used connection to this instance that is not too old.
    pub fn take(self: &Rc<Self>, instance: usize, now_ms: u64) -> Option<Lease> {
        let mut shelves = self.shelves.borrow_mut();
        let idle = shelves.get_mut(instance)?.pop()?;
        self.idle.set(self.idle.get() - 1);
        if now_ms.saturating_sub(idle.since_ms) > self.idle_ms_max {
            // The newest is too old, so all are: engines close theirs soon after.
            self.idle.set(self.idle.get() - shelves[instance].len());
            shelves[instance].clear();
            return None;
        }
        Some(Lease {
            stream: idle.stream,
            instance,
            reused: true,
            pool: self.clone(),
        })
    }

    /// A new connection, leased.
    pub fn adopt(self: &Rc<Self>, instance: usize, stream: Stream) -> Lease {
        Lease {
            stream,
            instance,
            reused: false,
            pool: self.clone(),
        }
    }

    /// Closes what has been idle for too long.
    pub fn prune(&self, now_ms: u64) {
        for shelf in self.shelves.borrow_mut().iter_mut() {
            let before = shelf.len();
            // Oldest first in each shelf.
            let old = shelf
                .iter()
                .take_while(|i| now_ms.saturating_sub(i.since_ms) > self.idle_ms_max)
                .count();
            shelf.drain(..old);
            self.idle.set(self.idle.get() - (before - shelf.len()));
        }
    }

    pub fn idle(&self) -> usize {
        self.idle.get()
    }

    pub fn clear(&self) {
        self.shelves.borrow_mut().clear();
        self.idle.set(0);
    }
}

/// Exclusive use of one upstream connection.
pub struct Lease {
    pub stream: Stream,
    instance: usize,
    /// It has served an answer before, so its engine may be closing it at this moment.
    pub reused: bool,
    pool: Rc<Pool>,
}

impl Lease {
    /// The answer was read to its last byte and the engine keeps the connection: others may use it.
    pub fn finish(self, now_ms: u64) {
        let pool = self.pool;
        let mut shelves = pool.shelves.borrow_mut();
        if shelves.len() <= self.instance {
            shelves.resize_with(self.instance + 1, Vec::new);
        }
        let shelf = &mut shelves[self.instance];
        if shelf.len() < pool.per_instance_max {
            shelf.push(Idle {
                stream: self.stream,
                since_ms: now_ms,
            });
            pool.idle.set(pool.idle.get() + 1);
        }
    }
}
