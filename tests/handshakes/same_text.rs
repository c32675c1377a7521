//! Text through prefill and decode must be the text of a single server.

use crate::support::{aggregated, chat, completion, rig};

#[test]
fn disaggregated_text_never_differs_from_a_single_servers() {
    let single = aggregated(1);
    for handshake in ["nixl", "sequential"] {
        let split = rig(handshake, 2, 2);
        for i in 0..20 {
            let text = format!("prompt number {i} of many words");
            for more in ["", r#","stream":true"#, r#","max_tokens":5"#] {
                for (path, body) in [
                    ("/v1/chat/completions", chat(&text, more)),
                    ("/v1/completions", completion(&text, more)),
                ] {
                    let (one, two) = (single.post(path, &body), split.post(path, &body));
                    assert_eq!((one.status, two.status), (200, 200), "{}", two.text());
                    assert_eq!(one.generated(), two.generated());
                    assert!(!one.generated().is_empty() && two.complete);
                }
            }
        }
        let ledger = split.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        if handshake == "nixl" {
            assert_eq!(
                (ledger.grants, ledger.fetched, ledger.held_now),
                (120, 120, 0)
            );
        }
    }
}
