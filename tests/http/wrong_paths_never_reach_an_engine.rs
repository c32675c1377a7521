//! What is not meant for clients does not exist for them, and says so before anybody uploads a body.

use crate::support::{engines, rig};

use super::{End, quiet, raw, rest_of};

#[test]
fn refusals_come_before_the_body() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for (line, status, allow) in [
        ("GET /v1/completions", 405, Some("POST")),
        ("PUT /v1/chat/completions", 405, Some("POST")),
        ("BREW /v1/chat/completions", 405, Some("POST")),
        ("POST /health", 405, Some("GET, HEAD")),
        ("DELETE /metrics", 405, Some("GET, HEAD")),
        ("POST /v1/models", 405, Some("GET, HEAD")),
        ("POST /nothing", 404, None),
        ("POST /", 404, None),
        ("POST *", 404, None),
    ] {
        for framing in [
            "content-length: 1000000",
            "transfer-encoding: chunked",
            "expect: 100-continue\r\ncontent-length: 10",
        ] {
            let mut client = rig.client();
            client.send(format!("{line} HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n"));
            let response = client.response();
            assert_eq!(response.status, status, "{line}");
            assert_eq!(response.header("allow"), allow, "{line}");
            assert_eq!(response.json()["error"]["code"], status);
            assert_eq!(rest_of(&mut client).1, End::Fin);
        }
        // Without a body the connection goes on.
        let mut client = rig.client();
        client.send(format!("{line} HTTP/1.1\r\nhost: t\r\n\r\n"));
        assert_eq!(client.response().status, status, "{line}");
        assert_eq!(client.get("/health").status, 200);
        // HEAD gets no body, whatever the status.
        client.send("HEAD /nothing HTTP/1.1\r\nhost: t\r\n\r\n");
        assert_eq!(client.response_to("HEAD").status, 404);
        assert_eq!(client.get("/health").status, 200);
    }
    assert_eq!((rig.sim.requests(0), rig.sim.requests(1)), (0, 0));
}

#[test]
fn engine_admin_paths_do_not_exist() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for path in [
        "/reset_prefix_cache",
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/collective_rpc",
        "/start_profile",
        "/stop_profile",
        "/scale_elastic_ep",
        "/server_info",
        "/docs",
        "/openapi.json",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        // Other spellings of them.
        "/v1/load_lora_adapter?x=1",
        "/v1/load_lora_adapter#x",
        "/v1/completions#x",
        "http://t/v1/load_lora_adapter",
        "http://t/v1/load_lora_adapter#x",
        "/v1/%6coad_lora_adapter",
        "/v1//load_lora_adapter",
        "//v1/load_lora_adapter",
        "/v1/./load_lora_adapter",
        "/v1/x/../load_lora_adapter",
        "/v1/../sleep",
        "/v1/..%2fsleep",
        "/tokenize/../sleep",
        "/v1\\..\\sleep",
    ] {
        for method in ["GET", "POST"] {
            let response = raw(
                rig.server.address,
                format!("{method} {path} HTTP/1.1\r\nhost: t\r\n\r\n"),
            );
            assert_eq!(response.status, 404, "{method} {path}");
        }
    }
    assert_eq!((rig.sim.requests(0), rig.sim.requests(1)), (0, 0));
}

#[test]
fn listed_paths_are_forwarded_and_their_neighbours_are_not() {
    let rig = quiet("nixl", engines(1, 1), |c| {
        c.forward = vec![
            "/reset_prefix_cache".into(),
            "/debug/*".into(),
            "/v1/load_lora_adapter".into(),
        ];
    });
    let status = |path: &str| {
        let line = format!("POST {path} HTTP/1.1\r\nhost: t\r\n\r\n");
        raw(rig.server.address, line).status
    };
    for path in [
        "/reset_prefix_cache",
        "/reset_prefix_cache?tags=a",
        "/debug/x",
        "/debug/",
        "/v1/load_lora_adapter",
    ] {
        let before = rig.sim.requests(0);
        status(path);
        assert_eq!(rig.sim.requests(0), before + 1, "{path}");
        assert_eq!(rig.sim.transcript(0).last().unwrap().path, path);
    }
    let before = rig.sim.requests(0) + rig.sim.requests(1);
    for path in [
        "/reset_prefix_cache2",
        "/reset_prefix_cache/",
        "/debug",
        "/debug/../sleep",
        "/debug/%2e%2e/sleep",
        "/debug//sleep",
        "/v1/unload_lora_adapter",
        "/sleep",
    ] {
        assert_eq!(status(path), 404, "{path}");
    }
    assert_eq!(rig.sim.requests(0) + rig.sim.requests(1), before);
}

#[test]
fn queries_and_absolute_forms_arrive_in_origin_form() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for (sent, seen) in [
        ("/v1/models?a=b%20c&d", "/v1/models?a=b%20c&d"),
        ("/v1/models?", "/v1/models?"),
        ("/v1/models?x=/../..//%2e", "/v1/models?x=/../..//%2e"),
        ("http://elsewhere:99/v1/models?q=1", "/v1/models?q=1"),
        ("HTTP://t/v1/models", "/v1/models"),
    ] {
        let line = format!("GET {sent} HTTP/1.1\r\nhost: t\r\n\r\n");
        assert_eq!(raw(rig.server.address, line).status, 200, "{sent}");
        assert_eq!(rig.sim.transcript(0).last().unwrap().path, seen);
    }
    let body = crate::support::completion("q", "");
    let response = rig.post("/v1/completions?api-version=2&x=%2F", &body);
    assert_eq!(response.status, 200);
    for engine in [0, 1] {
        assert_eq!(
            rig.posts(engine)[0].path,
            "/v1/completions?api-version=2&x=%2F"
        );
    }
}

#[test]
fn head_is_get_without_the_body() {
    let rig = rig("nixl", 1, 1);
    for path in ["/v1/models", "/health", "/ready", "/metrics", "/status"] {
        let get = rig.get(path);
        let mut client = rig.client();
        client.send(format!("HEAD {path} HTTP/1.1\r\nhost: t\r\n\r\n"));
        let head = client.response_to("HEAD");
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
        assert!(head.header("content-length").is_some(), "{path}");
        if path == "/v1/models" {
            assert_eq!(head.header("content-length"), get.header("content-length"));
        }
        assert_eq!(
            client.get("/health").json()["status"],
            "ok",
            "nothing was left over"
        );
    }
}
