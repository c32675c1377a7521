//! Requests are spread as the policy says: also when they are few, also over shards.

use std::time::Duration;

use super::ask;
use crate::support::{Rig, completion, engines, eventually, post_bytes, rig_with};

fn counts(rig: &Rig, engines: std::ops::Range<usize>) -> Vec<usize> {
    engines.map(|engine| rig.posts(engine).len()).collect()
}

#[test]
fn round_robin_is_exact_over_shards() {
    let rig = rig_with("nixl", engines(3, 4), |c| {
        c.scheduling.prefill = "round_robin".into();
        c.scheduling.decode = "round_robin".into();
    });
    std::thread::scope(|scope| {
        for _ in 0..12 {
            // A connection per request, so both shards get their part.
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(ask(&rig).status, 200)));
        }
    });
    assert_eq!(counts(&rig, 0..3), [40; 3]);
    assert_eq!(counts(&rig, 3..7), [30; 4]);
}

/// One request at a time ties every time, and must not end at the same engines for ever.
#[test]
fn ties_take_turns_at_every_stage() {
    for (p, d) in [(2, 2), (1, 2), (2, 1), (2, 4)] {
        let rig = rig_with("nixl", engines(p, d), |c| c.cores.shards = Some(1));
        let mut client = rig.client();
        for _ in 0..16 {
            let response = client.post("/v1/completions", &completion("x", ""));
            assert_eq!(response.status, 200);
        }
        assert_eq!(counts(&rig, 0..p), vec![16 / p; p], "prefill of {p}P{d}D");
        assert_eq!(
            counts(&rig, p..p + d),
            vec![16 / d; d],
            "decode of {p}P{d}D"
        );
    }
}

/// Prefill is judged by prompt tokens, not by requests: the engine with the one long prompt gets none of
/// the short ones.
#[test]
fn long_prompts_are_worked_around() {
    let mut engines = engines(2, 1);
    for engine in &mut engines[..2] {
        engine.timing.prefill_tokens_per_s = 2_000.0;
    }
    // A probe would pass for the long prompt.
    let rig = rig_with("nixl", engines, |c| c.health_check.enabled = false);
    let long = completion(&"word ".repeat(20_000), "");
    let mut busy = rig.client();
    busy.send(post_bytes("/v1/completions", &long, ""));
    eventually("the long prompt is at a P", || {
        rig.sim.open_requests(0) + rig.sim.open_requests(1) > 0
    });
    let at = usize::from(rig.sim.open_requests(1) > 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..3).for_each(|_| assert_eq!(ask(&rig).status, 200)));
        }
    });
    assert!(
        rig.sim.open_requests(at) > 0,
        "the long prompt was done too soon"
    );
    assert_eq!(rig.posts(at).len(), 1);
    assert_eq!(rig.posts(1 - at).len(), 12);
}

/// Decode is judged by streams under way; a heavier instance takes more of them.
#[test]
fn streams_are_spread_by_weight() {
    let mut engines = engines(1, 3);
    for engine in &mut engines[1..] {
        engine.timing.decode_tick = Duration::from_millis(50);
    }
    let rig = rig_with("nixl", engines, |c| c.instances[3].weight = 2.0);
    let body = completion("x", r#","stream":true,"max_tokens":1000"#);
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let mut client = rig.client();
            client.send(post_bytes("/v1/completions", &body, ""));
            client.head();
            client
        })
        .collect();
    assert_eq!(counts(&rig, 1..4), [4, 4, 8]);
    drop(clients);
}

/// What P says of its prompts teaches how many tokens a byte is.
#[test]
fn the_length_estimate_learns() {
    let rig = rig_with("nixl", engines(1, 1), |_| {});
    let ratio = |rig: &Rig| {
        rig.get("/status").json()["tokens_per_byte"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(ratio(&rig), 0.25);
    let body = completion(&"word ".repeat(200), r#","max_tokens":1"#);
    let mut client = rig.client();
    for _ in 0..60 {
        assert_eq!(client.post("/v1/completions", &body).status, 200);
    }
    // The simulator counts a token per three bytes; the last steps are too small to be worth a write.
    let learned = ratio(&rig);
    assert!((0.28..0.35).contains(&learned), "{learned}");
}
