//! `sequential`: P with one token, then D with the original body, byte for byte.

use super::{CHAT, CHAT_AT_P, COMPLETION, COMPLETION_AT_P, body, names};
use crate::support::{post_bytes, rig};

#[test]
fn each_leg_gets_exactly_what_it_should() {
    for (path, sent, at_p) in [
        ("/v1/chat/completions?x=y", CHAT, CHAT_AT_P),
        ("/v1/completions", COMPLETION, COMPLETION_AT_P),
    ] {
        let rig = rig("sequential", 1, 1);
        let mut client = rig.client();
        client.send(post_bytes(path, sent, "x-request-id: abc\r\n"));
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.header("x-request-id"), Some("abc"));
        let (p, d) = (rig.posts(0), rig.posts(1));
        assert_eq!((p.len(), d.len()), (1, 1));
        assert_eq!(body(&p[0]), at_p.replace("KV", ""));
        assert_eq!(body(&d[0]), sent);
        assert!(p[0].at <= d[0].at, "prefill comes first");
        for leg in [&p[0], &d[0]] {
            assert_eq!(leg.path, path);
            assert_eq!(
                names(leg).join(" "),
                "content-length content-type host x-request-id"
            );
            assert_eq!(leg.header("x-request-id"), Some("abc"));
        }
        let ledger = rig.sim.ledger();
        assert_eq!((ledger.grants, ledger.violation_count), (0, 0));
    }
}

/// It shares no grant, so a batch is prefilled like any other request.
#[test]
fn a_batch_is_prefilled_too() {
    let rig = rig("sequential", 1, 1);
    let sent = r#"{"model":"dummy","prompt":["a b c","d e f"],"max_tokens":3}"#;
    let answer = rig.post("/v1/completions", sent).json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(rig.posts(0).len(), 1);
    assert_eq!(body(&rig.posts(1)[0]), sent);
}
