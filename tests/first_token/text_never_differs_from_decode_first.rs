//! Where both engines make the same token, nobody can tell from the text whose it was: over both handshakes,
//! both endpoints, and every shape that an engine gives its answer.

use super::{outcome, p_first};
use crate::support::{aggregated, chat, completion, engines, post_bytes};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[test]
fn the_text_is_that_of_a_single_server() {
    let single = aggregated(1);
    for handshake in ["nixl", "sequential"] {
        let rig = p_first(handshake, engines(2, 2));
        let mut streams = 0.0;
        for i in 0..10 {
            let text = format!("prompt number {i} of many words");
            for more in [
                r#","stream":true"#,
                r#","stream":true,"max_tokens":1"#,
                r#","stream":true,"max_tokens":5,"stream_options":{"include_usage":true}"#,
                r#","stream":true,"temperature":0,"stop":["zz"]"#,
                "",
            ] {
                for (path, body) in [(CHAT, chat(&text, more)), (TEXT, completion(&text, more))] {
                    let (one, two) = (single.post(path, &body), rig.post(path, &body));
                    assert_eq!((one.status, two.status), (200, 200), "{}", two.text());
                    assert_eq!(one.generated(), two.generated(), "{more}: {}", two.text());
                    assert!(two.complete && !two.generated().is_empty());
                    if !more.is_empty() {
                        streams += 1.0;
                        let events = two.events();
                        assert_eq!(events.last().unwrap(), "[DONE]");
                        let ends = |e: &&String| e.contains(r#""finish_reason":"length""#);
                        assert_eq!(events.iter().filter(ends).count(), 1, "{events:?}");
                        let usage = |e: &&String| e.contains(r#""completion_tokens":5"#);
                        let wanted = usize::from(more.contains("include_usage"));
                        assert_eq!(events.iter().filter(usage).count(), wanted, "{events:?}");
                    }
                }
            }
        }
        assert_eq!(outcome(&rig, "sent"), streams);
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!(ledger.held_now, 0);
        if handshake == "nixl" {
            assert_eq!((ledger.grants, ledger.fetched), (100, 100));
        }
    }
}

#[test]
fn no_shape_of_an_answer_changes_the_text() {
    let single = aggregated(1);
    let rig = p_first("nixl", engines(1, 1));
    for shape in [
        "plain",
        "byte-by-byte",
        "split-chunks",
        "chunk-ext",
        "trailers",
        "close-delimited",
        "length",
        "http10",
        "103-first",
        "chunked",
    ] {
        for version in ["1.1", "1.0"] {
            for (path, body) in [
                (CHAT, chat("shapes", r#","stream":true,"max_tokens":6"#)),
                (
                    TEXT,
                    completion("shapes", r#","stream":true,"max_tokens":6"#),
                ),
            ] {
                let mut client = rig.client();
                let head = format!("x-sim-shape: {shape}\r\n");
                let request = String::from_utf8(post_bytes(path, &body, &head)).unwrap();
                client.send(request.replacen("HTTP/1.1", &format!("HTTP/{version}"), 1));
                let response = client.response();
                let case = format!("{shape} {version} {path}: {}", response.text());
                assert_eq!(response.status, 200, "{case}");
                assert!(response.complete, "{case}");
                assert_eq!(
                    response.generated(),
                    single.post(path, &body).generated(),
                    "{case}"
                );
                assert_eq!(response.events().last().unwrap(), "[DONE]", "{case}");
                // A role, six tokens, the end.
                assert_eq!(
                    response.events().len(),
                    if path == CHAT { 8 } else { 7 },
                    "{case}"
                );
            }
        }
    }
    assert_eq!(outcome(&rig, "sent"), 40.0);
}

/// One connection serves one request after the other, whoever made their first tokens.
#[test]
fn connections_are_used_again() {
    let rig = p_first("nixl", engines(1, 1));
    let mut client = rig.client();
    for i in 0..20 {
        let stream = if i % 3 == 0 { "" } else { r#","stream":true"# };
        let response = client.post(TEXT, &completion(&format!("text {i}"), stream));
        assert_eq!((response.status, response.complete), (200, true));
    }
    assert_eq!(rig.sum("pdrelay_upstream_connects_total", &[]), 2.0);
}

/// The default is D's token, and no seed of ours.
#[test]
fn nothing_happens_unasked() {
    let rig = crate::support::rig("nixl", 1, 1);
    let body = completion("plain", r#","stream":true"#);
    assert_eq!(rig.post(TEXT, &body).status, 200);
    for engine in 0..2 {
        assert!(!String::from_utf8_lossy(&rig.posts(engine)[0].body).contains("seed"));
    }
    for word in ["sent", "fallback", "unused", "ended", "differed"] {
        assert_eq!(outcome(&rig, word), 0.0);
    }
}
