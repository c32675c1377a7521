//! One user's bytes never reach another: ten thousand requests over a few connections to the engines, with
//! clients that time out, leave, come back and pipeline, and engines that fail in the middle. Each token of
//! the simulator's text names the prompt it belongs to, so a foreign byte is seen wherever it turns up.
//!
//! In every driver mode: what this machine gives, a ring without DEFER_TASKRUN, epoll by choice, and epoll
//! because a seccomp filter forbids io_uring; and with each way of pacing the shards.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pdsim::Sim;

use crate::support::{Client, MODEL, engines, eventually, rig_with};

use super::binary::{Denied, Process};
use super::ms;

const WORKERS: u64 = 16;

/// splitmix64: a seed names a whole run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len() as u64) as usize]
    }
}

/// One request and what must come of it.
struct Ask {
    id: String,
    bytes: Vec<u8>,
    mark: String,
    text: String,
    /// Something goes wrong on purpose: a part of the text, or an error, is right too.
    trouble: bool,
}

#[derive(Default)]
struct Tally {
    asked: AtomicU64,
    whole: AtomicU64,
    left: AtomicU64,
    troubled: AtomicU64,
    unlucky: AtomicU64,
}

fn ask(dice: &mut Dice, name: &str, calm: bool) -> Ask {
    let tokens = 1 + dice.roll(6);
    let stream = dice.roll(2) == 0;
    let pad = "x".repeat(if dice.roll(40) == 0 {
        40_000
    } else {
        dice.roll(200) as usize
    });
    let prompt = format!("{name} {pad}");
    let more = format!(r#""max_tokens":{tokens},"stream":{stream}"#);
    let (path, body, hash) = if dice.roll(2) == 0 {
        let messages = format!(r#"[{{"role":"user","content":"{prompt}"}}]"#);
        let hash = pdsim::messages_hash(&messages).expect("messages");
        let body = format!(r#"{{"model":"{MODEL}","messages":{messages},{more}}}"#);
        ("/v1/chat/completions", body, hash)
    } else {
        let body = format!(r#"{{"model":"{MODEL}","prompt":"{prompt}",{more}}}"#);
        ("/v1/completions", body, pdsim::prompt_hash(&prompt))
    };
    let mut fields = String::new();
    let mut trouble = false;
    match dice.roll(if calm { 800 } else { 1000 }) {
        0..200 => {
            let shapes = [
                "chunk-ext",
                "trailers",
                "close-delimited",
                "length",
                "http10",
                "split-chunks",
                "103-first",
            ];
            fields = format!("x-sim-shape: {}\r\n", dice.one_of(&shapes));
        }
        800..996 => {
            trouble = true;
            let faults = [
                "accept-then-close",
                "refuse",
                "bad-head",
                "half-head",
                "half-body",
                "garbage",
                "status:500",
                "status:400",
                "reset-mid-stream:1",
                "clean-early-end:1",
            ];
            let leg = dice.one_of(&["", "-prefill", "-decode"]);
            fields = format!("x-sim-fault{leg}: {}\r\n", dice.one_of(&faults));
        }
        996.. => {
            trouble = true;
            let faults = [
                "-prefill: hang-before-head",
                "-decode: hang-before-head",
                "-decode: stall:1",
            ];
            fields = format!("x-sim-fault{}\r\n", dice.one_of(&faults));
        }
        _ => {}
    }
    let framing = if dice.roll(3) == 0 {
        let (a, b) = body.split_at(body.len() / 2);
        let framed = format!("{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n", a.len(), b.len());
        format!("transfer-encoding: chunked\r\n\r\n{framed}")
    } else {
        format!("content-length: {}\r\n\r\n{body}", body.len())
    };
    Ask {
        bytes: format!(
            "POST {path} HTTP/1.1\r\nhost: t\r\nx-request-id: {name}\r\n{fields}{framing}"
        )
        .into(),
        id: name.to_owned(),
        mark: pdsim::mark(hash),
        text: pdsim::expected(hash, 0, tokens as u32),
        trouble,
    }
}

/// Every token in `text` must be this request's.
fn only_own(ask: &Ask, text: &str) {
    for (at, _) in text.match_indices(" w") {
        let token = &text.as_bytes()[at + 2..text.len().min(at + 12)];
        if token.len() == 10 && token.iter().all(u8::is_ascii_hexdigit) {
            assert!(
                text[at..].starts_with(&ask.mark),
                "{} got foreign text: {text}",
                ask.id
            );
        }
    }
}

/// Reads the answer to `ask`; false if the connection cannot be used any more.
fn take(client: &mut Client, ask: &Ask, tally: &Tally) -> bool {
    let response = client.response();
    let text = response.text();
    assert_eq!(response.header("x-request-id"), Some(&*ask.id), "{text}");
    only_own(ask, &text);
    if response.status == 200 {
        let whole = response.complete && !ask.trouble;
        let generated = generated(&text);
        assert!(ask.text.starts_with(&generated), "{}: {text}", ask.id);
        assert!(!whole || generated == ask.text, "{}: {text}", ask.id);
    }
    let cell = match (ask.trouble, response.status) {
        (true, _) => &tally.troubled,
        (false, 200) if response.complete => &tally.whole,
        // A connection that a troubled request made its engine close just now, with no retry left in the
        // budget; or a machine that is busy with other things. Not often.
        (false, 200 | 502 | 504) => &tally.unlucky,
        _ => panic!("{}: {text}", ask.id),
    };
    cell.fetch_add(1, Ordering::Relaxed);
    response.complete && response.header("connection") != Some("close")
}

/// As far as it can be read: a troubled answer may be no JSON at all.
fn generated(text: &str) -> String {
    let of = |json: &str| -> Option<String> {
        let value: serde_json::Value = serde_json::from_str(json).ok()?;
        let choice = &value["choices"][0];
        let all = [
            &choice["text"],
            &choice["delta"]["content"],
            &choice["message"]["content"],
        ];
        Some(all.iter().filter_map(|v| v.as_str()).collect())
    };
    if text.starts_with("data:") {
        return text
            .split("\n\n")
            .filter_map(|e| of(e.strip_prefix("data: ")?))
            .collect();
    }
    of(text).unwrap_or_default()
}

fn worker(address: SocketAddr, seed: u64, number: u64, share: u64, tally: &Tally) {
    let mut dice = Dice(seed ^ number.wrapping_mul(0xa076_1d64_78bd_642f));
    let mut client = Client::connect(address);
    let mut asked = 0;
    while asked < share {
        let mut asks = Vec::new();
        let many = if dice.roll(3) == 0 {
            2 + dice.roll(4)
        } else {
            1
        };
        let leaving = dice.roll(6) == 0;
        for i in 0..many {
            // Trouble may close the connection, so only the last of several may ask for it.
            let calm = leaving || i + 1 < many;
            asks.push(ask(
                &mut dice,
                &format!("r-{seed:x}-{number}-{asked}"),
                calm,
            ));
            asked += 1;
        }
        tally.asked.fetch_add(many, Ordering::Relaxed);
        let mut bytes = asks
            .iter()
            .flat_map(|a| a.bytes.iter().copied())
            .collect::<Vec<u8>>();
        if leaving {
            if dice.roll(4) == 0 {
                bytes.truncate(dice.roll(bytes.len() as u64) as usize);
            }
            let _ = client.stream.write_all(&bytes);
            leave(&mut dice, client, &asks);
            client = Client::connect(address);
            tally.left.fetch_add(many, Ordering::Relaxed);
            continue;
        }
        let goes_on = send_and_take(&mut client, &bytes, &asks, tally);
        if !goes_on || dice.roll(50) == 0 {
            client = Client::connect(address);
        }
    }
}

fn send_and_take(client: &mut Client, bytes: &[u8], asks: &[Ask], tally: &Tally) -> bool {
    client.send(bytes);
    for ask in asks {
        if !take(client, ask, tally) {
            return false;
        }
    }
    assert!(client.rest.is_empty(), "more than was asked for");
    true
}

/// Closes or resets, at some moment in the first milliseconds of the answer.
fn leave(dice: &mut Dice, mut client: Client, asks: &[Ask]) {
    match dice.roll(3) {
        0 => {}
        1 => thread::sleep(Duration::from_micros(dice.roll(4000))),
        _ => {
            // What has come so far must be the first one's.
            use std::io::Read;
            let _ = client.stream.set_read_timeout(Some(ms(1 + dice.roll(4))));
            let mut piece = [0; 700];
            if let Ok(n) = client.stream.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..n]).into_owned();
                if n > 0 && text.contains("x-request-id") {
                    assert!(text.contains(&asks[0].id), "{text}");
                }
            }
        }
    }
    if dice.roll(2) == 0 {
        let _ = socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO));
    }
}

