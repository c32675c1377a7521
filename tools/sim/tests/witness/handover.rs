//! Prefill, hand-over, decode, and the ledger of it.

use std::net::SocketAddr;
use std::time::Duration;

use pdsim::{EngineOptions, LedgerReport, LoadFailure, Options, Outcome, Role, Sim, Timing};
use serde_json::json;

use crate::client::*;

fn clean(ledger: &LedgerReport) {
    assert_eq!(ledger.violations, Vec::<String>::new());
}

#[test]
fn p_and_d_never_differ_from_a_single_server() {
    let (sim, p, d, both) = trio(|_| {});
    let chat = json!({"model": "dummy", "max_tokens": 8, "messages": [
        {"role": "system", "content": "be \"brief\"\n"},
        {"role": "user", "content": [
            {"type": "text", "text": "héllo"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]});
    for (path, body) in [(COMPLETIONS, prompt("A")), (CHAT, chat)] {
        let reference = call(both, path, &body).json();
        let params = params(p, path, &body);
        let answer = call(d, path, &with_params(&body, &params));
        assert_eq!(answer.status, 200);
        let answer = answer.json();
        assert_eq!(choice_text(&answer, 0), choice_text(&reference, 0));
        assert_eq!(answer["usage"], reference["usage"]);
        let alone = call(d, path, &body).json();
        assert_eq!(choice_text(&alone, 0), choice_text(&reference, 0));
    }
    let ledger = sim.ledger();
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (2, 2, 0));
    clean(&ledger);
    let metrics = {
        let mut client = Client::new(d);
        client.send("GET /metrics HTTP/1.1\r\nHost: d\r\n\r\n");
        client.answer().unwrap().text()
    };
    assert!(
        metrics.contains("source=\"external_kv_transfer\"} "),
        "{metrics}"
    );
    assert!(
        !metrics.contains("source=\"external_kv_transfer\"} 0.0"),
        "{metrics}"
    );
}

#[test]
fn text_is_never_that_of_another_prompt() {
    let (_sim, _, d, _) = trio(|_| {});
    let (a, b) = (prompt("A"), prompt("B"));
    let hash = pdsim::prompt_hash(a["prompt"].as_str().unwrap());
    let text = choice_text(&call(d, COMPLETIONS, &a).json(), 0);
    assert_eq!(text, pdsim::expected(hash, 0, 8));
    let other = choice_text(&call(d, COMPLETIONS, &b).json(), 0);
    assert!(!other.contains(&pdsim::mark(hash)));
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = call(d, CHAT, &json!({"messages": messages, "max_tokens": 3})).json();
    let hash = pdsim::messages_hash(&messages.to_string()).unwrap();
    assert_eq!(choice_text(&chat, 0), pdsim::expected(hash, 0, 3));
}

#[test]
fn spent_params_never_give_right_text() {
    let (sim, p, d, both) = trio(|_| {});
    let body = prompt("A");
    let right = choice_text(&call(both, COMPLETIONS, &body).json(), 0);
    let params = with_params(&body, &params(p, COMPLETIONS, &body));
    assert_eq!(choice_text(&call(d, COMPLETIONS, &params).json(), 0), right);
    let again = call(d, COMPLETIONS, &params);
    assert_eq!(again.status, 200);
    assert_ne!(choice_text(&again.json(), 0), right);
    assert_eq!(sim.ledger().reused, 1);
    assert_eq!(sim.ledger().violation_count, 1);
}

#[test]
fn the_kv_of_another_prompt_never_gives_right_text() {
    let (sim, p, d, both) = trio(|_| {});
    let (a, b) = (prompt("A"), prompt("B"));
    let params = params(p, COMPLETIONS, &a);
    let wrong = call(d, COMPLETIONS, &with_params(&b, &params));
    assert_eq!(wrong.status, 200);
    let right = call(both, COMPLETIONS, &b).json();
    assert_ne!(choice_text(&wrong.json(), 0), choice_text(&right, 0));
    assert_eq!(sim.ledger().wrong_prompt, 1);
}

#[test]
fn wrong_ids_and_blocks_are_never_served() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let good = params(p, COMPLETIONS, &body);
    for (key, value) in [
        (
            "remote_engine_id",
            json!("c9612c8b-0810-42f1-b51c-5e1afb256efa"),
        ),
        ("remote_block_ids", json!([[1]])),
        (
            "remote_request_id",
            json!("cmpl-afcba9edfd5d72c8-0-8d7f9a92"),
        ),
        ("remote_port", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let answer = call(d, COMPLETIONS, &with_params(&body, &bad));
        assert_eq!(answer.status, 500, "{key}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], 500);
    }
    assert_eq!(call(d, COMPLETIONS, &with_params(&body, &good)).status, 200);
    let ledger = sim.ledger();
    assert_eq!(
        (ledger.malformed + ledger.never_issued, ledger.fetched),
        (4, 1)
    );
}

#[test]
fn params_cut_short_are_never_unnoticed() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let mut cut = params(p, COMPLETIONS, &body);
    cut.as_object_mut().unwrap().remove("tp_size");
    assert_eq!(call(d, COMPLETIONS, &with_params(&body, &cut)).status, 200);
    assert_eq!(sim.ledger().violation_count, 1);
}

#[test]
fn reserialised_params_are_never_refused() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let params = params(p, COMPLETIONS, &body);
    let pretty = serde_json::to_string_pretty(&with_params(&body, &params)).unwrap();
    let mut client = Client::new(d);
    client.send(post(COMPLETIONS, &pretty, &[]));
    assert_eq!(client.answer().unwrap().status, 200);
    clean(&sim.ledger());
}

#[test]
fn params_without_request_id_never_leave_d_alive() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let mut bad = params(p, COMPLETIONS, &body);
    bad.as_object_mut().unwrap().remove("remote_request_id");
    let mut client = Client::new(d);
    client.send(post(
        COMPLETIONS,
        &with_params(&body, &bad).to_string(),
        &[],
    ));
    soon("the request hangs", || sim.open_requests(1) == 1);
    std::thread::sleep(Duration::from_millis(50));
    assert!(sim.is_up(1));
    drop(client);
    soon("the engine dies", || !sim.is_up(1));
    soon("nobody listens", || {
        std::net::TcpStream::connect(d).is_err()
    });
    assert!(sim.ledger().violation_count >= 2);
    sim.restart(1);
    assert_eq!(call(d, COMPLETIONS, &body).status, 200);
}

