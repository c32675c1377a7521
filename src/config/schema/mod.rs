//! Every key of the YAML: one row each, saying how it is read.
//!
//! * **For:** the rows, and what they say of a value that is wrong.
//! * **Must never:** judge what keys demand of each other: that is `settle` (about the file alone) and
//!   `check.rs` (about the finished [`Config`]).
//! * **To extend:** a section of a handshake is a file here, with a `Section` and its row in [`TOP`].

macro_rules! rows {
    ($($name:literal $(= $alias_of:literal)? => $set:expr,)*) => {
        &[$(Row { name: $name, alias_of: concat!($($alias_of)?), set: $set },)*]
    };
}

mod lmcache;

pub use lmcache::apply_zmq;

use super::address::Address;
use super::epd::Consumer;
use super::quantity::parse_cpus;
use super::reader::{At, Report, Row, Section, put, suggest};
use super::sidecar;
use super::topology::{self, Topology};
use super::yaml::Value;
use super::{
    CircuitBreaker, Config, FirstTokenSource, HealthCheck, InstanceConfig, Limits, LogLevel,
    PrefillFailure, Retry, Role, Scheduling, Secret, Startup, Surface, Timeouts,
};
use std::time::Duration;

/// What a file says, before the defaults that depend on the whole.
#[derive(Debug, Default)]
pub struct Draft {
    pub config: Config,
    /// In written order, each with the key of its place in the `Report`.
    pub instances: Vec<(InstanceConfig, String)>,
    pub handshake: Option<String>,
    /// The handshake that `disaggregated_mode:` means: only for models with prefill and decode.
    pub mode: Option<&'static str>,
    /// The `zmq` section.
    pub zmq: Option<lmcache::Zmq>,
    /// A policy was named, not only an option of one.
    policy_named: bool,
    roundrobin: bool,
    /// `consistent_hash: {virtual_nodes: N}`.
    virtual_nodes: Option<u32>,
}

impl Draft {
    /// Nothing is read yet.
    pub fn over(defaults: Config) -> Draft {
        Draft {
            config: defaults,
            ..Draft::default()
        }
    }
}

mod epd;
mod multiturn;

pub static TOP: Section<Draft> = Section {
    name: "YAML config",
    rows: rows! {
        "model" => |d, at| put(&mut d.config.model, at.text().map(Into::into)),
        "host" => |d, at| put(&mut d.config.host, read_host(at)),
        "port" => |d, at| put(&mut d.config.port, read_port(at)),
        "log_level" => |d, at| put(&mut d.config.log_level, read_log_level(at)),
        "encode" => |d, at| read_stage(d, at, Role::Encode),
        "prefill" => |d, at| read_stage(d, at, Role::Prefill),
        "decode" => |d, at| read_stage(d, at, Role::Decode),
        "aggregated" => |d, at| read_stage(d, at, Role::Aggregated),
        "instances" => read_instances,
        "models" => read_models,
        "multiturn" => |d, at| _ = at.section(&mut d.config.multiturn, &multiturn::MULTITURN),
        "handshake" => |d, at| d.handshake = at.text().map(Into::into),
        "disaggregated_mode" => read_mode,
        "surface" => |d, at| put(&mut d.config.surface, read_word(at, &SURFACES)),
        "first_token_source" => |d, at| put(&mut d.config.first_token_source, read_word(at, &FIRST_TOKENS)),
        "startup" => |d, at| _ = at.section(&mut d.config.startup, &STARTUP),
        "epd" => |d, at| _ = at.section(&mut d.config.epd, &epd::EPD),
        "scheduling" => read_scheduling,
        "limits" => |d, at| _ = at.section(&mut d.config.limits, &LIMITS),
        "timeouts" => |d, at| _ = at.section(&mut d.config.timeouts, &TIMEOUTS),
        "retry" => |d, at| _ = at.section(&mut d.config.retry, &RETRY),
        "prefill_failure" => |d, at| put(&mut d.config.prefill_failure, read_prefill_failure(at)),
        "health_check" => |d, at| _ = at.section(&mut d.config.health_check, &HEALTH_CHECK),
        "circuit_breaker" => |d, at| _ = at.section(&mut d.config.circuit_breaker, &CIRCUIT_BREAKER),
        "lmcache" => |d, at| _ = at.section(&mut d.config.lmcache, &lmcache::LMCACHE),
        "shards" => |d, at| if !at.is_null() { d.config.cores.shards = at.integer(1..=4096) },
        "cpus" => |d, at| d.config.cores.cpus = read_cpus(at),
        "numa" => |d, at| if !at.is_null() { d.config.cores.numa = at.integer(0..=1023) },
        "steer_by_cpu" => |d, at| put(&mut d.config.cores.steer_by_cpu, at.boolean()),
        "batch_window" => |d, at| put(&mut d.config.cores.batch_window, at.duration_or_zero()),
        "busy_poll" => |d, at| put(&mut d.config.cores.busy_poll, at.duration_or_zero()),
        "sidecar" => |d, at| sidecar::read(&mut d.config, at),
        "tls" => |d, at| sidecar::read_tls(&mut d.config, at),
        "upstream_tls" => |d, at| sidecar::read_upstream_tls(&mut d.config, at),
        "forward" => |d, at| d.config.forward = read_forward(at),
        "openai_api_key" => |d, at| d.config.openai_api_key = read_secret(at),
        "admin_api_key" => |d, at| d.config.admin_api_key = read_secret(at),
        // Keys of the old proxy.
        "wait_timeout_seconds" => |d, at| wait_timeout_seconds(&mut d.config.startup, at),
        "probe_interval_seconds" => |d, at| probe_interval_seconds(&mut d.config.startup, at),
        "heartbeat_interval_seconds" => |d, at| heartbeat_interval_seconds(&mut d.config.startup, at),
        "consistent_hash" => |d, at| _ = at.section(d, &CONSISTENT_HASH),
        "cache_aware" => |d, at| _ = at.section(d, &CACHE_AWARE),
        "power_of_two" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "loadbalanced" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "load_balanced" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "roundrobin" => |d, at| put(&mut d.roundrobin, at.boolean()),
        "round_robin" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "scheduling_config" => |d, at| _ = at.section(d, &SCHEDULING_CONFIG),
        "generator_on_p_node" => |d, at| if at.boolean() == Some(true) {
            d.config.first_token_source = FirstTokenSource::Prefill;
        },
        "tokenizer_path" => |_, at| if !at.is_null() && at.text().is_some() {
            let why = "tokenizer_path has no effect: pdrelay counts prompts without a tokenizer";
            at.warn(why, "remove it");
        },
        "zmq" => |d, at| d.zmq = lmcache::read_zmq(at),
    },
};