/// The whole of it against the proxy at `address`.
fn storm(mode: &str, address: SocketAddr, sim: &Sim, requests: u64) {
    let seed = u64::from(std::process::id()) << 20 ^ u64::from(address.port());
    let seed = std::env::var("NEVER_CROSSED_SEED").map_or(seed, |s| s.parse().expect("a seed"));
    let began = Instant::now();
    let tally = Tally::default();
    println!("{mode}: NEVER_CROSSED_SEED={seed}");
    thread::scope(|scope| {
        for number in 0..WORKERS {
            let tally = &tally;
            scope.spawn(move || worker(address, seed, number, requests / WORKERS, tally));
        }
    });
    let count = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let (asked, whole, left) = (count(&tally.asked), count(&tally.whole), count(&tally.left));
    let (troubled, unlucky) = (count(&tally.troubled), count(&tally.unlucky));
    println!(
        "{mode}: {asked} asked, {whole} whole, {troubled} troubled, {left} left, {unlucky} unlucky, {:?}",
        began.elapsed()
    );
    assert!(asked >= requests - WORKERS && whole > requests / 2 && unlucky < requests / 20);
    assert!(left > requests / 10 && troubled > requests / 50);
    let ledger = sim.ledger();
    assert_eq!(
        ledger.violations,
        Vec::<String>::new(),
        "NEVER_CROSSED_SEED={seed}"
    );
    let page = Client::connect(address).get("/metrics").text();
    assert!(
        page.contains("pdrelay_panics_total 0\n"),
        "a panic: NEVER_CROSSED_SEED={seed}"
    );
}

