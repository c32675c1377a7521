//! `/v1/responses`: the media of its `input` are encoded as a chat's are, and prefill and decode find what was made of
//! them. What an engine must do alone is left to one.

use pdrelay::config::{Role, Surface};
use pdrelay::server::Server;
use pdsim::{EcMode, KvMode};
use serde_json::Value;

use super::{engines, epd};
use crate::handshakes::epd::v1;
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Response, aggregated, rig_with};

const RESPONSES: &str = "/v1/responses";

/// A response about these parts.
fn about(parts: &[&str], more: &str) -> String {
    format!(
        r#"{{"model":"dummy","instructions":"be brief","input":[{{"role":"user","content":[{},{{"type":"input_text","text":"what is it?"}}]}}]{more}}}"#,
        parts.join(",")
    )
}

fn image(url: &str) -> String {
    format!(r#"{{"type":"input_image","detail":"auto","image_url":"{url}"}}"#)
}

/// Of a stream, or of a whole answer.
fn text(response: &Response) -> String {
    let said = response.text();
    if response.header("content-type") == Some("application/json") {
        let json = response.json();
        return json["output"][0]["content"][0]["text"]
            .as_str()
            .unwrap()
            .into();
    }
    let data = said.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!(
        events.last().unwrap()["type"],
        "response.completed",
        "{said}"
    );
    events
        .iter()
        .filter_map(|event| event["delta"].as_str())
        .collect()
}

#[test]
fn images_are_encoded_and_found() {
    let single = aggregated(1);
    let (a, b) = (image("data:image/png;base64,AAAA"), image("http://h/b"));
    for surface in [Surface::Epd, Surface::Native] {
        let rig = epd(engines(2, 1, 1, EcMode::V2), |c| c.surface = surface);
        for (turn, stream) in [false, true].into_iter().enumerate() {
            let more = format!(r#","stream":{stream},"max_output_tokens":6"#);
            let sent = about(&[&a, &b], &more);
            let response = rig.post(RESPONSES, &sent);
            assert_eq!(response.status, 200, "{}", response.text());
            assert!(response.complete);
            assert_eq!(text(&response), text(&single.post(RESPONSES, &sent)));

            // Each encoder has one, in the words of a chat.
            for (engine, url) in ["data:image/png;base64,AAAA", "http://h/b"]
                .iter()
                .enumerate()
            {
                let leg = &rig.posts(engine)[turn];
                assert_eq!(leg.path, "/v1/chat/completions");
                assert_eq!(
                    String::from_utf8_lossy(&leg.body),
                    format!(
                        r#"{{"model":"dummy","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}}]}}],"stream":false}}"#
                    )
                );
            }
            // Its types have no place for a reference: media go on, with where their encodings are.
            let body =
                |engine: usize| String::from_utf8(rig.posts(engine)[turn].body.clone()).unwrap();
            let (at_p, at_d) = (body(2), body(3));
            assert!(at_d.starts_with(&sent[..sent.len() - 1]), "{at_d}");
            let input = |text: &str| serde_json::from_str::<Value>(text).unwrap()["input"].clone();
            assert_eq!(input(&at_p), input(&sent));
            for leg in [&at_p, &at_d] {
                let leg: Value = serde_json::from_str(leg).unwrap();
                let params = leg["ec_transfer_params"].as_object().unwrap();
                assert!(
                    params.len() == 2 && params.values().all(|one| one["peer_port"].is_number())
                );
            }
            let at_p: Value = serde_json::from_str(&at_p).unwrap();
            assert_eq!(at_p["max_output_tokens"], 1);
            assert_eq!(
                (&at_p["stream"], &at_p["store"]),
                (&false.into(), &false.into())
            );
            assert_eq!(at_p["kv_transfer_params"]["do_remote_decode"], true);
            assert_eq!(at_p.get("max_tokens"), None);
        }
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!((ledger.encoded, ledger.fetched, ledger.held_now), (4, 2, 0));
        assert_eq!(
            rig.sum(
                "pdrelay_requests_total",
                &["endpoint=\"responses\"", "code=\"200\""]
            ),
            2.0
        );
        // An engine's own words about what it does not take.
        let refused = rig.post(
            RESPONSES,
            &about(&[r#"{"type":"image_embeds","image_embeds":{}}"#], ""),
        );
        assert_eq!(refused.status, 400);
        assert!(
            refused.text().contains("image_embeds"),
            "{}",
            refused.text()
        );
    }
}

/// One engine for both; the first version; no KV that is handed over; text alone.
#[test]
fn all_arrangements_give_the_text_of_a_single_server() {
    let single = aggregated(1);
    let (a, b) = (image("http://h/a"), image("http://h/b"));
    let sent = about(&[&a, &b, &a], r#","max_output_tokens":5"#);
    let wanted = text(&single.post(RESPONSES, &sent));
    for (then, ec) in [
        ("aggregated", EcMode::V2),
        ("aggregated", EcMode::V1),
        ("sequential", EcMode::V2),
        ("nixl", EcMode::V1),
        ("multiturn", EcMode::V2),
    ] {
        let split = usize::from(then != "aggregated");
        let mut all = engines(2, split, split, ec);
        all.iter_mut()
            .filter(|_| then == "sequential")
            .for_each(|e| e.kv = KvMode::None);
        let rig = epd(all, |c| {
            c.epd.then = Some(then.into());
            if ec == EcMode::V1 {
                v1(c);
            }
        });
        let response = rig.post(RESPONSES, &sent);
        assert_eq!(response.status, 200, "{then}: {}", response.text());
        assert_eq!(text(&response), wanted, "{then}");
        for plain in [
            r#"{"input":"hello","max_output_tokens":5}"#,
            r#"{"input":[{"role":"user","content":"hello"}],"max_output_tokens":5}"#,
        ] {
            assert_eq!(
                text(&rig.post(RESPONSES, plain)),
                text(&single.post(RESPONSES, plain))
            );
        }
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new(), "{then}");
        assert_eq!(ledger.encoded, 3, "{then}");
    }
}

/// What tools have given back is looked at; an image that only a file's id names is the engine's to find.
#[test]
fn only_what_can_be_encoded_is_sent_to_encoders() {
    let encoder = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    let one = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"from":"pd"}"#)));
    let config = crate::support::config(
        "epd",
        &[Role::Encode, Role::Aggregated],
        &[encoder.address, one.address],
    );
    let server = Server::start(config).unwrap();
    let post = |body: &str| Client::connect(server.address).post(RESPONSES, body);
    let sound = r#"{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}"#;
    let sent = format!(
        r#"{{"input":[{{"type":"function_call_output","call_id":"c","output":[{}]}},{{"role":"user","content":[{sound},{},{}]}},
            {{"type":"reasoning","summary":[{}]}}]}}"#,
        image("http://h/tool"),
        r#"{"type":"input_image","file_id":"file-1"}"#,
        r#"{"type":"input_file","file_url":"http://h/x.pdf"}"#,
        image("http://h/no-content")
    );
    assert_eq!(post(&sent).text(), r#"{"from":"pd"}"#);
    let mut items: Vec<String> = encoder.bodies();
    items.sort();
    let item = |body: &str| {
        let value: Value = serde_json::from_str(body).unwrap();
        value["messages"][0]["content"].to_string()
    };
    let items: Vec<String> = items.iter().map(|body| item(body)).collect();
    assert_eq!(
        items,
        [
            r#"[{"image_url":{"url":"http://h/tool"},"type":"image_url"}]"#.to_owned(),
            r#"[{"input_audio":{"data":"UklGRg==","format":"wav"},"type":"input_audio"}]"#
                .to_owned(),
        ]
    );
    assert_eq!(one.bodies(), [sent]);
}

/// A stored response is where it was made, work behind the client's back too, and an engine's own tools would spend
/// P's KV once per round.
#[test]
fn what_one_engine_must_do_alone_is_given_to_one() {
    let encoder = Scripted::start(|_, _| {
        Say::Bytes(answer("200 OK", r#"{"ec_transfer_params":{"x":{"a":1}}}"#))
    });
    let says = |body: &'static str| Scripted::start(move |_, _| Say::Bytes(answer("200 OK", body)));
    let (p, d) = (
        says(r#"{"kv_transfer_params":{"a":1}}"#),
        says(r#"{"from":"d"}"#),
    );
    let roles = [Role::Encode, Role::Prefill, Role::Decode];
    let mut config =
        crate::support::config("epd", &roles, &[encoder.address, p.address, d.address]);
    config.surface = Surface::Epd;
    let server = Server::start(config).unwrap();
    for (more, asked) in [
        (r#","previous_response_id":"resp_1""#, 0),
        (r#","background":true"#, 0),
        (
            r#","tools":[{"type":"function","name":"f"},{"type":"code_interpreter"}]"#,
            0,
        ),
        (
            r#","previous_response_id":null,"background":false,"tools":[{"type":"function","name":"f"}]"#,
            1,
        ),
        ("", 2),
    ] {
        let sent = about(
            &[&image("http://h/a")],
            &format!(r#"{more},"kv_transfer_params":{{"mine":1}}"#),
        );
        let response = Client::connect(server.address).post(RESPONSES, &sent);
        assert_eq!(response.text(), r#"{"from":"d"}"#);
        assert_eq!(p.bodies().len(), asked, "{more}");
        let at_d = d.bodies().pop().unwrap();
        assert!(
            at_d.contains(r#""ec_transfer_params":{"x":{"a":1}}"#),
            "{at_d}"
        );
        assert!(!at_d.contains("mine"), "{at_d}");
        assert_eq!(at_d.contains("kv_transfer_params"), asked > 0, "{at_d}");
    }
    assert_eq!(encoder.bodies().len(), 5);
    // Other methods and deeper paths are an engine's, as ever.
    let mut client = Client::connect(server.address);
    assert_eq!(client.get(RESPONSES).status, 405);
}

/// Only encoders change what a response is: behind other handshakes it goes to one engine as it is.
#[test]
fn without_encoders_nothing_is_different() {
    let rig = rig_with("nixl", crate::support::engines(1, 1), |_| {});
    let response = rig.post(RESPONSES, r#"{"input":"hello","max_output_tokens":2}"#);
    assert_eq!(response.status, 200);
    assert_eq!((rig.posts(0).len(), rig.posts(1).len()), (1, 0));
    // A request is counted when its answer is out.
    crate::support::eventually("it is counted", || {
        let labels = ["endpoint=\"forward\"", "code=\"200\""];
        rig.sum("pdrelay_requests_total", &labels) == 1.0
    });
}
