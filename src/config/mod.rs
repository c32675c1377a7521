//! Floor 1: what the user asked for, as plain data.
//!
//! * **For:** turning YAML (and the command line) into one [`Config`] that the rest of pdrelay is built
//!   from, and turning mistakes into messages that name file, line, path and fix.
//! * **Must never:** open a socket, start a thread, read a clock, or know how an engine is spoken to.
//! * **To extend:** a new key is a field here, its row in `schema/`, and its rule in `check.rs`. The
//!   command line of another program is one file under `legacy/` that ends in a [`Config`].

pub mod address;
pub mod check;
mod cores;
pub use cores::pace;
pub mod epd;
pub mod legacy;
pub mod lmcache;
pub mod load;
pub mod multiturn;
pub mod ports;
pub mod quantity;
mod reader;
pub mod schema;
pub mod sidecar;
#[cfg(test)]
mod tests;
pub mod topology;
pub mod write;
mod yaml;

pub use address::{Address, Url};
pub use load::{Known, Loaded, Overrides, Problem, Problems, from_file, from_str, load};
pub use multiturn::{Multiturn, RedisAddress, RemoteHost};

use std::path::PathBuf;
use std::time::Duration;

/// Everything pdrelay needs to know to run. Built once at start (and again at a reload).
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where it came from, for messages; `None` when built from the command line alone.
    pub file: Option<PathBuf>,
    /// The model name that clients use. Empty: whatever the engines serve.
    pub model: String,
    /// Address to listen on: an IP, `localhost`, or a DNS name. Default `0.0.0.0`.
    pub host: String,
    /// TCP port, 1 to 65535 (0 is allowed through the API for tests: any free port). Default 8000.
    pub port: u16,
    pub log_level: LogLevel,
    /// The protocol between the stages: a name in `handshake::HANDSHAKES`. Default `sequential`.
    pub handshake: String,
    /// Default `native`.
    pub surface: Surface,
    /// For the handshake of that name.
    pub epd: epd::Epd,
    /// Default `decode`.
    pub first_token_source: FirstTokenSource,
    /// Every engine instance, in configured order (encode, prefill, decode, aggregated).
    pub instances: Vec<InstanceConfig>,
    pub models: Models,
    pub multiturn: Multiturn,
    pub startup: Startup,
    pub scheduling: Scheduling,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub retry: Retry,
    pub prefill_failure: PrefillFailure,
    pub health_check: HealthCheck,
    pub circuit_breaker: CircuitBreaker,
    pub cores: Cores,
    /// For the handshake of this name.
    pub lmcache: lmcache::Lmcache,
    /// Extra engine paths that are forwarded to one healthy instance (exact, or a prefix ending in `*`).
    pub forward: Vec<String>,
    /// P comes from a header of the request.
    pub sidecar: Option<sidecar::Sidecar>,
    /// TLS towards clients; `None`: plain HTTP only.
    pub tls: Option<sidecar::Tls>,
    pub upstream_tls: sidecar::UpstreamTls,
    /// Replaces the client's `Authorization` towards engines, only if set. Env `OPENAI_API_KEY` wins.
    pub openai_api_key: Option<Secret>,
    /// For the admin API. Env `ADMIN_API_KEY` wins.
    pub admin_api_key: Option<Secret>,
}

/// The part an instance plays. `Aggregated` does prefill and decode in one (`dual` in old files).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Encode,
    Prefill,
    Decode,
    Aggregated,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Encode, Role::Prefill, Role::Decode, Role::Aggregated];

    /// The word used in YAML, metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Encode => "encode",
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Aggregated => "aggregated",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct InstanceConfig {
    pub address: Address,
    pub role: Role,
    /// The model it serves. Empty: whatever it says of itself.
    pub model: String,
    /// Relative capacity, above 0. Default 1.0.
    pub weight: f64,
    pub consumer: epd::Consumer,
    /// Of a prefill instance: the port of its bootstrap server (sglang, mooncake) or of its peers (offloading).
    /// `None`: the usual one.
    pub side_port: Option<u16>,
}

impl InstanceConfig {
    /// With the usual weight, serving whatever it serves.
    pub fn new(address: Address, role: Role) -> InstanceConfig {
        InstanceConfig {
            address,
            role,
            model: String::new(),
            weight: 1.0,
            consumer: epd::Consumer::default(),
            side_port: None,
        }
    }
}

/// The HTTP face that clients and operators see: paths, own answers and error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Surface {
    /// pdrelay's own.
    #[default]
    Native,
    /// That of vLLM's `disagg_epd_proxy.py`.
    Epd,
    /// That of llm-d's sidecar: all but a few paths are the decode engine's.
    Sidecar,
    /// That of vLLM's multi-turn proxy.
    Multiturn,
    /// That of LMCache's `disagg_proxy_server`.
    Lmcache,
    /// That of xPyD-proxy 1.8.
    Xpyd,
}