fn sim() -> Sim {
    let mut engines = engines(1, 1);
    engines
        .iter_mut()
        .for_each(|e| e.keep_alive = Some(ms(1000)));
    Sim::start(pdsim::Options {
        engines,
        record: false,
        ..pdsim::Options::default()
    })
    .expect("the simulator starts")
}

const REQUESTS: u64 = 10_000;

#[test]
fn in_this_process() {
    let sim = sim();
    let rig = rig_with("nixl", engines(0, 0), |c| {
        let roles = [
            pdrelay::config::Role::Prefill,
            pdrelay::config::Role::Decode,
        ];
        c.instances = crate::support::config("nixl", &roles, sim.addresses()).instances;
        c.limits.idle_per_instance_max = 4;
        c.retry.initial_backoff = ms(1);
        c.timeouts.pool_idle = ms(50);
        c.timeouts.connect = ms(10_000);
        c.timeouts.prefill = ms(800);
        c.timeouts.decode_head = ms(800);
        c.timeouts.between_chunks = ms(800);
        c.health_check.enabled = false;
    });
    storm("in process", rig.server.address, &sim, REQUESTS);
}

fn as_a_process(mode: &str, denied: Denied, environment: &[(&str, &str)], line: &str) {
    with_more(mode, denied, environment, line, "");
}

fn with_more(mode: &str, denied: Denied, environment: &[(&str, &str)], line: &str, more: &str) {
    let sim = sim();
    let [p, d] = sim.addresses() else { panic!() };
    let config = format!(
        "handshake: nixl\nhost: 127.0.0.1\nshards: 2\nprefill: [{p}]\ndecode: [{d}]\n\
         limits: {{idle_per_instance_max: 4}}\nhealth_check: {{enabled: false}}\n\
         retry: {{initial_backoff: 1ms}}\n\
         timeouts: {{pool_idle: 50ms, connect: 10s, prefill: 800ms, decode_head: 800ms, between_chunks: 800ms}}\n\
         {more}"
    );
    let Some(process) = Process::start(&config, denied, environment) else {
        println!("{mode}: this machine does not let a test deny it");
        return;
    };
    assert!(
        process.said(line),
        "{line:?} is not in {}",
        process.output()
    );
    let before = process.descriptors();
    storm(mode, process.address, &sim, REQUESTS);
    eventually("all descriptors are closed", || {
        process.descriptors() <= before
    });
    assert!(process.end(), "it did not end well");
}

#[test]
fn with_epoll_by_choice() {
    let forced = [("MONOIO_FORCE_LEGACY_DRIVER", "1")];
    as_a_process(
        "epoll by choice",
        Denied::Nothing,
        &forced,
        "epoll (MONOIO_FORCE_LEGACY_DRIVER is set)",
    );
}

#[test]
fn with_io_uring_forbidden() {
    let said = "epoll (io_uring+defer_taskrun: Operation not permitted (os error 1); \
                io_uring: Operation not permitted (os error 1))";
    as_a_process("io_uring forbidden", Denied::Rings, &[], said);
}

#[test]
fn with_a_ring_of_an_older_kernel() {
    let said = "io_uring (io_uring+defer_taskrun: Invalid argument (os error 22))";
    as_a_process("plain ring", Denied::DeferredRings, &[], said);
}

#[test]
fn with_a_batch_window() {
    let (said, more) = (", batch_window 500us", "batch_window: 500us\n");
    with_more("batch window", Denied::Nothing, &[], said, more);
}

#[test]
fn with_busy_polling() {
    let (said, more) = (
        "io_uring (defer_taskrun does not go with polling), busy_poll 2ms",
        "busy_poll: 2ms\n",
    );
    with_more("busy poll", Denied::Nothing, &[], said, more);
    let forced = [("MONOIO_FORCE_LEGACY_DRIVER", "1")];
    with_more(
        "busy poll, epoll",
        Denied::Nothing,
        &forced,
        "epoll (MONOIO_FORCE_LEGACY_DRIVER is set), busy_poll 2ms",
        more,
    );
}
