//! CORS: any origin may ask anything, and is told so once.

use super::{raw, rig};
use crate::support::{completion, post_bytes};

const ORIGIN: &str = "origin: http://a\r\n";

#[test]
fn every_answer_to_another_origin_allows_it() {
    let rig = rig(1, 1);
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/nowhere"),
        ("GET", "/v1/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/instances/add"),
        ("GET", "/metrics"),
    ] {
        let with = raw(&rig, method, path, ORIGIN, "");
        assert_eq!(
            with.header("access-control-allow-origin"),
            Some("*"),
            "{path}"
        );
        let without = raw(&rig, method, path, "", "");
        assert_eq!(
            without.header("access-control-allow-origin"),
            None,
            "{path}"
        );
    }
    for more in ["", r#","stream":true"#] {
        let mut client = rig.client();
        client.send(post_bytes(
            "/v1/completions",
            &completion("a", more),
            ORIGIN,
        ));
        let response = client.response();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    }
}

/// Engines do CORS, too; browsers refuse a doubled field.
#[test]
fn an_engine_s_own_words_are_not_doubled() {
    use crate::support::scripted::{Say, Scripted};
    let answer = "HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\n\
        Access-Control-Allow-Credentials: true\r\nx-more: 1\r\ncontent-length: 2\r\n\r\n{}";
    let engine = Scripted::start(move |_, _| Say::Bytes(answer.into()));
    let rig = super::rig_where(1, 1, |config| {
        for one in &mut config.instances {
            let (ip, port) = (engine.address.ip().to_string(), engine.address.port());
            one.address = pdrelay::config::Address::tcp(ip, port);
        }
    });
    let mut client = rig.client();
    client.send(post_bytes("/v1/completions", &completion("a", ""), ORIGIN));
    let response = client.response();
    assert_eq!(response.status, 200);
    let head = response.head.to_lowercase();
    assert_eq!(head.matches("access-control-").count(), 1, "{head}");
    assert!(head.contains("x-more: 1"));
    // Without an origin the engine's fields travel as ever.
    client.send(post_bytes("/v1/completions", &completion("a", ""), ""));
    let head = client.response().head.to_lowercase();
    assert_eq!(head.matches("access-control-").count(), 2, "{head}");
}

#[test]
fn a_preflight_allows_every_method_and_the_wanted_headers() {
    let rig = rig(1, 1);
    let ask = |method: &str| {
        let more = format!(
            "{ORIGIN}access-control-request-method: {method}\r\n\
             access-control-request-headers: authorization, x-y\r\n"
        );
        raw(&rig, "OPTIONS", "/v1/chat/completions", &more, "")
    };
    let response = ask("POST");
    assert_eq!((response.status, response.text().as_str()), (200, "OK"));
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("access-control-allow-origin", "*"),
        (
            "access-control-allow-methods",
            "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        ),
        ("access-control-allow-headers", "authorization, x-y"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(response.header(name), Some(value), "{name}");
    }
    assert!(response.header("vary").unwrap().starts_with("Origin"));
    assert_eq!(ask("BREW").status, 400);
}

#[test]
fn a_plain_options_is_null() {
    let rig = rig(1, 1);
    for path in ["/v1/completions", "/status", "/tokenize"] {
        let response = raw(&rig, "OPTIONS", path, "", "");
        assert_eq!((response.status, response.text().as_str()), (200, "null"));
        assert_eq!(response.header("content-type"), Some("application/json"));
    }
    assert_eq!(raw(&rig, "OPTIONS", "/nowhere", "", "").status, 404);
}
