//! A common store: what is found there, and what an engine says that finds too little.

use std::net::SocketAddr;

use pdsim::{KvMode, Sim};
use serde_json::{Value, json};

use crate::client::*;
use crate::sglang::world;

fn pair() -> (Sim, SocketAddr, SocketAddr) {
    let sim = world(1, 1, KvMode::SharedStorage, |engine| {
        engine.cached_details = true
    });
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    (sim, p, d)
}

/// 57 tokens, 48 of them in whole blocks; the first 32 are those of all.
fn long(tag: &str, threshold: Value) -> Value {
    json!({"prompt": format!("{}{tag:*<50}", "the same beginning. ".repeat(6)), "max_tokens": 8,
        "cache_hit_threshold": threshold})
}

fn cached(answer: &Answer) -> u64 {
    let details = answer.json()["usage"]["prompt_tokens_details"].clone();
    details["cached_tokens"].as_u64().unwrap()
}

#[test]
fn d_never_computes_what_p_has_stored() {
    let (sim, p, d) = pair();
    let body = long("A", json!(0));
    assert_eq!(call(p, COMPLETIONS, &body).status, 200);
    let answer = call(d, COMPLETIONS, &body);
    assert_eq!(cached(&answer), 48);
    let hash = pdsim::prompt_hash(body["prompt"].as_str().unwrap());
    assert_eq!(choice_text(&answer.json(), 0), pdsim::expected(hash, 0, 8));
    let ledger = sim.ledger();
    assert_eq!((ledger.pushes, ledger.loaded, ledger.recomputed), (1, 1, 0));
    // A D that is asked alone computes the rest, and that is counted.
    assert_eq!(cached(&call(d, COMPLETIONS, &long("B", json!(null)))), 32);
    assert_eq!(sim.ledger().recomputed, 1);
    // What has died is still in the store.
    sim.restart(1);
    assert_eq!(cached(&call(d, COMPLETIONS, &body)), 48);
}

#[test]
fn too_little_in_the_store_is_never_computed_where_a_threshold_is() {
    let (sim, p, d) = pair();
    call(p, COMPLETIONS, &long("A", json!(0)));
    // 48 of 57 tokens are there; of others 32.
    for (tag, threshold, missed) in [
        ("A", 0.84, false),
        ("A", 0.85, true),
        ("B", 0.5, false),
        ("C", 0.6, true),
        ("D", 1.0, true),
        ("E", 0.0, false),
    ] {
        let mut body = long(tag, json!(threshold));
        for stream in [false, true] {
            body["stream"] = json!(stream);
            body["stream_options"] = if stream {
                json!({"include_usage": true})
            } else {
                json!(null)
            };
            let answer = call(d, COMPLETIONS, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let reason = |text: &str| text.contains(r#""finish_reason":"cache_threshold""#);
            assert_eq!(
                reason(&answer.text()),
                missed,
                "{tag} {threshold}: {}",
                answer.text()
            );
            if missed && !stream {
                assert_eq!(choice_text(&answer.json(), 0), "");
                assert_eq!(answer.json()["usage"]["completion_tokens"], 0);
            }
            if missed && stream {
                // The reason, the usage, the end.
                assert_eq!(answer.events().len(), 3, "{}", answer.text());
            }
            if !missed {
                // By now all of it is there.
                break;
            }
        }
    }
    assert_eq!(sim.ledger().violation_count, 0);
    // A chat's stream begins with the role all the same.
    let mut chat = json!({"messages": [{"role": "user", "content": "x".repeat(200)}], "stream": true,
        "cache_hit_threshold": 0.5});
    let events = call(d, CHAT, &chat).events();
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(events[1].contains("cache_threshold"), "{events:?}");
    // So does a P that is asked with the client's threshold: then it stores nothing.
    assert!(call(p, CHAT, &chat).text().contains("cache_threshold"));
    assert!(call(d, CHAT, &chat).text().contains("cache_threshold"));
    chat["cache_hit_threshold"] = json!(0);
    call(p, CHAT, &chat);
    chat["cache_hit_threshold"] = json!(0.5);
    assert!(!call(d, CHAT, &chat).text().contains("cache_threshold"));
}

#[test]
fn a_threshold_that_is_none_is_never_taken() {
    let (_sim, p, d) = pair();
    for threshold in [json!(-0.1), json!(1.1), json!("much"), json!([]), json!({})] {
        for at in [p, d] {
            let answer = call(at, COMPLETIONS, &long("A", threshold.clone()));
            assert_eq!(answer.status, 400, "{threshold}: {}", answer.text());
            assert!(
                answer.text().contains("cache_hit_threshold"),
                "{}",
                answer.text()
            );
        }
    }
}