pub static LIMITS: Section<Limits> = Section {
    name: "limits",
    rows: rows! {
        "head_bytes_max" => |l, at| put(&mut l.head_bytes_max, at.bytes(1 << 10..=16 << 20)),
        "body_bytes_max" => |l, at| put(&mut l.body_bytes_max, at.bytes(1 << 10..=16 << 30)),
        "answer_bytes_max" => |l, at| put(&mut l.answer_bytes_max, at.bytes(1 << 10..=16 << 30)),
        "body_memory_max" => |l, at| put(&mut l.body_memory_max, at.bytes(1 << 10..=1 << 40)),
        "json_depth_max" => |l, at| put(&mut l.json_depth_max, at.integer(1..=1000)),
        "in_flight_max" => |l, at| put(&mut l.in_flight_max, at.integer(1..=16_777_216)),
        "connections_max" => |l, at| put(&mut l.connections_max, at.integer(1..=16_777_216)),
        "releases_max" => |l, at| put(&mut l.releases_max, at.integer(0..=1 << 20)),
        "idle_per_instance_max" => |l, at| put(&mut l.idle_per_instance_max, at.integer(0..=65_536)),
    },
};

pub static TIMEOUTS: Section<Timeouts> = Section {
    name: "timeouts",
    rows: rows! {
        "head" => |t, at| put(&mut t.head, at.duration()),
        "body" => |t, at| put(&mut t.body, at.duration()),
        "keep_alive" => |t, at| put(&mut t.keep_alive, at.duration()),
        "connect" => |t, at| put(&mut t.connect, at.duration()),
        "prefill" => |t, at| put(&mut t.prefill, at.duration()),
        "decode_head" => |t, at| put(&mut t.decode_head, at.duration()),
        "between_chunks" => |t, at| put(&mut t.between_chunks, at.duration()),
        "client_write" => |t, at| put(&mut t.client_write, at.duration()),
        "request" => |t, at| put(&mut t.request, at.duration()),
        "pool_idle" => |t, at| put(&mut t.pool_idle, at.duration()),
        "release" => |t, at| put(&mut t.release, at.duration()),
        "drain" => |t, at| put(&mut t.drain, at.duration()),
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

pub static RETRY: Section<Retry> = Section {
    name: "retry",
    rows: rows! {
        "enabled" => |r, at| put(&mut r.enabled, at.boolean()),
        "max_retries" => |r, at| put(&mut r.max_retries, at.integer(0..=100)),
        "initial_backoff" => |r, at| put(&mut r.initial_backoff, at.duration_or_zero()),
        "initial_backoff_ms" = "initial_backoff" =>
            |r, at| put(&mut r.initial_backoff, at.duration_in(MILLISECOND)),
        "max_backoff" => |r, at| put(&mut r.max_backoff, at.duration_or_zero()),
        "max_backoff_ms" = "max_backoff" =>
            |r, at| put(&mut r.max_backoff, at.duration_in(MILLISECOND)),
        "backoff_multiplier" => |r, at| put(&mut r.backoff_multiplier, at.float(1.0..=100.0)),
        "jitter_factor" => |r, at| put(&mut r.jitter_factor, at.float(0.0..=1.0)),
        "retryable_status_codes" => |r, at| {
            let mut codes = Vec::new();
            if at.each("a list of status codes", |at| codes.extend(at.integer(400u16..=599))) {
                r.retryable_status_codes = codes;
            }
        },
    },
};

pub static HEALTH_CHECK: Section<HealthCheck> = Section {
    name: "health_check",
    rows: rows! {
        "enabled" => |h, at| put(&mut h.enabled, at.boolean()),
        "interval" => |h, at| put(&mut h.interval, at.duration()),
        "interval_seconds" = "interval" => |h, at| put(&mut h.interval, above_zero(at)),
        "timeout" => |h, at| put(&mut h.timeout, at.duration()),
        "timeout_seconds" = "timeout" => |h, at| put(&mut h.timeout, above_zero(at)),
        "failure_threshold" => |h, at| put(&mut h.failure_threshold, at.integer(1..=1_000_000)),
        "wedge_after" => |h, at| put(&mut h.wedge_after, at.duration()),
        "path" => |h, at| if let Some(path) = at.text() {
            match path_error(path) {
                None => h.path = path.into(),
                Some(why) => at.fail(format!("path '{path}' {why}"), "write it like /health"),
            }
        },
    },
};

pub static CIRCUIT_BREAKER: Section<CircuitBreaker> = Section {
    name: "circuit_breaker",
    rows: rows! {
        "enabled" => |b, at| put(&mut b.enabled, at.boolean()),
        "failure_threshold" => |b, at| put(&mut b.failure_threshold, at.integer(1..=1_000_000)),
        "success_threshold" => |b, at| put(&mut b.success_threshold, at.integer(1..=1_000_000)),
        "ejection_initial" => |b, at| put(&mut b.ejection_initial, at.duration()),
        "ejection_max" => |b, at| put(&mut b.ejection_max, at.duration()),
        "timeout_duration_seconds" = "ejection_max" => |b, at| put(&mut b.ejection_max, above_zero(at)),
        "window" => |b, at| put(&mut b.window, at.duration()),
        "window_duration_seconds" = "window" => |b, at| put(&mut b.window, above_zero(at)),
    },
};

pub static SCHEDULING: Section<Scheduling> = Section {
    name: "scheduling",
    rows: rows! {
        "prefill" => |s, at| put(&mut s.prefill, at.text().map(policy_name)),
        "decode" => |s, at| put(&mut s.decode, at.text().map(policy_name)),
        "load_view_max_age" => |s, at| put(&mut s.load_view_max_age, at.duration_or_zero()),
        "virtual_nodes" => |s, at| put(&mut s.virtual_nodes, at.integer(1..=VIRTUAL_NODES_MAX)),
        "prefix_length" => |s, at| put(&mut s.prefix_length, at.integer(1..=PREFIX_LENGTH_MAX)),
    },
};

/// Beyond this a ring is slower and no more even.
const VIRTUAL_NODES_MAX: u32 = 65_536;
const PREFIX_LENGTH_MAX: u32 = 1 << 20;

static CONSISTENT_HASH: Section<Draft> = Section {
    name: "consistent_hash",
    rows: rows! {
        "virtual_nodes" => |d, at| d.virtual_nodes = at.integer(1..=VIRTUAL_NODES_MAX),
    },
};

static CACHE_AWARE: Section<Draft> = Section {
    name: "cache_aware",
    rows: rows! {
        "prefix_length" =>
            |d, at| put(&mut d.config.scheduling.prefix_length, at.integer(1..=PREFIX_LENGTH_MAX)),
    },
};

static NO_OPTIONS: Section<Draft> = Section {
    name: "a policy without options",
    rows: &[],
};

static SCHEDULING_CONFIG: Section<Draft> = Section {
    name: "scheduling_config",
    rows: rows! {
        "consistent_hash" => |d, at| _ = at.section(d, &CONSISTENT_HASH),
        "cache_aware" => |d, at| _ = at.section(d, &CACHE_AWARE),
        "power_of_two" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "loadbalanced" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "load_balanced" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "roundrobin" => |d, at| _ = at.section(d, &NO_OPTIONS),
        "round_robin" => |d, at| _ = at.section(d, &NO_OPTIONS),
    },
};

pub static STARTUP: Section<Startup> = Section {
    name: "startup config",
    rows: rows! {
        "wait_timeout" => |s, at| put(&mut s.wait_timeout, at.duration_or_zero().map(above_none)),
        "wait_timeout_seconds" = "wait_timeout" => wait_timeout_seconds,
        "probe_interval" => |s, at| put(&mut s.probe_interval, at.duration()),
        "probe_interval_seconds" = "probe_interval" => probe_interval_seconds,
        "heartbeat_interval" =>
            |s, at| put(&mut s.heartbeat_interval, at.duration_or_zero().map(above_none)),
        "heartbeat_interval_seconds" = "heartbeat_interval" => heartbeat_interval_seconds,
    },
};

/// 0 is "never", or "for ever".
fn above_none(wait: Duration) -> Option<Duration> {
    (!wait.is_zero()).then_some(wait)
}

fn wait_timeout_seconds(startup: &mut Startup, at: &mut At) {
    put(
        &mut startup.wait_timeout,
        at.duration_in(SECOND).map(above_none),
    );
}

/// The old proxy's is read as "at most": asking more often than that only finds an instance sooner.
fn probe_interval_seconds(startup: &mut Startup, at: &mut At) {
    const SHORTEST: Duration = Duration::from_millis(100);
    if let Some(interval) = at.duration_in(SECOND) {
        startup.probe_interval = interval.clamp(SHORTEST, Startup::default().probe_interval);
    }
}

fn heartbeat_interval_seconds(startup: &mut Startup, at: &mut At) {
    if let Some(pause) = above_zero(at) {
        startup.heartbeat_interval = Some(pause);
    }
}

/// An item of a stage's list in its long form.
#[derive(Default)]
struct Item {
    address: Option<Address>,
    role: Option<Role>,
    weight: Option<f64>,
    model: String,
    consumer: Consumer,
    side_port: Option<u16>,
}

static STAGE_ITEM: Section<Item> = Section {
    name: "an instance",
    rows: rows! {
        "address" => |i, at| i.address = read_address(at),
        "weight" => |i, at| i.weight = read_weight(at),
        "dp_size" => |i, at| put(&mut i.consumer.dp_size, at.integer(1..=1024)),
        "ec_addresses" => |i, at| i.consumer.addresses = read_ec_addresses(at),
        "side_port" => |i, at| i.side_port = at.integer(1..=65_535),
    },
};

static INSTANCE: Section<Item> = Section {
    name: "an instance",
    rows: rows! {
        "address" => |i, at| i.address = read_address(at),
        "role" => |i, at| i.role = read_role(at),
        "weight" => |i, at| i.weight = read_weight(at),
        "dp_size" => |i, at| put(&mut i.consumer.dp_size, at.integer(1..=1024)),
        "ec_addresses" => |i, at| i.consumer.addresses = read_ec_addresses(at),
        "side_port" => |i, at| i.side_port = at.integer(1..=65_535),
        "model" => |i, at| put(&mut i.model, at.text().map(Into::into)),
    },
};

/// Every key that can be written, for the test that `configs/reference.yaml` shows it.
pub fn keys() -> Vec<String> {
    fn of<'a, T>(prefix: &'a str, section: &'a Section<T>) -> impl Iterator<Item = String> + 'a {
        section
            .rows
            .iter()
            .map(move |row| format!("{prefix}{}", row.name))
    }
    of("", &TOP)
        .chain(of("epd.", &epd::EPD))
        .chain(of("limits.", &LIMITS))
        .chain(of("timeouts.", &TIMEOUTS))
        .chain(of("retry.", &RETRY))
        .chain(of("health_check.", &HEALTH_CHECK))
        .chain(of("circuit_breaker.", &CIRCUIT_BREAKER))
        .chain(of("scheduling.", &SCHEDULING))
        .chain(of("multiturn.", &multiturn::MULTITURN))
        .chain(of("startup.", &STARTUP))
        .chain(lmcache::keys())
        .chain(of("consistent_hash.", &CONSISTENT_HASH))
        .chain(of("cache_aware.", &CACHE_AWARE))
        .chain(MODEL_KEYS.iter().map(|key| format!("models.{key}")))
        .collect()
}

// --- Instances ------------------------------------------------------------------------------------

fn read_address(at: &mut At) -> Option<Address> {
    let text = match &at.node.value {
        Value::Text(text) => text.clone(),
        Value::Integer(number) => number.to_string(), // a bare port: let the address rule say so
        _ => {
            at.mistyped("an address");
            return None;
        }
    };
    let address = match at.urls() {
        true => Address::parse_url(&text),
        false => Address::parse(&text),
    };
    match address {
        Ok(address) => Some(address),
        Err(why) => {
            at.fail(why, "");
            None
        }
    }
}

/// Where encoders push to, by rank: one address for each.
fn read_ec_addresses(at: &mut At) -> Vec<String> {
    let mut addresses = Vec::new();
    at.each("a list of addresses", |at| {
        if let Some(text) = at.text() {
            let text = text.trim();
            match text.is_empty() || text.contains(char::is_control) {
                true => at.fail("an address is empty", "write it as the engine announces it"),
                false => addresses.push(text.to_owned()),
            }
        }
    });
    addresses
}

fn read_weight(at: &mut At) -> Option<f64> {
    let weight = at.float(0.0..=1e6)?;
    if weight > 0.0 {
        return Some(weight);
    }
    at.fail(
        "weight must be above 0, got 0",
        "remove the instance to send it nothing",
    );
    None
}

fn read_role(at: &mut At) -> Option<Role> {
    let text = at.text()?;
    match text {
        "encode" => Some(Role::Encode),
        "prefill" => Some(Role::Prefill),
        "decode" => Some(Role::Decode),
        "aggregated" | "dual" => Some(Role::Aggregated),
        _ => {
            let message =
                format!("role must be 'prefill', 'decode', or 'aggregated', got '{text}'");
            at.fail(
                message,
                suggest(text, &["encode", "prefill", "decode", "aggregated", "dual"]),
            );
            None
        }
    }
}

/// `prefill:` and its sisters: a list of addresses, or the topology form.
fn read_stage(draft: &mut Draft, at: &mut At, role: Role) {
    match &at.node.value {
        Value::Map(_) if matches!(role, Role::Prefill | Role::Decode) => {
            read_topology(draft, at, role);
        }
        Value::Null | Value::List(_) => {
            at.each("", |at| {
                let mut item = Item::default();
                match at.node.value {
                    Value::Map(_) => {
                        at.section(&mut item, &STAGE_ITEM);
                        if item.address.is_none() {
                            missing_in_item(at, "address");
                        }
                    }
                    _ => item.address = read_address(at),
                }
                if let Some(address) = item.address {
                    let instance = InstanceConfig {
                        weight: item.weight.unwrap_or(1.0),
                        consumer: item.consumer,
                        side_port: item.side_port,
                        ..InstanceConfig::new(address, role)
                    };
                    draft.instances.push((instance, at.path.clone()));
                }
            });
        }
        other => {
            let got = other.type_name();
            let forms = match role {
                Role::Prefill | Role::Decode => "a list of addresses or a topology dict",
                _ => "a list of addresses",
            };
            let message = format!("{} must be {forms}, got {got}", role.name());
            at.fail(message, format!("write {}: [10.0.0.1:8100]", role.name()));
        }
    }
}

/// Reported only if the key is not there at all: else its own problem is.
fn missing_in_item(at: &mut At, key: &str) {
    let Value::Map(entries) = &at.node.value else {
        return;
    };
    if !entries.iter().any(|entry| entry.key == key) {
        at.fail(format!("an instance needs '{key}'"), "");
    }
}

/// As written, each size kept unread so that all are judged together.
fn read_topology(draft: &mut Draft, at: &mut At, role: Role) {
    const KEYS: [&str; 4] = ["nodes", "tp_size", "dp_size", "world_size_per_node"];
    let name = role.name();
    let Value::Map(entries) = &at.node.value else {
        return;
    };
    let mut nodes: Option<Vec<Address>> = None;
    let mut sizes: [Option<u64>; 3] = [None; 3];
    for index in at.entries() {
        let key = entries[index].key.as_str();
        let mut at = at.entry(index);
        match KEYS.iter().position(|known| *known == key) {
            Some(0) => {
                let (mut good, mut bad) = (Vec::new(), false);
                let listed = at.each("a list of host:port", |at| {
                    let node = at.text().map(|text| topology::parse_node(name, text));
                    match node {
                        Some(Ok(node)) => good.push(node),
                        Some(Err(why)) => {
                            at.fail(why, "write host:port, with the port of its first instance");
                            bad = true;
                        }
                        None => bad = true,
                    }
                });
                nodes = (listed && !bad).then_some(good);
            }
            Some(size) => {
                sizes[size - 1] = at.whole().and_then(|n| {
                    let size = u64::try_from(n).ok().filter(|n| *n >= 1);
                    if size.is_none() {
                        let message = format!("{name} {key} must be a positive integer, got {n}");
                        at.fail(message, "");
                    }
                    size
                });
            }
            None => {
                let message = format!("{name} topology config has unknown keys: ['{key}']");
                at.fail(message, suggest(key, &KEYS));
            }
        }
    }
    let written = |key: &&&str| entries.iter().any(|entry| entry.key == **key);
    let missing: Vec<String> = KEYS
        .iter()
        .filter(|key| !written(key))
        .map(|key| format!("'{key}'"))
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "{name} topology config missing keys: [{}]",
            missing.join(", ")
        );
        at.fail(message, "");
        return;
    }
    let (Some(nodes), [Some(tp_size), Some(dp_size), Some(world_size_per_node)]) = (nodes, sizes)
    else {
        return;
    };
    let topology = Topology {
        nodes,
        tp_size,
        dp_size,
        world_size_per_node,
    };
    match topology::expand(name, &topology) {
        Ok(addresses) => {
            let path = &at.path;
            let instances = addresses
                .into_iter()
                .map(|address| (InstanceConfig::new(address, role), path.clone()));
            draft.instances.extend(instances);
        }
        Err(why) => at.fail(why, ""),
    }
}

