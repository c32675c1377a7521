//! Beside a decode engine: requests say in a header which prefill instance to use. The data of `sidecar:` and
//! `tls:`, and how they are read.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;
use super::quantity::show_duration;
use super::reader::{At, Row, Section, put, suggest};
use super::write::quoted;
use super::{Config, Role};

/// Present: P comes from a header, D is the first decode instance (or that of the rank).
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    /// Whose habits it has where the three differ.
    pub generation: Generation,
    pub prefill_failure: PinnedFailure,
    /// Further tries of the same P, on 502, 503 and 504.
    pub prefill_retries: u32,
    pub prefill_backoff: Duration,
    /// One of several named prefill instances at random, not the first.
    pub sample_prefill: bool,
    pub prefill_tls: bool,
    pub encode_tls: bool,
    pub encode: Encode,
    /// Tokens per decode request; 0: all in one.
    pub decode_chunk: u32,
    /// SGLang's.
    pub bootstrap_port: u16,
    pub mooncake_port: u16,
    /// Of the offloading connector's peer-to-peer tier.
    pub p2p_port: u16,
    /// Cached prefixes may be pulled with `nixlv2`, too.
    pub p2p_pull: bool,
    pub pod_ip: Option<IpAddr>,
    /// Our own metrics and status, since all paths here are the engine's.
    pub metrics_port: Option<u16>,
    /// Whom headers may name; `None`: anyone.
    pub allow: Option<Allow>,
}

impl Default for Sidecar {
    fn default() -> Self {
        Sidecar {
            generation: Generation::G3,
            prefill_failure: PinnedFailure::RetryThenVerbatim,
            prefill_retries: 0,
            prefill_backoff: Duration::from_millis(200),
            sample_prefill: false,
            prefill_tls: false,
            encode_tls: false,
            encode: Encode::None,
            decode_chunk: 0,
            bootstrap_port: 8998,
            mooncake_port: 8998,
            p2p_port: 7777,
            p2p_pull: false,
            pod_ip: None,
            metrics_port: None,
            allow: None,
        }
    }
}

/// llm-d's sidecar has been three programs: llm-d-routing-sidecar, the scheduler's, the router's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    G1,
    G2,
    G3,
}

const GENERATIONS: [(&str, Generation); 3] = [
    ("g1", Generation::G1),
    ("g2", Generation::G2),
    ("g3", Generation::G3),
];

/// What becomes of a request whose P has failed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinnedFailure {
    /// P's status, and no body. (g1)
    Status,
    /// D computes the prompt itself, unless P called the request itself wrong. (g2)
    DecodeOnly,
    /// The same P again, `prefill_retries` times; then its answer as it is. (g3)
    RetryThenVerbatim,
}

const FAILURES: [(&str, PinnedFailure); 3] = [
    ("decode_only", PinnedFailure::DecodeOnly),
    ("retry_then_verbatim", PinnedFailure::RetryThenVerbatim),
    ("status", PinnedFailure::Status),
];

/// What encoders named in a header are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encode {
    /// The header means nothing.
    None,
    /// They share what they encode by themselves.
    Example,
    /// What they say of it travels on.
    Nixl,
}

const ENCODES: [(&str, Encode); 3] = [
    ("ec-example", Encode::Example),
    ("ec-nixl", Encode::Nixl),
    ("none", Encode::None),
];

/// Whom a header may name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Allow {
    pub targets: Vec<Target>,
    pub pool: Option<Pool>,
}

/// An address, a name or a network; with a port, only that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub hosts: Hosts,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hosts {
    Name(String),
    /// So many leading bits of it count.
    Net(IpAddr, u8),
}

/// The pods of an InferencePool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub namespace: String,
    pub name: String,
    pub group: String,
    /// URL of the Kubernetes API; `None`: that of the cluster we run in.
    pub api_server: Option<String>,
    pub token_file: PathBuf,
    pub ca_file: PathBuf,
}

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
pub const POOL_GROUP: &str = "inference.networking.k8s.io";

