//! The little that the threads of one run share.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::thread::Thread;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    Warmup,
    Measure,
    /// No new requests; those under way may finish.
    Drain,
    /// Those still under way are cut off.
    Cut,
}

/// Where one thread stands; written by it twenty times a second, read by the progress line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Live {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
    pub chunks: AtomicU64,
    pub in_flight: AtomicU64,
    pub tid: AtomicU64,
}

#[derive(Debug)]
pub struct Shared {
    epoch: Instant,
    phase: AtomicU8,
    /// Measured requests to make, if limited.
    limit: Option<u64>,
    claimed: AtomicU64,
    finished: AtomicU64,
    /// Hash of the text that each prompt got first; 0 until then.
    pub texts: Vec<AtomicU64>,
    pub live: Vec<Live>,
    /// Distinguishes the request ids of this run.
    pub run_id: u64,
    main: Thread,
}

impl Shared {
    /// Call on the main thread: it is the one that gets woken.
    pub fn new(threads: usize, prompts: usize, limit: Option<u64>) -> Self {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self {
            epoch: Instant::now(),
            phase: AtomicU8::new(Phase::Warmup as u8),
            limit,
            claimed: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            texts: (0..prompts).map(|_| AtomicU64::new(0)).collect(),
            live: (0..threads).map(|_| Live::default()).collect(),
            run_id: since_1970.as_micros() as u64,
            main: std::thread::current(),
        }
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    pub fn instant(&self, ns: u64) -> Instant {
        self.epoch + std::time::Duration::from_nanos(ns)
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Warmup,
            1 => Phase::Measure,
            2 => Phase::Drain,
            _ => Phase::Cut,
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub fn measuring(&self) -> bool {
        self.phase() == Phase::Measure
    }

    /// May this request be made? Only measured ones count towards `--requests`.
    pub fn claim(&self, measured: bool) -> bool {
        match self.limit {
            Some(limit) if measured => self.claimed.fetch_add(1, Relaxed) < limit,
            _ => true,
        }
    }

    /// A claimed request has ended.
    pub fn finish(&self, measured: bool) {
        if let Some(limit) = self.limit
            && measured
            && self.finished.fetch_add(1, Relaxed) + 1 == limit
        {
            self.main.unpark();
        }
    }

    pub fn all_finished(&self) -> bool {
        self.limit
            .is_some_and(|limit| self.finished.load(Relaxed) >= limit)
    }

    pub fn wake_main(&self) {
        self.main.unpark();
    }
}
