//! The prefill leg asks for one token and a whole answer, whatever the client's body says.

use super::support::{members, object_text};
use pdrelay::wire::json::{self, Object};
use pdrelay::wire::openai::{NIXL_TEMPLATE, prefill_edits};
use proptest::prelude::*;
use serde_json::{Value, json};

fn prefill(text: &str) -> String {
    let object = Object::scan(text.as_bytes(), 128).expect("an object");
    let mut out = vec![];
    let edits = prefill_edits();
    let pieces = json::splice(text.as_bytes(), &object, &edits);
    json::put_pieces(&mut out, text.as_bytes(), &pieces);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn odd_bodies() {
    for (text, expected) in [
        (json!({}), json!({"stream": false, "max_tokens": 1})),
        (
            json!({"max_tokens": null}),
            json!({"stream": false, "max_tokens": 1}),
        ),
        (
            json!({"max_tokens": "9", "stream": 1}),
            json!({"stream": false, "max_tokens": 1}),
        ),
        // The completions endpoint does not know the newer name and would fall back to its default.
        (
            json!({"max_completion_tokens": 9}),
            json!({"stream": false, "max_tokens": 1, "max_completion_tokens": 1}),
        ),
        (
            json!({"max_completion_tokens": null, "max_tokens": 4}),
            json!({"stream": false, "max_tokens": 1, "max_completion_tokens": 1}),
        ),
        (
            json!({"n": 4, "best_of": 8, "min_tokens": 4, "stream": true, "stream_options": {"include_usage": true}}),
            json!({"stream": false, "max_tokens": 1, "n": 1}),
        ),
        (
            json!({"model": "m", "tools": [{"stream": true, "n": 3}], "temperature": 0.10}),
            json!({"model": "m", "tools": [{"stream": true, "n": 3}], "temperature": 0.10, "stream": false, "max_tokens": 1}),
        ),
    ] {
        let out: Value = serde_json::from_str(&prefill(&text.to_string())).expect("JSON");
        assert_eq!(out, expected, "{text}");
    }
}

#[test]
fn the_template_is_json() {
    let template: Value = serde_json::from_slice(NIXL_TEMPLATE).expect("JSON");
    assert_eq!(template["do_remote_decode"], true);
    assert_eq!(template["do_remote_prefill"], false);
}

proptest! {
    #[test]
    fn any_object(text in object_text()) {
        let out = prefill(&text);
        let tree: Value = serde_json::from_str(&out).expect("JSON");
        prop_assert_eq!(&tree["stream"], &json!(false));
        prop_assert_eq!(&tree["max_tokens"], &json!(1));
        for key in ["n", "max_completion_tokens"] {
            let before = members(&text).iter().any(|m| m.name() == key);
            prop_assert_eq!(tree.get(key).cloned(), before.then_some(json!(1)));
        }
        for key in ["stream_options", "min_tokens", "best_of"] {
            prop_assert!(tree.get(key).is_none());
        }
    }
}
