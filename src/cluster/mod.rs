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
pub mod health;
pub mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::config::{Address, Config, Role};
use crate::metrics::{InstanceMetrics, Metrics};
use crate::net::stream::Target;
use crate::shared::Published;
use breaker::{Breaker, State};
use load::{Estimate, Load};

/// One engine. Lives as long as any request that uses it, whatever the snapshots say by then.
pub struct Instance {
    /// Dense, unique in this process; never given to another address.
    pub index: usize,
    pub role: Role,
    pub address: Address,
    /// The address as text: in heads, metrics and logs.
    pub name: Arc<str>,
    pub weight: f64,
    pub load: Load,
    pub breaker: Breaker,
    health: AtomicU8,
    /// Where to connect; several when DNS gives several. Empty until resolved.
    pub targets: Published<Vec<Target>>,
    pub metrics: Arc<InstanceMetrics>,
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
    pub const fn name(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

impl Instance {
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
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
}

/// An immutable list of instances; one is held per request.
pub struct Cluster {
    pub instances: Vec<Arc<Instance>>,
    by_role: [Vec<Arc<Instance>>; 4],
    /// Tokens per prompt byte, learned.
    pub estimate: Arc<Estimate>,
}

impl Cluster {
    /// The first cluster of a process.
    pub fn from_config(config: &Config, metrics: &Metrics) -> Cluster {
        let instances = config.instances.iter().enumerate().map(|(index, one)| {
            let name: Arc<str> = one.address.to_string().into();
            Arc::new(Instance {
                index,
                role: one.role,
                address: one.address.clone(),
                weight: one.weight,
                load: Load::default(),
                breaker: Breaker::new(&config.circuit_breaker),
                health: AtomicU8::new(0),
                targets: Published::new(literal_targets(&one.address)),
                metrics: metrics.instance(one.role.name(), &name),
                name,
            })
        });
        Cluster::of(instances.collect(), Arc::default())
    }

    pub fn of(instances: Vec<Arc<Instance>>, estimate: Arc<Estimate>) -> Cluster {
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
            estimate,
        }
    }

    /// In configured order.
    pub fn role(&self, role: Role) -> &[Arc<Instance>] {
        &self.by_role[role as usize]
    }

    /// Is there an instance of this role that would be picked now?
    pub fn available(&self, role: Role, now_ms: u64) -> bool {
        self.role(role)
            .iter()
            .any(|i| i.health() != Health::Unhealthy && i.breaker.state(now_ms) != State::Open)
    }
}

/// Addresses that need no DNS.
fn literal_targets(address: &Address) -> Vec<Target> {
    match address {
        Address::Unix(path) => vec![Target::Unix(path.clone())],
        Address::Tcp { host, port } => {
            let ip: Result<std::net::IpAddr, _> = host.parse();
            ip.map(|ip| vec![Target::Tcp((ip, *port).into())])
                .unwrap_or_default()
        }
    }
}

/// Looks an address up. Blocks: for the control thread, and before the shards start.
pub fn resolve(address: &Address) -> Vec<Target> {
    use std::net::ToSocketAddrs;
    match address {
        Address::Unix(path) => vec![Target::Unix(path.clone())],
        Address::Tcp { host, port } => (host.as_str(), *port)
            .to_socket_addrs()
            .map(|found| found.map(Target::Tcp).collect())
            .unwrap_or_default(),
    }
}
