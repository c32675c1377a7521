//! Deadlines and cancellation: one [`Slot`] per client connection, one sweep of all slots per 100 ms.
//!
//! A timer per wait would cost more than the wait. A slot holds one deadline, rewritten as the request
//! moves from stage to stage; the sweep finds the expired ones. To end a wait, by deadline or because the
//! client left, is always the same act: note why, and shut down the descriptors that it waits on.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use super::stream::{finish_reading, finish_writing, hung_up, shutdown_now};

/// How often deadlines are looked at: the coarseness of every timeout.
pub const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// No single wait is longer than this once the client has left.
const AFTER_GONE_MAX: Duration = Duration::from_secs(10);

/// What is being waited for. Also the `wait` label of metrics.
pub use crate::metrics::Wait;

/// Why a slot's operations were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fired {
    ClientGone,
    Deadline(Wait),
}

/// What a client's leaving does to the operation that is under way upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGone {
    /// It ends at once.
    Cut,
    /// It is read on for this long; then we say that we have finished sending, and read on for as long
    /// again. A prefill instance that learns of the end just as it finishes cannot abort any more, nor
    /// does it say where its KV is: nobody could release that. So one that is near its end is let finish,
    /// and one that is not (a long prompt, a queue) aborts.
    LetFinish(Duration),
    /// It goes on for this long: a decode instance that is fetching KV from an instance it has never met
    /// must come to its first byte, or the blocks stay pinned.
    Finish(Duration),
}

const NO_FD: RawFd = -1;

/// The deadline and the descriptors of one client connection.
pub struct Slot {
    client: Cell<RawFd>,
    upstream: Cell<RawFd>,
    wait: Cell<Wait>,
    /// On the shard's clock; `u64::MAX` = none.
    deadline_ms: Cell<u64>,
    /// The request's own end, whatever stage it is in.
    request_ms: Cell<u64>,
    fired: Cell<Option<Fired>>,
    on_gone: Cell<OnGone>,
    /// Nobody reads from the client: ask the kernel at each sweep whether it is still there.
    hangup: Cell<bool>,
    /// The task of a client that has nothing to say yet.
    sleeper: RefCell<Option<Waker>>,
    /// Slots of what else this request does at the same time: whatever ends it ends them.
    branches: RefCell<Vec<Weak<Slot>>>,
    clock: Rc<Clock>,
}

/// The shard's coarse clock, advanced by the sweep and read for free.
pub struct Clock {
    origin: std::time::Instant,
    now_ms: Cell<u64>,
}

/// One origin for the clocks of all threads, so that what one notes another can compare.
pub fn process_origin() -> std::time::Instant {
    static ORIGIN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *ORIGIN.get_or_init(std::time::Instant::now)
}

impl Clock {
    pub fn new() -> Rc<Clock> {
        let clock = Clock {
            origin: process_origin(),
            now_ms: Cell::new(0),
        };
        clock.tick();
        Rc::new(clock)
    }

    /// Milliseconds on the process's clock, up to 100 ms old.
    pub fn coarse_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Where `then` is on the process's clock.
    pub fn since_start(&self, then: std::time::Instant) -> Duration {
        then.saturating_duration_since(self.origin)
    }

    /// Brings the coarse reading up to date.
    pub fn tick(&self) -> u64 {
        let now = self.origin.elapsed().as_millis() as u64;
        self.now_ms.set(now);
        now
    }
}

impl Slot {
    /// Starts a wait: from now it may last `limit`. Never shorter; longer by up to two sweeps.
    pub fn arm(&self, wait: Wait, limit: Duration) {
        // Nobody waits for this any more: whatever goes on only releases what would be stranded.
        let limit = match self.fired.get() {
            Some(Fired::ClientGone) => limit.min(AFTER_GONE_MAX),
            _ => limit,
        };
        self.wait.set(wait);
        self.deadline_ms.set(self.in_ms(limit));
    }

    /// The coarse clock may be one sweep behind, so one is added: a wait is never cut short.
    fn in_ms(&self, limit: Duration) -> u64 {
        self.clock.coarse_ms() + (limit + SWEEP_EVERY).as_millis() as u64
    }

    pub fn disarm(&self) {
        self.deadline_ms.set(u64::MAX);
    }

    /// A new request begins: forgets what ended the last one, and sets the limit on all of this one.
    pub fn begin_request(&self, limit: Duration) {
        self.fired.set(None);
        self.request_ms.set(self.in_ms(limit));
    }

