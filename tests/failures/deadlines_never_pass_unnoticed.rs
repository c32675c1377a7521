//! Each wait for an engine has its limit; passing it is a 504 that names the engine and the limit, counted
//! as that limit. A connect that takes too long moves on to the next instance instead.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pdrelay::config::{Address, Config, Role};
use pdrelay::server::Server;
use pdsim::Fault;

use super::{ask, failures, left_out, message, standing};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Rig, completion, config, engines, rig_with};

const SHORT: Duration = Duration::from_millis(300);
/// Limits are looked at every 100 ms; the rest is for a busy machine.
const LATE: Duration = Duration::from_secs(9);

fn quick(handshake: &str, p: usize, d: usize, change: fn(&mut Config)) -> Rig {
    rig_with(handshake, engines(p, d), |c| {
        c.health_check.enabled = false;
        change(c);
    })
}

/// The stage answers nothing: 504 within the limit.
fn silent(engine: usize, wait: &str, change: fn(&mut Config)) {
    let rig = quick("nixl", 1, 1, change);
    rig.sim.set_fault(engine, Some(Fault::HangBeforeHead));
    let mut client = rig.client();
    let began = Instant::now();
    let response = client.post("/v1/completions", &completion("x", ""));
    let took = began.elapsed();
    assert_eq!(response.status, 504, "{}", response.text());
    assert!(took >= SHORT && took < SHORT + LATE, "{took:?}");
    let message = message(&response);
    let address = rig.sim.addresses()[engine].to_string();
    assert!(message.contains(&address), "{message}");
    assert_eq!(
        rig.metric(&format!("pdrelay_timeouts_total{{wait=\"{wait}\"}}")),
        1.0
    );
    assert_eq!(failures(&rig, engine, "timeout"), 1.0);
    assert_eq!(
        rig.metric("pdrelay_request_errors_total{kind=\"timeout\"}"),
        1.0
    );
    // Nobody else is there to be asked, and the same one is not asked again; the client's connection serves on.
    assert_eq!(rig.posts(engine).len(), 1);
    rig.sim.set_fault(engine, None);
    assert_eq!(
        client.post("/v1/completions", &completion("x", "")).status,
        200
    );
    assert_eq!(standing(&rig, engine)["requests"], 0);
}

#[test]
fn a_silent_prefill() {
    silent(0, "prefill", |c| c.timeouts.prefill = SHORT);
}

#[test]
fn a_silent_decode() {
    silent(1, "decode_head", |c| c.timeouts.decode_head = SHORT);
}

#[test]
fn a_request_that_takes_too_long_as_a_whole() {
    silent(0, "request", |c| c.timeouts.request = SHORT);
    silent(1, "request", |c| c.timeouts.request = SHORT);
}

/// P's head comes at once, its body never.
#[test]
fn a_prefill_that_stops_within_its_answer() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\":";
    let p = Scripted::start(move |_, _| Say::Bytes(head.to_vec()));
    let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    let roles = [Role::Prefill, Role::Decode];
    let mut config = config("nixl", &roles, &[p.address, d.address]);
    config.timeouts.prefill = SHORT;
    let server = Server::start(config).unwrap();
    let mut client = Client::connect(server.address);
    let response = client.post("/v1/completions", &completion("x", ""));
    assert_eq!(response.status, 504, "{}", response.text());
    let said = message(&response);
    assert!(said.contains(&p.address.to_string()), "{said}");
    assert_eq!((p.requests().len(), d.requests().len()), (1, 0));
    let page = client.get("/metrics").text();
    for line in [
        "pdrelay_timeouts_total{wait=\"prefill\"} 1".to_owned(),
        format!(
            "pdrelay_upstream_failures_total{{role=\"prefill\",instance=\"{}\",kind=\"timeout\"}} 1",
            p.address
        ),
    ] {
        assert!(page.lines().any(|l| l == line), "no {line}");
    }
}

