//! One engine on one thread: what it shares with its twins on other threads is in `World`.

pub(crate) mod admin;
pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod ec;
pub(crate) mod error;
pub(crate) mod job;
pub(crate) mod kv;
pub(crate) mod lmcache;
pub(crate) mod prompt;
pub(crate) mod responses;
pub(crate) mod route;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod stream;

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
    /// The listener's descriptor while there is one.
    pub listener: Cell<Option<RawFd>>,
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
            listener: Cell::new(None),
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
        self.world
            .ledger
            .violation(|| format!("engine {} was made to die", self.index));
        self.world.ledger.end(self.index);
        self.shared().up.store(false, Ordering::Release);
        let _ = crate::thread::settle(self);
    }

    /// Closes the listener; a waiting accept ends with an error.
    pub fn close_listener(&self) {
        if let Some(fd) = self.listener.take() {
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