fn read_instances(draft: &mut Draft, at: &mut At) {
    at.each("a list of {address, role}", |at| {
        let mut item = Item::default();
        let Value::Map(_) = at.node.value else {
            return at.mistyped("{address, role}");
        };
        at.section(&mut item, &INSTANCE);
        missing_in_item(at, "address");
        missing_in_item(at, "role");
        let (Some(address), Some(role)) = (item.address, item.role) else {
            return;
        };
        let instance = InstanceConfig {
            weight: item.weight.unwrap_or(1.0),
            model: item.model,
            consumer: item.consumer,
            side_port: item.side_port,
            ..InstanceConfig::new(address, role)
        };
        let path = at.path.clone();
        add_once(draft, at, instance, path);
    });
}

/// In `instances` and `models` an address counts once per role; in the lists it may repeat.
fn add_once(draft: &mut Draft, at: &mut At, instance: InstanceConfig, place: String) {
    let twice = draft.instances.iter().any(|(other, place)| {
        is_of_models(place) && other.address == instance.address && other.role == instance.role
    });
    if twice {
        let message = format!(
            "Instance '{}' is listed twice as {}",
            instance.address,
            instance.role.name()
        );
        return at.warn(message, "the first one counts");
    }
    draft.instances.push((instance, place));
}

