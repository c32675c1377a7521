//! vLLM's `disagg_epd_proxy.py` (`disagg_encoder_proxy.py` in older releases), v1 to v3.
//!
//! * **For:** one command line with the flags of all three, since none contradicts another; `--epd-version`,
//!   which is ours, says whose engines they are.
//! * **Must never:** know a rule about a key of the YAML: the flags become YAML, which is then read as any.
//! * **To extend:** a flag is a row in `PROXY`, and its line in `yaml`; what is different from the original is a
//!   note in `differences.rs`.

mod differences;

use std::fmt::Write as _;

use super::argparse::{Flag, Given, Parser, Takes};
use super::{Call, Migrated, Outcome, Program, Serve};
use crate::config::load::{self, Env, Known, Loaded, Overrides, Problems, Source};
use crate::config::{Config, Surface};

pub static PROGRAM: Program = Program {
    name: "epd",
    argv0: &["disagg_epd_proxy", "disagg_encoder_proxy"],
    run,
    migrate,
};

const fn one(names: &'static [&'static str], value: &'static str, about: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::One,
        value,
        about,
    }
}

const fn switch(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::Nothing,
        value: "",
        about,
    }
}

const ENCODE: &str = "--encode-servers-urls";
const PREFILL: &str = "--prefill-servers-urls";
const DECODE: &str = "--decode-servers-urls";
const CONSUMERS: &str = "--ec-consumer-zmq-addrs";
const RANKS: &str = "--ec-consumer-dp-size";
const DYNAMIC: &str = "--dynamic-registration";

static PROXY: Parser = Parser {
    program: "disagg_epd_proxy.py",
    words: "",
    about: "The command line of vLLM's EPD proxy (v1, v2 and v3) on pdrelay.",
    flags: &[
        one(&["--host"], "HOST", "address to listen on (0.0.0.0)"),
        one(&["--port"], "PORT", "port to listen on (8000)"),
        one(&[ENCODE], "URLS", "encode servers, separated by commas"),
        one(
            &[PREFILL],
            "URLS",
            "prefill servers; disable, none or empty: decode servers do both (none)",
        ),
        one(&[DECODE], "URLS", "decode servers, separated by commas"),
        one(
            &["--epd-version"],
            "{v1,v2,v3}",
            "what the engines expect (v3)",
        ),
        switch(&["--log-requests"], "a line for each request"),
        switch(
            &["--no-rewrite"],
            "send media unchanged to prefill and decode",
        ),
        one(
            &["--decode-retries"],
            "N",
            "further tries when decode answers 500 (1)",
        ),
        one(
            &[CONSUMERS],
            "ADDRS",
            "where encoders push to: all ranks of the first decode server, then of the next",
        ),
        one(
            &[RANKS],
            "N",
            "data-parallel ranks of each decode server (1)",
        ),
        switch(
            &[DYNAMIC],
            "instances come and go by /instances; needs ADMIN_API_KEY",
        ),
        one(
            &["--probe-interval"],
            "SECONDS",
            "time between two probes of an instance; 0: none (5.0)",
        ),
        one(
            &["--probe-timeout"],
            "SECONDS",
            "how long a probe may take (2.0)",
        ),
        one(
            &["--fail-threshold"],
            "N",
            "failed probes in a row that evict an instance (3)",
        ),
        one(
            &["--evicted-ttl"],
            "SECONDS",
            "how long an evicted instance is remembered; 0: for ever (900)",
        ),
    ],
    positionals: &[],
};

/// This program's defaults over ours.
pub fn defaults() -> Config {
    Config {
        surface: Surface::Epd,
        handshake: "epd".into(),
        ..Config::default()
    }
}

fn run(call: &mut Call) -> Outcome {
    let given = match PROXY.read(call.args) {
        Ok(given) if given.help => {
            call.terminal.out(&PROXY.help());
            return Outcome::Exit(0);
        }
        Ok(given) => given,
        Err(why) => return refuse(call, &why),
    };
    let text = match yaml(&given, call.env) {
        Ok(text) => text,
        Err(why) => return refuse(call, &why),
    };
    match load(&text, call.known, call.env) {
        Ok(loaded) => Outcome::Serve(Box::new(Serve {
            loaded,
            file: None,
            again: Box::new(move |known, env| load(&text, known, env)),
            log: None,
        })),
        Err(problems) => refuse(call, &told(&problems)),
    }
}

