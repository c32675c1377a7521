//! The dummy nodes must answer as those of xPyD-proxy 1.0 do: its quick start is typed from habit.

use std::time::{Duration, Instant};

use pdsim::{Dummy, DummyOptions};
use serde_json::{Value, json};

use crate::client::{Answer, Client, post};

fn node(prefill: bool) -> Dummy {
    let mut options = DummyOptions::new(prefill);
    options.prefill_delay = Duration::ZERO;
    options.decode_delay = Duration::ZERO;
    Dummy::start(options).expect("it starts")
}

fn get(node: &Dummy, path: &str) -> Answer {
    let mut client = Client::new(node.address);
    client.send(format!("GET {path} HTTP/1.1\r\nhost: d\r\n\r\n"));
    client.answer().expect("an answer")
}

fn ask(node: &Dummy, path: &str, body: &Value) -> Answer {
    let mut client = Client::new(node.address);
    client.send(post(path, &body.to_string(), &[]));
    client.answer().expect("an answer")
}

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const FOX: &str = "The quick brown fox jumps over the lazy dog. ";

#[test]
fn small_pages_are_those_of_the_original() {
    for (prefill, name) in [(true, "prefill"), (false, "decode")] {
        let node = node(prefill);
        let health = get(&node, "/health");
        let wanted = format!("{{\"status\":\"ok\",\"node_type\":\"{name}\"}}");
        assert_eq!((health.status, health.text()), (200, wanted));
        assert_eq!(get(&node, "/ping").text(), "pong");
        assert_eq!(ask(&node, "/ping", &json!({})).text(), "pong");
        let models = get(&node, "/v1/models").json();
        let one = &models["data"][0];
        assert_eq!(models["object"], "list");
        assert_eq!(one["id"], "dummy");
        assert_eq!(one["object"], "model");
        assert_eq!(one["owned_by"], "dummy");
        assert_eq!(one["max_model_len"], 131_072);
        assert!(one["created"].as_u64().unwrap() > 1_700_000_000);
        for path in ["/version", "/tokenize", "/x"] {
            let none = get(&node, path);
            assert_eq!(
                (none.status, none.text().as_str()),
                (404, "{\"detail\":\"Not Found\"}")
            );
        }
        assert_eq!(get(&node, TEXT).status, 405);
        assert_eq!(get(&node, TEXT).header("allow"), Some("POST"));
    }
}

#[test]
fn texts_are_characters_of_the_fox() {
    let node = node(false);
    let all = FOX.repeat(20);
    for (limit, length) in [
        (json!(5), 5),
        (json!(null), 16),
        (json!(5000), 900),
        (json!(0), 0),
        (json!(-3), 0),
    ] {
        let one = ask(
            &node,
            TEXT,
            &json!({"model": "any/model", "prompt": "hello there", "max_tokens": limit}),
        );
        assert_eq!(
            (one.status, one.header("content-type")),
            (200, Some("application/json"))
        );
        let one = one.json();
        assert_eq!(one["choices"][0]["text"], all[..length]);
        assert_eq!(one["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            (&one["object"], &one["model"]),
            (&json!("text_completion"), &json!("any/model"))
        );
        let id = one["id"].as_str().unwrap().strip_prefix("cmpl-").unwrap();
        assert!(
            id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{id}"
        );
        let usage =
            json!({"prompt_tokens": 2, "completion_tokens": length, "total_tokens": length + 2});
        assert_eq!(one["usage"], usage);
    }
    let messages = json!([{"role": "user", "content": "hello there!"}]);
    for (limits, length) in [
        (json!({}), 16),
        (json!({"max_tokens": 3}), 3),
        (json!({"max_tokens": 3, "max_completion_tokens": 7}), 7),
        (json!({"max_tokens": 3, "max_completion_tokens": null}), 3),
    ] {
        let mut body = json!({"model": "m", "messages": messages});
        body.as_object_mut()
            .unwrap()
            .extend(limits.as_object().unwrap().clone());
        let one = ask(&node, CHAT, &body).json();
        assert_eq!(
            one["choices"][0]["message"],
            json!({"role": "assistant", "content": all[..length]})
        );
        assert_eq!(one["object"], "chat.completion");
        assert!(one["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert_eq!(one["usage"]["prompt_tokens"], 4);
    }
}

#[test]
fn prompts_are_counted_as_the_original_counts() {
    let node = node(true);
    for (prompt, tokens) in [
        (json!("hi"), 1),
        (json!(""), 1),
        (json!("twelve chars"), 3),
        (json!("žluťoučký k"), 2),
        (json!(["four", "four"]), 2),
        (json!(["a"]), 0),
        (json!([1, 2, 3]), 3),
        (json!([[1, 2], [3]]), 3),
        (json!([]), 0),
    ] {
        let one = ask(&node, TEXT, &json!({"model": "m", "prompt": prompt})).json();
        assert_eq!(one["usage"]["prompt_tokens"], tokens, "{prompt}");
    }
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "12345678"}]}]);
    let one = ask(&node, CHAT, &json!({"model": "m", "messages": parts})).json();
    assert_eq!(one["usage"]["prompt_tokens"], 3);
}

