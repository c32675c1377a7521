//! The ring between those who log and the one who writes.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};
use std::thread::Thread;
use std::time::SystemTime;

use crossbeam_queue::ArrayQueue;

use super::access::Access;
use super::line::{self, Json};
use super::{DROPPED, Format, Level};

/// What waits in the ring. An access line is moved in whole: a box would cost an allocation here and a
/// free on another thread.
#[allow(clippy::large_enum_variant)]
pub(super) enum Entry {
    Message {
        time: SystemTime,
        level: Level,
        text: Box<str>,
    },
    Access(Access),
}

impl Entry {
    pub fn format(&self, format: Format, out: &mut String) {
        match (self, format) {
            (Entry::Access(access), Format::Text) => access.format_text(out),
            (Entry::Access(access), Format::Json) => access.format_json(out),
            (Entry::Message { time, level, text }, Format::Text) => {
                line::timestamp(*time, out);
                out.extend([" ", level.name(), " "]);
                line::escape(text, false, out);
            }
            (Entry::Message { time, level, text }, Format::Json) => {
                Json::object(*time, *level, out)
                    .text("message", text)
                    .close();
            }
        }
        out.push('\n');
    }
}

pub(super) struct Ring {
    entries: ArrayQueue<Entry>,
    /// Lines of this ring that were lost.
    pub dropped: AtomicU64,
    /// Rounds of the writer, for those who wait for one.
    pub rounds: AtomicU64,
    pub stop: AtomicBool,
    pub writer: OnceLock<Thread>,
}

impl Ring {
    pub fn new(capacity: usize) -> Ring {
        Ring {
            entries: ArrayQueue::new(capacity.max(1)),
            dropped: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// Never waits, and never wakes the writer: that would be a system call on a shard.
    pub fn push(&self, entry: Entry) {
        if self.entries.push(entry).is_err() {
            self.lose(1);
        }
    }

    pub fn capacity(&self) -> u64 {
        self.entries.capacity() as u64
    }

    pub fn pop(&self) -> Option<Entry> {
        self.entries.pop()
    }

    pub fn lose(&self, lines: u64) {
        self.dropped.fetch_add(lines, Relaxed);
        DROPPED.fetch_add(lines, Relaxed);
    }
}

/// The ring that this process logs to.
pub(super) static CURRENT: Current = Current(AtomicPtr::new(ptr::null_mut()));

pub(super) struct Current(AtomicPtr<Ring>);

impl Current {
    #[inline]
    pub fn get(&self) -> Option<&'static Ring> {
        // SAFETY: null, or a `&'static Ring` stored by `set`; Acquire sees the ring as it was built.
        unsafe { self.0.load(Acquire).as_ref() }
    }

    pub fn set(&self, ring: &'static Ring) {
        self.0.store(ptr::from_ref(ring).cast_mut(), Release);
    }

    /// Ends logging to `ring`, unless another one has taken its place.
    pub fn unset(&self, ring: &'static Ring) {
        let ring = ptr::from_ref(ring).cast_mut();
        let _ = self
            .0
            .compare_exchange(ring, ptr::null_mut(), AcqRel, Relaxed);
    }
}
