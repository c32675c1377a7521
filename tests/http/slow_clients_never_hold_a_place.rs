//! Every wait for a client has an end: heads, bodies, the next request, a reader that does not read.

use std::io::Write;
use std::thread;
use std::time::Instant;

use crate::support::{Client, Rig, completion, engine, eventually, post_bytes};

use super::{End, ms, patience, quiet, rest_of};

fn impatient() -> Rig {
    let engines = vec![engine(pdsim::Role::Both)];
    quiet("aggregated", engines, |c| {
        c.timeouts.head = ms(200);
        c.timeouts.body = ms(200);
        c.timeouts.keep_alive = ms(300);
        c.timeouts.client_write = ms(200);
        c.cores.shards = Some(1);
    })
}

fn gets_408(client: &mut Client) {
    let response = client.response();
    assert_eq!(response.status, 408, "{}", response.text());
    assert_eq!(response.header("connection"), Some("close"));
    assert_eq!(response.json()["error"]["code"], 408);
    assert_eq!(rest_of(client), (vec![], End::Fin));
}

#[test]
fn a_head_that_stops_is_a_408() {
    let rig = impatient();
    for part in [
        "G",
        "GET /health",
        "GET /health HTTP/1.1\r\nhost: t\r\n",
        "\r\nG",
    ] {
        let mut client = rig.client();
        let began = Instant::now();
        client.send(part);
        gets_408(&mut client);
        let took = began.elapsed();
        assert!(took >= ms(200) && took < ms(3000), "{took:?} for {part:?}");
    }
}

/// Bytes that keep dripping do not buy time.
#[test]
fn a_head_that_drips_is_a_408() {
    let rig = impatient();
    let mut client = rig.client();
    let began = Instant::now();
    let mut writer = client.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        for byte in b"GET /health HTTP/1.1\r\nhost: t\r\n" {
            if writer.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(ms(40));
        }
    });
    let response = client.response();
    assert_eq!(response.status, 408);
    assert!(began.elapsed() < ms(3000));
    drop(client);
    drip.join().unwrap();
}

#[test]
fn a_body_that_stops_is_a_408() {
    let rig = impatient();
    for (framing, part) in [
        ("content-length: 100", "{\"prompt\":"),
        ("content-length: 100", ""),
        ("transfer-encoding: chunked", ""),
        ("transfer-encoding: chunked", "5\r\n{\"pro"),
        ("transfer-encoding: chunked", "1\r\n{\r\n0\r\n"),
        ("expect: 100-continue\r\ncontent-length: 5", ""),
    ] {
        let mut client = rig.client();
        client.send(format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n{part}"
        ));
        gets_408(&mut client);
    }
    assert_eq!(rig.posts(0).len(), 0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let rig = impatient();
    for ask in [false, true] {
        let mut client = rig.client();
        if ask {
            assert_eq!(client.get("/health").status, 200);
        }
        let began = Instant::now();
        assert_eq!(rest_of(&mut client), (vec![], End::Fin));
        let took = began.elapsed();
        assert!(took >= ms(250) && took < ms(3000), "{took:?}");
    }
    // The limit is on idleness, not on the connection.
    let rig = quiet("aggregated", vec![engine(pdsim::Role::Both)], |c| {
        c.timeouts.keep_alive = ms(500)
    });
    let mut client = rig.client();
    for _ in 0..5 {
        thread::sleep(ms(180));
        assert_eq!(client.get("/health").status, 200);
    }
}

/// Its request may have been read when the limit passes: it is answered, or closed without a word as one that
/// came too late, but it is never begun and then given up as that of a client who has left.
#[test]
fn a_request_at_the_end_of_idleness_is_not_one_of_a_departed_client() {
    let rig = quiet("aggregated", vec![engine(pdsim::Role::Both)], |c| {
        c.timeouts.keep_alive = ms(100);
        c.cores.shards = Some(1);
    });
    let mut clients: Vec<Client> = (0..300).map(|_| rig.client()).collect();
    let body = completion("x", "");
    let (mut answered, mut late) = (0, 0);
    // The limit passes between 100 and 200 ms: somewhere in there all of them ask.
    for round in 0..12 {
        thread::sleep(ms(50 + 14 * round));
        for client in &mut clients {
            let _ = client
                .stream
                .write_all(&post_bytes("/v1/completions", &body, ""));
        }
        for client in &mut clients {
            if !client.fill() {
                (late, *client) = (late + 1, rig.client());
                continue;
            }
            let response = client.response();
            assert_eq!(response.status, 200, "{}", response.text());
            assert!(response.complete);
            answered += 1;
        }
    }
    assert!(
        answered > 0 && late > 0,
        "{answered} answered, {late} came too late"
    );
    let page = rig.get("/metrics").text();
    let mut gone = page
        .lines()
        .filter(|line| line.starts_with("pdrelay_client_gone_total{"));
    assert!(gone.all(|line| line.ends_with(" 0")), "{page}");
    assert_eq!(rig.posts(0).len(), answered);
}

/// A client that reads nothing is cut off and its engine freed; to a client for which the end of the
/// connection means the end of the answer it is a reset.
#[test]
fn a_reader_that_does_not_read_is_cut() {
    let rig = impatient();
    let body = completion("much", r#","max_tokens":40000,"stream":true"#);
    for version in ["1.1", "1.0"] {
        let mut client = small_window(&rig);
        client.send(format!(
            "POST /v1/completions HTTP/{version}\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        eventually("it began", || rig.sim.open_requests(0) == 1);
        eventually("the engine is free", || rig.sim.open_requests(0) == 0);
        eventually("the client is gone", || {
            rig.metric("pdrelay_connections_open") == 1.0
        });
        patience(&client, 2000);
        let (bytes, end) = rest_of(&mut client);
        assert!(!String::from_utf8_lossy(&bytes).contains("[DONE]"));
        if version == "1.0" {
            assert_eq!(end, End::Reset);
        }
    }
    assert_eq!(
        rig.post("/v1/completions", &completion("x", "")).status,
        200
    );
}

fn small_window(rig: &Rig) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    socket.connect(&rig.server.address.into()).unwrap();
    Client {
        stream: socket.into(),
        rest: Vec::new(),
    }
}

/// What no request begins with is not waited on: the usual one is a client that speaks TLS.
#[test]
fn what_is_no_request_is_told_so_at_once() {
    let rig = quiet("aggregated", vec![engine(pdsim::Role::Both)], |_| {});
    for (bytes, says) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], "TLS"),
        (b"\x00", "no HTTP request"),
        (b"\r\n\xff\xfe", "no HTTP request"),
    ] {
        let began = Instant::now();
        let mut client = rig.client();
        client.send(bytes);
        let response = client.response();
        assert_eq!(response.status, 400);
        assert!(response.text().contains(says), "{}", response.text());
        assert_eq!(response.header("connection"), Some("close"));
        assert!(began.elapsed() < ms(5_000), "{:?}", began.elapsed());
    }
    // And a request is one, however slowly it begins.
    let mut client = rig.client();
    for byte in *b"\r\nGET /health HTTP/1.1\r\nhost: t\r\n\r\n" {
        client.send([byte]);
    }
    assert_eq!(client.response().status, 200);
}
