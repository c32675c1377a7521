//! `xpyd_start_proxy.sh`: machines from the environment and parallel sizes from flags become the lists of
//! `xpyd --prefill ... --decode ...`, which is then what runs.

use super::super::argparse::{Flag, Given, Parser, Takes};
use super::super::{Call, Migrated, Outcome, Program};
use crate::config::Address;
use crate::config::load::Env;
use crate::config::topology::{Topology, expand};

pub static PROGRAM: Program = Program {
    name: "xpyd-start",
    argv0: &["xpyd_start_proxy", "xpyd-start"],
    run,
    migrate,
};

const fn number(names: &'static [&'static str], about: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::One,
        value: "N",
        about,
    }
}

const fn text(names: &'static [&'static str], value: &'static str, about: &'static str) -> Flag {
    Flag {
        names,
        takes: Takes::One,
        value,
        about,
    }
}

static PARSER: Parser = Parser {
    program: "xpyd_start_proxy",
    words: "",
    about: "Starts xpyd over the machines in XPYD_PREFILL_IPS and XPYD_DECODE_IPS (space-separated). Also \
            read: model_path, XPYD_PROXY_PORT (8868), XPYD_LOG (folder), XPYD_DRY_RUN=1.",
    flags: &[
        number(
            &["--prefill-nodes", "-pn"],
            "machines: the first N of XPYD_PREFILL_IPS",
        ),
        number(
            &["--prefill-tp-size", "-pt"],
            "accelerators per instance, a power of two",
        ),
        number(&["--prefill-dp-size", "-pd"], "instances, a power of two"),
        number(
            &["--prefill-world-size-per-node", "-pw"],
            "accelerators per machine",
        ),
        number(
            &["--decode-nodes", "-dn"],
            "machines: the first N of XPYD_DECODE_IPS",
        ),
        number(
            &["--decode-tp-size", "-dt"],
            "accelerators per instance, a power of two",
        ),
        number(&["--decode-dp-size", "-dd"], "instances, a power of two"),
        number(
            &["--decode-world-size-per-node", "-dw"],
            "accelerators per machine",
        ),
        number(
            &["--prefill-base-port"],
            "port of a machine's first instance (8100)",
        ),
        number(
            &["--decode-base-port"],
            "port of a machine's first instance (8200)",
        ),
        text(
            &["--model"],
            "NAME",
            "the model's name or path (or model_path)",
        ),
        text(
            &["--mode", "-m"],
            "MODE",
            "advanced, basic or benchmark_decode: all the same",
        ),
    ],
    positionals: &[],
};

fn run(call: &mut Call) -> Outcome {
    let args = match arguments(call) {
        Ok(args) => args,
        Err(code) => return Outcome::Exit(code),
    };
    let log = match (call.env)("XPYD_LOG") {
        Some(folder) if !folder.is_empty() => Some(format!(
            "{folder}/ProxyServer_{}.log",
            call.terminal.stamp()
        )),
        _ => None,
    };
    let tee = log
        .as_ref()
        .map_or(String::new(), |log| format!(" 2>&1 | tee {log}"));
    let line = format!("Running: pdrelay xpyd {}{tee}\n", args.join(" "));
    call.terminal.out(&line);
    if (call.env)("XPYD_DRY_RUN").as_deref() == Some("1") {
        return Outcome::Exit(0);
    }
    let mut inner = Call {
        args: &args,
        known: call.known,
        env: call.env,
        terminal: &mut *call.terminal,
    };
    match super::run(&mut inner) {
        Outcome::Serve(mut serve) => {
            serve.log = log.map(Into::into);
            Outcome::Serve(serve)
        }
        done => done,
    }
}

fn migrate(call: &mut Call) -> Result<Migrated, u8> {
    let args = arguments(call)?;
    super::migrate(&mut Call {
        args: &args,
        known: call.known,
        env: call.env,
        terminal: &mut *call.terminal,
    })
}