fn refuse(call: &mut Call, why: &str) -> Outcome {
    call.terminal.err(&PROXY.refusal(why));
    Outcome::Exit(2)
}

/// Nobody has seen the YAML, so its lines are not named.
fn told(problems: &Problems) -> String {
    let one = |p: &load::Problem| match p.fix.is_empty() {
        true => p.message.clone(),
        false => format!("{} ({})", p.message, p.fix),
    };
    problems.0.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn load(text: &str, known: &Known, env: Env) -> Result<Loaded, Problems> {
    let source = Source {
        text,
        label: "command line",
        file: None,
    };
    let none = Overrides::default();
    load::load_over(defaults(), Some(source), &none, known, env)
}

/// A comma list, without blanks and empty parts.
fn list<'a>(given: &'a Given, flag: &str) -> Vec<&'a str> {
    let parts = given.one(flag).unwrap_or_default().split(',');
    parts
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

fn prefill(given: &Given) -> Vec<&str> {
    let whole = given.one(PREFILL).unwrap_or_default().trim().to_lowercase();
    match whole.as_str() {
        "" | "none" | "disable" => Vec::new(),
        _ => list(given, PREFILL),
    }
}

fn whole(given: &Given, flag: &str, usual: i64) -> Result<i64, String> {
    let Some(text) = given.one(flag) else {
        return Ok(usual);
    };
    let wrong = |_| format!("argument {flag}: invalid int value: '{text}'");
    text.trim().replace('_', "").parse().map_err(wrong)
}

fn seconds(given: &Given, flag: &str, usual: f64) -> Result<f64, String> {
    let Some(text) = given.one(flag) else {
        return Ok(usual);
    };
    let number = text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    let number = number.ok_or_else(|| format!("argument {flag}: invalid float value: '{text}'"))?;
    match number >= 0.0 {
        true => Ok(number),
        false => Err(format!("{flag} must not be negative")),
    }
}

