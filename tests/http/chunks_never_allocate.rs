//! A relayed chunk asks the allocator for nothing, a request for a handful of pieces, and a stream that waits
//! for its next token holds little.
//!
//! Counted on the shard's thread, in a process where it is the only one: this binary runs itself for one test.

use std::process::Command;
use std::time::Duration;

use crate::counting::{self, Seen};
use crate::support::{Client, Rig, completion, engines, post_bytes};

use super::quiet;

/// Lists of the shard (timers, operations in flight) grow now and then while it runs: that is not for a chunk. In a
/// thousand of these there is room for no more.
const ONCE_IN_A_WHILE: u64 = 10;
/// As measured (8 with `nixl`, both legs), and a few to spare: what a request asks for once its connections are open.
const PER_REQUEST: u64 = 10;
/// As measured (4,159 bytes), and a little to spare: what a stream at rest holds, before what the allocator adds.
const AT_REST: i64 = 4_600;

fn alone(test: &str) {
    let name = format!("http::chunks_never_allocate::{test}");
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

fn one_shard(handshake: &str, tick: Duration) -> Rig {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = tick;
    quiet(handshake, engines, |config| config.cores.shards = Some(1))
}

fn request(tokens: usize, stream: bool) -> Vec<u8> {
    let more = format!(r#","max_tokens":{tokens},"stream":{stream},"ignore_eos":true"#);
    post_bytes("/v1/completions", &completion("count", &more), "")
}

/// Reads until this many events have come.
fn events(client: &mut Client, wanted: usize) {
    use std::io::Read;
    let mut piece = [0; 4096];
    loop {
        let seen = client.rest.windows(6).filter(|w| *w == b"data: ").count();
        if seen >= wanted {
            return;
        }
        let read = client.stream.read(&mut piece).unwrap();
        assert!(read > 0, "the stream ended after {seen} events");
        client.rest.extend_from_slice(&piece[..read]);
    }
}

#[test]
fn streams() {
    alone("stream_in_this_process");
}

#[test]
#[ignore = "needs a process of its own: `streams` starts it"]
fn stream_in_this_process() {
    let rig = one_shard("nixl", Duration::from_millis(1));
    let mut client = rig.client();
    for _ in 0..3 {
        client.send(request(50, true));
        assert!(client.response().complete);
    }
    counting::watch("shard-");
    let start = counting::seen();
    client.send(request(1200, true));
    client.head();
    events(&mut client, 100);
    let first = counting::seen();
    assert!(first.count > start.count, "nothing is counted");
    events(&mut client, 1100);
    let Seen { count, bytes } = counting::seen() - first;
    println!("{count} allocations, {bytes} bytes, for 1,000 chunks");
    assert!(count < ONCE_IN_A_WHILE, "{count}, {bytes} bytes");
}

#[test]
fn requests() {
    alone("requests_in_this_process");
}

#[test]
#[ignore = "needs a process of its own: `requests` starts it"]
fn requests_in_this_process() {
    let rig = one_shard("nixl", Duration::ZERO);
    let mut client = rig.client();
    let mut ask = |times: u64| {
        for _ in 0..times {
            client.send(request(4, false));
            assert_eq!(client.response().status, 200);
        }
    };
    ask(20);
    counting::watch("shard-");
    let start = counting::seen();
    ask(200);
    let each = (counting::seen() - start).count as f64 / 200.0;
    println!("{each} allocations per request");
    assert!(each > 0.0 && each <= PER_REQUEST as f64, "{each}");
}

#[test]
fn streams_at_rest() {
    alone("streams_at_rest_in_this_process");
}

#[test]
#[ignore = "needs a process of its own: `streams_at_rest` starts it"]
fn streams_at_rest_in_this_process() {
    let rig = one_shard("nixl", Duration::ZERO);
    counting::watch("shard-");
    let request = post_bytes(
        "/v1/completions",
        &completion("count", r#","stream":true"#),
        "x-sim-fault-decode: stall:1\r\n",
    );
    let mut streams = Vec::new();
    let mut with = |count: usize| {
        while streams.len() < count {
            let mut client = rig.client();
            client.send(request.clone());
            client.head();
            events(&mut client, 1);
            streams.push(client);
        }
        counting::held()
    };
    // Buffers that are used again, lists that grow: those are not any stream's.
    let (few, many) = (with(50), with(250));
    let pairs = few.iter().zip(&many);
    let bytes: i64 = pairs
        .map(|(few, many)| few.0 as i64 * (many.1 - few.1))
        .sum();
    let each = bytes / 200;
    println!("{each} bytes per stream at rest");
    assert!(each > 1000 && each <= AT_REST, "{each}");
}
