//! Encoder disaggregation: what a real engine rejects is rejected, and what no proxy should do is noted.

use std::net::SocketAddr;

use pdsim::{EcMode, EngineOptions, Options, Role, Sim};
use serde_json::{Value, json};

use crate::client::*;

const CHAT: &str = "/v1/chat/completions";

/// An encoder, and an engine that does the rest.
fn pair(ec: EcMode, change: impl Fn(&mut EngineOptions)) -> (Sim, SocketAddr, SocketAddr) {
    let mut engines = vec![
        EngineOptions::new(Role::Encode),
        EngineOptions::new(Role::Both),
    ];
    for engine in &mut engines {
        engine.ec = ec;
        change(engine);
    }
    let sim = Sim::start(Options {
        engines,
        ..Options::default()
    })
    .unwrap();
    let (e, d) = (sim.addresses()[0], sim.addresses()[1]);
    (sim, e, d)
}

fn image(url: &str, uuid: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}, "uuid": uuid})
}

fn chat(parts: Value, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": parts}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn refused(at: SocketAddr, body: &Value, words: &str) {
    let answer = call(at, CHAT, body);
    assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    assert!(answer.text().contains(words), "{body}: {}", answer.text());
}

#[test]
fn an_encoder_takes_media_and_nothing_else() {
    let (sim, e, _) = pair(EcMode::V2, |_| {});
    let a = image("http://h/a", "a");
    refused(e, &chat(json!("hi"), json!({})), "in it media");
    refused(e, &chat(json!([a]), json!({"max_tokens": 1})), "max_tokens");
    refused(
        e,
        &chat(json!([a]), json!({"stream": true})),
        "does not stream",
    );
    let audio = json!({"type": "audio_url", "audio_url": {"url": "http://h/s"}});
    refused(e, &chat(json!([a, audio]), json!({})), "only images");
    let embeds = json!({"type": "image_embeds", "image_embeds": {}, "uuid": "a"});
    refused(e, &chat(json!([embeds]), json!({})), "in it media");
    assert_eq!(sim.ledger().violations, Vec::<String>::new());
    call(e, CHAT, &chat(json!([a]), json!({"temperature": 0})));
    assert_eq!(sim.ledger().violation_count, 1);
    let (_sim, e, _) = pair(EcMode::V1, |_| {});
    refused(e, &chat(json!([a]), json!({})), "max_tokens must be 1");
    assert_eq!(
        call(e, CHAT, &chat(json!([a]), json!({"max_tokens": 1}))).status,
        200
    );
    let (_sim, e, _) = pair(EcMode::V2, |engine| engine.images_max = 1);
    refused(e, &chat(json!([a, a]), json!({})), "At most 1 image(s)");
}

#[test]
fn references_are_to_what_was_encoded() {
    let (sim, e, d) = pair(EcMode::V2, |_| {});
    let answer = call(
        e,
        CHAT,
        &chat(
            json!([image("http://h/a", "a"), image("http://h/b", "b")]),
            json!({}),
        ),
    )
    .json();
    let params = answer["ec_transfer_params"].clone();
    assert_eq!(params["b"]["item_indices"], json!([1]));
    let flat =
        |name: &str| json!({"image_grid_thw": params[name]["metadata"]["image_grid_thw"][0]});
    let reference = |name: &str, uuid: Value| json!({"type": "image_embeds", "image_embeds": flat(name), "uuid": uuid});
    let whole = json!({"ec_transfer_params": params});
    let good = call(
        d,
        CHAT,
        &chat(json!([reference("a", json!("a"))]), whole.clone()),
    );
    assert_eq!(good.status, 200, "{}", good.text());
    // It stands for the medium: the text is the same.
    let raw = call(d, CHAT, &chat(json!([image("http://h/a", "a")]), json!({})));
    assert_eq!(
        good.json()["choices"][0]["message"],
        raw.json()["choices"][0]["message"]
    );
    refused(
        d,
        &chat(json!([reference("a", Value::Null)]), whole.clone()),
        "need a uuid",
    );
    refused(
        d,
        &chat(json!([reference("a", json!("x"))]), whole.clone()),
        "no encoding is known",
    );
    refused(
        d,
        &chat(json!([reference("a", json!("b"))]), whole.clone()),
        "other metadata",
    );
    refused(
        d,
        &chat(json!([reference("a", json!("a"))]), json!({})),
        "does not say where",
    );
    let mut moved = params.clone();
    moved["a"]["peer_port"] = json!(1);
    refused(
        d,
        &chat(
            json!([reference("a", json!("a"))]),
            json!({"ec_transfer_params": moved}),
        ),
        "does not say where",
    );
    assert_eq!(sim.ledger().violations, Vec::<String>::new());
    call(
        d,
        CHAT,
        &chat(json!([image("http://h/new", "new")]), json!({})),
    );
    assert_eq!(sim.ledger().violation_count, 1);
    assert_eq!((sim.ledger().encoded, sim.ledger().embedded), (2, 1));
}

