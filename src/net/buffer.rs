//! Owned buffers lent by the shard, so that a relayed chunk allocates nothing and an idle stream holds
//! little.

use std::cell::RefCell;
use std::rc::Rc;

use monoio::buf::IoVecBuf;

/// Read ahead from a client whose answer is a stream: it has nothing to say for a long time.
pub const LITTLE: usize = 64;
/// A stream whose events are tokens, one per read: each is a few hundred bytes.
pub const CHUNK: usize = 512;
/// A client's request, the head of an answer.
pub const SMALL: usize = 4 << 10;
/// A stream that has filled a smaller buffer.
pub const MEDIUM: usize = 16 << 10;
/// A body.
pub const LARGE: usize = 64 << 10;

/// The sizes that are kept, and how many of each at most.
const SHELVES: [(usize, usize); 5] = [
    (LITTLE, 1024),
    (CHUNK, 1024),
    (SMALL, 512),
    (MEDIUM, 128),
    (LARGE, 64),
];

/// So many reads in a row have to fit a smaller buffer before there is one.
const SMALL_READS: u8 = 32;

/// How much a stream is read at once. It rests with the buffer of its next read, so that is as small as its events;
/// while more waits than fits, larger ones.
#[derive(Default)]
pub struct Appetite {
    /// Reads in a row that would have fitted a buffer of [`CHUNK`].
    small: u8,
}

impl Appetite {
    /// After a read of `n` bytes into a buffer of this capacity: that of the next one.
    pub fn next(&mut self, n: usize, capacity: usize) -> usize {
        if n == capacity {
            self.small = 0;
            // More waits than fits: it may be no token stream, so in steps that are few.
            let larger = [SMALL, MEDIUM, LARGE].into_iter().find(|one| *one > n);
            return larger.unwrap_or(n);
        }
        self.small = if n < CHUNK { self.small + 1 } else { 0 };
        if self.small < SMALL_READS {
            return capacity;
        }
        self.small = 0;
        CHUNK
    }
}

/// Free buffers of one shard, by size. LIFO: the warmest one first.
#[derive(Default)]
pub struct Buffers {
    shelves: [RefCell<Vec<Vec<u8>>>; SHELVES.len()],
}

impl Buffers {
    /// An empty buffer with a capacity of at least `size`.
    pub fn lend(&self, size: usize) -> Vec<u8> {
        match SHELVES.iter().position(|(exact, _)| size <= *exact) {
            Some(at) => {
                let kept = self.shelves[at].borrow_mut().pop();
                kept.unwrap_or_else(|| Vec::with_capacity(SHELVES[at].0))
            }
            None => Vec::with_capacity(size),
        }
    }

    /// Gives a buffer back. One of an odd size (grown, or a body) is freed.
    pub fn give(&self, mut buf: Vec<u8>) {
        let Some(at) = SHELVES
            .iter()
            .position(|(exact, _)| buf.capacity() == *exact)
        else {
            return;
        };
        let mut shelf = self.shelves[at].borrow_mut();
        if shelf.len() < SHELVES[at].1 {
            buf.clear();
            shelf.push(buf);
        }
    }
}

/// One piece of a gathered write: a range of shared bytes, or bytes of our own.
#[derive(Clone)]
pub enum Gather {
    Shared(Rc<Vec<u8>>, std::ops::Range<usize>),
    Own(Vec<u8>),
}

impl Gather {
    fn bytes(&self) -> &[u8] {
        match self {
            Gather::Shared(bytes, range) => &bytes[range.clone()],
            Gather::Own(bytes) => bytes,
        }
    }
}

/// A gathered write that *owns* what it points at: if its future is dropped the kernel still reads memory
/// that lives as long as the operation. (monoio's `write_vectored_all` owns only the iovecs.)
pub struct Pieces {
    iovecs: Box<[libc::iovec]>,
    /// First iovec not yet wholly written.
    first: usize,
    /// It keeps the memory behind the iovecs alive and unmoved.
    owned: Box<[Gather]>,
}

/// One writev takes no more iovecs than this (Linux UIO_MAXIOV).
const IOVECS_MAX: usize = 1024;

impl Pieces {
    pub fn new(parts: Vec<Gather>) -> Pieces {
        let owned = parts.into_boxed_slice();
        let iovecs = owned
            .iter()
            .map(Gather::bytes)
            .filter(|b| !b.is_empty())
            .map(|b| libc::iovec {
                iov_base: b.as_ptr() as *mut _,
                iov_len: b.len(),
            })
            .collect();
        Pieces {
            iovecs,
            first: 0,
            owned,
        }
    }

    /// All of it, for whoever does not hand it to the kernel as it is.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.owned.iter().map(Gather::bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.first == self.iovecs.len()
    }

    /// Notes that the first `n` of the remaining bytes were written.
    pub fn advance(&mut self, mut n: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if n < iovec.iov_len {
                // SAFETY: n is inside this iovec, so the pointer stays within its allocation.
                iovec.iov_base = unsafe { iovec.iov_base.cast::<u8>().add(n).cast() };
                iovec.iov_len -= n;
                return;
            }
            n -= iovec.iov_len;
            self.first += 1;
        }
    }
}

// SAFETY: the iovecs point into `owned` (heap memory of `Rc<Vec>` and `Vec` that is neither moved nor
// changed while `Pieces` lives), and the boxed iovec array itself never moves.
unsafe impl IoVecBuf for Pieces {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.iovecs[self.first..].as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        (self.iovecs.len() - self.first).min(IOVECS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_never_rests_long_with_a_large_buffer() {
        let mut appetite = Appetite::default();
        let mut size = CHUNK;
        for larger in [SMALL, MEDIUM, LARGE, LARGE] {
            size = appetite.next(size, size);
            assert_eq!(size, larger);
        }
        // Now and then a read that needs the room: it stays.
        for n in 0..1000 {
            size = appetite.next(if n % 20 == 0 { SMALL } else { 200 }, size);
            assert_eq!(size, LARGE);
        }
        for _ in 0..SMALL_READS {
            size = appetite.next(200, size);
        }
        assert_eq!(size, CHUNK);
        assert_eq!(appetite.next(200, size), CHUNK);
    }
}
