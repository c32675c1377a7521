//! Time, for engines that take some: a prefill queue worked off in batches of tokens, and decode
//! ticks shared by the running sequences. One of each per engine and thread; rates and limits are
//! this thread's share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::options::Timing;

/// Up to this share of its prefill a request whose client leaves is aborted without a trace.
const ABORTABLE: f64 = 0.8;

#[derive(Default)]
struct Piece {
    total: Cell<u32>,
    left: Cell<u32>,
    /// Tokens in the step that runs now.
    current: Cell<u32>,
    gone: Cell<bool>,
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

pub(crate) struct Prefill {
    rate: f64,
    batch: u32,
    queue: RefCell<VecDeque<Rc<Piece>>>,
    busy: Cell<bool>,
    step: Cell<(Option<Instant>, Duration)>,
}

/// A request's place in the prefill queue. Dropped before 80 % it leaves the queue.
pub(crate) struct Place {
    piece: Rc<Piece>,
    prefill: Rc<Prefill>,
}

impl Prefill {
    pub fn new(timing: &Timing, threads: usize) -> Rc<Prefill> {
        Rc::new(Prefill {
            rate: timing.prefill_tokens_per_s / threads as f64,
            batch: timing.prefill_batch_tokens.max(1),
            queue: RefCell::default(),
            busy: Cell::new(false),
            step: Cell::new((None, Duration::ZERO)),
        })
    }

    /// Queues a prompt; `None` if prefill takes no time.
    pub fn enter(self: &Rc<Self>, tokens: u64) -> Option<Place> {
        if self.rate <= 0.0 || tokens == 0 {
            return None;
        }
        let tokens = tokens.min(u32::MAX.into()) as u32;
        let piece = Rc::new(Piece::default());
        piece.total.set(tokens);
        piece.left.set(tokens);
        self.queue.borrow_mut().push_back(piece.clone());
        if !self.busy.replace(true) {
            monoio::spawn(self.clone().work());
        }
        Some(Place {
            piece,
            prefill: self.clone(),
        })
    }

