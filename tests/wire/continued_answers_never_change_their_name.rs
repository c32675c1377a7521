//! An answer that D goes on with from P's token is one answer: under any split of D's stream, with one id, and
//! whatever is no event of a completion passes as it is.

use pdrelay::wire::continued::{Continued, Opening};
use pdrelay::wire::first_token::Token;
use pdrelay::wire::json::{Object, put_pieces, splice};
use pdrelay::wire::lmcache::Tokens;
use proptest::prelude::*;
use serde_json::Value;

use super::support::{cut, cuts, fixed_splits};

const PREFILL: &str = r#"{"id":"cmpl-p","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" on\"e","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6},"kv_transfer_params":{"first_tok":7}}"#;

fn opening(chat: bool, with_token: bool) -> Opening {
    let object = Object::scan(PREFILL.as_bytes(), 64).unwrap();
    let token = Token::of(PREFILL.as_bytes(), &object, false).unwrap();
    Opening::of(
        PREFILL.as_bytes(),
        &object,
        chat,
        with_token.then_some(&token),
        1,
    )
}

fn event(text: &str, finish: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"cmpl-d\",\"object\":\"text_completion\",\"created\":2,\"model\":\"m\",\"choices\":[{{\"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":{finish},\"stop_reason\":null}}]{usage}}}\n\n"
    )
}

fn stream() -> String {
    [
        ": a comment\n\n".to_owned(),
        event("\" two\"", "null", ""),
        event("\" \\u00e9 [DONE]\"", "null", ",\"usage\":null"),
        event("\"\"", "\"stop\"", ""),
        "data: {\"id\":\"cmpl-d\",\"object\":\"text_completion\",\"created\":2,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":6,\"total_tokens\":9,\"completion_tokens\":3}}\n\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat()
}

fn told(continued: &Continued, pieces: &[&[u8]]) -> String {
    let (mut one, mut out) = (continued.clone(), Vec::new());
    one.feed(b"", &mut out);
    for piece in pieces {
        one.feed(piece, &mut out);
    }
    one.finish(&mut out);
    String::from_utf8(out).unwrap()
}

fn parsed(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|e| e.strip_prefix("data: "));
    data.filter_map(|d| serde_json::from_str(d).ok()).collect()
}

#[test]
fn every_split_tells_the_same_answer() {
    for (chat, with_token) in [(false, true), (true, true), (true, false)] {
        let continued = Continued::new(opening(chat, with_token), true);
        let stream = stream();
        let whole = told(&continued, &[stream.as_bytes()]);
        for pieces in fixed_splits(stream.as_bytes()) {
            assert_eq!(told(&continued, &pieces), whole);
        }
        assert!(whole.ends_with("data: [DONE]\n\n") && whole.contains(": a comment\n\n"));
        let events = parsed(&whole);
        let id = if chat { "chatcmpl-p" } else { "cmpl-p" };
        assert!(
            events.iter().all(|e| e["id"] == id && e["created"] == 1),
            "{whole}"
        );
        let text: String = events
            .iter()
            .filter_map(|e| {
                let choice = &e["choices"][0];
                choice["text"]
                    .as_str()
                    .or(choice["delta"]["content"].as_str())
                    .map(str::to_owned)
            })
            .collect();
        let first = if with_token { " on\"e" } else { "" };
        assert_eq!(text, format!("{first} two \u{e9} [DONE]"));
        let usage = &events.last().unwrap()["usage"];
        let (prompt, made) = if with_token { (5, 4) } else { (6, 3) };
        assert_eq!(
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            (&prompt.into(), &made.into())
        );
        assert_eq!(usage["total_tokens"], 9);
        let finish = events
            .iter()
            .filter_map(|e| e["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish.collect::<Vec<_>>(), ["stop"]);
    }
}

/// Where D speaks under the same name anyway, the rest passes without being looked at.
#[test]
fn a_stream_that_needs_no_change_is_let_pass() {
    let mut continued = Continued::new(opening(false, true), false);
    let mut out = Vec::new();
    continued.feed(b"", &mut out);
    assert!(
        !continued.waiting(),
        "P's token is out before D has made one"
    );
    assert!(!continued.over());
    let same = event("\" two\"", "null", "")
        .replace("cmpl-d", "cmpl-p")
        .replace(":2,", ":1,");
    continued.feed(same.as_bytes(), &mut out);
    assert!(continued.over());
    assert!(String::from_utf8(out).unwrap().ends_with(&same));
}

#[test]
fn an_error_within_the_stream_passes_as_it_is() {
    let error = "data: {\"error\":{\"message\":\"gone\",\"code\":500}}\n\n";
    for chat in [false, true] {
        let continued = Continued::new(opening(chat, true), false);
        assert!(told(&continued, &[error.as_bytes()]).ends_with(error));
    }
}

#[test]
fn a_whole_answer_is_lengthened_or_told_as_a_chat() {
    let d = r#"{"id":"cmpl-d","object":"text_completion","created":2,"model":"m","choices":[{"index":0,"text":" two","finish_reason":"stop"}],"usage":{"prompt_tokens":6,"completion_tokens":3,"total_tokens":9},"kv_transfer_params":null}"#;
    let object = Object::scan(d.as_bytes(), 64).unwrap();
    for chat in [false, true] {
        let edits = opening(chat, true).edits(d.as_bytes(), &object).unwrap();
        let mut out = Vec::new();
        put_pieces(
            &mut out,
            d.as_bytes(),
            &splice(d.as_bytes(), &object, &edits),
        );
        let told: Value = serde_json::from_slice(&out).unwrap();
        let choice = &told["choices"][0];
        match chat {
            true => {
                assert_eq!(choice["message"]["content"], " on\"e two");
                assert_eq!(
                    (&told["object"], &told["id"]),
                    (&"chat.completion".into(), &"chatcmpl-p".into())
                );
            }
            false => assert_eq!(choice["text"], " on\"e two"),
        }
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(
            (
                &told["usage"]["prompt_tokens"],
                &told["usage"]["completion_tokens"]
            ),
            (&5.into(), &4.into())
        );
        assert!(told.get("kv_transfer_params").is_none());
    }
}

#[test]
fn only_ids_are_tokens() {
    let of = |text: &str| Tokens::of(text.as_bytes()).map(|t| (t.count, t.prompt(Some(9))));
    assert_eq!(of("[1, 2]"), Some((2, b"[1, 2,9]".to_vec())));
    for bad in [
        "[]", "[1,-2]", "[1.5]", "[\"a\"]", "[[1]]", "\"text\"", "[null]", "{}",
    ] {
        assert_eq!(of(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_split_and_any_noise(cuts in cuts(), noise in prop::collection::vec(any::<u8>(), 0..60)) {
        for chat in [false, true] {
            let continued = Continued::new(opening(chat, true), true);
            let stream = stream();
            let whole = told(&continued, &[stream.as_bytes()]);
            prop_assert_eq!(told(&continued, &cut(stream.as_bytes(), &cuts)), whole);
            let mut out = Vec::new();
            let mut one = continued.clone();
            one.feed(&noise, &mut out);
            one.finish(&mut out);
            prop_assert!(out.windows(noise.len().max(1)).any(|w| w == noise) || noise.is_empty() || noise.contains(&b'\n'));
        }
    }
}
