//! Instances that nobody configured: made when a request names one, and forgotten when too many others were.
//!
//! Each is an [`Instance`] like the configured ones, with a breaker, load and connections of its own; only the
//! list of them is bounded, and with it their metrics.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::Instance;
use super::breaker::now_ms;
use super::names::resolve;
use crate::config::{Address, CircuitBreaker, InstanceConfig, Role};
use crate::log;
use crate::metrics::Metrics;

/// As many as llm-d's sidecar keeps.
pub const GUESTS_MAX: usize = 1024;
/// Their indices begin here; a config with so many instances is refused where there are guests.
pub const FIRST_INDEX: usize = 4096;
/// An index is given to another instance only when no shard can have a connection to the old one any more.
const QUARANTINE_MS: u64 = 120_000;
/// A name is looked up again when it is used after this.
const RESOLVE_MS: u64 = 30_000;

pub struct Guests {
    known: Mutex<Known>,
    breaker: CircuitBreaker,
    metrics: Arc<Metrics>,
    max: usize,
}

#[derive(Default)]
struct Known {
    instances: HashMap<(As, Address), Guest>,
    /// Counts uses: the least recently used goes first.
    clock: u64,
    next_index: usize,
    /// Indices of those that went, each with the time from when another may have it.
    free: Vec<(u64, usize)>,
    /// To the thread that looks names up, once there are names.
    resolver: Option<Sender<Weak<Instance>>>,
}

/// What it is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum As {
    Engine(Role),
    /// A server beside a prefill instance.
    Side,
}

struct Guest {
    instance: Arc<Instance>,
    used: u64,
    resolved_ms: u64,
}

impl Guests {
    pub fn new(breaker: &CircuitBreaker, metrics: &Arc<Metrics>) -> Guests {
        Guests::bounded(breaker, metrics, GUESTS_MAX)
    }

    fn bounded(breaker: &CircuitBreaker, metrics: &Arc<Metrics>, max: usize) -> Guests {
        Guests {
            known: Mutex::default(),
            breaker: breaker.clone(),
            metrics: metrics.clone(),
            max,
        }
    }

    /// The instance at this address. One that is a name may have no addresses yet.
    pub fn at(&self, role: Role, address: &Address) -> Arc<Instance> {
        self.find(As::Engine(role), address)
    }

    /// The bootstrap server of a prefill instance. It is no engine: no metric tells of it, and nothing is left
    /// out of choice when it fails.
    pub fn side(&self, address: &Address) -> Arc<Instance> {
        self.find(As::Side, address)
    }

    fn make(&self, index: usize, role: As, address: &Address) -> Instance {
        match role {
            As::Engine(role) => {
                let one = InstanceConfig::new(address.clone(), role);
                Instance::new(index, &one, &self.breaker, &self.metrics)
            }
            As::Side => {
                let one = InstanceConfig::new(address.clone(), Role::Prefill);
                let none = CircuitBreaker {
                    enabled: false,
                    ..self.breaker.clone()
                };
                Instance::counted(index, &one, &none, self.metrics.unlisted())
            }
        }
    }

    fn find(&self, role: As, address: &Address) -> Arc<Instance> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        known.clock += 1;
        let (clock, now) = (known.clock, now_ms());
        let key = (role, address.clone());
        if !known.instances.contains_key(&key) {
            self.make_room(known, now);
            let index = take_index(known, now);
            let instance = self.make(index, role, address);
            // Shards may remember the last one with this index: this one has never been met.
            instance.breaker.begin_at(clock << 20);
            let guest = Guest {
                instance: Arc::new(instance),
                used: clock,
                resolved_ms: 0,
            };
            known.instances.insert(key.clone(), guest);
        }
        let Some(guest) = known.instances.get_mut(&key) else {
            unreachable!("it was put there above");
        };
        guest.used = clock;
        let literal = address
            .network()
            .is_none_or(|(host, _)| host.parse::<std::net::IpAddr>().is_ok());
        if !literal && (guest.resolved_ms == 0 || now - guest.resolved_ms > RESOLVE_MS) {
            guest.resolved_ms = now.max(1);
            let weak = Arc::downgrade(&guest.instance);
            let sender = known.resolver.get_or_insert_with(resolver);
            if sender.send(weak).is_err() {
                log::limited("resolver", log::Level::Error, || {
                    "no thread looks names up".into()
                });
            }
        }
        guest.instance.clone()
    }

    pub fn count(&self) -> usize {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.instances.len()
    }

    /// The least recently used that no request holds goes.
    fn make_room(&self, known: &mut Known, now: u64) {
        while known.instances.len() >= self.max {
            let idle = known.instances.iter();
            let idle = idle.filter(|(_, guest)| Arc::strong_count(&guest.instance) == 1);
            let Some(key) = idle.min_by_key(|(_, guest)| guest.used) else {
                // All are busy: so many requests are in flight that another limit holds first.
                return;
            };
            let key = key.0.clone();
            if let Some(gone) = known.instances.remove(&key) {
                known.free.push((now + QUARANTINE_MS, gone.instance.index));
                if let As::Engine(role) = key.0 {
                    self.metrics
                        .forget_instance(role.name(), &gone.instance.name);
                }
            }
        }
    }
}

fn take_index(known: &mut Known, now: u64) -> usize {
    if let Some(at) = known.free.iter().position(|(from, _)| *from <= now) {
        return known.free.swap_remove(at).1;
    }
    known.next_index += 1;
    FIRST_INDEX + known.next_index - 1
}

fn resolver() -> Sender<Weak<Instance>> {
    let (sender, asked) = channel::<Weak<Instance>>();
    let look = move || {
        for weak in asked {
            let Some(instance) = weak.upgrade() else {
                continue;
            };
            let found = resolve(&instance.address);
            // A resolver that fails for a moment must not take the addresses away.
            if !found.is_empty() && found != **instance.targets.get() {
                instance.targets.publish(found);
            }
        }
    };
    let spawned = std::thread::Builder::new()
        .name("guests".into())
        .spawn(look);
    if let Err(error) = spawned {
        log::error(|| format!("names in headers are not looked up: {error}"));
    }
    sender
}

/// How long a request waits for a name that is being looked up, in all.
pub const RESOLVE_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Address {
        Address::tcp(format!("127.0.0.{n}"), 80)
    }

    #[test]
    fn the_least_recently_used_goes_and_its_index_with_it() {
        let metrics = Metrics::new(1);
        let guests = Guests::bounded(&CircuitBreaker::default(), &metrics, 2);
        let first = guests.at(Role::Prefill, &address(1));
        let second = guests.at(Role::Prefill, &address(2)).index;
        assert_eq!(guests.at(Role::Prefill, &address(1)).index, first.index);
        assert_ne!(first.index, second);
        // The first is held by us, so the second goes, though it was used later than some.
        let third = guests.at(Role::Prefill, &address(3)).index;
        assert_eq!(guests.count(), 2);
        assert!(third != second && third != first.index);
        assert_eq!(guests.at(Role::Prefill, &address(1)).index, first.index);
        // One address in two roles is two instances.
        assert_ne!(guests.at(Role::Encode, &address(1)).index, first.index);
        assert_ne!(guests.side(&address(1)).index, first.index);
    }

    #[test]
    fn names_are_looked_up_off_the_path() {
        let metrics = Metrics::new(1);
        let guests = Guests::new(&CircuitBreaker::default(), &metrics);
        let one = guests.at(Role::Prefill, &Address::tcp("localhost", 80));
        for _ in 0..1000 {
            if !one.targets.get().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("localhost has no address");
    }
}
