//! Engines added and removed by hand.

use std::time::Duration;

use super::{admin, object, raw, rig, rig_where};
use crate::support::{Rig, completion, engines, eventually, post_bytes};

const BAD: &str = "invalid_request_error";

fn place(role: &str, address: &str) -> String {
    format!(r#"{{"type":"{role}","instance":"{address}"}}"#)
}

fn nodes(rig: &Rig) -> (Vec<String>, Vec<String>) {
    let status = rig.get("/status").json();
    let of = |key: &str| serde_json::from_value(status[key].clone()).unwrap();
    (of("prefill_nodes"), of("decode_nodes"))
}

#[test]
fn keys_are_asked_for() {
    let rig = rig(1, 1);
    for path in ["/instances/add", "/instances/remove"] {
        let missing = raw(&rig, "POST", path, "", "{}");
        assert_eq!(missing.status, 422, "{path}");
        assert_eq!(
            missing.text(),
            r#"{"detail":[{"type":"missing","loc":["header","x-api-key"],"msg":"Field required","input":null}]}"#
        );
        let wrong = raw(&rig, "POST", path, "x-api-key: kk\r\n", "{}");
        assert_eq!(wrong.status, 403);
        assert_eq!(wrong.text(), object("Forbidden: Invalid API Key", BAD));
    }
    let open = rig_where(1, 1, |config| config.admin_api_key = None);
    let response = admin(&open, "/instances/add", "{}");
    assert_eq!(response.status, 500);
    assert_eq!(
        response.text(),
        object("Server configuration error", "server_error")
    );
}

#[test]
fn mistakes_are_told() {
    let rig = rig(1, 1);
    let [p, d] = [
        rig.sim.addresses()[0].to_string(),
        rig.sim.addresses()[1].to_string(),
    ];
    let say = |path: &str, body: &str| {
        let response = admin(&rig, path, body);
        (response.status, response.text())
    };
    for (body, message) in [
        (place("x", &p), "Invalid instance type"),
        (place("decode", "nothing"), "Invalid instance format"),
        (place("decode", "10.0.0:1"), "Invalid instance address"),
        (place("decode", "10.0.0.1:0"), "Invalid port number"),
        (place("decode", &p), "Instance already exists"),
        (place("prefill", &p), "Instance already exists"),
        // Nobody listens there.
        (place("decode", "127.0.0.1:1"), "Instance validation failed"),
    ] {
        assert_eq!(
            say("/instances/add", &body),
            (400, object(message, BAD)),
            "{body}"
        );
    }
    assert_eq!(say("/instances/add", "{").0, 400);
    // By another name it is the same engine.
    for name in ["localhost", "LocalHost", "[::ffff:127.0.0.1]"] {
        let again = format!("{name}:{}", rig.sim.addresses()[1].port());
        let said = say("/instances/add", &place("decode", &again));
        let message = "Instance already exists";
        assert_eq!(said, (400, object(message, BAD)), "{again}");
    }
    assert_eq!(
        say("/instances/remove", &place("decode", "127.0.0.1:1")),
        (404, object("Instance not found", BAD))
    );
    assert_eq!(
        say("/instances/remove", &place("decode", "nothing")),
        (404, object("Instance not found", BAD))
    );
    for body in [r#"{"type":"decode"}"#, r#"{"type":"decode","instance":5}"#] {
        assert_eq!(
            say("/instances/remove", body),
            (400, object("Invalid instance", BAD))
        );
    }
    let message = format!("Instance '{d}' has role 'decode', not 'prefill'.");
    assert_eq!(
        say("/instances/remove", &place("prefill", &d)),
        (400, object(&message, BAD))
    );
    let body = format!(r#"{{"type":"decode","instance":"{d}","timeout_seconds":3601}}"#);
    assert_eq!(
        say("/instances/remove", &body),
        (
            400,
            object("timeout_seconds must be between 0 and 3600", BAD)
        )
    );
    assert_eq!(nodes(&rig), (vec![p], vec![d]), "nothing has changed");
}

#[test]
fn an_engine_of_another_model_is_not_added() {
    let mut list = engines(1, 2);
    list[2].model = "another".into();
    let mut other = String::new();
    let rig = crate::support::rig_with("sequential", list, |config| {
        super::face(config);
        other = config.instances.pop().unwrap().address.to_string();
    });
    super::open(&rig);
    let response = admin(&rig, "/instances/add", &place("decode", &other));
    assert_eq!(response.status, 400);
    assert_eq!(response.text(), object("Instance validation failed", BAD));
}

#[test]
fn an_engine_that_is_added_gets_requests_and_one_removed_gets_none() {
    let mut added = String::new();
    let rig = rig_where(1, 2, |config| {
        added = config.instances.pop().unwrap().address.to_string();
        config.scheduling.decode = "round_robin".into();
    });
    let first = rig.sim.addresses()[1].to_string();
    let response = admin(&rig, "/instances/add", &place("decode", &added));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        response.text(),
        format!(r#"{{"message":"Added {added} to decode_instances."}}"#)
    );
    assert_eq!(nodes(&rig).1, [first.clone(), added.clone()]);
    eventually("it gets requests", || {
        rig.post("/v1/completions", &completion("a", "")).status == 200 && !rig.posts(2).is_empty()
    });
    let response = admin(&rig, "/instances/remove", &place("decode", &first));
    assert_eq!(
        (response.status, response.text()),
        (
            200,
            format!(r#"{{"message":"Removed {first} from decode_instances."}}"#)
        )
    );
    assert_eq!(nodes(&rig).1, [added]);
    let before = rig.posts(1).len();
    for _ in 0..6 {
        assert_eq!(
            rig.post("/v1/completions", &completion("a", "")).status,
            200
        );
    }
    assert_eq!(rig.posts(1).len(), before);
}

/// Two decode engines that take their time: some 30 ms per token.
fn slow() -> Rig {
    let mut list = engines(1, 2);
    for engine in &mut list[1..] {
        engine.timing.decode_tick = Duration::from_millis(30);
    }
    let rig = crate::support::rig_with("sequential", list, super::face);
    super::open(&rig);
    rig
}

/// Begins a stream at the given decode engine (all others being idle), and says which it was.
fn stream(rig: &Rig, tokens: usize) -> (crate::support::Client, usize) {
    let before = [rig.posts(1).len(), rig.posts(2).len()];
    let mut client = rig.client();
    let more = format!(r#","stream":true,"max_tokens":{tokens},"ignore_eos":true"#);
    client.send(post_bytes("/v1/completions", &completion("a", &more), ""));
    let mut at = 0;
    eventually("it has begun", || {
        at = match [rig.posts(1).len(), rig.posts(2).len()] {
            [one, _] if one > before[0] => 1,
            [_, two] if two > before[1] => 2,
            _ => 0,
        };
        at > 0
    });
    (client, at)
}

/// A removal that waits.
fn removing(rig: &Rig, going: &str) -> crate::support::Client {
    let mut remove = rig.client();
    let body = place("decode", going);
    remove.send(format!(
        "POST /instances/remove HTTP/1.1\r\nhost: t\r\nx-api-key: k\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    eventually("it drains", || {
        let page = rig.get("/status/instances").text();
        page.contains(r#""status":"draining","circuit":"closed","active_requests":1"#)
    });
    remove
}

/// What was asked is done, and nobody is waited for who is gone.
#[test]
fn a_removal_outlives_the_one_who_asked() {
    let rig = slow();
    let (mut client, at) = stream(&rig, 40);
    let going = rig.sim.addresses()[at].to_string();
    let requests = || {
        rig.server
            .shared
            .metrics
            .level(pdrelay::metrics::Gauge::requests_in_flight())
    };
    let remove = removing(&rig, &going);
    eventually("only the stream and the removal are left", || {
        requests() == 2
    });
    drop(remove);
    eventually("it is not waited for", || requests() == 1);
    assert!(nodes(&rig).1.contains(&going), "it still drains");
    assert!(client.response().complete);
    eventually("it is gone", || !nodes(&rig).1.contains(&going));
}

#[test]
fn a_removal_waits_for_what_runs() {
    let rig = slow();
    let (mut client, at) = stream(&rig, 30);
    let going = rig.sim.addresses()[at].to_string();
    let mut remove = removing(&rig, &going);
    // What comes now goes to the other one.
    let before = rig.posts(at).len();
    for _ in 0..3 {
        let body = completion("a", r#","max_tokens":1"#);
        assert_eq!(rig.post("/v1/completions", &body).status, 200);
    }
    assert_eq!(rig.posts(at).len(), before);
    let response = client.response();
    assert!(response.complete && response.text().ends_with("data: [DONE]\n\n"));
    let removed = remove.response();
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert!(!nodes(&rig).1.contains(&going));
}

/// Whoever was told that it did not work must not find the engine half gone.
#[test]
fn what_does_not_drain_in_time_takes_requests_again() {
    let rig = slow();
    let (mut client, at) = stream(&rig, 60);
    let going = rig.sim.addresses()[at].to_string();
    let body = format!(r#"{{"type":"decode","instance":"{going}","timeout_seconds":0.2}}"#);
    let response = admin(&rig, "/instances/remove", &body);
    assert_eq!(response.status, 504);
    let message = format!("Timed out draining {going}; 1 requests remain.");
    assert_eq!(response.text(), object(&message, "server_error"));
    assert!(nodes(&rig).1.contains(&going));
    let page = rig.get("/status/instances").text();
    assert!(!page.contains("draining"), "{page}");
    let response = client.response();
    assert!(response.complete && response.text().ends_with("data: [DONE]\n\n"));
    let now = admin(&rig, "/instances/remove", &place("decode", &going));
    assert_eq!(now.status, 200);
}

/// Two removals of one engine that both give up: it takes requests again when the last has.
#[test]
fn removals_that_give_up_leave_no_drain_behind() {
    let rig = slow();
    let (mut client, at) = stream(&rig, 60);
    let going = rig.sim.addresses()[at].to_string();
    let removal = |seconds: f64| {
        let body =
            format!(r#"{{"type":"decode","instance":"{going}","timeout_seconds":{seconds}}}"#);
        let mut client = rig.client();
        client.send(format!(
            "POST /instances/remove HTTP/1.1\r\nhost: t\r\nx-api-key: k\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        client
    };
    let mut first = removal(0.2);
    eventually("it drains", || {
        rig.get("/status/instances")
            .text()
            .contains(r#""status":"draining""#)
    });
    let mut second = removal(0.4);
    assert_eq!(
        (first.response().status, second.response().status),
        (504, 504)
    );
    eventually("it takes requests again", || {
        !rig.get("/status/instances").text().contains("draining")
    });
    assert!(client.response().complete);
}
