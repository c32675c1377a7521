//! The command line, checked.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    Completions,
    Chat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    Constant,
    Poisson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The best that this host allows.
    Auto,
    /// io_uring with SINGLE_ISSUER and DEFER_TASKRUN.
    UringDefer,
    /// io_uring with default flags.
    Uring,
    Epoll,
}

/// Load generator for OpenAI-compatible servers.
///
/// Closed loop by default: --concurrency connections, each with one request at a time. With --rate the loop is
/// open: requests are due at fixed or random times, and latency counts from the time a request was due, so a
/// server that stalls cannot hide it.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(name = "pdload", version, max_term_width = 100)]
pub struct Args {
    /// Base URL; a path is put in front of /v1/...
    #[arg(long, default_value = "http://127.0.0.1:8868")]
    pub url: String,
    /// Allow a target that is not on this machine.
    #[arg(long)]
    pub allow_remote: bool,
    #[arg(long, value_enum, default_value = "completions")]
    pub endpoint: Endpoint,
    /// Use this path instead of the endpoint's.
    #[arg(long)]
    pub path: Option<String>,
    #[arg(long, default_value = "dummy")]
    pub model: String,
    /// Size of the whole JSON body in bytes, image excluded; the prompt is sized to fit.
    #[arg(long, default_value_t = 1024)]
    pub prompt_bytes: usize,
    /// Number of different prompts, used in turn.
    #[arg(long, default_value_t = 1)]
    pub prompts: usize,
    /// Send this file as the body; "stream" is read from it.
    #[arg(long, conflicts_with_all = ["prompts", "image_bytes", "no_stream"])]
    pub body: Option<PathBuf>,
    #[arg(long, default_value_t = 16)]
    pub max_tokens: u32,
    /// Ask for a stream (the default).
    #[arg(long, overrides_with = "no_stream")]
    pub stream: bool,
    /// Ask for one JSON answer.
    #[arg(long)]
    pub no_stream: bool,
    /// Add an image of this many bytes to a chat request, as a base64 data URL.
    #[arg(long, default_value_t = 0)]
    pub image_bytes: usize,
    /// Extra request header, 'name: value'; repeatable.
    #[arg(long = "header", short = 'H')]
    pub headers: Vec<String>,
    /// Send a unique X-Request-Id with each request and check that it comes back.
    #[arg(long)]
    pub echo_id: bool,
    /// Check that the same prompt gets the same text throughout.
    #[arg(long)]
    pub verify_stable: bool,

    /// Closed loop: connections, each with one request at a time.
    #[arg(long, short = 'c', default_value_t = 64)]
    pub concurrency: usize,
    /// Open loop: requests per second over all threads.
    #[arg(long)]
    pub rate: Option<f64>,
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Arrivals,
    /// Open loop: more requests than this wait in pdload, and their wait counts.
    #[arg(long, default_value_t = 4096)]
    pub max_in_flight: usize,
    /// Stop after this many measured requests.
    #[arg(long, short = 'n')]
    pub requests: Option<u64>,
    /// Stop after this many measured seconds; 10 unless --requests is given.
    #[arg(long, short = 's')]
    pub seconds: Option<f64>,
    /// Seconds of load before the measurement; 1, or 0 with --requests.
    #[arg(long)]
    pub warmup_s: Option<f64>,
    /// How long requests may run on after the window; --timeout-s unless given.
    #[arg(long)]
    pub drain_s: Option<f64>,
    /// A request that takes longer is cut off and counted as an error.
    #[arg(long, default_value_t = 60.0)]
    pub timeout_s: f64,
    #[arg(long, default_value_t = 5.0)]
    pub connect_timeout_s: f64,
    /// Seed of the arrival times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Pin the threads to these CPUs, e.g. 1,3 or 4-7.
    #[arg(long)]
    pub cpus: Option<String>,
    #[arg(long, value_enum, default_value = "auto")]
    pub driver: Driver,

    /// Report the CPU time of this process; repeatable.
    #[arg(long = "pid")]
    pub pids: Vec<i32>,
    /// ... and of its descendants.
    #[arg(long)]
    pub pid_tree: bool,

    /// Show progress even if stderr is no terminal.
    #[arg(long)]
    pub progress: bool,
    /// Write the result as JSON to a file, or to stdout with '-' (then without the table).
    #[arg(long)]
    pub json: Option<String>,
    /// Exit 0 even if requests failed.
    #[arg(long)]
    pub allow_errors: bool,
}

/// What the URL says.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
}

impl Args {
    pub fn warmup(&self) -> f64 {
        self.warmup_s
            .unwrap_or(if self.requests.is_some() { 0.0 } else { 1.0 })
    }

    /// Seconds of the measured window, if they are limited.
    pub fn window(&self) -> Option<f64> {
        self.seconds.or(if self.requests.is_some() {
            None
        } else {
            Some(10.0)
        })
    }

