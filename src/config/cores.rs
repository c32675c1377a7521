//! Where the shards run and how they pace themselves: what is wrong with it, and how it is shown.

use std::time::Duration;

use super::Cores;
use super::quantity::show_duration;
use super::reader::Report;

/// Longer than this every token is late, and nothing is saved any more.
const WINDOW_MAX: Duration = Duration::from_millis(10);
/// Longer than this, somebody meant another unit.
const POLL_MAX: Duration = Duration::from_secs(10);

pub fn check(cores: &Cores, report: &mut Report) {
    check_pace(cores, report);
    let Some(cpus) = &cores.cpus else { return };
    if cpus.is_empty() {
        report.problem("cpus", "cpus is an empty list", "remove it, or name a CPU");
    }
    let mut seen = Vec::new();
    for cpu in cpus {
        if seen.contains(cpu) {
            report.problem(
                "cpus",
                format!("CPU {cpu} is listed twice"),
                "one shard per CPU",
            );
            break;
        }
        seen.push(*cpu);
    }
    if let Some(shards) = cores.shards.filter(|shards| *shards != cpus.len()) {
        let message = format!("shards is {shards}, but cpus lists {}", cpus.len());
        report.problem(
            "shards",
            message,
            "remove one of them: cpus implies the number of shards",
        );
    }
    if cores.numa.is_some() {
        report.problem(
            "numa",
            "numa and cpus both choose the CPUs",
            "remove one of them",
        );
    }
}

fn check_pace(cores: &Cores, report: &mut Report) {
    let (window, poll) = (cores.batch_window, cores.busy_poll);
    if window > WINDOW_MAX {
        let shown = show_duration(window);
        let message = format!("batch_window is {shown}: tokens would come so much later");
        report.problem("batch_window", message, "write at most 10ms, such as 1ms");
    }
    if poll > POLL_MAX {
        let shown = show_duration(poll);
        let message =
            format!("busy_poll is {shown}: each core would be busy for so long after every byte");
        report.problem("busy_poll", message, "write at most 10s, such as 1ms");
    }
    if !window.is_zero() && !poll.is_zero() {
        report.problem(
            "busy_poll",
            "batch_window has a shard rest, busy_poll has it never rest",
            "remove one of them",
        );
    }
}

/// How the shards pace themselves, if not as usual.
pub fn pace(cores: &Cores) -> Option<String> {
    let shown = |(name, time): (&str, Duration)| match time.is_zero() {
        true => None,
        false => Some(format!("{name} {}", show_duration(time))),
    };
    [
        ("batch_window", cores.batch_window),
        ("busy_poll", cores.busy_poll),
    ]
    .into_iter()
    .find_map(shown)
}

/// For `pdrelay check`.
pub fn shown(cores: &Cores) -> String {
    let list = |cpus: &[usize]| {
        cpus.iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    let number = match cores.shards {
        Some(number) => number.to_string(),
        None => "one per physical core".into(),
    };
    let mut shown = match (&cores.cpus, cores.numa) {
        (Some(cpus), _) => format!("{} on CPUs {}", cpus.len(), list(cpus)),
        (None, Some(node)) => format!("{number} on NUMA node {node}"),
        (None, None) => number,
    };
    if let Some(pace) = pace(cores) {
        shown += &format!(", {pace}");
    }
    shown
}
