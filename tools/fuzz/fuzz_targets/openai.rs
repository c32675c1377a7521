//! OpenAI bodies: what routing reads from them, and the prefill leg made of them, as a tree shows them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::json::{Edit, Object};
use pdrelay::wire::openai::{KV_PARAMS, Summary, error_body, prefill_edits, prompt_tokens};
use pdrelay_fuzz::json::{edited, spliced, tree};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    error(data);
    let Ok(object) = Object::scan(data, 128) else {
        return;
    };
    let summary = Summary::of(data, &object);
    assert!(summary.prompts >= 1 && summary.prompt_bytes <= data.len());
    let tokens = prompt_tokens(data, &object);

    let mut edits = prefill_edits();
    edits.push(Edit::Remove(KV_PARAMS));
    let leg = spliced(data, &object, &edits);
    if object.members().len() < 1000 {
        let object = Object::scan(&leg, 128).expect("an object");
        let summary = Summary::of(&leg, &object);
        assert!(!summary.stream, "a prefill leg streams");
        assert_eq!(summary.max_tokens, Some(1), "a prefill leg decodes on");
    }

    let Some(tree) = tree(data) else { return };
    assert_eq!(summary.stream, tree["stream"] == Value::Bool(true));
    let max = |key: &str| tree[key].as_u64();
    assert_eq!(
        summary.max_tokens,
        max("max_completion_tokens").or_else(|| max("max_tokens"))
    );
    let prompts = prompts(&tree["prompt"]) + prompts(&tree["prompt_embeds"]);
    assert_eq!(summary.prompts, prompts.max(1));
    if let Some(tokens) = tokens {
        assert_eq!(tree["usage"]["prompt_tokens"].as_u64(), Some(tokens));
    }
    let leg = pdrelay_fuzz::json::tree(&leg).expect("still JSON");
    assert!(leg.get(KV_PARAMS).is_none() && leg.get("stream_options").is_none());
    assert!(leg.get("n").is_none_or(|n| n == 1));
    assert_eq!(leg, edited(tree, &edits));
});

/// A batch must never pass as one prompt: one KV grant carries one.
fn prompts(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Array(list) => match list.first() {
            Some(Value::String(_) | Value::Array(_) | Value::Object(_)) => list.len(),
            _ => 1,
        },
        _ => 1,
    }
}

/// Whatever an engine's error says, ours is one JSON object that says it.
fn error(data: &[u8]) {
    let message = String::from_utf8_lossy(data);
    let body = error_body(&message, "bad_gateway", 502);
    let tree: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(tree["error"]["message"], *message);
    assert_eq!(tree["error"]["code"], 502);
    assert!(!body.iter().any(u8::is_ascii_control));
}