#[test]
fn unfetched_kv_is_never_held_beyond_its_lease() {
    let (sim, p, d, _) = trio(|e| e.lease = Duration::from_millis(500));
    let body = prompt("A");
    let late = params(p, COMPLETIONS, &body);
    assert_eq!(sim.ledger().held_now, 1);
    soon("the lease ends", || sim.ledger().held_now == 0);
    assert_eq!(sim.ledger().expired, 1);
    assert_eq!(call(d, COMPLETIONS, &with_params(&body, &late)).status, 500);
}

#[test]
fn recompute_never_fails_and_never_gives_wrong_text() {
    let (sim, p, d, both) = trio(|e| {
        e.lease = Duration::from_millis(1);
        e.load_failure = LoadFailure::Recompute;
    });
    let body = prompt("A");
    let late = params(p, COMPLETIONS, &body);
    std::thread::sleep(Duration::from_millis(10));
    let answer = call(d, COMPLETIONS, &with_params(&body, &late));
    assert_eq!(answer.status, 200);
    let right = call(both, COMPLETIONS, &body).json();
    assert_eq!(choice_text(&answer.json(), 0), choice_text(&right, 0));
    assert_eq!(sim.ledger().expired, 1);
}

#[test]
fn a_dead_p_never_delays_d() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let first = params(p, COMPLETIONS, &body);
    sim.kill(0);
    assert_eq!(
        call(d, COMPLETIONS, &with_params(&body, &first)).status,
        500
    );
    assert_eq!(sim.ledger().lost, 1);
    sim.restart(0);
    // The old params name an engine that is no more; new ones work at once.
    assert_eq!(
        call(d, COMPLETIONS, &with_params(&body, &first)).status,
        500
    );
    let second = params(p, COMPLETIONS, &body);
    assert_eq!(
        call(d, COMPLETIONS, &with_params(&body, &second)).status,
        200
    );
}

