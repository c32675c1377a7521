//! `sglang`: one body for both, at once; P's end is nobody's business.

use std::time::{Duration, Instant};

use crate::sidecar::{beside_with, post, says};
use crate::support::eventually;
use crate::support::scripted::{Say, Scripted, answer};

const SENT: &str = r#"{"messages":[],"max_tokens":9,"stream":true,"seed":9007199254740993}"#;

#[test]
fn both_get_one_body_with_one_room() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", r#"{"from":"d"}"#));
    let server = beside_with("sidecar", d.address, &["--kv-connector=sglang"], |config| {
        config.sidecar.as_mut().unwrap().bootstrap_port = 9001;
    });
    let mut rooms = Vec::new();
    for turn in 0..3 {
        let response = post(&server, "/v1/chat/completions", SENT, &p, "");
        assert_eq!(response.text(), r#"{"from":"d"}"#);
        eventually("P was asked", || p.bodies().len() > turn);
        let (at_p, at_d) = (p.bodies().remove(turn), d.bodies().remove(turn));
        assert_eq!(at_p, at_d);
        let body: serde_json::Value = serde_json::from_str(&at_d).unwrap();
        assert_eq!(
            (&body["bootstrap_host"], &body["bootstrap_port"]),
            (&"127.0.0.1".into(), &9001.into())
        );
        // Nothing is capped: SGLang's P knows what it is.
        assert!(at_d.starts_with(SENT.strip_suffix('}').unwrap()), "{at_d}");
        rooms.push(body["bootstrap_room"].as_i64().expect("below 2^63"));
    }
    rooms.dedup();
    assert_eq!(rooms.len(), 3);
}

#[test]
fn a_p_that_is_slow_never_holds_d_s_answer() {
    let p = Scripted::start(|_, _| {
        let pieces = vec![Vec::new(), answer("500 Late", "{}")];
        Say::Slowly(pieces, Duration::from_secs(2))
    });
    let d = says("200 OK", r#"{"from":"d"}"#);
    let server = beside_with("sidecar", d.address, &["--kv-connector=sglang"], |_| {});
    let began = Instant::now();
    let response = post(&server, "/v1/completions", SENT, &p, "");
    assert_eq!(response.text(), r#"{"from":"d"}"#);
    assert!(began.elapsed() < Duration::from_secs(1));
    eventually("P was asked", || !p.bodies().is_empty());
}

/// The original's client waits for D's own time limit, 300 s, and is told of nothing but that.
#[test]
fn a_p_that_fails_never_leaves_d_waiting_for_it() {
    let p = says("503 Full", r#"{"why":"p is full"}"#);
    let d = Scripted::start(|_, _| {
        let pieces = vec![Vec::new(), answer("200 OK", "{}")];
        Say::Slowly(pieces, Duration::from_secs(15))
    });
    let server = beside_with("sidecar", d.address, &["--kv-connector=sglang"], |_| {});
    let began = Instant::now();
    let response = post(&server, "/v1/completions", SENT, &p, "");
    assert_eq!(
        (response.status, response.text()),
        (503, r#"{"why":"p is full"}"#.into())
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}
