//! What LMCache moves: KV that prefill workers push into the memory of a decode engine's workers, rank by
//! rank, and that the decode engine finds by the prompt's tokens.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::ledger::lock;
use crate::options::{EngineOptions, KvMode, Notices, Role};
use crate::push::{self, Letter, Outbox};
use crate::world::World;

/// One prompt's KV on its way to one decode engine.
struct Pushed {
    ranks: u32,
    arrived: u32,
}

#[derive(Default)]
pub(crate) struct Transfers {
    /// By the receiving engine and the prompt.
    pushed: Mutex<HashMap<(usize, u64), Pushed>>,
    outboxes: Mutex<HashMap<usize, Vec<Outbox>>>,
    faults: Mutex<HashMap<usize, Notices>>,
    pub pushes: AtomicU64,
    pub loaded: AtomicU64,
    pub recomputed: AtomicU64,
}

/// A transfer that a prefill engine was asked for.
pub(crate) struct Order {
    pub request: String,
    /// The engine that it goes to.
    pub receiver: usize,
    pub prompt: u64,
    pub tokens: u32,
}

/// The decode engine whose workers listen on these ports.
pub(crate) fn receiver(engines: &[EngineOptions], init: &[u16], alloc: &[u16]) -> Option<usize> {
    engines.iter().position(|one| {
        one.role == Role::Decode
            && one.kv == KvMode::Lmcache
            && one.lmcache.init_ports == init
            && one.lmcache.alloc_ports == alloc
    })
}

impl Transfers {
    /// From now on the prefill engines of this world send their notices there.
    pub fn connect(&self, world: &Arc<World>, to: SocketAddr) {
        let mut outboxes = lock(&self.outboxes);
        outboxes.clear();
        for (index, engine) in world.engines.iter().enumerate() {
            let options = &engine.options;
            if options.role != Role::Prefill || options.kv != KvMode::Lmcache {
                continue;
            }
            let of_rank = |_| {
                let told = Arc::downgrade(world);
                push::start(to, move |what| {
                    if let Some(world) = told.upgrade() {
                        world.ledger.violation(|| format!("engine {index}: {what}"));
                    }
                })
            };
            let all: Vec<Outbox> = (0..options.lmcache.ranks).flat_map(of_rank).collect();
            outboxes.insert(index, all);
        }
    }

    pub fn set_fault(&self, engine: usize, fault: Notices) {
        lock(&self.faults).insert(engine, fault);
    }

    fn fault(&self, engine: usize) -> Notices {
        lock(&self.faults).get(&engine).copied().unwrap_or_default()
    }

    /// Every rank of `engine` pushes its part, and says so.
    pub fn push(&self, world: &Arc<World>, engine: usize, order: Order) {
        let options = &world.engines[engine].options.lmcache;
        let fault = self.fault(engine);
        // What is shorter than a block is never stored.
        if order.tokens < options.block || fault == Notices::Lost {
            return;
        }
        self.pushes.fetch_add(1, Ordering::Relaxed);
        let failed = fault == Notices::Failed;
        let only_first = fault == Notices::FirstRank;
        let senders = if only_first { 1 } else { options.ranks };
        let key = (order.receiver, order.prompt);
        if !failed {
            let pushed = Pushed {
                ranks: senders,
                arrived: 0,
            };
            lock(&self.pushed).insert(key, pushed);
        }
        let due = Instant::now()
            + match fault {
                Notices::Late(by) => by,
                _ => options.delay,
            };
        let outboxes = lock(&self.outboxes);
        let Some(outboxes) = outboxes.get(&engine) else {
            world
                .ledger
                .violation(|| format!("engine {engine}: nobody to send notices to"));
            return;
        };
        for outbox in &outboxes[..senders as usize] {
            let there = Arc::downgrade(world);
            let arrived = move || {
                let Some(world) = there.upgrade() else { return };
                if let Some(pushed) = lock(&world.transfers.pushed).get_mut(&key) {
                    pushed.arrived += 1;
                }
            };
            let mut letters = match fault {
                Notices::Silent => Vec::new(),
                Notices::Failed => {
                    vec![message("ProxyNotif", &format!("{}::error", order.request))]
                }
                Notices::Twice => vec![message("ProxyNotif", &order.request); 2],
                Notices::Foreign => vec![
                    message("ProxyNotif", "1"),
                    message("ProxyNotif", "0-0123456789abcdef-1"),
                    message("ProxyNotif", &order.request),
                ],
                Notices::Garbage => vec![
                    b"\xc1 no MessagePack".to_vec(),
                    message("AllocRequest", &order.request),
                    message("NixlProxyNotif", &order.request),
                ],
                _ => vec![message("ProxyNotif", &order.request)],
            };
            let silent = letters.is_empty();
            if silent {
                arrived();
                continue;
            }
            let mut before: Option<Box<dyn FnOnce() + Send>> = Some(Box::new(arrived));
            for body in letters.drain(..) {
                let before = before.take();
                let _ = outbox.send(Letter { due, body, before });
            }
        }
    }

    /// A decode engine looks for the prompt's KV: all of it, none of it, or (told apart from none) a part.
    pub fn load(&self, world: &World, engine: usize, prompt: u64) -> bool {
        let mut all = lock(&self.pushed);
        match all.get(&(engine, prompt)) {
            Some(pushed) if pushed.arrived >= pushed.ranks => {
                all.remove(&(engine, prompt));
                self.loaded.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Some(pushed) => {
                let (arrived, ranks) = (pushed.arrived, pushed.ranks);
                world.ledger.violation(|| {
                    format!(
                        "engine {engine}: asked when the KV of {arrived} of {ranks} ranks was there"
                    )
                });
            }
            None => {}
        }
        self.recomputed.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// `{"type": kind, "req_id": request}` as msgspec writes it.
fn message(kind: &str, request: &str) -> Vec<u8> {
    let mut out = vec![0x82];
    for text in ["type", kind, "req_id", request] {
        match text.len() {
            length @ 0..=31 => out.push(0xa0 | length as u8),
            length => out.extend_from_slice(&[0xd9, length as u8]),
        }
        out.extend_from_slice(text.as_bytes());
    }
    out
}