impl Default for Pool {
    fn default() -> Self {
        Pool {
            namespace: "default".into(),
            name: String::new(),
            group: POOL_GROUP.into(),
            api_server: None,
            token_file: format!("{SERVICE_ACCOUNT}/token").into(),
            ca_file: format!("{SERVICE_ACCOUNT}/ca.crt").into(),
        }
    }
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tls {
    /// The folder of `tls.crt` and `tls.key`, read again when they change. `None`: a certificate of our own.
    pub cert_path: Option<PathBuf>,
    /// Plain HTTP on the same port is not answered.
    pub strict: bool,
}

/// TLS towards instances.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UpstreamTls {
    /// Roles whose certificates are not looked at.
    pub skip_verify: Vec<Role>,
    /// Authorities instead of the system's (PEM).
    pub ca_file: Option<PathBuf>,
}

macro_rules! named {
    ($type:ty, $table:ident) => {
        impl $type {
            pub fn name(self) -> &'static str {
                let found = $table.iter().find(|(_, one)| *one == self);
                found.map_or("", |(name, _)| name)
            }

            pub fn parse(text: &str) -> Option<Self> {
                let found = $table.iter().find(|(name, _)| *name == text);
                found.map(|(_, one)| *one)
            }

            pub fn names() -> Vec<&'static str> {
                $table.iter().map(|(name, _)| *name).collect()
            }
        }
    };
}

named!(Generation, GENERATIONS);
named!(PinnedFailure, FAILURES);
named!(Encode, ENCODES);

impl PinnedFailure {
    /// What this generation does by default.
    pub fn of(generation: Generation) -> PinnedFailure {
        match generation {
            Generation::G1 => PinnedFailure::Status,
            Generation::G2 => PinnedFailure::DecodeOnly,
            Generation::G3 => PinnedFailure::RetryThenVerbatim,
        }
    }
}

impl Target {
    /// `10.0.0.0/8`, `10.0.0.1`, `10.0.0.1:8000`, `[::1]:8000`, `pod-1`, `pod-1:8000`, `10.0.0.0/8:8000`.
    pub fn parse(text: &str) -> Result<Target, String> {
        let text = text.trim();
        let wrong = || {
            format!("'{text}' is no address, name or network; write 10.0.0.0/8, host or host:port")
        };
        let port = |digits: &str| digits.parse().ok().filter(|port| *port > 0);
        if let Some((net, rest)) = text.split_once('/') {
            let net = net.trim_start_matches('[').trim_end_matches(']');
            let (bits, port) = match rest.split_once(':') {
                Some((bits, digits)) => (bits, Some(port(digits).ok_or_else(wrong)?)),
                None => (rest, None),
            };
            let ip: IpAddr = net.parse().map_err(|_| wrong())?;
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|bits| *bits <= most);
            let hosts = Hosts::Net(ip, bits.ok_or_else(wrong)?);
            return Ok(Target { hosts, port });
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            let hosts = Hosts::Net(ip, bits);
            return Ok(Target { hosts, port: None });
        }
        let (written, port) = match text.contains(':') {
            true => (text.to_owned(), true),
            false => (format!("{text}:1"), false),
        };
        let Ok(Address::Tcp { host, port: number }) = Address::parse(&written) else {
            return Err(wrong());
        };
        let hosts = match host.parse::<IpAddr>() {
            Ok(ip) => Hosts::Net(ip, if ip.is_ipv4() { 32 } else { 128 }),
            Err(_) => Hosts::Name(host.to_ascii_lowercase()),
        };
        let port = port.then_some(number);
        Ok(Target { hosts, port })
    }

    pub fn admits(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match &self.hosts {
            Hosts::Name(name) => name.eq_ignore_ascii_case(host),
            Hosts::Net(net, bits) => host.parse().is_ok_and(|ip| within(ip, *net, *bits)),
        }
    }
}

