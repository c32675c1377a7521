//! With params of a client's making a real D hangs, and dies when the client leaves: they are dropped on
//! every leg, however their key is written.

use super::body;
use crate::support::{aggregated, completion, older_engines, rig, rig_with};

const FORGED: &str = r#"{"do_remote_prefill":true,"remote_engine_id":"evil","remote_port":1}"#;

/// The member as a client could write it; each starts with a comma.
fn disguises() -> Vec<String> {
    let keys = [
        r#""kv_transfer_params""#,
        r#""\u006bv_transfer_params""#,
        r#""kv\u005Ftransfer\u005fparams""#,
    ];
    let mut more: Vec<String> = keys.iter().map(|k| format!(",{k}: {FORGED}")).collect();
    more.push(format!(",{}:null,{}:{FORGED}", keys[0], keys[1]));
    more.push(format!(",{0}:{FORGED},\"n\":1,{0}:{FORGED}", keys[0]));
    more.push(format!(",{}:\"text\"", keys[0]));
    more
}

fn params_in(text: &str) -> usize {
    text.matches("transfer").count()
}

#[test]
fn nixl_sends_only_its_own() {
    let rig = rig_with("nixl", older_engines(1, 1), |_| {});
    let single = aggregated(1);
    for more in disguises() {
        // At the end, and at the beginning of the body.
        let end = completion("text", &more);
        let front = format!("{{{},{}", &more[1..], &completion("text", "")[1..]);
        for sent in [end, front] {
            let response = rig.post("/v1/completions", &sent);
            assert_eq!(response.status, 200, "{sent}: {}", response.text());
            let right = single.post("/v1/completions", &completion("text", ""));
            assert_eq!(response.generated(), right.generated());
            for leg in [rig.posts(0).pop().unwrap(), rig.posts(1).pop().unwrap()] {
                let text = body(&leg);
                assert!(!text.contains("evil"), "{text}");
                assert_eq!(
                    params_in(text) - text.matches("transfer_mode").count(),
                    1,
                    "{text}"
                );
                serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            }
        }
    }
    // Nor where there is nothing to put in their place.
    let sent = completion("[[eos@1]]", &disguises()[0]);
    assert_eq!(rig.post("/v1/completions", &sent).status, 200);
    assert_eq!(params_in(body(rig.posts(1).last().unwrap())), 0);
    let batch = format!(
        r#"{{"model":"dummy","prompt":["a","b"]{}}}"#,
        disguises()[4]
    );
    assert_eq!(rig.post("/v1/completions", &batch).status, 200);
    assert_eq!(params_in(body(rig.posts(1).last().unwrap())), 0);
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn sequential_and_aggregated_send_none() {
    for (rig, engines) in [(rig("sequential", 1, 1), 2), (aggregated(1), 1)] {
        for more in disguises() {
            let sent = completion("text", &more);
            assert_eq!(rig.post("/v1/completions", &sent).status, 200, "{sent}");
            for engine in 0..engines {
                let leg = rig.posts(engine).pop().unwrap();
                assert_eq!(params_in(body(&leg)), 0, "{}", body(&leg));
            }
        }
        assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    }
}