/// A number that a variable holds.
fn variable(env: Env, name: &str) -> Result<Option<f64>, String> {
    let Some(text) = env(name).filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    let number = text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    number
        .map(Some)
        .ok_or_else(|| format!("{name} must be a number, got '{text}'"))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn listed(urls: &[&str]) -> String {
    let urls: Vec<String> = urls.iter().map(|url| quoted(url)).collect();
    format!("[{}]", urls.join(", "))
}

/// The same in our words; the error is the sentence to show.
fn yaml(given: &Given, env: Env) -> Result<String, String> {
    let version = given.one("--epd-version").unwrap_or("v3");
    let mut out = String::from("surface: epd\nhandshake: epd\n");
    let mut line = |text: String| _ = writeln!(out, "{text}");
    if let Some(host) = given.one("--host") {
        line(format!("host: {}", quoted(host)));
    }
    line(format!("port: {}", whole(given, "--port", 8000)?));
    // The first version always logs.
    if version != "v1" && !given.has("--log-requests") {
        line("log_level: warning".into());
    }
    line("epd:".into());
    line(format!("  version: {version}"));
    if given.has("--no-rewrite") {
        line("  rewrite: false".into());
    }
    if let Some(most) = variable(env, "ENCODER_MAX_BATCH_SIZE")?.filter(|_| version != "v1") {
        if most < 0.0 || most.fract() != 0.0 {
            return Err("ENCODER_MAX_BATCH_SIZE must be a whole number, 0 or more".into());
        }
        line(format!("  encoder_batch_max: {most}"));
    }
    let ttl = seconds(given, "--evicted-ttl", 900.0)?;
    line(format!("  evicted_ttl: {ttl}s"));
    let dynamic = given.has(DYNAMIC);
    line(format!("  dynamic_registration: {dynamic}"));

    if let Some(keep) = variable(env, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE")?.filter(|_| version != "v1") {
        // Half of what engines keep; 0 is a connection for each request, as good as.
        line(format!(
            "timeouts: {{pool_idle: {}ms}}",
            (keep * 500.0).round().max(1.0)
        ));
    }
    let retries = match version {
        "v1" => 0,
        _ => whole(given, "--decode-retries", 1)?.max(0),
    };
    line("retry:".into());
    line(format!("  max_retries: {retries}"));
    line("  retryable_status_codes: [500]".into());
    line("  initial_backoff: 0s".into());
    probes(given, dynamic, &mut line)?;
    match dynamic {
        true => line(dynamic_mode(given, env)?),
        false => instances(given, &mut line)?,
    }
    Ok(out)
}

fn probes(given: &Given, dynamic: bool, line: &mut impl FnMut(String)) -> Result<(), String> {
    let threshold = whole(given, "--fail-threshold", 3)?;
    if threshold < 1 {
        return Err("--fail-threshold must be at least 1".into());
    }
    let every = seconds(given, "--probe-interval", 5.0)?;
    let limit = seconds(given, "--probe-timeout", 2.0)?;
    let flags = ["--fail-threshold", "--probe-interval", "--probe-timeout"];
    if !dynamic && !flags.iter().any(|flag| given.has(flag)) {
        return Ok(());
    }
    line("health_check:".into());
    line(format!("  enabled: {}", every > 0.0));
    line(format!("  failure_threshold: {threshold}"));
    for (key, value) in [("interval", every), ("timeout", limit)] {
        if value > 0.0 {
            line(format!("  {key}: {}ms", (value * 1000.0).round().max(1.0)));
        }
    }
    Ok(())
}

fn dynamic_mode(given: &Given, env: Env) -> Result<String, String> {
    for flag in [ENCODE, PREFILL, DECODE, CONSUMERS] {
        if given.has(flag) {
            return Err(format!("{flag} does not go with {DYNAMIC}"));
        }
    }
    match env("ADMIN_API_KEY").is_some_and(|key| !key.trim().is_empty()) {
        true => Ok("scheduling: round_robin".into()),
        false => Err(format!("{DYNAMIC} needs the variable ADMIN_API_KEY")),
    }
}

fn instances(given: &Given, line: &mut impl FnMut(String)) -> Result<(), String> {
    let (encode, prefill, decode) = (list(given, ENCODE), prefill(given), list(given, DECODE));
    let missing: Vec<&str> = [(ENCODE, &encode), (DECODE, &decode)]
        .iter()
        .filter(|(_, urls)| urls.is_empty())
        .map(|(flag, _)| *flag)
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(format!("the following arguments are required: {missing}"));
    }
    line(format!("encode: {}", listed(&encode)));
    let ranks = whole(given, RANKS, 1)?;
    if ranks < 1 {
        return Err(format!("argument {RANKS}: must be at least 1"));
    }
    let consumers = list(given, CONSUMERS);
    if !prefill.is_empty() {
        if !consumers.is_empty() {
            return Err(format!("{CONSUMERS} does not go with {PREFILL}"));
        }
        line(format!("prefill: {}", listed(&prefill)));
        line(format!("decode: {}", listed(&decode)));
        return Ok(());
    }
    if consumers.is_empty() && ranks == 1 {
        line(format!("aggregated: {}", listed(&decode)));
        return Ok(());
    }
    let ranks = ranks as usize;
    if !consumers.is_empty() && consumers.len() != decode.len() * ranks {
        let (n, wanted) = (consumers.len(), decode.len() * ranks);
        return Err(format!(
            "{CONSUMERS} has {n} addresses, but {wanted} are needed: {} decode servers with {ranks} ranks each",
            decode.len()
        ));
    }
    line("aggregated:".into());
    for (i, url) in decode.iter().enumerate() {
        let of_server = consumers
            .get(i * ranks..(i + 1) * ranks)
            .unwrap_or_default();
        line(format!(
            "  - {{address: {}, dp_size: {ranks}, ec_addresses: {}}}",
            quoted(url),
            listed(of_server)
        ));
    }
    Ok(())
}

fn migrate(call: &mut Call) -> Result<Migrated, u8> {
    let refused = |call: &mut Call, why: &str| {
        call.terminal.err(&PROXY.refusal(why));
        2
    };
    let given = PROXY.read(call.args).map_err(|why| refused(call, &why))?;
    if given.help {
        call.terminal.out(&PROXY.help());
        return Err(0);
    }
    let text = yaml(&given, call.env).map_err(|why| refused(call, &why))?;
    // Of the keys only the one without which it would be refused; none is printed.
    let env = call.env;
    let admin = |name: &str| (name == "ADMIN_API_KEY").then(|| env(name)).flatten();
    match load(&text, call.known, &admin) {
        Ok(loaded) => Ok(Migrated {
            loaded,
            notes: differences::notes(),
        }),
        Err(problems) => Err(refused(call, &told(&problems))),
    }
}
