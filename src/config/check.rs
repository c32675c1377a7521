//! Rules between keys, on the finished [`Config`]; and the page that `pdrelay check` prints.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::cores;
use super::epd::Consumer;
use super::load::Known;
use super::quantity::{show_bytes, show_duration};
use super::reader::{Report, suggest};
use super::schema::is_of_models;
use super::{Address, Config, FirstTokenSource, Limits, Role, Surface, Timeouts, lmcache, ports};

/// The old proxy's names of policies that we call otherwise: its users find them in the message, too.
const POLICY_ALIASES: [(&str, &str); 2] = [
    ("loadbalanced", "load_balanced"),
    ("roundrobin", "round_robin"),
];

const EPD: &str = "epd";
const MULTITURN: &str = "multiturn";

/// What encoder disaggregation needs, and what of it makes no sense.
fn check_epd(config: &Config, places: &[String], known: &Known, report: &mut Report) {
    let epd = &config.epd;
    if config.handshake != EPD {
        if report.is_set("epd") {
            let message = "epd has no effect without handshake: epd";
            report.warning("epd", message, "remove it, or write handshake: epd");
        }
        return;
    }
    if epd.dynamic_registration && config.surface != Surface::Epd {
        let message = "dynamic_registration is for the paths of the EPD proxy";
        report.problem("epd.dynamic_registration", message, "write surface: epd");
    }
    if epd.dynamic_registration && config.admin_api_key.is_none() {
        let message = "dynamic_registration needs a key: whoever has it may add instances";
        report.problem(
            "epd.dynamic_registration",
            message,
            "set ADMIN_API_KEY, or admin_api_key",
        );
    }
    let there = |role| count(config, role) > 0;
    let then = match &epd.then {
        Some(name) if name == EPD || !known.handshakes.contains(&name.as_str()) => {
            let mut inner = known.handshakes.to_vec();
            inner.retain(|name| *name != EPD);
            let message = format!(
                "Unknown handshake '{name}'; expected one of {}",
                listed(&inner)
            );
            return report.problem("epd.then", message, suggest(name, &inner));
        }
        Some(name) => name.as_str(),
        None if there(Role::Aggregated) => "aggregated",
        None => "nixl",
    };
    super::epd::check_then(config, places, report);
    let needed = needs(then).unwrap_or_default();
    for role in Role::ALL {
        let (name, needed) = (role.name(), needed.contains(&role) || role == Role::Encode);
        if needed && !there(role) && !epd.dynamic_registration && report.is_sound(name) {
            let message = format!("Please specify at least one {name} node.");
            let fix = format!("handshake epd, then {then}, needs {name}: [host:port]");
            report.problem(name, message, fix);
        } else if !needed && there(role) && needs(then).is_some() {
            let message = format!(
                "mixes aggregated and prefill/decode instances: epd, then {then}, does not use \
                 {name} instances"
            );
            report.problem(name, message, "remove them, or choose another 'then'");
        }
    }
    let consumer = match there(Role::Prefill) {
        true => Role::Prefill,
        false => Role::Aggregated,
    };
    for (instance, place) in config.instances.iter().zip(places) {
        let Consumer { dp_size, addresses } = &instance.consumer;
        if !addresses.is_empty() && addresses.len() != *dp_size as usize {
            let n = addresses.len();
            let message = format!("ec_addresses has {n} addresses for dp_size {dp_size}");
            report.problem(place, message, "write one address per data-parallel rank");
        }
        if !instance.consumer.is_plain() && instance.role != consumer {
            let (role, consumer) = (instance.role.name(), consumer.name());
            let message =
                format!("a {role} instance takes no encodings here: the {consumer} instances do");
            report.problem(place, message, "move dp_size and ec_addresses there");
        }
    }
}

