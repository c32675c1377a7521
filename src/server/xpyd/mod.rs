//! What xPyD-proxy's face shows: its own pages, its questions to engines, its changes of the cluster.
//!
//! * **For:** answering what `surface/xpyd.rs` says a path is, in the bytes that its clients know.
//! * **Must never:** ask an engine from a shard: what waits for engines runs on the control thread, as a
//!   task of its own, bounded in number and in time.
//! * **To extend:** a page is an arm of [`page::answer`]; a question to engines is an [`Ask`].

pub mod change;
pub mod fan;
pub mod measure;
pub mod page;

use std::rc::Rc;
use std::sync::Arc;

use super::surface::xpyd::Fan;
use super::{Shared, shard};

/// What a shard asks of the control thread.
#[derive(Debug, Clone)]
pub enum Ask {
    Fan(Fan),
    Add(change::Place),
    Remove(change::Removal),
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    pub shard: usize,
    pub ticket: u64,
}

impl Asker {
    pub fn answer(self, shared: &Shared, (status, body): (u16, Vec<u8>)) {
        shared.shards[self.shard].post(shard::Letter::Answered {
            ticket: self.ticket,
            status,
            body,
        });
    }
}

/// The control thread's side: answers in tasks, so that a slow engine holds up nothing else.
pub struct Desk {
    shared: Arc<Shared>,
    fans: Rc<fan::Fans>,
}

impl Desk {
    pub fn new(shared: Arc<Shared>) -> Desk {
        Desk {
            shared,
            fans: Rc::default(),
        }
    }

    pub fn take(&self, asker: Asker, ask: Ask) {
        let shared = self.shared.clone();
        match ask {
            Ask::Fan(fan) => self.fans.clone().ask(shared, fan, asker),
            Ask::Add(place) => drop(monoio::spawn(async move {
                asker.answer(&shared, change::add(&shared, place).await);
            })),
            Ask::Remove(removal) => drop(monoio::spawn(async move {
                asker.answer(&shared, change::remove(&shared, removal).await);
            })),
        }
    }
}
