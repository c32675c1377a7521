//! What goes wrong at an encoder, or behind it, reaches the client with its own status: never a 500 for all,
//! and never a 200 that ends in the middle.

use std::time::Duration;

use pdsim::{EcMode, Fault};

use super::{CHAT, engines, epd, url, with_media};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Response, Rig};

fn detail(response: &Response) -> String {
    response.json()["detail"]
        .as_str()
        .expect("a detail")
        .to_owned()
}

/// One image for each of the encoders, and a stream as the answer.
fn ask(rig: &Rig, images: usize) -> Response {
    let parts: Vec<String> = (0..images).map(|i| url(&format!("http://h/{i}"))).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    rig.post(
        CHAT,
        &with_media(&parts, r#","stream":true,"max_tokens":3"#),
    )
}

#[test]
fn an_encoder_s_refusal_keeps_its_status() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |_| {});
    for status in [400, 404, 413, 429, 500, 503] {
        rig.sim.set_fault(0, Some(Fault::Status(status)));
        let before = rig.posts(0).len();
        let response = ask(&rig, 1);
        assert_eq!(response.status, status, "{}", response.text());
        let said = detail(&response);
        assert!(
            said.starts_with(r#"Encoder request failed: {"error":{"message":"#),
            "{said}"
        );
        // It is not asked the same again, and nobody else is asked at all.
        assert_eq!(rig.posts(0).len(), before + 1);
    }
    assert_eq!((rig.posts(1).len(), rig.posts(2).len()), (0, 0));
    rig.sim.set_fault(0, None);
    assert_eq!(ask(&rig, 1).status, 200);
}

/// On pdrelay's own face an engine's error arrives as it is.
#[test]
fn an_encoder_s_refusal_is_its_own_on_our_face() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |c| {
        c.surface = pdrelay::config::Surface::Native
    });
    rig.sim.set_fault(0, Some(Fault::Status(429)));
    let response = ask(&rig, 1);
    assert_eq!(response.status, 429);
    assert_eq!(response.json()["error"]["code"], 429);
}

#[test]
fn all_encoders_are_awaited_and_the_first_item_s_failure_counts() {
    let slow = Scripted::start(|_, _| {
        let pause = Duration::from_millis(150);
        Say::Slowly(
            vec![Vec::new(), answer("503 Service Unavailable", "first")],
            pause,
        )
    });
    let quick = Scripted::start(|_, _| Say::Bytes(answer("400 Bad Request", "second")));
    let behind = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    use pdrelay::config::{Role, Surface};
    let roles = [Role::Encode, Role::Encode, Role::Aggregated];
    let addresses = [slow.address, quick.address, behind.address];
    let mut config = crate::support::config("epd", &roles, &addresses);
    config.surface = Surface::Epd;
    let server = pdrelay::server::Server::start(config).unwrap();
    let parts = [url("http://h/a"), url("http://h/b")];
    let sent = with_media(&[&parts[0], &parts[1]], "");
    let response = crate::support::Client::connect(server.address).post(CHAT, &sent);
    assert_eq!(
        (response.status, &*detail(&response)),
        (503, "Encoder request failed: first")
    );
    assert_eq!(quick.requests().len(), 1);
    assert_eq!(behind.requests().len(), 0);
}

#[test]
fn a_dead_encoder_never_costs_a_request() {
    let rig = epd(engines(3, 1, 1, EcMode::V2), |_| {});
    rig.sim.kill(1);
    for _ in 0..6 {
        let response = ask(&rig, 3);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.complete);
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    assert_eq!(rig.sim.ledger().encoded, 18);
    for engine in [0, 2] {
        rig.sim.kill(engine);
    }
    let response = ask(&rig, 1);
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(
        detail(&response).contains("encode instances can be reached"),
        "{}",
        response.text()
    );
    assert!(response.header("retry-after").is_some());
    // What has no media needs none of them.
    assert_eq!(rig.post(CHAT, &crate::support::chat("hi", "")).status, 200);
}

/// An encoder that answers with these bytes, before one engine that says `{}`.
fn odd(answers: &'static str, then: &str) -> (Response, Vec<String>) {
    let encoder = Scripted::start(move |_, _| match answers.strip_prefix("cut ") {
        Some(body) => {
            Say::Close(format!("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{body}").into())
        }
        None => Say::Bytes(answer("200 OK", answers)),
    });
    let behind = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    use pdrelay::config::{Role, Surface};
    let roles = [Role::Encode, Role::Aggregated];
    let mut config = crate::support::config("epd", &roles, &[encoder.address, behind.address]);
    config.surface = Surface::Epd;
    config.retry.enabled = false;
    let server = pdrelay::server::Server::start(config).unwrap();
    let parts = [url("http://h/a"), url("http://h/b")];
    let sent = with_media(&[&parts[0], &parts[1]], then);
    let response = crate::support::Client::connect(server.address).post(CHAT, &sent);
    (response, behind.bodies())
}