/// A port of prefill instances that others come to.
fn check_side_ports(config: &Config, places: &[String], report: &mut Report) {
    for (instance, place) in config.instances.iter().zip(places) {
        if instance.side_port.is_some() && instance.role != Role::Prefill {
            let role = instance.role.name();
            let message = format!("a {role} instance has no side_port: prefill instances do");
            report.problem(place, message, "move it there, or remove it");
        }
    }
}

/// The roles a handshake needs. `None`: the handshake checks its own needs.
fn needs(handshake: &str) -> Option<&'static [Role]> {
    match handshake {
        "lmcache" | "mooncake" | "multiturn" | "nixl" | "nixl_flat" | "offloading"
        | "sequential" | "sglang" | "shared_storage" => Some(&[Role::Prefill, Role::Decode]),
        "aggregated" => Some(&[Role::Aggregated]),
        _ => None,
    }
}

/// `places[i]` is the key under which the report knows where `config.instances[i]` was written.
pub(super) fn check(config: &Config, places: &[String], known: &Known, report: &mut Report) {
    check_handshake(config, known, report);
    check_policies(config, known, report);
    check_model(config, places, report);
    check_roles(config, places, report);
    check_side_ports(config, places, report);
    check_addresses(config, places, report);
    ports::check(config, places, report);
    cores::check(&config.cores, report);
    check_pairs(config, report);
    check_sidecar(config, report);
    check_epd(config, places, known, report);
    let receivers = match report.is_set("zmq") {
        true => "zmq.receivers",
        false => "lmcache.receivers",
    };
    lmcache::check(config, receivers, report);
}

fn check_handshake(config: &Config, known: &Known, report: &mut Report) {
    let name = config.handshake.as_str();
    // disaggregated_mode already said it, in its own words.
    if !known.handshakes.contains(&name) && report.is_sound("disaggregated_mode") {
        let key = if report.is_set("handshake") {
            "handshake"
        } else {
            "disaggregated_mode"
        };
        let message = format!(
            "Unknown handshake '{name}'; expected one of {}",
            listed(known.handshakes)
        );
        report.problem(key, message, suggest(name, known.handshakes));
    }
}

fn check_policies(config: &Config, known: &Known, report: &mut Report) {
    let scheduling = &config.scheduling;
    let mut stages = vec![
        ("scheduling.prefill", &scheduling.prefill),
        ("scheduling.decode", &scheduling.decode),
    ];
    if !report.is_set("scheduling.prefill") && !report.is_set("scheduling.decode") {
        stages = vec![("scheduling", &scheduling.prefill)];
    }
    for (key, name) in stages {
        if known.policies.contains(&name.as_str()) || !report.is_sound(key) {
            continue;
        }
        let names = policy_names(known);
        let expected = listed(&names);
        let message = format!("Invalid scheduling value '{name}'; expected one of {expected}");
        report.problem(key, message, suggest(name, &names));
    }
}

/// All that can be written as a policy.
fn policy_names<'a>(known: &Known<'a>) -> Vec<&'a str> {
    let mut names = known.policies.to_vec();
    let aliases = POLICY_ALIASES.iter();
    names.extend(
        aliases
            .filter(|(_, ours)| known.policies.contains(ours))
            .map(|(alias, _)| *alias),
    );
    names
}

/// As in the old proxy, a model whose own policy is unknown is served with that of all.
pub(super) fn drop_unknown_schedulers(config: &mut Config, known: &Known, report: &mut Report) {
    config.models.schedulers.retain(|model, policy| {
        let is_known = known.policies.contains(&policy.as_str());
        if !is_known {
            let message = format!(
                "Invalid scheduler '{policy}' of model '{model}'; expected one of {}",
                listed(&policy_names(known))
            );
            report.warning("models", message, "'scheduling' decides for it");
        }
        is_known
    });
}

/// The old proxy wants a name in its single-model form, which its `/v1/models` shows.
fn check_model(config: &Config, places: &[String], report: &mut Report) {
    let single = !places.iter().any(|place| is_of_models(place));
    let needed = config.surface == Surface::Xpyd && single && !config.instances.is_empty();
    if needed && config.model.is_empty() && report.is_sound("model") {
        let message = "Please specify a model name (required in single-model mode).";
        report.problem(
            "model",
            message,
            "write model: NAME, the name that clients use",
        );
    }
}

