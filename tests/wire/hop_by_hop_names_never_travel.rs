use pdrelay::wire::head::{RequestHead, ResponseHead};

fn travelling(lines: &str) -> Vec<String> {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let head = text.as_bytes();
    let parsed = RequestHead::parse(head).unwrap();
    let fields = parsed
        .fields
        .iter()
        .filter(|f| parsed.fields.end_to_end(head, f));
    fields
        .map(|f| String::from_utf8(f.name(head).to_vec()).unwrap())
        .collect()
}

#[test]
fn names_that_stay() {
    for name in [
        "Connection",
        "Keep-Alive",
        "PROXY-CONNECTION",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "upgrade",
    ] {
        let value = if name == "Transfer-Encoding" {
            "chunked"
        } else {
            "x"
        };
        assert_eq!(
            travelling(&format!("{name}: {value}\r\n")),
            ["Host"],
            "{name}"
        );
    }
}

#[test]
fn names_that_travel() {
    for name in [
        "Authorization",
        "traceparent",
        "X-Request-Id",
        "Accept-Encoding",
        "Expect",
        "Te-x",
    ] {
        assert_eq!(travelling(&format!("{name}: x\r\n")), ["Host", name]);
    }
}

#[test]
fn names_that_connection_lists() {
    assert_eq!(
        travelling("Connection: close, X-Mine ,,\tkeep-alive\r\nx-mine: 1\r\nX-Mine2: 1\r\n"),
        ["Host", "X-Mine2"]
    );
    assert_eq!(
        travelling("X-A: 1\r\nConnection: x-a\r\nConnection: X-B\r\nX-B: 1\r\n"),
        ["Host"]
    );
}

/// Or a peer could have us send a body without its length, or a request without its host.
#[test]
fn framing_is_not_taken_out_by_listing_it() {
    let lines = "Connection: content-length, host\r\nContent-Length: 3\r\n";
    assert_eq!(travelling(lines), ["Host", "Content-Length"]);
}

#[test]
fn keep_alive() {
    let keeps = |version: &str, connection: &str| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let request = RequestHead::parse(text.as_bytes()).unwrap().keep_alive;
        let text = format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{connection}\r\n");
        let response = ResponseHead::parse(text.as_bytes()).unwrap();
        assert_eq!(
            request,
            response.reusable(response.framing(false)),
            "{version} {connection:?}"
        );
        request
    };
    assert!(keeps("1.1", ""));
    assert!(keeps("1.1", "Connection: x\r\n"));
    assert!(keeps("1.1", "Connection: keep-alive\r\n"));
    assert!(!keeps("1.1", "Connection: Close\r\n"));
    assert!(!keeps("1.1", "Connection: keep-alive, close\r\n"));
    assert!(!keeps("1.1", "Connection: x\r\nConnection: close\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: Keep-Alive\r\n"));
    assert!(!keeps(
        "1.0",
        "Connection: keep-alive\r\nConnection: close\r\n"
    ));
}
