//! What the numbers promise. The strict reader of the text format is in `exposition.rs`.

mod exposition;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::table::{COUNTERS, GAUGES, HISTOGRAMS, INSTANCE_COUNTERS, INSTANCE_HISTOGRAMS, SAMPLED};
use super::*;
use exposition::Page;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn counters_gauges_and_histograms_are_summed_over_shards() {
    let metrics = Metrics::new(3);
    let (first, last, control) = (metrics.shard(0), metrics.shard(2), metrics.control());
    let chat_ok = Counter::requests(Endpoint::Chat, Code::of(200));
    first.inc(chat_ok);
    last.add(chat_ok, 4);
    control.inc(Counter::requests(Endpoint::Other, Code::of(418)));
    first.gauge_add(Gauge::connections_open(), 2);
    last.gauge_add(Gauge::connections_open(), -3);
    first.observe(Histogram::stage(Span::Ttft), ms(15));
    last.observe(Histogram::stage(Span::Ttft), ms(700));
    last.observe(Histogram::stage(Span::Ttft), Duration::from_secs(5000));

    let page = Page::read(&metrics.render());
    assert_eq!(
        page.value(r#"pdrelay_requests_total{endpoint="chat",code="200"}"#),
        5.0
    );
    assert_eq!(
        page.value(r#"pdrelay_requests_total{endpoint="other",code="other"}"#),
        1.0
    );
    assert_eq!(page.value("pdrelay_connections_open"), -1.0);
    let ttft = |le: &str| format!(r#"pdrelay_stage_seconds_bucket{{stage="ttft",le="{le}"}}"#);
    assert_eq!(page.value(&ttft("0.0128")), 0.0);
    assert_eq!(page.value(&ttft("0.0192")), 1.0);
    assert_eq!(page.value(&ttft("629.1456")), 2.0);
    assert_eq!(page.value(&ttft("+Inf")), 3.0);
    assert_eq!(
        page.value(r#"pdrelay_stage_seconds_count{stage="ttft"}"#),
        3.0
    );
    assert!((page.value(r#"pdrelay_stage_seconds_sum{stage="ttft"}"#) - 5000.715).abs() < 1e-6);
    assert_eq!(
        page.value(r#"pdrelay_stage_seconds_count{stage="body"}"#),
        0.0
    );
    assert_eq!(metrics.total(chat_ok), 5);
    assert_eq!(metrics.level(Gauge::connections_open()), -1);
    assert_eq!(metrics.observed(Histogram::stage(Span::Ttft)), 3);
}

/// Every key has cells of its own, and the scrape names them as the constructors do.
#[test]
fn no_two_keys_share_a_cell() {
    let metrics = Metrics::with_error_kinds(1, &["bad_request", "no_instance"]);
    let shard = metrics.shard(0);
    for (i, &endpoint) in Endpoint::ALL.iter().enumerate() {
        shard.add(Counter::requests(endpoint, Code::of(504)), 10 + i as u64);
    }
    shard.add(Counter::panics(), 100);
    shard.add(Counter::request_errors(ErrorKind(1)), 7);
    shard.add(Counter::kv_grants(Grant::None), 8);
    let page = Page::read(&metrics.render());
    assert_eq!(
        page.value(r#"pdrelay_requests_total{endpoint="chat",code="504"}"#),
        10.0
    );
    assert_eq!(
        page.value(r#"pdrelay_requests_total{endpoint="other",code="504"}"#),
        9.0 + Endpoint::ALL.len() as f64
    );
    assert_eq!(page.value("pdrelay_panics_total"), 100.0);
    assert_eq!(
        page.value(r#"pdrelay_request_errors_total{kind="no_instance"}"#),
        7.0
    );
    assert_eq!(
        page.value(r#"pdrelay_request_errors_total{kind="bad_request"}"#),
        0.0
    );
    assert_eq!(
        page.value(r#"pdrelay_kv_grants_total{outcome="none"}"#),
        8.0
    );
    // Nothing else moved, but for what the log of another test may drop meanwhile.
    let ours = |family: &str| family.starts_with("pdrelay_") && !family.contains("_log_");
    let shards = page.sum_of(|family| page.is_counter(family) && ours(family));
    let requests: f64 = (0..Endpoint::ALL.len()).map(|i| 10.0 + i as f64).sum();
    assert_eq!(shards, requests + 100.0 + 7.0 + 8.0);
    // An index beyond the table stays inside its family.
    shard.inc(Counter::request_errors(ErrorKind(100_000)));
    Page::read(&metrics.render());
}

#[test]
fn instances_come_at_run_time_are_counted_per_shard_and_can_be_forgotten() {
    let metrics = Metrics::new(2);
    let (a, b) = (metrics.shard(0), metrics.shard(1));
    let decode = metrics.instance("decode", "10.0.0.1:8100");
    assert!(Arc::ptr_eq(
        &decode,
        &metrics.instance("decode", "10.0.0.1:8100")
    ));
    assert!(!Arc::ptr_eq(
        &decode,
        &metrics.instance("prefill", "10.0.0.1:8100")
    ));
    decode.inc(&a, InstanceCounter::connects());
    decode.add(&b, InstanceCounter::connects(), 2);
    decode.inc(&b, InstanceCounter::failures(Failure::Status5xx));
    decode.observe(&a, InstanceHistogram::head(), ms(3));
    let page = Page::read(&metrics.render());
    let of = |rest: &str| format!(r#"{{role="decode",instance="10.0.0.1:8100"{rest}}}"#);
    assert_eq!(
        page.value(&format!("pdrelay_upstream_connects_total{}", of(""))),
        3.0
    );
    let failures = format!(
        "pdrelay_upstream_failures_total{}",
        of(r#",kind="status_5xx""#)
    );
    assert_eq!(page.value(&failures), 1.0);
    let below = |le| {
        format!(
            "pdrelay_upstream_head_seconds_bucket{}",
            of(&format!(r#",le="{le}""#))
        )
    };
    assert_eq!(page.value(&below("0.0032")), 1.0);
    assert_eq!(page.value(&below("0.0016")), 0.0);
    assert_eq!(decode.total(InstanceCounter::connects()), 3);

    metrics.forget_instance("decode", "10.0.0.1:8100");
    decode.inc(&a, InstanceCounter::connects());
    assert!(!metrics.render().contains(r#"role="decode""#));
    assert_eq!(
        metrics
            .instance("decode", "10.0.0.1:8100")
            .total(InstanceCounter::connects()),
        0
    );
}

#[test]
fn instances_above_the_limit_share_one_block() {
    let metrics = Metrics::new(1);
    let shard = metrics.shard(0);
    for i in 0..INSTANCES_MAX {
        metrics.instance("decode", &format!("h{i}:1"));
    }
    let (one, two) = (
        metrics.instance("decode", "x:1"),
        metrics.instance("prefill", "y:1"),
    );
    assert!(Arc::ptr_eq(&one, &two));
    one.inc(&shard, InstanceCounter::requests());
    let name = r#"pdrelay_upstream_requests_total{role="other",instance="other"} 1"#;
    assert!(metrics.render().contains(name));
}

#[test]
fn every_family_is_declared_once_with_help_and_type_even_with_hostile_labels() {
    let metrics = Metrics::with_error_kinds(1, &["bad_request"]);
    metrics.instance("decode", "we\"ird\\\nhost:1");
    metrics.on_scrape(Box::new(|scrape| {
        scrape.add(
            Sampled::InstanceHealthy,
            &["decode", "we\"ird\\\nhost:1"],
            1.0,
        );
        scrape.add(Sampled::InstanceHealthy, &["decode", "b:1"], 0.0);
        scrape.add(Sampled::InstanceHealthy, &["decode", "b:1"], 1.0);
        scrape.add(Sampled::Shard, &["0", "io_uring"], 1.0);
    }));
    // A callback may ask for an instance: no lock is held while it runs.
    let weak = Arc::downgrade(&metrics);
    metrics.on_scrape(Box::new(move |_| {
        weak.upgrade().unwrap().instance("prefill", "late:1");
    }));
    let page = Page::read(&metrics.render());
    assert_eq!(
        page.value(r#"pdrelay_instance_healthy{role="decode",instance="b:1"}"#),
        0.0
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        page.value(&format!(r#"pdrelay_build_info{{version="{version}"}}"#)),
        1.0
    );
    assert!(page.value("pdrelay_log_lines_dropped_total") <= crate::log::dropped() as f64);
    assert!(page.value("process_resident_memory_bytes") > 1e6);
    assert!(page.value("process_open_fds") >= 3.0);
    assert!(page.value("process_start_time_seconds") > 1.6e9);
    let families = COUNTERS.len() + GAUGES.len() + HISTOGRAMS.len() + INSTANCE_COUNTERS.len();
    // All but four rows of instances (in flight, ejected, wedged, draining) and four of notices that nobody
    // has sampled here.
    let expected = families + INSTANCE_HISTOGRAMS.len() + SAMPLED.len() - 8;
    assert_eq!(page.families(), expected);
}

#[test]
fn a_scrape_amid_writing_never_goes_backwards() {
    let metrics = Metrics::new(2);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for index in 0..2 {
            let (shard, stop, instance) =
                (metrics.shard(index), &stop, metrics.instance("d", "a:1"));
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    n += 1;
                    shard.inc(Counter::chunks());
                    shard.observe(Histogram::chunk_gap(), Duration::from_micros(n % 5000));
                    instance.inc(&shard, InstanceCounter::requests());
                }
            });
        }
        let mut earlier = Page::read(&metrics.render());
        for _ in 0..50 {
            let later = Page::read(&metrics.render());
            later.assert_not_before(&earlier);
            earlier = later;
        }
        stop.store(true, Relaxed);
    });
    let page = Page::read(&metrics.render());
    assert_eq!(
        page.value("pdrelay_chunks_total"),
        page.value("pdrelay_chunk_gap_seconds_count")
    );
}

#[test]
fn a_held_gauge_returns_to_zero_even_by_a_panic() {
    let metrics = Metrics::new(1);
    let shard = Rc::new(metrics.shard(0));
    let held = shard.hold(Gauge::body_memory_bytes(), 1000);
    assert_eq!(metrics.level(Gauge::body_memory_bytes()), 1000);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = held;
        std::panic::resume_unwind(Box::new("no message"));
    }));
    assert!(caught.is_err());
    assert_eq!(metrics.level(Gauge::body_memory_bytes()), 0);
}

#[test]
fn cells_have_one_writer_at_a_time_and_survive_it() {
    let metrics = Metrics::new(1);
    let shard = metrics.shard(0);
    shard.inc(Counter::panics());
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| metrics.shard(0)));
    assert!(again.is_err());
    drop(shard);
    metrics.shard(0).inc(Counter::panics());
    assert_eq!(metrics.total(Counter::panics()), 2);
}
