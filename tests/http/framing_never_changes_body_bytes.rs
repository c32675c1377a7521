//! The framing table of `exchange/relay.rs`: whatever delimits the engine's body, the client gets its
//! bytes, all of them and no others, delimited in a way that it understands. And the same towards engines.

use std::thread;
use std::time::Instant;

use crate::support::{Client, completion, engine, engines, post_bytes, rig};

use super::fake::{Act, Fake, at, proxy, send};
use super::{End, ms, quiet, rest_of};

/// Bytes that look like framing.
fn body(length: usize) -> Vec<u8> {
    let unit = b"0\r\n\r\ndata: x\n\n5\r\n\xff\x00HTTP/1.1 200 OK\r\n\r\n";
    unit.iter().copied().cycle().take(length).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Engine {
    Length,
    Chunked,
    Close,
    OldClose,
    OldKeepAlive,
}

/// The answer on the wire, and its body part.
fn on_the_wire(engine: Engine, body: &[u8]) -> (String, Vec<u8>) {
    let length = body.len();
    match engine {
        Engine::Length => (
            format!("HTTP/1.1 200 OK\r\ncontent-type: x/y\r\ncontent-length: {length}\r\n\r\n"),
            body.to_vec(),
        ),
        Engine::OldKeepAlive => (
            format!(
                "HTTP/1.0 200 OK\r\ncontent-type: x/y\r\nconnection: keep-alive\r\ncontent-length: {length}\r\n\r\n"
            ),
            body.to_vec(),
        ),
        Engine::Close => (
            "HTTP/1.1 200 OK\r\ncontent-type: x/y\r\n\r\n".into(),
            body.to_vec(),
        ),
        Engine::OldClose => (
            "HTTP/1.0 200 OK\r\ncontent-type: x/y\r\n\r\n".into(),
            body.to_vec(),
        ),
        Engine::Chunked => {
            let mut wire = Vec::new();
            // Odd sizes, upper and lower case, leading zeros, extensions, trailers.
            for (i, part) in body.chunks(1 + length / 3).enumerate() {
                let size = match i % 3 {
                    0 => format!("{:X}\r\n", part.len()),
                    1 => format!("000{:x};name=\"a;b\";flag\r\n", part.len()),
                    _ => format!("{:x} ; x=1\r\n", part.len()),
                };
                wire.extend_from_slice(size.as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"000;last\r\nx-checksum: 1\r\nx-more: 2\r\n\r\n");
            (
                "HTTP/1.1 200 OK\r\ncontent-type: x/y\r\ntransfer-encoding: chunked\r\n\r\n".into(),
                wire,
            )
        }
    }
}

const ENGINES: [Engine; 5] = [
    Engine::Length,
    Engine::Chunked,
    Engine::Close,
    Engine::OldClose,
    Engine::OldKeepAlive,
];

fn ask(client: &mut Client, version: &str, more: &str) {
    client.send(format!(
        "POST /tokenize HTTP/{version}\r\nhost: t\r\n{more}content-length: 2\r\n\r\n{{}}"
    ));
}

/// A client that knows no chunks: everything until the end.
fn old_answer(client: &mut Client) -> (String, Vec<u8>, End) {
    let (bytes, end) = rest_of(client);
    let at = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head")
        + 4;
    (
        String::from_utf8_lossy(&bytes[..at]).into_owned(),
        bytes[at..].to_vec(),
        end,
    )
}

fn check(engine: Engine, body: &[u8], cut: usize) {
    let (head, wire) = on_the_wire(engine, body);
    let mut all = head.into_bytes();
    all.extend_from_slice(&wire);
    let cut = cut.min(all.len());
    let mut acts = vec![send(&all[..cut])];
    if cut < all.len() {
        acts.extend([Act::Pause(2), send(&all[cut..])]);
    }
    let until_close = matches!(engine, Engine::Close | Engine::OldClose);
    if until_close {
        acts.push(Act::Close);
    }
    let fake = Fake::always(acts);
    let server = proxy(&[&fake], |_| {});
    let what = format!("{engine:?}, {} bytes, cut at {cut}", body.len());

    let mut client = at(&server);
    for _ in 0..2 {
        ask(&mut client, "1.1", "");
        let response = client.response();
        assert!(response.complete && response.body == body, "{what}");
        assert_eq!(response.header("content-type"), Some("x/y"));
        let framing = (
            response.header("content-length").is_some(),
            response.header("transfer-encoding").is_some(),
        );
        let sized = matches!(engine, Engine::Length | Engine::OldKeepAlive);
        assert_eq!(framing, (sized, !sized), "{what}");
        if engine == Engine::Chunked {
            assert!(
                response.raw_body == wire,
                "{what}: chunks pass as they came"
            );
        }
    }
    assert!(client.rest.is_empty());

    for more in ["", "connection: keep-alive\r\n"] {
        let mut client = at(&server);
        ask(&mut client, "1.0", more);
        let sized = matches!(engine, Engine::Length | Engine::OldKeepAlive);
        if sized && !more.is_empty() {
            let response = client.response();
            assert!(response.complete && response.body == body, "{what}");
            assert_eq!(response.header("connection"), Some("keep-alive"));
            ask(&mut client, "1.0", "");
        }
        let (head, got, end) = old_answer(&mut client);
        assert!(got == body, "{what}: {} bytes", got.len());
        assert_eq!(end, End::Fin, "{what}");
        assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(head.contains("content-length"), sized, "{head}");
    }
    let reusable = !until_close;
    assert_eq!(fake.connections() == 1, reusable, "{what}");
}

#[test]
fn every_framing_gives_every_client_the_same_bytes() {
    for engine in ENGINES {
        for length in [0, 1, 1000, 70_000, 1 << 20] {
            check(engine, &body(length), usize::MAX);
        }
        for cut in [17, 64, 90, 100, 120, 121, 122, 123, 500, 1063] {
            check(engine, &body(1000), cut);
        }
    }
}

/// The simulator's answers, one byte per write.
#[test]
fn bytes_one_by_one_make_the_same_answer() {
    let rig = rig("nixl", 1, 1);
    let body = completion("slowly", r#","max_tokens":3,"stream":true"#);
    let plain = rig.post("/v1/completions", &body);
    let mut client = rig.client();
    for shape in [
        "byte-by-byte",
        "chunk-ext",
        "trailers",
        "split-chunks",
        "length",
        "close-delimited",
        "http10",
    ] {
        for version in ["1.1", "1.0"] {
            client.send(format!(
                "POST /v1/completions HTTP/{version}\r\nhost: t\r\nconnection: keep-alive\r\n\
                 x-sim-shape: {shape}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ));
            let response = client.response();
            assert!(response.complete, "{shape} {version}");
            assert_eq!(response.generated(), plain.generated(), "{shape} {version}");
            assert_eq!(response.events().last().unwrap(), "[DONE]");
            if response.header("connection") == Some("close") {
                client = rig.client();
            }
        }
    }
}

#[test]
fn answers_without_a_body_stay_without() {
    let answers = [
        ("HEAD", "200 OK\r\ncontent-length: 500\r\n", Some("500")),
        ("HEAD", "200 OK\r\ntransfer-encoding: chunked\r\n", None),
        ("HEAD", "200 OK\r\n", None),
        ("HEAD", "404 Not Found\r\ncontent-length: 9\r\n", Some("9")),
        ("GET", "204 No Content\r\n", None),
        ("GET", "304 Not Modified\r\netag: \"x\"\r\n", None),
        (
            "GET",
            "304 Not Modified\r\ncontent-length: 77\r\n",
            Some("77"),
        ),
        ("GET", "200 OK\r\ncontent-length: 0\r\n", Some("0")),
    ];
    for (method, head, length) in answers {
        let fake = Fake::always(vec![send(format!("HTTP/1.1 {head}\r\n"))]);
        let server = proxy(&[&fake], |_| {});
        let mut client = at(&server);
        for _ in 0..2 {
            client.send(format!("{method} /v1/models HTTP/1.1\r\nhost: t\r\n\r\n"));
            let response = client.response_to(method);
            assert_eq!(response.header("content-length"), length, "{head}");
            assert_eq!(response.header("transfer-encoding"), None, "{head}");
            assert_eq!(response.header("connection"), None, "{head}");
        }
        assert_eq!(
            client.get("/health").json()["status"],
            "ok",
            "nothing was left over"
        );
        assert_eq!(fake.connections(), 1, "{head}");
    }
}

#[test]
fn interim_answers_are_skipped() {
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlast";
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n\
                   HTTP/1.1 102 Processing\r\nx-a: b\r\n\r\n";
    for cut in [
        0,
        10,
        25,
        40,
        interim.len() - 1,
        interim.len(),
        interim.len() + 20,
    ] {
        let all = format!("{interim}{last}");
        let (a, b) = all.split_at(cut);
        let fake = Fake::always(vec![send(a), Act::Pause(2), send(b)]);
        let server = proxy(&[&fake], |_| {});
        let mut client = at(&server);
        for _ in 0..2 {
            client.send(post_bytes("/v1/completions", &completion("x", ""), ""));
            let head = client.head();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(!head.contains("link"), "{head}");
            while client.rest.len() < 4 {
                client
                    .rest
                    .extend_from_slice(&read_some(&mut client.stream));
            }
            assert_eq!(client.rest, b"last");
            client.rest.clear();
        }
        assert_eq!(fake.connections(), 1);
    }
}

fn read_some(stream: &mut std::net::TcpStream) -> Vec<u8> {
    use std::io::Read;
    let mut piece = [0; 1024];
    let n = stream.read(&mut piece).expect("more to come");
    assert!(n > 0);
    piece[..n].to_vec()
}

/// An empty chunked answer of P, with a status that is the client's answer: its body is empty.
#[test]
fn an_empty_answer_of_a_prefill_stays_empty() {
    use pdrelay::config::Role;
    let empty = "HTTP/1.1 422 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let p = Fake::always(vec![send(empty)]);
    let d = Fake::always(vec![]);
    let server = proxy(&[&p, &d], |c| {
        c.handshake = "sequential".into();
        c.instances[0].role = Role::Prefill;
        c.instances[1].role = Role::Decode;
    });
    let mut client = at(&server);
    for _ in 0..2 {
        let response = client.post("/v1/completions", &completion("x", ""));
        assert_eq!((response.status, &*response.text()), (422, ""));
    }
    assert_eq!(d.seen().len(), 0);
    assert_eq!(p.connections(), 1);
}

/// A chunked request reaches engines with a length, whatever its chunks looked like and however they came.
#[test]
fn chunked_requests_arrive_whole() {
    let rig = quiet("sequential", engines(1, 1), |_| {});
    let body = completion("a chunked prompt", r#","max_tokens":2,"x":"0\r\n\r\n""#);
    let expected = rig.post("/v1/completions", &body).generated();
    let mut chunked = Vec::new();
    for (i, part) in body.as_bytes().chunks(7).enumerate() {
        let size = if i % 2 == 0 {
            format!("{:x};ext=\"v\"\r\n", part.len())
        } else {
            format!("00{:X}\r\n", part.len())
        };
        chunked.extend_from_slice(size.as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\nx-trailer: 1\r\n\r\n");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let all = [head.as_bytes(), &chunked].concat();
    for step in [1, 3, 50, all.len()] {
        let mut client = rig.client();
        for _ in 0..2 {
            for piece in all.chunks(step) {
                client.send(piece);
            }
            let response = client.response();
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.generated(), expected);
        }
    }
    let seen = rig.posts(1);
    assert_eq!(seen.len(), 9);
    for one in &seen[1..] {
        assert_eq!(String::from_utf8_lossy(&one.body), body);
        assert_eq!(one.header("content-length"), Some(&*body.len().to_string()));
        assert_eq!(one.header("transfer-encoding"), None);
        assert_eq!(one.header("trailer"), None);
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

/// Large chunked uploads behind a head that fills the first buffer must not crawl.
#[test]
fn a_long_head_does_not_slow_a_chunked_body() {
    let fake = Fake::always(vec![super::fake::answer("{}")]);
    let server = proxy(&[&fake], |_| {});
    let body = completion(&"y".repeat(4 << 20), "");
    for length in [4090, 4095, 4096, 4097] {
        let head = |fill: usize| {
            format!(
                "POST /v1/completions HTTP/1.1\r\nhost: t\r\nx-fill: {}\r\n\
                 transfer-encoding: chunked\r\n\r\n",
                "f".repeat(fill)
            )
        };
        let head = head(length - head(0).len());
        assert_eq!(head.len(), length);
        let mut client = at(&server);
        client.send(&head);
        thread::sleep(ms(20));
        let began = Instant::now();
        client.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
        assert_eq!(client.response().status, 200);
        let took = began.elapsed();
        assert!(took < ms(1500), "{took:?} behind a head of {length} bytes");
        assert!(fake.seen().last().unwrap().body() == body.as_bytes());
    }
}

#[test]
fn requests_byte_by_byte_are_requests() {
    let rig = rig("nixl", 1, 1);
    let mut client = rig.client();
    let body = completion("byte by byte", r#","max_tokens":2"#);
    let expected = rig.post("/v1/completions", &body).generated();
    for start in ["", "\r\n", "\r\n\r\n\r\n"] {
        let mut all = start.as_bytes().to_vec();
        all.extend_from_slice(&post_bytes("/v1/completions", &body, ""));
        for byte in all {
            client.send([byte]);
        }
        let response = client.response();
        assert_eq!(
            (response.status, response.generated()),
            (200, expected.clone())
        );
    }
    // Each in a read of its own.
    for byte in b"\r\n\r\nGET /health HTTP/1.1\r\nhost: t\r\n\r\n" {
        client.send([*byte]);
        thread::sleep(ms(1));
    }
    assert_eq!(client.response().status, 200);
    assert_eq!(rig.metric("pdrelay_panics_total"), 0.0);
}

#[test]
fn clients_that_wait_for_100_get_it_once() {
    let rig = quiet(
        "nixl",
        vec![engine(pdsim::Role::Prefill), engine(pdsim::Role::Decode)],
        |_| {},
    );
    let body = completion("expected", r#","max_tokens":2"#);
    let expected = rig.post("/v1/completions", &body).generated();
    let sized = format!("content-length: {}", body.len());
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for (framing, payload) in [(&*sized, &body), ("transfer-encoding: chunked", &chunks)] {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n"
        );
        let mut client = rig.client();
        client.send(&head);
        assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(payload);
        let response = client.response();
        assert_eq!(
            (response.status, response.generated()),
            (200, expected.clone())
        );
        // The body is there already: nobody waits.
        client.send(format!("{head}{payload}"));
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    // 1.0 knows no 100.
    let mut client = rig.client();
    client.send(format!(
        "POST /v1/completions HTTP/1.0\r\nexpect: 100-continue\r\n{sized}\r\n\r\n"
    ));
    thread::sleep(ms(20));
    client.send(&body);
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    // An engine is never asked to wait.
    for one in rig.posts(0).iter().chain(&rig.posts(1)) {
        assert_eq!(one.header("expect"), None);
    }
}

#[test]
fn connections_close_when_either_side_says_so() {
    // The client says so.
    let fake = Fake::always(vec![super::fake::answer("{}")]);
    let server = proxy(&[&fake], |_| {});
    for (version, more, stays) in [
        ("1.1", "", true),
        ("1.1", "connection: close\r\n", false),
        ("1.1", "Connection: foo, CLOSE\r\n", false),
        ("1.0", "", false),
        ("1.0", "connection: Keep-Alive\r\n", true),
        ("1.0", "connection: keep-alive, close\r\n", false),
    ] {
        for path in ["/v1/completions", "/health"] {
            let mut client = at(&server);
            let body = completion("x", "");
            let (method, body) = if path == "/health" {
                ("GET", "")
            } else {
                ("POST", &*body)
            };
            client.send(format!(
                "{method} {path} HTTP/{version}\r\nhost: t\r\n{more}content-length: {}\r\n\r\n{body}",
                body.len()
            ));
            let response = client.response();
            assert_eq!(response.status, 200);
            let said = match (stays, version) {
                (false, _) => Some("close"),
                (true, "1.0") => Some("keep-alive"),
                _ => None,
            };
            assert_eq!(response.header("connection"), said, "{version} {more}");
            if stays {
                assert_eq!(client.get("/health").status, 200);
            } else {
                assert_eq!(rest_of(&mut client), (vec![], End::Fin));
            }
        }
    }
    assert_eq!(
        fake.connections(),
        1,
        "all of it on one connection to the engine"
    );
    // The engine says so: its connection ends, the client's does not.
    let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    let fake = Fake::always(vec![send(closing)]);
    let server = proxy(&[&fake], |_| {});
    let mut client = at(&server);
    for _ in 0..3 {
        let response = client.post("/v1/completions", &completion("x", ""));
        assert_eq!(
            (response.status, response.header("connection")),
            (200, None)
        );
    }
    assert_eq!(fake.connections(), 3);
    crate::support::eventually("the proxy closed them", || fake.open() == 0);
}
