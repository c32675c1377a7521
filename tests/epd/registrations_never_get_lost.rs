//! Dynamic registration: engines come, stay away, come back and are forgotten, and the list tells of it.

use std::time::Duration;

use pdrelay::config::Secret;
use pdsim::EcMode;

use super::{CHAT, engines, epd, url, with_media};
use crate::support::{Response, Rig, chat, eventually};

/// No instance is registered yet.
fn empty(engines: Vec<pdsim::EngineOptions>, ttl: Option<Duration>) -> Rig {
    epd(engines, |c| {
        c.instances.clear();
        c.epd.dynamic_registration = true;
        c.epd.evicted_ttl = ttl;
        c.admin_api_key = Some(Secret("key".into()));
        c.health_check.interval = Duration::from_millis(50);
        c.health_check.failure_threshold = 3;
    })
}

fn request(rig: &Rig, method: &str, target: &str, key: &str, body: &str) -> Response {
    let mut client = rig.client();
    let length = body.len();
    client.send(
        format!(
            "{method} {target} HTTP/1.1\r\nhost: t\r\n{key}content-length: {length}\r\n\r\n{body}"
        )
        .into_bytes(),
    );
    client.response()
}

const KEY: &str = "X-API-Key: key\r\n";

fn place(rig: &Rig, engine: usize) -> String {
    format!("http://{}", rig.sim.addresses()[engine])
}

