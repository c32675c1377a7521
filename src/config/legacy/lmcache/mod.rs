//! LMCache's `disagg_proxy_server.py`, in its current family and the older ones.
//!
//! * **For:** its command line and environment as a configuration. Its flags mean hosts, ports and counts
//!   that are paired (`pairing.rs`).
//! * **Must never:** guess where the original would start and then hang: ports that overlap are an error.
//! * **To extend:** a flag is a row in `PROXY` and its line in `defaults`.

mod pairing;

use std::collections::BTreeMap;
use std::time::Duration;

use super::argparse::{Flag, Given, Parser, Takes, wrong};
use super::{Call, Migrated, Outcome, Program, Serve};
use crate::config::lmcache::{Chat, Lmcache, Variant};
use crate::config::load::{self, Env, Known, Loaded, Overrides, Problems};
use crate::config::quantity::parse_duration;
use crate::config::write::Note;
use crate::config::{Address, Config, Scheduling, Surface};
use crate::wire::lmcache::Receiver;

use pairing::{Pairs, pair};

pub static PROGRAM: Program = Program {
    name: "lmcache",
    argv0: &["disagg_proxy_server"],
    run,
    migrate,
};

const fn flag(name: &'static [&'static str], value: &'static str, about: &'static str) -> Flag {
    Flag {
        names: name,
        takes: Takes::One,
        value,
        about,
    }
}

static PROXY: Parser = Parser {
    program: "disagg_proxy_server",
    words: "",
    about: "LMCache's disaggregated prefill proxy on pdrelay.",
    flags: &[
        flag(
            &["--host"],
            "HOST",
            "address to listen on (default localhost)",
        ),
        flag(&["--port"], "PORT", "port to listen on (default 8000)"),
        flag(
            &["--prefiller-host"],
            "HOSTS",
            "comma-separated (default localhost)",
        ),
        flag(
            &["--prefiller-port"],
            "PORTS",
            "comma-separated (default 8100)",
        ),
        flag(
            &["--num-prefillers"],
            "N",
            "with one host and one port: on so many ports from there on",
        ),
        flag(
            &["--decoder-host"],
            "HOSTS",
            "comma-separated (default localhost)",
        ),
        flag(
            &["--decoder-port"],
            "PORTS",
            "comma-separated (default 8200)",
        ),
        flag(
            &["--num-decoders"],
            "N",
            "with one host and one port: on so many ports from there on",
        ),
        flag(
            &["--decoder-init-port"],
            "PORTS",
            "one per rank of a decoder (default 8300)",
        ),
        flag(
            &["--decoder-alloc-port"],
            "PORTS",
            "one per rank of a decoder (default 8400)",
        ),
        flag(
            &["--proxy-host"],
            "HOST",
            "where prefillers send their notices (default localhost)",
        ),
        flag(
            &["--proxy-port"],
            "PORT",
            "where prefillers send their notices (default 8500)",
        ),
        flag(
            &["--variant"],
            "{notified,first_token,plain}",
            "ours: the protocol of the engines (default notified; the older proxies are the others)",
        ),
        flag(
            &["--chat"],
            "{auto,native,render,completions}",
            "ours: which path of the engines a chat takes (default auto)",
        ),
        flag(
            &["--notice-timeout"],
            "TIME",
            "ours: how long notices are waited for, such as 10s (default 10s)",
        ),
    ],
    positionals: &[],
};

fn run(call: &mut Call) -> Outcome {
    let config = match read(call) {
        Ok(config) => config,
        Err(code) => return Outcome::Exit(code),
    };
    let load = move |known: &Known, env: Env| load_over(&config, known, env);
    match load(call.known, call.env) {
        Ok(loaded) => Outcome::Serve(Box::new(Serve {
            loaded,
            file: None,
            again: Box::new(load),
            log: None,
        })),
        Err(problems) => {
            call.terminal
                .err(&format!("disagg_proxy_server: {problems}\n"));
            Outcome::Exit(1)
        }
    }
}

fn migrate(call: &mut Call) -> Result<Migrated, u8> {
    let config = read(call)?;
    // Keys stay in the environment: they are not printed.
    match load_over(&config, call.known, &|_| None) {
        Ok(loaded) => Ok(Migrated {
            loaded,
            notes: notes(),
        }),
        Err(problems) => {
            call.terminal
                .err(&format!("disagg_proxy_server: {problems}\n"));
            Err(1)
        }
    }
}

/// What the command line and `CLIENT_BOUND` say. The error is the exit code: why was said.
fn read(call: &mut Call) -> Result<Translated, u8> {
    let given = PROXY.read(call.args);
    if matches!(&given, Ok(given) if given.help) {
        call.terminal.out(&PROXY.help());
        return Err(0);
    }
    let bound = (call.env)("CLIENT_BOUND").is_some_and(|v| v.trim().eq_ignore_ascii_case("true"));
    let key = (call.env)("CLIENT_BOUND_KEY").filter(|key| !key.trim().is_empty());
    let key = bound.then(|| key.map_or("session-id".into(), |key| key.trim().to_ascii_lowercase()));
    given
        .and_then(|given| translate(&given, key))
        .map_err(|why| {
            call.terminal.err(&PROXY.refusal(&why));
            2
        })
}

/// A command line as defaults and what stands over them.
struct Translated {
    defaults: Config,
    overrides: Overrides,
}

fn load_over(translated: &Translated, known: &Known, env: Env) -> Result<Loaded, Problems> {
    let Translated {
        defaults,
        overrides,
    } = translated;
    load::load_over(defaults.clone(), None, overrides, known, env)
}

