//! The offloading connector: what cannot be pulled is computed, and never goes unnoticed.

use std::net::SocketAddr;
use std::time::Duration;

use pdsim::{EngineOptions, KvMode, Sim};
use serde_json::{Value, json};

use crate::client::*;
use crate::sglang::{aside, world};

const SHORT: Duration = Duration::from_millis(150);

struct Pair {
    sim: Sim,
    p: SocketAddr,
    d: SocketAddr,
}

fn pair(change: impl Fn(&mut EngineOptions)) -> Pair {
    let sim = world(1, 1, KvMode::Offloading, |engine| {
        engine.cached_details = true;
        change(engine);
    });
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    Pair { sim, p, d }
}

/// 170 bytes: three blocks of 48, and a rest. With `tag` at its end, the first two blocks are those of all.
fn long(tag: &str) -> Value {
    json!({"prompt": format!("{}{tag:*<50}", "the same beginning. ".repeat(6)), "max_tokens": 8})
}

impl Pair {
    fn at_p(&self, body: &Value, id: &str) -> Value {
        let mut body = body.clone();
        body["max_tokens"] = json!(1);
        body["kv_transfer_params"] = json!({"remote_decoder": {"kv_request_id": id}});
        body
    }

    fn party(&self, engine: usize, id: &str) -> Value {
        let side = self.sim.side(engine).expect("a peer port");
        json!({"kv_request_id": id, "remote_host": side.ip().to_string(), "remote_port": side.port()})
    }

    fn at_d(&self, body: &Value, id: &str) -> Value {
        let mut body = body.clone();
        body["kv_transfer_params"] = json!({"remote_prefiller": self.party(0, id)});
        body
    }

    /// What D says is right; and how many tokens it did not have to compute.
    fn ask_d(&self, body: &Value) -> u64 {
        let answer = call(self.d, COMPLETIONS, body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let hash = pdsim::prompt_hash(body["prompt"].as_str().unwrap());
        let answer = answer.json();
        assert_eq!(choice_text(&answer, 0), pdsim::expected(hash, 0, 8));
        let details = &answer["usage"]["prompt_tokens_details"];
        details["cached_tokens"].as_u64().unwrap()
    }
}

#[test]
fn whole_blocks_never_have_to_be_computed_twice() {
    let pair = pair(|_| {});
    let body = long("A");
    assert_eq!(
        call(pair.p, COMPLETIONS, &pair.at_p(&body, "1")).status,
        200
    );
    assert_eq!(pair.sim.ledger().held_now, 1);
    assert_eq!(pair.ask_d(&pair.at_d(&body, "1")), 48);
    // D first.
    let body = long("B");
    let waiting = aside(pair.d, COMPLETIONS, &pair.at_d(&body, "2"));
    soon("D waits", || pair.sim.open_requests(1) == 1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished());
    call(pair.p, COMPLETIONS, &pair.at_p(&body, "2"));
    assert_eq!(waiting.join().unwrap().status, 200);
    // Less than a block is nothing to be fetched.
    let body = json!({"prompt": "short", "max_tokens": 8});
    call(pair.p, COMPLETIONS, &pair.at_p(&body, "3"));
    assert_eq!(pair.ask_d(&pair.at_d(&body, "3")), 0);
    let ledger = pair.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (2, 2, 0));
    assert_eq!((ledger.loaded, ledger.recomputed, ledger.unmet), (2, 0, 0));
}

#[test]
fn what_is_not_there_is_never_wrong_and_never_unnoticed() {
    let pair = pair(|engine| engine.patience = SHORT);
    let mut expected = 0;
    let mut recomputes = |body: &Value, violations: u64, what: &str| {
        let before = pair.sim.ledger().violation_count;
        pair.ask_d(body);
        expected += 1;
        let ledger = pair.sim.ledger();
        assert_eq!(ledger.recomputed, expected, "{what}");
        assert_eq!(
            ledger.violation_count,
            before + violations,
            "{what}: {:?}",
            ledger.violations
        );
    };
    recomputes(
        &pair.at_d(&long("A"), "1"),
        0,
        "an id that P never hears of",
    );
    for (field, value) in [
        ("kv_request_id", json!(null)),
        ("remote_host", json!("")),
        ("remote_port", json!(null)),
        ("remote_host", json!("10.9.9.9")),
        ("remote_port", json!(pair.p.port())),
    ] {
        let mut bad = pair.at_d(&long(field), "2");
        bad["kv_transfer_params"]["remote_prefiller"][field] = value;
        recomputes(&bad, 1, field);
    }
    call(pair.p, COMPLETIONS, &pair.at_p(&long("C"), "3"));
    recomputes(&pair.at_d(&long("D"), "3"), 1, "another prompt's");
    assert_eq!(pair.sim.ledger().wrong_prompt, 1);
    recomputes(&pair.at_d(&long("C"), "3"), 1, "an id that was used");
    assert_eq!(pair.sim.ledger().reused, 1);
    pair.sim.kill(0);
    recomputes(&pair.at_d(&long("E"), "4"), 0, "a dead P");
}

#[test]
fn roles_that_exclude_each_other_are_never_unnoticed() {
    let pair = pair(|engine| engine.patience = SHORT);
    let (party, decoder) = (pair.party(0, "x"), json!({"kv_request_id": "x"}));
    for params in [
        json!({"remote_prefiller": party, "remote_decoder": decoder}),
        json!({"remote_prefiller": party, "remote_kv_source": party}),
        json!({"remote_decoder": {}}),
        json!({"remote_decoder": "x"}),
        json!({"remote_kv_source": {"kv_request_id": "x"}}),
    ] {
        let before = pair.sim.ledger().malformed;
        let mut body = pair.at_p(&long("A"), "1");
        body["kv_transfer_params"] = params.clone();
        call(pair.p, COMPLETIONS, &body);
        assert!(pair.sim.ledger().malformed > before, "{params}");
    }
    let before = pair.sim.ledger().violation_count;
    call(pair.d, COMPLETIONS, &pair.at_p(&long("A"), "1"));
    assert_eq!(pair.sim.ledger().violation_count, before + 1);
}

#[test]
fn a_source_never_gives_more_than_it_has() {
    let pair = pair(|_| {});
    // D computes it for itself.
    assert_eq!(pair.ask_d(&long("A")), 0);
    assert_eq!(pair.ask_d(&long("A")), 48, "its own cache");
    let mut at_p = pair.at_p(&long("B"), "1");
    at_p["kv_transfer_params"]["remote_kv_source"] = pair.party(1, "2");
    let details = |body: &Value| {
        let usage = call(pair.p, COMPLETIONS, body).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(details(&at_p), 32);
    assert_eq!(details(&at_p), 48, "by now it has all");
    assert!(pair.sim.ledger().violations[0].contains("kv_request_id 1 again"));
    assert_eq!(pair.sim.ledger().violation_count, 1);
}
