//! What takes `kv_transfer_params` out of an answer, under every split of its bytes, against a reference that
//! parses: no byte of them gets out, no other byte is lost, and what was said is known.

use pdrelay::wire::kv_tap::{KvTap, Said};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const PARAMS: &str = r#"{"do_remote_prefill":true,"remote_block_ids":[[1,18446744073709551615],[]],"x":{"y":"}\"]{\\"},"z":null}"#;

fn tap(events: bool, expose: bool) -> KvTap {
    KvTap::new(events, expose, Some(Said::after(Sha256::new(), false)))
}

/// Fed in pieces that end at `cuts`: the client's bytes.
fn feed(tap: &mut KvTap, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([text.len()]) {
        let cut = cut.clamp(from, text.len());
        tap.feed(&text[from..cut], &mut out);
        from = cut;
    }
    tap.finish(&mut out);
    out
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// At every single cut, and byte by byte.
fn everywhere(events: bool, text: &str, expected: &str, params: Option<&str>) {
    let bytes = text.as_bytes();
    let whole: Vec<usize> = (0..bytes.len()).collect();
    let cuts = (0..=bytes.len()).map(|at| vec![at]).chain([whole]);
    for cuts in cuts {
        let mut tap = tap(events, false);
        let out = feed(&mut tap, bytes, &cuts);
        let out = String::from_utf8_lossy(&out);
        assert_eq!(out, expected, "cut at {cuts:?}");
        let found = tap.params().map(|p| String::from_utf8(p).unwrap());
        assert_eq!(found.as_deref(), params, "cut at {cuts:?} of {text}");
    }
}

#[test]
fn they_go_with_one_comma_wherever_they_stand() {
    for (before, after) in [
        (r#"{"a":1,KV,"b":[{}]}"#, r#"{"a":1,"b":[{}]}"#),
        (r#"{"a":1,KV}"#, r#"{"a":1}"#),
        (r#"{KV,"b":2}"#, r#"{"b":2}"#),
        ("{KV}", "{}"),
        (r#"{KV,KV,"b":2}"#, r#"{"b":2}"#),
        (r#"{"a":1,KV,KV}"#, r#"{"a":1}"#),
        (
            "{ \"a\" : 1 , KV , \"b\" : 2 }",
            "{ \"a\" : 1  , \"b\" : 2 }",
        ),
    ] {
        let text = before.replace("KV", &format!(r#""kv_transfer_params":{PARAMS}"#));
        everywhere(false, &text, after, Some(PARAMS));
        let event =
            |json: &str| format!(": c\r\n\r\ndata: {json}\n\ndata:{json}\r\n\r\ndata: [DONE]\n\n");
        everywhere(true, &event(&text), &event(after), Some(PARAMS));
    }
}

#[test]
fn what_only_looks_like_them_stays() {
    for text in [
        r#"{"kv_transfer_params":null,"a":1}"#,
        r#"{"a":1,"kv_transfer_params" : null}"#,
        r#"{"a":{"kv_transfer_params":{"b":1}}}"#,
        r#"{"a":[{"kv_transfer_params":{"b":1}}]}"#,
        r#"{"a":"kv_transfer_params","b":"\"kv_transfer_params\":{}"}"#,
        r#"{"kv_transfer_param":{},"kv_transfer_params_":{},"xkv_transfer_params":{}}"#,
        r#"{"a":"\\","b":"\\\"","c":"\ud83d\ude00é"}"#,
        r#"[{"kv_transfer_params":{"b":1}}]"#,
        r#"{"a":1,"kv_tr"#,
        r#"{"a" 1,"kv_transfer_params":{"b":1}}"#,
        "not json \"kv_transfer_params\":{}",
        "",
    ] {
        everywhere(false, text, text, None);
        let event = format!("event: x\ndata: {text}\n\n");
        everywhere(true, &event, &event, None);
    }
}

#[test]
fn values_of_other_kinds_go_and_are_nothing_to_keep() {
    for value in ["true", "7", "\"x\"", "[1]"] {
        let text = format!(r#"{{"a":1,"kv_transfer_params":{value}}}"#);
        everywhere(false, &text, r#"{"a":1}"#, None);
    }
}

#[test]
fn a_line_that_breaks_off_never_takes_the_next_one() {
    let text = "data: {\"kv_transfer_params\":{\"a\":\ndata: {\"b\":1}\n\n";
    let mut one = tap(true, false);
    let out = feed(&mut one, text.as_bytes(), &[]);
    assert!(
        String::from_utf8(out)
            .unwrap()
            .ends_with("data: {\"b\":1}\n\n")
    );
    assert_eq!(one.params(), None);
}

#[test]
fn exposed_they_are_seen_and_kept() {
    let text = format!("data: {{\"kv_transfer_params\":{PARAMS}}}\n\ndata: [DONE]\n\n");
    for at in 0..text.len() {
        let mut tap = tap(true, true);
        assert_eq!(feed(&mut tap, text.as_bytes(), &[at]), text.as_bytes());
        assert_eq!(tap.params().as_deref(), Some(PARAMS.as_bytes()));
        assert!(tap.whole());
    }
}

#[test]
fn huge_params_are_taken_out_and_forgotten() {
    let huge = "9".repeat(3 << 20);
    let text = format!(r#"{{"a":1,"kv_transfer_params":{{"x":{huge}}},"b":2}}"#);
    let mut tap = tap(false, false);
    let out = feed(&mut tap, text.as_bytes(), &[100, 2 << 20]);
    assert_eq!(out, br#"{"a":1,"b":2}"#);
    assert_eq!(tap.params(), None);
    assert!(tap.whole());
}

/// What is held back at the end of a read is never more than what may become the key.
#[test]
fn nothing_else_is_held_back() {
    let text = format!(
        "data: {{\"id\":\"x\",\"choices\":[{{\"text\":\"one\"}}],\"kv_transfer_params\":{PARAMS}}}\n\n"
    );
    let bytes = text.as_bytes();
    let start = text.find(",\"kv_").unwrap();
    for at in 0..=start {
        let mut tap = tap(true, false);
        let mut out = Vec::new();
        tap.feed(&bytes[..at], &mut out);
        let held = at - out.len();
        assert!(
            held <= 1 + "\"kv_transfer_params\":".len(),
            "{held} at {at}"
        );
        // Within the text itself: nothing.
        if bytes[..at].ends_with(b"o") || bytes[..at].ends_with(b"n") {
            assert_eq!(held, 0, "at {at}");
        }
    }
}

fn said(events: bool, text: &str) -> Said {
    let mut tap = tap(events, false);
    feed(
        &mut tap,
        text.as_bytes(),
        &(0..text.len()).collect::<Vec<_>>(),
    );
    tap.said().unwrap()
}

#[test]
fn what_is_said_is_heard() {
    let chat = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[],\"reasoning\":null}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Gr\\u00fc\\\"\"},\"logprobs\":{\"content\":[{\"token\":\"x\"}]}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\ud83d\\ude00\"},\"stop_reason\":7}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"text\":\"no\"}}\n\ndata: [DONE]\n\n"
    );
    let heard = said(true, chat);
    assert!(!heard.more && !heard.padded());
    assert_eq!(heard.digest(), digest("Grü\"😀"));
    let whole = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi","refusal":null,"tool_calls":[]},"stop_reason":null}]}"#;
    assert_eq!(said(false, whole).digest(), digest("Hi"));
    let text = r#"{"choices":[{"index":0,"text":" one two"}],"text":"no"}"#;
    assert!(said(false, text).padded());
    assert_eq!(said(false, text).digest(), digest(" one two"));
}

#[test]
fn what_is_more_than_text_is_never_taken_for_text() {
    for part in [
        r#""index":0,"delta":{"tool_calls":[{"index":0}]}"#,
        r#""index":0,"delta":{"reasoning":"hm"}"#,
        r#""index":0,"delta":{"reasoning_content":"hm","content":"x"}"#,
        r#""index":0,"delta":{"function_call":{"name":"f"}}"#,
        r#""index":0,"delta":{"refusal":"no"}"#,
        r#""index":0,"delta":{"audio":7}"#,
        r#""index":0,"delta":{"content":[{"type":"text"}]}"#,
        r#""index":1,"text":"x""#,
        r#""index":0,"text":"x","stop_reason":"User:""#,
    ] {
        let text = format!("data: {{\"choices\":[{{{part}}}]}}\n\n");
        assert!(said(true, &text).more, "{part}");
    }
    assert!(said(true, "data: {\"error\":{\"message\":\"x\"}}\n\n").more);
}

fn json() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("x".to_owned()),
        Just("kv_transfer_params".to_owned()),
        Just("\"kv_transfer_params\":{}".to_owned()),
        "[a-z,:{}\\[\\]\"\\\\\n ]{0,12}",
    ];
    let leaf = prop_oneof![
        text.clone()
            .prop_map(|t| serde_json::to_string(&t).unwrap()),
        Just("null".to_owned()),
        Just("-1.5e3".to_owned()),
        Just("true".to_owned()),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let key = prop_oneof![text.clone(), Just("choices".into()), Just("delta".into())];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((key, inner), 0..4).prop_map(|members| {
                let members: Vec<String> = members
                    .iter()
                    .map(|(k, v)| format!("{}:{v}", serde_json::to_string(k).unwrap()))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any members, the params anywhere among them, any cuts: as if they had never been there.
    #[test]
    fn any_object_comes_out_without_them(
        members in prop::collection::vec(("[a-z_]{1,8}", json()), 0..5),
        params in json(),
        at in 0usize..6,
        spaced in any::<bool>(),
        cuts in prop::collection::vec(0usize..400, 0..6),
    ) {
        let object = |members: &[String]| {
            let comma = if spaced { " , " } else { "," };
            format!("{{{}}}", members.join(comma))
        };
        let without: Vec<String> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        let mut with = without.clone();
        with.insert(at.min(with.len()), format!("\"kv_transfer_params\":{{\"p\":{params}}}"));
        let event = |json: String| format!("data: {json}\n\ndata: [DONE]\n\n");
        let (text, expected) = (event(object(&with)), event(object(&without)));
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut tap = tap(true, false);
        let out = String::from_utf8(feed(&mut tap, text.as_bytes(), &cuts)).unwrap();
        // White space beside the comma that went may stay.
        prop_assert_eq!(out.replace(' ', ""), expected.replace(' ', ""));
        prop_assert_eq!(tap.params().unwrap(), format!("{{\"p\":{params}}}").into_bytes());
        prop_assert!(tap.whole());
    }

    /// Whatever comes, nothing is lost but what was taken out, and nothing panics.
    #[test]
    fn any_bytes_pass(text in "[a-z{}\\[\\],:\"\\\\ \n]{0,80}", cuts in prop::collection::vec(0usize..80, 0..4)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        for events in [true, false] {
            let out = feed(&mut tap(events, false), text.as_bytes(), &cuts);
            prop_assert_eq!(&out, text.as_bytes());
        }
    }
}
