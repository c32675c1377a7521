//! `aggregated`: one engine gets the body as it came.

use super::{CHAT, COMPLETION, body, names};
use crate::support::{aggregated, post_bytes};

#[test]
fn the_engine_gets_exactly_what_the_client_sent() {
    let rig = aggregated(1);
    for (path, sent) in [
        ("/v1/chat/completions?q=1", CHAT),
        ("/v1/completions", COMPLETION),
    ] {
        let mut client = rig.client();
        client.send(post_bytes(
            path,
            sent,
            "x-request-id: abc\r\naccept: */*\r\n",
        ));
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        let leg = rig.posts(0).pop().unwrap();
        assert_eq!((leg.path.as_str(), body(&leg)), (path, sent));
        assert_eq!(
            names(&leg).join(" "),
            "accept content-length content-type host x-request-id"
        );
    }
    assert_eq!(rig.posts(0).len(), 2);
}

/// A chunked body arrives with a length, the same bytes.
#[test]
fn framing_is_the_proxys_own() {
    let rig = aggregated(1);
    let mut client = rig.client();
    client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\nContent-Type: application/json\r\n");
    client.send(b"Transfer-Encoding: chunked\r\n\r\n");
    for piece in COMPLETION.as_bytes().chunks(7) {
        client.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.response().status, 200);
    let leg = rig.posts(0).pop().unwrap();
    assert_eq!(body(&leg), COMPLETION);
    assert_eq!(
        names(&leg).join(" "),
        "content-length content-type host x-request-id"
    );
}
