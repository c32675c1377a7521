//! Whatever two HTTP implementations may read differently is refused, from clients and from engines.

use pdrelay::wire::head::{
    BadHead, Framing, HEADERS_MAX, HeadScan, Method, RequestHead, ResponseHead,
};
use proptest::prelude::*;
use proptest::sample::select;

/// The bytes of the head alone, or why there is none.
fn head(text: &[u8]) -> Result<&[u8], BadHead> {
    let end = HeadScan::default().advance(text)?;
    Ok(&text[..end.expect("the test's head has an end")])
}

fn request(text: &[u8]) -> Result<RequestHead, BadHead> {
    RequestHead::parse(head(text)?)
}

fn response(text: &[u8]) -> Result<ResponseHead, BadHead> {
    ResponseHead::parse(head(text)?)
}

/// Both verdicts on one set of header lines.
fn framing(lines: &str) -> [Result<Framing, BadHead>; 2] {
    let from_client = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let from_engine = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
    [
        request(from_client.as_bytes()).map(|h| h.framing),
        response(from_engine.as_bytes()).map(|h| h.framing(false)),
    ]
}

#[test]
fn framing_that_can_be_read_twice() {
    use BadHead::*;
    for (lines, why) in [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            LengthAndChunked,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            LengthAndChunked,
        ),
        (
            "transfer-encoding: chunked\r\nCONTENT-LENGTH: 0\r\n",
            LengthAndChunked,
        ),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", TwoLengths),
        (
            "Content-Length: 5\r\nX: y\r\ncontent-length: 6\r\n",
            TwoLengths,
        ),
        ("Content-Length: 5, 5\r\n", TwoLengths),
        ("Content-Length: 5,6\r\n", TwoLengths),
        ("Content-Length: ,5\r\n", TwoLengths),
        ("Content-Length:\r\n", BadLength),
        ("Content-Length: +5\r\n", BadLength),
        ("Content-Length: -5\r\n", BadLength),
        ("Content-Length: 0x5\r\n", BadLength),
        ("Content-Length: 5 5\r\n", BadLength),
        ("Content-Length: 5;\r\n", BadLength),
        ("Content-Length: 5.0\r\n", BadLength),
        ("Content-Length: \"5\"\r\n", BadLength),
        ("Content-Length: 18446744073709551615\r\n", BadLength),
        ("Content-Length: 18446744073709551621\r\n", BadLength),
        ("Content-Length: \u{665}\r\n", BadLength),
        ("Transfer-Encoding: identity\r\n", TransferEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", TransferEncoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            TransferEncoding,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            TransferEncoding,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            TransferEncoding,
        ),
        ("Transfer-Encoding: chunked;q=1\r\n", TransferEncoding),
        ("Transfer-Encoding: \"chunked\"\r\n", TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked\u{e9}\r\n", TransferEncoding),
        ("Transfer-Encoding:\r\n", TransferEncoding),
    ] {
        assert_eq!(framing(lines), [Err(why), Err(why)], "{lines:?}");
    }
}

#[test]
fn framing_that_is_clear() {
    for (lines, as_read) in [
        ("Content-Length: 0\r\n", Framing::Length(0)),
        ("Content-Length:\t42  \r\n", Framing::Length(42)),
        ("content-length: 007\r\n", Framing::Length(7)),
        (
            "Content-Length: 999999999999999999\r\n",
            Framing::Length(999_999_999_999_999_999),
        ),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
        ("TRANSFER-ENCODING:Chunked \t\r\n", Framing::Chunked),
    ] {
        assert_eq!(framing(lines), [Ok(as_read), Ok(as_read)], "{lines:?}");
    }
    assert_eq!(
        framing("X: y\r\n"),
        [Ok(Framing::Length(0)), Ok(Framing::Close)]
    );
}

#[test]
fn chunks_in_http_10() {
    let te = BadHead::TransferEncoding;
    let line = "Transfer-Encoding: chunked\r\n\r\n";
    assert_eq!(
        request(format!("POST / HTTP/1.0\r\n{line}").as_bytes()).unwrap_err(),
        te
    );
    assert_eq!(
        response(format!("HTTP/1.0 200 OK\r\n{line}").as_bytes()).unwrap_err(),
        te
    );
}

#[test]
fn lines_that_can_be_read_twice() {
    for lines in [
        "A: b\n",
        "A: b\r\nC: d\n",
        "\nA: b\r\n",
        "A: b\rC: d\r\n",
        "A: b\r\r\n",
        "A\r: b\r\n",
        "A: b\r\n folded\r\n",
        "A: b\r\n\tContent-Length: 5\r\n",
        " A: b\r\n",
        "\tA: b\r\n",
        "Content-Length : 5\r\n",
        "Content-Length\t: 5\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding\0: chunked\r\n",
        "Transfer-Encoding\u{a0}: chunked\r\n",
        "A: b\0c\r\n",
        "A: b\x7fc\r\n",
        "A b: c\r\n",
        "A(b): c\r\n",
        ": c\r\n",
        "no colon\r\n",
        "A\r\n",
    ] {
        let [client, engine] = framing(lines);
        assert!(client.is_err(), "{lines:?} from a client: {client:?}");
        assert!(engine.is_err(), "{lines:?} from an engine: {engine:?}");
    }
}

