//! When does a request go on from where the last turn ended? Only then, and whenever a person would say so.

use pdrelay::wire::history::{Asked, Past};
use pdrelay::wire::json::Object;
use pdrelay::wire::kv_tap::KvTap;

/// Where a turn ended that was asked with `body` and answered with this stream.
fn past(body: &str, answer: &str) -> Option<Past> {
    let object = Object::scan(body.as_bytes(), 64).unwrap();
    let (said, answering) = Asked::of(body.as_bytes(), &object)?.answering();
    let mut tap = KvTap::new(false, false, Some(said));
    tap.feed(answer.as_bytes(), &mut Vec::new());
    answering.past(tap.said().unwrap())
}

fn goes_on(past: &Past, body: &str) -> bool {
    let object = Object::scan(body.as_bytes(), 64).unwrap();
    Asked::of(body.as_bytes(), &object).is_some_and(|asked| asked.continues(past))
}

fn answer(content: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"message":{{"role":"assistant","content":{content}}}}}]}}"#)
}

const SYSTEM: &str = r#"{"role":"system","content":"be brief"}"#;
const USER: &str = r#"{"role":"user","content":[{"type":"text","text":"Grüße \"du\""}]}"#;
const REPLY: &str = r#"{"role":"assistant","content":"Hallo, \"Sie\" 😀"}"#;
const MORE: &str = r#"{"role":"user","content":"more"}"#;

fn chat(messages: &[&str], more: &str) -> String {
    format!(
        r#"{{"model":"m","messages":[{}]{more}}}"#,
        messages.join(",")
    )
}