/// An IPv4 address that is written as an IPv6 one is still what it is.
fn within(ip: IpAddr, net: IpAddr, bits: u8) -> bool {
    match (ip.to_canonical(), net.to_canonical()) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32)));
            (ip.to_bits() ^ net.to_bits()) & mask.unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits));
            (ip.to_bits() ^ net.to_bits()) & mask.unwrap_or(0) == 0
        }
        _ => false,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Name(name) => f.write_str(name)?,
            Hosts::Net(ip, 32) if ip.is_ipv4() => write!(f, "{ip}")?,
            Hosts::Net(ip, 128) if self.port.is_some() => write!(f, "[{ip}]")?,
            Hosts::Net(ip, 128) => write!(f, "{ip}")?,
            Hosts::Net(ip, bits) => write!(f, "{ip}/{bits}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// What a `sidecar:` section says, before the defaults that hang on its generation.
#[derive(Default)]
struct Draft {
    sidecar: Sidecar,
    failure: Option<PinnedFailure>,
    targets: Option<Vec<Target>>,
    pool: Option<Pool>,
}

macro_rules! rows {
    ($($name:literal => $set:expr,)*) => {
        &[$(Row { name: $name, alias_of: "", set: $set },)*]
    };
}

static SIDECAR: Section<Draft> = Section {
    name: "sidecar",
    rows: rows! {
        "generation" => |d, at| put(&mut d.sidecar.generation, word(at, Generation::parse, &Generation::names())),
        "prefill_failure" => |d, at| d.failure = word(at, PinnedFailure::parse, &PinnedFailure::names()),
        "prefill_retries" => |d, at| put(&mut d.sidecar.prefill_retries, at.integer(0..=100)),
        "prefill_backoff" => |d, at| put(&mut d.sidecar.prefill_backoff, at.duration_or_zero()),
        "sample_prefill" => |d, at| put(&mut d.sidecar.sample_prefill, at.boolean()),
        "prefill_tls" => |d, at| put(&mut d.sidecar.prefill_tls, at.boolean()),
        "encode_tls" => |d, at| put(&mut d.sidecar.encode_tls, at.boolean()),
        "encode" => |d, at| put(&mut d.sidecar.encode, word(at, Encode::parse, &Encode::names())),
        "decode_chunk" => |d, at| put(&mut d.sidecar.decode_chunk, at.integer(0..=1_000_000)),
        "bootstrap_port" => |d, at| put(&mut d.sidecar.bootstrap_port, at.integer(1..=65_535)),
        "mooncake_port" => |d, at| put(&mut d.sidecar.mooncake_port, at.integer(1..=65_535)),
        "p2p_port" => |d, at| put(&mut d.sidecar.p2p_port, at.integer(1..=65_535)),
        "p2p_pull" => |d, at| put(&mut d.sidecar.p2p_pull, at.boolean()),
        "pod_ip" => |d, at| if let Some(text) = at.text() {
            match text.parse() {
                Ok(ip) => d.sidecar.pod_ip = Some(ip),
                Err(_) => at.fail(format!("pod_ip '{text}' is no IP address"), ""),
            }
        },
        "metrics_port" => |d, at| d.sidecar.metrics_port = at.integer(1..=65_535),
        "allow" => |d, at| {
            let mut targets = Vec::new();
            at.each("a list of addresses, names and networks", |at| if let Some(text) = at.text() {
                match Target::parse(text) {
                    Ok(target) => targets.push(target),
                    Err(why) => at.fail(why, ""),
                }
            });
            d.targets = Some(targets);
        },
        "inference_pool" => |d, at| {
            let mut pool = Pool::default();
            at.section(&mut pool, &POOL);
            if pool.name.is_empty() {
                at.fail("inference_pool needs a name", "write name: NAME below it");
            }
            d.pool = Some(pool);
        },
    },
};

static POOL: Section<Pool> = Section {
    name: "inference_pool",
    rows: rows! {
        "name" => |p, at| put(&mut p.name, at.text().map(Into::into)),
        "namespace" => |p, at| put(&mut p.namespace, at.text().map(Into::into)),
        "group" => |p, at| put(&mut p.group, at.text().map(Into::into)),
        "api_server" => |p, at| p.api_server = at.text().map(Into::into),
        "token_file" => |p, at| put(&mut p.token_file, at.text().map(Into::into)),
        "ca_file" => |p, at| put(&mut p.ca_file, at.text().map(Into::into)),
    },
};

static TLS: Section<Tls> = Section {
    name: "tls",
    rows: rows! {
        "cert_path" => |t, at| t.cert_path = at.text().map(Into::into),
        "strict" => |t, at| put(&mut t.strict, at.boolean()),
    },
};

static UPSTREAM_TLS: Section<UpstreamTls> = Section {
    name: "upstream_tls",
    rows: rows! {
        "ca_file" => |t, at| t.ca_file = at.text().map(Into::into),
        "skip_verify" => |t, at| {
            let mut roles = Vec::new();
            at.each("a list of roles", |at| if let Some(text) = at.text() {
                match Role::ALL.into_iter().find(|role| role.name() == text) {
                    Some(role) => roles.push(role),
                    None => {
                        let names = Role::ALL.map(Role::name);
                        at.fail(format!("Unknown role '{text}'"), suggest(text, &names));
                    }
                }
            });
            t.skip_verify = roles;
        },
    },
};

pub(super) fn read(config: &mut Config, at: &mut At) {
    let mut draft = Draft::default();
    at.section(&mut draft, &SIDECAR);
    let mut sidecar = draft.sidecar;
    sidecar.prefill_failure = draft
        .failure
        .unwrap_or_else(|| PinnedFailure::of(sidecar.generation));
    if draft.targets.is_some() || draft.pool.is_some() {
        sidecar.allow = Some(Allow {
            targets: draft.targets.unwrap_or_default(),
            pool: draft.pool,
        });
    }
    config.sidecar = Some(sidecar);
}

pub(super) fn read_tls(config: &mut Config, at: &mut At) {
    let mut tls = Tls::default();
    at.section(&mut tls, &TLS);
    config.tls = Some(tls);
}

pub(super) fn read_upstream_tls(config: &mut Config, at: &mut At) {
    at.section(&mut config.upstream_tls, &UPSTREAM_TLS);
}

fn word<T>(at: &mut At, parse: fn(&str) -> Option<T>, names: &[&str]) -> Option<T> {
    let text = at.text()?;
    let found = parse(text);
    if found.is_none() {
        let message = format!("{} must be one of {names:?}, got '{text}'", at.name());
        at.fail(message, suggest(text, names));
    }
    found
}

/// The keys of a `sidecar:` section that mean this; all that hang on the generation are written.
pub(super) fn write_sidecar(sidecar: &Sidecar) -> Vec<(&'static str, String)> {
    // Destructured, so that a new field cannot be forgotten here.
    let Sidecar {
        generation,
        prefill_failure,
        prefill_retries,
        prefill_backoff,
        sample_prefill,
        prefill_tls,
        encode_tls,
        encode,
        decode_chunk,
        bootstrap_port,
        mooncake_port,
        p2p_port,
        p2p_pull,
        pod_ip,
        metrics_port,
        allow,
    } = sidecar;
    let mut lines = vec![
        ("generation", generation.name().to_owned()),
        ("prefill_failure", prefill_failure.name().to_owned()),
    ];
    let usual = Sidecar::default();
    let mut put = |key, value: String, differs: bool| {
        if differs {
            lines.push((key, value));
        }
    };
    let differs = *prefill_retries != usual.prefill_retries;
    put("prefill_retries", prefill_retries.to_string(), differs);
    let differs = *prefill_backoff != usual.prefill_backoff;
    put("prefill_backoff", show_duration(*prefill_backoff), differs);
    put(
        "sample_prefill",
        sample_prefill.to_string(),
        *sample_prefill,
    );
    put("prefill_tls", prefill_tls.to_string(), *prefill_tls);
    put("encode_tls", encode_tls.to_string(), *encode_tls);
    put("encode", encode.name().to_owned(), *encode != usual.encode);
    put("decode_chunk", decode_chunk.to_string(), *decode_chunk > 0);
    for (key, port, usual) in [
        ("bootstrap_port", bootstrap_port, usual.bootstrap_port),
        ("mooncake_port", mooncake_port, usual.mooncake_port),
        ("p2p_port", p2p_port, usual.p2p_port),
    ] {
        put(key, port.to_string(), *port != usual);
    }
    put("p2p_pull", p2p_pull.to_string(), *p2p_pull);
    if let Some(ip) = pod_ip {
        put("pod_ip", quoted(&ip.to_string()), true);
    }
    if let Some(port) = metrics_port {
        put("metrics_port", port.to_string(), true);
    }
    if let Some(Allow { targets, pool }) = allow {
        let listed: Vec<String> = targets.iter().map(|t| quoted(&t.to_string())).collect();
        let differs = pool.is_none() || !targets.is_empty();
        put("allow", format!("[{}]", listed.join(", ")), differs);
        if let Some(pool) = pool {
            put("inference_pool", write_pool(pool), true);
        }
    }
    lines
}

fn write_pool(pool: &Pool) -> String {
    let Pool {
        namespace,
        name,
        group,
        api_server,
        token_file,
        ca_file,
    } = pool;
    let path = |path: &std::path::Path| quoted(&path.display().to_string());
    let mut text = format!(
        "{{namespace: {}, name: {}, group: {}, token_file: {}, ca_file: {}",
        quoted(namespace),
        quoted(name),
        quoted(group),
        path(token_file),
        path(ca_file)
    );
    if let Some(server) = api_server {
        text += &format!(", api_server: {}", quoted(server));
    }
    text + "}"
}

pub(super) fn write_tls(tls: &Tls) -> Vec<(&'static str, String)> {
    let Tls { cert_path, strict } = tls;
    let mut lines = vec![("strict", strict.to_string())];
    if let Some(path) = cert_path {
        lines.push(("cert_path", quoted(&path.display().to_string())));
    }
    lines
}

pub(super) fn write_upstream_tls(tls: &UpstreamTls) -> Vec<(&'static str, String)> {
    let UpstreamTls {
        skip_verify,
        ca_file,
    } = tls;
    let mut lines = Vec::new();
    if !skip_verify.is_empty() {
        let roles: Vec<&str> = skip_verify.iter().map(|role| role.name()).collect();
        lines.push(("skip_verify", format!("[{}]", roles.join(", "))));
    }
    if let Some(path) = ca_file {
        lines.push(("ca_file", quoted(&path.display().to_string())));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_admit_what_they_say_and_no_other_port() {
        for (text, yes, no) in [
            ("10.1.0.0/16", ("10.1.2.3", 1), ("10.2.2.3", 1)),
            ("10.1.0.0/16:80", ("10.1.2.3", 80), ("10.1.2.3", 81)),
            ("10.1.2.3", ("10.1.2.3", 9), ("10.1.2.4", 9)),
            ("10.1.2.3", ("::ffff:10.1.2.3", 9), ("::10.1.2.3", 9)),
            ("10.1.2.3:8000", ("10.1.2.3", 8000), ("10.1.2.3", 22)),
            ("[fd00::1]:8000", ("fd00::1", 8000), ("fd00::2", 8000)),
            ("fd00::/8", ("fd12::9", 1), ("fe80::1", 1)),
            ("pod-1:8000", ("POD-1", 8000), ("pod-10", 8000)),
            ("pod-1", ("pod-1", 1), ("10.0.0.1", 1)),
            ("0.0.0.0/0", ("1.2.3.4", 1), ("::1", 1)),
        ] {
            let target = Target::parse(text).unwrap();
            assert!(target.admits(yes.0, yes.1), "{text} {yes:?}");
            assert!(!target.admits(no.0, no.1), "{text} {no:?}");
            assert_eq!(Target::parse(&target.to_string()), Ok(target), "{text}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/8:0", "a b", "x/8", "1.2.3.4:x"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
