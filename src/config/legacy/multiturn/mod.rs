//! vLLM's `disagg_proxy_multiturn.py`.
//!
//! * **For:** its command line: hosts and ports, paired in the order in which they are given; and two flags of
//!   ours, `--redis` and `--log-level`.
//! * **Must never:** know what a turn is: there is one section `multiturn`.
//! * **To extend:** a flag is a row in `PROXY` and its line in `read`; what is different from the original is a
//!   line in `NOTES` and a row of `tests/docs/multiturn.txt`.

use super::argparse::{Flag, Given, Parser, Takes, wrong};
use super::{Call, Migrated, Outcome, Program, Serve};
use crate::config::load::{self, Env, Known, Loaded, Overrides, Problems};
use crate::config::write::Note;
use crate::config::{Config, LogLevel, RedisAddress, Scheduling, Surface};

pub static PROGRAM: Program = Program {
    name: "multiturn",
    argv0: &["disagg_proxy_multiturn"],
    run,
    migrate,
};

const HOST: &[&str] = &["--host"];
const PORT: &[&str] = &["--port"];
const P_HOSTS: &[&str] = &["--prefiller-host", "--prefiller-hosts"];
const P_PORTS: &[&str] = &["--prefiller-port", "--prefiller-ports"];
const D_HOSTS: &[&str] = &["--decoder-host", "--decoder-hosts"];
const D_PORTS: &[&str] = &["--decoder-port", "--decoder-ports"];

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

pub static PROXY: Parser = Parser {
    program: "multiturn",
    words: "",
    about: "The command line of vLLM's disagg_proxy_multiturn.py on pdrelay.",
    flags: &[
        flag(HOST, Takes::One, "HOST", "address to listen on (0.0.0.0)"),
        flag(PORT, Takes::One, "PORT", "port to listen on (8000)"),
        flag(P_HOSTS, Takes::Many, "HOST", "prefill engines (localhost)"),
        flag(P_PORTS, Takes::Many, "PORT", "their ports, in order (8100)"),
        flag(D_HOSTS, Takes::Many, "HOST", "decode engines (localhost)"),
        flag(D_PORTS, Takes::Many, "PORT", "their ports, in order (8200)"),
        flag(
            &["--redis"],
            Takes::One,
            "URL",
            "for several proxies: keep conversations in redis://host:port/db or unix:/path",
        ),
        flag(
            &["--log-level"],
            Takes::One,
            "{debug,info,warning,error}",
            "how much is logged",
        ),
    ],
    positionals: &[],
};

const MADE: &str = "\
    Made by `pdrelay migrate multiturn`. Check it with `pdrelay check -c FILE`, start it with \
    `pdrelay serve -c FILE`.";
const EVERYWHERE: &str = "\
    Other than with disagg_proxy_multiturn.py: an edited history does not reuse KV; another \
    client's conversation_id is another conversation; decode is asked as the client asks, so \
    usage, tools, logprobs and all choices arrive; kv_transfer_params are not shown to clients \
    (multiturn: {expose_kv_params: true} does); errors keep their status.";
const TURN: &str = "In turn, as there. pdrelay's own default is least_load.";

const NOTES: [(&str, &str); 3] = [("", MADE), ("", EVERYWHERE), ("scheduling", TURN)];

/// Its defaults over ours.
pub fn defaults() -> Config {
    Config {
        surface: Surface::Multiturn,
        handshake: "multiturn".into(),
        scheduling: Scheduling {
            prefill: "round_robin".into(),
            decode: "round_robin".into(),
            ..Scheduling::default()
        },
        ..Config::default()
    }
}

/// A command line that was understood.
struct Read {
    defaults: Config,
    overrides: Overrides,
}

fn run(call: &mut Call) -> Outcome {
    let read = match read(call) {
        Ok(read) => read,
        Err(code) => return Outcome::Exit(code),
    };
    match load(&read, call.known, call.env) {
        Ok(loaded) => Outcome::Serve(Box::new(Serve {
            loaded,
            file: None,
            again: Box::new(move |known, env| load(&read, known, env)),
            log: None,
        })),
        Err(problems) => {
            call.terminal.err(&PROXY.refusal(&problems.to_string()));
            Outcome::Exit(2)
        }
    }
}

fn migrate(call: &mut Call) -> Result<Migrated, u8> {
    let read = read(call)?;
    // Keys stay in the environment: they are not printed.
    match load(&read, call.known, &|_| None) {
        Ok(loaded) => Ok(Migrated {
            loaded,
            notes: NOTES.map(|(key, text)| Note::on(key, text)).into(),
        }),
        Err(problems) => {
            call.terminal.err(&PROXY.refusal(&problems.to_string()));
            Err(2)
        }
    }
}

fn load(read: &Read, known: &Known, env: Env) -> Result<Loaded, Problems> {
    load::load_over(read.defaults.clone(), None, &read.overrides, known, env)
}

/// The error is the exit code: why was said.
fn read(call: &mut Call) -> Result<Read, u8> {
    let given = match PROXY.read(call.args) {
        Ok(given) if given.help => {
            call.terminal.out(&PROXY.help());
            return Err(0);
        }
        given => given,
    };
    given.and_then(|given| translate(&given)).map_err(|why| {
        call.terminal.err(&PROXY.refusal(&why));
        2
    })
}

fn translate(given: &Given) -> Result<Read, String> {
    let mut defaults = defaults();
    if let Some(text) = given.one("--redis") {
        let redis = RedisAddress::parse(text);
        defaults.multiturn.redis = Some(redis.map_err(|why| format!("argument --redis: {why}"))?);
    }
    let port = match given.one(PORT[0]) {
        None => None,
        Some(text) => Some(listening(integer(PORT, text)?)?),
    };
    let level = given.one("--log-level").map(LogLevel::parse);
    let overrides = Overrides {
        host: given.one(HOST[0]).map(Into::into),
        port,
        log_level: level.and_then(Result::ok),
        prefill: pairs(given, "prefill", P_HOSTS, (P_PORTS, 8100))?,
        decode: pairs(given, "decode", D_HOSTS, (D_PORTS, 8200))?,
        ..Overrides::default()
    };
    Ok(Read {
        defaults,
        overrides,
    })
}

fn listening(port: i128) -> Result<u16, String> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("argument --port: port must be between 1 and 65535".into()),
    }
}

/// Python's `int`.
fn integer(names: &'static [&'static str], text: &str) -> Result<i128, String> {
    let digits = text.trim().replace('_', "");
    digits.parse().map_err(|_| {
        let flag = flag(names, Takes::One, "", "");
        wrong(&flag, &format!("invalid int value: '{text}'"))
    })
}

/// Hosts and ports, one of each to an engine.
fn pairs(
    given: &Given,
    role: &str,
    hosts: &'static [&'static str],
    (ports, usual): (&'static [&'static str], i128),
) -> Result<Vec<String>, String> {
    let one = ["localhost".to_owned()];
    let named = given.all(hosts[0]).unwrap_or(&one);
    let numbers = match given.all(ports[0]) {
        None => vec![usual],
        Some(texts) => texts
            .iter()
            .map(|text| integer(ports, text))
            .collect::<Result<Vec<_>, _>>()?,
    };
    if named.len() != numbers.len() {
        return Err(format!(
            "{} {role} hosts and {} {role} ports: each host needs its port ({}, {})",
            named.len(),
            numbers.len(),
            hosts[1],
            ports[1]
        ));
    }
    let pair = |(host, port): (&String, &i128)| match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    Ok(named.iter().zip(&numbers).map(pair).collect())
}
