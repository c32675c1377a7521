//! SIGTERM and SIGINT let what runs finish, within a limit; a second one ends everything at once.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::{File, Serving};
use crate::support::{Client, completion, engines, eventually, post_bytes};

const LONG: Duration = Duration::from_secs(15);

fn slow(more: &[&str]) -> Serving {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = Duration::from_millis(10);
    Serving::start("nixl", engines, more)
}

/// A stream under way, its head read.
fn stream(serving: &Serving, tokens: u32) -> Client {
    let mut client = serving.client();
    let body = completion("x", &format!(r#","stream":true,"max_tokens":{tokens}"#));
    client.send(post_bytes("/v1/completions", &body, ""));
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client
}

fn refused(serving: &Serving) -> bool {
    // (A machine without free ports fails otherwise, and says nothing about the proxy.)
    let refused = std::io::ErrorKind::ConnectionRefused;
    std::net::TcpStream::connect(serving.address).is_err_and(|why| why.kind() == refused)
}

#[test]
fn a_running_stream_is_finished() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut serving = slow(&[]);
        let mut idle = serving.client();
        assert_eq!(idle.get("/ready").status, 200);
        let mut client = stream(&serving, 60);
        serving.program.signal(signal);
        eventually("new connections are refused", || refused(&serving));
        // An idle connection is let go after a last call, the busy one at its end.
        assert!(idle.closed());
        let text = String::from_utf8(client.to_end()).unwrap();
        assert!(text.contains("[DONE]"), "{text}");
        assert!(text.ends_with("0\r\n\r\n"), "{text}");
        drop(client);
        assert_eq!(serving.program.wait().code(), Some(code));
        let said = serving.program.err.text();
        assert!(said.contains("draining"), "{said}");
        assert!(
            said.contains("end=ok"),
            "the access line of the stream is missing: {said}"
        );
        assert!(!said.contains("cut off"), "{said}");
    }
}

/// While it drains, it says so to those who are still connected.
#[test]
fn a_draining_proxy_is_not_ready() {
    let serving = slow(&[]);
    let mut busy = stream(&serving, 100_000);
    let mut other = serving.client();
    // The head of a request whose end comes after the signal: it is begun, so it is answered.
    other.send("GET /ready HTTP/1.1\r\nhost: t\r\n");
    std::thread::sleep(Duration::from_millis(50));
    serving.program.signal(libc::SIGTERM);
    eventually("new connections are refused", || refused(&serving));
    other.send("\r\n");
    let response = other.response();
    assert_eq!(response.status, 503);
    assert!(response.text().contains("draining"), "{}", response.text());
    assert_eq!(response.header("connection"), Some("close"));
    assert!(busy.stream.peek(&mut [0]).is_ok());
    busy.rest.clear();
}

#[test]
fn the_limit_cuts_what_does_not_end() {
    let file = File::new("drain.yaml", "timeouts: {drain: 300ms}\n");
    let mut serving = slow(&["--config", file.path()]);
    let mut client = stream(&serving, 100_000);
    let mut waiting = serving.client();
    let hangs = "x-sim-fault-prefill: hang-before-head\r\n";
    waiting.send(post_bytes("/v1/completions", &completion("y", ""), hangs));
    eventually("P is at it", || serving.sim.open_requests(0) == 1);
    let began = Instant::now();
    serving.program.signal(libc::SIGTERM);
    // Whoever has got nothing yet is told so, and why.
    let response = waiting.response();
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(
        response.text().contains("timeouts.drain"),
        "{}",
        response.text()
    );
    assert_eq!(serving.program.wait().code(), Some(143));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < LONG,
        "{took:?}"
    );
    let text = String::from_utf8(client.to_end()).unwrap();
    assert!(
        !text.ends_with("0\r\n\r\n"),
        "a cut stream must not end cleanly"
    );
    // In the middle of a chunk there is no place for a word of why.
    assert!(
        text.contains("timeouts.drain") || !text.ends_with("\n\n\r\n"),
        "{text}"
    );
    let said = serving.program.err.text();
    assert!(
        said.contains("timeouts.drain is over: 2 requests"),
        "{said}"
    );
    assert_eq!(said.matches("reason=draining").count(), 2, "{said}");
    eventually("the engines are told", || serving.sim.open_requests(1) == 0);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in [libc::SIGTERM, libc::SIGINT] {
        let mut serving = slow(&[]);
        let _client = stream(&serving, 100_000);
        serving.program.signal(libc::SIGTERM);
        eventually("it drains", || refused(&serving));
        let began = Instant::now();
        serving.program.signal(second);
        let status = serving.program.wait();
        assert_eq!(status.signal(), Some(second), "{status:?}");
        assert!(began.elapsed() < LONG);
    }
}

/// With nothing to finish there is nothing to wait for but a last call, even if a client keeps its connection.
#[test]
fn an_idle_proxy_ends_at_once() {
    let mut serving = slow(&[]);
    let mut idle = serving.client();
    assert_eq!(idle.get("/health").status, 200);
    let silent = serving.client();
    eventually("both are connected", || {
        let page = idle.get("/metrics").text();
        page.contains("pdrelay_connections_open 2\n")
    });
    let began = Instant::now();
    serving.program.signal(libc::SIGTERM);
    assert_eq!(serving.program.wait().code(), Some(143));
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
}
