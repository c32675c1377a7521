//! Every family of its `/metrics`, with its type, help, labels and buckets.

use std::collections::{BTreeMap, BTreeSet};

use super::{raw, rig, rig_where, unwatched};
use crate::support::{Rig, completion, engine, eventually, rig_with};

/// One sample: labels and value.
type Sample = (BTreeMap<String, String>, f64);

#[derive(Default)]
struct Page {
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    samples: BTreeMap<String, Vec<Sample>>,
}

/// Reads the text format, strictly: one HELP and one TYPE per family, before its samples; no sample twice.
fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(
                page.helps.insert(name.into(), help.into()).is_none(),
                "{line}"
            );
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(
                page.types.insert(name.into(), kind.into()).is_none(),
                "{line}"
            );
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(seen.insert(series.to_owned()), "{line} comes twice");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels: BTreeMap<_, _> = labels
                .strip_suffix('}')
                .unwrap()
                .split_terminator("\",")
                .filter_map(|pair| pair.split_once("=\""))
                .map(|(k, v)| (k.to_owned(), v.trim_end_matches('"').to_owned()))
                .collect();
            if name.starts_with("proxy_") {
                let keys: Vec<_> = labels.keys().collect();
                let written: Vec<_> = series.match_indices("=\"").collect();
                assert_eq!(keys.len(), written.len(), "{line}");
                assert!(value.contains('.'), "{line}: not as a float");
            }
            let value = value.parse().unwrap();
            page.samples
                .entry(name.into())
                .or_default()
                .push((labels, value));
        }
    }
    page
}

fn page(rig: &Rig) -> Page {
    parse(&rig.get("/metrics").text())
}

/// The page once `requests` have been counted: an answer is out before it is counted.
fn after(rig: &Rig, requests: usize) -> Page {
    let mut last = Page::default();
    eventually("all are counted", || {
        last = page(rig);
        last.one("proxy_requests_total", &[]) == requests as f64
    });
    last
}

impl Page {
    fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let none = Vec::new();
        let all = self.samples.get(name).unwrap_or(&none);
        let fits = |s: &&Sample| {
            labels
                .iter()
                .all(|(k, v)| s.0.get(*k).is_some_and(|o| o == v))
        };
        all.iter().filter(fits).map(|s| s.1).sum()
    }
}

const PAIR: [&str; 3] = ["decode_instance", "model", "prefill_instance"];
const BUCKETS: [&str; 15] = [
    "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0",
    "7.5", "10.0", "+Inf",
];

/// Family, type, labels, help.
const FAMILIES: [(&str, &str, &[&str], &str); 15] = [
    (
        "proxy_requests_total",
        "counter",
        &["endpoint"],
        "Total number of proxy requests",
    ),
    (
        "proxy_request_duration_seconds",
        "histogram",
        &["endpoint"],
        "Request duration in seconds",
    ),
    (
        "proxy_active_requests",
        "gauge",
        &[],
        "Number of currently active requests",
    ),
    (
        "proxy_prefill_duration_seconds",
        "histogram",
        &PAIR,
        "Proxy-observed time from request start to completed prefill HTTP response",
    ),
    (
        "proxy_kv_transfer_duration_seconds",
        "histogram",
        &PAIR,
        "Estimated KV transfer time: decode first HTTP chunk minus prefill HTTP response completion; includes decode waiting and first-token computation",
    ),
    (
        "proxy_decode_duration_seconds",
        "histogram",
        &PAIR,
        "Total decode phase duration in seconds",
    ),
    (
        "proxy_ttft_seconds",
        "histogram",
        &PAIR,
        "Proxy-observed TTFT approximation: request start to decode first HTTP chunk, or prefill HTTP response completion for prefill-first requests",
    ),
    (
        "proxy_tpot_seconds",
        "histogram",
        &PAIR,
        "Average time per output token (decode phase) in seconds",
    ),
    (
        "proxy_e2e_latency_seconds",
        "histogram",
        &PAIR,
        "Total end-to-end request latency in seconds",
    ),
    (
        "proxy_prefill_active_requests",
        "gauge",
        &PAIR,
        "Number of requests currently in prefill stage",
    ),
    (
        "proxy_decode_active_requests",
        "gauge",
        &PAIR,
        "Number of requests currently in decode stage",
    ),
    (
        "proxy_prefill_queue_depth",
        "gauge",
        &PAIR,
        "Number of requests waiting for prefill (0 if no queueing exists)",
    ),
    (
        "proxy_prefill_requests_total",
        "counter",
        &PAIR,
        "Total number of requests routed to each prefill instance",
    ),
    (
        "proxy_decode_requests_total",
        "counter",
        &PAIR,
        "Total number of requests routed to each decode instance",
    ),
    (
        "proxy_instance_errors_total",
        "counter",
        &["error_type", "instance", "model"],
        "Total number of errors per instance and error type",
    ),
];

