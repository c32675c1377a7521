//! A client that leaves is noticed at once, whatever its request is waiting for, and the engine is told.

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use crate::support::{Client, Rig, completion, engine, engines, eventually, post_bytes};

use super::{ms, quiet, time_until};

/// A sweep (100 ms) finds a client gone behind a pipelined request; others are seen by the pending read. A
/// busy machine may be late now and then, so this is the median's limit, and a multiple of it everyone's.
const AT_ONCE: Duration = Duration::from_millis(150);

fn slow_decode() -> Rig {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = Duration::from_millis(10);
    quiet("sequential", engines, |_| {})
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    Close,
    Half,
    Reset,
}

fn leave(client: Client, how: Leave) -> Option<Client> {
    match how {
        Leave::Close => None,
        Leave::Half => {
            client.stream.shutdown(Shutdown::Write).unwrap();
            Some(client)
        }
        Leave::Reset => {
            let socket = socket2::SockRef::from(&client.stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            None
        }
    }
}

fn nobody_left(rig: &Rig) {
    // The scrape itself is one request on one connection.
    eventually("gauges are back", || {
        rig.metric("pdrelay_requests_in_flight") == 1.0
            && rig.metric("pdrelay_connections_open") == 1.0
            && rig.metric("pdrelay_body_memory_bytes") == 0.0
    });
    let status = rig.get("/status").json();
    assert_eq!(status["limits"]["in_flight"]["now"], 0, "{status}");
    for one in status["instances"].as_array().unwrap() {
        assert_eq!(
            (&one["requests"], &one["tokens"]),
            (&0.into(), &0.into()),
            "{status}"
        );
    }
}

#[test]
fn in_every_stage() {
    let rig = slow_decode();
    let stream = completion("stages", r#","max_tokens":2000,"stream":true"#);
    let whole = completion("stages", r#","max_tokens":2000"#);
    let stages = [
        (
            "prefill",
            "x-sim-fault-prefill: hang-before-head\r\n",
            &stream,
            0,
        ),
        (
            "decode head",
            "x-sim-fault-decode: hang-before-head\r\n",
            &stream,
            1,
        ),
        ("decode head of a whole answer", "", &whole, 1),
        ("stream", "", &stream, 1),
        (
            "stalled stream",
            "x-sim-fault-decode: stall:1\r\n",
            &stream,
            1,
        ),
        ("half body", "x-sim-fault-decode: stall:0\r\n", &whole, 1),
    ];
    let mut times = Vec::new();
    let pipelined = post_bytes("/v1/completions", &completion("behind", ""), "");
    for (stage, field, body, engine) in stages {
        for behind in [0, 1, 200] {
            for how in [Leave::Close, Leave::Half, Leave::Reset] {
                let mut client = rig.client();
                client.send(post_bytes("/v1/completions", body, field));
                for _ in 0..behind {
                    client.send(&pipelined);
                }
                eventually("the engine is at it", || rig.sim.open_requests(engine) == 1);
                if stage.contains("stream") {
                    client.head();
                }
                // A reset overtakes what the proxy has not read.
                thread::sleep(ms(if how == Leave::Reset { 20 } else { 5 }));
                let kept = leave(client, how);
                let what = format!("{stage}, {behind} behind, {how:?}");
                let took = time_until(&what, || rig.sim.open_requests(engine) == 0);
                assert!(took < 10 * AT_ONCE, "{what}: {took:?}");
                times.push(took);
                drop(kept);
            }
        }
    }
    times.sort();
    assert!(times[times.len() / 2] < AT_ONCE, "{times:?}");
    nobody_left(&rig);
    let behind = rig
        .posts(0)
        .iter()
        .filter(|r| r.body.windows(6).any(|w| w == b"behind"))
        .count();
    assert_eq!(behind, 0, "requests of clients that left were served");
    let gone: f64 = ["prefill", "decode_head", "stream"]
        .iter()
        .map(|s| rig.metric(&format!("pdrelay_client_gone_total{{stage=\"{s}\"}}")))
        .sum();
    assert_eq!(gone, 54.0);
}

/// During the upload nobody else knows of the request yet.
#[test]
fn before_the_request_is_complete() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    let whole = post_bytes("/v1/completions", &completion("never sent", ""), "");
    for part in [1, 20, whole.len() / 2, whole.len() - 1] {
        for how in [Leave::Close, Leave::Half, Leave::Reset] {
            let mut client = rig.client();
            client.send(&whole[..part]);
            thread::sleep(ms(2));
            drop(leave(client, how));
        }
    }
    nobody_left(&rig);
    assert_eq!(rig.sim.requests(0), 0);
    assert_eq!(rig.metric("pdrelay_panics_total"), 0.0);
}

/// A P that learns of the end just as it finishes keeps its KV for its whole lease, and nobody knows where:
/// so a prefill may end within `timeouts.release` (2 s at most), and its grant is released; then it is cut.
#[test]
fn a_prefill_may_come_to_its_end() {
    let rig = quiet("nixl", engines(1, 1), |c| c.timeouts.release = ms(500));
    for how in [Leave::Close, Leave::Half, Leave::Reset] {
        let mut client = rig.client();
        let body = completion("near its end", r#","stream":true"#);
        let slow = "x-sim-fault-prefill: slow-head:300\r\n";
        client.send(post_bytes("/v1/completions", &body, slow));
        eventually("P is at it", || rig.sim.open_requests(0) == 1);
        drop(leave(client, how));
        eventually("P has finished", || rig.sim.open_requests(0) == 0);
    }
    let released = "pdrelay_kv_grants_total{outcome=\"released\"}";
    eventually("its KV is released", || rig.metric(released) == 3.0);

    let mut client = rig.client();
    let body = completion("far from its end", r#","stream":true"#);
    let hangs = "x-sim-fault-prefill: hang-before-head\r\n";
    client.send(post_bytes("/v1/completions", &body, hangs));
    eventually("P is at it", || rig.sim.open_requests(0) == 1);
    drop(client);
    let took = time_until("P is told", || rig.sim.open_requests(0) == 0);
    assert!(took > ms(400) && took < ms(2000), "{took:?}");
    nobody_left(&rig);
}

/// Many at once, at random moments: all counts come back to zero.
#[test]
fn crowds_leave_nothing_behind() {
    let mut slow = engine(pdsim::Role::Both);
    slow.timing.decode_tick = Duration::from_millis(1);
    let rig = quiet("aggregated", vec![slow], |_| {});
    thread::scope(|scope| {
        for worker in 0..8u64 {
            let rig = &rig;
            scope.spawn(move || {
                for i in 0..25u64 {
                    let mut client = rig.client();
                    let body = completion("crowd", r#","max_tokens":50,"stream":true"#);
                    client.send(post_bytes("/v1/completions", &body, ""));
                    thread::sleep(Duration::from_micros(
                        (worker * 7919 + i * 104_729) % 15_000,
                    ));
                }
            });
        }
    });
    eventually("the engine is idle", || rig.sim.open_requests(0) == 0);
    nobody_left(&rig);
}

/// A D that fetches from a P for the first time is left to go on for a while. That is once for the
/// process, not once for each shard.
#[test]
fn a_pair_that_has_met_is_known_to_all_shards() {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = Duration::from_millis(10);
    let rig = quiet("nixl", engines, |_| {});
    let met = completion("first", r#","max_tokens":1"#);
    assert_eq!(rig.post("/v1/completions", &met).status, 200);
    // Enough connections for the kernel to give each shard some.
    for i in 0..16 {
        let mut client = rig.client();
        let body = completion(&format!("later {i}"), r#","max_tokens":500"#);
        client.send(post_bytes("/v1/completions", &body, ""));
        eventually("D is at it", || rig.sim.open_requests(1) == 1);
        drop(client);
        let took = time_until("D has stopped", || rig.sim.open_requests(1) == 0);
        assert!(took < ms(2000), "{i}: {took:?}");
    }
    nobody_left(&rig);
}
