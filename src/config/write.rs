//! A [`Config`] as the YAML that means it: what is not the default, with notes above the keys they are
//! about. Reading it gives the same `Config` again.

use std::fmt::Write as _;
use std::time::Duration;

use super::epd::Consumer;
use super::lmcache::{Chat, Lmcache, Variant};
use super::quantity::show_duration;
use super::sidecar;
use super::{Config, Cores, FirstTokenSource, InstanceConfig, PrefillFailure, Role, Surface};

/// Something to know about a key, or (key empty) about the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub key: &'static str,
    pub text: String,
}

impl Note {
    pub fn on(key: &'static str, text: impl Into<String>) -> Note {
        Note {
            key,
            text: text.into(),
        }
    }
}

/// Keys (passwords) are left out: they are never printed.
pub fn yaml(config: &Config, notes: &[Note]) -> String {
    let mut page = Page {
        text: String::new(),
        notes,
    };
    page.comments("");
    // Destructured, so that a new field cannot be forgotten here.
    let Config {
        file: _,
        model,
        host,
        port,
        log_level,
        handshake,
        surface,
        epd,
        first_token_source,
        instances,
        models,
        multiturn,
        startup,
        scheduling,
        limits,
        timeouts,
        retry,
        prefill_failure,
        health_check,
        circuit_breaker,
        cores,
        lmcache,
        forward,
        sidecar,
        tls,
        upstream_tls,
        openai_api_key: _,
        admin_api_key: _,
    } = config;
    let usual = Config::default();
    page.key("surface", surface.name(), *surface != Surface::Native);
    // In the form with models, a single one's name is that of its instances.
    let named = instances.iter().any(|i| !i.model.is_empty());
    page.key("model", &quoted(model), !model.is_empty() && !named);
    page.key("host", &quoted(host), *host != usual.host);
    page.key("port", &port.to_string(), *port != usual.port);
    page.key("log_level", log_level.name(), *log_level != usual.log_level);

    page.key("handshake", handshake, true);
    let first = match first_token_source {
        FirstTokenSource::Decode => "decode",
        FirstTokenSource::Prefill => "prefill",
    };
    page.key(
        "first_token_source",
        first,
        *first_token_source != usual.first_token_source,
    );
    let mut lines = Lines::new();
    let (s, u) = (epd, &usual.epd);
    lines.put("version", s.version.name().into(), s.version != u.version);
    let then = s.then.as_deref().unwrap_or_default();
    lines.put("then", then.into(), s.then.is_some());
    lines.number("rewrite", s.rewrite, u.rewrite);
    lines.number(
        "encoder_batch_max",
        s.encoder_batch_max,
        u.encoder_batch_max,
    );
    lines.number("media_max", s.media_max, u.media_max);
    lines.number(
        "dynamic_registration",
        s.dynamic_registration,
        u.dynamic_registration,
    );
    lines.wait(
        "evicted_ttl",
        s.evicted_ttl.unwrap_or_default(),
        u.evicted_ttl.unwrap_or_default(),
    );
    page.section("epd", lines);

    page.instances(instances, named || models.strict, &models.schedulers);

    let mut lines = Lines::new();
    let (s, u) = (scheduling, &usual.scheduling);
    lines.put("prefill", quoted(&s.prefill), s.prefill != u.prefill);
    lines.put("decode", quoted(&s.decode), s.decode != u.decode);
    lines.wait(
        "load_view_max_age",
        s.load_view_max_age,
        u.load_view_max_age,
    );
    lines.number("virtual_nodes", s.virtual_nodes, u.virtual_nodes);
    lines.number("prefix_length", s.prefix_length, u.prefix_length);
    page.section("scheduling", lines);

    let mut lines = Lines::new();
    let (s, u) = (multiturn, &usual.multiturn);
    lines.wait("ttl", s.ttl, u.ttl);
    lines.number("entries_max", s.entries_max, u.entries_max);
    lines.number("bytes_max", s.bytes_max, u.bytes_max);
    lines.number("expose_kv_params", s.expose_kv_params, u.expose_kv_params);
    let host = s.remote_host.name();
    lines.number("remote_host", host, u.remote_host.name());
    if let Some(redis) = &s.redis {
        // With a password it is a comment, to be completed: that is not printed.
        let hidden = if redis.password.is_some() { "# " } else { "" };
        lines.put(&format!("{hidden}redis"), quoted(&redis.to_string()), true);
    }
    lines.wait("redis_timeout", s.redis_timeout, u.redis_timeout);
    page.section("multiturn", lines);

    let mut lines = Lines::new();
    let (s, u) = (startup, &usual.startup);
    let none = Duration::ZERO;
    lines.wait(
        "wait_timeout",
        s.wait_timeout.unwrap_or(none),
        u.wait_timeout.unwrap_or(none),
    );
    lines.wait("probe_interval", s.probe_interval, u.probe_interval);
    lines.wait(
        "heartbeat_interval",
        s.heartbeat_interval.unwrap_or(none),
        u.heartbeat_interval.unwrap_or(none),
    );
    page.section("startup", lines);

    let mut lines = Lines::new();
    let (s, u) = (limits, &usual.limits);
    lines.number("head_bytes_max", s.head_bytes_max, u.head_bytes_max);
    lines.number("body_bytes_max", s.body_bytes_max, u.body_bytes_max);
    lines.number("answer_bytes_max", s.answer_bytes_max, u.answer_bytes_max);
    lines.number("body_memory_max", s.body_memory_max, u.body_memory_max);
    lines.number("json_depth_max", s.json_depth_max, u.json_depth_max);
    lines.number("in_flight_max", s.in_flight_max, u.in_flight_max);
    lines.number("connections_max", s.connections_max, u.connections_max);
    lines.number("releases_max", s.releases_max, u.releases_max);
    lines.number(
        "idle_per_instance_max",
        s.idle_per_instance_max,
        u.idle_per_instance_max,
    );
    page.section("limits", lines);

    let mut lines = Lines::new();
    let (s, u) = (timeouts, &usual.timeouts);
    lines.wait("head", s.head, u.head);
    lines.wait("body", s.body, u.body);
    lines.wait("keep_alive", s.keep_alive, u.keep_alive);
    lines.wait("connect", s.connect, u.connect);
    lines.wait("prefill", s.prefill, u.prefill);
    lines.wait("decode_head", s.decode_head, u.decode_head);
    lines.wait("between_chunks", s.between_chunks, u.between_chunks);
    lines.wait("client_write", s.client_write, u.client_write);
    lines.wait("request", s.request, u.request);
    lines.wait("pool_idle", s.pool_idle, u.pool_idle);
    lines.wait("release", s.release, u.release);
    lines.wait("drain", s.drain, u.drain);
    page.section("timeouts", lines);

    let mut lines = Lines::new();
    let (s, u) = (retry, &usual.retry);
    lines.number("enabled", s.enabled, u.enabled);
    lines.number("max_retries", s.max_retries, u.max_retries);
    lines.wait("initial_backoff", s.initial_backoff, u.initial_backoff);
    lines.wait("max_backoff", s.max_backoff, u.max_backoff);
    lines.number(
        "backoff_multiplier",
        s.backoff_multiplier,
        u.backoff_multiplier,
    );
    lines.number("jitter_factor", s.jitter_factor, u.jitter_factor);
    let (codes, usual_codes) = (&s.retryable_status_codes, &u.retryable_status_codes);
    lines.put(
        "retryable_status_codes",
        format!("{codes:?}"),
        codes != usual_codes,
    );
    page.section("retry", lines);
    let failure = match prefill_failure {
        PrefillFailure::Error => "error",
        PrefillFailure::DecodeOnly => "decode_only",
    };
    page.key(
        "prefill_failure",
        failure,
        *prefill_failure != usual.prefill_failure,
    );

    let mut lines = Lines::new();
    let (s, u) = (health_check, &usual.health_check);
    lines.number("enabled", s.enabled, u.enabled);
    lines.wait("interval", s.interval, u.interval);
    lines.wait("timeout", s.timeout, u.timeout);
    lines.number(
        "failure_threshold",
        s.failure_threshold,
        u.failure_threshold,
    );
    lines.wait("wedge_after", s.wedge_after, u.wedge_after);
    lines.put("path", quoted(&s.path), s.path != u.path);
    page.section("health_check", lines);

    let mut lines = Lines::new();
    let (s, u) = (circuit_breaker, &usual.circuit_breaker);
    lines.number("enabled", s.enabled, u.enabled);
    lines.number(
        "failure_threshold",
        s.failure_threshold,
        u.failure_threshold,
    );
    lines.number(
        "success_threshold",
        s.success_threshold,
        u.success_threshold,
    );
    lines.wait("ejection_initial", s.ejection_initial, u.ejection_initial);
    lines.wait("ejection_max", s.ejection_max, u.ejection_max);
    lines.wait("window", s.window, u.window);
    page.section("circuit_breaker", lines);

    page.section("lmcache", lmcache_lines(lmcache));

    let Cores {
        shards,
        cpus,
        numa,
        steer_by_cpu,
        batch_window,
        busy_poll,
    } = cores;
    page.key(
        "shards",
        &shards.unwrap_or_default().to_string(),
        shards.is_some(),
    );
    let listed = format!("{:?}", cpus.as_deref().unwrap_or_default());
    page.key("cpus", &listed, cpus.is_some());
    page.key(
        "numa",
        &numa.unwrap_or_default().to_string(),
        numa.is_some(),
    );
    page.key("steer_by_cpu", &steer_by_cpu.to_string(), *steer_by_cpu);
    for (key, time) in [("batch_window", batch_window), ("busy_poll", busy_poll)] {
        page.key(key, &show_duration(*time), !time.is_zero());
    }
    let paths: Vec<String> = forward.iter().map(|path| quoted(path)).collect();
    page.key(
        "forward",
        &format!("[{}]", paths.join(", ")),
        !forward.is_empty(),
    );
    if let Some(sidecar) = sidecar {
        page.section("sidecar", Lines::of(sidecar::write_sidecar(sidecar)));
    }
    if let Some(tls) = tls {
        page.section("tls", Lines::of(sidecar::write_tls(tls)));
    }
    let lines = sidecar::write_upstream_tls(upstream_tls);
    page.section("upstream_tls", Lines::of(lines));
    for (key, variable, secret) in [
        ("openai_api_key", "OPENAI_API_KEY", &config.openai_api_key),
        ("admin_api_key", "ADMIN_API_KEY", &config.admin_api_key),
    ] {
        if secret.is_some() {
            page.comment(&format!(
                "{key}: is not printed. Copy it here, or set {variable}."
            ));
            page.text += &format!("# {key}: ...\n");
        }
    }
    page.text
}