/// Whether an instance was written under `instances` or `models`, not in a list of its role.
pub fn is_of_models(place: &str) -> bool {
    place.starts_with("instances") || place.starts_with("models")
}

const MODEL_KEYS: [&str; 5] = ["name", "prefill", "decode", "aggregated", "scheduler"];

/// `models:`, the short form of `instances`.
fn read_models(draft: &mut Draft, at: &mut At) {
    at.each(
        "a list of {name, prefill, decode, aggregated, scheduler}",
        |at| {
            let Value::Map(entries) = &at.node.value else {
                return at.mistyped("{name, prefill, decode, aggregated, scheduler}");
            };
            let name = entries.iter().find(|entry| entry.key == "name");
            let name = match name.map(|entry| &entry.node.value) {
                Some(Value::Text(name)) if !name.trim().is_empty() => name.trim().to_owned(),
                _ => {
                    let message = "Each model in 'models' must have a non-empty 'name'.";
                    return at.fail(message, "write name: MODEL, the name that clients use");
                }
            };
            let has = |key: &str| {
                let found = entries.iter().find(|entry| entry.key == key);
                found.is_some_and(|e| match &e.node.value {
                    Value::List(items) => !items.is_empty(),
                    value => *value != Value::Null,
                })
            };
            if has("aggregated") && (has("prefill") || has("decode")) {
                let message = format!(
                    "Model '{name}' cannot have both 'aggregated' and 'prefill'/'decode' fields."
                );
                return at.fail(message, "give each model its own item");
            }
            for index in at.entries() {
                let mut at = at.entry(index);
                match entries[index].key.as_str() {
                    "name" => {}
                    "prefill" => read_stage_of(&name, draft, &mut at, Role::Prefill),
                    "decode" => read_stage_of(&name, draft, &mut at, Role::Decode),
                    "aggregated" => read_stage_of(&name, draft, &mut at, Role::Aggregated),
                    "scheduler" if at.is_null() => {}
                    "scheduler" => match at.text().map(policy_name) {
                        Some(policy) if has("aggregated") => {
                            draft.config.models.schedulers.insert(name.clone(), policy);
                        }
                        Some(_) => {
                            let message =
                                "scheduler has no effect: it is for aggregated models only";
                            at.warn(message, "'scheduling' decides for the others");
                        }
                        None => {}
                    },
                    key => {
                        let message = format!("Unknown keys in model '{name}': ['{key}']");
                        at.fail(message, suggest(key, &MODEL_KEYS));
                    }
                }
            }
        },
    );
}

