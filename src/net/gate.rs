//! The work that is begun before the work that is new: a shard that is crowded lets requests begin in order, a few at
//! a time.
//!
//! A ring finishes at most 20 waiting reads per turn of the loop, oldest first (the kernel's IO_LOCAL_TW_DEFAULT_MAX;
//! one without DEFER_TASKRUN finishes them all, and the loop looks at it again when it has dealt with them). When more
//! clients ask than a shard can serve, their requests stand in that line, and so does everything that comes from
//! engines: the next chunk of a stream, or the answer for a request that is nearly done, waits behind a thousand
//! requests that nobody has looked at. With 2,000 clients beside 64 streams of a token each 5 ms, one token in ten came
//! after 15.5 ms; now it is 6.4 (benches/README.md). So requests are received and indexed as they come, and begin a few
//! at a time; before the next few the shard waits until all that stood in the line has had its turn.
//!
//! ```text
//! clients    engines
//!    | r1..r90  |        32 of them begin; the shard stands in the line itself, behind all that is in it now
//!    |  a1..a32 |        answers and chunks are served in the order of the line, new requests are read and wait here
//!    |          |        its turn: the next 32 begin
//! ```
//!
//! As long as little is under way, or little begins, nobody waits and nothing is asked of the kernel. An epoll shard
//! sees all that is ready at once, and has no such line: there everybody begins at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::runtime::Driver;
use super::stream::{Stream, shutdown_now};

/// So many may begin before the line is looked at again. (With 16 a request costs 2 % more, and one token in a
/// hundred comes after 7.6 instead of 9 ms.)
const AT_ONCE: usize = 32;
/// A turn in which fewer begin is no crowd: the line is not looked at.
const FEW: usize = 4;
/// So few are not much delayed by whoever stands before them.
const UNDER_WAY: usize = 100;

/// Of one shard; its [`Gate::keep`] has to run there.
pub struct Gate {
    /// `None`: everybody may begin.
    line: Option<Line>,
    /// Since the line was looked at, or in this turn.
    begun: Cell<usize>,
    under_way: Cell<usize>,
    /// Places given in `waiting`, and how many of them have been called.
    given: Cell<u64>,
    called: Cell<u64>,
    waiting: RefCell<VecDeque<Waker>>,
    keeper: RefCell<Option<Waker>>,
}

/// One request that has begun.
pub struct Passed<'a> {
    gate: &'a Gate,
    /// How long it had to wait, if at all.
    pub waited: Option<Duration>,
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        self.gate.under_way.set(self.gate.under_way.get() - 1);
    }
}

/// The line in the ring, and how to stand in it.
struct Line {
    read: Stream,
    write: Stream,
}

impl Line {
    fn new(driver: Driver) -> io::Result<Option<Line>> {
        if driver == Driver::Epoll {
            return Ok(None);
        }
        let (read, write) = UnixStream::pair()?;
        Ok(Some(Line {
            read: Stream::from_unix(OwnedFd::from(read), driver)?,
            write: Stream::from_unix(OwnedFd::from(write), driver)?,
        }))
    }