fn first() -> Past {
    past(
        &chat(&[SYSTEM, USER], ""),
        &answer(r#""Hallo, \"Sie\" 😀""#),
    )
    .unwrap()
}

#[test]
fn a_conversation_goes_on() {
    for (messages, more) in [
        (vec![SYSTEM, USER, REPLY, MORE], ""),
        // Sampling is no matter of the prompt.
        (
            vec![SYSTEM, USER, REPLY, MORE],
            r#","temperature":0.5,"max_tokens":9,"stream":true,"stop":["x"],"seed":1"#,
        ),
        (
            vec![SYSTEM, USER, REPLY, MORE],
            r#","conversation_id":"c","user":"u","tools":null"#,
        ),
        // Several messages at once.
        (vec![SYSTEM, USER, REPLY, MORE, MORE], ""),
        // Another spelling of the same.
        (
            vec![
                r#" { "role" : "system" , "content" : "be\u0020brief" } "#,
                USER,
                REPLY,
                MORE,
            ],
            "",
        ),
        (
            vec![
                SYSTEM,
                USER,
                r#"{"content":"Hallo, \u0022Sie\u0022 \ud83d\ude00","role":"assistant"}"#,
                MORE,
            ],
            "",
        ),
        // As the official client sends an answer back, empty fields included.
        (
            vec![
                SYSTEM,
                USER,
                r#"{"content":"Hallo, \"Sie\" 😀","refusal":null,"role":"assistant","annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null}"#,
                MORE,
            ],
            "",
        ),
        (
            vec![
                SYSTEM,
                USER,
                r#"{"role":"assistant","content":[{"type":"text","text":"Hallo, \"Sie\" 😀"}]}"#,
                MORE,
            ],
            "",
        ),
    ] {
        assert!(
            goes_on(&first(), &chat(&messages, more)),
            "{messages:?} {more}"
        );
    }
}

#[test]
fn another_history_never_does() {
    let other = |from: &str, to: &str, text: &str| {
        assert!(text.contains(from), "{text}");
        text.replace(from, to)
    };
    let reply =
        |content: &str, more: &str| format!(r#"{{"role":"assistant","content":{content}{more}}}"#);
    let ours = r#""Hallo, \"Sie\" 😀""#;
    let system = other("brief", "Brief", SYSTEM);
    let user = other("du", "dU", USER);
    let parts = r#"{"role":"user","content":"Grüße \"du\""}"#;
    let replies = [
        reply(r#""Hallo, Sie 😀""#, ""),
        reply(r#"" Hallo, \"Sie\" 😀""#, ""),
        reply(r#""Hallo, \"Sie\" 😀\n""#, ""),
        reply(r#""""#, ""),
        reply("null", ""),
        reply(ours, r#","tool_calls":[{"id":"1"}]"#),
        reply(ours, r#","reasoning_content":"hm""#),
        reply(ours, r#","name":"bot""#),
        other("assistant", "user", &reply(ours, "")),
        format!(r#"{{"content":{ours}}}"#),
        r#"{"role":"assistant","content":[{"type":"text","text":"Hallo, "},{"type":"text","text":"\"Sie\" 😀"}]}"#.into(),
    ];
    let mut histories: Vec<Vec<&str>> = vec![
        vec![SYSTEM, USER],
        vec![SYSTEM, USER, MORE],
        vec![&system, USER, REPLY, MORE],
        vec![SYSTEM, &user, REPLY, MORE],
        // A string and a list of one part are not the same to every template.
        vec![SYSTEM, parts, REPLY, MORE],
        vec![USER, REPLY, MORE],
        vec![SYSTEM, USER, USER, REPLY, MORE],
        vec![USER, SYSTEM, REPLY, MORE],
        vec![SYSTEM, REPLY, USER, MORE],
        vec![],
    ];
    histories.extend(replies.iter().map(|r| vec![SYSTEM, USER, r, MORE]));
    for messages in histories {
        assert!(!goes_on(&first(), &chat(&messages, "")), "{messages:?}");
    }
    for more in [
        r#","tools":[{"type":"function"}]"#,
        r#","chat_template_kwargs":{"enable_thinking":false}"#,
        r#","add_generation_prompt":false"#,
        r#","something_new":1"#,
        r#","echo":true"#,
    ] {
        let messages = [SYSTEM, USER, REPLY, MORE];
        assert!(!goes_on(&first(), &chat(&messages, more)), "{more}");
    }
    let body = chat(&[SYSTEM, USER, REPLY, MORE], "");
    assert!(!goes_on(
        &first(),
        &other(r#""model":"m""#, r#""model":"n""#, &body)
    ));
    assert!(!goes_on(&first(), r#"{"model":"m","prompt":"be brief"}"#));
}

/// What no next request can be held to is not even kept.
#[test]
fn answers_that_cannot_be_repeated_leave_nothing() {
    let body = chat(&[SYSTEM, USER], "");
    for content in [
        r#""""#,
        "null",
        r#"" padded""#,
        r#""padded\n""#,
        r#""x","tool_calls":[{"id":"1"}]"#,
    ] {
        assert_eq!(past(&body, &answer(content)), None, "{content}");
    }
    for body in [
        r#"{"prompt":["a","b"]}"#,
        r#"{"prompt":[]}"#,
        r#"{"prompt":[1.5]}"#,
        r#"{"prompt":"a","echo":true}"#,
        r#"{"prompt":"a","messages":[]}"#,
        r#"{"model":"m"}"#,
    ] {
        assert_eq!(
            past(body, r#"{"choices":[{"index":0,"text":"x"}]}"#),
            None,
            "{body}"
        );
    }
}

#[test]
fn a_completion_goes_on_with_its_own_text_alone() {
    let told = past(
        r#"{"prompt":"on\u0063e"}"#,
        r#"{"choices":[{"index":0,"text":" upon é"}]}"#,
    )
    .unwrap();
    for (prompt, expected) in [
        ("once upon é", true),
        ("once upon é a time", true),
        ("once upon \\u00e9 a time", true),
        ("once upon", false),
        ("once upon e a time", false),
        ("Once upon é a time", false),
        ("", false),
    ] {
        let body = format!(r#"{{"prompt":"{prompt}"}}"#);
        assert_eq!(goes_on(&told, &body), expected, "{prompt}");
    }
    // Token ids are another form, even if they mean the same.
    assert!(!goes_on(&told, r#"{"prompt":[1,2,3]}"#));
    let ids = past(
        r#"{"prompt":[1, 22]}"#,
        r#"{"choices":[{"index":0,"text":"no matter","token_ids":[3,44]}]}"#,
    )
    .unwrap();
    for (prompt, expected) in [
        ("[1,22,3,44]", true),
        ("[1, 22, 3, 44, 5]", true),
        ("[1,22,3]", false),
        ("[1,22,3,45]", false),
        ("[12,2,3,44]", false),
        ("[1,22,34,4]", false),
    ] {
        let body = format!(r#"{{"prompt":{prompt}}}"#);
        assert_eq!(goes_on(&ids, &body), expected, "{prompt}");
    }
    // Without their ids, an answer to token ids cannot be repeated.
    let none = past(
        r#"{"prompt":[1]}"#,
        r#"{"choices":[{"index":0,"text":"x","token_ids":null}]}"#,
    );
    assert_eq!(none, None);
}
