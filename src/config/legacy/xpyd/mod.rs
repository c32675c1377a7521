//! xPyD-proxy, 1.0 and 1.8.
//!
//! * **For:** both of its command lines at once, since neither contradicts the other; what 1.8 says and
//!   returns counts where they differ. Its start script is `start.rs`.
//! * **Must never:** know a rule about a key of the YAML: there is one schema, in `config/schema/`.
//! * **To extend:** a flag is a row in `PROXY` and its line in `overrides`; what it does differently from
//!   the original is a note in `differences.rs`.

pub mod differences;
mod fix;
mod init;
pub mod start;
mod validate;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::argparse::{Flag, Given, Parser, Takes};
use super::{Call, Migrated, Outcome, Program, Serve};
use crate::config::load::{self, Env, Known, Loaded, Overrides, Problems, Source};
use crate::config::schema::MODES;
use crate::config::{Config, FirstTokenSource, LogLevel, Scheduling, Startup, Surface};

pub static PROGRAM: Program = Program {
    name: "xpyd",
    argv0: &["xpyd", "MicroPDProxyServer"],
    run,
    migrate,
};

const fn flag(
    names: &'static [&'static str],
    takes: Takes,
    value: &'static str,
    about: &'static str,
) -> Flag {
    Flag {
        names,
        takes,
        value,
        about,
    }
}

static PROXY: Parser = Parser {
    program: "xpyd",
    words: " [proxy]",
    about: "xPyD-proxy's command line (1.0 and 1.8) on pdrelay. `xpyd fix-config PATH` repairs a file.",
    flags: &[
        flag(
            &["--config", "-c"],
            Takes::One,
            "FILE",
            "YAML configuration; without it $XPYD_CONFIG, then ./xpyd.yaml",
        ),
        flag(
            &["--validate-config"],
            Takes::One,
            "FILE",
            "check a YAML configuration and exit",
        ),
        flag(
            &["--init-config"],
            Takes::Optional,
            "PATH",
            "write a configuration to start from (default path: ./xpyd.yaml)",
        ),
        flag(
            &["--force"],
            Takes::Nothing,
            "",
            "let --init-config replace a file",
        ),
        flag(
            &["--model", "-m"],
            Takes::One,
            "NAME",
            "the model's name, or path, as the engines call it",
        ),
        flag(
            &["--prefill", "-p"],
            Takes::Many,
            "HOST:PORT",
            "prefill instances",
        ),
        flag(
            &["--decode", "-d"],
            Takes::Many,
            "HOST:PORT",
            "decode instances",
        ),
        flag(&["--port"], Takes::One, "PORT", "port to listen on"),
        flag(
            &["--generator_on_p_node"],
            Takes::Nothing,
            "",
            "the same as --first-token-source prefill",
        ),
        flag(
            &["--roundrobin"],
            Takes::Nothing,
            "",
            "choose instances in turn",
        ),
        flag(
            &["--log-level"],
            Takes::One,
            "{debug,info,warning,error}",
            "how much is logged",
        ),
        flag(
            &["--disaggregated-mode"],
            Takes::One,
            "{direct,nixl,zmq}",
            "how KV gets from prefill to decode",
        ),
        flag(
            &["--first-token-source"],
            Takes::One,
            "{prefill,decode}",
            "whose first token the client sees",
        ),
        flag(
            &["--version", "-V"],
            Takes::Nothing,
            "",
            "print the version and exit",
        ),
    ],
    positionals: &[],
};

/// The one whose behaviour this is, and who does it.
const VERSION: &str = concat!("xpyd 1.8.0 (pdrelay ", env!("CARGO_PKG_VERSION"), ")\n");

/// `xpyd`'s defaults over ours, where its documents promise them.
pub fn defaults() -> Config {
    Config {
        surface: Surface::Xpyd,
        log_level: LogLevel::Warning,
        scheduling: Scheduling {
            prefill: "load_balanced".into(),
            decode: "load_balanced".into(),
            ..Scheduling::default()
        },
        startup: Startup {
            wait_timeout: Some(Duration::from_secs(600)),
            heartbeat_interval: Some(Duration::from_secs(30)),
            ..Startup::default()
        },
        ..Config::default()
    }
}

fn run(call: &mut Call) -> Outcome {
    let args = match call.args {
        [first, rest @ ..] if first == "proxy" => rest,
        args => args,
    };
    if let [first, rest @ ..] = args
        && first == "fix-config"
    {
        return Outcome::Exit(fix::run(rest, call.terminal));
    }
    let given = match read(args) {
        Ok(given) => given,
        Err(why) => {
            call.terminal.err(&PROXY.refusal(&why));
            return Outcome::Exit(2);
        }
    };
    if given.help {
        call.terminal.out(&PROXY.help());
        return Outcome::Exit(0);
    }
    if given.has("--version") {
        call.terminal.out(VERSION);
        return Outcome::Exit(0);
    }
    if given.has("--init-config") {
        let path = given.one("--init-config").unwrap_or(init::PATH);
        if Path::new(path).exists() && !given.has("--force") {
            let path = init::shown(path);
            let why = format!("config already exists: {path}; use --force to overwrite");
            call.terminal.err(&PROXY.refusal(&why));
            return Outcome::Exit(2);
        }
        return Outcome::Exit(init::run(path, call.terminal));
    }
    if let Some(path) = given.one("--validate-config") {
        return Outcome::Exit(validate::run(path, call.known, call.terminal));
    }
    let Some(file) = find_file(&given, call) else {
        return Outcome::Exit(init::start_from_nothing(call.terminal));
    };
    serve(given, file, call)
}

