//! `pdrelay demo`: the real proxy over simulated engines in this process. No GPU, no config.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::DemoArgs;
use crate::config::lmcache::Lmcache;
use crate::config::{Address, Config, Cores, InstanceConfig, Role};
use crate::server::Server;
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{HeadScan, ResponseHead};
use crate::wire::lmcache::Receiver;
use crate::{handshake, log, signal};

/// Slow enough to watch: about what a small model does on one GPU.
const PREFILL_TOKENS_PER_S: f64 = 20_000.0;
const DECODE_TICK: Duration = Duration::from_millis(20);
const MODEL: &str = "demo";
/// Its prefill workers are told where decode's listen, and tell the proxy when they are done.
const NOTIFIED: &str = "lmcache";
/// How the simulated engines hand KV over, where it is not by NIXL.
const DIALECTS: [(&str, pdsim::KvMode); 5] = [
    (NOTIFIED, pdsim::KvMode::Lmcache),
    ("mooncake", pdsim::KvMode::Mooncake),
    ("offloading", pdsim::KvMode::Offloading),
    ("sglang", pdsim::KvMode::Sglang),
    ("shared_storage", pdsim::KvMode::SharedStorage),
];
/// The simulated decode workers' ports. Only their names are used: nothing listens there.
const INIT_PORT: u16 = 8300;
const ALLOC_PORT: u16 = 8400;

/// The simulator alone, with its own command line.
pub fn sim(args: Vec<std::ffi::OsString>) -> ExitCode {
    pdsim::cli::main(std::iter::once("pdsim".into()).chain(args))
}

