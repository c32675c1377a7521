//! Whoever keeps its connection for a next request is told at its last answer, and not left to send it to nobody.

use std::time::{Duration, Instant};

use super::{File, Serving};
use crate::support::{Client, completion, engines, eventually, post_bytes};

const CROWD: usize = 400;

fn request(number: usize, more: &str) -> Vec<u8> {
    post_bytes(
        "/v1/completions",
        &completion(&number.to_string(), more),
        "",
    )
}

/// The next answer is whole, and says that it is the last.
fn last_answer(client: &mut Client) {
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.complete);
    assert_eq!(response.header("connection"), Some("close"));
}

#[test]
fn an_answer_after_the_signal_says_that_it_is_the_last() {
    let mut serving = Serving::start("nixl", engines(1, 1), &[]);
    let mut clients = [serving.client(), serving.client()];
    for (number, more) in ["", r#","stream":true"#].into_iter().enumerate() {
        let client = &mut clients[number];
        client.send(request(number, more));
        assert_eq!(client.response().header("connection"), None);
        let body = completion("again", more);
        let slowly = "x-sim-fault-prefill: slow-head:1000\r\n";
        client.send(post_bytes("/v1/completions", &body, slowly));
    }
    eventually("P is at them", || serving.sim.open_requests(0) == 2);
    serving.program.signal(libc::SIGTERM);
    clients.iter_mut().for_each(last_answer);
    drop(clients);
    assert_eq!(serving.program.wait().code(), Some(143));
}

