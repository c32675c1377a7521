//! Legs that run beside the script: a P that is asked when D is, and tells D by itself.
//!
//! ```text
//!  script                 aside
//!    |--send------------->|--leg--> P
//!    |--open--> D         |
//!    |      (waits for P) |<--4xx, 5xx, nothing
//!    |<--ends D's leg-----|
//!    |  P's failure       |
//! ```
//!
//! * **For:** that D does not wait for a P that has failed: engines give up after minutes.
//! * **Must never:** end with the client by itself: P would be cut off in a transfer that D still reads.
//! * **To extend:** there is nothing to extend: a leg whose answer matters is a branch that is awaited.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Opened, Picked, Reply, Stop};
use crate::log;
use crate::net::sweep::{Fired, SWEEP_EVERY, Slot, Wait};

/// How the script's wait for D is ended.
const ENDED: Fired = Fired::Deadline(Wait::Prefill);

/// A leg on its way. Dropped: it goes on, and nobody hears of it.
pub struct Aside(Rc<State>);

struct State {
    /// Its own.
    slot: Rc<Slot>,
    /// Nobody waits for D any more.
    over: Cell<bool>,
    failed: RefCell<Option<Stop>>,
    began: Instant,
    /// Until P was at its end, good or bad.
    took: Cell<Option<Duration>>,
}

/// Sends the leg and lets it run to its end; a failure is counted where all are, and logged.
pub fn send(x: &Exchange, picked: Picked, leg: Leg) -> Aside {
    let (aside, slot) = (x.detached(), x.slot.clone());
    let place = picked.instance().name.clone();
    *x.trace.prefill_at.borrow_mut() = Some(place.clone());
    let state = Rc::new(State {
        slot: aside.slot.clone(),
        over: Cell::new(false),
        failed: RefCell::default(),
        began: Instant::now(),
        took: Cell::default(),
    });
    let told = state.clone();
    monoio::spawn(async move {
        let failed = failure(&aside, picked, leg).await;
        told.took.set(Some(told.began.elapsed()));
        let Some(stop) = failed else {
            return;
        };
        if told.over.get() {
            return;
        }
        log::limited_for("aside", &place, log::Level::Warning, || {
            let why = match &stop {
                Stop::Answer(answer) => format!("answered {}", answer.head.status),
                Stop::Error(error) | Stop::Again(error) => error.to_string(),
                Stop::Said(_) | Stop::Broken(_) => "failed".into(),
            };
            format!("prefill {place} failed a request that decode is waiting for: {why}")
        });
        *told.failed.borrow_mut() = Some(stop);
        // Again, for as long as it takes: D's leg may just be between two connections.
        while !told.over.get() {
            slot.fire(ENDED);
            monoio::time::sleep(SWEEP_EVERY).await;
        }
    });
    Aside(state)
}

/// Why P has nothing for D, if so. A good head that does not end well is no reason: what D comes for is there.
async fn failure(aside: &Exchange, picked: Picked, leg: Leg) -> Option<Stop> {
    let opened = match aside.open(picked, leg).await {
        Ok(opened) => opened,
        Err(stop) => return Some(stop),
    };
    if opened.head.status < 400 {
        let _ = aside.read_off(opened).await;
        return None;
    }
    match aside.whole(opened).await {
        Ok(answer) => Some(Stop::Answer(Box::new(answer))),
        Err(stop) => Some(stop),
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.over.set(true);
    }
}

impl Aside {
    /// P is to stop: D does not come.
    pub fn end(&self) {
        self.0.slot.fire(Fired::ClientGone);
    }

    /// What `open` gives; or P's failure, if that has ended it.
    pub async fn or_failure(
        &self,
        x: &Exchange,
        open: impl Future<Output = Result<Opened, Stop>>,
    ) -> Result<Opened, Stop> {
        let opened = open.await;
        self.0.over.set(true);
        self.note(x);
        let Some(failed) = self.0.failed.take() else {
            return opened;
        };
        if x.slot.fired() == Some(ENDED) {
            x.slot.forgive();
        }
        if x.slot.fired().is_some() || opened.is_ok() {
            return opened;
        }
        x.trace.stage.set(Stage::Prefill);
        Err(failed)
    }

    /// D's answer to the client; and by its end, for how long P was at it.
    pub async fn relay(&self, x: &Exchange, reply: &mut Reply, opened: Opened) -> Result<(), Stop> {
        let end = reply.relay(x, opened).await;
        self.note(x);
        end
    }

    /// A P that is not at its end yet has worked until now.
    fn note(&self, x: &Exchange) {
        let took = self.0.took.get().unwrap_or_else(|| self.0.began.elapsed());
        x.trace.prefill.set(Some(took));
    }
}
