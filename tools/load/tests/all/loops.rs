//! Closed and open loop against a server that behaves, and one that stalls.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::server::*;

fn streaming() -> String {
    serve(|stream, _| {
        // Role first, without text: the time to the first token must not be taken from it.
        send(stream, STREAM_HEAD);
        token(stream, "");
        std::thread::sleep(Duration::from_millis(20));
        token(stream, "a");
        token(stream, "b");
        std::thread::sleep(Duration::from_millis(10));
        token(stream, "c");
        finish(stream)
    })
}

#[test]
fn a_stream_is_measured_chunk_by_chunk_on_every_driver() {
    let url = streaming();
    for driver in ["auto", "epoll"] {
        let line = format!("-n 40 -c 4 --threads 2 --verify-stable --driver {driver}");
        let report = load(&url, &line);
        assert!(report.clean(), "{report}");
        assert_eq!((report.requests.ok, report.connections.opened), (40, 4));
        assert_eq!(report.window.counts.chunks, 160);
        let latency = &report.latency;
        assert_eq!(
            (latency.ttft.count, latency.itl.count, latency.e2e.count),
            (40, 80, 40)
        );
        assert!(latency.ttft.min_us >= 19e3, "{report}");
        assert!(
            latency.itl.max_us >= 9e3 && latency.e2e.min_us >= 29e3,
            "{report}"
        );
    }
}

#[test]
fn prompts_ids_and_large_bodies_arrive_as_built() {
    let url = serve(|stream, asked| {
        let value = serde_json::from_slice::<serde_json::Value>(&asked.body).unwrap();
        let content = &value["messages"][0]["content"];
        assert_eq!(
            content[1]["image_url"]["url"].as_str().unwrap().len(),
            22 + 400_000
        );
        let id = header(&asked.head, "x-request-id").unwrap();
        assert_eq!(header(&asked.head, "x-more"), Some("1"));
        let text = content[0]["text"].as_str().unwrap();
        let body = format!(
            "{{\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}]}}",
            &text[..6]
        );
        let head =
            format!("HTTP/1.1 200 OK\r\nX-Request-Id: {id}\r\nContent-Type: application/json");
        send(
            stream,
            &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        )
    });
    let line = "-n 30 -c 3 --endpoint chat --image-bytes 300000 --no-stream --echo-id --prompts 7 \
        --verify-stable -H x-more:1";
    let report = load(&url, line);
    assert!(report.clean(), "{report}");
    assert!(report.window.counts.bytes_sent > 30 * 400_000);
}

#[test]
fn closes_are_followed_by_new_connections() {
    let url = serve(|stream, asked| {
        if asked.number == 0 {
            return json_answer(stream, "a");
        }
        // No length: the close is the end.
        send(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}",
        );
        false
    });
    let report = load(&url, "-n 20 -c 1 --no-stream");
    assert!(report.clean(), "{report}");
    assert_eq!(
        (report.connections.opened, report.connections.reconnects),
        (10, 9)
    );
}

#[test]
fn an_idle_connection_closed_by_the_server_is_replaced_in_time() {
    let url = serve(|stream, _| {
        json_answer(stream, "a");
        // Closes without announcing it, while the connection rests.
        false
    });
    let report = load(&url, "-n 10 --rate 20 --arrivals constant --no-stream");
    assert!(report.clean(), "{report}");
    assert_eq!(report.connections.reconnects, report.connections.opened - 1);
}

