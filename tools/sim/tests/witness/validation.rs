//! What vLLM rejects is rejected, in its words and statuses.

use pdsim::{Options, Sim};
use serde_json::{Value, json};

use crate::client::*;

fn rejected(path: &str, body: Value) -> Value {
    let (_sim, p, _, _) = trio(|e| e.max_model_len = 1000);
    let answer = call(p, path, &body);
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], answer.status, "{body}");
    assert!(answer.status >= 400, "{body}");
    error
}

#[test]
fn a_forgotten_min_tokens_never_passes_prefill() {
    let mut body = prompt("A");
    body["min_tokens"] = json!(5);
    let error = rejected(COMPLETIONS, for_prefill(&body));
    assert_eq!(error["type"], "BadRequestError");
    assert!(error["message"].as_str().unwrap().contains("min_tokens"));
}

#[test]
fn stream_options_never_pass_without_stream() {
    let mut body = prompt("A");
    body["stream_options"] = json!({"include_usage": true});
    rejected(COMPLETIONS, body);
}

#[test]
fn an_unknown_model_is_never_served() {
    let error = rejected(COMPLETIONS, json!({"model": "x", "prompt": "hi"}));
    assert_eq!(
        (error["code"].as_u64(), error["type"].as_str()),
        (Some(404), Some("NotFoundError"))
    );
    assert_eq!(error["message"], "The model `x` does not exist.");
}