#[test]
fn hosts() {
    for (text, good) in [
        ("GET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n", true),
    ] {
        let verdict = request(text.as_bytes());
        match good {
            true => assert!(verdict.is_ok(), "{text:?}: {verdict:?}"),
            false => assert_eq!(verdict.unwrap_err(), BadHead::Host, "{text:?}"),
        }
    }
}

#[test]
fn too_many_headers() {
    let lines = |n: usize| "A: b\r\n".repeat(n);
    let client =
        |n| request(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines(n - 1)).as_bytes());
    let engine = |n| response(format!("HTTP/1.1 200 OK\r\n{}\r\n", lines(n)).as_bytes());
    assert_eq!(
        client(HEADERS_MAX).unwrap().fields.iter().count(),
        HEADERS_MAX
    );
    assert_eq!(
        engine(HEADERS_MAX).unwrap().fields.iter().count(),
        HEADERS_MAX
    );
    assert_eq!(
        client(HEADERS_MAX + 1).unwrap_err(),
        BadHead::TooManyHeaders
    );
    assert_eq!(
        engine(HEADERS_MAX + 1).unwrap_err(),
        BadHead::TooManyHeaders
    );
}

/// Every field is compared with every listed name: unbounded, one head costs millions of comparisons.
#[test]
fn too_many_listed_names() {
    let head = |n| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n",
            "a,".repeat(n)
        )
    };
    assert!(request(head(32).as_bytes()).is_ok());
    assert!(matches!(
        request(head(33).as_bytes()),
        Err(BadHead::Syntax(_))
    ));
}

