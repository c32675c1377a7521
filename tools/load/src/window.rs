//! The measured window: the main thread opens and closes it, and reads CPU time at both ends of it.

use std::io::{IsTerminal, Write};
use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::args::{Args, Target};
use crate::cpu::Reading;
use crate::report::{
    Connections, Cpu, Errors, Latencies, LoadThread, Report, Requests as Asked, Throughput, Window,
};
use crate::request::Requests;
use crate::shared::{Phase, Shared};
use crate::stats::Stats;

/// What a load thread ends with: its counts, and the name of its driver.
pub type Outcome = Result<(Stats, &'static str), String>;
type Worker = JoinHandle<Outcome>;

/// The window is closed this long after the load has stopped at the latest.
const CUT_GRACE_S: f64 = 0.5;
/// Above this share of a CPU a load thread may be what limits the result.
const BUSY: f64 = 0.9;
/// Above this share of the window spent waiting for a CPU, others disturb the measurement.
const WAITED: f64 = 0.1;

pub struct Watcher<'a> {
    pub args: &'a Args,
    pub shared: &'a Shared,
    pub workers: &'a [Worker],
}

/// The two ends of the window, and what was read there.
pub struct Measured {
    started_unix_ms: u64,
    start: u64,
    end: u64,
    stopped: u64,
    processes: (Reading, Reading),
    own: (Reading, Reading),
    tids: Vec<i32>,
}

impl Watcher<'_> {
    pub fn watch(&self, barrier: &Barrier) -> Measured {
        let shared = self.shared;
        // Without warm-up the window opens before the first request; else after some load.
        let warm = self.args.warmup() > 0.0;
        barrier.wait();
        if warm {
            barrier.wait();
            self.wait(self.args.warmup(), "warm-up", || false);
        }
        // The load threads look at the phase for every event, so what they count and what is read here
        // differ by no more than the time of the reading.
        let (own_start, processes_start) = (self.own(), self.processes());
        shared.enter(Phase::Measure);
        let start = shared.now();
        if !warm {
            barrier.wait();
        }
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.wait(self.args.window().unwrap_or(f64::MAX), "measure", || {
            shared.all_finished()
        });
        let processes_end = self.processes();
        shared.enter(Phase::Drain);
        let end = shared.now();
        let own_end = self.own();
        self.wait(self.args.drain(), "drain", || false);
        shared.enter(Phase::Cut);
        self.wait(self.args.connect_timeout_s + CUT_GRACE_S, "cut", || false);
        self.clear_line();
        Measured {
            started_unix_ms: since_1970.as_millis() as u64,
            start,
            end,
            stopped: shared.now(),
            processes: (processes_start, processes_end),
            own: (own_start, own_end),
            tids: shared
                .live
                .iter()
                .map(|live| live.tid.load(Relaxed) as i32)
                .collect(),
        }
    }

    fn processes(&self) -> Reading {
        Reading::take(&self.args.pids, self.args.pid_tree)
    }

    fn own(&self) -> Reading {
        Reading::take(&[std::process::id() as i32], false)
    }

    /// Waits `seconds`, or until `early`, or until no load thread is left.
    fn wait(&self, seconds: f64, phase: &str, early: impl Fn() -> bool) {
        let begin = self.shared.now();
        let span = (seconds * 1e9).min(1e18) as u64;
        let mut next_line = 1_000_000_000;
        loop {
            let passed = self.shared.now() - begin;
            if passed >= span || early() || self.workers.iter().all(Worker::is_finished) {
                return;
            }
            if passed >= next_line {
                self.progress(phase, passed);
                next_line += 1_000_000_000;
            }
            // A thread that ends wakes us just before it is finished; look again soon.
            let soon = if phase == "measure" {
                100_000_000
            } else {
                5_000_000
            };
            let ns = (span - passed)
                .min(next_line.saturating_sub(passed))
                .min(soon);
            std::thread::park_timeout(Duration::from_nanos(ns.max(1000)));
        }
    }

    fn shows_progress(&self) -> bool {
        self.args.progress || std::io::stderr().is_terminal()
    }

    fn progress(&self, phase: &str, passed: u64) {
        if !self.shows_progress() {
            return;
        }
        let mut sums = [0; 4];
        for live in &self.shared.live {
            let values = [&live.ok, &live.failed, &live.chunks, &live.in_flight];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value.load(Relaxed);
            }
        }
        let [ok, failed, chunks, in_flight] = sums;
        let end = if std::io::stderr().is_terminal() {
            "\x1b[K\r"
        } else {
            "\n"
        };
        let line = format!(
            "{phase} {:.0} s: {ok} ok, {failed} failed, {chunks} chunks, {in_flight} in flight{end}",
            passed as f64 / 1e9
        );
        // Losing a progress line is no reason to stop.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn clear_line(&self) {
        if std::io::stderr().is_terminal() {
            let _ = std::io::stderr().write_all(b"\x1b[K");
        }
    }
}

