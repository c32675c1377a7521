//! What hangs, lies or breaks in LMCache's own proxy (its issues 1777, 2459, 2681 and others): each fails
//! there and passes here.

use std::time::{Duration, Instant};

use pdrelay::config::lmcache::Chat;
use pdsim::{Fault, Notices, expected, prompt_hash};

use super::TEXT;
use crate::support::lmcache::{SOON, engines, rig, rig_with};
use crate::support::{chat, completion, eventually, post_bytes};

/// 2459: nothing is stored for it, so no notice ever comes, and the original waits for ever.
#[test]
fn a_short_prompt_is_answered_at_once() {
    let rig = rig(1, 1, 2);
    let began = Instant::now();
    let response = rig.post(
        "/v1/completions",
        &completion("short", r#","max_tokens":4"#),
    );
    assert_eq!(response.generated(), expected(prompt_hash("short"), 0, 4));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "no wait for a notice"
    );
    assert_eq!(
        rig.metric(r#"pdrelay_notice_waits_total{outcome="short"}"#),
        1.0
    );
}

/// 1777: with MLA only the first rank sends one. The original waits for ever.
#[test]
fn one_rank_that_notifies_for_all_costs_a_deadline_at_most() {
    let rig = rig_with(engines(1, 1, 2), |config| {
        config.lmcache.notice_timeout = SOON
    });
    rig.sim.set_notices(0, Notices::FirstRank);
    let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":4"#));
    assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 4));
    assert_eq!(
        rig.metric(r#"pdrelay_notice_waits_total{outcome="timed_out"}"#),
        1.0
    );
}

/// A stream whatever the client asked for, told as JSON.
#[test]
fn what_is_no_stream_is_answered_with_json() {
    let rig = rig(1, 1, 1);
    for sent in [completion(TEXT, r#","stream":false"#), completion(TEXT, "")] {
        let response = rig.post("/v1/completions", &sent);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(response.json()["choices"][0]["text"].is_string());
    }
    let streamed = rig.post("/v1/completions", &completion(TEXT, r#","stream":true"#));
    assert!(
        streamed
            .header("content-type")
            .unwrap()
            .starts_with("text/event-stream")
    );
}

/// 2681: chats are completions there, and tools are gone.
#[test]
fn tools_reach_both_engines() {
    let rig = rig(1, 1, 1);
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto""#;
    let response = rig.post("/v1/chat/completions", &chat(TEXT, tools));
    assert_eq!(response.status, 200, "{}", response.text());
    for engine in [0, 1] {
        let leg = rig.posts(engine).pop().unwrap();
        assert_eq!(leg.path, "/v1/chat/completions");
        assert!(String::from_utf8_lossy(&leg.body).contains(tools));
    }
}

/// One message that cannot be read ends its loop, and every later request hangs.
#[test]
fn a_message_that_nobody_can_read_ends_nothing() {
    let rig = rig(1, 1, 1);
    rig.sim.set_notices(0, Notices::Garbage);
    for _ in 0..3 {
        let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":4"#));
        assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 4));
    }
    assert_eq!(
        rig.metric(r#"pdrelay_notice_waits_total{outcome="arrived"}"#),
        3.0
    );
}

/// A peer that speaks no ZMTP, or another ZeroMQ socket, is sent away; the others stay.
#[test]
fn a_peer_that_speaks_nonsense_ends_nothing() {
    use std::io::{Read, Write};
    let rig = rig(1, 1, 1);
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 200], &[0; 64]] {
        let mut peer = std::net::TcpStream::connect(rig.server.notices().unwrap()).unwrap();
        peer.write_all(nonsense).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut said = Vec::new();
        let _ = peer.read_to_end(&mut said);
        assert!(said.len() <= 64, "only our greeting");
    }
    let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":4"#));
    assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 4));
    assert_eq!(rig.metric("pdrelay_notice_senders_refused_total"), 3.0);
}

