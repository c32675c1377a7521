//! Two programs that read one message differently are how a request hides in another. What is ambiguous
//! is refused, and nothing after it on the connection is served.

use crate::support::engines;

use super::{End, quiet, rest_of};

/// A generate request on a sound connection; sent behind each hostile one.
const SECOND: &str = "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 32\r\n\r\n{\"model\":\"dummy\",\"prompt\":\"evil\"}";

fn heads() -> Vec<&'static str> {
    vec![
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ncontent-length: 0\r\n",
        "content-length: 5, 5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 5\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: identity\r\ncontent-length: 5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length : 5\r\n",
        "content-length\t: 5\r\n",
        " content-length: 5\r\n",
        "x-a: b\r\n content-length: 5\r\n",
        "x-a: b\r\n\tfolded\r\n",
        "content-length:\r\n 5\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "content-length: +5\r\n",
        "content-length: -5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5 5\r\n",
        "content-length: five\r\n",
        "content-length:\r\n",
        "content-length: 18446744073709551621\r\n",
        "content-length: 99999999999999999999999999999999\r\n",
        ": 5\r\n",
        "no colon here\r\n",
        "x-a: b\n",
        "x-a: b\r\n\n",
        "x-a: b\nx-b: c\r\n",
        "x-a: b\rcontent-length: 5\r\n",
        "x-a: \0\r\n",
        "x\0a: b\r\n",
        "x(a): b\r\n",
        "host: other\r\n",
    ]
}

#[test]
fn ambiguous_heads_end_the_connection() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for head in heads() {
        for first in ["POST /v1/completions HTTP/1.1", "GET /v1/models HTTP/1.1"] {
            let mut client = rig.client();
            client.send(format!(
                "{first}\r\nhost: t\r\n{head}\r\n0\r\n\r\n{SECOND}{SECOND}"
            ));
            let (bytes, end) = rest_of(&mut client);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(text.starts_with("HTTP/1.1 400 "), "{head:?}: {text}");
            assert_eq!(answers(&text), 1, "{head:?}: {text}");
            assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
            assert_eq!(end, End::Fin, "{head:?}");
        }
    }
    nothing_arrived(&rig);
}

#[test]
fn ambiguous_request_lines_end_the_connection() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for head in [
        "GET /v1/models HTTP/1.1\r\n\r\n",
        "GET /v1/models HTTP/1.1\nhost: t\r\n\r\n",
        "GET  /v1/models HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET\t/v1/models\tHTTP/1.1\r\nhost: t\r\n\r\n",
        " GET /v1/models HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /v1/models HTTP/1.2\r\nhost: t\r\n\r\n",
        "GET /v1/models HTTP/2.0\r\nhost: t\r\n\r\n",
        "GET /v1/models HTTP/0.9\r\nhost: t\r\n\r\n",
        "GET /v1/models http/1.1\r\nhost: t\r\n\r\n",
        "GET /v1/models\r\nhost: t\r\n\r\n",
        "GET /v1/mo dels HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /v1/models\0 HTTP/1.1\r\nhost: t\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: t\r\nhost: t\r\n\r\n",
        "\nGET /v1/models HTTP/1.1\r\nhost: t\r\n\r\n",
        "\r\n\nGET /v1/models HTTP/1.1\r\nhost: t\r\n\r\n",
        "POST /v1/completions HTTP/1.0\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        // In one piece, and byte by byte.
        for step in [head.len(), 1] {
            let mut client = rig.client();
            for piece in head.as_bytes().chunks(step) {
                use std::io::Write;
                if client.stream.write_all(piece).is_err() {
                    break;
                }
            }
            let _ = std::io::Write::write_all(&mut client.stream, SECOND.as_bytes());
            let (bytes, _) = rest_of(&mut client);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(
                text.starts_with("HTTP/1.1 400 "),
                "{head:?} by {step}: {text}"
            );
            assert_eq!(answers(&text), 1, "{head:?}: {text}");
        }
    }
    nothing_arrived(&rig);
    assert_eq!(rig.metric("pdrelay_panics_total"), 0.0);
}

#[test]
fn malformed_chunks_end_the_connection() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5x\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-a: b\n\r\n",
        "5\r\nhello\r\n0\r\nx-a: b\r\n\n",
        "5\r\nhello\r\n0\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{SECOND}"
        ));
        let (bytes, _) = rest_of(&mut client);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.starts_with("HTTP/1.1 400 "), "{chunks:?}: {text}");
        assert_eq!(answers(&text), 1, "{chunks:?}: {text}");
    }
    nothing_arrived(&rig);
}

/// What looks like a request inside a body is a body.
#[test]
fn requests_inside_bodies_stay_bodies() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    let mut client = rig.client();
    let inner = format!("0\r\n\r\n{SECOND}\r\n0\r\n\r\n");
    let sized = format!(
        "POST /tokenize HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{inner}",
        inner.len()
    );
    let chunked = format!(
        "POST /tokenize HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n",
        inner.len()
    );
    let trailed = format!(
        "POST /tokenize HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{:x};x=\"0\"\r\n{inner}\r\n\
         0\r\ncontent-length: 500\r\ntransfer-encoding: chunked\r\n\r\n",
        inner.len()
    );
    client.send(format!("{sized}{chunked}{trailed}{sized}"));
    for _ in 0..4 {
        assert_eq!(
            client.response().status,
            400,
            "an engine finds no JSON in it"
        );
    }
    let seen = rig.posts(0);
    assert_eq!(seen.len(), 4);
    for one in seen {
        assert_eq!(String::from_utf8_lossy(&one.body), inner);
        assert_eq!(one.header("transfer-encoding"), None);
        assert_eq!(
            one.header("content-length"),
            Some(&*inner.len().to_string())
        );
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

/// How many of them `text` is.
fn answers(text: &str) -> usize {
    text.matches("\r\ncontent-length: ").count()
}

fn nothing_arrived(rig: &crate::support::Rig) {
    assert_eq!((rig.sim.requests(0), rig.sim.requests(1)), (0, 0));
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    assert_eq!(rig.get("/health").status, 200);
}