pub fn run(args: &DemoArgs) -> ExitCode {
    match demo(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &DemoArgs) -> Result<ExitCode, String> {
    let spec = handshake::find(&args.handshake).ok_or_else(|| {
        format!(
            "unknown handshake {}; there are: {}",
            args.handshake,
            handshake::names().join(", ")
        )
    })?;
    let signals = signal::block();
    let level = if args.once {
        log::Level::Warning
    } else {
        log::Level::Info
    };
    let options = log::Options {
        level,
        access: !args.once,
        ..log::Options::default()
    };
    let _log = log::start(options).map_err(|e| format!("the log cannot start: {e}"))?;
    let engines = engines(args, spec);
    let sim = pdsim::Sim::start(simulator(args, &engines));
    let sim = sim.map_err(|e| format!("simulator: {e}"))?;
    let server = Server::start(config(args, &engines, &sim)).map_err(|e| e.to_string())?;
    if let Some(address) = server.notices() {
        sim.notices_to(address);
    }
    for (role, address) in engines.iter().zip(sim.addresses()) {
        println!("simulated {:<10} {address}", role.name());
    }
    println!(
        "pdrelay ({}) listens on http://{}",
        args.handshake, server.address
    );
    if args.once {
        let result = once(server.address);
        server.drain(Duration::from_secs(1));
        // The engines are strict: what they had to put up with is a mistake of ours.
        return match (result, sim.ledger().violations.first()) {
            (Ok(()), Some(what)) => Err(format!("the simulated engines complain: {what}")),
            (result, _) => result.map(|()| ExitCode::SUCCESS),
        };
    }
    println!("\nTry, in another terminal (Ctrl-C ends the demo):\n");
    println!(
        "  curl -N http://{}/v1/chat/completions -H 'content-type: application/json' \\",
        server.address
    );
    println!(
        "    -d '{{\"model\":\"{MODEL}\",\"stream\":true,\"max_tokens\":32,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'"
    );
    println!("  curl http://{}/status", server.address);
    println!("  curl http://{}/metrics\n", server.address);
    signals.wait();
    server.drain(Duration::from_secs(2));
    Ok(ExitCode::SUCCESS)
}

fn engines(args: &DemoArgs, spec: &handshake::Spec) -> Vec<Role> {
    if spec.needs.contains(&Role::Aggregated) {
        return vec![Role::Aggregated; usize::from(args.prefill + args.decode)];
    }
    let mut roles = Vec::new();
    if spec.needs.contains(&Role::Encode) {
        roles.push(Role::Encode);
    }
    roles.extend(std::iter::repeat_n(Role::Prefill, args.prefill.into()));
    roles.extend(std::iter::repeat_n(Role::Decode, args.decode.into()));
    roles
}

fn simulator(args: &DemoArgs, roles: &[Role]) -> pdsim::Options {
    let engines = roles.iter().enumerate().map(|(i, role)| {
        let mut engine = pdsim::EngineOptions::new(match role {
            Role::Encode => pdsim::Role::Encode,
            Role::Prefill => pdsim::Role::Prefill,
            Role::Decode => pdsim::Role::Decode,
            Role::Aggregated => pdsim::Role::Both,
        });
        engine.model = MODEL.into();
        if roles.contains(&Role::Encode) {
            engine.ec = pdsim::EcMode::V2;
        }
        if let Some((_, kv)) = DIALECTS.iter().find(|(name, _)| *name == args.handshake) {
            engine.kv = *kv;
        }
        if args.handshake == NOTIFIED {
            engine.lmcache.ranks = 1;
            engine.lmcache.init_ports = vec![INIT_PORT + i as u16];
            engine.lmcache.alloc_ports = vec![ALLOC_PORT + i as u16];
        }
        engine.timing.prefill_tokens_per_s = PREFILL_TOKENS_PER_S;
        engine.timing.decode_tick = DECODE_TICK;
        engine
    });
    pdsim::Options {
        engines: engines.collect(),
        record: false,
        ..pdsim::Options::default()
    }
}

fn config(args: &DemoArgs, roles: &[Role], sim: &pdsim::Sim) -> Config {
    let addresses = sim.addresses();
    let all = roles.iter().zip(addresses).enumerate();
    let instances = all.map(|(index, (role, address))| InstanceConfig {
        side_port: match role {
            Role::Prefill => sim.side(index).map(|side| side.port()),
            _ => None,
        },
        ..InstanceConfig::new(
            Address::tcp(address.ip().to_string(), address.port()),
            *role,
        )
    });
    let cpus = args.cpus.as_ref().map(|list| list.0.clone());
    let mut lmcache = Lmcache::default();
    if args.handshake == NOTIFIED {
        lmcache.port = 0;
        let receivers = roles.iter().zip(addresses).enumerate();
        lmcache.receivers = receivers
            .filter(|(_, (role, _))| **role == Role::Decode)
            .map(|(i, (_, address))| {
                let receiver = Receiver {
                    host: address.ip().to_string(),
                    init_ports: vec![INIT_PORT + i as u16],
                    alloc_ports: vec![ALLOC_PORT + i as u16],
                    query_ports: Vec::new(),
                };
                let place = Address::tcp(address.ip().to_string(), address.port());
                (place, receiver)
            })
            .collect();
    }
    Config {
        lmcache,
        model: MODEL.into(),
        host: "127.0.0.1".into(),
        port: args.port,
        handshake: args.handshake.clone(),
        instances: instances.collect(),
        cores: Cores {
            shards: args.shards,
            cpus,
            ..Cores::default()
        },
        ..Config::default()
    }
}

/// One streamed chat request through the proxy, shown as it comes.
fn once(address: SocketAddr) -> Result<(), String> {
    let body = format!(
        r#"{{"model":"{MODEL}","stream":true,"max_tokens":24,"messages":[{{"role":"user","content":"Tell me about prefill and decode"}}]}}"#
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let io = |e: std::io::Error| format!("the request failed: {e}");
    let mut client = TcpStream::connect(address).map_err(io)?;
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .map_err(io)?;
    let began = Instant::now();
    client.write_all(request.as_bytes()).map_err(io)?;
    let shown = show(&mut client, began)?;
    println!("\n");
    println!("stages (ms)   {}", shown.stages.replace(";dur=", " "));
    println!("first token   {:.1} ms", shown.first.as_secs_f64() * 1e3);
    println!(
        "whole answer  {:.1} ms, {} events",
        began.elapsed().as_secs_f64() * 1e3,
        shown.events
    );
    Ok(())
}

#[derive(Default)]
struct Shown {
    stages: String,
    first: Duration,
    events: usize,
}

fn show(client: &mut TcpStream, began: Instant) -> Result<Shown, String> {
    let mut shown = Shown::default();
    let mut bytes = Vec::new();
    let mut scan = HeadScan::default();
    let head_len = loop {
        read(client, &mut bytes)?;
        if let Some(n) = scan.advance(&bytes).map_err(|e| e.message().to_owned())? {
            break n;
        }
    };
    let head = ResponseHead::parse(&bytes[..head_len]).map_err(|e| e.message().to_owned())?;
    let timing = head
        .fields
        .get(&bytes[..head_len], "server-timing")
        .unwrap_or_default();
    shown.stages = String::from_utf8_lossy(timing).into_owned();
    bytes.drain(..head_len);
    let mut chunks = ChunkScan::default();
    let mut events = Vec::new();
    loop {
        let used = chunks
            .feed(&bytes, |data| events.extend_from_slice(data))
            .map_err(|e| e.0)?;
        bytes.drain(..used);
        while let Some(end) = events.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = events.drain(..end + 2).collect();
            shown.events += 1;
            show_event(&event, &mut shown, began);
        }
        if chunks.done() {
            break;
        }
        read(client, &mut bytes)?;
    }
    match head.status {
        200 if shown.first > Duration::ZERO => Ok(shown),
        status => Err(format!(
            "status {status}: {}",
            String::from_utf8_lossy(&events)
        )),
    }
}

fn show_event(event: &[u8], shown: &mut Shown, began: Instant) {
    let Some(data) = event.strip_prefix(b"data: ") else {
        return;
    };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else {
        return;
    };
    if let Some(text) = value["choices"][0]["delta"]["content"]
        .as_str()
        .filter(|t| !t.is_empty())
    {
        if shown.first == Duration::ZERO {
            shown.first = began.elapsed();
        }
        print!("{text}");
        let _ = std::io::stdout().flush();
    }
}

fn read(client: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), String> {
    let mut piece = [0u8; 4096];
    match client.read(&mut piece) {
        Ok(0) => Err("the proxy closed the connection".into()),
        Ok(n) => {
            bytes.extend_from_slice(&piece[..n]);
            Ok(())
        }
        Err(e) => Err(format!("the answer did not come: {e}")),
    }
}
