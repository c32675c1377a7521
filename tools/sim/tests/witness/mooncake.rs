//! MooncakeConnector: engine ids, transfer ids, and who may not have been asked for what.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pdsim::{EngineOptions, KvMode, LoadFailure, Sim, Timing};
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
    let sim = world(1, 1, KvMode::Mooncake, change);
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    Pair { sim, p, d }
}

impl Pair {
    /// What the bootstrap server says.
    fn query(&self) -> Value {
        let mut client = Client::new(self.sim.side(0).expect("a bootstrap server"));
        client.send("GET /query HTTP/1.1\r\nHost: p\r\n\r\n");
        client.answer().expect("an answer").json()
    }

    fn at_p(&self, body: &Value, id: &str) -> Value {
        let mut body = body.clone();
        body["max_tokens"] = json!(1);
        body["kv_transfer_params"] =
            json!({"do_remote_prefill": false, "do_remote_decode": true, "transfer_id": id});
        body
    }

    fn at_d(&self, body: &Value, id: &str) -> Value {
        let mut body = body.clone();
        let there = format!("http://{}", self.sim.side(0).unwrap());
        body["kv_transfer_params"] = json!({"do_remote_prefill": true, "do_remote_decode": false,
            "transfer_id": id, "remote_bootstrap_addr": there,
            "remote_engine_id": self.query()["0"]["engine_id"]});
        body
    }
}

fn right(body: &Value) -> String {
    let hash = pdsim::prompt_hash(body["prompt"].as_str().unwrap());
    pdsim::expected(hash, 0, 8)
}

#[test]
fn d_never_has_to_come_second() {
    let pair = pair(|_| {});
    for (id, first) in [("xfer-1", true), ("xfer-2", false)] {
        let body = prompt(id);
        let (at_p, at_d) = (pair.at_p(&body, id), pair.at_d(&body, id));
        let of_d = if first {
            let of_p = call(pair.p, COMPLETIONS, &at_p);
            assert_eq!(
                (of_p.status, &of_p.json()["kv_transfer_params"]),
                (200, &Value::Null)
            );
            assert_eq!(pair.sim.ledger().held_now, 1);
            call(pair.d, COMPLETIONS, &at_d)
        } else {
            let waiting = aside(pair.d, COMPLETIONS, &at_d);
            soon("D waits", || pair.sim.open_requests(1) == 1);
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            assert_eq!(call(pair.p, COMPLETIONS, &at_p).status, 200);
            waiting.join().unwrap()
        };
        assert_eq!(of_d.status, 200, "{}", of_d.text());
        assert_eq!(choice_text(&of_d.json(), 0), right(&body));
    }
    let ledger = pair.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (2, 2, 0));
    // Both engines are named by who asks for them.
    let mut client = Client::new(pair.sim.side(0).unwrap());
    client.send("GET /other HTTP/1.1\r\nHost: p\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 404);
}

