//! What a shard does when all of its tasks wait. By default it waits at once, in its driver, until something happens.
//! Two other ways, for whoever knows his machine and his load:
//!
//! * *Batch window.* Tokens of many engines come one by one, and each wakes the shard: it runs, sends one chunk, and
//!   waits again. With a window it wakes at most once in that time: after a turn that has relayed something it
//!   rests until the window since its last rest is over, and finds all that came meanwhile. Whatever else comes while
//!   it rests waits as well. A shard that is busy for longer than the window in any case, or is woken less often,
//!   never rests, nor does one whose [gate](super::gate) has somebody waiting.
//! * *Busy poll.* For so long after the last byte to a client or an engine it does not wait at all but looks again
//!   and again, so that no wake-up stands between a packet and its relay. It takes the whole core meanwhile.
//!
//! Both are done from the runtime's main future, which monoio polls when the tasks are done and before it waits.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Wait,
    Window(Duration),
    BusyPoll(Duration),
}

/// monoio looks at its timers only when it waits, so a shard that polls does that now and then.
const TIMERS_EVERY: Duration = Duration::from_millis(3);
/// Surely over by then (its ticks are milliseconds), so that this wait is none.
const OVERDUE_BY_THEN: Duration = Duration::from_millis(1);

/// How one shard paces itself. Belongs to its thread.
pub struct Pace {
    manner: Manner,
    /// Has the main future polled again.
    main: RefCell<Option<Waker>>,
    /// Has the loop go round once more instead of waiting.
    restless: RefCell<Option<Waker>>,
    /// Window: there may be writes that no ring has been told of.
    unsent: Cell<bool>,
    /// Window: when the last rest was over. Busy poll: when a byte last moved.
    since: Cell<Instant>,
    polling: Cell<bool>,
    saw_timers: Cell<Instant>,
}

impl Pace {
    /// On the shard's own thread: a window makes the kernel's sleeps of it exact (they may be 50 us longer else).
    pub fn new(manner: Manner) -> Pace {
        if let Manner::Window(_) = manner {
            // SAFETY: a number, for this thread only.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        }
        let now = Instant::now();
        Pace {
            manner,
            main: RefCell::default(),
            restless: RefCell::default(),
            unsent: Cell::new(false),
            since: Cell::new(now),
            polling: Cell::new(false),
            saw_timers: Cell::new(now),
        }
    }

    /// One piece of a stream of events is about to be sent: once it is, there may be a rest. (Not after a
    /// question to an engine, or a piece of a whole answer: of those a client waits for one after the other,
    /// and each would be late.)
    pub fn relaying(&self) {
        if let Manner::Window(_) = self.manner {
            self.unsent.set(true);
            wake(&self.main);
        }
    }

    /// Bytes have gone to a client or an engine: there may soon be more to do.
    pub fn stirred(&self) {
        if let Manner::BusyPoll(_) = self.manner {
            let now = Instant::now();
            self.since.set(now);
            if !self.polling.replace(true) {
                // It has just waited, and so seen its timers; and the one that keeps the next wait short is yet to be.
                self.saw_timers.set(now);
            }
            wake(&self.main);
        }
    }

    /// To be called from the main future whenever that is polled. No rest while requests wait for the next turn.
    pub fn turn(&self, cx: &mut Context<'_>, crowded: bool) {
        remember(&self.main, cx);
        match self.manner {
            Manner::Wait => {}
            // The loop submits when it goes round, and only then: a ring would get the writes after the rest.
            Manner::Window(_) if self.unsent.replace(false) => wake(&self.restless),
            Manner::Window(_) if crowded => {}
            Manner::Window(window) => {
                // The reads that follow those writes are not submitted yet. They are after this, when some of them have
                // something to read: those need no wake-up of their own.
                std::thread::sleep(window.saturating_sub(self.since.get().elapsed()));
                self.since.set(Instant::now());
            }
            Manner::BusyPoll(limit) => self.poll_on(limit),
        }
    }

    fn poll_on(&self, limit: Duration) {
        let now = Instant::now();
        if !self.polling.get() || now - self.since.get() > limit {
            self.polling.set(false);
        } else if now - self.saw_timers.get() > TIMERS_EVERY {
            self.saw_timers.set(now);
        } else {
            wake(&self.restless);
        }
    }

    /// A task that has nothing to do but to be there: as long as one waits to be run, the loop goes on.
    pub async fn keep_awake(&self) {
        if self.manner == Manner::Wait {
            return;
        }
        let mut overdue: Option<Pin<Box<monoio::time::Sleep>>> = None;
        poll_fn(|cx| {
            remember(&self.restless, cx);
            if self.polling.get() {
                due(&mut overdue, cx);
            } else {
                overdue = None;
            }
            if self.polling.get() || matches!(self.manner, Manner::Window(_)) {
                wake(&self.main);
            }
            Poll::Pending
        })
        .await
    }
}

/// Has a timer run that is over soon.
fn due(timer: &mut Option<Pin<Box<monoio::time::Sleep>>>, cx: &mut Context<'_>) {
    let sleep = || Box::pin(monoio::time::sleep(OVERDUE_BY_THEN));
    while timer.get_or_insert_with(sleep).as_mut().poll(cx).is_ready() {
        *timer = None;
    }
}

fn remember(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut place = place.borrow_mut();
    if !place.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = &*place.borrow() {
        waker.wake_by_ref();
    }
}
