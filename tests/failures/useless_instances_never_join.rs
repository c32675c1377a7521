//! What is added by hand is an engine that some stage asks, once.

use crate::support::{Response, Rig, engines, post_bytes, rig_with};

fn rig(handshake: &str) -> Rig {
    let list = match handshake {
        "aggregated" => vec![crate::support::engine(pdsim::Role::Both)],
        _ => engines(1, 1),
    };
    rig_with(handshake, list, |config| {
        config.admin_api_key = Some(pdrelay::config::Secret("k".into()));
    })
}

fn add(rig: &Rig, role: &str, address: &str) -> Response {
    let body = format!(r#"{{"role":"{role}","address":"{address}"}}"#);
    let mut client = rig.client();
    client.send(post_bytes("/admin/instances", &body, "x-api-key: k\r\n"));
    client.response()
}

#[test]
fn a_role_that_nobody_asks_is_refused() {
    for (handshake, unused) in [
        ("nixl", vec!["encode"]),
        ("sequential", vec!["encode"]),
        ("aggregated", vec!["encode", "prefill", "decode"]),
    ] {
        let rig = rig(handshake);
        for role in unused {
            let response = add(&rig, role, "127.0.0.1:1");
            assert_eq!(response.status, 400, "{handshake} {role}");
            let says = format!("handshake {handshake} does not use {role} instances");
            assert!(response.text().contains(&says), "{}", response.text());
        }
        // For models of their own.
        assert_eq!(add(&rig, "aggregated", "127.0.0.1:1").status, 200);
    }
}

#[test]
fn an_engine_is_in_the_list_once_by_whatever_name() {
    let rig = rig("nixl");
    let port = rig.sim.addresses()[1].port();
    for (role, host) in [
        ("decode", "127.0.0.1"),
        ("prefill", "127.0.0.1"),
        ("decode", "[::FFFF:127.0.0.1]"),
        ("decode", "localhost"),
    ] {
        let response = add(&rig, role, &format!("{host}:{port}"));
        assert_eq!(response.status, 409, "{role} {host}: {}", response.text());
        let says = format!("decode 127.0.0.1:{port}");
        assert!(response.text().contains(&says), "{}", response.text());
    }
    let listed = rig.get("/status").json()["instances"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(listed, 2);
    // Another port is another engine, also by name; what it is called stays.
    let response = add(&rig, "decode", "localhost:1");
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(
        response.text().contains("\"localhost:1\""),
        "{}",
        response.text()
    );
}
