//! When the requests of an open loop are due, and a timer that is finer than the runtime's.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use monoio::net::UnixStream;

use crate::args::Arrivals;
use crate::request::xorshift;
use crate::shared::Shared;

/// Requests that are due within this time of each other may be sent together.
const GRAIN_NS: u64 = 25_000;
/// The end of the window must be noticed even if no request is due.
const LONGEST_NS: u64 = 100_000_000;

pub struct Pacer {
    start: f64,
    /// Mean time between requests of this thread.
    interval: f64,
    arrivals: Arrivals,
    /// Time of the next request since the start, in intervals: adding up nanoseconds would drift.
    next: f64,
    random: u64,
    timer: UnixStream,
}

impl Pacer {
    pub fn new(
        rate: f64,
        arrivals: Arrivals,
        threads: usize,
        thread: usize,
        seed: u64,
        now: u64,
    ) -> io::Result<Self> {
        let mut pacer = Self {
            start: now as f64,
            interval: 1e9 * threads as f64 / rate,
            arrivals,
            next: (thread + 1) as f64 / threads as f64,
            random: (seed << 16) ^ (thread as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            timer: timer()?,
        };
        if arrivals == Arrivals::Poisson {
            pacer.next = 0.0;
            pacer.advance();
        }
        Ok(pacer)
    }

    pub fn due(&self) -> u64 {
        (self.start + self.next * self.interval) as u64
    }

    pub fn advance(&mut self) {
        self.next += match self.arrivals {
            Arrivals::Constant => 1.0,
            Arrivals::Poisson => {
                // 53 random bits in (0, 1]: the logarithm is finite.
                let unit = ((xorshift(&mut self.random) >> 11) + 1) as f64 / (1u64 << 53) as f64;
                -unit.ln()
            }
        };
    }

    /// Waits until the next request is due, or a while.
    pub async fn wait(&mut self, shared: &Shared) {
        let now = shared.now();
        let ns = self.due().saturating_sub(now).clamp(GRAIN_NS, LONGEST_NS);
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = libc::timespec {
            tv_sec: 0,
            tv_nsec: ns as libc::c_long,
        };
        let spec = libc::itimerspec {
            it_interval: zero,
            it_value: value,
        };
        // SAFETY: the descriptor is a timerfd and `spec` is valid; setting it also takes back an earlier expiry,
        // so it never has to be read.
        unsafe { libc::timerfd_settime(self.timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
        let _ = self.timer.readable(false).await;
    }
}

/// A timerfd in the clothes of a socket, of which only `readable()` is used: monoio's own timers are rounded to
/// whole milliseconds, which would be the largest part of a latency measured from the due time.
fn timer() -> io::Result<UnixStream> {
    let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and belongs to nobody else.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    UnixStream::from_std(owned.into())
}