#[test]
fn garbage() {
    for text in [
        &b"\r\n"[..],
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET / HTTP/01.1\r\nHost: a\r\n\r\n",
        b"GET / http/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"{\"a\":1}\r\n\r\n",
    ] {
        assert!(
            request(text).is_err(),
            "{:?}",
            text.escape_ascii().to_string()
        );
    }
    for text in [
        &b"\r\n"[..],
        b"HTTP/1.1 99 X\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 600 X\r\n\r\n",
        b"HTTP/1.1 999 X\r\n\r\n",
        b"HTTP/1.1 2000 X\r\n\r\n",
        b"HTTP/1.1  200 X\r\n\r\n",
        b"HTTP/1.1 +20 X\r\n\r\n",
        b"HTTP/1.1200 OK\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert!(
            response(text).is_err(),
            "{:?}",
            text.escape_ascii().to_string()
        );
    }
    // More than one head, and less than one.
    assert!(RequestHead::parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET").is_err());
    assert!(RequestHead::parse(b"GET / HTTP/1.1\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err());
    assert!(RequestHead::parse(b"GET / HTTP/1.1\r\nHost: a\r\n").is_err());
    assert!(ResponseHead::parse(b"HTTP/1.1 200 OK\r\n\r\n\r\n").is_err());
    assert!(ResponseHead::parse(b"").is_err());
}

#[test]
fn every_prefix_of_a_head_is_no_head() {
    let whole = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    for end in 0..whole.len() {
        assert!(RequestHead::parse(&whole[..end]).is_err(), "{end}");
    }
    assert!(RequestHead::parse(whole).is_ok());
}

#[test]
fn what_a_good_head_says() {
    let text = b"POST /v1/chat?x=/y HTTP/1.1\r\nHOST: a\r\nexpect: 100-Continue\r\nX-Name: caf\xe9 \t\r\nEmpty:\r\nX-Request-ID: r1\r\n\r\n";
    let parsed = request(text).unwrap();
    let head = head(text).unwrap();
    assert_eq!(parsed.method, Method::Post);
    assert_eq!(parsed.method_text(head), "POST");
    assert_eq!(parsed.target(head), "/v1/chat?x=/y");
    assert_eq!(parsed.path(head), "/v1/chat");
    assert!(parsed.http11 && parsed.expects_continue && parsed.keep_alive);
    assert_eq!(parsed.fields.get(head, "x-name"), Some(&b"caf\xe9"[..]));
    assert_eq!(parsed.fields.get(head, "empty"), Some(&b""[..]));
    assert_eq!(parsed.fields.get(head, "x-request-id"), Some(&b"r1"[..]));
    assert_eq!(parsed.fields.get(head, "absent"), None);
    let names: Vec<_> = parsed.fields.iter().map(|f| f.name(head)).collect();
    assert_eq!(
        names,
        [
            &b"HOST"[..],
            b"expect",
            b"X-Name",
            b"Empty",
            b"X-Request-ID"
        ]
    );

    let text =
        b"HTTP/1.1 503 Come back later\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n\r\n";
    let parsed = response(text).unwrap();
    assert_eq!(
        (parsed.status, parsed.reason(text)),
        (503, "Come back later")
    );
    assert!(parsed.is_event_stream(text));
    assert_eq!(response(b"HTTP/1.1 200\r\n\r\n").unwrap().status, 200);
    for other in [
        "text/event-streamx",
        "application/json",
        "text/event-stream\r\nContent-Encoding: gzip",
    ] {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Type: {other}\r\n\r\n");
        assert!(
            !response(text.as_bytes())
                .unwrap()
                .is_event_stream(text.as_bytes()),
            "{other}"
        );
    }
}

/// The path that routes is the path that an engine will see.
#[test]
fn paths() {
    for (target, path) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models?a=/b?c", "/v1/models"),
        ("http://h/v1/models?x", "/v1/models"),
        ("HTTP://h:80/v1/models", "/v1/models"),
        ("https://h/", "/"),
        ("http://h", "/"),
        ("http://h?x=/v1/models", "/"),
        ("/http://h/v1/models", "/http://h/v1/models"),
        ("*", "*"),
        ("h:443", "h:443"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let parsed = request(text.as_bytes()).unwrap();
        assert_eq!(parsed.path(text.as_bytes()), path, "{target}");
        assert_eq!(parsed.target(text.as_bytes()), target);
        // What is sent on is the path that routed and at most a query behind it.
        let sent = parsed.origin_form(text.as_bytes());
        assert!(sent == path || sent.strip_prefix(path).is_some_and(|q| q.starts_with('?')));
        assert_eq!(
            sent.contains('?'),
            target.contains('?') && path != "/",
            "{target}"
        );
    }
}

/// A head in which nothing can be read twice, checked line by line and without httparse.
fn clear(head: &[u8]) -> bool {
    let Some(inner) = head.strip_suffix(b"\r\n\r\n") else {
        return false;
    };
    let text = inner.escape_ascii().to_string();
    let mut lines = text.split("\\r\\n");
    let first = lines
        .next()
        .is_some_and(|l| l.split(' ').count() == 3 && !l.contains('\\'));
    let mut framings = 0;
    let mut hosts = 0;
    let rest = lines.all(|line| {
        let Some((name, value)) = line.split_once(':') else {
            return false;
        };
        let name = name.to_ascii_lowercase();
        hosts += usize::from(name == "host");
        let value = value.replace("\\t", " ");
        match name.as_str() {
            "content-length" => {
                framings += 1;
                let value = value.trim();
                !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit())
            }
            "transfer-encoding" => {
                framings += 1;
                value.trim().eq_ignore_ascii_case("chunked")
            }
            _ => {
                let token = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                !name.is_empty()
                    && name.bytes().all(token)
                    && !["\\r", "\\n", "\\x0", "\\x1", "\\x7f"]
                        .iter()
                        .any(|c| value.contains(c))
            }
        }
    });
    first && rest && framings <= 1 && hosts == 1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Fragments in any order: what passes is clear.
    #[test]
    fn what_passes_is_clear(
        parts in prop::collection::vec(select(vec![
            "Host: a\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "X: y\r\n",
            "content-length:", "transfer-encoding:", "chunked", "5", ",", " ", "\t", "\r", "\n", "\r\n",
            "\0", "x", ":", "\u{e9}", "\x0b", "host",
        ]), 0..8),
    ) {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", parts.concat());
        let mut bytes = text.as_bytes();
        if let Ok(Some(end)) = HeadScan::default().advance(bytes) {
            bytes = &bytes[..end];
        }
        if request(bytes).is_ok() {
            prop_assert!(clear(bytes), "{:?}", text);
        }
    }

    /// One damaged byte anywhere: no panic, and what passes is clear.
    #[test]
    fn damaged_heads(at in any::<prop::sample::Index>(), byte in any::<u8>(), insert in any::<bool>()) {
        let mut bytes =
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nX-A: b\r\n\r\n".to_vec();
        let at = at.index(bytes.len());
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        if let Ok(Some(end)) = HeadScan::default().advance(&bytes) {
            let head = &bytes[..end];
            if let Ok(parsed) = RequestHead::parse(head) {
                let lines = head.split(|b| *b == b'\n').map(<[u8]>::to_ascii_lowercase);
                let lengths = lines.filter(|l| l.starts_with(b"content-length:")).count();
                prop_assert_eq!(lengths, usize::from(parsed.framing != Framing::Length(0)));
                prop_assert!(!head.contains(&0));
                let count = |byte| head.iter().filter(|b| **b == byte).count();
                prop_assert_eq!(count(b'\r'), count(b'\n'));
            }
            let _ = ResponseHead::parse(head);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = HeadScan::default().advance(&bytes);
        let _ = RequestHead::parse(&bytes);
        let _ = ResponseHead::parse(&bytes);
    }
}
