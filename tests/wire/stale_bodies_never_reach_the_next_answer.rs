//! A connection is used again only where both sides agree on where the answer ended.

use pdrelay::wire::head::{Framing, ResponseHead};

fn read(text: &str, to_head: bool) -> (Framing, bool) {
    let head = ResponseHead::parse(text.as_bytes()).unwrap();
    let framing = head.framing(to_head);
    (framing, head.reusable(framing))
}

#[test]
fn answers_without_a_body() {
    let none = Framing::Length(0);
    assert_eq!(
        read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
        (none, true)
    );
    assert_eq!(
        read(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            true
        ),
        (none, true)
    );
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\n", true), (none, true));
    assert_eq!(
        read("HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", false),
        (none, true)
    );
    assert_eq!(read("HTTP/1.1 204 X\r\n\r\n", false), (none, true));
    assert_eq!(
        read("HTTP/1.1 204 X\r\nContent-Length: 0\r\n\r\n", false),
        (none, true)
    );
    assert_eq!(read("HTTP/1.1 100 Continue\r\n\r\n", false).0, none);
    assert_eq!(read("HTTP/1.1 101 X\r\n\r\n", false), (none, false));
}

#[test]
fn a_204_that_announces_a_body() {
    let none = Framing::Length(0);
    assert_eq!(
        read("HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\n", false),
        (none, false)
    );
    assert_eq!(
        read(
            "HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n",
            false
        ),
        (none, false)
    );
}

#[test]
fn answers_with_a_body() {
    assert_eq!(
        read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false),
        (Framing::Length(5), true)
    );
    assert_eq!(
        read(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false
        ),
        (Framing::Chunked, true)
    );
    assert_eq!(
        read(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            false
        ),
        (Framing::Chunked, false)
    );
    assert_eq!(
        read("HTTP/1.1 200 OK\r\n\r\n", false),
        (Framing::Close, false)
    );
    assert_eq!(
        read("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", false),
        (Framing::Close, false)
    );
}

#[test]
fn declared_length() {
    let declared = |text: &str| {
        ResponseHead::parse(text.as_bytes())
            .unwrap()
            .declared_length()
    };
    assert_eq!(
        declared("HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n"),
        Some(5)
    );
    assert_eq!(
        declared("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"),
        None
    );
    assert_eq!(declared("HTTP/1.1 200 X\r\n\r\n"), None);
}