/// A decode that takes its time, so that there is more than one chunk.
fn paced() -> Rig {
    let mut list = crate::support::engines(1, 1);
    list[1].timing.decode_tick = std::time::Duration::from_millis(10);
    let rig = rig_with("sequential", list, |config| {
        super::face(config);
        unwatched(config);
    });
    super::open(&rig);
    rig
}

#[test]
fn every_family_is_there_with_its_labels_and_buckets() {
    let rig = paced();
    let stream = completion("a", r#","stream":true,"max_tokens":8,"ignore_eos":true"#);
    assert_eq!(rig.post("/v1/completions", &stream).status, 200);
    rig.sim.set_fault(1, Some(pdsim::Fault::Status(500)));
    assert_eq!(rig.post("/v1/completions", &stream).status, 500);
    let page = after(&rig, 2);
    for (name, kind, labels, help) in FAMILIES {
        assert_eq!(
            page.types.get(name).map(String::as_str),
            Some(kind),
            "{name}"
        );
        assert_eq!(
            page.helps.get(name).map(String::as_str),
            Some(help),
            "{name}"
        );
        let (sample, created) = match kind {
            "histogram" => (format!("{name}_bucket"), Some(format!("{name}_created"))),
            "counter" => {
                let stem = name.strip_suffix("_total").unwrap();
                (name.to_owned(), Some(format!("{stem}_created")))
            }
            _ => (name.to_owned(), None),
        };
        let samples = page
            .samples
            .get(&sample)
            .unwrap_or_else(|| panic!("no {sample}"));
        for (found, _) in samples {
            let keys: Vec<&str> = found
                .keys()
                .map(String::as_str)
                .filter(|k| *k != "le")
                .collect();
            assert_eq!(keys, labels, "{name}");
        }
        if kind == "histogram" {
            let bounds: Vec<&str> = samples
                .iter()
                .map(|s| s.0["le"].as_str())
                .take(15)
                .collect();
            assert_eq!(bounds, BUCKETS, "{name}");
            let counts: Vec<f64> = samples.iter().map(|s| s.1).take(15).collect();
            assert!(counts.is_sorted(), "{name}: {counts:?}");
            let count = page.samples[&format!("{name}_count")][0].1;
            assert_eq!(counts[14], count, "{name}");
            assert!(page.samples[&format!("{name}_sum")][0].1 > 0.0, "{name}");
        }
        if let Some(created) = created {
            assert_eq!(
                page.types.get(&created).map(String::as_str),
                Some("gauge"),
                "{created}"
            );
            assert_eq!(
                page.helps.get(&created).map(String::as_str),
                Some(help),
                "{created}"
            );
            let now = std::time::SystemTime::now();
            let now = now
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs_f64();
            let made = page.samples[&created][0].1;
            assert!((now - made).abs() < 600.0, "{created}: {made}");
        }
    }
}

#[test]
fn times_add_up() {
    let rig = paced();
    let stream = completion("a", r#","stream":true,"max_tokens":11,"ignore_eos":true"#);
    assert_eq!(rig.post("/v1/completions", &stream).status, 200);
    let page = after(&rig, 1);
    let sum = |name: &str| page.one(&format!("proxy_{name}_seconds_sum"), &[]);
    let (prefill, kv, ttft) = (
        sum("prefill_duration"),
        sum("kv_transfer_duration"),
        sum("ttft"),
    );
    let (decode, tpot, e2e) = (sum("decode_duration"), sum("tpot"), sum("e2e_latency"));
    assert!(
        (prefill + kv - ttft).abs() < 0.001,
        "{prefill} + {kv} = {ttft}"
    );
    assert!(ttft + decode <= e2e + 0.001, "{ttft} + {decode} <= {e2e}");
    // Ten ticks of 10 ms.
    assert!((0.08..20.0).contains(&decode), "{decode}");
    assert!(tpot > 0.0 && tpot < decode / 2.0, "{tpot} of {decode}");
    let total = page.one(
        "proxy_request_duration_seconds_sum",
        &[("endpoint", "/v1/completions")],
    );
    assert!((total - e2e).abs() < 0.005, "{total} {e2e}");
}

#[test]
fn requests_are_counted_once_and_the_pair_is_named() {
    let rig = rig(1, 1);
    let [p, d] = [
        rig.sim.addresses()[0].to_string(),
        rig.sim.addresses()[1].to_string(),
    ];
    for _ in 0..3 {
        assert_eq!(
            rig.post("/v1/completions", &completion("a", "")).status,
            200
        );
    }
    let unnamed = r#"{"messages":[{"role":"user","content":"a"}]}"#;
    assert_eq!(rig.post("/v1/chat/completions", unnamed).status, 200);
    // Refused: counted, if it was of the right type.
    assert_eq!(rig.post("/v1/completions", "{}").status, 400);
    assert_eq!(raw(&rig, "POST", "/v1/completions", "", "{}").status, 415);
    let page = after(&rig, 5);
    let completions = [("endpoint", "/v1/completions")];
    let chat = [("endpoint", "/v1/chat/completions")];
    assert_eq!(page.one("proxy_requests_total", &completions), 4.0);
    assert_eq!(page.one("proxy_requests_total", &chat), 1.0);
    assert_eq!(
        page.one("proxy_request_duration_seconds_count", &completions),
        4.0
    );
    for (model, count) in [("dummy", 3.0), ("unknown", 1.0)] {
        let pair = [
            ("prefill_instance", p.as_str()),
            ("decode_instance", d.as_str()),
            ("model", model),
        ];
        for name in [
            "proxy_prefill_requests_total",
            "proxy_decode_requests_total",
            "proxy_prefill_duration_seconds_count",
            "proxy_e2e_latency_seconds_count",
            "proxy_ttft_seconds_count",
        ] {
            assert_eq!(page.one(name, &pair), count, "{name} {model}");
        }
    }
    assert_eq!(
        page.one("proxy_tpot_seconds_count", &[]),
        0.0,
        "nothing was streamed"
    );
    assert_eq!(page.one("proxy_instance_errors_total", &[]), 0.0);
    assert_eq!(page.one("proxy_active_requests", &[]), 0.0);
}

#[test]
fn errors_name_the_instance_that_failed() {
    let rig = rig_where(1, 1, unwatched);
    let [p, d] = [
        rig.sim.addresses()[0].to_string(),
        rig.sim.addresses()[1].to_string(),
    ];
    let ask = || rig.post("/v1/completions", &completion("a", "")).status;
    let count = |kind: &str, instance: &str| {
        let labels = [
            ("error_type", kind),
            ("instance", instance),
            ("model", "dummy"),
        ];
        let is = || page(&rig).one("proxy_instance_errors_total", &labels) == 1.0;
        eventually(kind, is);
    };
    rig.sim.set_fault(0, Some(pdsim::Fault::Status(500)));
    assert_eq!(ask(), 500);
    count("prefill_forward_error", &p);
    rig.sim.set_fault(0, None);
    rig.sim.set_fault(1, Some(pdsim::Fault::AcceptThenClose));
    assert_eq!(ask(), 502);
    count("decode_forward_error", &d);
    // A 4xx is an answer.
    rig.sim.set_fault(1, Some(pdsim::Fault::Status(404)));
    assert_eq!(ask(), 404);
    assert_eq!(after(&rig, 3).one("proxy_instance_errors_total", &[]), 2.0);
    let cluster = rig.server.shared.cluster.get();
    cluster.instances[0]
        .draining
        .store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(ask(), 503);
    count("no_available_instance", "unknown");
}

#[test]
fn levels_follow_what_runs() {
    let mut list = crate::support::engines(1, 1);
    list[1].timing.decode_tick = std::time::Duration::from_millis(20);
    let rig = rig_with("sequential", list, super::face);
    super::open(&rig);
    let d = rig.sim.addresses()[1].to_string();
    let mut client = rig.client();
    let body = completion("a", r#","stream":true,"max_tokens":50,"ignore_eos":true"#);
    client.send(crate::support::post_bytes("/v1/completions", &body, ""));
    let level = |page: &Page| {
        let at = [("decode_instance", d.as_str()), ("model", "dummy")];
        page.one("proxy_decode_active_requests", &at)
    };
    eventually("it decodes", || level(&page(&rig)) == 1.0);
    assert_eq!(page(&rig).one("proxy_active_requests", &[]), 1.0);
    assert!(client.response().complete);
    eventually("it is over", || level(&page(&rig)) == 0.0);
    assert_eq!(page(&rig).one("proxy_active_requests", &[]), 0.0);
}

#[test]
fn an_aggregated_request_has_no_stages() {
    let rig = rig_with("aggregated", vec![engine(pdsim::Role::Both)], super::face);
    super::open(&rig);
    assert_eq!(
        rig.post("/v1/completions", &completion("a", "")).status,
        200
    );
    let page = after(&rig, 1);
    assert_eq!(page.one("proxy_requests_total", &[]), 1.0);
    assert_eq!(page.one("proxy_e2e_latency_seconds_count", &[]), 0.0);
    assert_eq!(page.one("proxy_decode_requests_total", &[]), 0.0);
}