fn lmcache_lines(section: &Lmcache) -> Lines {
    let mut lines = Lines::new();
    let (s, u) = (section, &Lmcache::default());
    let variant = match s.variant {
        Variant::Notified => "notified",
        Variant::FirstToken => "first_token",
        Variant::Plain => "plain",
    };
    lines.put("variant", variant.into(), s.variant != u.variant);
    lines.put("host", quoted(&s.host), s.host != u.host);
    lines.number("port", s.port, u.port);
    lines.wait("notice_timeout", s.notice_timeout, u.notice_timeout);
    lines.put("on_timeout", "error".into(), s.on_timeout != u.on_timeout);
    lines.number("short_prompt", s.short_prompt, u.short_prompt);
    lines.put(
        "first_token",
        "decode".into(),
        s.first_token != u.first_token,
    );
    let chat = match s.chat {
        Chat::Auto => "auto",
        Chat::Native => "native",
        Chat::Render => "render",
        Chat::Completions => "completions",
    };
    lines.put("chat", chat.into(), s.chat != u.chat);
    lines.number("handoff_id", s.handoff_id, u.handoff_id);
    let name = s.bound_by.as_deref().unwrap_or_default();
    lines.put("bound_by", quoted(name), s.bound_by != u.bound_by);
    if !s.receivers.is_empty() {
        lines.put("receivers", String::new(), true);
    }
    for (address, receiver) in &s.receivers {
        let mut item = format!(
            "host: {}, init_ports: {:?}, alloc_ports: {:?}",
            quoted(&receiver.host),
            receiver.init_ports,
            receiver.alloc_ports
        );
        if !receiver.query_ports.is_empty() {
            item += &format!(", query_ports: {:?}", receiver.query_ports);
        }
        lines.put(
            &format!("  {}", quoted(&address.to_string())),
            format!("{{{item}}}"),
            true,
        );
    }
    lines
}

