//! `lmcache`: what each leg is asked, per variant and path, and that the client's answer is one.

use pdrelay::config::lmcache::{Chat, Variant};
use pdsim::{expected, prompt_hash, tokenize};
use serde_json::Value;

use super::{CHAT, body};
use crate::support::lmcache::{engines, rig, rig_with};
use crate::support::{Response, Rig, completion, post_bytes};

const TEXT: &str = "a prompt that is longer than a block of sixteen tokens, by far";

fn ids(text: &str) -> String {
    let ids: Vec<String> = tokenize(text.as_bytes())
        .iter()
        .map(u32::to_string)
        .collect();
    // As the simulator writes them: what an engine says of tokens is passed on as it is.
    ids.join(", ")
}

/// P's first token for this prompt, as a single engine would make it.
fn first_of(rig: &Rig, p: usize) -> u64 {
    let d = rig.posts(p + 1).pop().unwrap();
    let sent: Value = serde_json::from_slice(&d.body).unwrap();
    sent["prompt"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_u64()
        .unwrap()
}

fn events(response: &Response) -> Vec<Value> {
    let all = response.events();
    assert_eq!(
        all.last().map(String::as_str),
        Some("[DONE]"),
        "{}",
        response.text()
    );
    all[..all.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect()
}

fn sound(rig: &Rig) {
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.pushes, ledger.loaded, ledger.recomputed), (1, 1, 0));
}