/// `xpyd`'s own arguments; or the exit code, once it is said why.
fn arguments(call: &mut Call) -> Result<Vec<String>, u8> {
    let read = PARSER.read(call.args);
    if read.as_ref().is_ok_and(|given| given.help) {
        call.terminal.out(&PARSER.help());
        return Err(0);
    }
    let args = read.and_then(|given| translate(&given, call.env));
    args.map_err(|why| {
        call.terminal.err(&format!("ERROR: {why}\n"));
        1
    })
}

fn translate(given: &Given, env: Env) -> Result<Vec<String>, String> {
    match given.one("--mode").unwrap_or("advanced") {
        "advanced" | "basic" | "benchmark_decode" => {}
        "benchmark" => {
            return Err(
                "mode benchmark never worked: its server does not know the flags that the \
                        script gives it; use --mode advanced, and a load generator such as \
                        `vllm bench serve`"
                    .into(),
            );
        }
        other => return Err(format!("Unsupported mode: {other}")),
    }
    let env_text = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let prefill = endpoints(given, "prefill", 8100, env_text("XPYD_PREFILL_IPS"))?;
    let decode = endpoints(given, "decode", 8200, env_text("XPYD_DECODE_IPS"))?;
    let model = given.one("--model").map(Into::into);
    let Some(model) = model.or_else(|| env_text("model_path")) else {
        return Err("model path is not set. Use --model <path> or set model_path env var.".into());
    };
    let port = env_text("XPYD_PROXY_PORT").unwrap_or_else(|| "8868".into());
    let mut args = vec!["--model".to_owned(), model, "--prefill".to_owned()];
    args.extend(prefill);
    args.push("--decode".to_owned());
    args.extend(decode);
    args.extend(["--port".to_owned(), port]);
    Ok(args)
}

fn endpoints(
    given: &Given,
    role: &str,
    base_port: u64,
    hosts: Option<String>,
) -> Result<Vec<String>, String> {
    let positive = |name: &str, what: &str| -> Result<Option<u64>, String> {
        let Some(text) = given.one(name) else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!(
                "{role} {what} must be a positive integer, got: {text}"
            )),
        }
    };
    let size = |key: &str| -> Result<u64, String> {
        let name = format!("--{role}-{}", key.replace('_', "-"));
        let missing =
            || format!("Missing required argument: {role}_{key}. Run with --help for usage.");
        positive(&name, key)?.ok_or_else(missing)
    };
    let nodes = size("nodes")?;
    let (tp_size, dp_size) = (size("tp_size")?, size("dp_size")?);
    let world_size_per_node = size("world_size_per_node")?;
    let port = positive(&format!("--{role}-base-port"), "base port")?.unwrap_or(base_port);
    let Ok(port) = u16::try_from(port) else {
        return Err(format!(
            "{role} base port must be between 1 and 65535, got: {port}"
        ));
    };
    let variable = format!("XPYD_{}_IPS", role.to_uppercase());
    let Some(hosts) = hosts else {
        return Err(format!(
            "{variable} is not set: list the {role} machines in it, space-separated"
        ));
    };
    let hosts: Vec<&str> = hosts.split_whitespace().collect();
    if nodes > hosts.len() as u64 {
        return Err(format!(
            "{role} nodes exceeds available IP list length ({nodes} > {}): {variable}",
            hosts.len()
        ));
    }
    let node = |host: &&str| match host.contains(':') && !host.starts_with('[') {
        true => Address::parse(&format!("[{host}]:{port}")),
        false => Address::parse(&format!("{host}:{port}")),
    };
    let nodes: Result<Vec<Address>, String> = hosts[..nodes as usize].iter().map(node).collect();
    let topology = Topology {
        nodes: nodes?,
        tp_size,
        dp_size,
        world_size_per_node,
    };
    let addresses = expand(role, &topology)?;
    Ok(addresses.iter().map(ToString::to_string).collect())
}
