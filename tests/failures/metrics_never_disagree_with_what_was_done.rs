//! `/metrics` is well-formed, and its counters add up to what clients and engines saw.

use std::collections::{BTreeMap, HashSet};

use super::ask;
use crate::support::{Rig, chat, completion, older_engines, post_bytes, rig, rig_with};

/// Every sample by its name and labels; panics on a line that Prometheus would not take.
fn samples(rig: &Rig) -> BTreeMap<String, f64> {
    let response = rig.get("/metrics");
    assert_eq!(response.status, 200);
    let kind = response.header("content-type").unwrap();
    assert!(kind.starts_with("text/plain"), "{kind}");
    let (mut samples, mut types) = (BTreeMap::new(), HashSet::new());
    let mut family = String::new();
    for line in response.text().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned()), "{name} comes twice");
            family = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(
                sample.starts_with(&family),
                "{sample} is not under {family}"
            );
            let bare = sample.split('{').next().unwrap();
            assert!(
                bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
                "{line}"
            );
            assert!(!sample.contains('{') || sample.ends_with('}'), "{line}");
            let old = samples.insert(sample.to_owned(), value.parse().unwrap());
            assert_eq!(old, None, "{sample} comes twice");
        }
    }
    samples
}

fn sum(samples: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let of = |s: &&String| {
        s.split('{').next() == Some(name) && labels.iter().all(|label| s.contains(label))
    };
    samples.iter().filter(|(s, _)| of(s)).map(|(_, v)| v).sum()
}