/// The flags, and what they demand of each other. The error is the sentence to show.
fn read(args: &[String]) -> Result<Given, String> {
    let given = PROXY.read(args)?;
    if given.help {
        return Ok(given);
    }
    if given.has("--force") && !given.has("--init-config") {
        return Err("--force can only be used with --init-config".into());
    }
    port(&given)?;
    if given.has("--generator_on_p_node") && given.one("--first-token-source") == Some("decode") {
        return Err("--generator_on_p_node contradicts --first-token-source decode".into());
    }
    Ok(given)
}

fn port(given: &Given) -> Result<Option<u16>, String> {
    let Some(text) = given.one("--port") else {
        return Ok(None);
    };
    let Ok(number) = text.trim().parse::<i128>() else {
        return Err("argument --port: port must be an integer".into());
    };
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err("argument --port: port must be between 1 and 65535".into()),
    }
}

/// Which file counts; the inner `None`: the command line alone. The outer one: there is nothing at all.
fn find_file(given: &Given, call: &mut Call) -> Option<Option<PathBuf>> {
    if let Some(path) = given.one("--config") {
        return Some(Some(path.into()));
    }
    if let Some(path) = (call.env)("XPYD_CONFIG").filter(|path| !path.is_empty()) {
        return Some(Some(path.into()));
    }
    if Path::new(init::PATH).exists() {
        let line = "No config specified; found ./xpyd.yaml and using it.\n";
        call.terminal.out(line);
        return Some(Some(init::PATH.into()));
    }
    // 1.0's way of starting, which needs no file.
    let flags = ["--model", "--prefill", "--decode"];
    flags.iter().any(|flag| given.has(flag)).then_some(None)
}

fn overrides(given: &Given) -> Overrides {
    let list = |name| given.all(name).map(<[String]>::to_vec).unwrap_or_default();
    let level = given.one("--log-level").map(LogLevel::parse);
    let mode = |name: &str| MODES.iter().find(|(mode, _)| *mode == name);
    let first = match given.one("--first-token-source") {
        Some("prefill") => Some(FirstTokenSource::Prefill),
        Some(_) => Some(FirstTokenSource::Decode),
        None if given.has("--generator_on_p_node") => Some(FirstTokenSource::Prefill),
        None => None,
    };
    Overrides {
        model: given.one("--model").map(Into::into),
        port: port(given).ok().flatten(),
        log_level: level.and_then(Result::ok),
        mode: given
            .one("--disaggregated-mode")
            .and_then(mode)
            .map(|(_, handshake)| *handshake),
        scheduling: given.has("--roundrobin").then(|| "round_robin".to_owned()),
        first_token_source: first,
        prefill: list("--prefill"),
        decode: list("--decode"),
        ..Overrides::default()
    }
}

fn load(
    file: Option<&Path>,
    overrides: &Overrides,
    known: &Known,
    env: Env,
) -> Result<Loaded, Problems> {
    let Some(path) = file else {
        return load::load_over(defaults(), None, overrides, known, env);
    };
    let text = load::read(path)?;
    let label = path.display().to_string();
    let source = Source {
        text: &text,
        label: &label,
        file: Some(path),
    };
    load::load_over(defaults(), Some(source), overrides, known, env)
}

fn serve(given: Given, file: Option<PathBuf>, call: &mut Call) -> Outcome {
    let overrides = overrides(&given);
    match load(file.as_deref(), &overrides, call.known, call.env) {
        Ok(loaded) => Outcome::Serve(Box::new(Serve {
            loaded,
            file: file.clone(),
            again: Box::new(move |known, env| load(file.as_deref(), &overrides, known, env)),
            log: None,
        })),
        Err(problems) => {
            let text = format!("xpyd: failed to load config: {problems}\n");
            call.terminal.err(&text);
            Outcome::Exit(1)
        }
    }
}

fn migrate(call: &mut Call) -> Result<Migrated, u8> {
    let args = match call.args {
        [first, rest @ ..] if first == "proxy" => rest,
        args => args,
    };
    let refuse = |call: &mut Call, why: &str| {
        call.terminal.err(&PROXY.refusal(why));
        2
    };
    let given = read(args).map_err(|why| refuse(call, &why))?;
    if given.help {
        call.terminal.out(&PROXY.help());
        return Err(0);
    }
    for name in ["--init-config", "--validate-config", "--version"] {
        if given.has(name) {
            let why = format!("{name} starts no proxy: there is nothing to migrate");
            return Err(refuse(call, &why));
        }
    }
    let Some(file) = find_file_quietly(&given, call) else {
        let why =
            "there is no configuration: give --config FILE, or --model, --prefill and --decode";
        return Err(refuse(call, why));
    };
    let overrides = overrides(&given);
    // Keys stay where they are, in the file or the environment: they are not printed.
    match load(file.as_deref(), &overrides, call.known, &|_| None) {
        Ok(loaded) => {
            let notes = differences::notes(&loaded.config);
            Ok(Migrated { loaded, notes })
        }
        Err(problems) => {
            let text = format!("xpyd: failed to load config: {problems}\n");
            call.terminal.err(&text);
            Err(1)
        }
    }
}

/// As [`find_file`]; what is printed is YAML, and nothing else.
fn find_file_quietly(given: &Given, call: &mut Call) -> Option<Option<PathBuf>> {
    struct Quiet;
    impl super::Terminal for Quiet {
        fn out(&mut self, _: &str) {}
        fn err(&mut self, _: &str) {}
        fn ask(&mut self, _: &str, _: Option<Duration>) -> Option<String> {
            None
        }
        fn stamp(&self) -> String {
            String::new()
        }
    }
    let mut quiet = Call {
        terminal: &mut Quiet,
        args: call.args,
        known: call.known,
        env: call.env,
    };
    find_file(given, &mut quiet)
}
