//! Engines that fail on purpose, and answers of odd shape.

use std::time::{Duration, Instant};

use pdsim::{Fault, FaultPlan, Options, Outcome, Sim};
use serde_json::json;

use crate::client::*;

fn stream_body() -> serde_json::Value {
    json!({"prompt": "a", "max_tokens": 6, "stream": true})
}

#[test]
fn a_fault_never_looks_like_success() {
    let (sim, p, _, _) = trio(|_| {});
    let ask = |fault: &str, body: &serde_json::Value| {
        let mut client = Client::new(p);
        client.call(COMPLETIONS, body, &[&format!("x-sim-fault: {fault}")])
    };
    for body in [prompt("A"), stream_body()] {
        for fault in ["refuse", "accept-then-close", "bad-head", "half-head"] {
            assert!(ask(fault, &body).is_none(), "{fault}");
        }
        for fault in ["half-body", "reset-mid-stream:3"] {
            let answer = ask(fault, &body).expect("a head");
            assert!(!answer.complete, "{fault}");
        }
        let answer = ask("status:503", &body).unwrap();
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_u64()),
            (503, Some(503))
        );
    }
    let cut = ask("clean-early-end:3", &stream_body()).unwrap();
    assert!(cut.complete && cut.chunks == 3 && !cut.text().contains("[DONE]"));
    let garbage = ask("garbage", &stream_body()).unwrap();
    assert!(!garbage.complete && garbage.chunks == 1);
    let garbage = ask("garbage", &prompt("A")).unwrap();
    assert!(
        garbage.complete && serde_json::from_slice::<serde_json::Value>(&garbage.body).is_err()
    );
    let begun = Instant::now();
    assert_eq!(ask("slow-head:80", &prompt("A")).unwrap().status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(80));
    assert_eq!(ask("slow-reader", &prompt("A")).unwrap().status, 200);
    let outcomes: Vec<_> = sim.transcript(0).iter().map(|r| r.outcome).collect();
    assert!(
        outcomes.contains(&Outcome::Faulted("half-body")),
        "{outcomes:?}"
    );
}

#[test]
fn a_stall_never_ends_by_itself() {
    let (sim, p, _, _) = trio(|_| {});
    for fault in ["hang-before-head", "stall:2"] {
        let mut client = Client::new(p);
        client
            .stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let header = format!("x-sim-fault: {fault}");
        client.send(post(COMPLETIONS, &stream_body().to_string(), &[&header]));
        let mut bytes = [0; 4096];
        while std::io::Read::read(&mut client.stream, &mut bytes).is_ok_and(|n| n > 0) {}
        assert_eq!(sim.open_requests(0), 1, "{fault}");
        drop(client);
        soon("it was noticed", || sim.open_requests(0) == 0);
    }
}

#[test]
fn a_fault_of_one_role_never_hits_the_other() {
    let (_sim, p, d, _) = trio(|_| {});
    let headers = ["x-sim-fault-decode: status:500"];
    assert_eq!(
        Client::new(p)
            .call(COMPLETIONS, &prompt("A"), &headers)
            .unwrap()
            .status,
        200
    );
    assert_eq!(
        Client::new(d)
            .call(COMPLETIONS, &prompt("A"), &headers)
            .unwrap()
            .status,
        500
    );
    let headers = ["x-sim-fault-prefill: status:500"];
    assert_eq!(
        Client::new(p)
            .call(COMPLETIONS, &prompt("A"), &headers)
            .unwrap()
            .status,
        500
    );
    assert_eq!(
        Client::new(d)
            .call(COMPLETIONS, &prompt("A"), &headers)
            .unwrap()
            .status,
        200
    );
}

#[test]
fn a_fault_set_from_outside_never_outlives_its_end() {
    let (sim, p, _, _) = trio(|_| {});
    let mut kept = Client::new(p);
    kept.call(COMPLETIONS, &prompt("A"), &[]).unwrap();
    sim.set_fault(0, Some(Fault::Refuse));
    assert!(std::net::TcpStream::connect(p).is_err());
    sim.set_fault(0, Some(Fault::AcceptThenClose));
    assert!(Client::new(p).is_closed());
    sim.set_fault(0, Some(Fault::Status(429)));
    assert_eq!(
        kept.call(COMPLETIONS, &prompt("A"), &[]).unwrap().status,
        429
    );
    sim.set_fault(0, None);
    assert_eq!(call(p, COMPLETIONS, &prompt("A")).status, 200);
}

#[test]
fn planned_faults_never_depend_on_chance() {
    let run = |seed: u64| -> Vec<u16> {
        let mut options = Options {
            seed,
            ..Options::pair(1, 0)
        };
        options.engines[0].faults = FaultPlan {
            rates: vec![(Fault::Status(503), 0.5)],
        };
        let sim = Sim::start(options).unwrap();
        let mut client = Client::new(sim.addresses()[0]);
        let mut ask = |i| {
            let id = format!("X-Request-Id: r{i}");
            client
                .call(COMPLETIONS, &prompt("A"), &[&id])
                .unwrap()
                .status
        };
        (0..40).map(&mut ask).collect()
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first, run(8));
    let bad = first.iter().filter(|s| **s == 503).count();
    assert!((8..32).contains(&bad), "{bad} of 40");
}

#[test]
fn odd_shapes_never_change_the_answer() {
    let (_sim, p, _, _) = trio(|_| {});
    // Without the time, which may move on in between.
    let steady = |text: String| -> String {
        let parts = text.split("\"created\":");
        parts
            .map(|p| p.trim_start_matches(|c: char| c.is_ascii_digit()))
            .collect()
    };
    let id = "X-Request-Id: r";
    for body in [prompt("A"), stream_body()] {
        let plain = steady(
            Client::new(p)
                .call(COMPLETIONS, &body, &[id])
                .unwrap()
                .text(),
        );
        for shape in [
            "chunk-ext",
            "trailers",
            "close-delimited",
            "length",
            "http10",
            "100-continue-first",
            "103-first",
            "byte-by-byte",
            "split-chunks",
            "chunked",
            "gzip",
        ] {
            let mut client = Client::new(p);
            let answer = client.call(COMPLETIONS, &body, &[id, &format!("x-sim-shape: {shape}")]);
            let answer = answer.unwrap();
            assert!(answer.complete, "{shape}");
            if shape == "gzip" {
                // One stored block: ten bytes of head, five of block, eight at the end.
                assert_eq!(answer.header("content-encoding"), Some("gzip"));
                let inner = answer.body[15..answer.body.len() - 8].to_vec();
                assert_eq!(steady(String::from_utf8(inner).unwrap()), plain);
                continue;
            }
            assert_eq!(steady(answer.text()), plain, "{shape}");
            match shape {
                "trailers" => assert_eq!(answer.trailers, ["x-sim-trailer: 1"]),
                "http10" => assert_eq!(answer.version, "HTTP/1.0"),
                "length" => assert!(answer.header("content-length").is_some()),
                "103-first" => assert_eq!(answer.interim, [103]),
                "100-continue-first" => assert_eq!(answer.interim, [100]),
                "split-chunks" => assert!(answer.chunks > 20),
                _ => {}
            }
        }
    }
}
