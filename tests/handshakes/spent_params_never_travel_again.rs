//! Params that a D may have read are spent: whatever happens to that D, the next try begins with a new
//! prefill. Params that no D has seen go to the next D as they are.

use pdsim::Fault;

use crate::support::{Rig, aggregated, completion, engines, post_bytes, rig, rig_with};

/// A rig whose first D ends every request in this way.
fn with_broken_decode(d: usize, fault: Fault, retry: bool) -> Rig {
    let mut engines = engines(1, d);
    engines[1].faults.rates = vec![(fault, 1.0)];
    rig_with("nixl", engines, |c| {
        c.retry.enabled = retry;
        c.health_check.enabled = false;
    })
}

fn ask(rig: &Rig, text: &str) -> crate::support::Response {
    rig.post("/v1/completions", &completion(text, r#","max_tokens":4"#))
}

/// Params of each request that a D got, in order.
fn params(rig: &Rig, engine: usize) -> Vec<String> {
    let posts = rig.posts(engine);
    let params = posts.iter().map(|leg| {
        let body: serde_json::Value = serde_json::from_slice(&leg.body).unwrap();
        body["kv_transfer_params"].to_string()
    });
    params.collect()
}

#[test]
fn a_decode_that_dies_before_its_head_costs_a_new_prefill() {
    let single = aggregated(1);
    for fault in [Fault::Refuse, Fault::AcceptThenClose] {
        let rig = with_broken_decode(2, fault, true);
        for i in 0..10 {
            let text = format!("prompt {i}");
            let response = ask(&rig, &text);
            assert_eq!(response.status, 200, "{fault:?}: {}", response.text());
            assert_eq!(response.generated(), ask(&single, &text).generated());
        }
        let failed = rig.posts(1).len();
        assert!(failed > 0, "{fault:?}: the broken D was never asked");
        assert_eq!(rig.posts(2).len(), 10);
        assert_eq!(rig.posts(0).len(), 10 + failed, "a new prefill per new try");
        let mut all = [params(&rig, 1), params(&rig, 2)].concat();
        let asked = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), asked, "{fault:?}: the same params twice");
        assert_eq!(rig.sim.ledger().reused, 0);
        assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
        let again = rig.metric(r#"pdrelay_retries_total{reason="reset"}"#);
        assert_eq!(again, failed as f64);
    }
}

/// With nobody left to try the client hears of it, after the first try and its two repetitions.
#[test]
fn tries_have_a_number() {
    let rig = with_broken_decode(1, Fault::Refuse, true);
    let response = ask(&rig, "x");
    assert_eq!(response.status, 502);
    let message = response.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains(&rig.sim.addresses()[1].to_string()),
        "{message}"
    );
    assert_eq!((rig.posts(0).len(), rig.posts(1).len()), (3, 3));
    assert_eq!(rig.sim.ledger().reused, 0);

    let rig = with_broken_decode(1, Fault::Refuse, false);
    assert_eq!(ask(&rig, "x").status, 502);
    assert_eq!((rig.posts(0).len(), rig.posts(1).len()), (1, 1));
}

/// A broken head counts like none: the client has seen no byte of it. Each further try is a new prefill,
/// and their number is bounded.
#[test]
fn a_broken_head_never_has_its_params_used_again() {
    let rig = rig("nixl", 1, 2);
    for fault in ["half-head", "bad-head"] {
        let before = rig.posts(0).len();
        let mut client = rig.client();
        let header = format!("x-sim-fault-decode: {fault}\r\n");
        client.send(post_bytes("/v1/completions", &completion("x", ""), &header));
        assert_eq!(client.response().status, 502, "{fault}");
        assert_eq!(rig.posts(0).len() - before, 3, "{fault}");
    }
    assert_eq!(rig.sim.ledger().reused, 0);
}

#[test]
fn a_decode_that_cannot_be_reached_costs_no_second_prefill() {
    let single = aggregated(1);
    for dead in [1, 2] {
        let rig = rig("nixl", 1, 2);
        rig.sim.kill(dead);
        for i in 0..6 {
            let text = format!("prompt {i}");
            let response = ask(&rig, &text);
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.generated(), ask(&single, &text).generated());
        }
        let alive = 3 - dead;
        assert_eq!((rig.posts(0).len(), rig.posts(alive).len()), (6, 6));
        let ledger = rig.sim.ledger();
        assert_eq!((ledger.grants, ledger.fetched, ledger.reused), (6, 6, 0));
        assert_eq!(ledger.violations, Vec::<String>::new());
    }
}