fn read_stage_of(model: &str, draft: &mut Draft, at: &mut At, role: Role) {
    let mut own = Draft::default();
    read_stage(&mut own, at, role);
    for (instance, place) in own.instances {
        let model = model.to_owned();
        add_once(draft, at, InstanceConfig { model, ..instance }, place);
    }
}

// --- Single values --------------------------------------------------------------------------------

/// An IP (v6 with or without brackets), `localhost` or a DNS name; stored without brackets.
pub fn parse_host(text: &str) -> Result<String, String> {
    let bare = text.trim();
    let bare = bare
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(bare);
    let bracketed = if bare.contains(':') {
        format!("[{bare}]:1")
    } else {
        format!("{bare}:1")
    };
    match Address::parse(&bracketed) {
        Ok(Address::Tcp { host, .. }) if host == bare => Ok(host),
        _ => Err(format!(
            "host must be an IP address or localhost (or a host name), got '{text}'"
        )),
    }
}

fn read_host(at: &mut At) -> Option<String> {
    let parsed = parse_host(at.text()?);
    match parsed {
        Ok(host) => Some(host),
        Err(why) => {
            at.fail(
                why,
                "0.0.0.0 listens on every IPv4 interface, :: on IPv6 as well",
            );
            None
        }
    }
}

fn read_port(at: &mut At) -> Option<u16> {
    let number = at.whole()?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            at.fail(
                format!("port must be between 1 and 65535, got {number}"),
                "",
            );
            None
        }
    }
}

