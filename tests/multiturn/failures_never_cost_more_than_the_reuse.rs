//! An engine that was restarted, a P that fails, a client that leaves: the text is right, nothing is used twice,
//! and nothing is held that somebody could have freed.

use std::io::Write;
use std::time::Duration;

use pdsim::Fault;

use super::{CHAT, Talk, clean, conversations, engines, reused, right, talk_rig};
use crate::support::{Rig, eventually, post_bytes, rig_with};

fn no_retries(rig: impl FnOnce(&mut pdrelay::config::Config)) -> Rig {
    talk_rig(|config| {
        config.retry.enabled = false;
        rig(config);
    })
}

/// The blocks are gone with the process that held them; P says so with a 500, and is asked again.
#[test]
fn a_decode_that_was_restarted_is_computed_again() {
    let rig = no_retries(|config| config.health_check.enabled = false);
    let mut talk = Talk::new("c");
    talk.say(rig.server.address, "one");
    rig.sim.kill(1);
    rig.sim.restart(1);
    eventually("D is back", || rig.sim.is_up(1));
    talk.say(rig.server.address, "two");
    right(&talk);
    let posts = rig.posts(0);
    assert_eq!(posts.len(), 3, "P was asked once more, with the template");
    assert!(!reused(&rig));
    // P did nothing wrong.
    let failures = rig.sum("pdrelay_upstream_failures_total", &["role=\"prefill\""]);
    assert_eq!(failures, 0.0);
    talk.say(rig.server.address, "three");
    assert!(reused(&rig));
    right(&talk);
    clean(&rig);
}

/// A fall that a probe has seen: what was kept there is not even tried.
#[test]
fn a_decode_that_was_seen_to_fall_is_not_asked_for_what_it_had() {
    let rig = talk_rig(|config| {
        config.health_check.interval = Duration::from_millis(50);
        config.health_check.timeout = Duration::from_millis(500);
    });
    let mut talk = Talk::new("c");
    talk.say(rig.server.address, "one");
    rig.sim.kill(1);
    eventually("the fall is seen", || rig.get("/ready").status != 200);
    rig.sim.restart(1);
    eventually("it is back", || rig.get("/ready").status == 200);
    let before = rig.posts(0).len();
    talk.say(rig.server.address, "two");
    right(&talk);
    assert_eq!(rig.posts(0).len() - before, 1, "P was asked once");
    assert!(!reused(&rig));
    assert_eq!(conversations(&rig, "expired"), 1.0);
    clean(&rig);
}

/// P may have read the blocks before it failed: nobody is given them again.
#[test]
fn a_prefill_that_breaks_never_leaves_its_params_to_another() {
    let rig = rig_with("multiturn", engines(2, 1), |config| {
        config.scheduling.prefill = "round_robin".into();
        config.health_check.enabled = false;
        config.circuit_breaker.enabled = false;
    });
    let mut talk = Talk::new("c");
    for turn in 0..6 {
        let broken = turn % 2;
        rig.sim.set_fault(broken, Some(Fault::AcceptThenClose));
        talk.say(rig.server.address, "hello");
        right(&talk);
        rig.sim.set_fault(broken, None);
    }
    clean(&rig);
}

#[test]
fn a_client_that_leaves_never_strands_what_prefill_holds() {
    let mut engines = engines(1, 1);
    engines[0].timing.prefill_tokens_per_s = 400.0;
    engines[1].timing.decode_tick = Duration::from_millis(5);
    let rig = rig_with("multiturn", engines, |_| {});
    let mut talk = Talk::new("c");
    talk.more = serde_json::json!({"max_tokens": 40});
    talk.say(
        rig.server.address,
        "a first turn, so that the two engines have met",
    );
    let kept = rig.sim.ledger();
    assert_eq!(kept.held_now, 1, "the blocks that wait for the next turn");
    // At every stage: within prefill, after it, and within the stream.
    for pause in [5u64, 40, 80, 120, 160, 250] {
        talk.messages
            .push(serde_json::json!({"role": "user", "content": "and a second one"}));
        let mut client = rig.client();
        let bytes = post_bytes(CHAT, &talk.body(), "");
        client.stream.write_all(&bytes).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        drop(client);
        talk.messages.pop();
        eventually("nothing is in flight", || {
            rig.metric("pdrelay_requests_in_flight") <= 1.0
                && rig.metric("pdrelay_kv_releases_pending") == 0.0
        });
    }
    // P holds nothing for anybody; what D keeps for a next turn is D's to free.
    eventually("P is free", || rig.sim.held_tokens(0) == 0);
    clean(&rig);
    talk.say(rig.server.address, "and the last");
    right(&talk);
}

/// A stream that broke off has no end that one could go on from.
#[test]
fn a_broken_stream_is_never_kept() {
    for fault in [
        Fault::CleanEarlyEnd { after_chunks: 3 },
        Fault::ResetMidStream { after_chunks: 3 },
    ] {
        let rig = no_retries(|_| {});
        rig.sim.set_fault(1, Some(fault));
        let mut talk = Talk::new("c");
        talk.messages
            .push(serde_json::json!({"role": "user", "content": "one"}));
        let mut client = rig.client();
        client.send(post_bytes(CHAT, &talk.body(), ""));
        let response = client.response();
        rig.sim.set_fault(1, None);
        assert_eq!(conversations(&rig, "stored"), 0.0);
        let said = response.generated();
        talk.messages
            .push(serde_json::json!({"role": "assistant", "content": said}));
        talk.say(rig.server.address, "two");
        assert!(!reused(&rig));
        right(&talk);
    }
}

/// vLLM 0.32 says where its KV is in whole answers only, and an engine without bidirectional transfer never.
#[test]
fn a_decode_that_never_says_where_its_kv_is_is_counted() {
    let mut engines = engines(1, 1);
    engines[1].bidirectional = false;
    let rig = rig_with("multiturn", engines, |_| {});
    let mut talk = Talk::new("c");
    for (turn, stream) in [true, false, true].into_iter().enumerate() {
        talk.stream = stream;
        talk.say(rig.server.address, "hello");
        right(&talk);
        assert!(!reused(&rig));
        assert_eq!(conversations(&rig, "no_params"), turn as f64 + 1.0);
    }
    assert_eq!(conversations(&rig, "new"), 3.0);
    assert_eq!(conversations(&rig, "stored"), 0.0);
    clean(&rig);
    // What is no turn of a conversation is not counted.
    talk.id = serde_json::Value::Null;
    talk.say(rig.server.address, "hello");
    assert_eq!(conversations(&rig, "no_params"), 3.0);
}