    /// From now on the sweep looks for the client's end, until the request ends.
    pub fn poll_hangup(&self, on: bool) {
        self.hangup.set(on);
    }

    pub fn end_request(&self) {
        self.fired.set(None);
        self.hangup.set(false);
        self.request_ms.set(u64::MAX);
        self.disarm();
    }

    /// From now on `fd` is what this request waits on upstream; the guard ends that.
    pub fn watch_upstream(self: &Rc<Self>, fd: RawFd) -> Upstream {
        self.upstream.set(fd);
        self.on_gone.set(OnGone::Cut);
        Upstream(self.clone())
    }

    /// What the client's leaving does to what is watched now.
    pub fn when_gone(&self, what: OnGone) {
        self.on_gone.set(what);
    }

    /// `branch` is a part of this request: it ends when the request does.
    pub fn branch_off(&self, branch: &Rc<Slot>) {
        let mut branches = self.branches.borrow_mut();
        branches.retain(|one| one.strong_count() > 0);
        branches.push(Rc::downgrade(branch));
        if let Some(why) = self.fired.get() {
            branch.fire(why);
        }
    }

    /// Forgets a deadline that ended one wait but not the request (a connect: there are other instances).
    pub fn forgive(&self) {
        self.fired.set(None);
    }

    pub fn fired(&self) -> Option<Fired> {
        self.fired.get()
    }

    /// The connection waits for a next request, and looks at [`Slot::fired`] when it is woken. A limit that
    /// passes then ends nothing by itself: a request that came at that very moment may be in our buffer
    /// already, and with reading shut down it would look like one whose client has left.
    pub fn sleep(&self, cx: &Context<'_>) {
        let mut sleeper = self.sleeper.borrow_mut();
        if sleeper.is_none() {
            *sleeper = Some(cx.waker().clone());
        }
    }

    /// Ends what is pending, once: the first reason stands, but for a connect's, which may be forgiven.
    pub fn fire(&self, why: Fired) {
        if matches!(
            self.fired.get(),
            None | Some(Fired::Deadline(Wait::Connect))
        ) {
            self.fired.set(Some(why));
        }
        self.end_upstream(why);
        for branch in self.branches.borrow().iter().filter_map(Weak::upgrade) {
            branch.fire(why);
        }
        let client = self.client.get();
        if client == NO_FD {
            return;
        }
        match why {
            Fired::Deadline(Wait::KeepAlive) if self.sleeper.borrow().is_some() => {
                self.wake();
            }
            // Only the reading ends: the client can still be told that it was too slow.
            Fired::Deadline(Wait::KeepAlive | Wait::Head | Wait::Body | Wait::Linger) => {
                finish_reading(client);
            }
            Fired::ClientGone | Fired::Deadline(Wait::ClientWrite) => shutdown_now(client),
            Fired::Deadline(_) => {}
        }
    }

    fn end_upstream(&self, why: Fired) {
        let upstream = self.upstream.get();
        if upstream == NO_FD {
            return;
        }
        match (why, self.on_gone.get()) {
            (Fired::ClientGone, OnGone::LetFinish(limit) | OnGone::Finish(limit)) => {
                self.arm(Wait::Release, limit);
            }
            _ => shutdown_now(upstream),
        }
    }

    fn wake(&self) {
        if let Some(sleeper) = self.take_sleeper() {
            sleeper.wake();
        }
    }

    /// (Out of the cell before it is used or dropped: a task's end may come back here.)
    fn take_sleeper(&self) -> Option<Waker> {
        self.sleeper.borrow_mut().take()
    }

    /// The client's descriptor is about to be closed: never touch that number again.
    pub fn forget_client(&self) {
        drop(self.take_sleeper());
        self.client.set(NO_FD);
        self.hangup.set(false);
        self.disarm();
        self.request_ms.set(u64::MAX);
    }

    fn postpone(&self, by_ms: u64) {
        for end in [&self.deadline_ms, &self.request_ms] {
            end.set(end.get().saturating_add(by_ms));
        }
    }

    /// The time in which a departed client's prefill may finish undisturbed is over: P may now abort it.
    fn half_close(&self) -> bool {
        let upstream = self.upstream.get();
        match (self.fired.get(), self.wait.get(), self.on_gone.get()) {
            (Some(Fired::ClientGone), Wait::Release, OnGone::LetFinish(limit))
                if upstream != NO_FD =>
            {
                finish_writing(upstream);
                self.when_gone(OnGone::Finish(limit));
                self.arm(Wait::Release, limit);
                true
            }
            _ => false,
        }
    }