#[test]
fn d_streams_a_load_failure_never_with_an_error_status() {
    let (_sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let mut bad = params(p, COMPLETIONS, &body);
    bad["remote_block_ids"] = json!([[9, 9]]);
    let mut body = with_params(&body, &bad);
    body["stream"] = json!(true);
    let answer = call(d, COMPLETIONS, &body);
    assert_eq!(answer.status, 200);
    let events = answer.events();
    assert!(
        events[0].contains("\"error\"") && events[1] == "[DONE]",
        "{events:?}"
    );
}

/// Slow enough that a client can leave before D has read P's KV.
fn patient(e: &mut EngineOptions) {
    e.fetch_delay = Duration::from_millis(300);
}

#[test]
fn an_early_leaver_never_frees_kv_on_first_contact_but_does_later() {
    let (sim, p, d, _) = trio(patient);
    let body = prompt("A");
    let leave = |params: serde_json::Value| {
        let mut client = Client::new(d);
        let mut body = with_params(&body, &params);
        body["stream"] = json!(true);
        client.send(post(COMPLETIONS, &body.to_string(), &[]));
        soon("D has it", || sim.open_requests(1) == 1);
        drop(client);
        soon("D noticed", || sim.open_requests(1) == 0);
    };
    leave(params(p, COMPLETIONS, &body));
    assert_eq!((sim.ledger().released, sim.ledger().held_now), (0, 1));
    let met = params(p, COMPLETIONS, &body);
    assert_eq!(call(d, COMPLETIONS, &with_params(&body, &met)).status, 200);
    leave(params(p, COMPLETIONS, &body));
    assert_eq!(sim.ledger().released, 1);
    sim.restart(1);
    leave(params(p, COMPLETIONS, &body));
    assert_eq!(sim.ledger().released, 1, "a restarted D knows nobody");
    let outcome = sim.transcript(1)[0].outcome;
    assert!(matches!(outcome, Outcome::ClientLeft { .. }), "{outcome:?}");
}

#[test]
fn leaving_late_in_prefill_never_frees_its_kv() {
    let slow = |e: &mut EngineOptions| {
        e.timing.prefill_tokens_per_s = 1_000.0;
    };
    let (sim, p, _, _) = trio(slow);
    // 1,000 tokens: one second.
    let body = for_prefill(&json!({"prompt": "x".repeat(3000)}));
    for (leave_at, grants) in [(300, 0), (900, 1)] {
        let mut client = Client::new(p);
        client.send(post(COMPLETIONS, &body.to_string(), &[]));
        std::thread::sleep(Duration::from_millis(leave_at));
        drop(client);
        soon("P noticed", || sim.open_requests(0) == 0);
        std::thread::sleep(Duration::from_millis(1100 - leave_at));
        let ledger = sim.ledger();
        assert_eq!((ledger.grants, ledger.held_now), (grants, grants));
    }
}

#[test]
fn a_rejected_decode_never_strands_kv_once_the_two_have_met() {
    let (sim, p, d, _) = trio(|_| {});
    let body = prompt("A");
    let reject = |params: &serde_json::Value, key: &str, value: serde_json::Value| {
        let mut body = with_params(&body, params);
        body[key] = value;
        assert!(call(d, COMPLETIONS, &body).status < 500);
    };
    let first = params(p, COMPLETIONS, &body);
    reject(&first, "top_p", json!(5));
    assert_eq!(sim.ledger().released, 0);
    assert_eq!(
        call(d, COMPLETIONS, &with_params(&body, &first)).status,
        200
    );
    let second = params(p, COMPLETIONS, &body);
    reject(&second, "stream", json!("no boolean"));
    assert_eq!(sim.ledger().released, 0, "the engine never saw it");
    reject(&second, "top_p", json!(5));
    assert_eq!((sim.ledger().released, sim.ledger().held_now), (1, 0));
}

#[test]
fn n_2_at_p_never_hands_over_both_children() {
    let (sim, p, d, both) = trio(|_| {});
    let mut body = prompt("A");
    body["n"] = json!(2);
    let params = params(p, COMPLETIONS, &body);
    let answer = call(d, COMPLETIONS, &with_params(&body, &params)).json();
    let reference = call(both, COMPLETIONS, &body).json();
    for choice in 0..2 {
        assert_eq!(
            choice_text(&answer, choice),
            choice_text(&reference, choice)
        );
    }
    assert_ne!(choice_text(&answer, 0), choice_text(&answer, 1));
    let ledger = sim.ledger();
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (2, 1, 1));
}