impl Surface {
    pub const fn name(self) -> &'static str {
        match self {
            Surface::Epd => "epd",
            Surface::Native => "native",
            Surface::Sidecar => "sidecar",
            Surface::Multiturn => "multiturn",
            Surface::Lmcache => "lmcache",
            Surface::Xpyd => "xpyd",
        }
    }
}

/// Who makes the first token that the client sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FirstTokenSource {
    #[default]
    Decode,
    /// P's one token is sent as soon as D has answered; D's own first token is dropped.
    Prefill,
}

/// Several models behind one address.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Models {
    /// A model that no instance serves is a 404. Off for a single-model list config, which takes any name.
    pub strict: bool,
    /// Policies of single models, by model name: for models that only aggregated instances serve. All
    /// others have that of `scheduling`.
    pub schedulers: std::collections::BTreeMap<String, String>,
}

/// From the start of the process to its first readiness.
#[derive(Debug, Clone, PartialEq)]
pub struct Startup {
    /// If no prefill and decode instance (or aggregated one) is healthy by then, the process ends with a
    /// message. `None`: it waits for ever. Default: `None` (xPyD-proxy: 600 s).
    pub wait_timeout: Option<Duration>,
    /// How often instances are probed until then. Default 1 s. xPyD-proxy's key for it is an upper bound.
    pub probe_interval: Duration,
    /// How often the log says who is healthy; `None`: never. Default: `None` (xPyD-proxy: 30 s).
    pub heartbeat_interval: Option<Duration>,
}

impl Default for Startup {
    fn default() -> Self {
        Startup {
            wait_timeout: None,
            probe_interval: Duration::from_secs(1),
            heartbeat_interval: None,
        }
    }
}

/// Which policy chooses among the instances of a stage: names in `policy::POLICIES`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduling {
    /// For encode, prefill and aggregated stages. Default `least_load`.
    pub prefill: String,
    /// For the decode stage. Default `least_load`.
    pub decode: String,
    /// How old a shard's reading of the others' load may be. 0 = read at each pick. Default 1 ms.
    pub load_view_max_age: Duration,
    /// `consistent_hash` and `cache_aware`: points per instance on the ring. Default 160.
    pub virtual_nodes: u32,
    /// `cache_aware`: how many words of the prompt make the key. Default 256.
    pub prefix_length: u32,
}

/// Every limit, its default, and what happens above it.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Request and response head bytes. Above: 431 (request), 502 (response). Default 64 KiB.
    pub head_bytes_max: usize,
    /// Request body bytes. Above: 413. Default 64 MiB.
    pub body_bytes_max: usize,
    /// A prefill (or other whole) answer's bytes. Above: 502. Default 16 MiB.
    pub answer_bytes_max: usize,
    /// Request body bytes held at once by one shard. Above: 503 with Retry-After. Default 1 GiB.
    pub body_memory_max: usize,
    /// Nesting depth of a JSON body. Above: 400. Default 128.
    pub json_depth_max: usize,
    /// Generate requests in flight in the process. Above: 503 with Retry-After. Default 65536.
    pub in_flight_max: usize,
    /// Client connections in the process. Above: accepted and closed after a 503. Default 65536.
    pub connections_max: usize,
    /// KV releases under way or waiting, per shard. Above: the grant is left to expire. Default 1024.
    pub releases_max: usize,
    /// Idle upstream connections kept per instance and shard. Default 1024.
    pub idle_per_instance_max: usize,
}

/// Every wait has an end. A zero is refused: there is no "for ever".
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// From the first byte of a request head to its end. Default 30 s. Above: 408.
    pub head: Duration,
    /// Between two reads of a request body. Default 30 s. Above: 408.
    pub body: Duration,
    /// A client's keep-alive connection with no request. Default 75 s. Above: closed.
    pub keep_alive: Duration,
    /// TCP (or unix) connect to an instance. Default 2 s. Above: the next candidate.
    pub connect: Duration,
    /// From a prefill request to its whole answer. Default 300 s. Above: 504.
    pub prefill: Duration,
    /// From a decode request to its response head. Default 300 s. Above: 504.
    pub decode_head: Duration,
    /// Between two reads of a decode stream. Default 300 s. Above: broken end.
    pub between_chunks: Duration,
    /// A client that does not take a write. Default 60 s. Above: cut, decode freed.
    pub client_write: Duration,
    /// The whole of one request. Default 3600 s.
    pub request: Duration,
    /// How long an idle upstream connection is kept. Default 3 s (engines close theirs at 5 s).
    pub pool_idle: Duration,
    /// Making P free KV that nobody will fetch, after a client left. Default 10 s.
    pub release: Duration,
    /// SIGTERM: how long running streams may take to finish. Default 30 s.
    pub drain: Duration,
}