/// A stream that falls silent is broken off with a word of why.
#[test]
fn a_silent_stream() {
    let rig = quick("nixl", 1, 1, |c| c.timeouts.between_chunks = SHORT);
    rig.sim.set_fault(1, Some(Fault::Stall { after_chunks: 2 }));
    let began = Instant::now();
    let response = rig.post("/v1/completions", &completion("x", r#","stream":true"#));
    assert!(began.elapsed() < SHORT + LATE);
    assert_eq!(response.status, 200);
    assert!(!response.complete, "a broken stream must not end cleanly");
    let text = response.text();
    assert!(!text.contains("[DONE]"), "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("timeouts.between_chunks"), "{last}");
    assert_eq!(
        rig.metric("pdrelay_timeouts_total{wait=\"between_chunks\"}"),
        1.0
    );
    assert_eq!(
        rig.metric("pdrelay_broken_streams_total{reason=\"timeout\"}"),
        1.0
    );
    assert_eq!(failures(&rig, 1, "timeout"), 1.0);
}

/// A stream that goes on past the request's own limit is broken off for that reason, and no other.
#[test]
fn an_endless_stream() {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = Duration::from_millis(20);
    let rig = rig_with("nixl", engines, |c| {
        c.timeouts.request = Duration::from_secs(1);
    });
    let body = completion("x", r#","stream":true,"max_tokens":10000"#);
    let mut client = rig.client();
    let response = client.post("/v1/completions", &body);
    assert!(!response.complete);
    // In the middle of a chunk there is no place for a word of why.
    let raw = String::from_utf8_lossy(&response.raw_body).into_owned();
    let last = raw.trim_end().rsplit("\r\n").next().unwrap();
    let within = !client.rest.is_empty() || u32::from_str_radix(last, 16).is_ok();
    assert!(within || last.contains("timeouts.request"), "{last}");
    assert_eq!(rig.sum("pdrelay_broken_streams_total", &[]), 1.0);
    // The engine did nothing wrong.
    assert_eq!(failures(&rig, 1, "timeout"), 0.0);
}

/// An address where nothing ever answers a SYN: a listener whose queue is full.
struct BlackHole {
    address: SocketAddr,
    _listener: socket2::Socket,
    _queue: Vec<socket2::Socket>,
}

impl BlackHole {
    fn new() -> BlackHole {
        use socket2::{Domain, Socket, Type};
        let new = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = new();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fill = || {
            let socket = new();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        };
        let queue: Vec<_> = (0..8).map(|_| fill()).collect();
        std::thread::sleep(Duration::from_millis(20));
        let probe = TcpStream::connect_timeout(&address, Duration::from_millis(100));
        assert!(probe.is_err(), "it still accepts");
        BlackHole {
            address,
            _listener: listener,
            _queue: queue,
        }
    }
}

#[test]
fn a_connect_that_takes_too_long_moves_on() {
    let hole = BlackHole::new();
    let at = Address::tcp("127.0.0.1", hole.address.port());
    let rig = rig_with("nixl", engines(1, 2), |c| {
        c.health_check.enabled = false;
        c.timeouts.connect = SHORT;
        c.circuit_breaker.ejection_initial = Duration::from_secs(25);
        c.instances[1].address = at.clone();
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..4 {
        let began = Instant::now();
        let response = ask(&rig);
        assert_eq!(response.status, 200, "{}", response.text());
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest >= SHORT && slowest < SHORT + LATE, "{slowest:?}");
    let failed = rig.metric(&format!(
        "pdrelay_upstream_failures_total{{role=\"decode\",instance=\"{}\",kind=\"connect\"}}",
        hole.address
    ));
    // Once; after that it is left out.
    assert_eq!(failed, 1.0);
    assert_eq!(rig.metric("pdrelay_retries_total{reason=\"connect\"}"), 1.0);
    let ledger = rig.sim.ledger();
    assert_eq!((ledger.grants, ledger.fetched, ledger.reused), (4, 4, 0));
    assert!(left_out(&rig, 1));
}

#[test]
fn nothing_but_black_holes_is_an_error_after_one_round() {
    let holes = [BlackHole::new(), BlackHole::new()];
    let rig = rig_with("sequential", engines(2, 1), |c| {
        c.health_check.enabled = false;
        c.timeouts.connect = SHORT;
        for (instance, hole) in c.instances.iter_mut().zip(&holes) {
            instance.address = Address::tcp("127.0.0.1", hole.address.port());
        }
    });
    let began = Instant::now();
    let response = ask(&rig);
    let took = began.elapsed();
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(took >= 2 * SHORT && took < 2 * SHORT + LATE, "{took:?}");
    // The request's own limit counts while connecting, too.
    let rig = rig_with("sequential", engines(1, 1), |c| {
        c.health_check.enabled = false;
        c.timeouts.request = SHORT;
        c.timeouts.connect = Duration::from_secs(20);
        c.instances[0].address = Address::tcp("127.0.0.1", holes[0].address.port());
    });
    let began = Instant::now();
    assert_eq!(ask(&rig).status, 504);
    assert!(began.elapsed() < SHORT + LATE);
}

/// With `prefill_failure: decode_only` a P that is silent, dead or failing costs time, not the answer.
#[test]
fn decode_alone_serves_when_every_prefill_fails() {
    let faults = [
        Some(Fault::HangBeforeHead),
        Some(Fault::Status(500)),
        Some(Fault::Status(400)),
        None,
    ];
    for fault in faults {
        let rig = quick("nixl", 1, 1, |c| {
            c.timeouts.prefill = SHORT;
            c.prefill_failure = pdrelay::config::PrefillFailure::DecodeOnly;
        });
        match fault {
            Some(fault) => rig.sim.set_fault(0, Some(fault)),
            None => rig.sim.kill(0),
        }
        let text = "nobody prefills this";
        let response = rig.post("/v1/completions", &completion(text, r#","max_tokens":3"#));
        if let Some(Fault::Status(400)) = fault {
            // What P says of the request is an answer.
            assert_eq!(response.status, 400, "{}", response.text());
            continue;
        }
        assert_eq!(response.status, 200, "{fault:?}: {}", response.text());
        let right = pdsim::expected(pdsim::prompt_hash(text), 0, 3);
        assert_eq!(response.generated(), right);
        assert_eq!(
            rig.metric("pdrelay_prefill_skipped_total{reason=\"no_prefill\"}"),
            1.0
        );
    }
}