/// Its head was out, and said nothing of an end.
#[test]
fn a_request_behind_a_stream_that_was_begun_is_answered() {
    let mut engines = engines(1, 1);
    engines[1].timing.decode_tick = Duration::from_millis(10);
    let mut serving = Serving::start("nixl", engines, &[]);
    let mut client = serving.client();
    client.send(request(0, r#","stream":true,"max_tokens":60"#));
    let head = client.head();
    assert!(!head.contains("connection:"), "{head}");
    serving.program.signal(libc::SIGTERM);
    while !client.rest.ends_with(b"0\r\n\r\n") {
        assert!(client.fill(), "{}", String::from_utf8_lossy(&client.rest));
    }
    client.rest.clear();
    client.send(request(1, ""));
    last_answer(&mut client);
    assert_eq!(client.to_end(), b"");
    drop(client);
    assert_eq!(serving.program.wait().code(), Some(143));
}

#[test]
fn a_connection_that_was_idle_at_the_signal_has_one_more_answer() {
    let file = File::new("long.yaml", "timeouts: {keep_alive: 1h}\n");
    let mut serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
    let mut clients: Vec<Client> = (0..3).map(|_| serving.client()).collect();
    for client in &mut clients[..2] {
        assert_eq!(client.get("/health").status, 200);
    }
    serving.program.signal(libc::SIGTERM);
    eventually("it drains", || {
        serving.program.err.so_far().contains("draining")
    });
    std::thread::sleep(Duration::from_millis(200));
    // One that has asked before, and one that never has.
    for at in [2, 0] {
        clients[at].send(request(at, ""));
        last_answer(&mut clients[at]);
    }
    // Who has nothing to say is not waited for.
    let began = Instant::now();
    assert!(clients[1].closed());
    drop(clients);
    assert_eq!(serving.program.wait().code(), Some(143));
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// Requests that came before the signal, and those that their clients send behind an answer that did not
/// speak of an end. Some are read, some are not, at the moment when the proxy hears of it.
#[test]
fn a_crowd_at_the_signal_is_answered_to_the_last() {
    let mut serving = Serving::start("nixl", engines(1, 1), &[]);
    let mut clients: Vec<Client> = (0..CROWD).map(|_| serving.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/health").status, 200);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(request(number, ""));
    }
    serving.program.signal(libc::SIGTERM);
    for (number, client) in clients.iter_mut().enumerate() {
        let mut response = client.response();
        while response.header("connection").is_none() {
            assert_eq!(response.status, 200, "{}", response.text());
            client.send(request(number, ""));
            response = client.response();
        }
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.complete);
    }
    drop(clients);
    assert_eq!(serving.program.wait().code(), Some(143));
    let said = serving.program.err.text();
    assert!(!said.contains("client_gone"), "{said}");
}

/// Line ends behind a body are no request.
#[test]
fn line_ends_behind_a_body_do_not_hide_the_end() {
    let mut serving = Serving::start("nixl", engines(1, 1), &[]);
    let mut client = serving.client();
    let slowly = "x-sim-fault-prefill: slow-head:500\r\n";
    let mut bytes = post_bytes("/v1/completions", &completion("0", ""), slowly);
    bytes.extend(b"\r\n");
    client.send(bytes);
    eventually("P is at it", || serving.sim.open_requests(0) == 1);
    serving.program.signal(libc::SIGTERM);
    last_answer(&mut client);
    drop(client);
    assert_eq!(serving.program.wait().code(), Some(143));
}

/// However short the drain: a connection without a request is no request that is cut off.
#[test]
fn idle_connections_are_never_cut_off() {
    for drain in ["10ms", "100ms", "1s"] {
        let file = File::new("short.yaml", &format!("timeouts: {{drain: {drain}}}\n"));
        let mut serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
        let mut client = serving.client();
        assert_eq!(client.get("/health").status, 200);
        serving.program.signal(libc::SIGTERM);
        assert!(client.closed());
        assert_eq!(serving.program.wait().code(), Some(143));
        let said = serving.program.err.text();
        assert!(!said.contains("cut off"), "{said}");
    }
}

/// What comes after the end of the drain is told so, or finds a closed connection; it is not begun and dropped.
#[test]
fn requests_are_not_begun_after_the_drain() {
    let file = File::new("over.yaml", "timeouts: {drain: 300ms}\n");
    let mut serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
    let slow = |ms: u32| {
        let fault = format!("x-sim-fault-prefill: slow-head:{ms}\r\n");
        post_bytes("/v1/completions", &completion("0", ""), &fault)
    };
    // One that is cut off, and behind it another that has come already.
    let mut client = serving.client();
    client.send([slow(5000), slow(5000)].concat());
    eventually("P is at it", || serving.sim.open_requests(0) == 1);
    serving.program.signal(libc::SIGTERM);
    let response = client.response();
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(client.to_end(), b"");
    assert_eq!(serving.program.wait().code(), Some(143));
    let asked = serving.sim.transcript(0);
    assert_eq!(asked.iter().filter(|r| r.method == "POST").count(), 1);
}

/// Whoever has not sent all of it by then is told why it is not answered.
#[test]
fn requests_that_are_half_here_at_the_end_are_told_so() {
    let file = File::new("half.yaml", "timeouts: {drain: 500ms}\n");
    let mut serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
    let whole = request(0, "");
    let mut clients = [serving.client(), serving.client()];
    for (client, cut) in clients.iter_mut().zip([20, whole.len() - 5]) {
        client.send(&whole[..cut]);
    }
    std::thread::sleep(Duration::from_millis(100));
    serving.program.signal(libc::SIGTERM);
    for client in &mut clients {
        let response = client.response();
        assert_eq!(response.status, 503, "{}", response.text());
        assert!(
            response.text().contains("timeouts.drain"),
            "{}",
            response.text()
        );
        assert_eq!(response.header("connection"), Some("close"));
    }
    assert_eq!(serving.program.wait().code(), Some(143));
    let said = serving.program.err.text();
    assert!(
        said.contains("timeouts.drain is over: 2 requests"),
        "{said}"
    );
    assert_eq!(said.matches("reason=draining").count(), 2, "{said}");
}

#[test]
fn a_short_drain_has_a_last_call_too() {
    let file = File::new("brief.yaml", "timeouts: {drain: 400ms}\n");
    let mut serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
    let mut client = serving.client();
    client.send(request(0, ""));
    assert_eq!(client.response().header("connection"), None);
    serving.program.signal(libc::SIGTERM);
    eventually("it drains", || {
        serving.program.err.so_far().contains("draining")
    });
    std::thread::sleep(Duration::from_millis(60));
    client.send(request(1, ""));
    last_answer(&mut client);
    assert_eq!(serving.program.wait().code(), Some(143));
}