#[test]
fn transfers_are_begun_once_and_used_once() {
    let (sim, e, d) = pair(EcMode::V2, |engine| {
        engine.ec_addresses = vec!["h:1".into(), "h:2".into()]
    });
    let id = "0123456789abcdef0123456789abcdef";
    let push = |id: &str| json!({"ec_transfer_params": {"consumer_zmq": "h:2", "ec_items": [{"transfer_id": id}]}});
    let parts = json!([image("http://h/a", "a")]);
    refused(e, &chat(parts.clone(), push("short")), "32 hexadecimal");
    refused(
        e,
        &chat(
            parts.clone(),
            json!({"ec_transfer_params": {"ec_items": []}}),
        ),
        "consumer_zmq",
    );
    let none = json!({"ec_transfer_params": {"consumer_zmq": "h:2", "ec_items": []}});
    refused(e, &chat(parts.clone(), none), "does not match");
    let mut params =
        call(e, CHAT, &chat(parts.clone(), push(id))).json()["ec_transfer_params"].clone();
    refused(e, &chat(parts, push(id)), "used once");
    let grid = params["a"]["metadata"]["image_grid_thw"][0].clone();
    let reference =
        json!([{"type": "image_embeds", "image_embeds": {"image_grid_thw": grid}, "uuid": "a"}]);
    let ask = |params: &Value, rank: &str| {
        let body = chat(reference.clone(), json!({"ec_transfer_params": params}));
        let rank = format!("x-data-parallel-rank: {rank}");
        let mut client = Client::new(d);
        client.call(CHAT, &body, &[&rank]).expect("an answer")
    };
    let without = ask(&params, "1");
    assert!(
        without.text().contains("without a transfer"),
        "{}",
        without.text()
    );
    params["ec_items"] = json!([{"mm_hash": "a", "transfer_id": id}]);
    assert!(ask(&params, "0").text().contains("another consumer"));
    assert!(ask(&params, "7").text().contains("no rank 7"));
    let good = ask(&params, "1");
    assert_eq!(good.status, 200, "{}", good.text());
    assert!(ask(&params, "1").text().contains("used before"));
    assert_eq!(sim.ledger().transferred, 1);
}

/// What llm-d's sidecar asks of encoders: the client's request, one item, one token.
#[test]
fn a_sidecar_s_encoders_never_take_what_is_not_one_item_of_a_request() {
    let more = json!({"max_tokens": 1, "stream": false, "temperature": 0.5, "user": "u"});
    for ec in [EcMode::Example, EcMode::Nixl] {
        let (sim, e, d) = pair(ec, |_| {});
        let item = image("http://h/a", "a");
        let answer = call(e, CHAT, &chat(json!([item]), more.clone()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(sim.ledger().violations, Vec::<String>::new());
        refused(
            e,
            &chat(json!([item, item]), more.clone()),
            "takes one item",
        );
        refused(e, &chat(json!([item]), json!({})), "max_tokens must be 1");
        let mut kv = chat(json!([item]), more.clone());
        kv["kv_transfer_params"] = json!({"do_remote_decode": true});
        refused(e, &kv, "transfers no KV");
        // The others get the media as they were; where encoders report, what they have reported.
        let reported = answer.json()["ec_transfer_params"].clone();
        assert_eq!(reported.is_object(), ec == EcMode::Nixl);
        let both = json!([{"type": "text", "text": "see"}, item]);
        let told = chat(both.clone(), json!({"ec_transfer_params": reported}));
        assert_eq!(call(d, CHAT, &told).status, 200);
        assert_eq!(sim.ledger().violation_count, 0);
        assert_eq!(sim.ledger().embedded, u64::from(ec == EcMode::Nixl));
        call(d, CHAT, &chat(both, json!({})));
        assert_eq!(sim.ledger().violation_count, u64::from(ec == EcMode::Nixl));
        let before = sim.ledger().violation_count;
        let other = json!([image("http://h/b", "b")]);
        call(d, CHAT, &chat(other, json!({})));
        assert_eq!(sim.ledger().violation_count, before + 1);
    }
}

/// `/v1/responses` has types of its own: a name is dropped, and there is no place for a reference.
#[test]
fn responses_never_take_what_their_types_do_not_name() {
    const RESPONSES: &str = "/v1/responses";
    let (sim, e, d) = pair(EcMode::V2, |_| {});
    let asked = |part: Value| {
        let content = json!([part, {"type": "input_text", "text": "look"}]);
        call(
            d,
            RESPONSES,
            &json!({"input": [{"role": "user", "content": content}], "max_output_tokens": 3}),
        )
    };
    for (part, kind) in [
        (
            json!({"type": "image_embeds", "image_embeds": {}, "uuid": "a"}),
            "image_embeds",
        ),
        (image("http://h/a", "a"), "image_url"),
        (
            json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}),
            "input_audio",
        ),
    ] {
        let answer = asked(part);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(kind), "{}", answer.text());
    }
    for (body, status) in [
        (json!({"model": "x"}), 400),
        (json!({"input": 7}), 400),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            400,
        ),
        (
            json!({"input": "hi", "previous_response_id": "resp_1"}),
            404,
        ),
        (json!({"input": "hi", "max_output_tokens": 0}), 400),
        (json!({"input": "hi"}), 200),
    ] {
        assert_eq!(call(d, RESPONSES, &body).status, status, "{body}");
    }
    // An encoder that was given a name has encoded something else than what is looked for without one.
    let named = json!({"type": "input_image", "image_url": "http://h/a", "uuid": "mine"});
    for (uuid, violations) in [(Some("mine"), 1), (None, 1)] {
        let mut item = image("http://h/a", "");
        match uuid {
            Some(uuid) => item["uuid"] = json!(uuid),
            None => _ = item.as_object_mut().unwrap().remove("uuid"),
        }
        assert_eq!(
            call(e, CHAT, &chat(json!([item]), json!({"stream": false}))).status,
            200
        );
        assert_eq!(asked(named.clone()).status, 200);
        assert_eq!(sim.ledger().violations.len(), violations, "{uuid:?}");
    }
}