/// Each model needs either its own prefill and decode instances, or aggregated ones.
fn check_models(config: &Config, report: &mut Report) {
    if !report.is_sound("instances") || !report.is_sound("models") {
        return;
    }
    let key = if report.is_set("models") {
        "models"
    } else {
        "instances"
    };
    let mut names: Vec<&str> = Vec::new();
    for instance in &config.instances {
        if !names.contains(&instance.model.as_str()) {
            names.push(&instance.model);
        }
    }
    for name in names {
        let has = |role: Role| {
            let mut all = config.instances.iter();
            all.any(|instance| instance.role == role && instance.model == name)
        };
        let (prefill, decode) = (has(Role::Prefill), has(Role::Decode));
        if has(Role::Aggregated) && (prefill || decode) {
            let message = format!(
                "Model '{name}' mixes aggregated and prefill/decode instances. A model must use \
                 either all aggregated or prefill+decode instances, not both."
            );
            report.problem(key, message, "remove some of them");
        } else if prefill != decode {
            let message = format!(
                "Model '{name}' requires at least one prefill and one decode instance (or use all \
                 aggregated instances)."
            );
            let missing = if prefill { "decode" } else { "prefill" };
            report.problem(key, message, format!("add a {missing} instance"));
        }
    }
}

/// `['a', 'b']`, sorted: the old proxy's way of listing.
fn listed(names: &[&str]) -> String {
    let mut names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    names.sort();
    format!("[{}]", names.join(", "))
}

fn count(config: &Config, role: Role) -> usize {
    config
        .instances
        .iter()
        .filter(|instance| instance.role == role)
        .count()
}

fn check_roles(config: &Config, places: &[String], report: &mut Report) {
    let handshake = config.handshake.as_str();
    if config.instances.is_empty() && !any_stage_is_set(report) {
        if config.handshake == EPD && config.epd.dynamic_registration {
            return;
        }
        let message = match config.surface {
            Surface::Native
            | Surface::Epd
            | Surface::Lmcache
            | Surface::Multiturn
            | Surface::Sidecar => "no instances are configured",
            Surface::Xpyd => "Please specify at least one decode node.",
        };
        let fix = "list prefill and decode addresses, or aggregated ones";
        report.problem("", message, fix);
        return;
    }
    let needed = match (&config.sidecar, needs(handshake)) {
        (_, None) => return,
        // P comes with the request.
        (Some(_), Some(needed)) if needed.contains(&Role::Prefill) => &[Role::Decode],
        (_, Some(needed)) => needed,
    };
    if places.iter().any(|place| is_of_models(place)) {
        check_models(config, report);
        let only = |role| count(config, role) == config.instances.len();
        // Models with prefill and decode, and beside them aggregated ones, which need no handshake.
        if handshake != "aggregated" && !only(Role::Aggregated) {
            return;
        }
    }
    for role in Role::ALL {
        let (name, count) = (role.name(), count(config, role));
        let is_needed = needed.contains(&role);
        if is_needed && count == 0 {
            // A list with mistakes in it was reported as such.
            let sound = [name, "instances", "models"].map(|key| report.is_sound(key));
            if sound != [true; 3] {
                continue;
            }
            if role == Role::Prefill && config.surface == Surface::Xpyd {
                let message = "there is no prefill instance: every completion is a 503";
                report.warning(name, message, "add one by /instances/add");
            } else {
                let message = format!("Please specify at least one {name} node.");
                let fix = format!("handshake {handshake} needs {name}: [host:port]");
                report.problem(name, message, fix);
            }
        } else if !is_needed && count > 0 {
            let key = if report.is_set(name) {
                name
            } else {
                "instances"
            };
            if role == Role::Encode {
                let message = format!("handshake {handshake} does not use encode instances");
                report.warning(key, message, "remove them");
            } else {
                let message = format!(
                    "mixes aggregated and prefill/decode instances: handshake {handshake} does not use {name} instances"
                );
                report.problem(key, message, "remove them, or choose another handshake");
            }
        }
    }
}

