//! D does not go on from P's token, it makes its own: a sampled request must draw the same one on both.

use super::{outcome, p_first};
use crate::support::{completion, engines};

const TEXT: &str = "/v1/completions";

/// ` w` and the six digits that tell which draw a token is of.
fn draws(text: &str) -> Vec<&str> {
    let mut draws: Vec<&str> = text.split(" w").skip(1).map(|token| &token[..6]).collect();
    draws.dedup();
    draws
}

#[test]
fn sampled_text_is_of_one_draw() {
    for handshake in ["nixl", "sequential"] {
        let mut engines = engines(1, 1);
        engines.iter_mut().for_each(|e| e.sampling = true);
        let rig = p_first(handshake, engines);
        let mut seen = Vec::new();
        for more in [
            "",
            "",
            r#","temperature":0.7"#,
            r#","seed":null"#,
            r#","top_k":5"#,
        ] {
            let body = completion(
                "a prompt",
                &format!(r#","stream":true,"max_tokens":5{more}"#),
            );
            let response = rig.post(TEXT, &body);
            let text = response.generated();
            assert_eq!(text.len(), 5 * 12, "{text}");
            assert_eq!(draws(&text).len(), 1, "{more}: {text}");
            seen.push(draws(&text)[0].to_owned());
            let (p, d) = (rig.posts(0).pop().unwrap(), rig.posts(1).pop().unwrap());
            let seed = |leg: &pdsim::Received| {
                let body: serde_json::Value = serde_json::from_slice(&leg.body).unwrap();
                body["seed"].as_u64().expect("a seed")
            };
            assert_eq!(seed(&p), seed(&d));
        }
        // Sampled it still is: no two requests draw alike.
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 5, "{seen:?}");
        for more in [
            r#","temperature":0"#,
            r#","temperature":0.0"#,
            r#","temperature":1,"top_k":1"#,
            r#","seed":17"#,
        ] {
            let body = completion(
                "a prompt",
                &format!(r#","stream":true,"max_tokens":5{more}"#),
            );
            assert_eq!(draws(&rig.post(TEXT, &body).generated()).len(), 1, "{more}");
            let at_d = rig.posts(1).pop().unwrap().body;
            let at_d = String::from_utf8(at_d).unwrap();
            // Not a byte is ours, but for the KV.
            let sent = at_d.split(r#","kv_transfer_params""#).next().unwrap();
            assert_eq!(sent.trim_end_matches('}'), body.trim_end_matches('}'));
        }
        assert_eq!(
            (outcome(&rig, "sent"), outcome(&rig, "differed")),
            (9.0, 0.0)
        );
    }
}