fn add(rig: &Rig, role: &str, engine: usize) -> Response {
    let body = format!(r#"{{"role":"{role}","url":"{}/"}}"#, place(rig, engine));
    request(rig, "POST", "/instances", KEY, &body)
}

fn said(response: &Response) -> (u16, String) {
    (response.status, response.text())
}

#[test]
fn instances_come_and_serve_at_once() {
    let rig = empty(engines(1, 1, 1, EcMode::V2), None);
    let none = r#"{"encode":{"live":[],"evicted":[]},"prefill":{"live":[],"evicted":[]},"decode":{"live":[],"evicted":[]},"prefill_decode":{"live":[],"evicted":[]}}"#;
    assert_eq!(said(&rig.get("/instances")), (200, none.to_owned()));
    assert_eq!(
        said(&rig.get("/health")),
        (200, format!(r#"{{"proxy":"healthy","instances":{none}}}"#))
    );
    assert_eq!(rig.get("/v1/models").status, 503);
    let plain = chat("hi", "");
    let image = with_media(&[&url("http://h/a")], "");
    let refused = |body: &str, role: &str| {
        let response = rig.post(CHAT, body);
        let text = format!(r#"{{"detail":"No {role} instance is registered"}}"#);
        assert_eq!(said(&response), (503, text));
    };
    refused(&plain, "decode");
    let yes = (200, r#"{"registered":true}"#.to_owned());
    assert_eq!(said(&add(&rig, "decode", 2)), yes);
    refused(&plain, "prefill");
    assert_eq!(said(&add(&rig, "prefill", 1)), yes);
    assert_eq!(rig.post(CHAT, &plain).status, 200);
    refused(&image, "encode");
    assert_eq!(rig.posts(1).len(), 1);
    assert_eq!(said(&add(&rig, "encode", 0)), yes);
    let response = rig.post(CHAT, &image);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        said(&add(&rig, "encode", 0)),
        (200, r#"{"registered":false}"#.to_owned())
    );
    assert_eq!(rig.get("/v1/models").status, 200);
    let list = rig.get("/instances").json();
    assert_eq!(list["decode"]["live"][0], place(&rig, 2));

    // What does not go together.
    assert_eq!(add(&rig, "prefill_decode", 0).status, 409);
    let other = request(
        &rig,
        "POST",
        "/instances",
        KEY,
        r#"{"role":"prefill_decode","url":"http://127.0.0.1:1"}"#,
    );
    assert_eq!(other.status, 409, "{}", other.text());

    let target = format!("/instances?url={}", place(&rig, 2).replace(':', "%3A"));
    let gone = request(&rig, "DELETE", &target, KEY, "");
    assert_eq!(said(&gone), (200, r#"{"removed":true}"#.to_owned()));
    let gone = request(&rig, "DELETE", &target, KEY, "");
    assert_eq!(said(&gone), (200, r#"{"removed":false}"#.to_owned()));
    refused(&plain, "decode");
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn nobody_without_the_key_changes_anything() {
    let rig = empty(engines(1, 0, 0, EcMode::V2), None);
    let body = format!(r#"{{"role":"encode","url":"{}"}}"#, place(&rig, 0));
    let wrong = (403, r#"{"detail":"Invalid admin API key"}"#.to_owned());
    for key in [
        "",
        "X-API-Key: \r\n",
        "X-API-Key: kez\r\n",
        "X-API-Key: keys\r\n",
        "Authorization: Bearer key\r\n",
    ] {
        assert_eq!(
            said(&request(&rig, "POST", "/instances", key, &body)),
            wrong,
            "{key}"
        );
        let target = format!("/instances?url={}", place(&rig, 0));
        assert_eq!(
            said(&request(&rig, "DELETE", &target, key, "")),
            wrong,
            "{key}"
        );
    }
    assert_eq!(
        rig.get("/instances").json()["encode"]["live"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn those_that_stay_away_are_evicted_and_come_back() {
    let rig = empty(engines(2, 0, 0, EcMode::V2), None);
    assert_eq!(add(&rig, "encode", 0).status, 200);
    assert_eq!(add(&rig, "encode", 1).status, 200);
    assert_eq!(add(&rig, "prefill_decode", 2).status, 200);
    let state = |state: &str| rig.get("/instances").json()["encode"][state].to_string();
    rig.sim.kill(0);
    let one = format!(r#"["{}"]"#, place(&rig, 0));
    eventually("it is evicted", || state("evicted") == one);
    // It gets nothing meanwhile.
    let before = rig.posts(0).len();
    for _ in 0..4 {
        assert_eq!(
            rig.post(CHAT, &with_media(&[&url("http://h/a")], ""))
                .status,
            200
        );
    }
    assert_eq!(rig.posts(1).len(), 4);
    rig.sim.restart(0);
    eventually("it is back", || state("evicted") == "[]");
    for _ in 0..4 {
        assert_eq!(
            rig.post(CHAT, &with_media(&[&url("http://h/a")], ""))
                .status,
            200
        );
    }
    assert_eq!(rig.posts(0).len(), before + 2);
}

#[test]
fn those_that_stay_away_for_long_are_forgotten() {
    let rig = empty(
        engines(1, 0, 0, EcMode::V2),
        Some(Duration::from_millis(200)),
    );
    assert_eq!(add(&rig, "prefill_decode", 1).status, 200);
    assert_eq!(add(&rig, "encode", 0).status, 200);
    rig.sim.kill(0);
    eventually("it is forgotten", || {
        let list = rig.get("/instances").json();
        list["encode"]["live"] == serde_json::json!([])
            && list["encode"]["evicted"] == serde_json::json!([])
    });
    // And may come again.
    rig.sim.restart(0);
    assert_eq!(said(&add(&rig, "encode", 0)).1, r#"{"registered":true}"#);
    assert_eq!(
        rig.post(CHAT, &with_media(&[&url("http://h/a")], ""))
            .status,
        200
    );
}

/// With ranks, each request is for one of them, and encoders push there: P's where there is one.
#[test]
fn ranks_belong_to_whoever_takes_the_encodings() {
    let mut all = engines(1, 1, 1, EcMode::V2);
    all[1].ec_addresses = vec!["a:1".into(), "a:2".into()];
    let rig = empty(all, None);
    assert_eq!(add(&rig, "encode", 0).status, 200);
    assert_eq!(add(&rig, "decode", 2).status, 200);
    let body = format!(
        r#"{{"role":"prefill","url":"{}","dp_size":2,"ec_zmq_addrs":["a:1","a:2"]}}"#,
        place(&rig, 1)
    );
    assert_eq!(request(&rig, "POST", "/instances", KEY, &body).status, 200);
    for turn in 0..4 {
        let response = rig.post(CHAT, &with_media(&[&url("http://h/a")], ""));
        assert_eq!(response.status, 200, "{}", response.text());
        let rank = (turn % 2).to_string();
        assert_eq!(
            rig.posts(1).pop().unwrap().header("x-data-parallel-rank"),
            Some(&*rank)
        );
        assert_eq!(
            rig.posts(2).pop().unwrap().header("x-data-parallel-rank"),
            None
        );
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    assert_eq!(rig.sim.ledger().transferred, 4);
}
