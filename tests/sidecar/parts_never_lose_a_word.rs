//! Chunked decode: an answer in parts is the same answer.

use super::{beside, post, post_plain, says};
use crate::support::scripted::{Say, Scripted, answer};

/// Says "aa", "bb", "cc" and stops, two tokens at a time.
fn engine() -> Scripted {
    Scripted::start(|number, _| {
        let texts = ["aa", "b\\\"b", "cc"];
        let (text, reason) = (
            texts[number % 3],
            if number % 3 == 2 { "stop" } else { "length" },
        );
        let body = format!(
            r#"{{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"{reason}"}}],"usage":{{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}}}"#
        );
        Say::Bytes(answer("200 OK", &body))
    })
}

const CHAT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#;

#[test]
fn answers_are_merged_and_streams_are_streams() {
    let d = engine();
    let server = beside("sidecar", d.address, &["--decode-chunk-size=2"]);
    let response = post_plain(&server, "/v1/chat/completions", CHAT, "");
    let whole = response.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "aab\"bcc");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let usage = serde_json::json!({"prompt_tokens":7,"completion_tokens":6,"total_tokens":13});
    assert_eq!((&whole["usage"], &whole["id"]), (&usage, &"x".into()));
    let bodies: Vec<serde_json::Value> = d
        .bodies()
        .iter()
        .map(|b| serde_json::from_str(b).unwrap())
        .collect();
    assert_eq!(bodies.len(), 3);
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(
            (&body["max_tokens"], &body["max_completion_tokens"]),
            (&2.into(), &2.into())
        );
        assert_eq!(body["stream"], false);
        assert_eq!(body.get("continue_final_message").is_some(), n > 0);
    }
    assert_eq!(
        bodies[2]["messages"][1],
        serde_json::json!({"role":"assistant","content":"aab\"b"})
    );
    assert_eq!(bodies[2]["add_generation_prompt"], false);

    let streamed = CHAT.replace(
        r#""max_tokens":9"#,
        r#""max_tokens":9,"stream":true,"stream_options":{"include_usage":true}"#,
    );
    let response = post_plain(&server, "/v1/chat/completions", &streamed, "");
    assert!(response.complete);
    assert_eq!(
        response.header("content-type").unwrap().split(';').next(),
        Some("text/event-stream")
    );
    assert_eq!(response.generated(), "aab\"bcc");
    let events = response.events();
    assert_eq!((events.len(), events[4].as_str()), (5, "[DONE]"));
    let last: serde_json::Value = serde_json::from_str(&events[3]).unwrap();
    assert_eq!(
        (&last["usage"], &last["choices"]),
        (&usage, &serde_json::json!([]))
    );
    let first: serde_json::Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert!(first.get("usage").is_none() && first["object"] == "chat.completion.chunk");
}

#[test]
fn what_fits_in_one_part_is_not_cut() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let server = beside("sidecar", d.address, &["--decode-chunk-size=9"]);
    for (path, body) in [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", r#"{"prompt":"x","max_tokens":99}"#),
    ] {
        assert_eq!(
            post_plain(&server, path, body, "").text(),
            r#"{"from":"d"}"#
        );
        assert_eq!(d.bodies().last().unwrap(), body);
    }
}

#[test]
fn kv_is_fetched_by_the_first_part_only() {
    let d = engine();
    let p =
        Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"kv_transfer_params":{"a":1}}"#)));
    let server = beside("sidecar", d.address, &["--decode-chunk-size=2"]);
    let response = post(&server, "/v1/chat/completions", CHAT, &p, "");
    assert_eq!(
        response.json()["choices"][0]["message"]["content"],
        "aab\"bcc"
    );
    let bodies = d.bodies();
    assert!(
        bodies[0].contains(r#""kv_transfer_params":{"a":1}"#),
        "{}",
        bodies[0]
    );
    assert!(
        bodies[1..]
            .iter()
            .all(|body| !body.contains("kv_transfer_params"))
    );
    assert_eq!(p.bodies().len(), 1);
}

#[test]
fn an_engine_that_fails_in_the_middle_never_ends_the_stream_well() {
    let d = Scripted::start(|number, _| {
        Say::Bytes(match number {
            0 => answer(
                "200 OK",
                r#"{"choices":[{"message":{"content":"aa"},"finish_reason":"length"}]}"#,
            ),
            _ => answer("500 No", r#"{"why":1}"#),
        })
    });
    let server = beside("sidecar", d.address, &["--decode-chunk-size=2"]);
    let streamed = CHAT.replace(r#""max_tokens":9"#, r#""max_tokens":9,"stream":true"#);
    let response = post_plain(&server, "/v1/chat/completions", &streamed, "");
    assert!(
        !response.complete && !response.text().contains("[DONE]"),
        "{}",
        response.text()
    );
    assert!(response.text().contains("\"error\""), "{}", response.text());
    // Before anything was sent it is the engine's own word.
    let response = post_plain(&server, "/v1/chat/completions", &streamed, "");
    assert_eq!(
        (response.status, response.text()),
        (500, r#"{"why":1}"#.into())
    );
}
