//! The original asks D for a stream whatever the client wants, and makes an answer of its texts: usage, tools,
//! logprobs and all choices but one are lost, a failed prefill leaves its template in D's request, and the
//! client sees the engine's block ids.

use serde_json::{Value, json};

use super::{COMPLETIONS, Talk, clean, conversations, engines, talk_rig};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, completion, config, older_engines, rig_with};
use pdrelay::config::Role;
use pdrelay::server::Server;

#[test]
fn whole_answers_keep_usage_logprobs_and_choices() {
    let rig = talk_rig(|_| {});
    let more = r#","conversation_id":"c","n":3,"logprobs":1,"max_tokens":4"#;
    let response = rig.post(COMPLETIONS, &completion("three of them", more));
    let json = response.json();
    assert_eq!(json["choices"].as_array().unwrap().len(), 3);
    assert_eq!(json["usage"]["completion_tokens"], 12);
    assert!(json["choices"][2]["logprobs"]["tokens"].is_array());
    assert!(json["system_fingerprint"].is_string());
    assert_eq!(json.get("kv_transfer_params"), None);
    // D was asked as the client asked.
    let at_d: Value = serde_json::from_slice(&rig.posts(1)[0].body).unwrap();
    assert_eq!((&at_d["stream"], &at_d["n"]), (&Value::Null, &json!(3)));
    // Three voices are no history that one could go on from.
    assert_eq!(conversations(&rig, "unrepeatable"), 1.0);
}

const TOOLS: &str = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{\"kv_transfer_params\":{}}"}}],"reasoning_content":"hm"},"finish_reason":"tool_calls"}],"usage":{"total_tokens":7},"kv_transfer_params":{"remote_block_ids":[[7]]},"more":1}"#;

fn scripted(d: &Scripted, p: &Scripted) -> Server {
    let mut config = config(
        "multiturn",
        &[Role::Prefill, Role::Decode],
        &[p.address, d.address],
    );
    config.health_check.enabled = false;
    config.retry.enabled = false;
    Server::start(config).expect("the proxy starts")
}

fn good_prefill() -> Scripted {
    Scripted::start(|_, _| {
        let body = r#"{"choices":[],"kv_transfer_params":{"remote_host":"h","remote_port":1}}"#;
        Say::Bytes(answer("200 OK", body))
    })
}

#[test]
fn tool_calls_arrive_byte_for_byte() {
    let p = good_prefill();
    let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", TOOLS)));
    let server = scripted(&d, &p);
    let response = Client::connect(server.address).post(
        "/v1/chat/completions",
        r#"{"conversation_id":"c","messages":[{"role":"user","content":"x"}],"tools":[{}]}"#,
    );
    let expected = TOOLS.replace(r#","kv_transfer_params":{"remote_block_ids":[[7]]}"#, "");
    assert_eq!(response.text(), expected);
    assert_eq!(response.header("content-type"), Some("application/json"));
}

/// A P that hands nothing over: D must compute, and must not be told to hold KV for another.
#[test]
fn the_template_never_reaches_decode() {
    let mut engines = older_engines(1, 1);
    engines.iter_mut().for_each(|e| e.bidirectional = true);
    let rig = rig_with("multiturn", engines, |_| {});
    for more in ["", r#","stream":true"#, r#","conversation_id":"c""#] {
        let sent = completion("[[eos@1]] text", &format!(r#","max_tokens":4{more}"#));
        assert_eq!(rig.post(COMPLETIONS, &sent).status, 200);
        let at_d = rig.posts(1).pop().unwrap();
        let at_d = String::from_utf8(at_d.body).unwrap();
        assert!(!at_d.contains("kv_transfer_params"), "{at_d}");
        assert!(!at_d.contains("conversation_id"), "{at_d}");
    }
    clean(&rig);
}

#[test]
fn params_that_a_client_sends_never_arrive_anywhere() {
    let rig = talk_rig(|_| {});
    let more = r#","kv_transfer_params":{"do_remote_prefill":true,"mine":1},"conversation_id":"c""#;
    assert_eq!(rig.post(COMPLETIONS, &completion("x", more)).status, 200);
    for engine in [0, 1] {
        let leg = rig.posts(engine).pop().unwrap();
        assert!(!String::from_utf8(leg.body).unwrap().contains("mine"));
    }
    clean(&rig);
}

#[test]
fn params_are_shown_to_those_who_ask_for_it() {
    let rig = talk_rig(|config| config.multiturn.expose_kv_params = true);
    let mut talk = Talk::new("c");
    for stream in [true, false] {
        talk.stream = stream;
        let response = talk.say(rig.server.address, "x");
        assert!(
            response
                .text()
                .contains(r#""kv_transfer_params":{"do_remote_prefill":true"#)
        );
    }
    assert_eq!(conversations(&rig, "reused"), 1.0);
    clean(&rig);
}

/// Errors are the engines' own, and are nobody's turn.
#[test]
fn errors_keep_their_status_and_body() {
    let rig = rig_with("multiturn", engines(1, 1), |_| {});
    for (more, param) in [
        (
            r#","temperature":-1,"conversation_id":"c""#,
            json!("temperature"),
        ),
        (r#","model":"other","conversation_id":"c""#, json!("model")),
    ] {
        let response = rig.post(COMPLETIONS, &completion("x", more));
        assert!(
            (400..=404).contains(&response.status),
            "{}",
            response.text()
        );
        assert_eq!(response.json()["error"]["param"], param);
    }
    let p = good_prefill();
    let refusal = r#"{"error":{"message":"too long","code":400},"kv_transfer_params":{"x":1}}"#;
    let d = Scripted::start(move |_, _| Say::Bytes(answer("400 Bad Request", refusal)));
    let server = scripted(&d, &p);
    let sent = completion("x", r#","conversation_id":"c""#);
    let response = Client::connect(server.address).post(COMPLETIONS, &sent);
    assert_eq!((response.status, response.text().as_str()), (400, refusal));
}