struct Page<'a> {
    text: String,
    notes: &'a [Note],
}

impl Page<'_> {
    /// On lines of its own, broken at 100 columns.
    fn comment(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.len() + 1 + word.len() > 100 {
                _ = writeln!(self.text, "{line}");
                line = "#".into();
            }
            line += " ";
            line += word;
        }
        _ = writeln!(self.text, "{line}");
    }

    fn comments(&mut self, key: &str) {
        for note in self.notes.iter().filter(|note| note.key == key) {
            self.comment(&note.text);
        }
    }

    /// Above no key: so it says itself which one it is about.
    fn comments_alone(&mut self, key: &str) {
        for note in self.notes.iter().filter(|note| note.key == key) {
            self.comment(&format!("{key}: {}", note.text));
        }
    }

    /// A note stands even where its key has the usual value.
    fn key(&mut self, key: &str, value: &str, differs: bool) {
        if differs {
            self.comments(key);
            _ = writeln!(self.text, "{key}: {value}");
        } else {
            self.comments_alone(key);
        }
    }

    fn section(&mut self, key: &str, lines: Lines) {
        if lines.0.is_empty() {
            self.comments_alone(key);
        } else {
            self.comments(key);
            _ = write!(self.text, "{key}:\n{}", lines.0);
        }
    }

    fn instances(
        &mut self,
        instances: &[InstanceConfig],
        of_models: bool,
        schedulers: &std::collections::BTreeMap<String, String>,
    ) {
        if !schedulers.is_empty() {
            return self.models(instances, schedulers);
        }
        if of_models {
            self.comments("instances");
            self.text += "instances:\n";
            for InstanceConfig {
                address,
                role,
                model,
                weight,
                consumer,
                side_port,
            } in instances
            {
                let address = quoted(&address.to_string());
                let mut item = format!("address: {address}, role: {}", role.name());
                if !model.is_empty() {
                    item += &format!(", model: {}", quoted(model));
                }
                if *weight != 1.0 {
                    item += &format!(", weight: {weight}");
                }
                item += &as_consumer(consumer);
                item += &as_side_port(*side_port);
                _ = writeln!(self.text, "  - {{{item}}}");
            }
            return;
        }
        for role in Role::ALL {
            let mut of_role = instances.iter().filter(|i| i.role == role).peekable();
            match of_role.peek() {
                None => self.comments_alone(role.name()),
                Some(_) => {
                    self.comments(role.name());
                    _ = writeln!(self.text, "{}:", role.name());
                }
            }
            for instance in of_role {
                _ = writeln!(self.text, "  - {}", item(instance));
            }
        }
    }

    /// Only this form can give a model a policy of its own.
    fn models(
        &mut self,
        instances: &[InstanceConfig],
        schedulers: &std::collections::BTreeMap<String, String>,
    ) {
        self.comments("instances");
        self.text += "models:\n";
        let mut names: Vec<&str> = Vec::new();
        for instance in instances {
            if !names.contains(&instance.model.as_str()) {
                names.push(&instance.model);
            }
        }
        for name in names {
            _ = writeln!(self.text, "  - name: {}", quoted(name));
            for role in Role::ALL {
                let of_role = instances
                    .iter()
                    .filter(|i| i.role == role && i.model == name);
                let items: Vec<String> = of_role.map(item).collect();
                if !items.is_empty() {
                    _ = writeln!(self.text, "    {}: [{}]", role.name(), items.join(", "));
                }
            }
            if let Some(policy) = schedulers.get(name) {
                _ = writeln!(self.text, "    scheduler: {policy}");
            }
        }
    }
}

