//! What one thread counts; merged after the run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Ten minutes: the longest latency that is told apart.
const LONGEST_NS: u64 = 600_000_000_000;
const SAMPLES: usize = 5;

/// Why a request failed. One request fails for one reason, the first that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection.
    Connect,
    /// A kept-alive connection was closed before the first byte of the response.
    Stale,
    /// A fresh connection was closed, or any was reset, before the response was complete.
    Reset,
    /// The response ended before its framing said so.
    Truncated,
    /// Framing that HTTP/1.1 does not allow.
    Protocol,
    /// A status other than 200.
    Status,
    /// An `error` event in the stream.
    SseError,
    /// A stream that ended cleanly but without `[DONE]`.
    MissingDone,
    /// Not the kind of answer that was asked for.
    WrongType,
    Timeout,
    /// The request id did not come back.
    IdMismatch,
    /// The same prompt gave another text than before.
    TextMismatch,
}

/// Latencies in nanoseconds.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds are valid"))
    }
}

impl Latency {
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub fn merge(&mut self, other: &Self) {
        self.0
            .add(&other.0)
            .expect("all histograms have the same bounds");
    }

    pub fn summary(&self) -> Summary {
        let us = |ns: u64| ns as f64 / 1e3;
        Summary {
            count: self.0.len(),
            mean_us: self.0.mean() / 1e3,
            min_us: us(self.0.min()),
            p50_us: us(self.0.value_at_quantile(0.5)),
            p90_us: us(self.0.value_at_quantile(0.9)),
            p99_us: us(self.0.value_at_quantile(0.99)),
            p999_us: us(self.0.value_at_quantile(0.999)),
            max_us: us(self.0.max()),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub count: u64,
    pub mean_us: f64,
    pub min_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    #[serde(rename = "p99.9_us")]
    pub p999_us: f64,
    pub max_us: f64,
}

/// What happened inside the measured window, whenever its request had started: the divisor of CPU time and of
/// throughput.
#[derive(Debug, Default, Clone, Serialize)]
pub struct InWindow {
    /// Responses completed without error.
    pub requests: u64,
    pub failed: u64,
    pub chunks: u64,
    pub reads: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

#[derive(Debug, Default)]
pub struct Stats {
    /// Requests that were due inside the window, and how they ended.
    pub measured_ok: u64,
    pub measured_failed: u64,
    /// Requests due inside the window that had no answer when the drain time was over.
    pub unfinished: u64,
    pub warmup_ok: u64,
    pub warmup_failed: u64,
    pub window: InWindow,
    pub connects: u64,
    /// Connections opened in place of one that the server closed after a response, as it may.
    pub reconnects: u64,
    pub failures: BTreeMap<Failure, u64>,
    pub statuses: BTreeMap<u16, u64>,
    /// The first few failures in words.
    pub samples: Vec<String>,
    /// From the time a request was due to its last byte.
    pub e2e: Latency,
    /// ... to its first chunk with content.
    pub ttft: Latency,
    /// Between one chunk and the next.
    pub itl: Latency,
    /// ... to the moment it was handed to the kernel; only the open loop can be late.
    pub delay: Latency,
    pub connect: Latency,
    pub backlog_max: usize,
}

impl Stats {
    pub fn fail(&mut self, failure: Failure, detail: impl FnOnce() -> String) {
        *self.failures.entry(failure).or_default() += 1;
        if self.samples.len() < SAMPLES {
            self.samples.push(format!("{failure:?}: {}", detail()));
        }
    }

    pub fn merge(&mut self, other: Stats) {
        self.measured_ok += other.measured_ok;
        self.measured_failed += other.measured_failed;
        self.unfinished += other.unfinished;
        self.warmup_ok += other.warmup_ok;
        self.warmup_failed += other.warmup_failed;
        self.window.requests += other.window.requests;
        self.window.failed += other.window.failed;
        self.window.chunks += other.window.chunks;
        self.window.reads += other.window.reads;
        self.window.bytes_received += other.window.bytes_received;
        self.window.bytes_sent += other.window.bytes_sent;
        self.connects += other.connects;
        self.reconnects += other.reconnects;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.samples.extend(other.samples);
        self.samples.truncate(SAMPLES);
        self.e2e.merge(&other.e2e);
        self.ttft.merge(&other.ttft);
        self.itl.merge(&other.itl);
        self.delay.merge(&other.delay);
        self.connect.merge(&other.connect);
        self.backlog_max = self.backlog_max.max(other.backlog_max);
    }
}
