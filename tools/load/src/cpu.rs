//! CPU time of other processes, read at the two ends of the measured window.
//!
//! Three sources, because each lacks something: the process clock is exact to the nanosecond and includes threads
//! that have ended, so it is the figure used; `schedstat` says which thread it was, but a running thread's value
//! is up to a tick old; `stat` splits user from system time, in ticks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Serialize;

/// One reading of all watched processes.
#[derive(Debug, Default, Clone)]
pub struct Reading(BTreeMap<i32, Process>);

#[derive(Debug, Default, Clone)]
struct Process {
    name: String,
    clock_ns: Option<u64>,
    user_ticks: u64,
    system_ticks: u64,
    threads: BTreeMap<i32, Thread>,
}

#[derive(Debug, Default, Clone)]
struct Thread {
    name: String,
    ns: u64,
    waited_ns: u64,
}

/// What one process used between two readings.
#[derive(Debug, Clone, Serialize)]
pub struct Used {
    pub pid: i32,
    pub name: String,
    /// The process clock, or the sum of `schedstat` where that clock cannot be read.
    pub cpu_ns: u64,
    pub schedstat_ns: u64,
    /// Time its threads were ready to run but had no CPU: others disturbed the measurement.
    pub waited_ns: u64,
    pub user_ms: f64,
    pub system_ms: f64,
    pub threads: Vec<ThreadUsed>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ThreadUsed {
    pub tid: i32,
    pub name: String,
    pub ns: u64,
    pub waited_ns: u64,
}

/// All of it, with the sums that the report divides.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Total {
    pub cpu_ns: u64,
    pub schedstat_ns: u64,
    pub waited_ns: u64,
    pub user_ms: f64,
    pub system_ms: f64,
    pub processes: Vec<Used>,
    /// Processes that ended inside the window: their time is missing from the sums.
    pub vanished: Vec<i32>,
}

impl Reading {
    pub fn take(pids: &[i32], tree: bool) -> Self {
        let mut wanted = pids.iter().copied().collect::<BTreeSet<_>>();
        if tree {
            add_descendants(&mut wanted);
        }
        Self(
            wanted
                .into_iter()
                .filter_map(|pid| Some((pid, process(pid)?)))
                .collect(),
        )
    }

    pub fn has(&self, pid: i32) -> bool {
        self.0.contains_key(&pid)
    }

    /// What one thread used, and waited for, from this reading to `end`.
    pub fn thread_until(&self, end: &Self, tid: i32) -> (u64, u64) {
        let find = |reading: &Self| {
            let found = reading
                .0
                .values()
                .find_map(|process| process.threads.get(&tid));
            found.map_or((0, 0), |thread| (thread.ns, thread.waited_ns))
        };
        let (before, after) = (find(self), find(end));
        (
            after.0.saturating_sub(before.0),
            after.1.saturating_sub(before.1),
        )
    }

    /// What was used from this reading to `end`. A process that is new in `end` counts from its start.
    pub fn until(&self, end: &Self) -> Total {
        let nothing = Process::default();
        let mut total = Total::default();
        for (pid, after) in &end.0 {
            let used = after.since(*pid, self.0.get(pid).unwrap_or(&nothing));
            total.cpu_ns += used.cpu_ns;
            total.schedstat_ns += used.schedstat_ns;
            total.waited_ns += used.waited_ns;
            total.user_ms += used.user_ms;
            total.system_ms += used.system_ms;
            total.processes.push(used);
        }
        total.vanished = self
            .0
            .keys()
            .filter(|pid| !end.0.contains_key(pid))
            .copied()
            .collect();
        total
    }
}

impl Process {
    fn since(&self, pid: i32, before: &Self) -> Used {
        let new = Thread::default();
        let threads = self
            .threads
            .iter()
            .map(|(tid, after)| {
                let earlier = before.threads.get(tid).unwrap_or(&new);
                ThreadUsed {
                    tid: *tid,
                    name: after.name.clone(),
                    ns: after.ns.saturating_sub(earlier.ns),
                    waited_ns: after.waited_ns.saturating_sub(earlier.waited_ns),
                }
            })
            .collect::<Vec<_>>();
        let schedstat_ns = threads.iter().map(|thread| thread.ns).sum();
        let clock = self
            .clock_ns
            .map(|ns| ns.saturating_sub(before.clock_ns.unwrap_or(0)));
        // SAFETY: sysconf has no preconditions.
        let tick_ms = 1e3 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
        let ms = |after: u64, before: u64| after.saturating_sub(before) as f64 * tick_ms;
        Used {
            pid,
            name: self.name.clone(),
            cpu_ns: clock.unwrap_or(schedstat_ns),
            schedstat_ns,
            waited_ns: threads.iter().map(|thread| thread.waited_ns).sum(),
            user_ms: ms(self.user_ticks, before.user_ticks),
            system_ms: ms(self.system_ticks, before.system_ticks),
            threads,
        }
    }
}

fn process(pid: i32) -> Option<Process> {
    let (name, fields) = stat(pid)?;
    // Fields 14 and 15 of proc(5); `fields` starts with the third.
    let ticks = |at: usize| {
        fields
            .get(at - 3)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Some(tid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse::<i32>().ok())
        else {
            continue;
        };
        let path = entry.path();
        let Ok(line) = fs::read_to_string(path.join("schedstat")) else {
            continue;
        };
        let mut numbers = line.split(' ').map(|text| text.trim().parse().unwrap_or(0));
        let (ns, waited_ns) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let name = name.trim_end().to_owned();
        threads.insert(
            tid,
            Thread {
                name,
                ns,
                waited_ns,
            },
        );
    }
    Some(Process {
        name,
        clock_ns: process_clock(pid),
        user_ticks: ticks(14),
        system_ticks: ticks(15),
        threads,
    })
}

/// Name of the process and the fields of its `stat` from the third on.
fn stat(pid: i32) -> Option<(String, Vec<String>)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may contain some itself.
    let (start, end) = (line.find('(')?, line.rfind(')')?);
    let fields = line
        .get(end + 2..)?
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    Some((line[start + 1..end].to_owned(), fields))
}

fn process_clock(pid: i32) -> Option<u64> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to live variables of the right types.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    (!failed).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn add_descendants(wanted: &mut BTreeSet<i32>) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let parents = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1.get(1)?.parse::<i32>().ok()?)))
        .collect::<Vec<_>>();
    // A parent may be listed after its child, so go round until nothing is added.
    loop {
        let before = wanted.len();
        for (pid, parent) in &parents {
            if wanted.contains(parent) {
                wanted.insert(*pid);
            }
        }
        if wanted.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn all_threads_are_counted_even_those_that_ended() {
        let own = std::process::id() as i32;
        let before = Reading::take(&[own], true);
        let spin = || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(60) {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(spin).join().unwrap();
        let used = before.until(&Reading::take(&[own], true));
        // On a busy machine a spinning thread gets only part of its 60 ms.
        assert!(used.cpu_ns > 10_000_000, "{used:?}");
        assert!(used.vanished.is_empty());
        assert!(before.has(own) && !before.has(0));
    }
}
