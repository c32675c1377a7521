//! SGLang: what a room needs to be one, and what becomes of those who wait in it.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pdsim::{EngineOptions, KvMode, Options, Sim};
use serde_json::{Value, json};

use crate::client::*;

/// Long enough that nobody runs into it who does not mean to.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);

pub fn world(p: usize, d: usize, kv: KvMode, change: impl Fn(&mut EngineOptions)) -> Sim {
    let mut options = Options::pair(p, d);
    for engine in &mut options.engines {
        engine.kv = kv;
        engine.patience = LONG;
        change(engine);
    }
    Sim::start(options).expect("start")
}

fn pair(patience: Duration) -> (Sim, SocketAddr, SocketAddr) {
    let sim = world(1, 1, KvMode::Sglang, |engine| engine.patience = patience);
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    (sim, p, d)
}

/// `body` with a place in this room of the P of this number.
fn in_room(sim: &Sim, p: usize, body: &Value, room: Value) -> Value {
    let side = sim.side(p).expect("a bootstrap server");
    let mut body = body.clone();
    body["bootstrap_host"] = json!(side.ip().to_string());
    body["bootstrap_port"] = json!(side.port());
    body["bootstrap_room"] = room;
    body
}

/// Until the engine has not only seen a request's head, but knows what it wants.
fn waits(sim: &Sim) {
    let open = || sim.open_requests(0) + sim.open_requests(1);
    soon("it waits", || open() == 1);
    std::thread::sleep(Duration::from_millis(30));
}

/// Asks while the test goes on.
pub fn aside(at: SocketAddr, path: &'static str, body: &Value) -> JoinHandle<Answer> {
    let body = body.clone();
    std::thread::spawn(move || call(at, path, &body))
}

fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.text().contains(words), "{words}: {}", answer.text());
}

#[test]
fn the_two_of_a_room_never_answer_before_they_have_met() {
    let (sim, p, d) = pair(LONG);
    let alone = Sim::start(Options {
        engines: vec![EngineOptions::new(pdsim::Role::Both)],
        ..Options::default()
    })
    .unwrap();
    for (first, room) in [(true, 1u64), (false, (1 << 63) - 1)] {
        for stream in [false, true] {
            let mut body = prompt(&format!("{room} {stream}"));
            body["stream"] = json!(stream);
            let both = in_room(&sim, 0, &body, json!(room - u64::from(stream)));
            let (early, late) = if first { (p, d) } else { (d, p) };
            let waiting = aside(early, COMPLETIONS, &both);
            waits(&sim);
            assert!(!waiting.is_finished());
            let other = call(late, COMPLETIONS, &both);
            let waited = waiting.join().unwrap();
            let (of_p, of_d) = if first {
                (waited, other)
            } else {
                (other, waited)
            };
            assert_eq!((of_p.status, of_d.status), (200, 200), "{}", of_d.text());
            let reference = call(alone.addresses()[0], COMPLETIONS, &body);
            if stream {
                // But for ids and times: the same number of events, of which P has but one token's.
                assert_eq!(of_d.events().len(), reference.events().len());
                assert_eq!(of_p.events().len(), 2);
                continue;
            }
            let (of_d, reference) = (of_d.json(), reference.json());
            assert_eq!(choice_text(&of_d, 0), choice_text(&reference, 0));
            assert_eq!(of_p.json()["usage"]["completion_tokens"], 1);
        }
    }
    let ledger = sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (4, 4, 0));
    assert_eq!(ledger.unmet, 0);
}

#[test]
fn a_batch_never_shares_a_room() {
    let (sim, p, d) = pair(LONG);
    let body = json!({"prompt": ["one", "two", "three"], "max_tokens": 3});
    for room in [json!(7), json!([100, 50, 200])] {
        let body = in_room(&sim, 0, &body, room);
        let of_p = aside(p, COMPLETIONS, &body);
        let of_d = call(d, COMPLETIONS, &body).json();
        assert_eq!(of_p.join().unwrap().status, 200);
        for (choice, text) in ["one", "two", "three"].iter().enumerate() {
            let expected = pdsim::expected(pdsim::prompt_hash(text), 0, 3);
            assert_eq!(choice_text(&of_d, choice), expected);
        }
    }
    // Room 8 was the second prompt's.
    let again = in_room(&sim, 0, &prompt("A"), json!(8));
    let of_p = aside(p, COMPLETIONS, &again);
    assert_eq!(call(d, COMPLETIONS, &again).status, 200);
    assert_eq!(of_p.join().unwrap().status, 200);
    let told = sim.ledger().violations;
    assert!(
        told.len() == 1 && told[0].contains("room 8 was used before"),
        "{told:?}"
    );
    // Samples share one, and fail.
    let mut samples = in_room(&sim, 0, &prompt("B"), json!(1000));
    samples["n"] = json!(2);
    refused(&call(d, COMPLETIONS, &samples), 500, "one bootstrap room");
}