#[test]
fn a_completion_goes_on_from_prefills_token() {
    let rig = rig(1, 1, 2);
    let more = r#","max_tokens":5,"stream":true,"stream_options":{"include_usage":true},"seed":7"#;
    let mut client = rig.client();
    client.send(post_bytes(
        "/v1/completions",
        &completion(TEXT, more),
        "x-request-id: abc\r\n",
    ));
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(
        response
            .header("content-type")
            .unwrap()
            .starts_with("text/event-stream")
    );
    let legs: Vec<_> = [rig.posts(0), rig.posts(1)].concat();
    let (tokenized, asked): (Vec<_>, Vec<_>) = legs.iter().partition(|l| l.path == "/tokenize");
    assert_eq!(tokenized.len(), 1);
    assert_eq!(body(tokenized[0]), format!(r#"{{"prompt":"{TEXT}"}}"#));

    let (p, d) = (asked[0], asked[1]);
    assert_eq!((&*p.path, &*d.path), ("/v1/completions", "/v1/completions"));
    let ticket = body(p)
        .split(r#""req_id":""#)
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert_eq!(ticket.split('-').count(), 3, "{ticket}");
    assert_eq!(
        body(p),
        format!(
            r#"{{"model":"dummy","prompt":[{}],"max_tokens":1,"stream":false,"seed":7,"kv_transfer_params":{{"ret_first_tok":true,"disagg_spec":{{"req_id":"{ticket}","receiver_host":"127.0.0.1","receiver_init_port":[20000,20001],"receiver_alloc_port":[20050,20051]}}}}}}"#,
            ids(TEXT)
        )
    );
    let first = first_of(&rig, 0);
    assert_eq!(
        body(d),
        format!(
            r#"{{"model":"dummy","prompt":[{},{first}],"max_tokens":4,"stream":true,"stream_options":{{"include_usage":true}},"seed":7}}"#,
            ids(TEXT)
        )
    );
    for leg in [p, d] {
        assert_eq!(leg.header("x-request-id"), Some("abc"));
    }

    // One answer: P's token first, one id, and a usage that counts it as made.
    assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 5));
    let events = events(&response);
    assert_eq!(
        events[0]["choices"][0]["text"],
        expected(prompt_hash(TEXT), 0, 1)
    );
    assert!(
        events
            .iter()
            .all(|e| e["id"] == events[0]["id"] && e["object"] == "text_completion")
    );
    let usage = &events.last().unwrap()["usage"];
    let prompt = tokenize(TEXT.as_bytes()).len();
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["completion_tokens"], 5);
    assert_eq!(usage["total_tokens"], prompt + 5);
    sound(&rig);
    assert_eq!(
        rig.metric(r#"pdrelay_notice_waits_total{outcome="arrived"}"#),
        1.0
    );
    assert_eq!(
        rig.sum("pdrelay_notices_total", &[r#"kind="counted""#]),
        2.0
    );
}

#[test]
fn an_answer_that_is_no_stream_is_one_object() {
    let rig = rig(1, 1, 1);
    let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":6"#));
    assert_eq!(response.header("content-type"), Some("application/json"));
    let answer = response.json();
    assert_eq!(
        answer["choices"][0]["text"],
        expected(prompt_hash(TEXT), 0, 6)
    );
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        tokenize(TEXT.as_bytes()).len()
    );
    assert!(answer.get("kv_transfer_params").is_none());
    sound(&rig);
}

#[test]
fn no_limit_and_a_limit_of_one_are_what_the_client_meant() {
    let rig = rig(1, 1, 1);
    let answer = rig.post("/v1/completions", &completion(TEXT, "")).json();
    assert_eq!(
        answer["choices"][0]["text"],
        expected(prompt_hash(TEXT), 0, 16)
    );
    sound(&rig);
    let before = rig
        .posts(1)
        .iter()
        .filter(|l| l.path != "/tokenize")
        .count();
    for stream in ["", r#","stream":true"#] {
        let sent = completion(TEXT, &format!(r#","max_tokens":1{stream}"#));
        let response = rig.post("/v1/completions", &sent);
        assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 1));
        assert!(
            response.text().contains(r#""finish_reason":"length""#),
            "{}",
            response.text()
        );
        assert!(!response.text().contains("first_tok"));
    }
    // So does a prompt that ends on its first token.
    let ends = format!("[[eos@1]] {TEXT}");
    let response = rig.post(
        "/v1/completions",
        &completion(&ends, r#","max_tokens":5,"stream":true"#),
    );
    assert!(
        response.text().contains(r#""finish_reason":"stop""#),
        "{}",
        response.text()
    );
    let after = rig
        .posts(1)
        .iter()
        .filter(|l| l.path != "/tokenize")
        .count();
    assert_eq!(before, after, "decode is not asked");
}

#[test]
fn tokens_are_not_tokenized_again() {
    let rig = rig(1, 1, 1);
    let sent = format!(
        r#"{{"prompt":[ {} ],"max_tokens":3}}"#,
        ids(TEXT).replace(',', " , ")
    );
    let answer = rig.post("/v1/completions", &sent).json();
    assert_eq!(
        answer["choices"][0]["text"],
        expected(prompt_hash(TEXT), 0, 3)
    );
    assert!(
        rig.posts(0)
            .iter()
            .chain(&rig.posts(1))
            .all(|l| l.path != "/tokenize")
    );
    sound(&rig);
}

/// Several choices, logprobs and the like need D's own first token: it gets what the client sent.
#[test]
fn what_needs_decodes_own_first_token_goes_to_both_as_it_is() {
    for more in [
        r#","n":2,"max_tokens":4"#,
        r#","logprobs":2,"max_tokens":4"#,
        r#","response_format":{"type":"json_object"},"max_tokens":4"#,
        r#","presence_penalty":1.5,"max_tokens":4,"stream":true"#,
    ] {
        let rig = rig(1, 1, 1);
        let single = crate::support::lmcache::single();
        let sent = completion(TEXT, more);
        let (response, alone) = (
            rig.post("/v1/completions", &sent),
            single.post("/v1/completions", &sent),
        );
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.generated(), alone.generated());
        assert_eq!(body(&rig.posts(1)[0]), sent);
        assert!(!body(&rig.posts(0)[0]).contains("ret_first_tok"));
        assert!(body(&rig.posts(0)[0]).contains("disagg_spec"));
        sound(&rig);
    }
}

#[test]
fn a_batch_goes_to_decode_alone() {
    let rig = rig(1, 1, 1);
    let sent = r#"{"prompt":["one and one","two and two"],"max_tokens":3}"#;
    let answer = rig.post("/v1/completions", sent).json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!((rig.posts(0).len(), body(&rig.posts(1)[0])), (0, sent));
    assert_eq!(
        rig.metric(r#"pdrelay_prefill_skipped_total{reason="batch"}"#),
        1.0
    );
}

#[test]
fn a_chat_takes_the_engines_own_path_with_all_that_is_in_it() {
    // It is a short one.
    let mut engines = engines(1, 1, 1);
    engines[0].lmcache.block = 0;
    let rig = rig_with(engines, |config| config.lmcache.short_prompt = 0);
    let mut client = rig.client();
    client.send(post_bytes("/v1/chat/completions", CHAT, ""));
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());
    let (p, d) = (rig.posts(0), rig.posts(1));
    assert_eq!((p.len(), d.len()), (1, 1));
    assert_eq!(
        (&*p[0].path, &*d[0].path),
        ("/v1/chat/completions", "/v1/chat/completions")
    );
    assert_eq!(body(&d[0]), CHAT);
    let start = r#","kv_transfer_params":{"disagg_spec":{"req_id":""#;
    assert!(body(&p[0]).contains(start), "{}", body(&p[0]));
    assert!(body(&p[0]).contains(r#""tools":[{"type":"function""#));
    let single = crate::support::lmcache::single();
    let alone = single.post("/v1/chat/completions", CHAT);
    assert_eq!(response.generated(), alone.generated());
    sound(&rig);
}

const ASKED: &str = "what is it that is longer than sixteen tokens of three bytes?";

fn chat(more: &str) -> String {
    crate::support::chat(ASKED, more)
}

/// The text of a chat's template, which a completion of its tokens is about.
fn rendered() -> u64 {
    prompt_hash(&format!("<|user|>{ASKED}"))
}

#[test]
fn a_chat_told_by_way_of_completions_is_a_chat() {
    // By configuration, or because the engines have no other path.
    for by_config in [true, false] {
        let mut engines = engines(1, 1, 1);
        engines.iter_mut().for_each(|e| e.lmcache.chat = by_config);
        let rig = rig_with(engines, |config| {
            if by_config {
                config.lmcache.chat = Chat::Completions;
            }
        });
        let more =
            r#","max_completion_tokens":5,"stream":true,"stream_options":{"include_usage":true}"#;
        let response = rig.post("/v1/chat/completions", &chat(more));
        assert_eq!(response.status, 200, "{}", response.text());
        let events = events(&response);
        assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
        assert!(events[0]["id"].as_str().unwrap().starts_with("chatcmpl-"));
        for event in &events {
            assert_eq!(event["object"], "chat.completion.chunk");
            assert_eq!(event["id"], events[0]["id"]);
            assert_eq!(event["model"], "dummy");
        }
        assert_eq!(response.generated(), expected(rendered(), 0, 5));
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 5);
        let d = rig.posts(1).pop().unwrap();
        assert_eq!(d.path, "/v1/completions");
        assert!(
            body(&d).contains(r#""max_tokens":4"#) && !body(&d).contains("messages"),
            "{}",
            body(&d)
        );
        sound(&rig);

        let answer = rig
            .post("/v1/chat/completions", &chat(r#","max_tokens":4"#))
            .json();
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
        assert_eq!(
            answer["choices"][0]["message"]["content"],
            expected(rendered(), 0, 4)
        );
        assert_eq!(answer["usage"]["completion_tokens"], 4);
        // Two choices: both D's.
        let answer = rig
            .post("/v1/chat/completions", &chat(r#","max_tokens":4,"n":2"#))
            .json();
        for (i, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(choice["index"], i);
            assert_eq!(
                choice["message"]["content"],
                expected(rendered(), i as u32, 4)
            );
        }
    }
}

/// Tools would silently be lost: a clear error, and what to do.
#[test]
fn a_chat_that_completions_cannot_carry_is_refused() {
    let rig = rig_with(engines(1, 1, 1), |config| {
        config.lmcache.chat = Chat::Completions
    });
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    for (more, what) in [(tools, "tools"), (r#","logprobs":true"#, "logprobs")] {
        let response = rig.post("/v1/chat/completions", &chat(more));
        assert_eq!(response.status, 400);
        let message = response.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            message.contains(what) && message.contains("lmcache.chat: native"),
            "{message}"
        );
    }
    assert_eq!(rig.posts(0).len() + rig.posts(1).len(), 0);
}

#[test]
fn a_rendered_chat_is_prefilled_as_tokens_and_decoded_as_a_chat() {
    let rig = rig_with(engines(1, 1, 1), |config| {
        config.lmcache.chat = Chat::Render
    });
    let tools =
        r#","max_tokens":4,"tools":[{"type":"function","function":{"name":"f"}}],"logprobs":true"#;
    let response = rig.post("/v1/chat/completions", &chat(tools));
    assert_eq!(response.status, 200, "{}", response.text());
    let p = rig.posts(0);
    assert_eq!(
        (&*p[0].path, &*p[1].path),
        ("/v1/chat/completions/render", "/v1/completions")
    );
    assert_eq!(body(&p[0]), chat(tools));
    let prompt = ids(&format!("<|user|>{ASKED}"));
    let start =
        format!(r#"{{"model":"dummy","prompt":[{prompt}],"kv_transfer_params":{{"disagg_spec":"#);
    assert!(body(&p[1]).starts_with(&start), "{}", body(&p[1]));
    assert_eq!(body(&rig.posts(1)[0]), chat(tools));
    sound(&rig);
}

#[test]
fn the_older_variants_need_no_notices() {
    for variant in [Variant::FirstToken, Variant::Plain] {
        let mut engines = engines(1, 1, 1);
        engines[0].lmcache.producer = false;
        let rig = rig_with(engines, |config| {
            config.lmcache.variant = variant;
            config.lmcache.receivers.clear();
        });
        assert!(rig.server.notices().is_none());
        let response = rig.post(
            "/v1/completions",
            &completion(TEXT, r#","max_tokens":5,"stream":true"#),
        );
        assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 5));
        let p = rig
            .posts(0)
            .into_iter()
            .rfind(|l| l.path == "/v1/completions")
            .unwrap();
        let d = rig.posts(1).pop().unwrap();
        match variant {
            Variant::FirstToken => {
                assert!(
                    body(&p).ends_with(r#","kv_transfer_params":{"ret_first_tok":true}}"#),
                    "{}",
                    body(&p)
                );
                assert!(body(&d).contains(r#""max_tokens":4"#));
            }
            _ => {
                assert!(
                    !body(&p).contains("kv_transfer_params")
                        && body(&p).contains(r#""max_tokens":1"#)
                );
                assert_eq!(
                    body(&d),
                    completion(TEXT, r#","max_tokens":5,"stream":true"#)
                );
            }
        }
        let response = rig.post("/v1/chat/completions", &chat(r#","max_tokens":3"#));
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    }
}

#[test]
fn decode_is_told_the_hand_over_if_asked_for() {
    let rig = rig_with(engines(1, 1, 1), |config| config.lmcache.handoff_id = true);
    rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":3"#));
    let ticket = body(&rig.posts(0).pop().unwrap())
        .split(r#""req_id":""#)
        .nth(1)
        .unwrap()
        .to_owned();
    let ticket = ticket.split('"').next().unwrap();
    let d = rig.posts(1).pop().unwrap();
    let told = format!(r#""kv_transfer_params":{{"lmcache.pd_handoff_id":"{ticket}"}}"#);
    assert!(body(&d).contains(&told), "{}", body(&d));
    sound(&rig);
}

/// `epd`, then this: media to the encoders first.
#[test]
fn encoders_may_come_before_it() {
    let mut engines = super::epd::engines(1, 1, 1, pdsim::EcMode::V2);
    for (engine, of_role) in engines[1..]
        .iter_mut()
        .zip(crate::support::lmcache::engines(1, 1, 1))
    {
        (engine.kv, engine.lmcache) = (of_role.kv, of_role.lmcache);
    }
    let rig = rig_with(engines, |config| {
        config.handshake = "epd".into();
        config.surface = pdrelay::config::Surface::Epd;
        config.epd.then = Some("lmcache".into());
    });
    let image = super::epd::url("http://h/a");
    let sent = super::epd::with_media(&[&image], r#","max_tokens":5"#);
    let alone = crate::support::lmcache::single().post("/v1/chat/completions", &sent);
    let response = rig.post("/v1/chat/completions", &sent);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.generated(), alone.generated());
    assert_eq!(rig.posts(0).len(), 1, "the encoder is asked");
    sound(&rig);
}
