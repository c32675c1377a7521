//! With one of two instances of a role refusing connections, no client sees it.

use std::time::{Duration, Instant};

use super::{ask, failures, message};
use crate::support::{Rig, completion, engines, rig_with};

const CLIENTS: usize = 32;
const EACH: usize = 32;

fn without_probes(handshake: &str, p: usize, d: usize) -> Rig {
    rig_with(handshake, engines(p, d), |c| c.health_check.enabled = false)
}

/// 1,024 requests at concurrency 32. Gives the number that failed; text that came must be right.
fn storm(rig: &Rig) -> usize {
    let one = |client: usize| {
        let mut connection = rig.client();
        let mut failed = 0;
        for i in 0..EACH {
            let text = format!("client {client} request {i}");
            let stream = if i % 2 == 0 { r#","stream":true"# } else { "" };
            let body = completion(&text, &format!(r#","max_tokens":3{stream}"#));
            let response = connection.post("/v1/completions", &body);
            // A D that cannot read the KV of a P that died says so in a stream that is else well-formed.
            let lost = response.text().contains("KV load failure");
            if response.status == 200 && response.complete && !lost {
                let right = pdsim::expected(pdsim::prompt_hash(&text), 0, 3);
                assert_eq!(response.generated(), right);
            } else {
                failed += 1;
                connection = rig.client();
            }
        }
        failed
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|c| {
                scope.spawn({
                    let one = &one;
                    move || one(c)
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    })
}

fn one_dead(role: &str, dead: usize) {
    let rig = without_probes("nixl", 2, 2);
    rig.sim.kill(dead);
    let began = Instant::now();
    assert_eq!(storm(&rig), 0);
    // All that were under way at its first failure, then one trial per term, the first after a second.
    let tries = failures(&rig, dead, "connect");
    let most = CLIENTS as f64 + began.elapsed().as_secs_f64();
    assert!(
        (1.0..=most).contains(&tries),
        "{tries} connects to a dead {role} instance"
    );
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    let all = (CLIENTS * EACH) as u64;
    assert_eq!(
        (ledger.grants, ledger.fetched),
        (all, all),
        "a prefill too many or too few"
    );
}

#[test]
fn a_dead_decode() {
    one_dead("decode", 2);
}

#[test]
fn a_dead_prefill() {
    one_dead("prefill", 0);
}

/// It dies and comes back in the middle of the traffic. What it was just answering is lost, nothing else;
/// and nobody gets wrong text.
#[test]
fn an_instance_that_comes_and_goes() {
    let rig = without_probes("nixl", 2, 2);
    let failed = std::thread::scope(|scope| {
        let storm = scope.spawn(|| storm(&rig));
        for engine in [3, 1] {
            rig.sim.kill(engine);
            std::thread::sleep(Duration::from_millis(30));
            rig.sim.restart(engine);
        }
        storm.join().unwrap()
    });
    assert!(
        failed <= 2 * CLIENTS,
        "{failed} requests failed by two restarts"
    );
    let ledger = rig.sim.ledger();
    assert_eq!((ledger.wrong_prompt, ledger.reused), (0, 0));
    assert_eq!(storm(&rig), 0);
}

/// What needs no stages is answered by whoever is there.
#[test]
fn forwarded_requests_find_a_living_engine() {
    for alive in [0, 1, 2, 3] {
        let rig = without_probes("nixl", 2, 2);
        (0..4).filter(|e| *e != alive).for_each(|e| rig.sim.kill(e));
        for _ in 0..2 {
            assert_eq!(rig.get("/v1/models").status, 200, "only {alive} is alive");
            let response = rig.post("/tokenize", r#"{"model":"dummy","prompt":"x"}"#);
            assert_eq!(response.status, 200, "{}", response.text());
        }
    }
}

#[test]
fn all_of_a_role_dead_is_an_error_at_once() {
    for (dead, role, status) in [([0, 1], "prefill", 503), ([2, 3], "decode", 502)] {
        let rig = without_probes("nixl", 2, 2);
        dead.iter().for_each(|engine| rig.sim.kill(*engine));
        for _ in 0..5 {
            let began = Instant::now();
            let response = ask(&rig);
            assert_eq!(response.status, status, "{}", response.text());
            assert!(response.header("x-request-id").is_some());
            let message = message(&response);
            assert!(
                message.contains(&format!("none of the 2 {role} instances")),
                "{message}"
            );
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "{:?}",
                began.elapsed()
            );
        }
        // All are ejected, so ejection is ignored: the first that is back serves.
        rig.sim.restart(dead[1]);
        assert_eq!(ask(&rig).status, 200);
    }
}

/// P dies while it works on one request and after it has handed another's KV over.
#[test]
fn a_prefill_that_dies_is_a_503_and_streams_go_on() {
    let mut engines = engines(1, 1);
    engines[0].timing.prefill_tokens_per_s = 100.0;
    engines[1].timing.decode_tick = Duration::from_millis(20);
    let rig = rig_with("nixl", engines, |c| c.health_check.enabled = false);
    let mut streaming = rig.client();
    let body = completion("short", r#","stream":true,"max_tokens":60"#);
    streaming.send(crate::support::post_bytes(
        "/v1/completions",
        &body,
        "connection: close\r\n",
    ));
    assert!(streaming.head().starts_with("HTTP/1.1 200"));
    let mut waiting = rig.client();
    let long = completion(&"word ".repeat(400), "");
    waiting.send(crate::support::post_bytes("/v1/completions", &long, ""));
    crate::support::eventually("P works", || rig.sim.open_requests(0) > 0);
    rig.sim.kill(0);
    let began = Instant::now();
    for response in [waiting.response(), ask(&rig)] {
        assert_eq!(response.status, 503, "{}", response.text());
        assert!(response.header("retry-after").is_some());
        let message = message(&response);
        assert!(message.contains("prefill"), "{message}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // What is left of the stream, to its end.
    let rest = String::from_utf8_lossy(&streaming.to_end()).into_owned();
    assert_eq!(rest.matches("\"text\"").count(), 60, "{rest}");
}

/// That nobody can be reached now is not why the request failed: the answer also names what did.
#[test]
fn what_went_wrong_first_is_not_forgotten() {
    let rig = without_probes("nixl", 1, 1);
    rig.sim.set_fault(1, Some(pdsim::Fault::HangBeforeHead));
    let mut client = rig.client();
    let body = completion("x", "");
    client.send(crate::support::post_bytes("/v1/completions", &body, ""));
    crate::support::eventually("D works", || rig.sim.open_requests(1) > 0);
    rig.sim.kill(1);
    let response = client.response();
    assert_eq!(response.status, 502, "{}", response.text());
    let message = message(&response);
    assert!(
        message.starts_with("none of the 1 decode instances can be reached; before that: ")
            && message.contains("decode_head 127.0.0.1:"),
        "{message}"
    );
}