impl Measured {
    pub fn report(
        self,
        args: &Args,
        target: &Target,
        requests: &Requests,
        stats: Stats,
        driver: &'static str,
    ) -> Report {
        let seconds = (self.end - self.start) as f64 / 1e9;
        let window = Window {
            started_unix_ms: self.started_unix_ms,
            warmup_s: args.warmup(),
            seconds,
            drain_s: (self.stopped - self.end) as f64 / 1e9,
            counts: stats.window.clone(),
        };
        let load_threads = self.load_threads(seconds);
        let cpu = (!args.pids.is_empty())
            .then(|| Cpu::new(self.processes.0.until(&self.processes.1), &window));
        let mut report = Report {
            tool: "pdload",
            version: env!("CARGO_PKG_VERSION"),
            args: args.clone(),
            driver,
            target: format!("http://{}{}", target.address, target.path),
            body_bytes: requests.body_bytes,
            throughput: Throughput::new(&window),
            window,
            requests: Asked {
                ok: stats.measured_ok,
                failed: stats.measured_failed,
                unfinished: stats.unfinished,
                warmup_ok: stats.warmup_ok,
                warmup_failed: stats.warmup_failed,
            },
            latency: Latencies::new(&stats),
            errors: Errors {
                total: stats.measured_failed + stats.warmup_failed,
                by_kind: stats.failures,
                statuses: stats.statuses,
                samples: stats.samples,
            },
            connections: Connections {
                opened: stats.connects,
                reconnects: stats.reconnects,
            },
            cpu,
            load_threads,
            warnings: Vec::new(),
        };
        report.warnings = warnings(&report);
        report
    }

    fn load_threads(&self, seconds: f64) -> Vec<LoadThread> {
        let share = |ns: u64| ns as f64 / 1e9 / seconds;
        self.tids
            .iter()
            .map(|tid| self.own.0.thread_until(&self.own.1, *tid))
            .map(|(used, waited)| LoadThread {
                busy: share(used),
                waited: share(waited),
            })
            .collect()
    }
}

fn warnings(report: &Report) -> Vec<String> {
    let mut list = Vec::new();
    if report.load_threads.iter().any(|thread| thread.busy > BUSY) {
        list.push("a load thread was busy nearly all the time: pdload may be the limit".into());
    }
    let waited = report
        .load_threads
        .iter()
        .map(|thread| thread.waited)
        .fold(0.0, f64::max);
    if waited > WAITED {
        list.push(format!(
            "a load thread had to wait for its CPU {:.0} % of the time",
            waited * 1e2
        ));
    }
    let window_ns = report.window.seconds * 1e9;
    if let Some(cpu) = &report.cpu
        && cpu.used.waited_ns as f64 > WAITED * window_ns
    {
        let share = cpu.used.waited_ns as f64 / window_ns * 1e2;
        list.push(format!(
            "the watched processes had to wait for a CPU {share:.0} % of the time"
        ));
    }
    if report.requests.unfinished > 0 {
        list.push(format!(
            "{} requests had no answer when the drain time was over",
            report.requests.unfinished
        ));
    }
    if report.latency.backlog_max > 0 {
        list.push(format!(
            "all --max-in-flight connections were busy; up to {} requests waited in pdload",
            report.latency.backlog_max
        ));
    }
    if let Some(cpu) = &report.cpu
        && !cpu.used.vanished.is_empty()
    {
        list.push(format!(
            "processes ended during the window: {:?}",
            cpu.used.vanished
        ));
    }
    list
}
