//! What all threads share: the engines' options and counters, the ledger, the wishes from outside.
//! The hot path only touches relaxed atomics here (and one ledger lock).

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::cache::Cache;
use crate::engine::ec::Encodings;
use crate::fault::Fault;
use crate::ledger::{Ledger, lock};
use crate::meeting::Meetings;
use crate::options::EngineOptions;
use crate::text::{hash, mix, push_hex};
use crate::transcript::Transcript;
use crate::transfer::Transfers;

pub(crate) struct World {
    pub seed: u64,
    pub threads: usize,
    pub started: Instant,
    pub engines: Vec<Shared>,
    pub ledger: Ledger,
    pub encodings: Encodings,
    pub transfers: Transfers,
    pub meetings: Meetings,
    /// Of each engine.
    pub caches: Vec<Cache>,
    /// Of all.
    pub store: Cache,
}

pub(crate) struct Shared {
    pub options: EngineOptions,
    pub address: SocketAddr,
    /// Of its bootstrap server or its peers.
    pub side: Option<SocketAddr>,
    /// Counts starts, from 1. The engine id depends on it, so old params name no living engine.
    pub incarnation: AtomicU32,
    pub up: AtomicBool,
    /// True if some request might get a fault: the one look that the hot path takes.
    pub faulty: AtomicBool,
    pub fault: Mutex<Option<Fault>>,
    pub open: AtomicUsize,
    pub connections: AtomicUsize,
    pub requests: AtomicU64,
    pub counters: Counters,
    pub transcript: Option<Transcript>,
}

/// What `/metrics` shows.
#[derive(Default)]
pub(crate) struct Counters {
    pub local_tokens: AtomicU64,
    pub external_tokens: AtomicU64,
    pub generated: AtomicU64,
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub transfers: AtomicU64,
    pub failed_transfers: AtomicU64,
}

pub(crate) fn add(cell: &AtomicU64, n: u64) {
    cell.fetch_add(n, Ordering::Relaxed);
}

impl Shared {
    pub fn new(
        options: EngineOptions,
        address: SocketAddr,
        side: Option<SocketAddr>,
        transcript: Option<Transcript>,
    ) -> Shared {
        Shared {
            faulty: AtomicBool::new(!options.faults.rates.is_empty()),
            options,
            address,
            side,
            incarnation: AtomicU32::new(1),
            up: AtomicBool::new(true),
            fault: Mutex::new(None),
            open: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            counters: Counters::default(),
            transcript,
        }
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        *lock(&self.fault) = fault;
        let faulty = fault.is_some() || !self.options.faults.rates.is_empty();
        self.faulty.store(faulty, Ordering::Release);
    }

    /// The side channel's port as params name it; nothing listens there.
    pub fn side_port(&self, engine: usize) -> u16 {
        25_500 + engine as u16
    }
}

impl World {
    /// Nanoseconds since the simulator's start.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// The engine is gone, and with it what it had.
    pub fn lose(&self, engine: usize) {
        self.ledger.end(engine);
        self.meetings.end(engine);
        self.caches[engine].clear();
    }

    /// The fault this request gets, by wish from outside or by plan.
    pub fn fault_for(&self, engine: usize, request_id: &[u8]) -> Option<Fault> {
        let shared = &self.engines[engine];
        let number = shared.requests.load(Ordering::Relaxed);
        let set = *lock(&shared.fault);
        if set.is_some() {
            return set;
        }
        let request = if request_id.is_empty() {
            number
        } else {
            hash(3, request_id)
        };
        shared.options.faults.pick(self.seed, engine, request)
    }

    /// An engine's id in this incarnation. The last group says which engine it is, the rest cannot
    /// be guessed by a proxy that makes ids up.
    pub fn engine_id(&self, engine: usize, incarnation: u32) -> [u8; 36] {
        let secret = mix(mix(self.seed, engine as u64), u64::from(incarnation) << 20);
        let mut text = Vec::with_capacity(36);
        push_hex(&mut text, secret >> 32, 8);
        text.push(b'-');
        push_hex(&mut text, secret >> 16, 4);
        text.extend_from_slice(b"-4");
        push_hex(&mut text, secret >> 8, 3);
        text.extend_from_slice(b"-8");
        push_hex(&mut text, secret, 3);
        text.push(b'-');
        push_hex(&mut text, engine as u64, 4);
        push_hex(&mut text, incarnation.into(), 8);
        text.try_into().unwrap_or([0; 36])
    }

    /// The engine and incarnation that `id` names, if it ever was one of ours.
    pub fn find_engine(&self, id: &[u8]) -> Option<(usize, u32)> {
        let tail = std::str::from_utf8(id.get(24..36)?).ok()?;
        let engine = usize::from_str_radix(&tail[..4], 16).ok()?;
        let incarnation = u32::from_str_radix(tail.get(4..)?, 16).ok()?;
        let shared = self.engines.get(engine)?;
        let known = incarnation <= shared.incarnation.load(Ordering::Relaxed);
        (known && self.engine_id(engine, incarnation) == id).then_some((engine, incarnation))
    }
}
