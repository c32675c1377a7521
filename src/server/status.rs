//! `/status`: what the proxy knows, as JSON for people.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Shared;
use crate::cluster::Cluster;
use crate::cluster::breaker::now_ms;
use crate::metrics::Gauge;

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    uptime_s: u64,
    ready: bool,
    draining: bool,
    handshake: &'a str,
    scheduling: Scheduling<'a>,
    tokens_per_byte: f32,
    /// That instances serve, as configured or as they say.
    models: Vec<String>,
    limits: Limits,
    shards: Vec<Shard>,
    instances: Vec<Instance<'a>>,
}

#[derive(Serialize)]
struct Scheduling<'a> {
    prefill: &'a str,
    decode: &'a str,
}

#[derive(Serialize)]
struct Limits {
    in_flight: Level,
    connections: Level,
    kv_releases: Level,
    open_files: Level,
}

/// How far a limit is from being met. When it is: a 503 (in flight, body memory), a connection closed at
/// once (connections, open files), a KV grant left to its lease (releases).
#[derive(Serialize)]
struct Level {
    now: usize,
    max: usize,
}

#[derive(Serialize)]
struct Shard {
    index: usize,
    driver: &'static str,
    connections: i64,
    in_flight: i64,
    pool_idle: i64,
    body_memory_bytes: Level,
    kv_releases: Level,
}

#[derive(Serialize)]
struct Instance<'a> {
    role: &'static str,
    address: &'a str,
    health: &'static str,
    breaker: &'static str,
    wedged: bool,
    draining: bool,
    requests: i64,
    tokens: i64,
    weight: f64,
    /// As configured, else as it says; null while it has not.
    model: Option<String>,
    max_model_len: u32,
}

/// The instances alone: what the admin API answers.
pub fn instances(shared: &Shared) -> Vec<u8> {
    sonic_rs::to_vec_pretty(&list(&shared.cluster.get())).unwrap_or_default()
}

fn list(cluster: &Cluster) -> Vec<Instance<'_>> {
    let now = now_ms();
    let list = cluster.instances.iter().map(|one| {
        let load = one.load.read();
        Instance {
            role: one.role.name(),
            address: &one.name,
            health: one.health().name(),
            breaker: one.breaker.state(now).name(),
            wedged: one.wedged.load(Ordering::Relaxed),
            draining: one.draining(),
            requests: load.requests,
            tokens: load.tokens,
            weight: one.weight,
            model: one.model().map(|name| name.to_string()),
            max_model_len: one.max_model_len(),
        }
    });
    list.collect()
}

pub fn render(shared: &Shared) -> Vec<u8> {
    let cluster = shared.cluster.get();
    let config = shared.config.get();
    let shards = shared.drivers.iter().enumerate().map(|(index, driver)| {
        let level = |gauge| shared.metrics.level_of(index, gauge).max(0);
        let within = |gauge, max| Level {
            now: level(gauge) as usize,
            max,
        };
        Shard {
            index,
            driver: driver.get().map_or("starting", |d| d.name()),
            connections: level(Gauge::connections_open()),
            in_flight: level(Gauge::requests_in_flight()),
            pool_idle: level(Gauge::pool_idle()),
            body_memory_bytes: within(Gauge::body_memory_bytes(), config.limits.body_memory_max),
            kv_releases: within(Gauge::releases_pending(), config.limits.releases_max),
        }
    });
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: shared.started.elapsed().as_secs(),
        ready: shared.ready(),
        draining: shared.draining.load(Ordering::Relaxed),
        handshake: &config.handshake,
        scheduling: Scheduling {
            prefill: &config.scheduling.prefill,
            decode: &config.scheduling.decode,
        },
        tokens_per_byte: cluster.estimate.ratio(),
        models: cluster
            .model_names()
            .iter()
            .map(|name| name.to_string())
            .collect(),
        limits: Limits {
            in_flight: Level {
                now: shared.in_flight.load(Ordering::Relaxed),
                max: config.limits.in_flight_max,
            },
            connections: Level {
                now: shared.connections.load(Ordering::Relaxed),
                max: config.limits.connections_max,
            },
            kv_releases: Level {
                now: shared.metrics.level(Gauge::releases_pending()).max(0) as usize,
                max: config.limits.releases_max * shared.shards.len(),
            },
            open_files: Level {
                now: crate::metrics::open_files().unwrap_or(0),
                max: shared.open_files_max as usize,
            },
        },
        shards: shards.collect(),
        instances: list(&cluster),
    };
    sonic_rs::to_vec_pretty(&status).unwrap_or_default()
}
