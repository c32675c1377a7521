//! File, command line and environment -> one checked [`Config`], or every problem at once.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::{At, Place, Report, put};
use super::schema::{self, Draft};
use super::yaml::{self, Value};
use super::{
    Address, Config, FirstTokenSource, InstanceConfig, LogLevel, Role, Secret, Surface, check,
};

/// The names that upper floors answer to; this floor cannot ask them.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub handshakes: &'a [&'a str],
    pub policies: &'a [&'a str],
}

/// One mistake (or, among warnings, one oddity), where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, `command line`, or `environment`; empty if none of them is to blame.
    pub file: String,
    /// From 1; 0: no line to name.
    pub line: usize,
    /// `prefill.nodes[2]`; empty: the whole.
    pub path: String,
    pub message: String,
    /// Empty: the message says it all.
    pub fix: String,
}

impl Problem {
    pub(super) fn at(place: Place, message: impl Into<String>, fix: impl Into<String>) -> Self {
        let Place { file, line, path } = place;
        Problem {
            file,
            line,
            path,
            message: message.into(),
            fix: fix.into(),
        }
    }

    fn plain(file: &str, line: usize, message: String) -> Self {
        let place = Place {
            file: file.into(),
            line,
            path: String::new(),
        };
        Problem::at(place, message, "")
    }
}

/// `FILE:LINE: PATH: MESSAGE (FIX)`, without the parts that are empty. Always one line: what it quotes
/// from the file is escaped.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        match (self.file.as_str(), self.line) {
            ("", _) => {}
            (file, 0) => text += &format!("{file}: "),
            (file, line) => text += &format!("{file}:{line}: "),
        }
        if !self.path.is_empty() {
            text += &format!("{}: ", self.path);
        }
        text += &self.message;
        if !self.fix.is_empty() {
            text += &format!(" ({})", self.fix);
        }
        for c in text.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?
            } else {
                f.write_char(c)?
            }
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One problem per line, no newline at the end.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A good configuration, and what is odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// Keys without effect and the like: to be shown, not to be refused.
    pub warnings: Vec<Problem>,
}

/// What the command line says; it wins over the file. A list replaces the whole role's list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    pub model: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub log_level: Option<LogLevel>,
    pub handshake: Option<String>,
    /// A mode of the old proxy: its handshake, for models with prefill and decode.
    pub mode: Option<&'static str>,
    /// The policy of all stages.
    pub scheduling: Option<String>,
    pub first_token_source: Option<FirstTokenSource>,
    pub prefill: Vec<String>,
    pub decode: Vec<String>,
    pub aggregated: Vec<String>,
    pub shards: Option<usize>,
    pub cpus: Option<Vec<usize>>,
    pub numa: Option<usize>,
    pub batch_window: Option<Duration>,
    pub busy_poll: Option<Duration>,
}

/// Looks up an environment variable: [`std_env`], or a test's own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment.
pub fn std_env(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// A file alone: no command line, no environment, warnings dropped.
pub fn from_file(path: impl AsRef<Path>, known: &Known) -> Result<Config, Problems> {
    let path = path.as_ref();
    let text = read(path)?;
    let source = Source {
        text: &text,
        label: &path.display().to_string(),
        file: Some(path),
    };
    load(Some(source), &Overrides::default(), known, &|_| None).map(|loaded| loaded.config)
}

/// A text alone; `label` stands where messages name the file.
pub fn from_str(text: &str, label: &str, known: &Known) -> Result<Config, Problems> {
    let source = Source {
        text,
        label,
        file: None,
    };
    load(Some(source), &Overrides::default(), known, &|_| None).map(|loaded| loaded.config)
}

/// The file's text, or why not.
pub fn read(path: &Path) -> Result<String, Problems> {
    let label = path.display();
    let one = |message| Problems(vec![Problem::plain("", 0, message)]);
    let bytes = std::fs::read(path).map_err(|error| {
        one(match error.kind() {
            std::io::ErrorKind::NotFound => format!("Config file not found: {label}"),
            _ => format!("Config file cannot be read: {label}: {error}"),
        })
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        let message = format!("Malformed YAML in {label}: not UTF-8");
        Problems(vec![Problem::plain(&label.to_string(), line, message)])
    })
}

/// A configuration file's content.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub text: &'a str,
    /// How messages name it.
    pub label: &'a str,
    pub file: Option<&'a Path>,
}

