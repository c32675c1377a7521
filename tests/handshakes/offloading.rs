//! `offloading`: P first, then D with P's place; cached prefixes come from whoever the header names.

use crate::sidecar::{beside, beside_with, post, post_plain, says};

const SENT: &str = r#"{"prompt":"x","max_tokens":9}"#;

fn params(body: &str) -> serde_json::Value {
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["kv_transfer_params"].clone()
}

#[test]
fn one_id_goes_to_both_one_after_the_other() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", r#"{"from":"d"}"#));
    let server = beside(
        "sidecar",
        d.address,
        &["--kv-connector=offloading", "--p2p-connector-port=7001"],
    );
    let response = post(&server, "/v1/completions", SENT, &p, "");
    assert_eq!(response.text(), r#"{"from":"d"}"#);
    let (at_p, at_d) = (params(&p.bodies()[0]), params(&d.bodies()[0]));
    let id = at_p["remote_decoder"]["kv_request_id"].as_str().unwrap();
    assert_eq!(id.len(), 36);
    let expected = serde_json::json!({"remote_prefiller":{"kv_request_id":id,"remote_host":"127.0.0.1","remote_port":7001}});
    assert_eq!(at_d, expected);
    assert!(
        p.bodies()[0].contains(r#""max_tokens":1"#) && d.bodies()[0].contains(r#""max_tokens":9"#)
    );
    // P's error is P's.
    let bad = says("429 Busy", r#"{"why":"busy"}"#);
    let response = post(&server, "/v1/completions", SENT, &bad, "");
    assert_eq!(
        (response.status, response.text()),
        (429, r#"{"why":"busy"}"#.into())
    );
    assert_eq!(d.bodies().len(), 1);
}

#[test]
fn cached_prefixes_are_pulled_from_others_only() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let start = |args: &[&str]| {
        beside_with("sidecar", d.address, args, |config| {
            config.sidecar.as_mut().unwrap().pod_ip = Some("10.9.9.9".parse().unwrap());
        })
    };
    let server = start(&["--kv-connector=offloading"]);
    let source = |of: &serde_json::Value| of["remote_kv_source"]["remote_host"].clone();
    let more = "x-kv-cache-source-host-port: 10.0.0.7:8000\r\n";
    post(&server, "/v1/completions", SENT, &p, more);
    assert_eq!(source(&params(&p.bodies()[0])), "10.0.0.7");
    assert!(params(&d.bodies()[0]).get("remote_kv_source").is_none());
    // P itself is no source for P.
    let own = format!("x-kv-cache-source-host-port: {}\r\n", p.address);
    post(&server, "/v1/completions", SENT, &p, &own);
    assert!(params(&p.bodies()[1]).get("remote_kv_source").is_none());
    // D alone, and then the pod itself.
    post_plain(&server, "/v1/completions", SENT, more);
    let at_d = params(d.bodies().last().unwrap());
    assert_eq!(source(&at_d), "10.0.0.7");
    assert_eq!(at_d["remote_kv_source"]["remote_port"], 7777);
    post_plain(
        &server,
        "/v1/completions",
        SENT,
        "x-kv-cache-source-host-port: 10.9.9.9:0\r\n",
    );
    assert_eq!(
        d.bodies().last().unwrap(),
        SENT,
        "what names nobody is ignored"
    );
    // With NIXL only where it is switched on.
    for (args, pulls) in [(&["--enable-p2p-pull"][..], true), (&[], false)] {
        post(&start(args), "/v1/completions", SENT, &p, more);
        let at_p = params(p.bodies().last().unwrap());
        assert_eq!(at_p["do_remote_decode"], true);
        assert_eq!(at_p.get("remote_kv_source").is_some(), pulls);
    }
}