/// Tries before the first byte reached the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    pub enabled: bool,
    /// Further attempts after the first. Default 2.
    pub max_retries: u32,
    /// Default 100 ms.
    pub initial_backoff: Duration,
    /// Default 10 s.
    pub max_backoff: Duration,
    /// Default 2.0; at least 1.
    pub backoff_multiplier: f64,
    /// Default 0.1; 0 to 1.
    pub jitter_factor: f64,
    /// Default 408, 429, 500, 502, 503, 504 as in xPyD.
    pub retryable_status_codes: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// Default on (xPyD's own default was off; an absent section means ours).
    pub enabled: bool,
    /// Default 2 s.
    pub interval: Duration,
    /// Default 3 s.
    pub timeout: Duration,
    /// Failures in a row before an instance counts as unhealthy; one success brings it back. Default 2.
    pub failure_threshold: u32,
    /// An instance that holds requests and sends no byte for this long takes no more. Default 180 s.
    pub wedge_after: Duration,
    /// Path asked. Default `/health`.
    pub path: String,
}

/// What to do when every prefill instance has failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrefillFailure {
    /// The client gets the error. Default.
    #[default]
    Error,
    /// The decode instance gets the request alone, and computes the prompt itself.
    DecodeOnly,
}

/// Ejection of an instance that cannot be reached (and, later, of one that misbehaves).
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitBreaker {
    pub enabled: bool,
    /// Failures within the window that open it. Default 5. A refused connect ejects at once.
    pub failure_threshold: u32,
    /// Successes that close it again. Default 2.
    pub success_threshold: u32,
    /// First ejection. Default 1 s; doubles up to `ejection_max`.
    pub ejection_initial: Duration,
    /// Default 30 s (xPyD's `timeout_duration_seconds`).
    pub ejection_max: Duration,
    /// Default 60 s.
    pub window: Duration,
}

/// Which cores the shards run on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cores {
    /// Number of shards; `None`: one per physical core this process may use.
    pub shards: Option<usize>,
    /// Exact CPUs to pin to, in shard order; implies the number of shards.
    pub cpus: Option<Vec<usize>>,
    /// Only CPUs of this NUMA node.
    pub numa: Option<usize>,
    /// Connections are accepted by the shard of the CPU on which their packets arrive.
    pub steer_by_cpu: bool,
    /// A shard wakes at most once in this time, if it can help it. Zero: no such limit.
    pub batch_window: Duration,
    /// A shard looks for more, without waiting, for so long after bytes moved. Zero: it waits at once.
    pub busy_poll: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
}

/// A key that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            file: None,
            model: String::new(),
            host: "0.0.0.0".into(),
            port: 8000,
            log_level: LogLevel::Info,
            handshake: "sequential".into(),
            instances: Vec::new(),
            surface: Surface::default(),
            epd: epd::Epd::default(),
            first_token_source: FirstTokenSource::default(),
            models: Models::default(),
            multiturn: Multiturn::default(),
            startup: Startup::default(),
            scheduling: Scheduling::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            prefill_failure: PrefillFailure::default(),
            health_check: HealthCheck::default(),
            circuit_breaker: CircuitBreaker::default(),
            cores: Cores::default(),
            lmcache: lmcache::Lmcache::default(),
            forward: Vec::new(),
            sidecar: None,
            tls: None,
            upstream_tls: sidecar::UpstreamTls::default(),
            openai_api_key: None,
            admin_api_key: None,
        }
    }
}

impl Default for Scheduling {
    fn default() -> Self {
        Scheduling {
            prefill: "least_load".into(),
            decode: "least_load".into(),
            load_view_max_age: Duration::from_millis(1),
            virtual_nodes: 160,
            prefix_length: 256,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes_max: 64 << 10,
            body_bytes_max: 64 << 20,
            answer_bytes_max: 16 << 20,
            body_memory_max: 1 << 30,
            json_depth_max: 128,
            in_flight_max: 65_536,
            connections_max: 65_536,
            releases_max: 1024,
            idle_per_instance_max: 1024,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Timeouts {
            head: s(30),
            body: s(30),
            keep_alive: s(75),
            connect: s(2),
            prefill: s(300),
            decode_head: s(300),
            between_chunks: s(300),
            client_write: s(60),
            request: s(3600),
            pool_idle: s(3),
            release: s(10),
            drain: s(30),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            enabled: true,
            max_retries: 2,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            backoff_multiplier: 2.0,
            jitter_factor: 0.1,
            retryable_status_codes: vec![408, 429, 500, 502, 503, 504],
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            enabled: true,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(3),
            failure_threshold: 2,
            wedge_after: Duration::from_secs(180),
            path: "/health".into(),
        }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        CircuitBreaker {
            enabled: true,
            failure_threshold: 5,
            success_threshold: 2,
            ejection_initial: Duration::from_secs(1),
            ejection_max: Duration::from_secs(30),
            window: Duration::from_secs(60),
        }
    }
}
