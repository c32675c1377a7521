//! From flags and environment to a [`Config`].

use std::path::PathBuf;
use std::time::Duration;

use super::super::goflag::{self, Given};
use super::flag::{self, FLAGS, Use};
use crate::config::load::{Env, Overrides};
use crate::config::sidecar::{
    Allow, Encode, Generation, POOL_GROUP, PinnedFailure, Pool, Sidecar, Tls, UpstreamTls,
};
use crate::config::{
    CircuitBreaker, Config, HealthCheck, Limits, LogLevel, Retry, Role, Surface, Timeouts,
};

pub struct Asked {
    pub defaults: Config,
    pub overrides: Overrides,
}

/// Connectors, and the handshakes that they are here.
const CONNECTORS: [(&str, &str, Generation, Generation); 7] = [
    ("nixlv2", "nixl", Generation::G1, Generation::G3),
    ("nixl", "nixl_flat", Generation::G1, Generation::G1),
    ("lmcache", "shared_storage", Generation::G1, Generation::G1),
    (
        "shared-storage",
        "shared_storage",
        Generation::G2,
        Generation::G3,
    ),
    ("sglang", "sglang", Generation::G2, Generation::G3),
    ("mooncake", "mooncake", Generation::G3, Generation::G3),
    ("offloading", "offloading", Generation::G3, Generation::G3),
];

const STAGES: [(&str, Role); 3] = [
    ("prefiller", Role::Prefill),
    ("decoder", Role::Decode),
    ("encoder", Role::Encode),
];

/// Lines about flags that were given and have no effect.
pub fn ignored(given: &Given) -> Vec<String> {
    let find = |name| FLAGS.iter().find(|flag| flag.name == name);
    let given = given.names().filter_map(find);
    let line = |flag: &flag::Flag| match flag.does {
        Use::Ignored(why) => Some(format!("-{} has no effect: {why}", flag.name)),
        _ => None,
    };
    given.filter_map(line).collect()
}

/// What was typed, under the eyes of the generation that it was typed for.
struct Line<'a> {
    given: &'a Given,
    env: Env<'a>,
}

impl Line<'_> {
    fn switch(&self, name: &str) -> Option<bool> {
        self.given.one(name).and_then(goflag::boolean)
    }

    fn on(&self, name: &str) -> bool {
        self.switch(name) == Some(true)
    }

    fn number<N: std::str::FromStr>(&self, names: &[&str], or: N) -> Result<N, String> {
        for name in names {
            if let Some(text) = self.given.one(name) {
                let wrong = || format!("invalid value {text:?} for -{name}: not a number in range");
                return text.trim().parse().map_err(|_| wrong());
            }
        }
        Ok(or)
    }

    fn port(&self, names: &[&str], or: u16) -> Result<u16, String> {
        match self.number(names, or)? {
            0 => Err(format!("-{}: a port is between 1 and 65535", names[0])),
            port => Ok(port),
        }
    }

    /// From the environment; a value that is none counts for nothing, as with the original.
    fn variable<N: std::str::FromStr>(&self, name: &str, or: N) -> N {
        let text = (self.env)(name);
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(or)
    }

    /// The stages of a list flag, and of the older switches.
    fn stages(&self, list: &str, older: &str) -> Result<Vec<Role>, String> {
        let mut roles = Vec::new();
        for name in self.given.all(list).unwrap_or_default() {
            match STAGES.iter().find(|(stage, _)| stage == name) {
                Some((_, role)) => roles.push(*role),
                None if name.is_empty() => {}
                None => {
                    let why = "use prefiller, decoder or encoder";
                    return Err(format!("-{list}: unknown stage {name:?}; {why}"));
                }
            }
        }
        for (stage, role) in STAGES {
            if self.on(&format!("{stage}-{older}")) {
                roles.push(role);
            }
        }
        roles.sort_unstable();
        roles.dedup();
        Ok(roles)
    }
}

