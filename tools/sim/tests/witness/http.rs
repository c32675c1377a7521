//! HTTP: framing that is accepted, and framing that must never come from a proxy.

use std::time::Duration;

use pdsim::Outcome;

use crate::client::*;

#[test]
fn smuggling_is_never_served() {
    let (sim, p, _, _) = trio(|_| {});
    let heads = [
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\n\n",
        "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    ];
    for (i, head) in heads.iter().enumerate() {
        let mut client = Client::new(p);
        client.send(head);
        assert_eq!(client.answer().unwrap().status, 400, "{head:?}");
        assert!(client.is_closed(), "{head:?}");
        assert_eq!(sim.ledger().violation_count, i as u64 + 1, "{head:?}");
    }
}

#[test]
fn legal_requests_are_never_refused() {
    let (sim, p, _, _) = trio(|_| {});
    let mut client = Client::new(p);
    let head = "POST /v1/sim/echo HTTP/1.1\r\nHost: x\r\n";
    // Chunked with an extension and a trailer, byte by byte.
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nt: 1\r\n\r\n"
    );
    for byte in chunked.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.answer().unwrap().json()["body"], "abcde");
    // Two pipelined ones.
    client.send(format!(
        "{head}Content-Length: 1\r\n\r\na{head}Content-Length: 1\r\n\r\nb"
    ));
    assert_eq!(client.answer().unwrap().json()["body"], "a");
    assert_eq!(client.answer().unwrap().json()["body"], "b");
    // An invitation before the body.
    client.send(format!(
        "{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    ));
    let mut invited = [0; 25];
    std::io::Read::read_exact(&mut client.stream, &mut invited).unwrap();
    assert!(invited.starts_with(b"HTTP/1.1 100 Continue\r\n"));
    client.send("ok");
    assert_eq!(client.answer().unwrap().json()["body"], "ok");
    // A large body.
    let large = "x".repeat(3 << 20);
    client.send(format!(
        "{head}Content-Length: {}\r\n\r\n{large}",
        large.len()
    ));
    assert_eq!(client.answer().unwrap().json()["body"], large);
    // The connection ends when asked to.
    client.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer().unwrap().header("connection"), Some("close"));
    assert!(client.is_closed());
    let mut old = Client::new(p);
    old.send("GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().unwrap().status, 200);
    assert!(old.is_closed());
    assert_eq!(sim.ledger().violation_count, 0);
}

#[test]
fn an_idle_connection_is_never_kept_for_ever() {
    let (sim, p, _, _) = trio(|e| e.keep_alive = Some(Duration::from_millis(200)));
    let mut client = Client::new(p);
    client.call(COMPLETIONS, &prompt("A"), &[]).unwrap();
    let begun = std::time::Instant::now();
    assert!(client.is_closed());
    assert!(begun.elapsed() > Duration::from_millis(100));
    soon("it is forgotten", || sim.connections(0) == 0);
}

#[test]
fn the_transcript_never_changes_what_came() {
    let (sim, p, _, _) = trio(|_| {});
    let body = "{ \"prompt\" : \"a\", \"odd\": 1e400 }";
    let mut client = Client::new(p);
    client.send(post(
        "/v1/completions?x=1",
        body,
        &["X-Request-ID: r-1", "x-oDD:  two "],
    ));
    let answer = client.answer().unwrap().json();
    assert_eq!(answer["id"], "cmpl-r-1");
    let seen = &sim.transcript(0)[0];
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("POST", "/v1/completions?x=1")
    );
    assert_eq!(seen.body, body.as_bytes());
    assert_eq!(seen.headers[2], ("X-Request-ID".into(), "r-1".into()));
    assert_eq!(seen.headers[3], ("x-oDD".into(), "two".into()));
    assert_eq!(seen.outcome, Outcome::Answered(200));
    assert_eq!(seen.header("host"), Some("sim"));
}

#[test]
fn a_killed_engine_never_answers_and_comes_back_at_its_port() {
    let (sim, p, _, _) = trio(|_| {});
    let mut idle = Client::new(p);
    idle.call(COMPLETIONS, &prompt("A"), &[]).unwrap();
    let mut busy = Client::new(p);
    busy.send(post(
        COMPLETIONS,
        &prompt("A").to_string(),
        &["x-sim-fault: hang-before-head"],
    ));
    soon("it hangs", || sim.open_requests(0) == 1);
    sim.kill(0);
    assert!(std::net::TcpStream::connect(p).is_err());
    for mut client in [idle, busy] {
        let error = std::io::Read::read(&mut client.stream, &mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    soon("nothing is left", || {
        sim.open_requests(0) + sim.connections(0) == 0
    });
    for _ in 0..3 {
        sim.restart(0);
        assert_eq!(call(p, COMPLETIONS, &prompt("A")).status, 200);
    }
}
