//! Strict engines behind a sidecar: the same text as one engine gives, every grant fetched or given back, and no field
//! that was meant for us.

use std::net::SocketAddr;
use std::time::Duration;

use pdrelay::server::Server;
use pdsim::{EngineOptions, Sim};

use super::beside;
use crate::support::{Client, aggregated, chat, completion, engines, eventually, post_bytes};

struct World {
    sim: Sim,
    server: Server,
    p: SocketAddr,
}

fn world(engines: Vec<EngineOptions>) -> World {
    let options = pdsim::Options {
        engines,
        record: true,
        ..pdsim::Options::default()
    };
    let sim = Sim::start(options).expect("the simulator starts");
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    let server = beside("sidecar", d, &[]);
    World { sim, server, p }
}

impl World {
    fn send(&self, path: &str, body: &str, more: &str) -> Client {
        let mut client = Client::connect(self.server.address);
        let all = format!(
            "x-prefiller-host-port: {}\r\nx-request-id: one\r\n{more}",
            self.p
        );
        client.send(post_bytes(path, body, &all));
        client
    }
}

#[test]
fn text_is_that_of_one_engine() {
    let single = aggregated(1);
    let world = world(engines(1, 1));
    for (path, body) in [
        (
            "/v1/chat/completions",
            chat("tell me", r#","max_tokens":12,"temperature":0"#),
        ),
        (
            "/v1/completions",
            completion("tell me", r#","max_tokens":12,"stream":true"#),
        ),
        (
            "/v1/completions",
            completion("[[eos@1]] x", r#","max_tokens":3"#),
        ),
    ] {
        let alone = single.post(path, &body).generated();
        let response = world.send(path, &body, "").response();
        assert_eq!((response.status, response.complete), (200, true));
        assert_eq!(response.generated(), alone, "{body}");
    }
    let ledger = world.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (3, 3, 0));
}

#[test]
fn clients_that_leave_never_strand_kv() {
    let mut all = engines(1, 1);
    all[1].timing.decode_tick = Duration::from_millis(20);
    let world = world(all);
    let body = completion("a long answer", r#","max_tokens":500,"stream":true"#);
    for _ in 0..5 {
        let mut client = world.send("/v1/completions", &body, "");
        let _ = client.head();
        drop(client);
    }
    for _ in 0..5 {
        // At once, wherever the request is by then.
        drop(world.send("/v1/completions", &body, ""));
    }
    eventually("nothing is held", || {
        let ledger = world.sim.ledger();
        ledger.held_now == 0 && ledger.grants > 0
    });
    eventually("nothing runs", || world.sim.open_requests(1) == 0);
    assert_eq!(world.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn faults_of_each_leg_are_what_they_are() {
    let world = world(engines(1, 1));
    let body = completion("x", r#","max_tokens":4"#);
    for (fault, statuses) in [
        ("x-sim-fault-prefill: status:503", [503, 503]),
        ("x-sim-fault-prefill: accept-then-close", [502, 502]),
        ("x-sim-fault-decode: status:500", [500, 500]),
    ] {
        let response = world
            .send("/v1/completions", &body, &format!("{fault}\r\n"))
            .response();
        assert!(
            statuses.contains(&response.status),
            "{fault}: {}",
            response.status
        );
    }
    // What D was given is spent: only of that P waits for its lease.
    assert!(world.sim.ledger().held_now <= 1);
}
