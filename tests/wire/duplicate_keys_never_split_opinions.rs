//! A client cannot make the proxy and the engine read one field differently.

use pdrelay::wire::json::{self, Edit, Object};
use pdrelay::wire::openai::{KV_PARAMS, Summary, prefill_edits};
use serde_json::Value;
use std::borrow::Cow;

fn spliced(text: &str, edits: &[Edit]) -> String {
    let object = Object::scan(text.as_bytes(), 128).expect("an object");
    let mut out = vec![];
    let pieces = json::splice(text.as_bytes(), &object, edits);
    json::put_pieces(&mut out, text.as_bytes(), &pieces);
    String::from_utf8(out).expect("UTF-8")
}

fn summary(text: &str) -> Summary {
    Summary::of(
        text.as_bytes(),
        &Object::scan(text.as_bytes(), 128).expect("an object"),
    )
}

#[test]
fn the_last_one_counts() {
    assert!(summary(r#"{"stream":false,"stream":true}"#).stream);
    assert!(!summary(r#"{"stream":true,"stream":false}"#).stream);
    assert!(summary(r#"{"stream":false,"str\u0065am":true}"#).stream);
    assert!(!summary(r#"{"stream":true,"\u0073tream":false}"#).stream);
    assert!(!summary(r#"{"stream":true,"\u0053tream":false,"stream":0}"#).stream);
    assert_eq!(
        summary(r#"{"max_tokens":1,"max_tokens":9}"#).max_tokens,
        Some(9)
    );
    assert_eq!(summary(r#"{"prompt":["a","b"],"prompt":"a"}"#).prompts, 1);
    assert_eq!(
        summary(r#"{"prompt":"a","pr\u006fmpt":["a","b"]}"#).prompts,
        2
    );
}

#[test]
fn no_duplicate_survives_an_edit() {
    let hostile = [
        r#"{"stream":true,"stream":true}"#,
        r#"{"str\u0065am":true,"max_tokens":5,"stream":true,"max\u005ftokens":6}"#,
        r#"{"stream":{"stream":true},"n":[1,2],"n":3,"\u006E":4}"#,
        r#"{"stream_options":1,"stream\u005foptions":2,"min_tokens":3,"min_token\u0073":4}"#,
        r#"{"kv_transfer_params":{"a":1},"kv_transfer_p\u0061rams":{"b":1},"kv_transfer_params":null}"#,
    ];
    for text in hostile {
        let mut edits = prefill_edits();
        edits.push(Edit::Set(KV_PARAMS, Cow::Borrowed(b"{\"ours\":1}")));
        let out = spliced(text, &edits);
        // Neither a reader of the first nor one of the last can see another value.
        let object = Object::scan(out.as_bytes(), 128).expect("an object");
        for (key, value) in [
            ("stream", Some("false")),
            ("max_tokens", Some("1")),
            ("stream_options", None),
            ("min_tokens", None),
            (KV_PARAMS, Some("{\"ours\":1}")),
        ] {
            let seen: Vec<&str> = object
                .members()
                .iter()
                .filter(|m| m.is(out.as_bytes(), key))
                .map(|m| &out[m.value()])
                .collect();
            assert_eq!(
                seen,
                value.into_iter().collect::<Vec<_>>(),
                "{key} of {out}"
            );
        }
        let tree: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(tree[KV_PARAMS]["ours"], 1);
    }
}

#[test]
fn removing_kv_params_removes_all() {
    let text = r#"{"a":1,"kv_transfer_params":{},"b":2,"kv\u005ftransfer_params":{"do_remote_decode":true}}"#;
    assert_eq!(
        spliced(text, &[Edit::Remove(KV_PARAMS)]),
        r#"{"a":1,"b":2}"#
    );
}

/// A handshake sets what the leg had taken out already: the value is there, once.
#[test]
fn removed_and_then_set() {
    let edits = [
        Edit::Remove(KV_PARAMS),
        Edit::Set(KV_PARAMS, Cow::Borrowed(b"1")),
    ];
    for text in [
        r#"{"a":1}"#,
        r#"{"kv_transfer_params":2,"a":1}"#,
        r#"{"kv_transfer_params":2,"a":1,"kv\u005ftransfer_params":3}"#,
    ] {
        assert_eq!(spliced(text, &edits), r#"{"a":1,"kv_transfer_params":1}"#);
    }
}

/// Keys that only look alike are left alone.
#[test]
fn near_misses() {
    for text in [
        r#"{"Stream":1}"#,
        r#"{"stream ":1}"#,
        r#"{"stream\u0000":1}"#,
        r#"{"\\u0073tream":1}"#,
        r#"{"str\\u0065am":1}"#,
        r#"{"str\u+065am":1}"#,
        r#"{"a":{"stream":1}}"#,
    ] {
        assert_eq!(spliced(text, &[Edit::Remove("stream")]), text);
        assert!(!summary(text).stream);
    }
}
