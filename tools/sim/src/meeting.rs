//! Where two engines meet that are asked side by side: under a name that a proxy gave both (a room of SGLang's, a
//! transfer id of Mooncake's, a request id of the offloading connector's), at one start of one prefill engine.
//!
//! ```text
//!  P:  Away ---> Working ---> Ready(grant)      D:  Away ---> Waiting ---> Took
//!                   '-------> Failed                             '-------> Left
//! ```
//!
//! Whoever waits looks again every millisecond: no one is woken across threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::ledger::{GrantName, lock};
use crate::world::World;

/// Meetings that are remembered, so that a name that comes again is recognised.
const REMEMBERED: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub prefill: usize,
    /// Of that engine: what it knew at another start is gone.
    pub incarnation: u32,
    pub text: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Prefill,
    Decode,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Prefill {
    #[default]
    Away,
    Working,
    Ready(GrantName),
    /// It holds nothing for this name, and never will.
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Decode {
    #[default]
    Away,
    Waiting,
    Took,
    Left,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub prefill: Prefill,
    pub decode: Decode,
}

/// How the one who comes finds the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    First,
    /// Another request of the same side is there under this name.
    Beside,
    /// It was used before.
    Again,
}

#[derive(Default)]
pub(crate) struct Meetings {
    all: Mutex<HashMap<Name, Seen>>,
    /// Decode engines that waited for nobody.
    pub unmet: AtomicU64,
}

impl Meetings {
    fn enter(&self, name: &Name, side: Side) -> Entered {
        let mut all = lock(&self.all);
        if all.len() >= REMEMBERED {
            all.retain(|_, seen| !seen.over());
        }
        let seen = all.entry(name.clone()).or_default();
        let entered = match side {
            Side::Prefill => match seen.prefill {
                Prefill::Away => Entered::First,
                Prefill::Working => Entered::Beside,
                Prefill::Ready(_) if seen.decode != Decode::Took => Entered::Beside,
                Prefill::Ready(_) | Prefill::Failed => Entered::Again,
            },
            Side::Decode => match seen.decode {
                Decode::Away => Entered::First,
                Decode::Waiting => Entered::Beside,
                Decode::Took | Decode::Left => Entered::Again,
            },
        };
        if entered == Entered::First {
            match side {
                Side::Prefill => seen.prefill = Prefill::Working,
                Side::Decode => seen.decode = Decode::Waiting,
            }
        }
        entered
    }

    fn look(&self, name: &Name) -> Seen {
        lock(&self.all).get(name).copied().unwrap_or_default()
    }

    fn change(&self, name: &Name, with: impl FnOnce(&mut Seen)) {
        if let Some(seen) = lock(&self.all).get_mut(name) {
            with(seen);
        }
    }

    /// The engine dies: nobody finds what it knew.
    pub fn end(&self, engine: usize) {
        lock(&self.all).retain(|name, _| name.prefill != engine);
    }

    pub fn missed(&self) {
        self.unmet.fetch_add(1, Ordering::Relaxed);
    }
}

impl Seen {
    fn over(&self) -> bool {
        let prefill = matches!(self.prefill, Prefill::Ready(_) | Prefill::Failed);
        prefill && matches!(self.decode, Decode::Took | Decode::Left)
    }
}

/// A request's place in a meeting. Dropped before its time, it says that it has left.
pub(crate) struct Seat {
    world: Arc<World>,
    pub name: Name,
    side: Side,
    /// Whether it is the one that counts under this name.
    pub entered: Entered,
    over: bool,
}

impl Seat {
    pub fn take(world: &Arc<World>, name: Name, side: Side) -> Seat {
        let entered = world.meetings.enter(&name, side);
        Seat {
            world: world.clone(),
            name,
            side,
            entered,
            over: entered != Entered::First,
        }
    }

    pub fn look(&self) -> Seen {
        self.world.meetings.look(&self.name)
    }

    /// Is P not there any more, or another one by now?
    pub fn dead(&self) -> bool {
        let engine = &self.world.engines[self.name.prefill];
        let same = engine.incarnation.load(Ordering::Acquire) == self.name.incarnation;
        !same || !engine.up.load(Ordering::Acquire)
    }

    /// The meeting that was here is over: this one counts now.
    pub fn renew(&mut self) {
        self.over = false;
        let side = self.side;
        self.world.meetings.change(&self.name, |seen| match side {
            Side::Prefill => {
                seen.prefill = Prefill::Working;
                if seen.decode != Decode::Waiting {
                    seen.decode = Decode::Away;
                }
            }
            Side::Decode => {
                seen.decode = Decode::Waiting;
                if !matches!(seen.prefill, Prefill::Working) {
                    seen.prefill = Prefill::Away;
                }
            }
        });
    }

    /// P has what D will come for; gives where D is.
    pub fn ready(&mut self, grant: GrantName) -> Decode {
        let counts = !std::mem::replace(&mut self.over, true);
        let mut decode = Decode::Away;
        self.world.meetings.change(&self.name, |seen| {
            if counts {
                seen.prefill = Prefill::Ready(grant);
            }
            decode = seen.decode;
        });
        decode
    }

    /// Has it said what it came to say?
    pub fn given(&self) -> bool {
        self.over && self.entered == Entered::First
    }

    /// D has it.
    pub fn took(&mut self) {
        self.over = true;
        let took = |seen: &mut Seen| seen.decode = Decode::Took;
        self.world.meetings.change(&self.name, took);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let side = self.side;
        let mut held = None;
        self.world.meetings.change(&self.name, |seen| match side {
            Side::Prefill => seen.prefill = Prefill::Failed,
            Side::Decode => {
                seen.decode = Decode::Left;
                if let Prefill::Ready(grant) = seen.prefill {
                    held = Some(grant);
                }
            }
        });
        // It was for nobody else.
        if let Some(grant) = held {
            self.world.ledger.release(grant);
        }
    }
}