fn any_stage_is_set(report: &Report) -> bool {
    Role::ALL.iter().any(|role| report.is_set(role.name()))
        || report.is_set("instances")
        || report.is_set("models")
}

/// One engine has one role. The same address twice in one role is legal: it counts twice.
fn check_addresses(config: &Config, places: &[String], report: &mut Report) {
    let mut first: HashMap<&Address, Role> = HashMap::new();
    for (instance, place) in config.instances.iter().zip(places) {
        let role = *first.entry(&instance.address).or_insert(instance.role);
        if role != instance.role {
            let message = format!(
                "Instance '{}' is already registered as {}, and cannot be {} too",
                instance.address,
                role.name(),
                instance.role.name()
            );
            report.problem(place, message, "one engine has one role");
        }
    }
}

fn check_sidecar(config: &Config, report: &mut Report) {
    let Some(sidecar) = &config.sidecar else {
        if config.surface == Surface::Sidecar {
            let message = "surface: sidecar has no sidecar section";
            report.problem("surface", message, "write sidecar: {} as well");
        }
        return;
    };
    if config.surface != Surface::Sidecar && report.is_sound("surface") {
        let key = if report.is_set("surface") {
            "surface"
        } else {
            "sidecar"
        };
        let message = "sidecar goes with surface: sidecar, whose paths are the engine's";
        report.problem(key, message, "write surface: sidecar");
    }
    if ![
        "mooncake",
        "nixl",
        "nixl_flat",
        "offloading",
        "sequential",
        "sglang",
        "shared_storage",
    ]
    .contains(&config.handshake.as_str())
    {
        let message = format!(
            "handshake {} takes no prefill instance from a header",
            config.handshake
        );
        report.problem("handshake", message, "use nixl, or remove sidecar");
    }
    if config.first_token_source == FirstTokenSource::Prefill {
        let message = "beside an engine the first token is always decode's";
        report.problem("first_token_source", message, "remove it");
    }
    if config.instances.len() > 1024 {
        let message = "a sidecar has at most 1024 decode instances, one per rank";
        report.problem("decode", message, "list the engine next to it");
    }
    if sidecar.p2p_pull && config.handshake != "nixl" {
        let message = "p2p_pull goes with handshake nixl only";
        report.problem("sidecar.p2p_pull", message, "remove it");
    }
}

fn check_multiturn(config: &Config, report: &mut Report) {
    if !super::epd::runs(config, MULTITURN) {
        if config.multiturn != super::Multiturn::default() {
            let message = format!("it has no effect on the handshake '{}'", config.handshake);
            report.warning(
                "multiturn",
                message,
                "write handshake: multiturn, or epd with then: multiturn",
            );
        }
        return;
    }
    if config.first_token_source == FirstTokenSource::Prefill {
        let message = "the handshake 'multiturn' sends decode's own first token";
        report.problem("first_token_source", message, "remove it");
    }
    if config.multiturn.ttl > ENGINE_TTL {
        let message = format!(
            "{} is longer than engines keep the blocks by default ({})",
            show_duration(config.multiturn.ttl),
            show_duration(ENGINE_TTL)
        );
        let fix = "give the engines a longer decoder_kv_blocks_ttl, or lower it";
        report.warning("multiturn.ttl", message, fix);
    }
}

/// `decoder_kv_blocks_ttl` of vLLM.
const ENGINE_TTL: Duration = Duration::from_secs(480);

