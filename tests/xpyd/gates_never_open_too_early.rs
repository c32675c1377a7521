//! It listens at once, and says 503 to all but its own pages until the backends are there, and again
//! whenever they are not.

use super::{face, object, open, raw, rig};
use crate::support::{Rig, completion, engine, engines, eventually, rig_with};

fn waiting(rig: &Rig, method: &str, path: &str) -> bool {
    let response = raw(rig, method, path, "origin: http://a\r\n", "");
    let waits = response.status == 503
        && response.text() == object("Waiting for backend nodes", "proxy_error");
    if waits {
        assert_eq!(response.header("access-control-allow-origin"), None);
        assert!(response.header("retry-after").is_some());
    }
    waits
}

const GATED: [(&str, &str); 7] = [
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/version"),
    ("OPTIONS", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/nowhere"),
    ("GET", "/v1/models/"),
];
const OPEN: [(&str, &str); 7] = [
    ("GET", "/health"),
    ("GET", "/ping"),
    ("GET", "/status"),
    ("GET", "/status/instances"),
    ("GET", "/metrics"),
    ("POST", "/instances/add"),
    ("POST", "/instances/remove"),
];

#[test]
fn it_follows_the_backends_both_ways() {
    let rig = rig_with("sequential", engines(1, 2), |config| {
        face(config);
        // Nobody is there yet.
        for one in &mut config.instances {
            one.address = pdrelay::config::Address::tcp("127.0.0.1", 1);
        }
    });
    for (method, path) in GATED {
        assert!(waiting(&rig, method, path), "{method} {path}");
    }
    for (method, path) in OPEN {
        assert!(!waiting(&rig, method, path), "{method} {path}");
    }
}

#[test]
fn it_opens_closes_and_opens_again() {
    let rig = rig(1, 2);
    for (method, path) in GATED {
        assert!(!waiting(&rig, method, path), "{method} {path}");
    }
    assert_eq!(
        rig.post("/v1/completions", &completion("a", "")).status,
        200
    );
    rig.sim.kill(1);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!waiting(&rig, "GET", "/v1/models"), "there is another D");
    rig.sim.kill(2);
    eventually("no D is left", || waiting(&rig, "GET", "/v1/models"));
    for (method, path) in GATED {
        assert!(waiting(&rig, method, path), "{method} {path}");
    }
    rig.sim.restart(2);
    open(&rig);
    rig.sim.kill(0);
    eventually("no P is left", || waiting(&rig, "POST", "/v1/completions"));
    rig.sim.restart(0);
    open(&rig);
    assert_eq!(
        rig.post("/v1/completions", &completion("a", "")).status,
        200
    );
}

/// Health checks are off; whether the backends are there is known all the same.
#[test]
fn it_works_without_health_checks() {
    let rig = super::rig_where(1, 1, |config| config.health_check.enabled = false);
    rig.sim.kill(0);
    eventually("P is gone", || waiting(&rig, "GET", "/v1/models"));
    rig.sim.restart(0);
    open(&rig);
}

#[test]
fn an_aggregated_engine_is_enough_and_decode_engines_are_not() {
    let aggregated = rig_with("aggregated", vec![engine(pdsim::Role::Both)], face);
    open(&aggregated);
    let decode_only = rig_with("sequential", engines(0, 2), face);
    eventually("both are seen", || {
        let page = decode_only.get("/status/instances").json();
        let all = page["decode_instances"].as_array().unwrap();
        all.iter().all(|one| one["status"] == "healthy")
    });
    assert!(waiting(&decode_only, "POST", "/v1/completions"));
}