    /// One batch after the other until the queue is empty.
    async fn work(self: Rc<Self>) {
        let mut next = Instant::now();
        loop {
            let mut room = self.batch;
            let mut taken = Vec::new();
            self.queue.borrow_mut().retain(|p| !p.gone.get());
            for piece in self.queue.borrow().iter() {
                let share = piece.left.get().min(room);
                if share == 0 {
                    break;
                }
                room -= share;
                piece.current.set(share);
                taken.push(piece.clone());
            }
            if taken.is_empty() {
                break;
            }
            let duration = Duration::from_secs_f64(f64::from(self.batch - room) / self.rate);
            self.step.set((Some(Instant::now()), duration));
            next = next.max(Instant::now() - Duration::from_millis(2)) + duration;
            monoio::time::sleep_until(next.into()).await;
            for piece in taken {
                piece.left.set(piece.left.get() - piece.current.replace(0));
                if piece.left.get() == 0 {
                    piece.done.set(true);
                    if let Some(waker) = piece.waker.borrow_mut().take() {
                        waker.wake();
                    }
                }
            }
            self.queue.borrow_mut().retain(|p| !p.done.get());
        }
        self.busy.set(false);
    }
}

impl Place {
    pub async fn done(&self) {
        poll_fn(|cx| {
            if self.piece.done.get() {
                return Poll::Ready(());
            }
            *self.piece.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Can the engine still forget about it?
    pub fn abortable(&self) -> bool {
        let piece = &self.piece;
        let (begun, duration) = self.prefill.step.get();
        let part = begun.map_or(0.0, |b| b.elapsed().as_secs_f64() / duration.as_secs_f64());
        let before = f64::from(piece.total.get() - piece.left.get());
        let now = f64::from(piece.current.get()) * part.min(1.0);
        (before + now) / f64::from(piece.total.get()) < ABORTABLE
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.piece.gone.set(true);
    }
}

pub(crate) struct Decode {
    tick: Duration,
    per_sequence: Duration,
    batch: u32,
    stagger: bool,
    running: Cell<u32>,
    /// Tickets of those that wait for a seat, in order.
    line: RefCell<VecDeque<(u64, Option<Waker>)>>,
    tickets: Cell<u64>,
    ticking: Cell<bool>,
    ticks: Cell<u64>,
    sleepers: RefCell<Vec<Waker>>,
}

/// Running sequences of one request; dropping it makes room.
pub(crate) struct Seat {
    decode: Rc<Decode>,
    sequences: u32,
    ticket: Option<u64>,
    /// The tick (lockstep) or the moment (staggered) of the next token.
    seen: Cell<u64>,
    due: Cell<Option<Instant>>,
}

impl Decode {
    pub fn new(timing: &Timing, threads: usize) -> Rc<Decode> {
        Rc::new(Decode {
            tick: timing.decode_tick,
            per_sequence: timing.tick_per_seq,
            batch: (timing.decode_batch / threads as u32).max(1),
            stagger: timing.stagger,
            running: Cell::new(0),
            line: RefCell::default(),
            tickets: Cell::new(0),
            ticking: Cell::new(false),
            ticks: Cell::new(0),
            sleepers: RefCell::default(),
        })
    }

    fn period(&self) -> Duration {
        self.tick + self.per_sequence * self.running.get()
    }

    /// A place in the batch; `None` if decoding takes no time. The seat must be awaited (`sit`).
    pub fn enter(self: &Rc<Self>, sequences: u32) -> Option<Seat> {
        if self.tick.is_zero() && self.per_sequence.is_zero() {
            return None;
        }
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.line.borrow_mut().push_back((ticket, None));
        Some(Seat {
            decode: self.clone(),
            sequences: sequences.min(self.batch),
            ticket: Some(ticket),
            seen: Cell::new(0),
            due: Cell::new(None),
        })
    }

    async fn work(self: Rc<Self>) {
        let mut next = Instant::now();
        while self.running.get() > 0 {
            // Late ticks are caught up with, up to a point: timers are no finer than 1 ms.
            next = next.max(Instant::now() - Duration::from_millis(20)) + self.period();
            monoio::time::sleep_until(next.into()).await;
            self.ticks.set(self.ticks.get() + 1);
            let sleepers = std::mem::take(&mut *self.sleepers.borrow_mut());
            sleepers.into_iter().for_each(Waker::wake);
        }
        self.ticking.set(false);
    }

    fn call_next(&self) {
        if let Some((_, waker)) = self.line.borrow_mut().front_mut()
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
    }
}

impl Seat {
    /// Waits for room in the batch. `phase` in 0..1 places a staggered sequence within the tick.
    pub async fn sit(&mut self, phase: f64) {
        let decode = self.decode.clone();
        poll_fn(|cx| {
            let fits = decode.running.get() + self.sequences <= decode.batch;
            let mut line = decode.line.borrow_mut();
            if fits && line.front().map(|(t, _)| *t) == self.ticket {
                line.pop_front();
                return Poll::Ready(());
            }
            if let Some(entry) = line.iter_mut().find(|(t, _)| Some(*t) == self.ticket) {
                entry.1 = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        self.ticket = None;
        decode.running.set(decode.running.get() + self.sequences);
        decode.call_next();
        self.seen.set(decode.ticks.get());
        if decode.stagger {
            self.due
                .set(Some(Instant::now() + decode.period().mul_f64(phase)));
        } else if !decode.ticking.replace(true) {
            monoio::spawn(decode.clone().work());
        }
    }

    /// Waits for this sequence's next token.
    pub async fn tick(&self) {
        if let Some(due) = self.due.get() {
            monoio::time::sleep_until(due.into()).await;
            let earliest = Instant::now() - Duration::from_millis(20);
            self.due.set(Some(due.max(earliest) + self.decode.period()));
            return;
        }
        let mut asleep = false;
        poll_fn(|cx| {
            if self.decode.ticks.get() != self.seen.get() {
                return Poll::Ready(());
            }
            // Woken by others (the watch) it stays registered for this tick.
            if !asleep {
                asleep = true;
                self.decode.sleepers.borrow_mut().push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        // One token for each tick, also when several went by.
        self.seen.set(self.seen.get() + 1);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match self.ticket {
            Some(ticket) => self.decode.line.borrow_mut().retain(|(t, _)| *t != ticket),
            None => self
                .decode
                .running
                .set(self.decode.running.get() - self.sequences),
        }
        self.decode.call_next();
    }
}