fn check_pairs(config: &Config, report: &mut Report) {
    let Limits {
        body_bytes_max,
        body_memory_max,
        ..
    } = config.limits;
    if body_memory_max < body_bytes_max {
        let message = format!(
            "body_memory_max ({}) is below body_bytes_max ({}): such a body could never be held",
            show_bytes(body_memory_max),
            show_bytes(body_bytes_max)
        );
        let keys = ["limits.body_memory_max", "limits.body_bytes_max"];
        let key = keys
            .into_iter()
            .find(|key| report.is_set(key))
            .unwrap_or("limits");
        report.problem(key, message, "raise the first or lower the second");
    }
    check_multiturn(config, report);
    let retry = &config.retry;
    ordered(
        report,
        [
            "retry.initial_backoff",
            "retry.initial_backoff_ms",
            "retry.max_backoff",
        ],
        retry.initial_backoff,
        retry.max_backoff,
    );
    let breaker = &config.circuit_breaker;
    ordered(
        report,
        [
            "circuit_breaker.ejection_initial",
            "",
            "circuit_breaker.ejection_max",
        ],
        breaker.ejection_initial,
        breaker.ejection_max,
    );
    if config.timeouts.pool_idle >= Duration::from_secs(5) {
        let message = "engines on uvicorn close idle connections after 5s";
        report.warning(
            "timeouts.pool_idle",
            message,
            "stay below what your engines keep",
        );
    }
}

fn ordered(report: &mut Report, keys: [&str; 3], low: Duration, high: Duration) {
    let [key, spelled, other] = keys;
    if low > high && report.is_sound(key) && report.is_sound(other) {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let message = format!(
            "{} ({}) is above {} ({})",
            last(key),
            show_duration(low),
            last(other),
            show_duration(high)
        );
        let key = if report.is_set(spelled) { spelled } else { key };
        report.problem(key, message, "");
    }
}

/// The configuration for people: every instance, and every number that is not the default.
pub fn print(config: &Config) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(out, "{name:<16} {value}");
    if let Some(file) = &config.file {
        line("file", &file.display().to_string());
    }
    line(
        "listen",
        &Address::tcp(config.host.clone(), config.port).to_string(),
    );
    line(
        "model",
        if config.model.is_empty() {
            "(any)"
        } else {
            &config.model
        },
    );
    match (&*config.handshake, &config.epd.then) {
        (EPD, Some(then)) => line("handshake", &format!("{EPD}, then {then}")),
        (handshake, _) => line("handshake", handshake),
    }
    if config.handshake == EPD {
        line(
            EPD,
            &differing(&epd(&config.epd), &epd(&Default::default())),
        );
    }
    if lmcache::used(config) && config.lmcache.variant == lmcache::Variant::Notified {
        let (host, port) = (config.lmcache.host.clone(), config.lmcache.port);
        line("notices", &format!("tcp://{}", Address::tcp(host, port)));
    }
    if config.surface != Surface::Native {
        line("surface", config.surface.name());
    }
    if let Some(sidecar) = &config.sidecar {
        let keys = super::sidecar::write_sidecar(sidecar);
        let shown: Vec<String> = keys.iter().map(|(k, v)| format!("{k} {v}")).collect();
        line("sidecar", &shown.join(", "));
    }
    let tls = match &config.tls {
        None => "off",
        Some(tls) if tls.strict => "on",
        Some(_) => "on, and plain HTTP on the same port",
    };
    if config.tls.is_some() {
        line("tls", tls);
    }
    if config.first_token_source == FirstTokenSource::Prefill {
        line("first_token", "prefill");
    }
    let startup = &config.startup;
    let (now, usual) = (startup_shown(startup), startup_shown(&Default::default()));
    if now != usual {
        line("startup", &differing(&now, &usual));
    }
    if super::epd::runs(config, MULTITURN) {
        let (now, usual) = (multiturn(&config.multiturn), multiturn(&Default::default()));
        line("multiturn", &differing(&now, &usual));
    }
    let scheduling = &config.scheduling;
    line(
        "scheduling",
        &format!(
            "prefill {}, decode {}, load view at most {} old",
            scheduling.prefill,
            scheduling.decode,
            show_duration(scheduling.load_view_max_age)
        ),
    );
    for role in Role::ALL {
        let of_role = || {
            config
                .instances
                .iter()
                .filter(|instance| instance.role == role)
        };
        match of_role().count() {
            0 => continue,
            1 => line(role.name(), "1 instance"),
            n => line(role.name(), &format!("{n} instances")),
        }
        for instance in of_role() {
            let mut text = instance.address.to_string();
            if !instance.model.is_empty() {
                text += &format!(" model {}", instance.model);
            }
            if instance.weight != 1.0 {
                text += &format!(" weight {}", instance.weight);
            }
            line("", &text);
        }
    }
    for (model, policy) in &config.models.schedulers {
        line("scheduler", &format!("{policy} for model {model}"));
    }
    line("shards", &cores::shown(&config.cores));
    let default = Config::default();
    line(
        "limits",
        &differing(&limits(&config.limits), &limits(&default.limits)),
    );
    line(
        "timeouts",
        &differing(&timeouts(&config.timeouts), &timeouts(&default.timeouts)),
    );
    line(
        "retry",
        &on(config.retry.enabled, &retry(config), &retry(&default)),
    );
    let (now, usual) = (health_check(config), health_check(&default));
    line(
        "health_check",
        &on(config.health_check.enabled, &now, &usual),
    );
    let (now, usual) = (circuit_breaker(config), circuit_breaker(&default));
    line(
        "circuit_breaker",
        &on(config.circuit_breaker.enabled, &now, &usual),
    );
    if !config.forward.is_empty() {
        line("forward", &config.forward.join(" "));
    }
    line("log_level", config.log_level.name());
    let secret = |set: bool| if set { "(set)" } else { "(not set)" };
    line("openai_api_key", secret(config.openai_api_key.is_some()));
    line("admin_api_key", secret(config.admin_api_key.is_some()));
    out
}