/// The error is the sentence to show.
fn translate(given: &Given, bound_by: Option<String>) -> Result<Translated, String> {
    let prefill = pairs(
        given,
        "--prefiller-host",
        "--prefiller-port",
        8100,
        "--num-prefillers",
    )?;
    let decode = pairs(
        given,
        "--decoder-host",
        "--decoder-port",
        8200,
        "--num-decoders",
    )?;
    let variant = match given.one("--variant") {
        Some("first_token") => Variant::FirstToken,
        Some("plain") => Variant::Plain,
        _ => Variant::Notified,
    };
    let receivers = match variant {
        Variant::Notified => receivers(given, &decode)?,
        _ => BTreeMap::new(),
    };
    let usual = Lmcache::default();
    let chat = match given.one("--chat") {
        Some("native") => Chat::Native,
        Some("render") => Chat::Render,
        Some("completions") => Chat::Completions,
        _ => Chat::Auto,
    };
    let notice_timeout = match given.one("--notice-timeout").map(parse_duration) {
        None => usual.notice_timeout,
        Some(Ok(limit)) if limit > Duration::ZERO => limit,
        Some(Ok(_)) => return Err("argument --notice-timeout: it must be above 0".into()),
        Some(Err(why)) => return Err(format!("argument --notice-timeout: {why}")),
    };
    let lmcache = Lmcache {
        variant,
        host: given.one("--proxy-host").unwrap_or("localhost").to_owned(),
        port: ports(given, "--proxy-port", 8500)?.remove(0),
        notice_timeout,
        chat,
        bound_by,
        receivers,
        ..usual
    };
    let list = |pairs: &Pairs| pairs.all.iter().map(|(h, p)| shown(h, *p)).collect();
    Ok(Translated {
        defaults: Config {
            handshake: "lmcache".into(),
            surface: Surface::Lmcache,
            scheduling: Scheduling {
                prefill: "round_robin".into(),
                decode: "round_robin".into(),
                ..Scheduling::default()
            },
            lmcache,
            ..Config::default()
        },
        overrides: Overrides {
            host: Some(given.one("--host").unwrap_or("localhost").to_owned()),
            port: Some(ports(given, "--port", 8000)?.remove(0)),
            prefill: list(&prefill),
            decode: list(&decode),
            ..Overrides::default()
        },
    })
}

fn shown(host: &str, port: u16) -> String {
    Address::tcp(host, port).to_string()
}

fn pairs(given: &Given, host: &str, port: &str, usual: u16, count: &str) -> Result<Pairs, String> {
    let hosts = match given.one(host) {
        None => vec!["localhost".to_owned()],
        Some(list) => list.split(',').map(|host| host.trim().to_owned()).collect(),
    };
    if hosts.iter().any(String::is_empty) {
        return Err(refuse(host, "a host between two commas is empty"));
    }
    let n = match given.one(count) {
        None => 1,
        Some(text) => whole(count, text)?,
    };
    pair(&hosts, &ports(given, port, usual)?, n).map_err(|why| refuse(port, &why))
}

/// A decoder that was counted up has its ports counted up as well; all others have the same ones.
fn receivers(given: &Given, decode: &Pairs) -> Result<BTreeMap<Address, Receiver>, String> {
    let init = ports(given, "--decoder-init-port", 8300)?;
    let alloc = ports(given, "--decoder-alloc-port", 8400)?;
    let mut receivers = BTreeMap::new();
    for (i, (host, port)) in decode.all.iter().enumerate() {
        let by = if decode.counted { i as u16 } else { 0 };
        let up = |name: &str, ports: &[u16]| -> Result<Vec<u16>, String> {
            let above = |port: &u16| port.checked_add(by);
            let all: Option<Vec<u16>> = ports.iter().map(above).collect();
            all.ok_or_else(|| refuse(name, "a counted port is above 65535"))
        };
        let receiver = Receiver {
            host: host.clone(),
            init_ports: up("--decoder-init-port", &init)?,
            alloc_ports: up("--decoder-alloc-port", &alloc)?,
            query_ports: Vec::new(),
        };
        receivers.insert(Address::tcp(host.clone(), *port), receiver);
    }
    Ok(receivers)
}

/// A comma-separated list of ports; never empty.
fn ports(given: &Given, name: &str, usual: u16) -> Result<Vec<u16>, String> {
    let Some(list) = given.one(name) else {
        return Ok(vec![usual]);
    };
    let port = |text: &str| match u16::try_from(whole(name, text)?) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(refuse(
            name,
            &format!("port must be between 1 and 65535, got {}", text.trim()),
        )),
    };
    list.split(',').map(port).collect()
}

fn whole(name: &str, text: &str) -> Result<usize, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| refuse(name, &format!("invalid int value: '{text}'")))
}

/// As argparse calls a mistake with a flag.
fn refuse(name: &str, why: &str) -> String {
    let flag = PROXY.flags.iter().find(|flag| flag.names[0] == name);
    flag.map_or(why.to_owned(), |flag| wrong(flag, why))
}

fn notes() -> Vec<Note> {
    const MADE: &str = "\
        Made by `pdrelay migrate lmcache`. Check it with `pdrelay check -c FILE`, start it with \
        `pdrelay serve -c FILE`. Comments say what is different from LMCache's proxy.";
    const SURFACE: &str = "\
        Its two paths, and /health, /ready, /metrics, /status and /v1/models beside them. An \
        engine's error keeps its status and body (the original: 500, or 200 and a broken body). \
        stream: false is answered by one JSON object.";
    const LMCACHE: &str = "\
        Notices are waited for as long as notice_timeout says (the original: for ever); then \
        decode computes by itself. Chats take the engines' chat path, so that tools survive: \
        `chat: completions` is the original's way.";
    vec![
        Note::on("", MADE),
        Note::on("surface", SURFACE),
        Note::on("lmcache", LMCACHE),
    ]
}