#[test]
fn a_request_without_a_room_is_never_served() {
    let (sim, p, d) = pair(SHORT);
    for at in [p, d] {
        for stream in [false, true] {
            let mut body = prompt("A");
            body["stream"] = json!(stream);
            let answer = call(at, COMPLETIONS, &body);
            refused(&answer, 400, "without bootstrap room id");
            assert_eq!(answer.json()["object"], "error");
        }
    }
    // It is no fault of a proxy's: it may just be a client that came directly.
    assert_eq!(sim.ledger().violation_count, 0);
    for field in ["bootstrap_host", "bootstrap_port", "bootstrap_room"] {
        let before = sim.ledger().malformed;
        let mut body = in_room(&sim, 0, &prompt("A"), json!(3));
        body.as_object_mut().unwrap().remove(field);
        let status = call(d, COMPLETIONS, &body).status;
        assert_eq!(
            status,
            if field.ends_with("room") { 400 } else { 500 },
            "{field}"
        );
        assert_eq!(
            sim.ledger().malformed,
            before + 1 + u64::from(!field.ends_with("room"))
        );
    }
    for room in ["-1", "9223372036854775808", "1.5", "\"7\"", "{}"] {
        let room: Value = serde_json::from_str(room).unwrap();
        let body = in_room(&sim, 0, &prompt("A"), room);
        refused(&call(d, COMPLETIONS, &body), 400, "bootstrap_room");
        refused(&call(p, COMPLETIONS, &body), 400, "bootstrap_room");
    }
    assert_eq!(sim.ledger().grants, 0);
}

#[test]
fn a_place_where_no_prefill_engine_is_is_never_waited_at() {
    let (sim, _, d) = pair(LONG);
    let begun = Instant::now();
    let good = in_room(&sim, 0, &prompt("A"), json!(1));
    for (field, value) in [
        ("bootstrap_host", json!("10.9.9.9")),
        ("bootstrap_port", json!(1)),
        // The engine's own port is not that of its bootstrap server.
        ("bootstrap_port", json!(sim.addresses()[0].port())),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        refused(&call(d, COMPLETIONS, &bad), 500, "prefill parallel info");
    }
    assert_eq!(sim.ledger().malformed, 3);
    sim.kill(0);
    refused(&call(d, COMPLETIONS, &good), 500, "prefill parallel info");
    assert_eq!(sim.ledger().malformed, 3, "a dead P is nobody's mistake");
    assert!(begun.elapsed() < LONG);
}

#[test]
fn nobody_waits_for_ever() {
    let (sim, p, d) = pair(SHORT);
    let body = in_room(&sim, 0, &prompt("A"), json!(1));
    refused(&call(d, COMPLETIONS, &body), 500, "KVPoll.WaitingForInput");
    let body = in_room(&sim, 0, &prompt("A"), json!(2));
    refused(&call(p, COMPLETIONS, &body), 500, "KVPoll.Bootstrapping");
    let ledger = sim.ledger();
    assert_eq!(
        (ledger.unmet, ledger.grants, ledger.violation_count),
        (2, 0, 0)
    );
}

#[test]
fn one_who_leaves_never_keeps_the_other() {
    let (sim, p, d) = pair(LONG);
    for (leaves, stays, room) in [(d, p, 1), (p, d, 2)] {
        let body = in_room(&sim, 0, &prompt("A"), json!(room));
        let mut client = Client::new(leaves);
        client.send(post(COMPLETIONS, &body.to_string(), &[]));
        waits(&sim);
        drop(client);
        soon("it has left", || {
            sim.open_requests(0) + sim.open_requests(1) == 0
        });
        let begun = Instant::now();
        assert_eq!(call(stays, COMPLETIONS, &body).status, 500);
        assert!(begun.elapsed() < LONG);
    }
    assert_eq!(
        (sim.ledger().held_now, sim.ledger().violation_count),
        (0, 0)
    );
    // P dies while D waits for it.
    let body = in_room(&sim, 0, &prompt("A"), json!(3));
    let waiting = aside(d, COMPLETIONS, &body);
    waits(&sim);
    sim.kill(0);
    refused(&waiting.join().unwrap(), 500, "Lost connection");
}

#[test]
fn a_room_with_two_in_it_never_leaves_an_engine_alive() {
    for at_p in [true, false] {
        let (sim, p, d) = pair(LONG);
        let at = if at_p { p } else { d };
        let engine = usize::from(!at_p);
        let body = in_room(&sim, 0, &prompt("A"), json!(1));
        let first = body.clone();
        let mut client = Client::new(at);
        client.send(post(COMPLETIONS, &first.to_string(), &[]));
        waits(&sim);
        assert_eq!(call(at, COMPLETIONS, &body).status, 500);
        soon("the engine dies", || !sim.is_up(engine));
        assert!(sim.ledger().violations[0].contains("two requests are in room 1"));
    }
}

#[test]
fn the_kv_of_another_prompt_never_gives_right_text() {
    let (sim, p, d) = pair(LONG);
    let of_p = aside(p, COMPLETIONS, &in_room(&sim, 0, &prompt("A"), json!(1)));
    let body = prompt("B");
    let answer = call(d, COMPLETIONS, &in_room(&sim, 0, &body, json!(1)));
    assert_eq!((answer.status, of_p.join().unwrap().status), (200, 200));
    let right = pdsim::expected(pdsim::prompt_hash(body["prompt"].as_str().unwrap()), 0, 8);
    assert_ne!(choice_text(&answer.json(), 0), right);
    assert_eq!(sim.ledger().wrong_prompt, 1);
}
