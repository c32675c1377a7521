//! `/health`: is the proxy alive. `/ready`: could a request be served. `/status`: why.

use std::time::Duration;

use super::{ask, message};
use crate::support::{Rig, engines, eventually, rig_with};

fn probed(p: usize, d: usize) -> Rig {
    rig_with("nixl", engines(p, d), |c| {
        c.health_check.interval = Duration::from_millis(50);
    })
}

#[test]
fn ready_means_one_of_each_role() {
    let rig = probed(2, 2);
    let ready = |rig: &Rig| rig.get("/ready").status;
    assert_eq!(ready(&rig), 200);
    assert_eq!(rig.get("/ready").json()["status"], "ready");
    rig.sim.kill(0);
    rig.sim.kill(2);
    let down = |n: usize| {
        let status = rig.get("/status").json();
        let all = status["instances"].as_array().unwrap();
        all.iter().filter(|i| i["health"] == "unhealthy").count() == n
    };
    eventually("two are seen down", || down(2));
    assert_eq!((ready(&rig), ask(&rig).status), (200, 200));
    rig.sim.kill(3);
    eventually("three are seen down", || down(3));
    let response = rig.get("/ready");
    assert_eq!(response.status, 503);
    let said = message(&response);
    assert!(said.contains("no decode instance is available"), "{said}");
    assert!(!said.contains("prefill"), "{said}");
    assert!(response.header("retry-after").is_some());
    // Alive all the same: a supervisor must not restart it for its engines' sake.
    assert_eq!(rig.get("/health").status, 200);
    assert_eq!(rig.get("/health").json()["status"], "ok");
    let status = rig.get("/status").json();
    assert_eq!(status["ready"], false);
    let roles: Vec<_> = status["instances"].as_array().unwrap().iter().collect();
    let names: Vec<_> = roles.iter().map(|i| i["role"].as_str().unwrap()).collect();
    assert_eq!(names, ["prefill", "prefill", "decode", "decode"]);
    for (instance, address) in roles.iter().zip(rig.sim.addresses()) {
        assert_eq!(instance["address"], address.to_string());
        assert_eq!(
            (&instance["requests"], &instance["tokens"]),
            (&0.into(), &0.into())
        );
    }
    rig.sim.restart(2);
    eventually("it is ready again", || ready(&rig) == 200);
    assert_eq!(ask(&rig).status, 200);
}

#[test]
fn status_says_what_is_configured() {
    let rig = rig_with("nixl", engines(1, 1), |c| {
        c.scheduling.decode = "round_robin".into();
        c.instances[1].weight = 2.5;
        c.limits.in_flight_max = 77;
    });
    let status = rig.get("/status").json();
    assert_eq!(status["handshake"], "nixl");
    assert_eq!(status["scheduling"]["prefill"], "least_load");
    assert_eq!(status["scheduling"]["decode"], "round_robin");
    assert_eq!(status["instances"][1]["weight"], 2.5);
    assert_eq!(status["limits"]["in_flight"]["max"], 77);
    assert_eq!(status["limits"]["in_flight"]["now"], 0);
    assert_eq!(status["draining"], false);
    assert_eq!(status["shards"].as_array().unwrap().len(), 2);
    for shard in status["shards"].as_array().unwrap() {
        let driver = shard["driver"].as_str().unwrap();
        assert!(["io_uring+defer_taskrun", "io_uring", "epoll"].contains(&driver));
    }
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}

/// The operator's pages have their methods, like any path.
#[test]
fn pages_answer_head_and_refuse_post() {
    let rig = crate::support::rig("nixl", 1, 1);
    for page in ["/health", "/ready", "/metrics", "/status"] {
        let mut client = rig.client();
        client.send(format!("HEAD {page} HTTP/1.1\r\nhost: t\r\n\r\n"));
        let head = client.response_to("HEAD");
        assert_eq!(head.status, 200, "{page}");
        let response = client.post(page, "{}");
        assert_eq!(response.status, 405, "{page}");
        assert_eq!(response.header("allow"), Some("GET, HEAD"), "{page}");
    }
}