    pub fn drain(&self) -> f64 {
        self.drain_s.unwrap_or(self.timeout_s)
    }

    /// Connections per thread, at least one each.
    pub fn share(&self, total: usize, thread: usize) -> usize {
        (total / self.threads + usize::from(thread < total % self.threads)).max(1)
    }

    /// Refuses what makes no sense, before anything is started.
    pub fn check(&self) -> Result<(), String> {
        let spans = [
            ("--seconds", self.seconds),
            ("--warmup-s", self.warmup_s),
            ("--drain-s", self.drain_s),
            ("--timeout-s", Some(self.timeout_s)),
            ("--connect-timeout-s", Some(self.connect_timeout_s)),
            ("--rate", self.rate),
        ];
        for (name, value) in spans {
            if value.is_some_and(|value| !(0.0..=1e9).contains(&value)) {
                return Err(format!("{name} must be a number between 0 and 1e9"));
            }
        }
        if self.rate == Some(0.0) || self.seconds == Some(0.0) || self.requests == Some(0) {
            return Err("--rate, --seconds and --requests must be above 0".into());
        }
        if self.timeout_s == 0.0 || self.connect_timeout_s == 0.0 {
            return Err("--timeout-s and --connect-timeout-s must be above 0".into());
        }
        if [
            self.threads,
            self.concurrency,
            self.max_in_flight,
            self.prompts,
        ]
        .contains(&0)
        {
            return Err(
                "--threads, --concurrency, --max-in-flight and --prompts must be above 0".into(),
            );
        }
        let connections = if self.rate.is_some() {
            self.max_in_flight
        } else {
            self.concurrency
        };
        if connections < self.threads {
            return Err(format!(
                "{} threads need at least as many connections",
                self.threads
            ));
        }
        if self.image_bytes > 0 && self.endpoint != Endpoint::Chat {
            return Err("--image-bytes needs --endpoint chat".into());
        }
        self.cpu_list()?;
        Ok(())
    }

    /// `--cpus` as numbers.
    pub fn cpu_list(&self) -> Result<Vec<usize>, String> {
        let Some(text) = &self.cpus else {
            return Ok(Vec::new());
        };
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < 1024 => list.extend(first..=last),
                _ => return Err(format!("--cpus: cannot read {part:?}")),
            }
        }
        Ok(list)
    }

    /// Parses and resolves `--url`.
    pub fn target(&self) -> Result<Target, String> {
        let rest = self
            .url
            .strip_prefix("http://")
            .ok_or("--url must start with http://")?;
        let (host, prefix) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if host.is_empty()
            || !host
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'@')
        {
            return Err(format!("--url: bad host {host:?}"));
        }
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let found = authority
            .to_socket_addrs()
            .map_err(|error| format!("--url: cannot resolve {host:?}: {error}"))?
            .collect::<Vec<_>>();
        let address = *found
            .first()
            .ok_or_else(|| format!("--url: no address for {host:?}"))?;
        if !self.allow_remote && !found.iter().all(|address| address.ip().is_loopback()) {
            return Err(format!(
                "{host} is not this machine; say --allow-remote if you mean it"
            ));
        }
        let path = self.path.clone().unwrap_or_else(|| {
            let prefix = prefix.trim_end_matches('/');
            let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
            format!("{prefix}{}", self.endpoint.path())
        });
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("bad path {path:?}"));
        }
        Ok(Target {
            address,
            host: host.to_owned(),
            path,
        })
    }
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::parse_from(std::iter::once("pdload").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn remote_targets_are_refused_unless_allowed() {
        assert!(args("--url http://192.0.2.1:80").target().is_err());
        assert!(
            args("--url http://192.0.2.1:80 --allow-remote")
                .target()
                .is_ok()
        );
        assert!(args("--url http://[::1]:80").target().is_ok());
        assert!(args("--url https://127.0.0.1").target().is_err());
        let target = args("--url http://127.0.0.1/a/v1/ --endpoint chat")
            .target()
            .unwrap();
        assert_eq!(
            (target.path.as_str(), target.address.port()),
            ("/a/v1/chat/completions", 80)
        );
    }

    #[test]
    fn limits_have_defaults() {
        assert_eq!(args("").window(), Some(10.0));
        assert_eq!(args("-n 5").window(), None);
        assert_eq!(args("-n 5 -s 3").window(), Some(3.0));
        assert_eq!((args("-n 5").warmup(), args("").warmup()), (0.0, 1.0));
        assert_eq!(args("--cpus 1,4-6").cpu_list().unwrap(), [1, 4, 5, 6]);
        for bad in [
            "-n 0",
            "--cpus x",
            "--threads 0",
            "--rate -1",
            "--rate NaN",
            "--image-bytes 9",
        ] {
            let line = bad.replacen(' ', "=", 1);
            let line = line.replace("-n=", "-n ");
            assert!(args(&line).check().is_err(), "{bad}");
        }
    }
}