#[test]
fn an_id_is_never_good_for_a_second_use() {
    let pair = pair(|engine| engine.patience = SHORT);
    let body = prompt("A");
    let at_d = pair.at_d(&body, "xfer-1");
    call(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-1"));
    assert_eq!(call(pair.d, COMPLETIONS, &at_d).status, 200);
    let begun = Instant::now();
    assert_eq!(call(pair.d, COMPLETIONS, &at_d).status, 500);
    assert!(begun.elapsed() >= SHORT, "D finds out in the end only");
    let ledger = pair.sim.ledger();
    assert_eq!((ledger.fetched, ledger.reused), (1, 1));
    call(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-1"));
    assert!(pair.sim.ledger().violations[1].contains("xfer-1 again"));
}

#[test]
fn what_p_never_heard_of_is_never_served() {
    let pair = pair(|engine| engine.patience = SHORT);
    let body = prompt("A");
    assert_eq!(
        call(pair.d, COMPLETIONS, &pair.at_d(&body, "xfer-1")).status,
        500
    );
    assert_eq!(
        (pair.sim.ledger().unmet, pair.sim.ledger().violation_count),
        (1, 0)
    );
    // Nor what P could not keep: its first token was the last.
    let body = json!({"prompt": "ends at once [[eos@1]]", "max_tokens": 8});
    assert_eq!(
        call(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-2")).status,
        200
    );
    assert_eq!(
        call(pair.d, COMPLETIONS, &pair.at_d(&body, "xfer-2")).status,
        500
    );
    let mut at_p = pair.at_p(&body, "xfer-3");
    at_p["ignore_eos"] = json!(true);
    assert_eq!(call(pair.p, COMPLETIONS, &at_p).status, 200);
    assert_eq!(
        call(pair.d, COMPLETIONS, &pair.at_d(&body, "xfer-3")).status,
        200
    );
}

#[test]
fn wrong_places_and_engine_ids_are_never_served() {
    let pair = pair(|_| {});
    let body = prompt("A");
    call(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-1"));
    let good = pair.at_d(&body, "xfer-1");
    let side = pair.sim.side(0).unwrap();
    for (field, value) in [
        (
            "remote_engine_id",
            json!("c9612c8b-0810-42f1-b51c-5e1afb256efa"),
        ),
        ("remote_engine_id", json!("")),
        ("remote_bootstrap_addr", json!("http://127.0.0.1:1")),
        ("remote_bootstrap_addr", json!(side.to_string())),
        ("remote_bootstrap_addr", json!(format!("http://{}", pair.p))),
    ] {
        let mut bad = good.clone();
        bad["kv_transfer_params"][field] = value;
        let answer = call(pair.d, COMPLETIONS, &bad);
        assert_eq!(answer.status, 500, "{field}");
        assert!(
            answer.text().contains("KV load failure"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(pair.sim.ledger().malformed, 5);
    // Without one of them D computes by itself: slow, not wrong.
    for field in ["remote_engine_id", "remote_bootstrap_addr", "transfer_id"] {
        let mut bad = good.clone();
        let params = bad["kv_transfer_params"].as_object_mut().unwrap();
        params.remove(field);
        assert_eq!(
            choice_text(&call(pair.d, COMPLETIONS, &bad).json(), 0),
            right(&body)
        );
    }
    assert_eq!(
        (pair.sim.ledger().malformed, pair.sim.ledger().fetched),
        (8, 0)
    );
    // Of a P that is another one by now.
    pair.sim.restart(0);
    let before = pair.sim.ledger().violation_count;
    assert_eq!(call(pair.d, COMPLETIONS, &good).status, 500);
    assert_eq!(pair.sim.ledger().violation_count, before);
}

#[test]
fn an_engine_that_is_asked_for_the_other_s_work_never_survives() {
    for (engine, decode) in [(0, false), (1, true)] {
        let pair = pair(|_| {});
        let body = prompt("A");
        let (at, body) = match decode {
            true => (pair.d, pair.at_p(&body, "xfer-1")),
            false => (pair.p, pair.at_d(&body, "xfer-1")),
        };
        assert_eq!(call(at, COMPLETIONS, &body).status, 500);
        soon("it dies", || !pair.sim.is_up(engine));
        assert_eq!(pair.sim.ledger().violation_count, 1);
    }
}

#[test]
fn a_prefill_that_goes_on_is_never_unnoticed() {
    let pair = pair(|_| {});
    let mut body = pair.at_p(&prompt("A"), "xfer-1");
    body["max_tokens"] = json!(2);
    call(pair.p, COMPLETIONS, &body);
    let mut body = pair.at_p(&prompt("A"), "xfer-2");
    body["stream"] = json!(true);
    call(pair.p, COMPLETIONS, &body);
    let mut body = pair.at_p(&prompt("A"), "xfer-3");
    body["n"] = json!(2);
    call(pair.p, COMPLETIONS, &body);
    let mut body = pair.at_p(&prompt("A"), "");
    body["kv_transfer_params"]["do_remote_prefill"] = json!(null);
    call(pair.p, COMPLETIONS, &body);
    assert_eq!(
        (
            pair.sim.ledger().violation_count,
            pair.sim.ledger().malformed
        ),
        (4, 1)
    );
}

#[test]
fn ranks_never_know_each_other_s_transfers() {
    let pair = pair(|engine| {
        engine.ranks = 2;
        engine.patience = SHORT;
    });
    let all = pair.query();
    assert_ne!(all["0"]["engine_id"], all["1"]["engine_id"]);
    let ask_p = |id: &str, rank: &str| {
        let body = pair.at_p(&prompt("A"), id);
        let rank = format!("x-data-parallel-rank: {rank}");
        Client::new(pair.p)
            .call(COMPLETIONS, &body, &[&rank])
            .unwrap()
            .status
    };
    let ask_d = |id: &str, rank: &str| {
        let mut body = pair.at_d(&prompt("A"), id);
        body["kv_transfer_params"]["remote_engine_id"] = all[rank]["engine_id"].clone();
        call(pair.d, COMPLETIONS, &body).status
    };
    assert_eq!((ask_p("a", "1"), ask_d("a", "1")), (200, 200));
    assert_eq!((ask_p("b", "0"), ask_d("b", "1")), (200, 500));
    assert_eq!(ask_p("c", "2"), 400);
    assert_eq!(
        (pair.sim.ledger().unmet, pair.sim.ledger().violation_count),
        (1, 0)
    );
}

#[test]
fn a_departed_client_never_strands_kv() {
    let pair = pair(|engine| {
        engine.timing = Timing {
            prefill_tokens_per_s: 20.0,
            ..Timing::default()
        };
    });
    let body = prompt("A");
    let of_p = aside(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-1"));
    let mut client = Client::new(pair.d);
    client.send(post(
        COMPLETIONS,
        &pair.at_d(&body, "xfer-1").to_string(),
        &[],
    ));
    soon("D waits", || pair.sim.open_requests(1) == 1);
    drop(client);
    assert_eq!(of_p.join().unwrap().status, 200);
    soon("D has come all the same", || pair.sim.ledger().fetched == 1);
    // A D that refuses the request says so to P.
    let mut bad = pair.at_d(&body, "xfer-2");
    bad["top_p"] = json!(5);
    assert_eq!(call(pair.d, COMPLETIONS, &bad).status, 400);
    assert_eq!(
        call(pair.p, COMPLETIONS, &pair.at_p(&body, "xfer-2")).status,
        200
    );
    let ledger = pair.sim.ledger();
    assert_eq!(
        (ledger.released, ledger.held_now, ledger.violation_count),
        (1, 0, 0)
    );
}

#[test]
fn recompute_never_fails() {
    let pair = pair(|engine| {
        engine.patience = SHORT;
        engine.load_failure = LoadFailure::Recompute;
    });
    let body = prompt("A");
    let answer = call(pair.d, COMPLETIONS, &pair.at_d(&body, "xfer-1"));
    assert_eq!(choice_text(&answer.json(), 0), right(&body));
    assert_eq!(
        (pair.sim.ledger().unmet, pair.sim.ledger().recomputed),
        (1, 1)
    );
}
