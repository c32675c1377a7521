//! `multiturn`: the first turn with the template, the next with what D kept; nobody but us sees either.

use serde_json::{Value, json};

use super::{TEMPLATE, body, names};
use crate::multiturn::{CHAT, COMPLETIONS, Talk, clean, conversations, engines, right, talk_rig};
use crate::support::{completion, post_bytes, rig_with};

const FIRST: &str = r#"{ "conversation_id" : "c-1", "model":"dummy","messages":[{"content":"Grüße","role":"user"}],
 "stream":true,"stream_options":{"include_usage":true},"min_tokens":2,"max_tokens":4 }"#;

#[test]
fn each_leg_of_three_turns_gets_exactly_what_it_should() {
    let rig = talk_rig(|_| {});
    let mut client = rig.client();
    let fields = "X-Request-ID: own\r\nAuthorization: Bearer k\r\naccept-encoding: gzip\r\n\
                  X-Conversation-Id: ignored\r\nX-Custom: 1\r\n";
    client.send(post_bytes(CHAT, FIRST, fields));
    let first = client.response();
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.header("x-request-id"), Some("own"));

    let (p, d) = (rig.posts(0).remove(0), rig.posts(1).remove(0));
    let at_p = FIRST.replace(r#" "conversation_id" : "c-1","#, "").replace(
        r#""stream":true,"stream_options":{"include_usage":true},"min_tokens":2,"max_tokens":4 }"#,
        &format!(r#""stream":false,"max_tokens":1 {}}}"#, TEMPLATE),
    );
    assert_eq!(body(&p).replace(' ', ""), at_p.replace(' ', ""));
    let params: Value =
        serde_json::from_str::<Value>(body(&d)).unwrap()["kv_transfer_params"].clone();
    assert_eq!(params["do_remote_prefill"], true);
    let at_d = FIRST.replace(r#" "conversation_id" : "c-1","#, "");
    assert!(
        body(&d)
            .replace(' ', "")
            .starts_with(at_d.replace(' ', "").trim_end_matches('}'))
    );
    let common = "authorization content-length content-type host x-custom x-request-id";
    for leg in [&p, &d] {
        assert_eq!(leg.path, CHAT);
        // Neither compressed, nor told which conversation it is.
        assert_eq!(names(leg).join(" "), common);
    }

    // The client sees no block ids, and all else.
    let text = first.text();
    assert!(
        !text.contains("kv_transfer_params") && !text.contains("remote_"),
        "{text}"
    );
    let events = first.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(
        events[events.len() - 2].contains(r#""usage":{"prompt_tokens""#),
        "{text}"
    );
    assert_eq!(conversations(&rig, "new"), 1.0);
    assert_eq!(conversations(&rig, "stored"), 1.0);

    // Turn 2: P is given D's params whole, to fetch there, and to keep its own for D.
    let mut talk = Talk::new("c-1");
    talk.fields = "Authorization: Bearer k\r\n".into();
    talk.messages = vec![
        json!({"role": "user", "content": "Grüße"}),
        json!({"role": "assistant", "content": first.generated()}),
    ];
    for turn in 2..=3 {
        talk.say(rig.server.address, "more");
        right(&talk);
        let leg = rig.posts(0).pop().unwrap();
        let sent: Value = serde_json::from_str(body(&leg)).unwrap();
        let given = &sent["kv_transfer_params"];
        assert_eq!(given["do_remote_decode"], true);
        assert_eq!(given["do_remote_prefill"], false);
        assert_eq!(given.as_object().unwrap().len(), 14);
        assert_eq!(given["remote_host"], "127.0.0.1");
        let by = given["remote_request_id"].as_str().unwrap().to_owned();
        assert!(by.starts_with("chatcmpl-"), "{by}");
        assert_eq!(conversations(&rig, "reused"), f64::from(turn - 1));
    }
    clean(&rig);
    let ledger = rig.sim.ledger();
    // P's three were fetched by D, D's first two by P; its last waits for a fourth turn.
    assert_eq!((ledger.grants, ledger.fetched, ledger.held_now), (6, 5, 1));
}

#[test]
fn the_field_names_a_conversation_where_the_body_does_not() {
    for id in [
        None,
        Some(json!("")),
        Some(Value::Null),
        Some(json!({"a": 1})),
    ] {
        let rig = talk_rig(|_| {});
        let mut talk = Talk::new("");
        talk.id = Value::Null;
        if let Some(id) = &id {
            talk.more["conversation_id"] = id.clone();
        }
        talk.fields = "x-conversation-id: c\r\n".into();
        talk.say(rig.server.address, "one");
        talk.say(rig.server.address, "two");
        assert_eq!(conversations(&rig, "reused"), 1.0, "{id:?}");
        clean(&rig);
    }
}

/// Without any name there is nothing to keep, and D's params are hidden all the same.
#[test]
fn a_request_of_no_conversation_is_only_a_request() {
    let rig = talk_rig(|_| {});
    for stream in ["", r#","stream":true"#] {
        let sent = completion("once", &format!(r#","max_tokens":3{stream}"#));
        let response = rig.post(COMPLETIONS, &sent);
        assert_eq!(response.status, 200);
        assert!(!response.text().contains("remote_"), "{}", response.text());
    }
    for outcome in ["new", "stored", "reused", "unrepeatable"] {
        assert_eq!(conversations(&rig, outcome), 0.0, "{outcome}");
    }
    assert_eq!(rig.get("/health").text(), r#"{"status":"ok"}"#);
    clean(&rig);
}

/// What an engine calls itself need not be what it is reached by.
#[test]
fn engines_are_told_of_each_other_by_the_host_that_was_dialled() {
    use pdrelay::config::RemoteHost;
    let mut engines = engines(1, 1);
    engines
        .iter_mut()
        .for_each(|e| e.side_host = "its-own-name".into());
    let rig = rig_with("multiturn", engines.clone(), |_| {});
    let mut talk = Talk::new("c");
    for turn in ["one", "two", "three"] {
        talk.say(rig.server.address, turn);
        right(&talk);
    }
    clean(&rig);
    assert_eq!(conversations(&rig, "reused"), 2.0);

    let rig = rig_with("multiturn", engines, |config| {
        config.multiturn.remote_host = RemoteHost::AsGiven;
        config.retry.enabled = false;
    });
    let response = rig.post(COMPLETIONS, &completion("once", ""));
    assert_eq!(response.status, 500);
    assert!(body(&rig.posts(1)[0]).contains(r#""remote_host":"its-own-name""#));
}
