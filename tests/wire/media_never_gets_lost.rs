//! A media item that is overlooked is computed twice; one that is imagined breaks the request. The search
//! agrees with a tree parser, and its patches change what they should and nothing else.

use pdrelay::wire::json::{Object, Patch, patch, put_pieces, splice};
use pdrelay::wire::media::{Item, Kind, items};
use proptest::prelude::*;
use serde_json::Value;

fn found(body: &str) -> Vec<Item> {
    let object = Object::scan(body.as_bytes(), 128).expect("an object");
    let messages = object.range(body.as_bytes(), "messages");
    messages.map_or(Vec::new(), |range| items(body.as_bytes(), range))
}

/// What a tree parser finds: type, url and uuid of each item.
fn expected(body: &str) -> Vec<(String, Option<String>, Option<Value>)> {
    let body: Value = serde_json::from_str(body).unwrap();
    let mut all = Vec::new();
    for message in body["messages"].as_array().into_iter().flatten() {
        for item in message["content"].as_array().into_iter().flatten() {
            let Some(name) = item["type"].as_str() else {
                continue;
            };
            if Kind::ALL.iter().any(|kind| kind.name() == name) {
                let url = item[name]["url"].as_str().or(item[name].as_str());
                let uuid = item.get("uuid").cloned();
                all.push((name.to_owned(), url.map(str::to_owned), uuid));
            }
        }
    }
    all
}

fn agrees(body: &str) {
    let (ours, theirs) = (found(body), expected(body));
    assert_eq!(ours.len(), theirs.len(), "{body}");
    for (item, (name, url, uuid)) in ours.iter().zip(&theirs) {
        let value = |range: &std::ops::Range<usize>| -> Value {
            serde_json::from_str(&body[range.clone()]).unwrap()
        };
        assert_eq!(item.kind.name(), name);
        assert_eq!(item.url.as_ref().map(value), url.clone().map(Value::String));
        assert_eq!(item.uuid.as_ref().map(value), *uuid);
        assert_eq!(value(&item.whole)["type"], **name);
    }
}

#[test]
fn items_are_found_wherever_they_stand() {
    for body in [
        r#"{"messages":[]}"#,
        r#"{"model":"m"}"#,
        r#"{"messages":[{"role":"user","content":"image_url"}]}"#,
        r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"a"}}],"role":"user"}]}"#,
        r#"{"messages":[{"content":[ { "image_url" : { "detail":"low", "url" : "a\"]}" } , "type" : "image_url" } ]}]}"#,
        r#"{"messages":[{"content":[{"type":"text","text":"{\"type\":\"image_url\"}"}]},{"content":[
            {"type":"video_url","video_url":{"url":"v"},"uuid":"u"},{"type":"input_audio","input_audio":{"data":"A","format":"wav"}},
            {"type":"audio_url","audio_url":"a","uuid":null},"image_url",[{"type":"image_url"}],{"type":"image_embeds"}]}]}"#,
        r#"{"messages":[{"content":[{"type":"im\u0061ge_url","imag\u0065_url":{"ur\u006c":"\u0061"}}]}]}"#,
        r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":7}},{"type":"image_url"}]}]}"#,
    ] {
        agrees(body);
    }
    // Of duplicates the last one counts, as with the engines.
    let body = r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"a"}}],"content":[{"type":"text",
        "type":"audio_url","audio_url":{"url":"a","url":"b"}}]}]}"#;
    agrees(body);
    assert_eq!(found(body)[0].kind, Kind::Audio);
}

#[test]
fn malformed_messages_end_the_search_and_nothing_else() {
    for messages in [
        "{}",
        "7",
        "[{]",
        "[{\"content\" [}]",
        "[{\"content\":[{\"type\" \"image_url\"}]}]",
        "[,]",
        "[{,}]",
    ] {
        let body = format!("{{\"messages\":{messages}}}");
        if let Ok(object) = Object::scan(body.as_bytes(), 128) {
            let range = object.range(body.as_bytes(), "messages").unwrap();
            assert_eq!(items(body.as_bytes(), range), [], "{body}");
        }
    }
}

#[test]
fn a_uuid_is_added_or_takes_the_place_of_another() {
    let with = |body: &str| {
        let item = &found(body)[0];
        let mut out = Vec::new();
        put_pieces(&mut out, body.as_bytes(), &item.pieces(Some("x\"y")));
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        with(r#"{"messages":[{"content":[ {"type":"image_url","image_url":{"url":"a"} } ]}]}"#),
        r#"{"type":"image_url","image_url":{"url":"a"} ,"uuid":"x\"y"}"#
    );
    assert_eq!(
        with(
            r#"{"messages":[{"content":[{"uuid":{"a":1},"type":"image_url","image_url":{"url":"a"}}]}]}"#
        ),
        r#"{"uuid":"x\"y","type":"image_url","image_url":{"url":"a"}}"#
    );
}

#[test]
fn patches_and_edits_go_together() {
    use pdrelay::wire::json::Edit;
    let body = r#"{"a":[1,2,3],"gone":[4],"b":5}"#;
    let at = |what: &str| body.find(what).map(|at| at..at + what.len()).unwrap();
    let patches = [
        Patch {
            at: at("2"),
            with: b"two".to_vec(),
        },
        Patch {
            at: at("4"),
            with: b"four".to_vec(),
        },
        Patch {
            at: at("5").start..at("5").start,
            with: b"-".to_vec(),
        },
    ];
    let object = Object::scan(body.as_bytes(), 8).unwrap();
    let edits = [Edit::Remove("gone"), Edit::Set("c", b"6".into())];
    let mut out = Vec::new();
    let pieces = patch(splice(body.as_bytes(), &object, &edits), &patches);
    put_pieces(&mut out, body.as_bytes(), &pieces);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        r#"{"a":[1,two,3],"b":-5,"c":6}"#
    );
}

