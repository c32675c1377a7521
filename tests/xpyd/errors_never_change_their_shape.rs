//! Error bodies as its clients know them, under statuses that are true.

use super::{object, raw, rig, rig_where, unwatched};
use crate::support::{chat, completion};

const JSON: &str = "content-type: application/json\r\n";
const BAD: &str = "invalid_request_error";

#[test]
fn paths_and_methods() {
    let rig = rig(1, 1);
    let nowhere = rig.get("/nowhere");
    assert_eq!(
        (nowhere.status, nowhere.text().as_str()),
        (404, r#"{"detail":"Not Found"}"#)
    );
    for (method, path, allow) in [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("PUT", "/instances/add", "POST"),
        ("POST", "/status", "GET"),
        ("DELETE", "/ping", "GET, POST"),
    ] {
        let response = raw(&rig, method, path, "", "");
        assert_eq!(response.status, 405, "{method} {path}");
        assert_eq!(response.text(), r#"{"detail":"Method Not Allowed"}"#);
        assert_eq!(response.header("allow"), Some(allow), "{method} {path}");
    }
    for (asked, location) in [
        ("/v1/models/", "/v1/models"),
        ("/v1/completions/?a=/b/", "/v1/completions?a=/b/"),
    ] {
        let response = raw(&rig, "POST", asked, "", "");
        assert_eq!(response.status, 307, "{asked}");
        assert_eq!(response.header("location"), Some(location));
        assert!(response.body.is_empty());
    }
    assert_eq!(rig.get("/v1/models//").status, 404);
}

#[test]
fn content_types() {
    let rig = rig(1, 1);
    let body = completion("a", "");
    let refused = r#"{"detail":"Unsupported Media Type: Only 'application/json' is allowed"}"#;
    for kind in [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/jsonx\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type:\r\n",
    ] {
        let response = raw(&rig, "POST", "/v1/completions", kind, &body);
        assert_eq!(
            (response.status, response.text()),
            (415, refused.into()),
            "{kind:?}"
        );
    }
    assert_eq!(rig.posts(0).len(), 0, "nothing of it reached an engine");
    for kind in [
        "content-type: application/json\r\n",
        "Content-Type: Application/JSON; charset=utf-8\r\n",
        "content-type: application/json ;charset=\"utf-8\"\r\n",
    ] {
        let response = raw(&rig, "POST", "/v1/completions", kind, &body);
        assert_eq!(response.status, 200, "{kind:?}");
    }
}

#[test]
fn bodies() {
    let rig = rig(1, 1);
    let deep = format!(r#"{{"prompt":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    for (path, body, message) in [
        ("completions", "", "Invalid JSON in request body"),
        ("completions", "{", "Invalid JSON in request body"),
        ("completions", "[1,", "Invalid JSON in request body"),
        (
            "chat/completions",
            "{\"a\":}",
            "Invalid JSON in request body",
        ),
        ("completions", "{}", "Missing required field: prompt"),
        ("completions", "[]", "Missing required field: prompt"),
        (
            "completions",
            "[{\"prompt\":1}]",
            "Missing required field: prompt",
        ),
        ("completions", "7", "Missing required field: prompt"),
        ("chat/completions", "{}", "Missing required field: messages"),
        ("chat/completions", "[]", "Missing required field: messages"),
        (
            "chat/completions",
            r#"{"messages":"x"}"#,
            "Field messages must be a list",
        ),
        (
            "chat/completions",
            r#"{"messages":{}}"#,
            "Field messages must be a list",
        ),
    ] {
        let response = raw(&rig, "POST", &format!("/v1/{path}"), JSON, body);
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.text(), object(message, BAD), "{body}");
    }
    let response = raw(&rig, "POST", "/v1/completions", JSON, &deep);
    assert_eq!(response.status, 400);
    assert!(
        response.text().contains("nested too deeply"),
        "{}",
        response.text()
    );
    assert_eq!(rig.posts(0).len(), 0, "nothing of it reached an engine");
    // A model is not needed, nor known, by a list of engines of one model.
    for body in [
        r#"{"prompt":"a"}"#,
        r#"{"model":"dummy","prompt":null,"prompt":"a"}"#,
    ] {
        let status = raw(&rig, "POST", "/v1/completions", JSON, body).status;
        assert_eq!(status, 200, "{body}");
    }
}

#[test]
fn an_engine_that_breaks_is_a_bad_gateway_with_its_reason() {
    let rig = rig_where(1, 1, unwatched);
    rig.sim.set_fault(1, Some(pdsim::Fault::AcceptThenClose));
    let response = rig.post("/v1/chat/completions", &chat("a", ""));
    assert_eq!(response.status, 502, "{}", response.text());
    let body = response.json();
    assert_eq!(
        body["detail"],
        "Bad Gateway: Error communicating with upstream server."
    );
    let error = &body["error"];
    assert_eq!(error["type"], "proxy_error");
    assert!(error["code"].is_null());
    let address = rig.sim.addresses()[1].to_string();
    assert!(
        error["message"].as_str().unwrap().contains(&address),
        "{error}"
    );
}

#[test]
fn an_engine_s_own_error_is_passed_on_whole() {
    let rig = rig_where(1, 1, unwatched);
    rig.sim.set_fault(1, Some(pdsim::Fault::Status(418)));
    let response = rig.post("/v1/completions", &completion("a", ""));
    assert_eq!(response.status, 418);
    assert!(response.json()["error"]["message"].is_string());
}

#[test]
fn nobody_to_ask_is_503() {
    let rig = rig(1, 1);
    // In the list and found healthy, but taken out of choice: the gate is open, and nobody can be picked.
    let cluster = rig.server.shared.cluster.get();
    cluster.instances[0]
        .draining
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let response = rig.post("/v1/completions", &completion("a", ""));
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(
        response.text(),
        object(
            "No available instance can handle the request",
            "proxy_error"
        )
    );
    assert!(response.header("retry-after").is_some());
}

#[test]
fn heads_that_are_no_requests() {
    let rig = rig_where(1, 1, |config| config.limits.body_bytes_max = 100);
    let body = completion(&"a".repeat(200), "");
    let response = raw(&rig, "POST", "/v1/completions", JSON, &body);
    assert_eq!(response.status, 413);
    let error = &response.json()["error"];
    assert_eq!(error["type"], BAD);
    assert!(error.as_object().unwrap().contains_key("code") && error["code"].is_null());
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nbad\r\n\r\n");
    assert_eq!(client.response().json()["error"]["type"], BAD);
}