const COMMAND_LINE: &str = "command line";

/// Everything together: file, then command line, then environment, then the checks.
pub fn load(
    source: Option<Source>,
    overrides: &Overrides,
    known: &Known,
    env: Env,
) -> Result<Loaded, Problems> {
    load_over(Config::default(), source, overrides, known, env)
}

/// The same over other defaults than ours: those of a program that pdrelay stands in for.
pub fn load_over(
    defaults: Config,
    source: Option<Source>,
    overrides: &Overrides,
    known: &Known,
    env: Env,
) -> Result<Loaded, Problems> {
    let urls = defaults.surface != Surface::Xpyd;
    let mut draft = Draft::over(defaults);
    let mut report;
    if let Some(Source { text, label, file }) = source {
        let node = yaml::parse(text).map_err(|malformed| {
            let message = format!("Malformed YAML in {label}: {}", malformed.message);
            Problems(vec![Problem::plain(label, malformed.line, message)])
        })?;
        let Value::Map(_) = node.value else {
            let got = node.value.type_name();
            let message = format!("YAML config must be a mapping, got {got}");
            return Err(Problems(vec![Problem::plain(label, node.line, message)]));
        };
        report = Report::new(label, node.line);
        report.urls = urls;
        draft.config.file = file.map(PathBuf::from);
        At::root(&node, &mut report).section(&mut draft, &schema::TOP);
        schema::settle(&mut draft, &mut report);
    } else {
        report = Report::new(COMMAND_LINE, 0);
        report.urls = urls;
    }
    apply(overrides, &mut draft, &mut report);
    apply_env(env, &mut draft.config, &mut report);

    let Draft {
        mut config,
        mut instances,
        handshake,
        mode,
        zmq,
        ..
    } = draft;
    if mode == Some("lmcache") {
        schema::apply_zmq(zmq, &mut config, &mut report);
    } else if zmq.is_some() {
        let message = "zmq has no effect without disaggregated_mode: zmq";
        report.warning("zmq", message, "remove it");
    }
    // encode, prefill, decode, aggregated; in written order within a role.
    instances.sort_by_key(|(instance, _)| instance.role);
    let places: Vec<String>;
    (config.instances, places) = instances.into_iter().unzip();
    let only_aggregated =
        !config.instances.is_empty() && config.instances.iter().all(|i| i.role == Role::Aggregated);
    config.handshake = match (handshake, mode) {
        (Some(name), _) => name,
        (None, _) if only_aggregated => "aggregated".into(),
        (None, Some(mode)) => mode.into(),
        (None, None) => config.handshake,
    };
    if config.sidecar.is_some() && !report.is_set("retry.enabled") {
        // One P and one D: there is nobody else to ask, and P has a policy of its own.
        config.retry.enabled = false;
    }
    check::drop_unknown_schedulers(&mut config, known, &mut report);
    check::check(&config, &places, known, &mut report);

    report.problems.sort_by_key(|problem| problem.line);
    report.warnings.sort_by_key(|problem| problem.line);
    if report.problems.is_empty() {
        Ok(Loaded {
            config,
            warnings: report.warnings,
        })
    } else {
        Err(Problems(report.problems))
    }
}

