//! P's token among D's events, byte by byte: D's id, D's order, D's bytes, however they arrive; and requests
//! that P cannot begin get D's stream untouched.

use std::time::{Duration, Instant};

use super::{SSE, Stage, chunked, d_chunked, d_delta, d_event, d_text, p_chats, p_says};
use crate::support::scripted::Say;
use crate::support::{Client, chat, completion, post_bytes};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const DONE: &str = "data: [DONE]\n\n";
const LENGTH: &str = r#""length""#;

fn usage() -> String {
    "data: {\"id\":\"d-id\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":3}}\n\n"
        .to_owned()
}

/// Token events as D writes them; P's must look like D's.
#[test]
fn the_token_wears_the_id_of_d() {
    let finish = d_event(r#"{"index":0,"text":"","finish_reason":"stop"}"#);
    let d = [&d_text("D1"), &d_text(" two"), &finish, &usage(), DONE].map(str::to_owned);
    let expected = [&d_text("P1"), &d_text(" two"), &finish, &usage(), DONE].concat();
    let whole = d.concat();
    let bytes = whole.as_bytes();
    let head = |framing: &str| format!("{SSE}{framing}\r\n").into_bytes();
    let cases: Vec<(&str, Say)> = vec![
        (
            "an event a chunk",
            Say::Bytes(d_chunked(d.iter().map(|e| e.as_bytes()))),
        ),
        ("one chunk", Say::Bytes(d_chunked([bytes]))),
        ("odd chunks", Say::Bytes(d_chunked(bytes.chunks(7)))),
        ("a byte a chunk", Say::Bytes(d_chunked(bytes.chunks(1)))),
        (
            "with a length",
            Say::Bytes(
                [
                    head(&format!("content-length: {}\r\n", bytes.len())),
                    bytes.to_vec(),
                ]
                .concat(),
            ),
        ),
        (
            "until close",
            Say::Close([head(""), bytes.to_vec()].concat()),
        ),
        (
            "piece by piece",
            Say::Slowly(
                [
                    head("transfer-encoding: chunked\r\n"),
                    chunked(bytes.chunks(40)),
                ]
                .concat()
                .chunks(33)
                .map(<[u8]>::to_vec)
                .collect(),
                Duration::from_millis(1),
            ),
        ),
        (
            "the head alone",
            Say::Slowly(
                vec![head("transfer-encoding: chunked\r\n"), chunked([bytes])],
                Duration::from_millis(30),
            ),
        ),
    ];
    for (case, say) in cases {
        let say = std::sync::Mutex::new(Some(say));
        let stage = Stage::new(p_says("P1", LENGTH), move |_| {
            say.lock().unwrap().take().unwrap()
        });
        let response = stage.post(TEXT, &completion("x", r#","stream":true,"temperature":0"#));
        assert_eq!(response.status, 200, "{case}");
        assert!(response.complete, "{case}");
        assert_eq!(response.text(), expected, "{case}");
        assert_eq!(
            response.header("x-d"),
            Some("1"),
            "{case}: D's head is the head"
        );
        assert_eq!(response.header("content-length"), None, "{case}");
        // P was asked as ever.
        assert!(stage.p.bodies()[0].contains(r#""stream":false"#), "{case}");
        assert!(stage.d.bodies()[0].contains(r#""stream":true"#), "{case}");
    }
}

#[test]
fn the_role_of_d_stays_and_comes_first() {
    let role = || d_delta(r#""role":"assistant","content":"""#);
    let content = |text: &str| d_delta(&format!(r#""content":"{text}""#));
    let d = [role(), content("D1"), content(" two"), DONE.into()].concat();
    let stage = Stage::new(p_chats("P1", LENGTH), move |_| {
        Say::Bytes(d_chunked([d.as_bytes()]))
    });
    let response = stage.post(CHAT, &chat("x", r#","stream":true"#));
    let expected = [role(), content("P1"), content(" two"), DONE.into()].concat();
    assert_eq!(response.text(), expected);
}

/// P's token is out as soon as D has named itself, long before D's own.
#[test]
fn the_token_does_not_wait_for_that_of_d() {
    let role = d_delta(r#""role":"assistant","content":"""#);
    let rest = [d_delta(r#""content":"D1""#), DONE.into()].concat();
    let stage = Stage::new(p_chats("P1", LENGTH), move |_| {
        let head = format!(
            "{SSE}transfer-encoding: chunked\r\n\r\n{:x}\r\n{role}\r\n",
            role.len()
        );
        Say::Slowly(
            vec![head.into_bytes(), chunked([rest.as_bytes()])],
            Duration::from_millis(700),
        )
    });
    let mut client = Client::connect(stage.server.address);
    let began = Instant::now();
    client.send(post_bytes(CHAT, &chat("x", r#","stream":true"#), ""));
    client.head();
    let mut seen = std::mem::take(&mut client.rest);
    while !String::from_utf8_lossy(&seen).contains("P1") {
        let mut piece = [0; 4096];
        let n = std::io::Read::read(&mut client.stream, &mut piece).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..n]);
    }
    assert!(
        began.elapsed() < Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    assert!(!String::from_utf8_lossy(&seen).contains("D1"));
    while !seen.ends_with(b"0\r\n\r\n") {
        let mut piece = [0; 4096];
        let n = std::io::Read::read(&mut client.stream, &mut piece).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..n]);
    }
    assert!(!String::from_utf8_lossy(&seen).contains("D1"));
}

/// The end that D's one token brings is the client's, too.
#[test]
fn one_token_keeps_its_end() {
    let d = [
        d_event(r#"{"index":0,"text":"D1","finish_reason":"length"}"#),
        DONE.into(),
    ]
    .concat();
    let stage = Stage::new(p_says("P1", LENGTH), move |_| {
        Say::Bytes(d_chunked([d.as_bytes()]))
    });
    let response = stage.post(TEXT, &completion("x", r#","stream":true,"max_tokens":1"#));
    let end = d_event(r#"{"index":0,"text":"","finish_reason":"length"}"#);
    assert_eq!(response.text(), [d_text("P1"), end, DONE.into()].concat());
}

#[test]
fn what_p_cannot_begin_is_all_of_d() {
    let d = [d_text("D1"), d_text(" two"), DONE.into()].concat();
    let streams = |p: Vec<u8>| {
        let d = d.clone();
        Stage::new(p, move |_| Say::Bytes(d_chunked([d.as_bytes()])))
    };
    let stage = streams(p_says("P1", LENGTH));
    for more in [
        r#","n":2"#,
        r#","best_of":3"#,
        r#","tools":[{"type":"function","function":{"name":"f"}}]"#,
        r#","functions":[{"name":"f"}]"#,
        r#","logprobs":1"#,
        r#","logprobs":true"#,
        r#","prompt_logprobs":0"#,
        r#","echo":true"#,
        r#","min_tokens":2"#,
        r#","return_token_ids":true"#,
        r#","stream_options":{"continuous_usage_stats":true,"include_usage":true}"#,
        // P's token holds the stop string, or could begin it.
        r#","stop":"P1""#,
        r#","stop":["x","1\n"]"#,
    ] {
        let sent = completion("x", &format!(r#","stream":true{more}"#));
        assert_eq!(stage.post(TEXT, &sent).text(), d, "{more}");
        assert_eq!(
            stage.d.bodies().pop().unwrap(),
            sent,
            "{more}: not a byte is ours"
        );
    }
    let batch = r#"{"model":"m","prompt":["a","b"],"stream":true}"#;
    assert_eq!(stage.post(TEXT, batch).text(), d);
    for p in [
        p_says("", LENGTH),
        p_says("\u{fffd}", LENGTH),
        p_says("\\ufffd", LENGTH),
        p_chats("P1", LENGTH),
        crate::support::scripted::answer("200 OK", r#"{"choices":[]}"#),
        crate::support::scripted::answer("200 OK", "{}"),
    ] {
        let said = String::from_utf8_lossy(&p).into_owned();
        let stage = streams(p);
        let sent = completion("x", r#","stream":true"#);
        assert_eq!(stage.post(TEXT, &sent).text(), d, "{said}");
        assert_eq!(stage.d.bodies()[0], sent, "{said}: D draws for itself");
    }
}

/// An answer that is not streamed is D's, whole.
#[test]
fn an_answer_without_a_stream_is_all_of_d() {
    let body = r#"{"choices":[{"text":"D1"}]}"#;
    let stage = Stage::new(p_says("P1", LENGTH), move |_| {
        Say::Bytes(crate::support::scripted::answer("200 OK", body))
    });
    for more in ["", r#","stream":false"#, r#","stream":true"#] {
        assert_eq!(
            stage.post(TEXT, &completion("x", more)).text(),
            body,
            "{more}"
        );
    }
}

/// What cannot be read passes as it is.
#[test]
fn a_packed_stream_is_all_of_d() {
    let packed = "\u{1}\u{2}data: packed";
    let stage = Stage::new(p_says("P1", LENGTH), move |_| {
        let length = packed.len();
        let head = format!("{SSE}content-encoding: gzip\r\ncontent-length: {length}\r\n\r\n");
        Say::Bytes([head.as_bytes(), packed.as_bytes()].concat())
    });
    let response = stage.post(TEXT, &completion("x", r#","stream":true"#));
    assert_eq!(
        (response.text().as_str(), response.complete),
        (packed, true)
    );
    assert_eq!(response.header("content-encoding"), Some("gzip"));
}

#[test]
fn an_end_at_p_asks_no_d() {
    for (finish, more) in [
        (r#""stop","stop_reason":"x""#, ""),
        (
            r#""stop","stop_reason":2"#,
            r#","stream_options":{"include_usage":true}"#,
        ),
    ] {
        for (path, p, sent) in [
            (
                TEXT,
                p_says("P1", finish),
                completion("x", &format!(r#","stream":true{more}"#)),
            ),
            (
                CHAT,
                p_chats("P1", finish),
                chat("x", &format!(r#","stream":true{more}"#)),
            ),
        ] {
            let stage = Stage::new(p, |_| panic!("D was asked"));
            let mut client = Client::connect(stage.server.address);
            let response = client.post(path, &sent);
            assert_eq!(response.status, 200);
            assert_eq!(
                response.header("content-type"),
                Some("text/event-stream; charset=utf-8")
            );
            assert!(response.complete);
            assert_eq!(response.generated(), "P1");
            let events = response.events();
            assert_eq!(events.last().unwrap(), "[DONE]");
            assert_eq!(
                events
                    .iter()
                    .filter(|e| e.contains(r#""finish_reason":"stop""#))
                    .count(),
                1
            );
            let usage = events
                .iter()
                .filter(|e| e.contains(r#""prompt_tokens":3"#))
                .count();
            assert_eq!(usage, usize::from(!more.is_empty()));
            assert!(
                events[0].contains(r#""role":"assistant""#) == (path == CHAT),
                "{events:?}"
            );
            // The connection goes on.
            assert_eq!(client.post(path, &sent).status, 200);
            assert_eq!(stage.d.requests().len(), 0);
        }
    }
}

/// xPyD's dummy nodes say "stop" to everything, xpyd-sim to every single token: that is no end.
#[test]
fn an_engine_that_always_says_stop_is_not_believed() {
    for finish in [r#""stop""#, r#""stop","stop_reason":null"#] {
        let d = [d_text("P1"), d_text(" two"), DONE.into()].concat();
        let expected = d.clone();
        let stage = Stage::new(p_says("P1", finish), move |_| {
            Say::Bytes(d_chunked([d.as_bytes()]))
        });
        let response = stage.post(TEXT, &completion("x", r#","stream":true"#));
        assert_eq!(response.text(), expected, "{finish}");
    }
}