/// The error is the sentence to show.
pub fn asked(given: &Given, usual: Generation, env: Env) -> Result<Asked, String> {
    let line = Line { given, env };
    let generation = match given.one(flag::GENERATION) {
        Some(text) => Generation::parse(text)
            .ok_or_else(|| format!("-{}: '{text}' is not g1, g2 or g3", flag::GENERATION))?,
        None => usual,
    };
    for name in given.names() {
        let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
            continue;
        };
        if let Use::Later(why) = flag.does {
            return Err(format!("-{name} is not supported: {why}"));
        }
    }
    let tls_for = line.stages("enable-tls", "use-tls")?;
    let skip_verify = line.stages("tls-insecure-skip-verify", "tls-insecure-skip-verify")?;
    let port = line.port(&["port"], 8000)?;
    let sidecar = sidecar(&line, generation, &tls_for)?;
    let model_port = match generation {
        Generation::G3 => 8200,
        _ => 8001,
    };
    let model_port = line.port(&["model-server-port", "vllm-port"], model_port)?;
    let ranks: u16 = line.number(&["data-parallel-size"], 1)?;
    let most = u16::MAX - port.max(model_port);
    if ranks == 0 || ranks - 1 > most.min(1023) {
        return Err("-data-parallel-size: each rank has a port; there are none left".into());
    }
    let scheme = match tls_for.contains(&Role::Decode) {
        true => "https://",
        false => "",
    };
    let decode = (0..ranks).map(|rank| format!("{scheme}localhost:{}", model_port + rank));
    let idle = line.number(&["max-idle-conns-per-host"], 1024usize)?;
    let defaults = Config {
        surface: Surface::Sidecar,
        port,
        log_level: log_level(given)?,
        sidecar: Some(sidecar),
        tls: tls(&line)?,
        upstream_tls: UpstreamTls {
            skip_verify,
            ca_file: None,
        },
        limits: Limits {
            head_bytes_max: 1 << 20,
            idle_per_instance_max: idle.min(65_536),
            ..Limits::default()
        },
        timeouts: Timeouts {
            keep_alive: Duration::from_secs(300),
            connect: Duration::from_secs(30),
            prefill: Duration::from_secs(3600),
            decode_head: Duration::from_secs(3600),
            between_chunks: Duration::from_secs(3600),
            request: Duration::from_secs(24 * 3600),
            drain: Duration::from_secs(60),
            ..Timeouts::default()
        },
        // One D and one P: there is nobody else to ask.
        retry: Retry {
            enabled: false,
            ..Retry::default()
        },
        circuit_breaker: CircuitBreaker {
            enabled: false,
            ..CircuitBreaker::default()
        },
        health_check: HealthCheck {
            enabled: false,
            ..HealthCheck::default()
        },
        ..Config::default()
    };
    let overrides = Overrides {
        handshake: Some(connector(given, generation)?.into()),
        decode: decode.collect(),
        ..Overrides::default()
    };
    Ok(Asked {
        defaults,
        overrides,
    })
}

fn connector(given: &Given, generation: Generation) -> Result<&'static str, String> {
    let (flag, name) = match (given.one("kv-connector"), given.one("connector")) {
        (Some(name), _) => ("kv-connector", name),
        (None, Some(name)) => ("connector", name),
        (None, None) => ("connector", "nixlv2"),
    };
    let there = |row: &&(&str, &str, Generation, Generation)| (row.2..=row.3).contains(&generation);
    let mut rows = CONNECTORS.iter().filter(there);
    if let Some(row) = rows.clone().find(|row| row.0 == name) {
        return Ok(row.1);
    }
    let names: Vec<&str> = rows.by_ref().map(|row| row.0).collect();
    let which = generation.name();
    let known = names.join(", ");
    Err(format!(
        "-{flag}: unknown connector {name:?}; {which} has {known}"
    ))
}