type Shown = Vec<(&'static str, String)>;

fn on(enabled: bool, now: &Shown, usual: &Shown) -> String {
    if enabled {
        format!("on, {}", differing(now, usual))
    } else {
        "off".into()
    }
}

fn differing(now: &Shown, usual: &Shown) -> String {
    let differing: Vec<String> = now
        .iter()
        .zip(usual)
        .filter(|(now, usual)| now != usual)
        .map(|((name, now), (_, usual))| format!("{name} {now} (default {usual})"))
        .collect();
    if differing.is_empty() {
        "defaults".into()
    } else {
        differing.join(", ")
    }
}

// Destructured, so that a new field cannot be forgotten here.

fn limits(limits: &Limits) -> Shown {
    let Limits {
        head_bytes_max,
        body_bytes_max,
        answer_bytes_max,
        body_memory_max,
        json_depth_max,
        in_flight_max,
        connections_max,
        releases_max,
        idle_per_instance_max,
    } = limits;
    vec![
        ("head_bytes_max", show_bytes(*head_bytes_max)),
        ("body_bytes_max", show_bytes(*body_bytes_max)),
        ("answer_bytes_max", show_bytes(*answer_bytes_max)),
        ("body_memory_max", show_bytes(*body_memory_max)),
        ("json_depth_max", json_depth_max.to_string()),
        ("in_flight_max", in_flight_max.to_string()),
        ("connections_max", connections_max.to_string()),
        ("releases_max", releases_max.to_string()),
        ("idle_per_instance_max", idle_per_instance_max.to_string()),
    ]
}

fn epd(epd: &super::epd::Epd) -> Shown {
    let super::epd::Epd {
        version,
        then: _,
        rewrite,
        encoder_batch_max,
        media_max,
        dynamic_registration,
        evicted_ttl,
    } = epd;
    let ttl = evicted_ttl.map_or("none".into(), show_duration);
    vec![
        ("version", version.name().into()),
        ("rewrite", rewrite.to_string()),
        ("encoder_batch_max", encoder_batch_max.to_string()),
        ("media_max", media_max.to_string()),
        ("dynamic_registration", dynamic_registration.to_string()),
        ("evicted_ttl", ttl),
    ]
}

fn multiturn(multiturn: &super::Multiturn) -> Shown {
    let super::Multiturn {
        ttl,
        entries_max,
        bytes_max,
        expose_kv_params,
        remote_host,
        redis,
        redis_timeout,
    } = multiturn;
    let redis = redis.as_ref().map_or("none".into(), ToString::to_string);
    vec![
        ("ttl", show_duration(*ttl)),
        ("entries_max", entries_max.to_string()),
        ("bytes_max", show_bytes(*bytes_max)),
        ("expose_kv_params", expose_kv_params.to_string()),
        ("remote_host", remote_host.name().into()),
        ("redis", redis),
        ("redis_timeout", show_duration(*redis_timeout)),
    ]
}

fn startup_shown(startup: &super::Startup) -> Shown {
    let super::Startup {
        wait_timeout,
        probe_interval,
        heartbeat_interval,
    } = startup;
    let optional = |wait: Option<Duration>| wait.map_or("none".into(), show_duration);
    vec![
        ("wait_timeout", optional(*wait_timeout)),
        ("probe_interval", show_duration(*probe_interval)),
        ("heartbeat_interval", optional(*heartbeat_interval)),
    ]
}

fn timeouts(timeouts: &Timeouts) -> Shown {
    let Timeouts {
        head,
        body,
        keep_alive,
        connect,
        prefill,
        decode_head,
        between_chunks,
        client_write,
        request,
        pool_idle,
        release,
        drain,
    } = timeouts;
    vec![
        ("head", show_duration(*head)),
        ("body", show_duration(*body)),
        ("keep_alive", show_duration(*keep_alive)),
        ("connect", show_duration(*connect)),
        ("prefill", show_duration(*prefill)),
        ("decode_head", show_duration(*decode_head)),
        ("between_chunks", show_duration(*between_chunks)),
        ("client_write", show_duration(*client_write)),
        ("request", show_duration(*request)),
        ("pool_idle", show_duration(*pool_idle)),
        ("release", show_duration(*release)),
        ("drain", show_duration(*drain)),
    ]
}

fn retry(config: &Config) -> Shown {
    let super::Retry {
        enabled: _,
        max_retries,
        initial_backoff,
        max_backoff,
        backoff_multiplier,
        jitter_factor,
        retryable_status_codes,
    } = &config.retry;
    vec![
        ("max_retries", max_retries.to_string()),
        ("initial_backoff", show_duration(*initial_backoff)),
        ("max_backoff", show_duration(*max_backoff)),
        ("backoff_multiplier", backoff_multiplier.to_string()),
        ("jitter_factor", jitter_factor.to_string()),
        (
            "retryable_status_codes",
            format!("{retryable_status_codes:?}"),
        ),
    ]
}

fn health_check(config: &Config) -> Shown {
    let super::HealthCheck {
        enabled: _,
        interval,
        timeout,
        failure_threshold,
        wedge_after,
        path,
    } = &config.health_check;
    vec![
        ("interval", show_duration(*interval)),
        ("timeout", show_duration(*timeout)),
        ("failure_threshold", failure_threshold.to_string()),
        ("wedge_after", show_duration(*wedge_after)),
        ("path", path.clone()),
    ]
}

fn circuit_breaker(config: &Config) -> Shown {
    let super::CircuitBreaker {
        enabled: _,
        failure_threshold,
        success_threshold,
        ejection_initial,
        ejection_max,
        window,
    } = &config.circuit_breaker;
    vec![
        ("failure_threshold", failure_threshold.to_string()),
        ("success_threshold", success_threshold.to_string()),
        ("ejection_initial", show_duration(*ejection_initial)),
        ("ejection_max", show_duration(*ejection_max)),
        ("window", show_duration(*window)),
    ]
}