/// An engine's error is a 500 there, or a 200 that breaks off.
#[test]
fn errors_of_each_leg_keep_their_status() {
    let rig = rig(1, 1, 1);
    for stream in ["", r#","stream":true"#] {
        for (engine, fault) in [(0, Fault::Status(429)), (1, Fault::Status(422))] {
            rig.sim.set_fault(engine, Some(fault));
            let response = rig.post(
                "/v1/completions",
                &completion(TEXT, &format!(r#","max_tokens":4{stream}"#)),
            );
            let Fault::Status(status) = fault else {
                unreachable!()
            };
            assert_eq!(response.status, status, "{}", response.text());
            assert!(response.json()["error"]["message"].is_string());
            rig.sim.set_fault(engine, None);
        }
        let wrong = completion(
            TEXT,
            &format!(r#","max_tokens":4,"temperature":-1{stream}"#),
        );
        assert_eq!(rig.post("/v1/completions", &wrong).status, 400);
    }
}

/// P pushed its KV to a D that is gone: another D gets a prefill of its own.
#[test]
fn a_dead_decode_instance_costs_another_prefill_and_no_request() {
    let rig = rig_with(engines(1, 2, 1), |config| {
        config.health_check.enabled = false
    });
    rig.sim.kill(1);
    for i in 0..4 {
        let text = format!("{TEXT} {i}");
        let response = rig.post("/v1/completions", &completion(&text, r#","max_tokens":4"#));
        assert_eq!(
            response.generated(),
            expected(prompt_hash(&text), 0, 4),
            "{}",
            response.text()
        );
    }
    let ledger = rig.sim.ledger();
    assert_eq!((ledger.loaded, ledger.recomputed), (4, 0));
    assert_eq!(ledger.violations, Vec::<String>::new());
}

/// A stream that breaks in decode does not end as if it were whole.
#[test]
fn a_broken_decode_never_ends_clean() {
    for by_completions in [false, true] {
        let rig = rig_with(engines(1, 1, 1), |config| {
            config.retry.enabled = false;
            if by_completions {
                config.lmcache.chat = Chat::Completions;
            }
        });
        rig.sim
            .set_fault(1, Some(Fault::ResetMidStream { after_chunks: 3 }));
        let more = r#","max_tokens":9,"stream":true"#;
        let mut client = rig.client();
        // Token ids, so that D is not asked to tokenize: the fault would strike there.
        let ids: Vec<String> = pdsim::tokenize(TEXT.as_bytes())
            .iter()
            .map(u32::to_string)
            .collect();
        let sent = format!(r#"{{"prompt":[{}]{more}}}"#, ids.join(","));
        client.send(post_bytes("/v1/completions", &sent, ""));
        let response = client.response();
        assert!(!response.complete);
        assert!(
            response.text().contains(r#""error""#),
            "{}",
            response.text()
        );
        assert!(!response.text().contains("[DONE]"));
    }
}

/// `CLIENT_BOUND`: the same value, the same instances.
#[test]
fn clients_that_are_bound_stay_where_they_were() {
    let rig = rig_with(engines(3, 3, 1), |config| {
        config.lmcache.bound_by = Some("session-id".into());
        config.scheduling.prefill = "round_robin".into();
        config.scheduling.decode = "round_robin".into();
    });
    let asked = || -> Vec<usize> {
        let by_path = |e: &usize| {
            rig.posts(*e)
                .iter()
                .filter(|l| l.path != "/tokenize")
                .count()
        };
        (0..6).collect::<Vec<_>>().iter().map(by_path).collect()
    };
    for _ in 0..6 {
        let mut client = rig.client();
        let sent = completion(TEXT, r#","max_tokens":2"#);
        client.send(post_bytes("/v1/completions", &sent, "Session-Id: one\r\n"));
        assert_eq!(client.response().status, 200);
    }
    let mut counts = asked();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 0, 6, 6]);
    eventually("nothing stays behind", || {
        rig.metric("pdrelay_notices_open") == 0.0
    });
}