#[test]
fn no_connection_is_closed_while_another_still_has_a_request() {
    let (closed, early) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, seen) = (closed.clone(), early.clone());
    let first = AtomicBool::new(true);
    let url = serve(move |stream, _| {
        if !first.swap(false, Relaxed) {
            json_answer(stream, "a");
            let more = stream.peek(&mut [0]).is_ok_and(|n| n > 0);
            count.fetch_add(usize::from(!more), Relaxed);
            return more;
        }
        std::thread::sleep(Duration::from_millis(300));
        seen.store(count.load(Relaxed), Relaxed);
        json_answer(stream, "a")
    });
    let report = load(&url, "-n 8 -c 8 --no-stream");
    assert!(report.clean(), "{report}");
    assert_eq!(early.load(Relaxed), 0, "closed before the slow answer came");
    let began = Instant::now();
    while (closed.load(Relaxed) as u64) < report.connections.opened - 1 {
        assert!(began.elapsed() < Duration::from_secs(10), "not closed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Answers at once, except between 0.4 s and 1.4 s after its first request, when it answers nobody.
fn stalling() -> String {
    let begin = Mutex::new(None);
    serve(move |stream, _| {
        let begin = *begin.lock().unwrap().get_or_insert_with(Instant::now);
        let (start, end) = (Duration::from_millis(400), Duration::from_millis(1400));
        let passed = begin.elapsed();
        if (start..end).contains(&passed) {
            std::thread::sleep(end - passed);
        }
        json_answer(stream, "a")
    })
}

#[test]
fn a_stall_shows_in_the_percentiles_of_the_open_loop() {
    // Four connections only: nearly all requests of the stall wait inside pdload, where a careless generator
    // would not send, and so not count, them.
    let line = "--rate 400 --arrivals constant --max-in-flight 4 -s 2 --warmup-s 0 --no-stream";
    let report = load(&stalling(), line);
    assert!(report.clean(), "{report}");
    let due = 400.0 * report.window.seconds;
    assert!((report.requests.ok as f64 - due).abs() < 20.0, "{report}");
    let e2e = &report.latency.e2e;
    assert!(
        e2e.p99_us > 900e3 && e2e.p90_us > 600e3 && e2e.p50_us < 500e3,
        "{report}"
    );
    assert!(report.latency.backlog_max > 300, "{report}");
}

#[test]
fn requests_cut_off_at_the_end_are_not_forgotten() {
    let line = "--rate 100 --max-in-flight 2 -s 0.8 --warmup-s 0 --drain-s 0.1 --no-stream";
    let report = load(&stalling(), line);
    assert!(report.requests.unfinished > 20, "{report}");
    let all = report.requests.ok + report.requests.unfinished;
    assert_eq!(report.latency.e2e.count, all, "{report}");
    assert!(report.latency.e2e.max_us > 400e3, "{report}");
}

#[test]
fn poisson_arrivals_keep_the_rate_over_all_threads() {
    let url = serve(|stream, _| json_answer(stream, "a"));
    let report = load(
        &url,
        "--rate 2000 -s 1 --warmup-s 0.1 --threads 2 --no-stream",
    );
    assert!(report.clean(), "{report}");
    let mean = 2000.0 * report.window.seconds;
    let deviation = (report.requests.ok as f64 - mean).abs() / mean.sqrt();
    assert!(deviation < 5.0, "{deviation} standard deviations: {report}");
}

#[test]
fn cpu_time_is_that_of_the_window() {
    let url = serve(|stream, _| json_answer(stream, "a"));
    let own = std::process::id();
    let report = load(
        &url,
        &format!("-s 0.3 --warmup-s 0.2 -c 2 --no-stream --pid {own}"),
    );
    let cpu = report.cpu.as_ref().unwrap();
    assert!(
        cpu.used.cpu_ns > 0 && cpu.us_per_request.unwrap() > 0.5,
        "{report}"
    );
    assert!(cpu.us_per_chunk.is_none() && report.requests.warmup_ok > 0);
}

#[test]
fn every_request_has_its_own_id() {
    let ids = std::sync::Arc::new(Mutex::new(HashSet::new()));
    let seen = ids.clone();
    let url = serve(move |stream, asked| {
        let id = header(&asked.head, "x-request-id").unwrap().to_owned();
        send(
            stream,
            &format!("HTTP/1.1 200 OK\r\nX-Request-Id: {id}\r\nContent-Length: 0\r\n\r\n"),
        );
        seen.lock().unwrap().insert(id)
    });
    let report = load(&url, "-n 200 -c 4 --threads 2 --no-stream --echo-id");
    assert!(report.clean(), "{report}");
    assert_eq!(ids.lock().unwrap().len(), 200);
}