fn sidecar(line: &Line, generation: Generation, tls_for: &[Role]) -> Result<Sidecar, String> {
    let given = line.given;
    let encode = match given.one("ec-connector").unwrap_or("") {
        "" => Encode::None,
        name => Encode::parse(name).ok_or_else(|| {
            format!("-ec-connector: unknown connector {name:?}; there are ec-example and ec-nixl")
        })?,
    };
    let prefill_failure = match given.one(flag::PREFILL_FAILURE) {
        None => PinnedFailure::of(generation),
        Some(text) => PinnedFailure::parse(text).ok_or_else(|| {
            let names = PinnedFailure::names().join(", ");
            format!("-{}: '{text}' is none of {names}", flag::PREFILL_FAILURE)
        })?,
    };
    let backoff = given.one("prefill-retry-backoff").unwrap_or("200ms");
    let prefill_backoff = goflag::duration(backoff)
        .ok_or_else(|| format!("-prefill-retry-backoff: {backoff:?} is no duration like 200ms"))?;
    let sampling = line.switch("enable-prefiller-sampling").unwrap_or_else(|| {
        let text = (line.env)("ENABLE_PREFILLER_SAMPLING").unwrap_or_default();
        goflag::boolean(&text) == Some(true)
    });
    let mooncake = line.variable("MOONCAKE_BOOTSTRAP_PORT", 8998);
    let p2p = line.variable("P2P_CONNECTOR_PORT", 7777);
    let p2p_pull = line.on("enable-p2p-pull");
    if p2p_pull && connector(given, generation)? != "nixl" {
        return Err("-enable-p2p-pull goes with -kv-connector nixlv2 only".into());
    }
    let metrics: u16 = line.number(&["metrics-port"], 0)?;
    Ok(Sidecar {
        generation,
        prefill_failure,
        prefill_retries: line.number(&["prefill-max-retries"], 0)?,
        prefill_backoff,
        sample_prefill: sampling,
        prefill_tls: tls_for.contains(&Role::Prefill),
        encode_tls: tls_for.contains(&Role::Encode),
        encode,
        decode_chunk: line.number(&["decode-chunk-size"], 0)?,
        bootstrap_port: line.variable("SGLANG_BOOTSTRAP_PORT", 8998),
        mooncake_port: line.port(&["mooncake-bootstrap-port"], mooncake)?,
        p2p_port: line.port(&["p2p-connector-port"], p2p)?,
        p2p_pull,
        pod_ip: (line.env)("POD_IP").and_then(|ip| ip.trim().parse().ok()),
        metrics_port: Some(metrics).filter(|port| *port > 0),
        allow: allow(line, generation)?,
    })
}

fn allow(line: &Line, generation: Generation) -> Result<Option<Allow>, String> {
    if !line.on("enable-ssrf-protection") {
        return Ok(None);
    }
    let env = |name: &str| (line.env)(name).filter(|text| !text.is_empty());
    let either = |flag: &str, variable: &str| {
        let given = line.given.one(flag).map(str::to_owned);
        given
            .filter(|text| !text.is_empty())
            .or_else(|| env(variable))
    };
    let mut pool = Pool::default();
    match either("inference-pool", "INFERENCE_POOL") {
        Some(text) if generation > Generation::G1 => match text.split_once('/') {
            Some((namespace, name)) => {
                pool.namespace = namespace.to_owned();
                pool.name = name.to_owned();
            }
            None => pool.name = text,
        },
        _ => {
            let namespace = either("inference-pool-namespace", "INFERENCE_POOL_NAMESPACE");
            pool.namespace = namespace.unwrap_or_default();
            pool.name = either("inference-pool-name", "INFERENCE_POOL_NAME").unwrap_or_default();
        }
    }
    if pool.name.is_empty() || pool.namespace.is_empty() {
        return Err(
            "-enable-ssrf-protection needs an InferencePool: give -inference-pool NAMESPACE/NAME \
             (g1: -inference-pool-namespace and -inference-pool-name)"
                .into(),
        );
    }
    let group = line.given.one("pool-group").unwrap_or(POOL_GROUP);
    pool.group = group.to_owned();
    if generation == Generation::G1 {
        // It knew no other.
        pool.group = "inference.networking.x-k8s.io".into();
    }
    Ok(Some(Allow {
        targets: Vec::new(),
        pool: Some(pool),
    }))
}

/// Both, unless it was said: then it is meant.
fn tls(line: &Line) -> Result<Option<Tls>, String> {
    let said = line.switch("secure-serving");
    let said = said.or_else(|| line.switch("secure-proxy"));
    if said == Some(false) {
        return Ok(None);
    }
    let cert_path = line.given.one("cert-path").filter(|path| !path.is_empty());
    Ok(Some(Tls {
        cert_path: cert_path.map(PathBuf::from),
        strict: said == Some(true),
    }))
}

fn log_level(given: &Given) -> Result<LogLevel, String> {
    if let Some(text) = given.one("v") {
        let wrong = || format!("invalid value {text:?} for -v: not a number");
        let level: i32 = text.parse().map_err(|_| wrong())?;
        return Ok(match level {
            4.. => LogLevel::Debug,
            _ => LogLevel::Info,
        });
    }
    match given.one("zap-log-level") {
        None => Ok(LogLevel::Info),
        Some("error" | "panic") => Ok(LogLevel::Error),
        Some("info") => Ok(LogLevel::Info),
        Some("debug") => Ok(LogLevel::Debug),
        Some(text) => match text.parse::<u32>() {
            Ok(0..4) => Ok(LogLevel::Info),
            Ok(_) => Ok(LogLevel::Debug),
            Err(_) => Err(format!(
                "-zap-log-level: {text:?} is not error, info, debug or a number"
            )),
        },
    }
}