fn apply(overrides: &Overrides, draft: &mut Draft, report: &mut Report) {
    let flag = |report: &mut Report, key: &str, flag: &str| {
        let place = Place {
            file: COMMAND_LINE.into(),
            line: 0,
            path: format!("--{flag}"),
        };
        report.set_place(key, place);
    };
    let config = &mut draft.config;
    put(&mut config.model, overrides.model.clone());
    put(&mut config.log_level, overrides.log_level);
    if let Some(text) = &overrides.host {
        flag(report, "host", "host");
        match schema::parse_host(text) {
            Ok(host) => config.host = host,
            Err(why) => report.problem("host", why, ""),
        }
    }
    if let Some(port) = overrides.port {
        flag(report, "port", "port");
        match port {
            0 => report.problem("port", "port must be between 1 and 65535, got 0", ""),
            _ => config.port = port,
        }
    }
    if let Some(name) = &overrides.handshake {
        flag(report, "handshake", "handshake");
        draft.handshake = Some(name.clone());
    }
    if let Some(mode) = overrides.mode {
        flag(report, "disaggregated_mode", "disaggregated-mode");
        draft.mode = Some(mode);
        draft.handshake = None;
    }
    if let Some(name) = &overrides.scheduling {
        config.scheduling.prefill = name.clone();
        config.scheduling.decode = name.clone();
    }
    put(&mut config.first_token_source, overrides.first_token_source);

    // One way to choose cores replaces another; --shards and --numa go together.
    let Overrides {
        shards, cpus, numa, ..
    } = overrides;
    if cpus.is_some() {
        config.cores.shards = None;
        config.cores.numa = None;
    } else if shards.is_some() || numa.is_some() {
        config.cores.cpus = None;
    }
    if cpus.is_some() {
        flag(report, "cpus", "cpus");
        config.cores.cpus = cpus.clone();
    }
    if numa.is_some() {
        flag(report, "numa", "numa");
        config.cores.numa = *numa;
    }
    // One way to pace the shards replaces the other one.
    if let Some(window) = overrides.batch_window {
        flag(report, "batch_window", "batch-window");
        config.cores.batch_window = window;
        config.cores.busy_poll = Duration::ZERO;
    }
    if let Some(poll) = overrides.busy_poll {
        flag(report, "busy_poll", "busy-poll");
        config.cores.busy_poll = poll;
        if overrides.batch_window.is_none() {
            config.cores.batch_window = Duration::ZERO;
        }
    }
    if let Some(shards) = *shards {
        flag(report, "shards", "shards");
        match shards {
            1..=4096 => config.cores.shards = Some(shards),
            _ => {
                let message = format!("shards must be between 1 and 4096, got {shards}");
                report.problem("shards", message, "");
            }
        }
    }

    let lists = [
        (Role::Prefill, &overrides.prefill),
        (Role::Decode, &overrides.decode),
        (Role::Aggregated, &overrides.aggregated),
    ];
    for (role, addresses) in lists {
        if addresses.is_empty() {
            continue;
        }
        flag(report, role.name(), role.name());
        draft
            .instances
            .retain(|(instance, _)| instance.role != role);
        for (i, text) in addresses.iter().enumerate() {
            let key = format!("--{}[{i}]", role.name());
            flag(report, &key, &format!("{}[{i}]", role.name()));
            let address = match report.urls {
                true => Address::parse_url(text),
                false => Address::parse(text),
            };
            match address {
                Ok(address) => {
                    let instance = InstanceConfig::new(address, role);
                    draft.instances.push((instance, key));
                }
                Err(why) => report.problem(&key, why, ""),
            }
        }
    }
}

/// A key in the environment wins over the file, even an empty one (as in the old proxy).
fn apply_env(env: Env, config: &mut Config, report: &mut Report) {
    let keys = [
        (
            "OPENAI_API_KEY",
            "openai_api_key",
            &mut config.openai_api_key,
        ),
        ("ADMIN_API_KEY", "admin_api_key", &mut config.admin_api_key),
    ];
    for (variable, key, secret) in keys {
        let Some(value) = env(variable) else { continue };
        let value = value.trim();
        let place = Place {
            file: "environment".into(),
            line: 0,
            path: variable.into(),
        };
        if let Some(why) = schema::secret_error(value) {
            report
                .problems
                .push(Problem::at(place, format!("{variable} {why}"), ""));
        } else if value.is_empty() {
            if secret.take().is_some() {
                let message = format!("it is set but empty, so {key} of the file does not count");
                report
                    .warnings
                    .push(Problem::at(place, message, "unset it"));
            }
        } else {
            *secret = Some(Secret(value.into()));
        }
    }
}