const LOG_LEVELS: [(&str, LogLevel); 4] = [
    ("debug", LogLevel::Debug),
    ("error", LogLevel::Error),
    ("info", LogLevel::Info),
    ("warning", LogLevel::Warning),
];

impl LogLevel {
    pub fn name(self) -> &'static str {
        LOG_LEVELS
            .iter()
            .find(|(_, level)| *level == self)
            .map_or("info", |(name, _)| name)
    }

    /// The error is the sentence to show.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        match LOG_LEVELS.iter().find(|(name, _)| *name == lower) {
            Some((_, level)) => Ok(*level),
            None => Err(format!(
                "log_level must be one of ['debug', 'error', 'info', 'warning'], got '{text}'"
            )),
        }
    }
}

fn read_log_level(at: &mut At) -> Option<LogLevel> {
    let text = at.text()?;
    match LogLevel::parse(text) {
        Ok(level) => Some(level),
        Err(why) => {
            at.fail(why, suggest(text, &LOG_LEVELS.map(|(name, _)| name)));
            None
        }
    }
}

const PREFILL_FAILURES: [(&str, PrefillFailure); 2] = [
    ("error", PrefillFailure::Error),
    ("decode_only", PrefillFailure::DecodeOnly),
];

const SURFACES: (&str, &[(&str, Surface)]) = (
    "'native', 'epd', 'lmcache', 'multiturn', 'sidecar' or 'xpyd'",
    &[
        ("epd", Surface::Epd),
        ("lmcache", Surface::Lmcache),
        ("multiturn", Surface::Multiturn),
        ("native", Surface::Native),
        ("sidecar", Surface::Sidecar),
        ("xpyd", Surface::Xpyd),
    ],
);

