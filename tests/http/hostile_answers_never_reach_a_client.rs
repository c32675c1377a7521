//! An engine whose answer could be read in two ways is not believed, and its connection never used again.

use std::thread;

use crate::support::{chat, completion, eventually, post_bytes};

use super::fake::{Act, Fake, answer, at, proxy, send};

fn hostile() -> Vec<Vec<u8>> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let mut all: Vec<Vec<u8>> = [
        "content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "content-length: 5\r\ncontent-length: 3\r\n\r\nhello",
        "content-length: 5, 5\r\n\r\nhello",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\nhello",
        "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "content-length : 5\r\n\r\nhello",
        "content-length: -5\r\n\r\nhello",
        "content-length: +5\r\n\r\nhello",
        "content-length: 5x\r\n\r\nhello",
        "content-length: 99999999999999999999\r\n\r\nhello",
        "content-length:\r\n\r\nhello",
        "x-a: b\n\r\nhello",
        "x-a: b\r\n\nhello",
        "x-a: b\r\n folded\r\n\r\nhello",
        "content-length:\r\n 5\r\n\r\nhello",
        "x-a: b\rx-b: c\r\n\r\nhello",
        "x-a: \0\r\n\r\nhello",
        "no colon here\r\n\r\nhello",
        ": nameless\r\n\r\nhello",
        // Chunks that are wrong from the first byte.
        "transfer-encoding: chunked\r\n\r\nzz\r\n",
        "transfer-encoding: chunked\r\n\r\n-1\r\n",
        "transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
    ]
    .iter()
    .map(|rest| format!("{ok}{rest}").into_bytes())
    .collect();
    for head in [
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n",
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "\n\nhello",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    ] {
        all.push(head.as_bytes().to_vec());
    }
    all.push(format!("{ok}x: {}\r\n\r\n", "a".repeat(4 << 20)).into_bytes());
    all.push(format!("{ok}{}\r\n", "x: y\r\n".repeat(200)).into_bytes());
    all.push(vec![b'x'; 4 << 20]);
    all
}

#[test]
fn ambiguous_answers_are_a_502() {
    // One at a time: the script plays the next hostile answer until the proxy has given up on it.
    for (i, bytes) in hostile().into_iter().enumerate() {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(90)]).into_owned();
        let first = bytes.clone();
        let fake = Fake::new(move |_, seen| match seen.text().contains("sound") {
            true => vec![answer(r#"{"sound":true}"#)],
            false => vec![send(&first)],
        });
        let server = proxy(&[&fake], |c| c.retry.enabled = false);
        let mut client = at(&server);
        let response = match i % 2 {
            0 => client.post("/v1/completions", &completion("x", "")),
            _ => client.get("/v1/models"),
        };
        assert_eq!(response.status, 502, "{what:?}: {}", response.text());
        assert!(!response.text().contains("hello"));
        let before = fake.seen().last().unwrap().connection;
        // The client's connection goes on; the engine's does not.
        let response = client.post("/v1/completions", &completion("sound", ""));
        assert_eq!(
            (response.status, &*response.text()),
            (200, r#"{"sound":true}"#),
            "{what:?}"
        );
        let after = fake.seen().last().unwrap().connection;
        assert!(
            after > before,
            "the connection was used again after {what:?}"
        );
        assert_eq!(
            server
                .shared
                .metrics
                .render()
                .matches("pdrelay_panics_total 0")
                .count(),
            1
        );
    }
}

/// Bytes after an answer belong to nobody, least of all to the next request: whether they come with it or
/// later, after a body or where there must be none.
#[test]
fn bytes_after_an_answer_never_become_the_next_answer() {
    let stray = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen";
    let sized = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n";
    let cases = [
        ("POST", sized, stray),
        ("POST", chunked, stray),
        ("POST", sized, "\r\n"),
        ("POST", "HTTP/1.1 204 No Content\r\n\r\n", stray),
        (
            "POST",
            "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
            "first",
        ),
        (
            "POST",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            "first",
        ),
        (
            "POST",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            stray,
        ),
        // An engine that answers HEAD as it would GET.
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n",
            stray,
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            stray,
        ),
    ];
    for (method, first, rest) in cases {
        for late in [false, true] {
            let acts = match late {
                false => vec![send(format!("{first}{rest}"))],
                true => vec![send(first), Act::Pause(30), send(rest)],
            };
            let fake = Fake::new(move |number, _| match number {
                0 => acts.clone(),
                _ => vec![answer("mine")],
            });
            let server = proxy(&[&fake], |_| {});
            let mut client = at(&server);
            if method == "HEAD" {
                client.send("HEAD /v1/models HTTP/1.1\r\nhost: t\r\n\r\n");
            } else {
                client.send(post_bytes("/v1/chat/completions", &chat("x", ""), ""));
            }
            let response = client.response_to(method);
            assert!(!response.text().contains("stolen"));
            if late {
                eventually("the stray bytes are there", || fake.acts() >= 3);
            }
            for _ in 0..3 {
                let next = at(&server).post("/v1/completions", &completion("other", ""));
                assert_eq!(
                    (next.status, &*next.text()),
                    (200, "mine"),
                    "after {method} {first:?} then {rest:?}, late: {late}"
                );
            }
        }
    }
}

/// An engine may be told to speak by itself: a 408 on an idle connection is not an answer.
#[test]
fn words_on_an_idle_connection_never_become_an_answer() {
    let fake = Fake::new(|number, _| match number {
        0 => vec![
            answer("first"),
            Act::Pause(20),
            send("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
            Act::Close,
        ],
        _ => vec![answer("mine")],
    });
    let server = proxy(&[&fake], |_| {});
    let mut client = at(&server);
    assert_eq!(client.post("/tokenize", "{}").text(), "first");
    eventually("it has spoken", || fake.acts() >= 4);
    let response = client.post("/tokenize", "{}");
    assert_eq!((response.status, &*response.text()), (200, "mine"));
}

/// An engine may refuse a body before it has read it, and close: the client gets the refusal, not a 502.
#[test]
fn an_early_refusal_is_an_answer() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let engine = thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut some = vec![0; 50_000];
            stream.read_exact(&mut some).unwrap();
            let refusal =
                "HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge";
            stream.write_all(refusal.as_bytes()).unwrap();
        }
    });
    let server = proxy(&[], |c| {
        use pdrelay::config::{Address, InstanceConfig, Role};
        let address = Address::tcp("127.0.0.1", address.port());
        c.instances = vec![InstanceConfig::new(address, Role::Aggregated)];
    });
    let mut client = at(&server);
    for _ in 0..2 {
        let response = client.post("/v1/completions", &completion(&"x".repeat(8 << 20), ""));
        assert_eq!((response.status, &*response.text()), (413, "large"));
    }
    engine.join().unwrap();
}
