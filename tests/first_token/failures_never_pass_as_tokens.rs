//! P's token is nothing without a D: true statuses, no token before D's head, broken streams that look
//! broken, nothing left behind.

use std::time::Duration;

use pdsim::Fault;

use super::{SSE, Stage, d_chunked, d_event, d_text, outcome, p_first, p_says};
use crate::support::scripted::{Say, answer};
use crate::support::{Client, completion, engines, eventually, post_bytes};

const TEXT: &str = "/v1/completions";
const LENGTH: &str = r#""length""#;

fn streamed(text: &str) -> String {
    completion(text, r#","stream":true,"max_tokens":6"#)
}

#[test]
fn an_error_of_d_is_the_answer() {
    for status in [
        "400 Bad Request",
        "404 Not Found",
        "422 Unprocessable",
        "500 Oh",
        "501 No",
    ] {
        let body = r#"{"error":{"message":"as D says it"}}"#;
        let stage = Stage::new(p_says("P1", LENGTH), move |_| {
            Say::Bytes(answer(status, body))
        });
        let response = stage.post(TEXT, &streamed("x"));
        assert_eq!(response.status.to_string(), status[..3]);
        assert_eq!(response.text(), body);
    }
}

/// vLLM's way of saying that the KV could not be fetched: the head is out by then.
#[test]
fn an_error_in_the_stream_of_d_comes_alone() {
    let d = "data: {\"error\":{\"message\":\"no KV\"}}\n\ndata: [DONE]\n\n";
    let stage = Stage::new(p_says("P1", LENGTH), move |_| {
        Say::Bytes(d_chunked([d.as_bytes()]))
    });
    let response = stage.post(TEXT, &streamed("x"));
    assert_eq!((response.status, response.text().as_str()), (200, d));
}

#[test]
fn an_error_of_p_is_the_answer() {
    let body = r#"{"error":{"message":"as P says it"}}"#;
    let stage = Stage::new(answer("400 Bad Request", body), |_| panic!("D was asked"));
    let response = stage.post(TEXT, &streamed("x"));
    assert_eq!((response.status, response.text().as_str()), (400, body));
    assert_eq!(stage.d.requests().len(), 0);
}

#[test]
fn a_dead_d_costs_nothing_and_no_d_is_a_true_status() {
    let rig = p_first("nixl", engines(1, 2));
    rig.sim.kill(1);
    for i in 0..4 {
        let response = rig.post(TEXT, &streamed(&format!("text {i}")));
        assert_eq!((response.status, response.complete), (200, true));
        assert_eq!(response.events().last().unwrap(), "[DONE]");
    }
    rig.sim.kill(2);
    let response = rig.post(TEXT, &streamed("late"));
    assert!(matches!(response.status, 502 | 503), "{}", response.status);
    assert!(
        !response.text().contains(" w"),
        "no token: {}",
        response.text()
    );
}

/// Nothing is sent before D's head: a D that dies before it is made good by another.
#[test]
fn a_d_that_dies_before_its_head_is_made_good() {
    let mut engines = engines(1, 2);
    engines[1].faults.rates = vec![(Fault::AcceptThenClose, 1.0)];
    let rig = p_first("nixl", engines);
    for i in 0..6 {
        let response = rig.post(TEXT, &streamed(&format!("text {i}")));
        assert_eq!((response.status, response.complete), (200, true));
        assert_eq!(response.generated().len(), 6 * 12);
    }
}

#[test]
fn a_stream_that_breaks_looks_broken() {
    let half = |end: &str| format!("{SSE}transfer-encoding: chunked\r\n\r\n{end}").into_bytes();
    let one = d_text("D1");
    let cut = &one[..one.len() / 2];
    for (pieces, tokens) in [
        (String::new(), 0),
        (format!("{:x}\r\n{cut}\r\n", cut.len()), 0),
        (format!("{:x}\r\n{one}\r\n", one.len()), 1),
        (format!("{:x}\r\n{one}{cut}\r\n", one.len() + cut.len()), 1),
        (format!("{:x}\r\n{cut}", one.len()), 0),
    ] {
        let bytes = half(&pieces);
        let stage = Stage::new(p_says("P1", LENGTH), move |_| Say::Close(bytes.clone()));
        let mut client = Client::connect(stage.server.address);
        let response = client.post(TEXT, &streamed("x"));
        assert!(!response.complete, "{pieces:?}");
        let text = response.text();
        assert_eq!(text.matches("P1").count(), tokens, "{text}");
        assert!(!text.contains("[DONE]"), "{text}");
        assert!(text.contains(r#"{"error":"#), "{pieces:?}: {text}");
        let error = response.events().pop().unwrap();
        assert!(
            error.starts_with(r#"{"error":"#),
            "it is an event of its own: {text}"
        );
        assert!(client.closed());
    }
}

/// D ended without a word: its word counts, not P's.
#[test]
fn a_d_that_says_nothing_is_not_spoken_for() {
    let end = [
        d_event(r#"{"index":0,"text":"","finish_reason":"stop"}"#),
        "data: [DONE]\n\n".into(),
    ]
    .concat();
    for d in [end, "data: [DONE]\n\n".into(), ": nothing\n\n".into()] {
        let sent = d.clone();
        let stage = Stage::new(p_says("P1", LENGTH), move |_| {
            Say::Bytes(d_chunked([sent.as_bytes()]))
        });
        let response = stage.post(TEXT, &streamed("x"));
        assert_eq!((response.text(), response.complete), (d, true));
    }
}

#[test]
fn kv_of_an_end_at_p_is_released() {
    let rig = p_first("nixl", engines(1, 1));
    // They have met: a release is quick.
    assert_eq!(rig.post(TEXT, &streamed("hello")).status, 200);
    for i in 0..3 {
        let response = rig.post(TEXT, &streamed(&format!("[[eos@1]] {i}")));
        assert_eq!((response.status, response.generated().as_str()), (200, ""));
        assert_eq!(response.events().last().unwrap(), "[DONE]");
        assert!(response.text().contains(r#""finish_reason":"stop""#));
    }
    eventually("no KV is held", || rig.sim.ledger().held_now == 0);
    assert_eq!(outcome(&rig, "ended"), 3.0);
    assert_eq!(
        rig.metric(r#"pdrelay_kv_grants_total{outcome="released"}"#),
        3.0
    );
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn a_client_that_leaves_leaves_nothing_behind() {
    for slow_prefill in [true, false] {
        let mut engines = engines(1, 1);
        engines[0].timing.prefill_tokens_per_s = if slow_prefill { 20.0 } else { 0.0 };
        engines[1].timing.decode_tick = Duration::from_millis(40);
        engines[1].fetch_delay = Duration::from_millis(200);
        let rig = p_first("nixl", engines);
        for wait in [5, 60, 120, 300] {
            let mut client = rig.client();
            let body = completion("some words", r#","stream":true,"max_tokens":200"#);
            client.send(post_bytes(TEXT, &body, ""));
            std::thread::sleep(Duration::from_millis(wait));
            drop(client);
        }
        eventually("nobody is served", || {
            rig.metric("pdrelay_requests_in_flight") == 1.0
                && rig.sim.open_requests(0) + rig.sim.open_requests(1) == 0
                && rig.sim.ledger().held_now == 0
        });
        let status = rig.get("/status").json();
        for one in status["instances"].as_array().unwrap() {
            assert_eq!(
                (&one["requests"], &one["tokens"]),
                (&0.into(), &0.into()),
                "{status}"
            );
        }
    }
}

/// The time to the first token is the time to P's, not to D's head.
#[test]
fn the_time_of_the_first_token_is_that_of_p() {
    let d = d_chunked([[d_text("D1"), "data: [DONE]\n\n".into()]
        .concat()
        .as_bytes()]);
    let at = d.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let (head, body) = (d[..at].to_vec(), d[at..].to_vec());
    let stage = Stage::new(p_says("P1", LENGTH), move |_| {
        Say::Slowly(vec![head.clone(), body.clone()], Duration::from_millis(400))
    });
    assert!(stage.post(TEXT, &streamed("x")).text().contains("P1"));
    let page = Client::connect(stage.server.address).get("/metrics").text();
    let sum = page
        .lines()
        .find_map(|l| l.strip_prefix("pdrelay_stage_seconds_sum{stage=\"ttft\"} "))
        .expect("a sum");
    assert!(sum.parse::<f64>().unwrap() >= 0.4, "{sum}");
}