#[test]
fn bad_values_never_pass() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    for body in [
        json!({"prompt": "hi", "max_tokens": 0}),
        json!({"prompt": "hi", "max_tokens": "many"}),
        json!({"prompt": "hi", "n": 0}),
        json!({"prompt": "hi", "n": 3, "best_of": 2}),
        json!({"prompt": "hi", "n": 2, "temperature": 0}),
        json!({"prompt": "hi", "temperature": -1}),
        json!({"prompt": "hi", "top_p": 0}),
        json!({"prompt": "hi", "stream": "maybe"}),
        json!({"prompt": "hi", "kv_transfer_params": "x"}),
        json!({"prompt": "hi", "max_tokens": 1001}),
        json!({"prompt": "hi", "max_tokens": 10, "min_tokens": 11}),
        json!({"prompt": "hi", "min_tokens": 17}),
        json!({"prompt": "hi", "min_tokens": null}),
        json!({"prompt": "hi", "n": null}),
        json!({"prompt": "hi", "n": "two"}),
        json!({"prompt": "hi", "temperature": 2.1}),
        json!({"prompt": "hi", "presence_penalty": 3}),
        json!({"prompt": "hi", "repetition_penalty": 0}),
        json!({"prompt": "hi", "min_p": 2}),
        json!({"prompt": "hi", "top_k": -2}),
        json!({"prompt": "hi", "stop": 5}),
        json!({"prompt": "hi", "stop": [""]}),
        json!({"prompt": "hi", "logprobs": 21}),
        json!({"prompt": "hi", "logprobs": "2"}),
        json!({"prompt": "hi", "prompt_logprobs": 1, "stream": true}),
        json!({"prompt": "hi", "response_format": {"type": "json_schema"}}),
        json!({"prompt": "hi", "response_format": {"type": "x"}}),
        json!({"prompt": "x".repeat(3001)}),
        json!({"prompt": ""}),
        json!({"prompt": []}),
        json!({"prompt": ["a", 1]}),
        json!({"prompt": [-1]}),
        json!({"prompt": 5}),
        json!({"messages": messages}),
        json!([]),
    ] {
        rejected(COMPLETIONS, body);
    }
    for body in [
        json!({"messages": "hi"}),
        json!({"messages": []}),
        json!({"messages": [{"content": "hi"}]}),
        json!({"messages": [{"role": "user", "content": null}]}),
        json!({"messages": messages, "top_logprobs": 2}),
        json!({"messages": messages, "logprobs": true, "top_logprobs": 21}),
        json!({"messages": messages, "tools": []}),
        json!({"messages": messages, "tool_choice": "auto"}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        json!({"messages": [{"role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]}),
        json!({"messages": messages, "max_completion_tokens": 0}),
        json!({"prompt": "hi"}),
    ] {
        rejected(CHAT, body);
    }
}

#[test]
fn what_the_engine_takes_is_never_rejected() {
    let (_sim, _, _, both) = trio(|e| e.max_model_len = 1000);
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (body, tokens) in [
        (json!({"prompt": "hi", "max_tokens": "3"}), 3),
        (json!({"prompt": "hi", "max_tokens": 3.0, "n": true}), 3),
        // Cut to what fits behind the prompt.
        (json!({"prompt": "x".repeat(2997), "max_tokens": 9}), 1),
        (json!({"prompt": "hi", "max_tokens": null}), 16),
        (json!({"model": "", "prompt": "hi"}), 16),
        (json!({"model": null, "prompt": "hi", "stream": "no"}), 16),
        (json!({"prompt": "hi", "stream_options": {}}), 16),
        (
            json!({"prompt": "hi", "stream_options": null, "stop": null}),
            16,
        ),
        (
            json!({"prompt": "hi", "prompt_logprobs": 1, "logprobs": 20}),
            16,
        ),
        (json!({"prompt": "hi", "n": 2, "temperature": 1e-6}), 32),
    ] {
        let answer = call(both, COMPLETIONS, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        assert_eq!(
            answer.json()["usage"]["completion_tokens"],
            tokens,
            "{body}"
        );
    }
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (body, tokens) in [
        (
            json!({"messages": messages, "n": null, "min_tokens": 40}),
            40,
        ),
        (json!({"messages": messages, "tool_choice": "none"}), 16),
        (
            json!({"messages": messages, "tools": tool, "tool_choice": "required"}),
            16,
        ),
        (json!({"messages": [{"role": "user"}]}), 16),
        (
            json!({"messages": [{"role": "assistant", "content": null}]}),
            16,
        ),
    ] {
        let answer = call(both, CHAT, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        assert_eq!(
            answer.json()["usage"]["completion_tokens"],
            tokens,
            "{body}"
        );
    }
    let stream = call(both, COMPLETIONS, &json!({"prompt": "hi", "stream": 1}));
    assert_eq!(stream.events().last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn every_form_of_prompt_is_understood() {
    let (_sim, _, _, both) = trio(|_| {});
    let text = "tokens are three bytes";
    let ids = pdsim::tokenize(text.as_bytes());
    let a = call(both, COMPLETIONS, &json!({"prompt": text})).json();
    let b = call(both, COMPLETIONS, &json!({"prompt": ids})).json();
    assert_eq!(
        (choice_text(&a, 0), &a["usage"]),
        (choice_text(&b, 0), &b["usage"])
    );
    let batch = call(
        both,
        COMPLETIONS,
        &json!({"prompt": [text, "other"], "n": 2}),
    )
    .json();
    assert_eq!(batch["choices"].as_array().unwrap().len(), 4);
    assert_eq!(choice_text(&batch, 0), choice_text(&a, 0));
    let lists = call(both, COMPLETIONS, &json!({"prompt": [ids, [1, 2]]})).json();
    assert_eq!(choice_text(&lists, 0), choice_text(&a, 0));
    let mut client = Client::new(both);
    let tokens = client
        .call("/tokenize", &json!({"prompt": text}), &[])
        .unwrap()
        .json();
    assert_eq!(tokens["tokens"], json!(ids));
    let back = client
        .call("/detokenize", &json!({"tokens": ids}), &[])
        .unwrap()
        .json();
    assert_eq!(back["prompt"], text);
    // Escapes and the form of the content do not matter to the model.
    let mut escaped = b"{\"prompt\":\"".to_vec();
    escaped.extend(
        text.bytes()
            .flat_map(|b| format!("\\u{b:04x}").into_bytes()),
    );
    escaped.extend(b"\"}");
    client.send(post(
        COMPLETIONS,
        std::str::from_utf8(&escaped).unwrap(),
        &[],
    ));
    assert_eq!(
        choice_text(&client.answer().unwrap().json(), 0),
        choice_text(&a, 0)
    );
}

#[test]
fn the_last_duplicate_is_never_ignored() {
    let (_sim, _, _, both) = trio(|_| {});
    let mut client = Client::new(both);
    client.send(post(
        COMPLETIONS,
        r#"{"prompt":"a","prompt":"b","max_tokens":2,"stream":true,"str\u0065am":false}"#,
        &[],
    ));
    let answer = client.answer().unwrap().json();
    let right = call(both, COMPLETIONS, &json!({"prompt": "b", "max_tokens": 2})).json();
    assert_eq!(choice_text(&answer, 0), choice_text(&right, 0));
}

#[test]
fn bad_json_is_never_served() {
    let (_sim, _, _, both) = trio(|_| {});
    let deep = format!(
        "{{\"prompt\":\"a\",\"x\":{}{}}}",
        "[".repeat(300),
        "]".repeat(300)
    );
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"{\"prompt\":\"a\"} x",
        b"{\"prompt\":\"a\",}",
        b"{\"prompt\":\"a\nb\"}",
        b"{\"prompt\":\"\xff\"}",
        b"{\"prompt\":'a'}",
        b"{\"prompt\":\"a\",\"max_tokens\":01}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let mut client = Client::new(both);
        let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json";
        client.send(format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(body);
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(body));
        assert_eq!(answer.json()["error"]["type"], "Bad Request");
    }
    let mut client = Client::new(both);
    let body = post(COMPLETIONS, "{\"prompt\":\"a\"}", &[]);
    let body = String::from_utf8(body)
        .unwrap()
        .replace("application/json", "text/plain");
    client.send(body);
    assert_eq!(client.answer().unwrap().status, 400);
}

#[test]
fn paths_and_methods_are_never_confused() {
    let (_sim, p, _, _) = trio(|_| {});
    let mut client = Client::new(p);
    for (method, path, status) in [
        ("GET", "/health", 200),
        ("GET", "/ping", 200),
        ("GET", "/version", 200),
        ("GET", "/v1/models?x=1", 200),
        ("HEAD", "/v1/models", 200),
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/sim/204", 204),
        ("GET", "/v1/sim/304", 304),
        ("GET", "/health", 200),
    ] {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: sim\r\n\r\n"));
        let answer = client.answer_to(method).unwrap();
        assert_eq!(answer.status, status, "{method} {path}");
    }
    let models = {
        client.send("GET /v1/models HTTP/1.1\r\nHost: sim\r\n\r\n");
        client.answer().unwrap().json()
    };
    assert_eq!(models["data"][0]["max_model_len"], 131_072);
    for (path, body) in [
        ("/v1/embeddings", json!({"input": ["a", "b"]})),
        ("/pooling", json!({"input": "a"})),
        ("/classify", json!({"input": "a"})),
        ("/score", json!({"text_1": "a", "text_2": ["b", "c"]})),
        ("/rerank", json!({"query": "a", "documents": ["b", "c"]})),
    ] {
        let answer = client.call(path, &body, &[]).unwrap();
        assert_eq!(answer.status, 200, "{path}");
        answer.json();
    }
    let echo = client
        .call("/v1/sim/echo", &json!({"a": 1}), &["X-Odd: yes"])
        .unwrap()
        .json();
    assert_eq!(echo["body"], "{\"a\":1}");
    assert!(
        echo["headers"]
            .as_array()
            .unwrap()
            .contains(&json!(["X-Odd", "yes"]))
    );
}

#[test]
fn a_missing_key_never_passes() {
    let mut options = Options::pair(1, 0);
    options.engines[0].require_key = Some("sesame".into());
    let sim = Sim::start(options).unwrap();
    let mut client = Client::new(sim.addresses()[0]);
    let answer = client.call(COMPLETIONS, &prompt("A"), &[]).unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (401, "{\"error\":\"Unauthorized\"}")
    );
    let key = ["Authorization: Bearer sesame"];
    assert_eq!(
        client.call(COMPLETIONS, &prompt("A"), &key).unwrap().status,
        200
    );
}
