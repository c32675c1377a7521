//! A batch through one KV grant gives silently wrong text, so one must never look like a single prompt.

use pdrelay::wire::json::Object;
use pdrelay::wire::openai::{Summary, prompt_tokens};
use proptest::prelude::*;

fn summary(text: &str) -> Summary {
    Summary::of(
        text.as_bytes(),
        &Object::scan(text.as_bytes(), 128).expect("an object"),
    )
}

#[test]
fn prompts() {
    for (prompt, count) in [
        (r#""one""#, 1),
        (r#""""#, 1),
        (r#"["one"]"#, 1),
        (r#"[1,2,3]"#, 1),
        (r#"[ 1 , 2 ]"#, 1),
        (r#"[[1,2,3]]"#, 1),
        (r#"[]"#, 1),
        (r#"null"#, 1),
        (r#"7"#, 1),
        (r#"["a,b"]"#, 1),
        (r#"["a\",\"b"]"#, 1),
        (r#"["a","b"]"#, 2),
        ("[\n\"a\" ,\t\"b\" ]", 2),
        (r#"["\\","b"]"#, 2),
        (r#"["a]","b[","{"]"#, 3),
        (r#"[[1,2],[3,4]]"#, 2),
        (r#"[[1],[2,3],[]]"#, 3),
        (r#"[{"prompt":"a,b"},{"prompt_token_ids":[1,2]}]"#, 2),
    ] {
        assert_eq!(
            summary(&format!("{{\"prompt\":{prompt}}}")).prompts,
            count,
            "{prompt}"
        );
        assert_eq!(
            summary(&format!("{{\"prompt\" : {prompt} , \"n\":2}}")).prompts,
            count,
            "{prompt}"
        );
    }
    assert_eq!(summary("{}").prompts, 1);
    assert_eq!(
        summary(r#"{"messages":[{"role":"user"},{"role":"user"}]}"#).prompts,
        1
    );
}

/// `/v1/completions` ignores members that it does not know; they must not hide its batch.
#[test]
fn hidden_batches() {
    assert_eq!(summary(r#"{"prompt":["a","b"],"messages":[]}"#).prompts, 2);
    assert_eq!(summary(r#"{"messages":[],"prompt":["a","b"]}"#).prompts, 2);
    assert_eq!(summary(r#"{"prompt_embeds":["AA==","AA=="]}"#).prompts, 2);
    assert_eq!(
        summary(r#"{"prompt":"a","prompt_embeds":"AA=="}"#).prompts,
        2
    );
    assert_eq!(
        summary(r#"{"prompt":null,"prompt_embeds":"AA=="}"#).prompts,
        1
    );
    assert_eq!(
        summary(r#"{"prompt":null,"prompt_embeds":["AA=="]}"#).prompts,
        1
    );
}

#[test]
fn limits_and_sizes() {
    let max = |text: &str| summary(text).max_tokens;
    assert_eq!(max("{}"), None);
    assert_eq!(max(r#"{"max_tokens":16}"#), Some(16));
    assert_eq!(
        max(r#"{"max_tokens":16,"max_completion_tokens":7}"#),
        Some(7)
    );
    assert_eq!(
        max(r#"{"max_tokens":16,"max_completion_tokens":null}"#),
        Some(16)
    );
    for odd in [
        "null",
        "\"16\"",
        "-1",
        "1.5",
        "1e3",
        "[]",
        "99999999999999999999999",
    ] {
        assert_eq!(max(&format!("{{\"max_tokens\":{odd}}}")), None, "{odd}");
    }

    assert!(summary(r#"{"stream": true }"#).stream);
    for odd in ["null", "\"true\"", "1", "[true]", "false"] {
        assert!(!summary(&format!("{{\"stream\":{odd}}}")).stream, "{odd}");
    }

    assert_eq!(summary(r#"{"prompt":"four"}"#).prompt_bytes, 6);
    let image = format!("\"data:image/png;base64,{}\"", "A".repeat(10_000));
    let text = r#"{"messages":[{"content":[{"text":"hi"},{"url":IMG},{"url": IMG}]}]}"#;
    let with = summary(&text.replace("IMG", &image)).prompt_bytes;
    let without = summary(&text.replace("IMG", "\"\"")).prompt_bytes;
    assert!(with.abs_diff(without) <= 4, "{with} {without}");
    // A "data:" that never ends (nested garbage is the engine's to refuse) is no reason to panic.
    summary(r#"{"messages":["data:","\"data:","data:\\"]}"#);
    summary(r#"{"messages":["data:""data:""data:"]}"#);
}

#[test]
fn usage() {
    let tokens = |text: &str| {
        let object = Object::scan(text.as_bytes(), 128).expect("an object");
        prompt_tokens(text.as_bytes(), &object)
    };
    assert_eq!(
        tokens(r#"{"usage":{"prompt_tokens":12,"total_tokens":13}}"#),
        Some(12)
    );
    assert_eq!(
        tokens(r#"{"usage":{"a":{"b":[1]},"prompt_tokens": 3 }}"#),
        Some(3)
    );
    for odd in [
        "{}",
        r#"{"usage":null}"#,
        r#"{"usage":[]}"#,
        r#"{"usage":{}}"#,
        r#"{"usage":{"prompt_tokens":null}}"#,
    ] {
        assert_eq!(tokens(odd), None, "{odd}");
    }
}

proptest! {
    #[test]
    fn as_many_as_there_are(
        prompts in prop::collection::vec(super::support::string_text(), 1..6),
        space in super::support::space(),
    ) {
        let list: Vec<String> = prompts.iter().map(|p| format!("{space}\"{p}\"{space}")).collect();
        let text = format!("{{\"prompt\":[{}]}}", list.join(","));
        prop_assert_eq!(summary(&text).prompts, prompts.len());
    }

    #[test]
    fn any_object_has_a_summary(text in super::support::object_text(), value in super::support::value_text()) {
        let _ = summary(&text);
        for key in ["prompt", "messages", "usage", "prompt_embeds"] {
            let text = format!("{{\"{key}\":{value}}}");
            let seen = summary(&text);
            prop_assert!(seen.prompts >= 1 && seen.prompt_bytes <= value.len());
            let _ = prompt_tokens(text.as_bytes(), &Object::scan(text.as_bytes(), 128).unwrap());
        }
    }
}