#[test]
fn a_batch_through_one_grant_is_never_right_beyond_its_first_prompt() {
    let (sim, p, d, both) = trio(|_| {});
    let body = json!({"prompt": ["one prompt", "another prompt"], "max_tokens": 4});
    let params = params(p, COMPLETIONS, &body);
    let answer = call(d, COMPLETIONS, &with_params(&body, &params)).json();
    let reference = call(both, COMPLETIONS, &body).json();
    assert_eq!(choice_text(&answer, 0), choice_text(&reference, 0));
    assert_ne!(choice_text(&answer, 1), choice_text(&reference, 1));
    assert_eq!(
        (sim.ledger().held_now, sim.ledger().violation_count),
        (1, 1)
    );
    let single = json!({"prompt": ["one prompt"], "max_tokens": 4});
    let answer = call(
        d,
        COMPLETIONS,
        &with_params(&single, &crate::client::params(p, COMPLETIONS, &single)),
    );
    assert_eq!(choice_text(&answer.json(), 0), choice_text(&reference, 0));
}

#[test]
fn p_never_hands_over_what_stopped_or_streamed() {
    // Only older releases make a difference between a stop and the limit.
    let body = json!({"prompt": "ends at once [[eos@1]]"});
    let (_newer, p, _, _) = trio(|_| {});
    let answer = call(p, COMPLETIONS, &for_prefill(&body)).json();
    assert!(answer["kv_transfer_params"].is_object());
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let (sim, p, d, _) = trio(|e| e.kv_on_stop = false);
    let answer = call(p, COMPLETIONS, &for_prefill(&body)).json();
    assert!(answer["kv_transfer_params"].is_null());
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(sim.ledger().grants, 0);
    let mut body = for_prefill(&prompt("A"));
    body["stream"] = json!(true);
    let answer = call(p, COMPLETIONS, &body);
    assert!(!answer.text().contains("kv_transfer_params"));
    assert_eq!(
        (sim.ledger().held_now, sim.ledger().violation_count),
        (1, 1)
    );
    // The template left in D's body makes D a producer.
    call(d, COMPLETIONS, &for_prefill(&prompt("A")));
    assert_eq!(
        (sim.ledger().held_now, sim.ledger().violation_count),
        (2, 2)
    );
}

/// The first turn of a conversation at D: its text, and its params as the next P is to get them.
fn first_turn(p: SocketAddr, d: SocketAddr) -> (String, serde_json::Value) {
    let body = prompt("A");
    let first = params(p, COMPLETIONS, &body);
    let mut stream = with_params(&body, &first);
    stream["stream"] = json!(true);
    let events = call(d, COMPLETIONS, &stream).events();
    let event = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let last = event(&events[events.len() - 2]);
    let mut kept = last["kv_transfer_params"].clone();
    kept["do_remote_decode"] = json!(true);
    kept["do_remote_prefill"] = json!(false);
    let words = events[..events.len() - 1].iter().map(event);
    let words = words.map(|e| e["choices"][0]["text"].as_str().unwrap_or("").to_owned());
    (words.collect(), kept)
}

fn next_turn(text: &str, kept: &serde_json::Value) -> serde_json::Value {
    let mut next = for_prefill(&prompt("A"));
    let start = next["prompt"].as_str().unwrap().to_owned();
    next["prompt"] = json!(format!("{start}{text} and more"));
    next["kv_transfer_params"] = kept.clone();
    next
}