const FIRST_TOKENS: (&str, &[(&str, FirstTokenSource)]) = (
    "'prefill' or 'decode'",
    &[
        ("prefill", FirstTokenSource::Prefill),
        ("decode", FirstTokenSource::Decode),
    ],
);

/// One of a few words; the error lists them.
fn read_word<T: Copy>(at: &mut At, (listed, words): &(&str, &[(&str, T)])) -> Option<T> {
    let text = at.text()?;
    let known = words.iter().find(|(word, _)| *word == text);
    if known.is_none() {
        let message = format!("{} must be {listed}, got '{text}'", at.name());
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        at.fail(message, suggest(text, &words));
    }
    known.map(|(_, value)| *value)
}

fn read_prefill_failure(at: &mut At) -> Option<PrefillFailure> {
    let text = at.text()?;
    let known = PREFILL_FAILURES
        .iter()
        .find(|(name, _)| *name == text.trim());
    if known.is_none() {
        let message = format!("prefill_failure must be error or decode_only, got '{text}'");
        at.fail(
            message,
            suggest(text, &PREFILL_FAILURES.map(|(name, _)| name)),
        );
    }
    known.map(|(_, value)| *value)
}

/// `[0, 2]`, `0`, or `"0,2-5"`. Whether they are distinct is for `check.rs`.
fn read_cpus(at: &mut At) -> Option<Vec<usize>> {
    match &at.node.value {
        Value::Null => None,
        Value::Integer(_) => at.integer(0..=65_535).map(|cpu| vec![cpu]),
        Value::Text(text) => cpu_ranges(text, at),
        _ => {
            let mut cpus = Some(Vec::new());
            let listed = at.each("a list of CPU numbers", |at| {
                let more = match &at.node.value {
                    Value::Text(text) => cpu_ranges(text, at),
                    _ => at.integer(0..=65_535).map(|cpu| vec![cpu]),
                };
                match (&mut cpus, more) {
                    (Some(cpus), Some(more)) => cpus.extend(more),
                    _ => cpus = None,
                }
            });
            cpus.filter(|_| listed)
        }
    }
}

fn cpu_ranges(text: &str, at: &mut At) -> Option<Vec<usize>> {
    match parse_cpus(text) {
        Ok(cpus) => Some(cpus),
        Err(why) => {
            at.fail(format!("cpus: {why}"), "write [0, 2] or \"0,2-5\"");
            None
        }
    }
}

fn read_forward(at: &mut At) -> Vec<String> {
    let mut paths = Vec::new();
    at.each("a list of paths", |at| {
        let Some(path) = at.text() else { return };
        let why = match path.strip_suffix('*').unwrap_or(path) {
            stem if stem.contains('*') => Some("may have a '*' only at its end"),
            stem => path_error(stem),
        };
        match why {
            None => paths.push(path.to_owned()),
            Some(why) => {
                at.fail(
                    format!("forward path '{path}' {why}"),
                    "write /path, or /path/* for all below",
                );
            }
        }
    });
    paths
}

/// Why a text cannot stand in a request line as its path.
fn path_error(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        Some("must begin with '/'")
    } else if path.contains(['?', '#']) {
        Some("must not have a query or fragment")
    } else if !path.bytes().all(|b| b.is_ascii_graphic()) {
        Some("must be of visible ASCII characters")
    } else {
        None
    }
}

/// Why a text cannot be sent as a key, in words that do not show it.
pub fn secret_error(text: &str) -> Option<&'static str> {
    let fits = text.bytes().all(|b| b.is_ascii_graphic());
    (!fits).then_some("has a character that cannot be sent in a header")
}

fn read_secret(at: &mut At) -> Option<Secret> {
    if at.is_null() {
        return None;
    }
    let text = at.text()?;
    if let Some(why) = secret_error(text) {
        let message = format!("{} {why}", at.name());
        at.fail(message, "");
        return None;
    }
    (!text.is_empty()).then(|| Secret(text.into()))
}

fn above_zero(at: &mut At) -> Option<Duration> {
    let value = at.duration_in(SECOND)?;
    if value.is_zero() {
        let message = format!("{} must be above 0", at.name());
        at.fail(message, "");
        return None;
    }
    Some(value)
}

// --- Handshake and scheduling ---------------------------------------------------------------------

/// The handshake that a mode of the old proxy means. `zmq` has its own section.
pub const MODES: [(&str, &str); 3] = [
    ("direct", "sequential"),
    ("nixl", "nixl"),
    ("zmq", "lmcache"),
];

fn read_mode(draft: &mut Draft, at: &mut At) {
    let Some(text) = at.text() else { return };
    match MODES.iter().find(|(mode, _)| *mode == text) {
        Some((_, handshake)) => draft.mode = Some(handshake),
        None => {
            let message =
                format!("disaggregated_mode must be 'direct', 'nixl' or 'zmq', got '{text}'");
            at.fail(message, "handshake: NAME is our own key for it");
        }
    }
}

/// Our name of a policy, from any of its names.
pub fn policy_name(text: &str) -> String {
    match text {
        "roundrobin" => "round_robin",
        "loadbalanced" => "load_balanced",
        other => other,
    }
    .into()
}

