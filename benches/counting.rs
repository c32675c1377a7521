//! An allocator that counts what threads of one name ask for, and what they hold; the tests' and the benchmarks'.
//!
//! Counting is off until [`watch`] names the threads. A thread is asked for its name once per watch, by a system call
//! that allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

pub struct Counting;

/// 0: off. Each watch has a number of its own, so that threads ask for their names again.
static WATCH: AtomicUsize = AtomicUsize::new(0);
/// The first eight bytes of the names that count, and how many of them are meant.
static NAME: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
/// Pieces held, by size in steps of [`STEP`]; the last is for all larger ones.
static HELD: [AtomicI64; STEPS] = [const { AtomicI64::new(0) }; STEPS];
const STEP: usize = 16;
const STEPS: usize = 514;

thread_local! {
    // No destructor and no lazy start: both would allocate.
    static KNOWN: Cell<(usize, bool)> = const { Cell::new((0, false)) };
}

/// What was asked for since the watch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    pub count: u64,
    pub bytes: u64,
}

impl std::ops::Sub for Seen {
    type Output = Seen;
    fn sub(self, other: Seen) -> Seen {
        Seen {
            count: self.count - other.count,
            bytes: self.bytes - other.bytes,
        }
    }
}

/// From now on, threads whose names begin so are counted (eight bytes at most).
pub fn watch(prefix: &str) {
    let mut name = [0; 8];
    name[..prefix.len()].copy_from_slice(prefix.as_bytes());
    NAME.store(u64::from_ne_bytes(name), Ordering::Relaxed);
    LENGTH.store(prefix.len(), Ordering::Relaxed);
    WATCH.fetch_add(1, Ordering::Release);
}

pub fn seen() -> Seen {
    Seen {
        count: COUNT.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed),
    }
}

/// How many pieces the threads hold of each size: bytes, rounded up to 16, and how many (the last size is for all larger
/// ones). Counted from the first [`watch`] on, so only differences say something. (Memory that one thread takes and
/// another gives back counts for the one and not the other.)
#[allow(dead_code)]
pub fn held() -> Vec<(usize, i64)> {
    let sizes = HELD.iter().enumerate();
    let sizes = sizes.map(|(step, count)| (step * STEP, count.load(Ordering::Relaxed)));
    sizes.collect()
}

fn watched() -> bool {
    let watch = WATCH.load(Ordering::Acquire);
    watch != 0 && counted(watch)
}

fn note(bytes: usize) {
    if watched() {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
        step(bytes).fetch_add(1, Ordering::Relaxed);
    }
}

fn note_end(bytes: usize) {
    if watched() {
        step(bytes).fetch_sub(1, Ordering::Relaxed);
    }
}

fn step(bytes: usize) -> &'static AtomicI64 {
    &HELD[bytes.div_ceil(STEP).min(STEPS - 1)]
}

fn counted(watch: usize) -> bool {
    // A thread that is being torn down has no locals any more, and is none of those meant.
    KNOWN
        .try_with(|known| {
            if known.get().0 != watch {
                known.set((watch, named()));
            }
            known.get().1
        })
        .unwrap_or(false)
}

fn named() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let wanted = NAME.load(Ordering::Relaxed).to_ne_bytes();
    let length = LENGTH.load(Ordering::Relaxed);
    name[..length] == wanted[..length]
}

// SAFETY: all of it is System's; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note_end(layout.size());
        note(size);
        // SAFETY: as our caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note_end(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}