fn json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("type"),
        Just("uuid"),
        Just("url"),
        Just("image_url"),
        Just("content"),
        Just("input_audio"),
        Just("video_url"),
        Just("audio_url"),
        Just("text"),
        Just("a\"]}é\\"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..4).prop_map(|members| {
                Value::Object(
                    members
                        .into_iter()
                        .map(|(k, v)| (k.to_owned(), v))
                        .collect(),
                )
            }),
        ]
    })
}

fn item() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(Kind::ALL.map(Kind::name).to_vec());
    prop_oneof![
        3 => (kinds, json(), json()).prop_map(|(kind, media, uuid)| serde_json::json!({"type": kind, kind: media, "uuid": uuid})),
        1 => json(),
    ]
}

proptest! {
    #[test]
    fn a_tree_parser_finds_the_same(
        contents in prop::collection::vec(prop::collection::vec(item(), 0..4), 0..4),
        odd in json(),
        pretty in any::<bool>(),
    ) {
        let mut messages: Vec<Value> = contents
            .into_iter()
            .map(|content| serde_json::json!({"role": "user", "content": content}))
            .collect();
        messages.push(odd);
        let body = serde_json::json!({"messages": messages});
        let text = match pretty {
            true => serde_json::to_string_pretty(&body),
            false => serde_json::to_string(&body),
        };
        agrees(&text.unwrap());
    }

    /// Wherever it is cut or damaged, it ends.
    #[test]
    fn damaged_bodies_never_panic(at in 0usize..200, byte in any::<u8>()) {
        let body = br#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"},"uuid":"u"},{"type":"text","text":"x"}]}]"#;
        let mut body = body.to_vec();
        let at = at % body.len();
        body[at] = byte;
        let _ = items(&body, 0..body.len());
        let _ = items(&body, 0..at);
    }
}

/// Content of messages, and what tools have given back; each as an encoder is sent it.
#[test]
fn media_of_a_response_are_found_in_its_input() {
    use pdrelay::wire::media::input_items;
    let body = br#"{"input":[{"role":"user","content":"input_image"},
        {"type":"message","role":"user","content":[{"type":"input_text","text":"x"},
            {"image_url":"http:\/\/h\/a","detail":"high","type":"input_image","uuid":"u"},
            {"type":"input_image","file_id":"f"},{"type":"image_url","image_url":{"url":"http://h/chat"}},
            {"type":"input_audio","input_audio":{"data":"AA"}}]},
        {"type":"function_call_output","output":[{"type":"input_image","image_url":"data:,b"}]},
        {"type":"function_call_output","output":"{}"},
        {"type":"reasoning","summary":[{"type":"input_image","image_url":"http://h/no"}]}]}"#;
    let object = Object::scan(body, 128).unwrap();
    let input = object.range(body, "input").unwrap();
    let sent: Vec<String> = input_items(body, input.clone())
        .iter()
        .map(|item| {
            let mut out = Vec::new();
            put_pieces(&mut out, body, &item.pieces(None));
            String::from_utf8(out).unwrap()
        })
        .collect();
    assert_eq!(
        sent,
        [
            r#"{"type":"image_url","image_url":{"url":"http:\/\/h\/a"}}"#,
            r#"{"type":"input_audio","input_audio":{"data":"AA"}}"#,
            r#"{"type":"image_url","image_url":{"url":"data:,b"}}"#,
        ]
    );
    // In a chat only its own types count.
    let chat = String::from_utf8_lossy(body).replacen("input", "messages", 1);
    let object = Object::scan(chat.as_bytes(), 128).unwrap();
    let messages = object.range(chat.as_bytes(), "messages").unwrap();
    assert_eq!(items(chat.as_bytes(), messages).len(), 2);
    for odd in [
        r#"{"input":"x"}"#,
        r#"{"input":[7,"x",{}]}"#,
        r#"{"input":[{"content":[{"type":"input_image"}]}]}"#,
    ] {
        let object = Object::scan(odd.as_bytes(), 128).unwrap();
        let input = object.range(odd.as_bytes(), "input").unwrap();
        assert_eq!(input_items(odd.as_bytes(), input), []);
    }
}