fn read_scheduling(draft: &mut Draft, at: &mut At) {
    let scheduling = &mut draft.config.scheduling;
    match &at.node.value {
        Value::Map(entries) => {
            let named = |key: &str| entries.iter().any(|entry| entry.key == key);
            draft.policy_named = named("prefill") || named("decode");
            at.section(scheduling, &SCHEDULING);
        }
        Value::Null => {}
        Value::Text(_) => {
            if let Some(name) = at.text().map(policy_name) {
                scheduling.prefill = name.clone();
                scheduling.decode = name;
                draft.policy_named = true;
            }
        }
        _ => at.mistyped("a policy's name or a mapping {prefill, decode, load_view_max_age}"),
    }
}

// --- The file as a whole --------------------------------------------------------------------------

/// What the keys of one file demand of each other, once all are read.
pub fn settle(draft: &mut Draft, report: &mut Report) {
    if let (Some(mode), Some(handshake)) = (draft.mode, &draft.handshake)
        && mode != handshake
    {
        let message =
            format!("disaggregated_mode means handshake: {mode}, but handshake is '{handshake}'");
        report.problem("disaggregated_mode", message, "keep one of the two keys");
    }

    if draft.roundrobin {
        let scheduling = &mut draft.config.scheduling;
        if !draft.policy_named {
            scheduling.prefill = "round_robin".into();
            scheduling.decode = "round_robin".into();
        } else if scheduling.prefill != "round_robin" || scheduling.decode != "round_robin" {
            let message = "roundrobin has no effect: 'scheduling' decides";
            report.warning("roundrobin", message, "remove it");
        }
    }
    for key in STARTUP.rows.iter().map(|row| row.name) {
        if report.is_set(key) && report.is_set(&format!("startup.{key}")) {
            let message = format!("'{key}' and 'startup.{key}' are two spellings of one key");
            report.problem(key, message, "keep one of them");
        }
    }

    let lists = Role::ALL.map(Role::name);
    let lists = lists
        .iter()
        .filter(|key| report.is_set(key))
        .copied()
        .collect::<Vec<_>>();
    let listed = draft
        .instances
        .iter()
        .any(|(_, place)| !is_of_models(place));
    let of_models = |key: &str| {
        draft
            .instances
            .iter()
            .any(|(_, place)| place.starts_with(key))
    };
    if of_models("instances") && of_models("models") {
        let message = "Cannot specify both 'models' and 'instances'.";
        report.problem("models", message, "move all into one of them");
    }
    let key = if of_models("models") {
        "models"
    } else {
        "instances"
    };
    if of_models(key) && listed {
        let message =
            "Cannot use 'instances' or 'models' together with legacy 'prefill'/'decode' lists.";
        let fix = format!(
            "move what is under {} into {key}, or the other way",
            lists.join(", ")
        );
        report.problem(key, message, fix);
    }

    settle_models(draft, report);
    let config = &mut draft.config;
    // `cache_aware` has a ring too, which that key of the old proxy does not mean.
    let uses = |policy: &str| {
        let Scheduling {
            prefill, decode, ..
        } = &config.scheduling;
        let of_models = config.models.schedulers.values().any(|name| name == policy);
        prefill == policy || decode == policy || of_models
    };
    if uses("consistent_hash") {
        put(&mut config.scheduling.virtual_nodes, draft.virtual_nodes);
    }

    // A default never contradicts what was written about its sister.
    let breaker = &mut config.circuit_breaker;
    if !report.is_set("circuit_breaker.ejection_initial") {
        breaker.ejection_initial = breaker.ejection_initial.min(breaker.ejection_max);
    } else if !report.is_set("circuit_breaker.ejection_max")
        && !report.is_set("circuit_breaker.timeout_duration_seconds")
    {
        breaker.ejection_max = breaker.ejection_max.max(breaker.ejection_initial);
    }
    let retry = &mut config.retry;
    let is_set = |key: &str| {
        report.is_set(&format!("retry.{key}")) || report.is_set(&format!("retry.{key}_ms"))
    };
    if !is_set("initial_backoff") {
        retry.initial_backoff = retry.initial_backoff.min(retry.max_backoff);
    } else if !is_set("max_backoff") {
        retry.max_backoff = retry.max_backoff.max(retry.initial_backoff);
    }
}

/// Names of models: those of the instances count.
fn settle_models(draft: &mut Draft, report: &mut Report) {
    let config = &mut draft.config;
    let of_models = |(_, place): &&(InstanceConfig, String)| is_of_models(place);
    let mut names: Vec<&str> = Vec::new();
    for (instance, _) in draft.instances.iter().filter(of_models) {
        if !instance.model.is_empty() && !names.contains(&instance.model.as_str()) {
            names.push(&instance.model);
        }
    }
    let any = draft.instances.iter().any(|one| of_models(&one));
    config.models.strict = any && (!names.is_empty() || config.surface == Surface::Xpyd);
    if names.is_empty() {
        return;
    }
    if report.is_set("model") && names != [config.model.as_str()] {
        let message = "model has no effect: the instances name theirs";
        report.warning("model", message, "remove it");
    }
    config.model = match names.as_slice() {
        [name] => (*name).to_owned(),
        _ => String::new(),
    };
}