#[test]
fn streams_have_the_originals_events() {
    let node = node(false);
    let chat = json!({"model": "m", "messages": [], "max_tokens": 5, "stream": true});
    let stream = ask(&node, CHAT, &chat);
    assert_eq!(
        stream.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert!(stream.complete);
    let events = stream.events();
    // A role, five characters, an end, and [DONE].
    assert_eq!(events.len(), 8);
    assert_eq!(events[7], "[DONE]");
    let values: Vec<Value> = events[..7]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    assert_eq!(
        values[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": null})
    );
    for (at, letter) in FOX[..5].chars().enumerate() {
        let choice = &values[at + 1]["choices"][0];
        assert_eq!(choice["delta"], json!({"content": letter.to_string()}));
        assert_eq!(choice["finish_reason"], Value::Null);
    }
    assert_eq!(values[6]["choices"][0]["delta"], json!({"content": null}));
    assert_eq!(values[6]["choices"][0]["finish_reason"], "stop");
    assert!(
        values
            .iter()
            .all(|v| v["id"] == values[0]["id"] && v["object"] == "chat.completion.chunk")
    );
    // stream_options are not looked at.
    let text = json!({"model": "m", "prompt": "x", "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let events = ask(&node, TEXT, &text).events();
    assert_eq!(events.len(), 5);
    let last: Value = serde_json::from_str(&events[3]).unwrap();
    assert_eq!(
        (
            &last["choices"][0]["text"],
            &last["choices"][0]["finish_reason"]
        ),
        (&json!(""), &json!("stop"))
    );
    assert!(!events.concat().contains("usage"));
}

#[test]
fn delays_are_kept() {
    let mut options = DummyOptions::new(true);
    options.prefill_delay = Duration::from_millis(20);
    options.decode_delay = Duration::from_millis(30);
    let node = Dummy::start(options).unwrap();
    let prompt = "x".repeat(40);
    for (stream, least) in [(false, 200), (true, 200 + 5 * 30)] {
        let began = Instant::now();
        let body = json!({"model": "m", "prompt": prompt, "max_tokens": 5, "stream": stream});
        assert!(ask(&node, TEXT, &body).complete);
        assert!(
            began.elapsed() >= Duration::from_millis(least),
            "{:?}",
            began.elapsed()
        );
    }
}

#[test]
fn bad_bodies_are_told() {
    let node = node(true);
    for (path, body) in [
        (TEXT, "{"),
        (TEXT, "[]"),
        (TEXT, "{}"),
        (TEXT, r#"{"prompt":null}"#),
        (TEXT, r#"{"prompt":"x","max_tokens":"many"}"#),
        (TEXT, r#"{"prompt":"x","stream":"maybe"}"#),
        (CHAT, r#"{"prompt":"x"}"#),
        (CHAT, r#"{"messages":"x"}"#),
    ] {
        let mut client = Client::new(node.address);
        client.send(post(path, body, &[]));
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.status, 422, "{body}");
        assert!(answer.json()["detail"][0]["msg"].is_string());
        // The connection lives on.
        client.send(post(TEXT, r#"{"prompt":"x"}"#, &[]));
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
}

/// Its documents promise them; its code had none.
#[test]
fn metrics_count() {
    let node = node(false);
    for _ in 0..3 {
        ask(&node, TEXT, &json!({"prompt": "12345678", "max_tokens": 5}));
    }
    let page = get(&node, "/metrics");
    assert_eq!(
        page.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let page = page.text();
    for line in [
        r#"dummy_requests_total{node_type="decode",endpoint="/v1/completions"} 3"#,
        r#"dummy_requests_total{node_type="decode",endpoint="/v1/chat/completions"} 0"#,
        r#"dummy_prompt_tokens_total{node_type="decode"} 6"#,
        r#"dummy_completion_tokens_total{node_type="decode"} 15"#,
        r#"dummy_active_requests{node_type="decode"} 0"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in {page}");
    }
}

/// The old command lines, and the environment.
#[test]
fn old_commands_start_a_node() {
    use std::io::{BufRead, BufReader};
    for (args, role) in [
        (
            &[
                "dummy_nodes.prefill_node:app",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
            ][..],
            "prefill",
        ),
        (
            &[
                "uvicorn",
                "dummy_nodes.decode_node:app",
                "--port=0",
                "--log-level",
                "info",
            ][..],
            "decode",
        ),
        (&["dummy", "--role", "decode", "--port", "0"][..], "decode"),
    ] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_pdsim"))
            .args(args)
            .env("DUMMY_MODEL_ID", "my/model")
            .env("DUMMY_MAX_MODEL_LEN", "77")
            .env("PREFILL_DELAY_PER_TOKEN", "0")
            .env("DECODE_DELAY_PER_TOKEN", "0.0")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("pdsim starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (name, address) = line.trim().split_once(' ').expect("a role and an address");
        assert_eq!(name, role);
        let mut client = Client::new(address.parse().unwrap());
        client.send("GET /v1/models HTTP/1.1\r\nhost: d\r\n\r\n");
        let models = client.answer().expect("an answer").json();
        assert_eq!(models["data"][0]["id"], "my/model");
        assert_eq!(models["data"][0]["max_model_len"], 77);
        let kill = std::process::Command::new("kill")
            .arg(child.id().to_string())
            .status();
        assert!(kill.is_ok_and(|status| status.success()));
        assert!(child.wait().unwrap().success(), "a signal ends it well");
    }
}