#[test]
fn a_turn_never_loses_the_kv_of_the_last() {
    let (sim, p, d, _) = trio(|e| e.bidirectional = e.role != Role::Both);
    let (text, kept) = first_turn(p, d);
    let answer = call(p, COMPLETIONS, &next_turn(&text, &kept)).json();
    assert!(answer["kv_transfer_params"].is_object());
    let ledger = sim.ledger();
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (3, 2, 1));
    clean(&ledger);
}

/// What a proxy must not do with the params of a turn, each with the words in which it is told.
#[test]
fn a_turn_never_hides_the_kv_of_another_history() {
    type Spoil = fn(&mut serde_json::Value);
    let cases: [(&str, Spoil); 4] = [
        ("KV of another prompt", |next| {
            next["prompt"] = json!("another story")
        }),
        ("at once", |next| {
            next["kv_transfer_params"]["do_remote_prefill"] = json!(true)
        }),
        ("remote_host", |next| {
            next["kv_transfer_params"]["remote_host"] = json!("elsewhere")
        }),
        ("params passed on", |next| {
            next["kv_transfer_params"]
                .as_object_mut()
                .unwrap()
                .remove("tp_size");
        }),
    ];
    for (words, spoil) in cases {
        let (sim, p, d, _) = trio(|e| e.bidirectional = e.role != Role::Both);
        let (text, kept) = first_turn(p, d);
        let mut next = next_turn(&text, &kept);
        spoil(&mut next);
        call(p, COMPLETIONS, &next);
        let told = sim.ledger().violations;
        assert!(told.iter().any(|v| v.contains(words)), "{words}: {told:?}");
    }
    // A second use, which a real engine answers with wrong text.
    let (sim, p, d, _) = trio(|e| e.bidirectional = e.role != Role::Both);
    let (text, kept) = first_turn(p, d);
    for _ in 0..2 {
        call(p, COMPLETIONS, &next_turn(&text, &kept));
    }
    assert_eq!(sim.ledger().reused, 1);
    // A D that is another process now.
    let (sim, p, d, _) = trio(|e| e.bidirectional = e.role != Role::Both);
    let (text, kept) = first_turn(p, d);
    sim.kill(1);
    assert_eq!(call(p, COMPLETIONS, &next_turn(&text, &kept)).status, 500);
}

#[test]
fn more_threads_never_mean_another_ledger() {
    let mut options = Options {
        threads: 3,
        ..Options::pair(1, 1)
    };
    options.engines[1].timing = Timing {
        decode_tick: Duration::from_millis(1),
        ..Timing::default()
    };
    let sim = Sim::start(options).unwrap();
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    for i in 0..30 {
        let body = prompt(&i.to_string());
        let params = params(p, COMPLETIONS, &body);
        assert_eq!(
            call(d, COMPLETIONS, &with_params(&body, &params)).status,
            200
        );
    }
    let ledger = sim.ledger();
    assert_eq!((ledger.grants, ledger.fetched), (30, 30));
    clean(&ledger);
    sim.kill(1);
    for _ in 0..10 {
        assert!(std::net::TcpStream::connect(d).is_err());
    }
    sim.stop();
}

#[test]
fn cached_tokens_are_never_told_unless_asked_for() {
    for told in [false, true] {
        let (_sim, p, d, _) = trio(|e| e.cached_details = told);
        let body = json!({"prompt": "a prompt of two whole blocks and some more. ".repeat(3)});
        let cached = |answer: Answer| {
            let details = answer.json()["usage"]["prompt_tokens_details"].clone();
            details["cached_tokens"].as_u64().unwrap()
        };
        let tokens = u64::from(told);
        assert_eq!(cached(call(p, COMPLETIONS, &for_prefill(&body))), 0);
        let again = call(p, COMPLETIONS, &for_prefill(&body));
        let params = again.json()["kv_transfer_params"].clone();
        assert_eq!(cached(again), tokens * 32);
        // To D all of it has come from elsewhere.
        assert_eq!(
            cached(call(d, COMPLETIONS, &with_params(&body, &params))),
            tokens * 44
        );
    }
}
