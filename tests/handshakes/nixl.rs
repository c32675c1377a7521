//! `nixl`: P with the template and one token, then D with the original body and P's params.

use super::{CHAT, CHAT_AT_P, COMPLETION, COMPLETION_AT_P, TEMPLATE, body, names};
use crate::support::{Rig, completion, older_engines, post_bytes, rig, rig_with};

fn send(rig: &Rig, path: &str, body: &str) -> crate::support::Response {
    let mut client = rig.client();
    client.send(post_bytes(
        path,
        body,
        "X-Request-ID: the-clients-own\r\nAuthorization: Bearer k\r\naccept-encoding: gzip\r\n\
         TraceParent: 00-1\r\nX-Custom: a  b\r\nConnection: keep-alive, x-hop\r\nx-hop: 1\r\n",
    ));
    client.response()
}

#[test]
fn each_leg_gets_exactly_what_it_should() {
    for (path, sent, at_p) in [
        ("/v1/chat/completions?a=1&b=%20%2F", CHAT, CHAT_AT_P),
        ("/v1/completions", COMPLETION, COMPLETION_AT_P),
    ] {
        let rig = rig("nixl", 1, 1);
        let response = send(&rig, path, sent);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.complete);
        assert_eq!(response.header("x-request-id"), Some("the-clients-own"));

        let (p, d) = (rig.posts(0), rig.posts(1));
        assert_eq!((p.len(), d.len()), (1, 1));
        assert_eq!(body(&p[0]), at_p.replace("KV", TEMPLATE));

        // D: the original, and before its last brace the params, whole.
        let at = sent.rfind('}').unwrap();
        let params = body(&d[0])
            .strip_prefix(&sent[..at])
            .and_then(|rest| rest.strip_prefix(r#","kv_transfer_params":"#))
            .and_then(|rest| rest.strip_suffix(&sent[at..]))
            .unwrap_or_else(|| panic!("{} is not the original and params", body(&d[0])));
        let params: serde_json::Value = serde_json::from_str(params).unwrap();
        assert_eq!(params["do_remote_prefill"], true);
        assert_eq!(params.as_object().unwrap().len(), 14);

        for leg in [&p[0], &d[0]] {
            assert_eq!(leg.path, path);
            assert_eq!(leg.header("x-request-id"), Some("the-clients-own"));
            assert_eq!(leg.header("authorization"), Some("Bearer k"));
            assert_eq!(leg.header("x-custom"), Some("a  b"));
            assert_eq!(
                leg.header("content-length"),
                Some(&*leg.body.len().to_string())
            );
        }
        let common =
            "authorization content-length content-type host traceparent x-custom x-request-id";
        assert_eq!(names(&p[0]).join(" "), common);
        // A compressed answer would hide the params, so only D is told what the client accepts.
        assert_eq!(names(&d[0]).join(" "), format!("accept-encoding {common}"));

        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!((ledger.grants, ledger.fetched), (1, 1));
    }
}

#[test]
fn an_id_is_made_once_and_is_the_same_everywhere() {
    let rig = rig("nixl", 1, 1);
    for bad in [
        "",
        "x-request-id: two words\r\n",
        "x-request-id: \u{e9}\r\n",
    ] {
        let mut client = rig.client();
        client.send(post_bytes("/v1/completions", COMPLETION, bad));
        let response = client.response();
        let id = response.header("x-request-id").unwrap().to_owned();
        let legs = [rig.posts(0).pop().unwrap(), rig.posts(1).pop().unwrap()];
        assert_eq!(id.len(), 36, "{id}");
        for leg in legs {
            let ids: Vec<_> = leg
                .headers
                .iter()
                .filter(|h| h.0 == "x-request-id")
                .collect();
            assert_eq!(ids, [&("x-request-id".to_owned(), id.clone())]);
        }
    }
}

#[test]
fn both_names_of_the_token_limit_become_one_at_p() {
    let rig = rig("nixl", 1, 1);
    for (limit, at_p) in [
        (
            r#""max_completion_tokens":9"#,
            r#""max_completion_tokens":1,"max_tokens":1"#,
        ),
        (
            r#""max_tokens":8,"max_completion_tokens":9"#,
            r#""max_tokens":1,"max_completion_tokens":1"#,
        ),
        (r#""max_tokens":null"#, r#""max_tokens":1"#),
    ] {
        let sent = crate::support::chat("x", &format!(",{limit}"));
        assert_eq!(rig.post("/v1/chat/completions", &sent).status, 200);
        let leg = rig.posts(0).pop().unwrap();
        let text = body(&leg);
        let own = r#","stream":false"#;
        // What the client named stays in its place; what it did not is added behind.
        let wanted: Vec<&str> = at_p.split(',').collect();
        assert!(wanted.iter().all(|w| text.contains(w)), "{text}");
        assert!(text.contains(own), "{text}");
        assert_eq!(text.matches("max_tokens").count(), 1, "{text}");
    }
}

#[test]
fn a_prefill_that_ended_on_its_first_token_leaves_decode_to_compute() {
    let sent = completion("[[eos@1]] text", r#","max_tokens":4"#);
    // Newer engines hand over all the same.
    let newer = rig("nixl", 1, 1);
    let response = newer.post("/v1/completions", &sent);
    assert_eq!(response.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(newer.sim.ledger().fetched, 1);
    let rig = rig_with("nixl", older_engines(1, 1), |_| {});
    let response = rig.post("/v1/completions", &sent);
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(rig.posts(0).len(), 1);
    // Null params are not passed on: the body is the client's own, byte for byte.
    assert_eq!(body(&rig.posts(1)[0]), sent);
    assert_eq!(rig.sim.ledger().grants, 0);
    assert_eq!(
        rig.metric(r#"pdrelay_kv_grants_total{outcome="none"}"#),
        1.0
    );
}

/// Taken out of P's leg, they would have D alone reject the request, and P hold KV for nobody.
#[test]
fn stream_options_without_a_stream_never_hold_kv() {
    let rig = rig("nixl", 1, 1);
    for stream in ["", r#","stream":false"#, r#","stream":null"#] {
        let more = format!(r#","stream_options":{{"include_usage":true}}{stream}"#);
        let response = rig.post("/v1/completions", &completion("x", &more));
        assert_eq!(response.status, 400, "{}", response.text());
        assert_eq!(response.json()["error"]["param"], "stream_options");
    }
    let more = r#","stream_options":{"include_usage":true},"stream":"true""#;
    let response = rig.post("/v1/completions", &completion("x", more));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(rig.posts(1).len(), 1);
    let ledger = rig.sim.ledger();
    assert_eq!((ledger.grants, ledger.held_now), (1, 0));
}

#[test]
fn several_choices_of_one_prompt_are_prefilled_once() {
    let rig = rig("nixl", 1, 1);
    let single = crate::support::aggregated(1);
    let sent = completion("pick two", r#","n":2,"max_tokens":4"#);
    let (one, two) = (
        single.post("/v1/completions", &sent).json(),
        rig.post("/v1/completions", &sent).json(),
    );
    for choice in [0, 1] {
        assert_eq!(
            one["choices"][choice]["text"],
            two["choices"][choice]["text"]
        );
    }
    assert!(body(&rig.posts(0)[0]).contains(r#""n":1"#));
    assert!(body(&rig.posts(1)[0]).contains(r#""n":2"#));
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.grants, ledger.fetched), (1, 1));
}
