//! An allocator that counts what threads of one name ask for; the tests' and the benchmarks'.
//!
//! Counting is off until [`watch`] names the threads. A thread is asked for its name once per watch, by a system call
//! that allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub struct Counting;

/// 0: off. Each watch has a number of its own, so that threads ask for their names again.
static WATCH: AtomicUsize = AtomicUsize::new(0);
/// The first eight bytes of the names that count, and how many of them are meant.
static NAME: AtomicU64 = AtomicU64::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

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

fn note(bytes: usize) {
    let watch = WATCH.load(Ordering::Acquire);
    if watch != 0 && counted(watch) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
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
        note(size);
        // SAFETY: as our caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}
