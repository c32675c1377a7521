//! An engine's error reaches the client with its own status, type and JSON. P's error is the answer: D is
//! not called.

use super::failures;
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{chat, completion, config, engines, post_bytes, rig, rig_with};
use pdrelay::config::Role;
use pdrelay::server::Server;

fn faulty(rig: &crate::support::Rig, header: &str, stream: bool) -> crate::support::Response {
    let mut client = rig.client();
    let more = if stream { r#","stream":true"# } else { "" };
    let body = chat("x", more);
    client.send(post_bytes("/v1/chat/completions", &body, header));
    let response = client.response();
    assert!(response.complete);
    // An error is an answer like any other: the connection goes on.
    let again = client.post("/v1/chat/completions", &chat("x", ""));
    assert_eq!(again.status, 200);
    response
}

#[test]
fn each_status_of_each_leg_is_the_clients() {
    for handshake in ["nixl", "sequential"] {
        let rig = rig_with(handshake, engines(1, 1), |c| c.retry.enabled = false);
        for status in [400, 401, 404, 413, 422, 429, 500, 501, 503] {
            for (leg, stream) in [("prefill", false), ("prefill", true), ("decode", true)] {
                let before = rig.posts(1).len();
                let header = format!("x-sim-fault-{leg}: status:{status}\r\n");
                let response = faulty(&rig, &header, stream);
                assert_eq!(response.status, status, "{leg}");
                assert_eq!(response.header("content-type"), Some("application/json"));
                let error = response.json();
                assert_eq!(error["error"]["code"], status, "{error}");
                assert_eq!(error["error"]["type"], "SimulatedFault", "{error}");
                // One for the second request, one more if it was D that failed.
                let calls = rig.posts(1).len() - before;
                assert_eq!(
                    calls,
                    if leg == "prefill" { 1 } else { 2 },
                    "{leg} {status}"
                );
            }
        }
    }
}

/// The last of several tries is the answer, if all of them failed.
#[test]
fn repeated_errors_end_in_the_engines_own_words() {
    let rig = rig_with("nixl", engines(1, 1), |c| {
        c.retry.initial_backoff = std::time::Duration::from_millis(1);
    });
    for (leg, calls) in [("prefill", [3, 0]), ("decode", [3, 3])] {
        let before = [0, 1].map(|engine| rig.posts(engine).len());
        let mut client = rig.client();
        let header = format!("x-sim-fault-{leg}: status:503\r\n");
        client.send(post_bytes("/v1/completions", &completion("x", ""), &header));
        let response = client.response();
        assert_eq!(response.status, 503, "{leg}");
        assert_eq!(response.json()["error"]["type"], "SimulatedFault");
        let after = [0, 1].map(|engine| rig.posts(engine).len());
        assert_eq!([after[0] - before[0], after[1] - before[1]], calls, "{leg}");
    }
    assert_eq!(rig.sim.ledger().reused, 0);
}

/// Real rejections, not planned ones: P rejects first and the same as a single server would.
#[test]
fn a_rejection_is_word_for_word_the_engines() {
    let single = crate::support::aggregated(1);
    let rig = rig("nixl", 1, 1);
    for body in [
        r#"{"model":"nobody","prompt":"x"}"#.to_owned(),
        r#"{"model":"dummy"}"#.to_owned(),
        completion("x", r#","temperature":-1"#),
        completion("x", r#","max_tokens":0"#),
        completion("x", r#","prompt":[]"#),
    ] {
        let (one, two) = (
            single.post("/v1/completions", &body),
            rig.post("/v1/completions", &body),
        );
        assert_eq!((one.status, one.text()), (two.status, two.text()), "{body}");
        assert_eq!(one.status / 100, 4, "{body}");
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn a_five_hundred_is_counted_against_its_engine() {
    let rig = rig_with("nixl", engines(1, 1), |c| c.retry.enabled = false);
    faulty(&rig, "x-sim-fault-prefill: status:503\r\n", false);
    faulty(&rig, "x-sim-fault-decode: status:500\r\n", false);
    for engine in [0, 1] {
        assert_eq!(failures(&rig, engine, "status_5xx"), 1.0, "engine {engine}");
    }
}

/// Whatever shape the engine's error has, it travels as it is; and nothing but it.
#[test]
fn odd_error_answers_travel_as_they_are() {
    let empty_chunked =
        b"HTTP/1.1 429 Slow Down\r\ntransfer-encoding: chunked\r\nretry-after: 7\r\n\r\n0\r\n\r\n";
    let excess =
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\nnope{\"secret\":\"of another\"}";
    let html = b"HTTP/1.1 403 No\r\ncontent-type: text/html\r\n\r\n<p>no";
    let cases: [(&'static [u8], bool, u16, &str); 3] = [
        (empty_chunked, false, 429, ""),
        (excess, false, 400, "nope"),
        (html, true, 403, "<p>no"),
    ];
    for (bytes, close, status, body) in cases {
        for broken in [Role::Prefill, Role::Decode] {
            let say = move |_: usize, _: &str| match close {
                true => Say::Close(bytes.to_vec()),
                false => Say::Bytes(bytes.to_vec()),
            };
            let bad = Scripted::start(say);
            let good = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
            let (p, d) = match broken {
                Role::Prefill => (&bad, &good),
                _ => (&good, &bad),
            };
            let roles = [Role::Prefill, Role::Decode];
            let mut config = config("nixl", &roles, &[p.address, d.address]);
            config.retry.enabled = false;
            let server = Server::start(config).unwrap();
            let mut client = crate::support::Client::connect(server.address);
            for _ in 0..2 {
                let response = client.post("/v1/completions", &completion("x", ""));
                assert_eq!(response.status, status, "{broken:?}");
                assert_eq!(response.text(), body, "{broken:?} {status}");
                assert!(response.complete);
                if status == 429 {
                    assert_eq!(response.header("retry-after"), Some("7"));
                    assert!(response.head.starts_with("HTTP/1.1 429 Slow Down\r\n"));
                }
            }
            if broken == Role::Prefill {
                assert_eq!(d.requests().len(), 0);
            }
        }
    }
}

/// "Not now" of one engine (a 429, or what else is listed) is a question to the next, and no failure.
#[test]
fn a_listed_status_is_asked_of_another_engine() {
    const BUSY: &str = r#"{"error":{"message":"later","code":429}}"#;
    let busy = || Scripted::start(|_, _| Say::Bytes(answer("429 Too Many Requests", BUSY)));
    let good = || Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"good":1}"#)));
    for broken in [Role::Prefill, Role::Decode] {
        for (listed, elsewhere) in [(vec![429], true), (vec![503], false)] {
            let (bad, well, other) = (busy(), good(), good());
            let role = |own: bool| match (broken, own) {
                (Role::Prefill, true) | (Role::Decode, false) => Role::Prefill,
                _ => Role::Decode,
            };
            let roles = [role(true), role(true), role(false)];
            let addresses = [bad.address, well.address, other.address];
            let mut config = config("sequential", &roles, &addresses);
            config.health_check.enabled = false;
            config.scheduling.prefill = "round_robin".into();
            config.scheduling.decode = "round_robin".into();
            config.retry.retryable_status_codes = listed;
            let server = Server::start(config).unwrap();
            let mut statuses = [0; 2];
            for _ in 0..20 {
                let mut client = crate::support::Client::connect(server.address);
                match client.post("/v1/completions", &completion("x", "")).status {
                    200 => statuses[0] += 1,
                    429 => statuses[1] += 1,
                    status => panic!("{status}"),
                }
            }
            let expected = if elsewhere { [20, 0] } else { [10, 10] };
            assert_eq!(statuses, expected, "{broken:?}");
            // No breaker has taken it out.
            assert!(bad.requests().len() >= 10, "{broken:?}");
        }
    }
}