#[test]
fn what_an_encoder_reports_wrongly_is_told() {
    for (params, said) in [
        (
            r#"{"x":{"item_indices":[2]}}"#,
            "Invalid encoder item index",
        ),
        (
            r#"{"x":{"item_indices":["0"]}}"#,
            "Invalid encoder item index",
        ),
        (
            r#"{"x":{"item_indices":[0,0]}}"#,
            "Duplicate encoder item index",
        ),
        (
            r#"{"x":{"metadata":{}},"y":{}}"#,
            "Encoder metadata cannot be matched",
        ),
        (
            r#"{"x":{"item_indices":[0]}}"#,
            "Encoder metadata cannot be matched",
        ),
    ] {
        let body = format!(r#"{{"ec_transfer_params":{params}}}"#);
        let (response, behind) = odd(body.leak(), "");
        assert_eq!((response.status, &*detail(&response)), (502, said));
        assert_eq!(behind.len(), 0);
    }
    let (response, _) = odd("cut {", "");
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(
        detail(&response).starts_with("Encoder request failed: "),
        "{}",
        response.text()
    );
}

/// Nothing to go by: the items go on, under their names.
#[test]
fn an_encoder_that_says_nothing_useful_is_no_failure() {
    for answers in [
        "not json",
        "",
        "[]",
        "{}",
        r#"{"ec_transfer_params":null}"#,
        r#"{"ec_transfer_params":[1]}"#,
    ] {
        let (response, behind) = odd(answers, "");
        assert_eq!(response.status, 200, "{answers}: {}", response.text());
        assert_eq!(behind[0].matches(r#""uuid":""#).count(), 2);
        assert!(behind[0].contains("http://h/a") && !behind[0].contains("ec_transfer_params"));
    }
}

/// Upstream makes every failure of P a 500, and of a stream's D a 200 that ends in the middle.
#[test]
fn failures_behind_the_encoders_keep_their_status() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |c| c.retry.max_retries = 0);
    for (engine, status) in [(1, 400), (1, 429), (1, 503), (2, 400), (2, 413), (2, 503)] {
        rig.sim.set_fault(engine, Some(Fault::Status(status)));
        let response = ask(&rig, 1);
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(response.json()["error"]["code"], status);
        assert!(response.complete);
        rig.sim.set_fault(engine, None);
    }
}

#[test]
fn decode_s_500_is_tried_again_from_the_encoders_on() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |c| {
        c.retry.max_retries = 1;
        c.retry.retryable_status_codes = vec![500];
        c.retry.initial_backoff = Duration::ZERO;
    });
    rig.sim.set_fault(2, Some(Fault::Status(500)));
    let response = ask(&rig, 1);
    assert_eq!(response.status, 500, "{}", response.text());
    let encodes = rig.posts(0);
    assert_eq!(
        (encodes.len(), rig.posts(1).len(), rig.posts(2).len()),
        (2, 2, 2)
    );
    let ids: Vec<_> = encodes
        .iter()
        .map(|leg| leg.header("x-request-id"))
        .collect();
    assert!(ids[0] != ids[1], "{ids:?}");
    assert_eq!(encodes[0].body, encodes[1].body);
    // Another failure is the answer at once.
    rig.sim.set_fault(2, Some(Fault::Status(502)));
    assert_eq!(ask(&rig, 1).status, 502);
    assert_eq!(rig.posts(0).len(), 3);
}

/// Upstream reads streams in pieces of 1024 bytes, and loses a character that lies across two.
#[test]
fn characters_never_get_lost_between_pieces() {
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"Größe 字 😀\"}}]}\n\n".repeat(40);
    let bytes = text.clone().into_bytes();
    let engine = Scripted::start(move |_, _| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: ";
        let mut pieces = vec![format!("{head}{}\r\n\r\n", bytes.len()).into_bytes()];
        pieces.extend(bytes.chunks(1021).map(<[u8]>::to_vec));
        Say::Slowly(pieces, Duration::from_millis(5))
    });
    let encoder = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    use pdrelay::config::{Role, epd::Version};
    let roles = [Role::Encode, Role::Aggregated];
    let mut config = crate::support::config("epd", &roles, &[encoder.address, engine.address]);
    config.epd.version = Version::V1;
    let server = pdrelay::server::Server::start(config).unwrap();
    let sent = with_media(&[&url("http://h/a")], r#","stream":true"#);
    let response = crate::support::Client::connect(server.address).post(CHAT, &sent);
    assert_eq!(response.text(), text);
}

#[test]
fn too_many_media_are_refused() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |c| c.epd.media_max = 2);
    let response = ask(&rig, 3);
    assert_eq!(response.status, 400);
    assert!(
        detail(&response).contains("epd.media_max"),
        "{}",
        response.text()
    );
    assert_eq!(rig.posts(0).len(), 0);
    assert_eq!(ask(&rig, 2).status, 200);
}
