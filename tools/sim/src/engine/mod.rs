//! One engine on one thread: what it shares with its twins on other threads is in `World`.

pub(crate) mod admin;
pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod ec;
pub(crate) mod error;
pub(crate) mod job;
pub(crate) mod kv;
pub(crate) mod lmcache;
pub(crate) mod mooncake;
pub(crate) mod offloading;
pub(crate) mod prompt;
pub(crate) mod responses;
pub(crate) mod route;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod sglang;
pub(crate) mod store;
pub(crate) mod stream;
pub(crate) mod tie;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::json::Member;
use crate::options::EngineOptions;
use crate::world::{Shared, World};
use schedule::{Decode, Prefill};

/// A connection as seen from outside of its task.
pub(crate) struct Door {
    pub fd: RawFd,
    /// The thread's clock when it last became idle; `u64::MAX` while it works on a request.
    pub idle_since: Cell<u64>,
}

pub(crate) struct Engine {
    pub world: Arc<World>,
    pub index: usize,
    /// The incarnation that this thread serves, 0 while it is down, and its id.
    pub incarnation: Cell<u32>,
    pub id: Cell<[u8; 36]>,
    pub doors: RefCell<HashMap<u64, Rc<Door>>>,
    /// The listeners' descriptors while there are any: the engine's, and that of its bootstrap server.
    pub listeners: [Cell<Option<RawFd>>; 2],
    pub prefill: Rc<Prefill>,
    pub decode: Rc<Decode>,
    /// This thread's coarse clock (milliseconds), shared by its engines.
    pub ticker: Rc<Cell<u64>>,
    pub scratch: RefCell<Scratch>,
}

/// Buffers that every request of this engine uses anew.
#[derive(Default)]
pub(crate) struct Scratch {
    pub members: Vec<Member>,
    pub body: Vec<u8>,
    pub event: Vec<u8>,
}

impl Engine {
    pub fn new(world: Arc<World>, index: usize, ticker: Rc<Cell<u64>>) -> Rc<Engine> {
        let timing = &world.engines[index].options.timing;
        let (prefill, decode) = (
            Prefill::new(timing, world.threads),
            Decode::new(timing, world.threads),
        );
        Rc::new(Engine {
            world,
            index,
            incarnation: Cell::new(0),
            id: Cell::new([0; 36]),
            doors: RefCell::default(),
            listeners: [const { Cell::new(None) }; 2],
            prefill,
            decode,
            ticker,
            scratch: RefCell::default(),
        })
    }

    pub fn shared(&self) -> &Shared {
        &self.world.engines[self.index]
    }

    pub fn options(&self) -> &EngineOptions {
        &self.shared().options
    }

    /// The process dies: for all threads, which notice within their next sweep.
    pub fn die(self: &Rc<Self>) {
        self.crash("it was made to die");
        let _ = crate::thread::settle(self);
    }

    /// The same, and this thread notices in its next sweep, too: the request that did it may be answered.
    pub fn crash(&self, why: &str) {
        let index = self.index;
        self.world
            .ledger
            .violation(|| format!("engine {index}: {why}"));
        self.world.lose(index);
        self.shared().up.store(false, Ordering::Release);
    }

    /// Closes the listeners; a waiting accept ends with an error.
    pub fn close_listeners(&self) {
        for fd in self.listeners.iter().filter_map(Cell::take) {
            // SAFETY: the accept task keeps the descriptor open until it sees this.
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        }
    }

    pub fn reset_connections(&self) {
        self.doors
            .borrow()
            .values()
            .for_each(|door| crate::link::reset(door.fd));
    }
}
