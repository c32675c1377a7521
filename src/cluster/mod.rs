//! Floor 2: what we know of the instances, and how we learn it.
//!
//! * **For:** the list of instances as an immutable snapshot, their load, their standing (healthy,
//!   ejected), their resolved addresses.
//! * **Must never:** decide which instance serves a request (that is `policy/`), or make a shard wait.
//! * **To extend:** a new source of instances is one file that publishes a new [`Cluster`].
//!
//! Knowledge flows one way: the control thread publishes, shards read one snapshot per request. What a
//! shard learns by itself (an instance refuses connections) goes into atomics of the [`Instance`], which
//! all shards see at once.

pub mod breaker;
pub mod change;
pub mod fetch;
pub mod guest;
pub mod health;
pub mod kubernetes;
pub mod learn;
pub mod load;
pub mod models;
pub mod names;
pub mod ring;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::config::epd::Consumer;
use crate::config::{Address, CircuitBreaker, Config, InstanceConfig, Role, Url};
use crate::metrics::{InstanceMetrics, Metrics};
use crate::net::stream::Target;
use crate::net::tls::Trust;
use crate::shared::Published;
use breaker::{Breaker, State};
use load::{Estimate, Load};
use models::{Models, NoModel, Scope};
use ring::Points;

/// The context length of an instance that has not said its own: xPyD-proxy's.
const MAX_MODEL_LEN: u32 = 131_072;

/// One engine. Lives as long as any request that uses it, whatever the snapshots say by then.
pub struct Instance {
    /// Dense, unique in this process; never given to another address.
    pub index: usize,
    pub role: Role,
    pub address: Address,
    /// The address as text: in metrics and logs.
    pub name: Arc<str>,
    /// Its `Host` field.
    pub host: Box<str>,
    /// What stands in front of every path that it is asked for.
    pub prefix: Box<str>,
    pub weight: f64,
    pub consumer: Consumer,
    /// Of its bootstrap server or its peers, where it is not the usual one.
    pub side_port: Option<u16>,
    /// Whose turn it is among its data-parallel ranks.
    pub rank_turn: AtomicU32,
    /// The model that it is configured for.
    pub configured: Option<Arc<str>>,
    /// The model that it says it serves. Not read on the way of a request.
    said: Mutex<Option<Arc<str>>>,
    max_model_len: AtomicU32,
    /// It was asked what it serves, whether it answered or not.
    asked: AtomicBool,
    points: OnceLock<Points>,
    pub load: Load,
    pub breaker: Breaker,
    health: AtomicU8,
    /// As the last probe found it, whether or not probes count for its standing.
    found: AtomicU8,
    /// When that was, on the process's clock; 0: never.
    found_ms: AtomicU64,
    /// Takes no new requests.
    pub draining: AtomicBool,
    /// Removals that wait for its requests to end: it takes no new ones either.
    removing: AtomicU32,
    /// Requests are in flight and no byte has come for too long.
    pub wedged: AtomicBool,
    /// When a byte last came (or the first request went to an idle instance), on the process's clock.
    last_byte_ms: AtomicU64,
    /// Where to connect; several when DNS gives several. Empty until resolved.
    pub targets: Published<Vec<Target>>,
    pub metrics: Arc<InstanceMetrics>,
    /// Whose certificates are believed of it, where it is behind TLS: for probes.
    pub trust: OnceLock<Trust>,
    /// Instances (by index) that have taken KV from this one, each with the starts of both by then.
    /// Shards keep copies of what they have seen here.
    met: Mutex<HashMap<usize, (u64, u64)>>,
}

/// What active probes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet, or probes are off: used.
    Unknown,
    Healthy,
    Unhealthy,
}

