//! `shared_storage`: D first where the client asks for it, and nothing of an answer that missed is shown.

use std::time::Duration;

use crate::sidecar::{beside, post, says};
use crate::support::scripted::{Say, Scripted, answer};

const SENT: &str = r#"{"messages":[],"cache_hit_threshold":0.8,"max_tokens":9}"#;
const STREAMED: &str = r#"{"messages":[],"cache_hit_threshold":0.8,"max_tokens":9,"stream":true}"#;
const AT_P: &str = r#"{"messages":[],"cache_hit_threshold":0,"max_tokens":1,"stream":false,"max_completion_tokens":1}"#;
const MISSED: &str = r#"{"choices":[{"finish_reason":"cache_threshold"}]}"#;
const GOOD: &str = r#"{"choices":[{"finish_reason":"stop"}],"from":"d"}"#;

#[test]
fn decode_comes_first_and_prefill_only_if_it_missed() {
    for (first, p_asked) in [(MISSED, 1), (GOOD, 0)] {
        let p = says("200 OK", "{}");
        let d = Scripted::start(move |n, _| {
            Say::Bytes(answer("200 OK", if n == 0 { first } else { GOOD }))
        });
        let server = beside("sidecar", d.address, &["--kv-connector=shared-storage"]);
        let response = post(&server, "/v1/chat/completions", SENT, &p, "");
        assert_eq!(response.text(), GOOD);
        assert_eq!(p.bodies(), vec![AT_P; p_asked]);
        let second = SENT.replace("0.8", "0");
        let wanted = [SENT, &second];
        assert_eq!(d.bodies(), wanted[..1 + p_asked]);
    }
}

#[test]
fn streams_are_held_for_two_events_and_not_longer() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
    let role = chunk(r#"{"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}"#);
    let text = |t: &str| {
        chunk(&format!(
            r#"{{"choices":[{{"delta":{{"content":"{t}"}},"finish_reason":null}}]}}"#
        ))
    };
    let long = chunk(&format!(r#"{{"choices":[],"id":"{}"}}"#, "x".repeat(300)));
    // A comment is an event as well; of what comes with it all is looked at.
    let at_once = format!("{head}8\r\n: ping\n\n\r\n{long}{}0\r\n\r\n", chunk(MISSED));
    for (missed, pieces) in [(true, 2), (true, 1), (false, 3)] {
        let first = match missed {
            true if pieces == 1 => vec![at_once.clone()],
            true => vec![
                format!("{head}{role}"),
                format!("{}0\r\n\r\n", chunk(MISSED)),
            ],
            false => vec![
                format!("{head}{role}"),
                text("a"),
                format!("{}0\r\n\r\n", text("b")),
            ],
        };
        let second = vec![format!("{head}{role}{}0\r\n\r\n", text("again"))];
        let p = says("200 OK", "{}");
        let d = Scripted::start(move |n, _| {
            let pieces = if n == 0 { &first } else { &second };
            let pieces = pieces.iter().map(|piece| piece.clone().into_bytes());
            Say::Slowly(pieces.collect(), Duration::from_millis(30))
        });
        let server = beside("sidecar", d.address, &["--kv-connector=shared-storage"]);
        let response = post(&server, "/v1/chat/completions", STREAMED, &p, "");
        assert!(response.complete);
        let wanted = if missed { "again" } else { "ab" };
        assert_eq!(response.generated(), wanted);
        assert!(!response.text().contains("cache_threshold"));
        assert_eq!(p.bodies().len(), usize::from(missed));
    }
}

#[test]
fn errors_of_decode_are_the_answer_and_no_reason_to_prefill() {
    let (p, d) = (says("200 OK", "{}"), says("422 No", r#"{"why":1}"#));
    let server = beside("sidecar", d.address, &["--kv-connector=shared-storage"]);
    let response = post(&server, "/v1/chat/completions", SENT, &p, "");
    assert_eq!(
        (response.status, response.text()),
        (422, r#"{"why":1}"#.into())
    );
    assert!(p.bodies().is_empty());
}

#[test]
fn the_oldest_sidecar_knows_no_threshold() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", GOOD));
    let server = beside("routing-sidecar", d.address, &["-connector=lmcache"]);
    let sent = r#"{"prompt":"x","cache_hit_threshold":0.5}"#;
    assert_eq!(post(&server, "/v1/completions", sent, &p, "").text(), GOOD);
    assert_eq!(d.bodies(), [sent]);
    let at_p = r#"{"prompt":"x","cache_hit_threshold":0.5,"stream":false,"max_tokens":1,"max_completion_tokens":1}"#;
    assert_eq!(p.bodies(), [at_p]);
}