/// An item of a role's list.
fn item(instance: &InstanceConfig) -> String {
    let address = quoted(&instance.address.to_string());
    let mut more = String::new();
    if instance.weight != 1.0 {
        more = format!(", weight: {}", instance.weight);
    }
    more += &as_consumer(&instance.consumer);
    more += &as_side_port(instance.side_port);
    match more.is_empty() {
        true => address,
        false => format!("{{address: {address}{more}}}"),
    }
}

fn as_side_port(port: Option<u16>) -> String {
    port.map_or_else(String::new, |port| format!(", side_port: {port}"))
}

/// Members of an instance behind its address.
fn as_consumer(consumer: &Consumer) -> String {
    let mut more = String::new();
    if consumer.dp_size != 1 {
        more += &format!(", dp_size: {}", consumer.dp_size);
    }
    if !consumer.addresses.is_empty() {
        let addresses: Vec<String> = consumer.addresses.iter().map(|a| quoted(a)).collect();
        more += &format!(", ec_addresses: [{}]", addresses.join(", "));
    }
    more
}

/// The keys of one section that differ from the default.
struct Lines(String);

impl Lines {
    fn new() -> Lines {
        Lines(String::new())
    }

    fn of(all: Vec<(&str, String)>) -> Lines {
        let mut lines = Lines::new();
        for (key, value) in all {
            lines.put(key, value, true);
        }
        lines
    }

    fn put(&mut self, key: &str, value: String, differs: bool) {
        if differs {
            let line = format!("  {key}: {value}");
            _ = writeln!(self.0, "{}", line.trim_end());
        }
    }

    fn number<T: PartialEq + std::fmt::Display>(&mut self, key: &str, value: T, usual: T) {
        self.put(key, value.to_string(), value != usual);
    }

    fn wait(&mut self, key: &str, value: Duration, usual: Duration) {
        // To the microsecond: the finest that can be written with a unit.
        let whole = value.subsec_nanos().is_multiple_of(1_000_000);
        let text = match whole {
            true => show_duration(value),
            false => format!("{}", value.as_secs_f64()),
        };
        self.put(key, text, value != usual);
    }
}

/// In double quotes: safe whatever it holds.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            c if c.is_control() => _ = write!(out, "\\U{:08X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}