    /// Ends what has lasted too long, and says what that was.
    fn expire(&self, now: u64) -> Option<Wait> {
        let client = self.client.get();
        if self.hangup.get() && client != NO_FD && hung_up(client) {
            self.hangup.set(false);
            self.fire(Fired::ClientGone);
        }
        let wait = if self.deadline_ms.get() <= now {
            if self.half_close() {
                return None;
            }
            self.deadline_ms.set(u64::MAX);
            self.wait.get()
        } else if self.request_ms.get() <= now {
            self.request_ms.set(u64::MAX);
            Wait::Request
        } else {
            return None;
        };
        self.fire(Fired::Deadline(wait));
        Some(wait)
    }
}

/// While this lives, the slot may shut the upstream descriptor down.
pub struct Upstream(Rc<Slot>);

impl Drop for Upstream {
    fn drop(&mut self) {
        self.0.upstream.set(NO_FD);
    }
}

/// All slots of one shard.
pub struct Sweep {
    pub clock: Rc<Clock>,
    slots: RefCell<Vec<Weak<Slot>>>,
}

impl Default for Sweep {
    fn default() -> Self {
        Sweep {
            clock: Clock::new(),
            slots: RefCell::default(),
        }
    }
}

impl Sweep {
    pub fn slot(&self, client: RawFd) -> Rc<Slot> {
        let slot = Rc::new(Slot {
            client: Cell::new(client),
            upstream: Cell::new(NO_FD),
            wait: Cell::new(Wait::KeepAlive),
            deadline_ms: Cell::new(u64::MAX),
            request_ms: Cell::new(u64::MAX),
            fired: Cell::new(None),
            on_gone: Cell::new(OnGone::Cut),
            hangup: Cell::new(false),
            sleeper: RefCell::default(),
            branches: RefCell::default(),
            clock: self.clock.clone(),
        });
        self.slots.borrow_mut().push(Rc::downgrade(&slot));
        slot
    }

    /// A slot without a client: for work that outlives one.
    pub fn orphan(&self) -> Rc<Slot> {
        self.slot(NO_FD)
    }

    /// Those that wait for a next request wait no longer than this from now on.
    pub fn hurry_idle(&self, limit: Duration) {
        self.idle(|slot| {
            let soon = slot.in_ms(limit);
            slot.deadline_ms.set(soon.min(slot.deadline_ms.get()));
        });
    }

    /// Those that wait for a next request wait no longer.
    pub fn end_idle(&self) {
        self.idle(|slot| slot.fire(Fired::Deadline(Wait::KeepAlive)));
    }

    fn idle(&self, act: impl Fn(&Slot)) {
        for slot in self.slots.borrow().iter().filter_map(Weak::upgrade) {
            if slot.wait.get() == Wait::KeepAlive && slot.deadline_ms.get() != u64::MAX {
                act(&slot);
            }
        }
    }

    /// Before the shard ends: a task that is in the hold of its own slot would outlive it.
    pub fn forget_sleepers(&self) {
        for slot in self.slots.borrow().iter().filter_map(Weak::upgrade) {
            drop(slot.take_sleeper());
        }
    }

    /// Ends every request that is under way, or on its way to us. What goes on without a client (a release) is left
    /// alone.
    pub fn end_requests(&self) -> usize {
        let mut ended = 0;
        for slot in self.slots.borrow().iter().filter_map(Weak::upgrade) {
            let armed = slot.deadline_ms.get() != u64::MAX;
            let why = match slot.wait.get() {
                _ if slot.client.get() == NO_FD => continue,
                _ if slot.request_ms.get() != u64::MAX => Wait::Drain,
                coming @ (Wait::Head | Wait::Body) if armed => coming,
                _ => continue,
            };
            slot.fire(Fired::Deadline(why));
            ended += 1;
        }
        ended
    }

    /// Fires what has expired and forgets what is gone. Time in which the shard stood still (a paused
    /// machine, a starved core) counts for nobody: what came in it has not been looked at yet.
    /// `passed` is told of every limit that has passed.
    pub fn run(&self, mut passed: impl FnMut(Wait)) {
        let before = self.clock.coarse_ms();
        let now = self.clock.tick();
        let lost = (now - before).saturating_sub(2 * SWEEP_EVERY.as_millis() as u64);
        self.slots.borrow_mut().retain(|slot| match slot.upgrade() {
            Some(slot) => {
                slot.postpone(lost);
                if let Some(wait) = slot.expire(now) {
                    passed(wait);
                }
                true
            }
            None => false,
        });
    }
}