#[test]
fn counters_add_up() {
    let rig = rig_with("nixl", older_engines(2, 2), |_| {});
    let mut client = rig.client();
    let (mut sent, mut received) = (0, 0);
    let mut post = |path: &str, body: &str, header: &str| {
        client.send(post_bytes(path, body, header));
        let response = client.response();
        sent += body.len();
        received += response.raw_body.len() + response.head.len();
        response.status
    };
    for i in 0..10 {
        let more = if i % 2 == 0 { r#","stream":true"# } else { "" };
        assert_eq!(post("/v1/chat/completions", &chat("x", more), ""), 200);
    }
    for _ in 0..4 {
        assert_eq!(post("/v1/completions", &completion("y", ""), ""), 200);
    }
    let batch = r#"{"model":"dummy","prompt":["a","b"]}"#;
    assert_eq!(post("/v1/completions", batch, ""), 200);
    assert_eq!(
        post("/v1/completions", &completion("[[eos@1]]", ""), ""),
        200
    );
    let fault = "x-sim-fault-prefill: status:422\r\n";
    assert_eq!(post("/v1/completions", &completion("z", ""), fault), 422);
    let fault = "x-sim-fault-decode: status:418\r\n";
    assert_eq!(post("/v1/completions", &completion("z", ""), fault), 418);
    assert_eq!(post("/v1/completions", "{", ""), 400);
    assert_eq!(
        post("/tokenize", r#"{"model":"dummy","prompt":"x"}"#, ""),
        200
    );
    drop(client);
    let s = samples(&rig);

    let requests = |endpoint: &str, code: &str| {
        let (endpoint, code) = (
            format!("endpoint=\"{endpoint}\""),
            format!("code=\"{code}\""),
        );
        sum(&s, "pdrelay_requests_total", &[&endpoint, &code])
    };
    assert_eq!(requests("chat", "200"), 10.0);
    assert_eq!(requests("completions", "200"), 6.0);
    assert_eq!(requests("completions", "422"), 1.0);
    assert_eq!(requests("completions", "other"), 1.0);
    assert_eq!(requests("completions", "400"), 1.0);
    assert_eq!(requests("forward", "200"), 1.0);
    assert_eq!(
        sum(&s, "pdrelay_requests_total", &["endpoint=\"chat\""]),
        10.0
    );

    // What the engines got is what we say we sent, one by one.
    for (engine, role) in [(0, "prefill"), (1, "prefill"), (2, "decode"), (3, "decode")] {
        let instance = format!("instance=\"{}\"", rig.sim.addresses()[engine]);
        let role = format!("role=\"{role}\"");
        let of = |name: &str| sum(&s, name, &[&instance, &role]);
        let got = rig.posts(engine).len() as f64;
        assert_eq!(
            of("pdrelay_upstream_requests_total"),
            got,
            "engine {engine}"
        );
        let connections = of("pdrelay_upstream_connects_total");
        assert_eq!(connections + of("pdrelay_upstream_reused_total"), got);
        assert_eq!(of("pdrelay_upstream_head_seconds_count"), got);
        assert_eq!(of("pdrelay_instance_in_flight"), 0.0);
        assert_eq!(of("pdrelay_instance_ejected"), 0.0);
    }
    // 14 whole ones, a 422 at P, the eos (none), the 418 at D.
    assert_eq!(
        sum(&s, "pdrelay_kv_grants_total", &["outcome=\"spent\""]),
        15.0
    );
    assert_eq!(
        sum(&s, "pdrelay_kv_grants_total", &["outcome=\"none\""]),
        1.0
    );
    assert_eq!(sum(&s, "pdrelay_kv_grants_total", &[]), 16.0);
    assert_eq!(
        sum(&s, "pdrelay_prefill_skipped_total", &["reason=\"batch\""]),
        1.0
    );
    assert_eq!(
        sum(
            &s,
            "pdrelay_request_errors_total",
            &["kind=\"bad_request\""]
        ),
        1.0
    );
    assert_eq!(sum(&s, "pdrelay_request_errors_total", &[]), 1.0);
    for nothing in [
        "pdrelay_retries_total",
        "pdrelay_timeouts_total",
        "pdrelay_client_gone_total",
        "pdrelay_broken_streams_total",
        "pdrelay_upstream_failures_total",
        "pdrelay_ejections_total",
        "pdrelay_panics_total",
        "pdrelay_connections_rejected_total",
    ] {
        assert_eq!(sum(&s, nothing, &[]), 0.0, "{nothing}");
    }
    assert_eq!(
        sum(&s, "pdrelay_bytes_total", &["direction=\"in\""]),
        sent as f64
    );
    assert_eq!(
        sum(&s, "pdrelay_bytes_total", &["direction=\"out\""]),
        received as f64
    );
    let stage = |stage: &str| {
        let stage = format!("stage=\"{stage}\"");
        sum(&s, "pdrelay_stage_seconds_count", &[&stage])
    };
    // All but the one that was no JSON went on to an engine; of those one was forwarded, one skipped P.
    assert_eq!((stage("total"), stage("body")), (20.0, 20.0));
    assert_eq!(stage("prefill"), 17.0);
    assert_eq!(stage("decode_head"), 18.0);
}

#[test]
fn histograms_are_cumulative() {
    let rig = rig("nixl", 1, 1);
    (0..5).for_each(|_| assert_eq!(ask(&rig).status, 200));
    let page = rig.get("/metrics").text();
    let mut buckets: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in page.lines().filter(|l| l.contains("_bucket{")) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (start, le) = sample.split_once("le=\"").unwrap();
        let rest = le.split_once('"').unwrap().1;
        let key = format!("{start}{rest}");
        buckets.entry(key).or_default().push(value.parse().unwrap());
    }
    assert!(buckets.len() > 5);
    for (name, values) in buckets {
        assert!(values.is_sorted(), "{name}: {values:?}");
        // The last one, +Inf, is the count.
        let count = name.replace("_bucket{", "_count{").replace(",}", "}");
        let found = page.lines().find(|l| l.starts_with(&count));
        if let Some(line) = found {
            assert!(
                line.ends_with(&format!(" {}", values.last().unwrap())),
                "{line}"
            );
        }
    }
}

/// Timings travel in the reply as well, each stage once and none longer than the whole.
#[test]
fn server_timing_names_each_stage() {
    let rig = rig("nixl", 1, 1);
    let response = ask(&rig);
    let timing = response.header("server-timing").unwrap();
    let spans: Vec<(&str, f64)> = timing
        .split(", ")
        .map(|span| {
            let (name, ms) = span.split_once(";dur=").unwrap();
            (name, ms.parse().unwrap())
        })
        .collect();
    let names: Vec<_> = spans.iter().map(|s| s.0).collect();
    assert_eq!(names, ["body", "prefill", "decode_head", "total"]);
    assert!(spans.iter().all(|s| s.1 <= spans[3].1), "{timing}");
}
