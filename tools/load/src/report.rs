//! The result of a run: as JSON, and as a table for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::args::Args;
use crate::cpu::Total;
use crate::stats::{Failure, InWindow, Stats, Summary};

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub tool: &'static str,
    pub version: &'static str,
    pub args: Args,
    pub driver: &'static str,
    pub target: String,
    pub body_bytes: usize,
    pub window: Window,
    /// Requests that were due inside the window.
    pub requests: Requests,
    pub throughput: Throughput,
    pub latency: Latencies,
    pub errors: Errors,
    pub connections: Connections,
    pub cpu: Option<Cpu>,
    pub load_threads: Vec<LoadThread>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Window {
    pub started_unix_ms: u64,
    pub warmup_s: f64,
    pub seconds: f64,
    pub drain_s: f64,
    /// What happened between its two ends, whenever the request had started.
    pub counts: InWindow,
}

#[derive(Debug, Clone, Serialize)]
pub struct Requests {
    pub ok: u64,
    pub failed: u64,
    /// Cut off when the drain time was over; their age is in `e2e`.
    pub unfinished: u64,
    pub warmup_ok: u64,
    pub warmup_failed: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Throughput {
    pub requests_per_s: f64,
    pub chunks_per_s: f64,
    pub received_bytes_per_s: f64,
    pub sent_bytes_per_s: f64,
    pub chunks_per_read: f64,
}

/// Latencies of requests that were due inside the window and succeeded.
#[derive(Debug, Clone, Serialize)]
pub struct Latencies {
    pub ttft: Summary,
    pub itl: Summary,
    pub e2e: Summary,
    /// Open loop only: how much later than due a request was sent.
    pub delay: Summary,
    pub connect: Summary,
    /// Open loop only: the longest queue inside pdload.
    pub backlog_max: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct Errors {
    pub total: u64,
    pub by_kind: BTreeMap<Failure, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub samples: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Connections {
    pub opened: u64,
    pub reconnects: u64,
}

/// CPU time of the watched processes inside the window.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    pub us_per_request: Option<f64>,
    pub us_per_chunk: Option<f64>,
    /// CPUs kept busy on average.
    pub cores: f64,
    pub used: Total,
}

#[derive(Debug, Clone, Serialize)]
pub struct LoadThread {
    /// Share of the window this thread was on a CPU; near 1 it is the bottleneck.
    pub busy: f64,
    /// Share of the window it was ready but had no CPU.
    pub waited: f64,
}

impl Cpu {
    pub fn new(used: Total, window: &Window) -> Self {
        let per = |count: u64| (count > 0).then(|| used.cpu_ns as f64 / 1e3 / count as f64);
        Self {
            us_per_request: per(window.counts.requests),
            us_per_chunk: per(window.counts.chunks),
            cores: used.cpu_ns as f64 / 1e9 / window.seconds,
            used,
        }
    }
}

impl Latencies {
    pub fn new(stats: &Stats) -> Self {
        Self {
            ttft: stats.ttft.summary(),
            itl: stats.itl.summary(),
            e2e: stats.e2e.summary(),
            delay: stats.delay.summary(),
            connect: stats.connect.summary(),
            backlog_max: stats.backlog_max,
        }
    }
}

impl Throughput {
    pub fn new(window: &Window) -> Self {
        let counts = &window.counts;
        let rate = |count: u64| count as f64 / window.seconds;
        Self {
            requests_per_s: rate(counts.requests),
            chunks_per_s: rate(counts.chunks),
            received_bytes_per_s: rate(counts.bytes_received),
            sent_bytes_per_s: rate(counts.bytes_sent),
            chunks_per_read: counts.chunks as f64 / counts.reads.max(1) as f64,
        }
    }
}

impl Report {
    /// Did everything that was measured, or sent to warm up, succeed? No answer at all is no success.
    pub fn clean(&self) -> bool {
        let answered = self.requests.ok + self.window.counts.requests > 0;
        let vanished = self
            .cpu
            .as_ref()
            .is_some_and(|cpu| !cpu.used.vanished.is_empty());
        self.errors.total == 0 && answered && !vanished
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let (requests, rates) = (&self.requests, &self.throughput);
        writeln!(
            out,
            "pdload {}  {}  {}  body {} B",
            self.version, self.target, self.driver, self.body_bytes
        )?;
        writeln!(
            out,
            "window   {:.2} s after {:.1} s of warm-up, {:.2} s to drain",
            self.window.seconds, self.window.warmup_s, self.window.drain_s
        )?;
        writeln!(
            out,
            "requests {} ok, {} failed, {} unfinished; warm-up {} ok, {} failed",
            requests.ok,
            requests.failed,
            requests.unfinished,
            requests.warmup_ok,
            requests.warmup_failed
        )?;
        writeln!(
            out,
            "rate     {:.0} requests/s, {:.0} chunks/s ({:.2} per read), {:.2} MB/s in, {:.2} MB/s out",
            rates.requests_per_s,
            rates.chunks_per_s,
            rates.chunks_per_read,
            rates.received_bytes_per_s / 1e6,
            rates.sent_bytes_per_s / 1e6
        )?;
        self.latencies(out)?;
        self.processes(out)?;
        let busy = self
            .load_threads
            .iter()
            .map(|thread| format!(" {:.0} %", thread.busy * 1e2));
        writeln!(
            out,
            "pdload   threads busy{}; {} connections opened, {} again after a close",
            busy.collect::<String>(),
            self.connections.opened,
            self.connections.reconnects
        )?;
        for (kind, count) in &self.errors.by_kind {
            writeln!(out, "error    {count} x {kind:?}")?;
        }
        for sample in &self.errors.samples {
            writeln!(out, "         {}", sample.escape_debug())?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning  {warning}")?;
        }
        Ok(())
    }
}

impl Report {
    fn latencies(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let latency = &self.latency;
        writeln!(
            out,
            "{:8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "ms", "count", "mean", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let rows = [
            ("ttft", &latency.ttft),
            ("itl", &latency.itl),
            ("e2e", &latency.e2e),
            ("late", &latency.delay),
            ("connect", &latency.connect),
        ];
        for (name, row) in rows.into_iter().filter(|(_, row)| row.count > 0) {
            write!(out, "{name:8} {:>10}", row.count)?;
            let values = [
                row.mean_us,
                row.p50_us,
                row.p90_us,
                row.p99_us,
                row.p999_us,
                row.max_us,
            ];
            for us in values {
                write!(out, " {:>10.3}", us / 1e3)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn processes(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Some(cpu) = &self.cpu else { return Ok(()) };
        let shown = |value: Option<f64>| value.map_or("-".into(), |us| format!("{us:.3}"));
        writeln!(
            out,
            "cpu      {} us/request, {} us/chunk, {:.2} cores (user {:.0} ms, system {:.0} ms)",
            shown(cpu.us_per_request),
            shown(cpu.us_per_chunk),
            cpu.cores,
            cpu.used.user_ms,
            cpu.used.system_ms
        )?;
        for used in &cpu.used.processes {
            writeln!(
                out,
                "         {} {}: {:.1} ms in {} threads",
                used.pid,
                used.name,
                used.cpu_ns as f64 / 1e6,
                used.threads.len()
            )?;
        }
        Ok(())
    }
}