impl Health {
    fn of(number: u8) -> Health {
        match number {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

impl Instance {
    fn new(
        index: usize,
        one: &InstanceConfig,
        breaker: &CircuitBreaker,
        metrics: &Metrics,
    ) -> Instance {
        let cells = metrics.instance(one.role.name(), &one.address.to_string());
        Instance::counted(index, one, breaker, cells)
    }

    fn counted(
        index: usize,
        one: &InstanceConfig,
        breaker: &CircuitBreaker,
        metrics: Arc<InstanceMetrics>,
    ) -> Instance {
        let name: Arc<str> = one.address.to_string().into();
        Instance {
            index,
            role: one.role,
            address: one.address.clone(),
            host: one.address.host_port().into(),
            prefix: one.address.prefix().into(),
            weight: one.weight,
            consumer: one.consumer.clone(),
            side_port: one.side_port,
            rank_turn: AtomicU32::new(0),
            configured: Some(one.model.as_str())
                .filter(|model| !model.is_empty())
                .map(Arc::from),
            said: Mutex::default(),
            max_model_len: AtomicU32::new(MAX_MODEL_LEN),
            asked: AtomicBool::new(false),
            points: OnceLock::new(),
            load: Load::default(),
            breaker: Breaker::new(breaker),
            health: AtomicU8::new(0),
            found: AtomicU8::new(0),
            found_ms: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            removing: AtomicU32::new(0),
            wedged: AtomicBool::new(false),
            last_byte_ms: AtomicU64::new(0),
            targets: Published::new(literal(&one.address)),
            metrics,
            trust: OnceLock::new(),
            met: Mutex::default(),
            name,
        }
    }

    /// The model it serves: as configured, else as it says; `None` while it has not.
    pub fn model(&self) -> Option<Arc<str>> {
        let said = || self.said.lock().unwrap_or_else(PoisonError::into_inner);
        self.configured.clone().or_else(|| said().clone())
    }

    /// Longest prompt and answer together, in tokens: as it says.
    pub fn max_model_len(&self) -> u32 {
        self.max_model_len.load(Ordering::Relaxed)
    }

    /// It was asked what it serves. `None`: no answer; what it said before holds.
    pub fn learned(&self, model: Option<(String, Option<u32>)>) {
        if let Some((id, length)) = model {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.into());
            let length = length.filter(|n| *n > 0).unwrap_or(MAX_MODEL_LEN);
            self.max_model_len.store(length, Ordering::Relaxed);
        }
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Its points on the ring. The number is that of the first call: it cannot change in a process.
    pub fn points(&self, count: u32) -> &Points {
        self.points.get_or_init(|| Points::of(&self.name, count))
    }

    /// May it be picked, as far as its standing goes?
    pub fn in_standing(&self, now_ms: u64) -> bool {
        self.health() != Health::Unhealthy
            && !self.wedged.load(Ordering::Relaxed)
            && self.breaker.state(now_ms) != State::Open
    }

    /// The same, now.
    pub fn stands(&self) -> bool {
        let now = || {
            if self.breaker.at_rest() {
                0
            } else {
                breaker::now_ms()
            }
        };
        self.in_standing(now())
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.removing.load(Ordering::Relaxed) > 0
    }

    /// It takes no new requests until what is returned is dropped. (An operator's drain is another thing,
    /// and outlasts it.)
    pub fn removal(self: &Arc<Self>) -> Removal {
        self.removing.fetch_add(1, Ordering::Relaxed);
        Removal(self.clone())
    }

    /// Is it what this entry of a file says?
    pub fn configured_as(&self, one: &InstanceConfig) -> bool {
        self.weight == one.weight
            && self.configured.as_deref().unwrap_or("") == one.model
            && self.consumer == one.consumer
            && self.side_port == one.side_port
    }

    /// A byte came from it. Written at most once per tick of the coarse clock, so that the line does not
    /// bounce between cores for every chunk.
    pub fn touch(&self, coarse_ms: u64) {
        if self.last_byte_ms.load(Ordering::Relaxed) != coarse_ms {
            self.last_byte_ms.store(coarse_ms, Ordering::Relaxed);
            if self.wedged.load(Ordering::Relaxed) {
                self.wedged.store(false, Ordering::Relaxed);
            }
        }
    }

    /// How long requests have been in flight without a byte from it, in milliseconds.
    pub fn silent_ms(&self, now_ms: u64) -> u64 {
        match self.load.read().requests {
            n if n > 0 => now_ms.saturating_sub(self.last_byte_ms.load(Ordering::Relaxed)),
            _ => 0,
        }
    }

    pub fn health(&self) -> Health {
        Health::of(self.health.load(Ordering::Relaxed))
    }

    /// What the last probe found. Unlike [`Instance::health`] it says nothing about being picked: with
    /// health checks off, probes still tell whether the backends are there.
    pub fn found(&self) -> Health {
        Health::of(self.found.load(Ordering::Relaxed))
    }

    /// When it was last probed, on the process's clock.
    pub fn found_at_ms(&self) -> Option<u64> {
        Some(self.found_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// It was asked, and this came of it.
    pub fn note_found(&self, health: Health) {
        self.found.store(health as u8, Ordering::Relaxed);
        self.found_ms
            .store(breaker::now_ms().max(1), Ordering::Relaxed);
    }

    pub fn set_health(&self, health: Health) {
        let before = self.health.swap(health as u8, Ordering::Relaxed);
        if health == Health::Unhealthy && before != Health::Unhealthy as u8 {
            self.breaker.fell();
        }
    }

    /// Changes whenever the instance may have been restarted.
    pub fn starts(&self) -> u64 {
        self.breaker.falls()
    }

    /// The starts of this P and of the D `taker` when they last handed over, if they ever did.
    pub fn met(&self, taker: usize) -> Option<(u64, u64)> {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.get(&taker).copied()
    }

    pub fn note_met(&self, taker: usize, starts: (u64, u64)) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.insert(taker, starts);
    }
}

/// A removal under way; see [`Instance::removal`].
pub struct Removal(Arc<Instance>);

impl Drop for Removal {
    fn drop(&mut self) {
        self.0.removing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An immutable list of instances; one is held per request.
pub struct Cluster {
    pub instances: Vec<Arc<Instance>>,
    by_role: [Vec<Arc<Instance>>; 4],
    /// The next instance's; indices are never reused.
    next_index: usize,
    /// Tokens per prompt byte, learned.
    pub estimate: Arc<Estimate>,
    pub models: Models,
}

impl Cluster {
    /// The first cluster of a process.
    pub fn from_config(config: &Config, metrics: &Metrics) -> Cluster {
        let instances: Vec<_> = config
            .instances
            .iter()
            .enumerate()
            .map(|(i, one)| Arc::new(Instance::new(i, one, &config.circuit_breaker, metrics)))
            .collect();
        let next_index = instances.len();
        let none = Models::none(config.models.strict);
        Cluster::of(instances, next_index, Arc::default(), &none)
    }

    /// `before`: the models of the snapshot that this one replaces.
    fn of(
        instances: Vec<Arc<Instance>>,
        next_index: usize,
        estimate: Arc<Estimate>,
        before: &Models,
    ) -> Cluster {
        let models = Models::of(&instances, before.strict, before);
        let by_role = Role::ALL.map(|role| {
            instances
                .iter()
                .filter(|i| i.role == role)
                .cloned()
                .collect()
        });
        Cluster {
            instances,
            by_role,
            next_index,
            estimate,
            models,
        }
    }

    /// The same instances, told apart by what they have said since.
    pub fn relearned(&self) -> Cluster {
        let instances = self.instances.clone();
        Cluster::of(
            instances,
            self.next_index,
            self.estimate.clone(),
            &self.models,
        )
    }

    /// In configured order.
    pub fn role(&self, role: Role) -> &[Arc<Instance>] {
        &self.by_role[role as usize]
    }

    /// Every model that an instance serves, as far as is known, in alphabetical order.
    pub fn model_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.instances.iter().filter_map(|i| i.model()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Those of this role that may serve a request, in configured order.
    pub fn members(&self, scope: Scope, role: Role) -> &[Arc<Instance>] {
        match self.models.in_scope(scope) {
            Some(served) => served.role(role),
            None => self.role(role),
        }
    }

    /// Who serves this model?
    pub fn scope_of(&self, model: &[u8]) -> Result<Scope, NoModel> {
        match self.models.find(model) {
            Some(at) => Ok(Scope::One(at)),
            None if !self.models.strict => Ok(Scope::All),
            None => {
                let silent =
                    |i: &Arc<Instance>| i.model().is_none() && !i.asked.load(Ordering::Relaxed);
                Err(match self.instances.iter().any(silent) {
                    true => NoModel::NotYet,
                    false => NoModel::Unknown,
                })
            }
        }
    }

    /// Did the last probes find what a request needs: a prefill and a decode instance, or an aggregated
    /// one? (Decode instances alone cannot serve.)
    pub fn complete(&self) -> bool {
        let found = |role| {
            self.role(role)
                .iter()
                .any(|one| one.found() == Health::Healthy)
        };
        (found(Role::Prefill) && found(Role::Decode)) || found(Role::Aggregated)
    }

    /// Is there an instance of this role that would be picked now?
    pub fn available(&self, role: Role, now_ms: u64) -> bool {
        self.available_in(Scope::All, role, now_ms)
    }

    pub fn available_in(&self, scope: Scope, role: Role, now_ms: u64) -> bool {
        self.members(scope, role)
            .iter()
            .any(|i| !i.draining() && i.in_standing(now_ms))
    }
}

/// Where an address is that needs no looking up (see `names`); else nothing.
pub fn literal(address: &Address) -> Vec<Target> {
    match address {
        Address::Unix(path) => vec![Target::Unix(path.clone())],
        Address::Tcp { host, port } | Address::Url(Url { host, port, .. }) => {
            let ip: Result<std::net::IpAddr, _> = host.parse();
            ip.map(|ip| vec![Target::Tcp((ip, *port).into())])
                .unwrap_or_default()
        }
    }
}
