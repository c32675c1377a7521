//! A shard that rests between its turns, or never waits, does all that others do: its streams, its deadlines, its end.

use std::time::{Duration, Instant};

use pdrelay::config::Config;

use super::binary::{Denied, Process};
use super::ms;
use crate::support::{Client, Rig, completion, engines, eventually, rig_with};

/// An engine that makes a token each millisecond, behind one shard.
fn rig(change: impl FnOnce(&mut Config)) -> Rig {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = ms(1);
    rig_with("nixl", engines, |config| {
        config.cores.shards = Some(1);
        change(config);
    })
}

fn stream(rig: &Rig, tokens: u32) -> usize {
    let more = format!(r#","stream":true,"max_tokens":{tokens}"#);
    let response = rig.post("/v1/completions", &completion("once more", &more));
    assert_eq!((response.status, response.complete), (200, true));
    response.events().len()
}

#[test]
fn a_window_takes_several_tokens_at_once_and_all_of_them() {
    let rig = rig(|config| config.cores.batch_window = ms(10));
    let tokens = 200;
    assert!(stream(&rig, tokens) >= tokens as usize);
    let reads = rig.sum("pdrelay_chunk_gap_seconds_count", &[]);
    assert!(
        reads < f64::from(tokens) / 2.0,
        "{reads} reads of {tokens} tokens, one each millisecond, and a window of 10 ms"
    );
}

/// monoio looks at its timers only when it waits.
#[test]
fn a_shard_that_polls_still_sees_its_deadlines() {
    let rig = rig(|config| {
        config.cores.busy_poll = Duration::from_secs(3600);
        config.timeouts.between_chunks = ms(300);
        config.health_check.enabled = false;
    });
    stream(&rig, 20);
    let body = completion("silence", r#","stream":true,"max_tokens":20"#);
    let mut client = rig.client();
    client.send(crate::support::post_bytes(
        "/v1/completions",
        &body,
        "x-sim-fault-decode: stall:3\r\n",
    ));
    let began = Instant::now();
    let response = client.response();
    assert!(!response.complete);
    let text = response.text();
    assert!(text.contains("\"error\""), "{text}");
    assert!(began.elapsed() < Duration::from_secs(10));
    // And it hears of the end from another thread.
    drop(rig);
}

#[test]
fn polling_goes_on_for_its_time_and_no_longer() {
    let rig = rig(|_| {});
    let [p, d] = rig.sim.addresses() else {
        panic!()
    };
    let process = |time: &str| {
        let config = format!(
            "handshake: nixl\nhost: 127.0.0.1\nshards: 1\nprefill: [{p}]\ndecode: [{d}]\nbusy_poll: {time}\n\
             health_check: {{enabled: false}}\n"
        );
        let process = Process::start(&config, Denied::Nothing, &[]).expect("nothing is denied");
        let body = completion("x", r#","stream":true,"max_tokens":20"#);
        let response = Client::connect(process.address).post("/v1/completions", &body);
        assert_eq!(response.status, 200);
        process
    };
    let spent = |process: &Process| {
        let before = process.cpu_time();
        std::thread::sleep(ms(500));
        process.cpu_time() - before
    };
    let busy = process("10s");
    eventually("it looks again and again", || spent(&busy) >= ms(100));
    assert!(busy.end(), "it did not end well");
    let short = process("20ms");
    eventually("it is at rest", || spent(&short) <= ms(50));
    assert!(short.end(), "it did not end well");
}
