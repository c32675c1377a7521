//! `mooncake`: the engine id comes from P's bootstrap server, and is asked for again after P was restarted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sidecar::{beside, fields, post, says};
use crate::support::eventually;
use crate::support::scripted::{Say, Scripted, answer};

#[test]
fn one_transfer_id_goes_to_both_and_stale_engine_ids_to_nobody() {
    let life = Arc::new(AtomicUsize::new(1));
    let bootstrap = Scripted::start({
        let life = life.clone();
        move |_, request| {
            assert!(request.starts_with("GET /query HTTP/1.1\r\n"), "{request}");
            let body = format!(
                r#"{{"0":{{"engine_id":"engine-{}"}}}}"#,
                life.load(Ordering::Relaxed)
            );
            Say::Bytes(answer("200 OK", &body))
        }
    });
    let (p, d) = (says("200 OK", "{}"), says("200 OK", r#"{"from":"d"}"#));
    let port = format!("--mooncake-bootstrap-port={}", bootstrap.address.port());
    let server = beside("sidecar", d.address, &["--kv-connector=mooncake", &port]);
    let sent = r#"{"prompt":"x","max_tokens":9,"max_completion_tokens":9,"stream":true,"stream_options":{}}"#;
    let mut turn = 0;
    let mut ask = || {
        let response = post(&server, "/v1/completions", sent, &p, "");
        assert_eq!(response.text(), r#"{"from":"d"}"#);
        turn += 1;
        eventually("P was asked", || p.bodies().len() >= turn);
        let at_p: serde_json::Value = serde_json::from_str(&p.bodies()[turn - 1]).unwrap();
        let at_d: serde_json::Value = serde_json::from_str(&d.bodies()[turn - 1]).unwrap();
        (at_p, at_d)
    };
    let (at_p, at_d) = ask();
    let (for_p, for_d) = (&at_p["kv_transfer_params"], &at_d["kv_transfer_params"]);
    let id = for_p["transfer_id"].as_str().unwrap();
    assert!(id.starts_with("xfer-") && id.len() == 41, "{id}");
    assert_eq!(for_p["do_remote_decode"], true);
    assert_eq!(for_p["do_remote_prefill"], false);
    let caps = (
        &at_p["max_tokens"],
        &at_p["max_completion_tokens"],
        &at_p["stream"],
    );
    assert_eq!(caps, (&1.into(), &1.into(), &false.into()));
    assert!(at_p.get("stream_options").is_none());
    assert_eq!(for_d["transfer_id"], id);
    assert_eq!(for_d["remote_engine_id"], "engine-1");
    assert_eq!(
        for_d["remote_bootstrap_addr"],
        format!("http://127.0.0.1:{}", bootstrap.address.port())
    );
    assert_eq!(
        (&at_d["max_tokens"], &at_d["stream"]),
        (&9.into(), &true.into())
    );
    assert_eq!(fields(&p.requests()[0], "x-data-parallel-rank"), ["0"]);
    // At once again: what was just said still holds.
    ask();
    assert_eq!(bootstrap.requests().len(), 1);
    // P is another one by now. The original's cache never learned of it.
    life.store(2, Ordering::Relaxed);
    std::thread::sleep(std::time::Duration::from_millis(5100));
    let (_, at_d) = ask();
    assert_eq!(at_d["kv_transfer_params"]["remote_engine_id"], "engine-2");
}

#[test]
fn a_bootstrap_server_that_is_not_there_is_a_bad_gateway() {
    let gone = says("200 OK", "{}");
    let port = format!("--mooncake-bootstrap-port={}", gone.address.port());
    drop(gone);
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    for (bootstrap, port) in [(None, port), {
        let odd = says("200 OK", r#"{"0":{}}"#);
        let port = format!("--mooncake-bootstrap-port={}", odd.address.port());
        (Some(odd), port)
    }] {
        let server = beside("sidecar", d.address, &["--kv-connector=mooncake", &port]);
        let response = post(&server, "/v1/completions", r#"{"prompt":"x"}"#, &p, "");
        assert_eq!(
            (response.status, response.json()["type"].clone()),
            (502, "BadGateway".into())
        );
        drop(bootstrap);
    }
    assert!(p.bodies().is_empty() && d.bodies().is_empty());
}
