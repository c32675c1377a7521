//! Its pages, byte for byte where the original's are fixed.

use super::{face, raw, rig, rig_where};
use crate::support::{engines, eventually, rig_with};

#[test]
fn status_lists_nodes_as_configured_and_doubles_twice() {
    let rig = rig_where(1, 1, |config| {
        let double = config.instances[1].clone();
        config.instances.push(double);
    });
    let [p, d] = [rig.sim.addresses()[0], rig.sim.addresses()[1]];
    let response = rig.get("/status");
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(
        response.text(),
        format!(
            r#"{{"prefill_node_count":1,"decode_node_count":2,"prefill_nodes":["{p}"],"decode_nodes":["{d}","{d}"]}}"#
        )
    );
    let instances = rig.get("/status/instances").json();
    assert_eq!(instances["decode_instances"].as_array().unwrap().len(), 1);
}

#[test]
fn instances_say_status_circuit_load_and_last_check() {
    let rig = rig(1, 1);
    let page = rig.get("/status/instances");
    let text = page.text();
    let start = format!(
        r#"{{"prefill_instances":[{{"address":"{}","status":"healthy","circuit":"closed","active_requests":0,"last_check":"#,
        rig.sim.addresses()[0]
    );
    assert!(text.starts_with(&start), "{text}");
    assert!(text.ends_with(r#"}],"aggregated_instances":[]}"#), "{text}");
    let check = &page.json()["prefill_instances"][0]["last_check"];
    assert!(check.is_f64(), "{check}");
    rig.sim.kill(1);
    eventually("it is seen to be gone", || {
        let page = rig.get("/status/instances").json();
        page["decode_instances"][0]["status"] == "unhealthy"
    });
}

/// What was never looked at is not said to be well.
#[test]
fn checks_that_are_off_still_say_who_is_there() {
    let rig = rig_where(1, 1, |config| config.health_check.enabled = false);
    rig.sim.kill(1);
    eventually("it is seen to be gone", || {
        let page = rig.get("/status/instances").json();
        page["decode_instances"][0]["status"] == "unhealthy"
    });
}

#[test]
fn models_are_listed_without_asking_an_engine() {
    let rig = rig(1, 1);
    let asked = |rig: &crate::support::Rig| {
        let all = rig.sim.transcript(0);
        all.iter().filter(|r| r.path == "/v1/models").count()
    };
    // Each engine is asked once after its start, behind everybody's back.
    eventually("it is asked what it is", || asked(&rig) == 1);
    let before = asked(&rig);
    assert_eq!(
        rig.get("/v1/models").text(),
        r#"{"object":"list","data":[{"id":"dummy","object":"model","created":0,"owned_by":"system"}]}"#
    );
    assert_eq!(asked(&rig), before);
    let many = rig_where(1, 1, |config| {
        config.model = String::new();
        config.models.strict = true;
        config.instances[0].model = "b".into();
        config.instances[1].model = "a".into();
    });
    let names = many.get("/v1/models").json();
    let names: Vec<_> = names["data"].as_array().unwrap().iter().collect();
    assert_eq!([&names[0]["id"], &names[1]["id"]], ["a", "b"]);
}

#[test]
fn health_ping_and_version_say_what_engines_say() {
    let rig = rig(2, 1);
    let [p, q, d] = [0, 1, 2].map(|i| rig.sim.addresses()[i].to_string());
    let health = rig.get("/health");
    assert_eq!(health.status, 200);
    assert_eq!(health.header("content-type"), Some("application/json"));
    let empty = r#"{"status":200,"type":"text","data":""}"#;
    assert_eq!(
        health.text(),
        format!(r#"{{"{p}":{empty},"{q}":{empty},"{d}":{empty}}}"#)
    );
    for method in ["GET", "POST"] {
        let ping = raw(&rig, method, "/ping", "", "");
        assert_eq!(ping.text(), health.text(), "{method}");
    }
    assert_eq!(
        rig.get("/version").text(),
        format!(r#"{{"{p}":{{"status":200,"type":"json","data":{{"version":"0.32.0+pdsim"}}}}}}"#)
    );
    rig.sim.kill(0);
    eventually("its death is seen", || {
        let page = rig.get("/status/instances").json();
        page["prefill_instances"][0]["status"] == "unhealthy"
    });
    let gone = r#"{"status":500,"error":"Failed to connect to instance"}"#;
    let health = rig.get("/health");
    assert_eq!(health.status, 200);
    assert_eq!(
        health.text(),
        format!(r#"{{"{p}":{gone},"{q}":{empty},"{d}":{empty}}}"#)
    );
    assert!(
        rig.get("/version")
            .text()
            .starts_with(&format!(r#"{{"{q}":"#))
    );
    rig.sim.kill(1);
    rig.sim.kill(2);
    for path in ["/health", "/ping"] {
        let response = rig.get(path);
        assert_eq!(response.status, 503, "{path}");
        assert_eq!(
            response.text(),
            format!(r#"{{"{p}":{gone},"{q}":{gone},"{d}":{gone}}}"#)
        );
    }
}

#[test]
fn without_an_engine_nothing_is_healthy() {
    let rig = rig_with("sequential", engines(1, 1), |config| {
        face(config);
        config.instances.clear();
    });
    let response = rig.get("/health");
    assert_eq!(response.status, 500);
    assert_eq!(
        response.text(),
        super::object("No instances available", "server_error")
    );
}

#[test]
fn metrics_are_text_of_its_type() {
    let rig = rig(1, 1);
    let response = rig.get("/metrics");
    assert_eq!(
        response.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(response.text().contains("\npdrelay_requests_total{"));
}

/// Nothing of this is on pdrelay's own face.
#[test]
fn the_native_face_has_none_of_it() {
    let rig = crate::support::rig("sequential", 1, 1);
    assert_eq!(rig.get("/health").text(), r#"{"status":"ok"}"#);
    assert_eq!(rig.get("/status/instances").status, 404);
    let response = raw(&rig, "GET", "/nowhere", "origin: http://a\r\n", "");
    assert_eq!(response.json()["error"]["code"], 404);
    assert_eq!(response.header("access-control-allow-origin"), None);
    assert!(!rig.get("/metrics").text().contains("\nproxy_"));
    let body = crate::support::completion("x", "");
    assert_eq!(raw(&rig, "POST", "/v1/completions", "", &body).status, 200);
}
