//! One run from start to end: what the main thread does.

use std::sync::{Arc, Barrier};

use crate::args::{Args, Target};
use crate::cpu::Reading;
use crate::report::Report;
use crate::request::Requests;
use crate::ring::{Ring, allow_many_files, pin};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::thread::Thread;
use crate::window::{Outcome, Watcher};

/// Runs the load that `args` describe. An error here means that nothing was measured.
pub fn run(args: Args) -> Result<Report, String> {
    args.check()?;
    let target = args.target()?;
    let requests = Arc::new(Requests::build(&args, &target)?);
    let cpus = args.cpu_list()?;
    let first = Reading::take(&args.pids, false);
    if let Some(pid) = args.pids.iter().find(|pid| !first.has(**pid)) {
        return Err(format!("--pid {pid}: no such process"));
    }
    if !cpus.is_empty() {
        // The main thread wakes now and then; it must not do so on the CPU of the server under test.
        pin(&cpus).map_err(|error| format!("--cpus: {error}"))?;
    }
    allow_many_files();
    let args = Arc::new(args);
    let shared = Arc::new(Shared::new(
        args.threads,
        requests.templates.len(),
        args.requests,
    ));
    let barrier = Arc::new(Barrier::new(args.threads + 1));
    let mut workers = Vec::new();
    for index in 0..args.threads {
        let cpu = (!cpus.is_empty()).then(|| cpus[index % cpus.len()]);
        let seat = Seat {
            index,
            cpu,
            args: args.clone(),
            target: target.clone(),
            requests: requests.clone(),
            shared: shared.clone(),
            barrier: barrier.clone(),
        };
        let builder = std::thread::Builder::new().name(format!("pdload-{index}"));
        workers.push(
            builder
                .spawn(move || seat.work())
                .map_err(|error| error.to_string())?,
        );
    }
    let measured = Watcher {
        args: &args,
        shared: &shared,
        workers: &workers,
    }
    .watch(&barrier);
    let mut stats = Stats::default();
    let mut driver = "";
    for worker in workers {
        let (own, name) = worker
            .join()
            .map_err(|_| "a load thread panicked".to_owned())??;
        stats.merge(own);
        driver = name;
    }
    Ok(measured.report(&args, &target, &requests, stats, driver))
}

/// What a load thread starts with.
struct Seat {
    index: usize,
    cpu: Option<usize>,
    args: Arc<Args>,
    target: Target,
    requests: Arc<Requests>,
    shared: Arc<Shared>,
    barrier: Arc<Barrier>,
}

impl Seat {
    fn work(self) -> Outcome {
        let ready = match self.cpu.map_or(Ok(()), |cpu| pin(&[cpu])) {
            Ok(()) => Ring::build(self.args.driver).map_err(|error| format!("ring: {error}")),
            Err(error) => Err(format!("--cpus: {error}")),
        };
        // Ready, and go. Everyone gets here, or the others would wait for ever.
        self.barrier.wait();
        self.barrier.wait();
        let mut ring = ready?;
        let thread = Thread::new(
            self.index,
            self.target.address,
            self.args,
            self.requests,
            self.shared,
        );
        ring.block_on(thread.drive());
        let stats = thread.stats.take();
        Ok((stats, ring.name()))
    }
}