    /// Ends when all that stands in the line now has been served. The ring takes the read first, which has to wait
    /// for the write, and so stands behind everybody when that is done.
    async fn pass(&self) {
        // If one fails, the other would wait for ever, or the next find too much: from then on both end at once.
        let read = async {
            if self.read.read(Vec::with_capacity(1)).await.0.is_err() {
                shutdown_now(self.read.fd());
            }
        };
        let write = async {
            if self.write.write_all(vec![0]).await.0.is_err() {
                shutdown_now(self.read.fd());
            }
        };
        let (mut read, mut write) = (pin!(read), pin!(write));
        let (mut has_read, mut has_written) = (false, false);
        poll_fn(|cx| {
            has_read = has_read || read.as_mut().poll(cx).is_ready();
            has_written = has_written || write.as_mut().poll(cx).is_ready();
            match has_read && has_written {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

impl Gate {
    /// Within the shard's runtime.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(driver: Driver) -> io::Result<Gate> {
        Ok(Gate {
            line: Line::new(driver)?,
            begun: Cell::new(0),
            under_way: Cell::new(0),
            given: Cell::new(0),
            called: Cell::new(0),
            waiting: RefCell::default(),
            keeper: RefCell::default(),
        })
    }

    /// Waits until a request may begin, or until it is `over`, if its task is woken then. It is under way until what
    /// this gives is dropped.
    pub async fn pass(&self, over: impl Fn() -> bool) -> Passed<'_> {
        let waited = self.wait(over).await;
        self.under_way.set(self.under_way.get() + 1);
        Passed { gate: self, waited }
    }

    async fn wait(&self, over: impl Fn() -> bool) -> Option<Duration> {
        self.line.as_ref()?;
        if self.under_way.get() < UNDER_WAY && !self.crowded() {
            return None;
        }
        if self.begun.get() < AT_ONCE && !self.crowded() {
            if self.begun.replace(self.begun.get() + 1) == 0 {
                self.wake_keeper();
            }
            return None;
        }
        let since = Instant::now();
        let mut place = None;
        poll_fn(|cx| {
            // Who leaves the line keeps a place in it, and is called as well.
            if place.is_some_and(|place| place < self.called.get()) || over() {
                return Poll::Ready(());
            }
            // Its task's waker stays the same.
            if place.is_none() {
                place = Some(self.given.replace(self.given.get() + 1));
                self.waiting.borrow_mut().push_back(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        Some(since.elapsed())
    }

    /// Does anybody wait?
    pub fn crowded(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// The shard stops: whoever still waits is let go, and does not keep what it holds.
    pub fn close(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(waiting);
    }

    fn wake_keeper(&self) {
        if let Some(keeper) = self.keeper.borrow_mut().take() {
            keeper.wake();
        }
    }

    /// Looks at the line, and calls those who wait. Runs for ever.
    pub async fn keep(&self) {
        let Some(line) = &self.line else { return };
        loop {
            self.turn_ends().await;
            while self.begun.get() >= FEW || self.crowded() {
                line.pass().await;
                self.call();
            }
            self.begun.set(0);
        }
    }

    /// Waits for the end of a turn in which somebody began: who is woken in a turn stands behind all that it has to
    /// run.
    async fn turn_ends(&self) {
        poll_fn(|cx| {
            if self.begun.get() > 0 {
                return Poll::Ready(());
            }
            *self.keeper.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn call(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.len().min(AT_ONCE);
        waiting.drain(..next).for_each(Waker::wake);
        self.called.set(self.called.get() + next as u64);
        self.begun.set(next);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::runtime;
    use super::*;

    /// Whose answer is here as soon as the loop has come round.
    async fn ask_an_engine(driver: Driver) {
        let (half, _) = UnixStream::pair().expect("two descriptors");
        let engine = Stream::from_unix(OwnedFd::from(half), driver).expect("a stream");
        assert_eq!(engine.read(Vec::with_capacity(1)).await.0.unwrap(), 0);
    }

    /// A shard of this many requests, all here at once. Each begins, asks an engine, and is done when it has read the
    /// answer. Gives the order in which they began, how many were under way at most, and how many had to wait.
    fn crowd(polls: bool, requests: usize, leaves: fn(usize) -> bool) -> (Driver, Seen) {
        let mut built = runtime::build(polls).expect("a runtime");
        let driver = built.driver;
        let seen = built.runtime.block_on(async move {
            let gate = Rc::new(Gate::new(driver).expect("two descriptors"));
            let keeper = gate.clone();
            monoio::spawn(async move { keeper.keep().await });
            let seen = Rc::new(RefCell::new(Seen::default()));
            let all: Vec<_> = (0..requests)
                .map(|number| {
                    let (gate, seen) = (gate.clone(), seen.clone());
                    monoio::spawn(async move {
                        if leaves(number) {
                            // One is gone already, one is dropped while it waits (a connection that ends in a panic).
                            let gone = number % 2 == 0;
                            let mut pass = Box::pin(gate.pass(|| gone));
                            poll_fn(|cx| Poll::Ready(pass.as_mut().poll(cx).is_ready())).await;
                            return;
                        }
                        let passed = gate.pass(|| false).await;
                        seen.borrow_mut().begin(number, passed.waited.is_some());
                        if driver != Driver::Epoll {
                            ask_an_engine(driver).await;
                        }
                        seen.borrow_mut().under_way -= 1;
                    })
                })
                .collect();
            for one in all {
                one.await;
            }
            assert!(!gate.crowded());
            seen.take()
        });
        (driver, seen)
    }

    #[derive(Default)]
    struct Seen {
        order: Vec<usize>,
        under_way: usize,
        most: usize,
        waited: usize,
    }

    impl Seen {
        fn begin(&mut self, number: usize, waited: bool) {
            self.order.push(number);
            self.under_way += 1;
            self.most = self.most.max(self.under_way);
            self.waited += usize::from(waited);
        }
    }

    #[test]
    fn what_has_begun_is_never_behind_a_crowd() {
        for polls in [false, true] {
            let (driver, seen) = crowd(polls, 500, |_| false);
            assert!(seen.order.is_sorted() && seen.order.len() == 500);
            match driver {
                Driver::Epoll => assert_eq!(seen.waited, 0),
                // Those who were no crowd yet; those of one look at the line, and of the one before it.
                _ => assert!(
                    seen.most <= UNDER_WAY + 2 * AT_ONCE,
                    "{} at once",
                    seen.most
                ),
            }
        }
    }

    #[test]
    fn few_never_wait() {
        let (_, seen) = crowd(false, UNDER_WAY, |_| false);
        assert_eq!((seen.waited, seen.order.len()), (0, UNDER_WAY));
    }

    #[test]
    fn who_leaves_the_line_never_stops_it() {
        let (_, seen) = crowd(false, 500, |number| number % 3 == 0);
        assert_eq!(seen.order.len(), 333);
        assert!(seen.order.is_sorted());
    }
}
