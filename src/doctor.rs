//! `pdrelay doctor`: what this machine would give a server, and what to change before one is started.
//!
//! Everything is read, nothing is set. What is read from `/sys` and `/proc` comes through a `Tree`, so that
//! machines which nobody here owns can be put before it.

use std::fmt::{self, Display, Formatter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::DoctorArgs;
use crate::config::Cores;
use crate::net::runtime::{self, Driver};
use crate::net::{limit, listen};
use crate::server::cores;

/// Two descriptors per stream, and some for listeners, rings and pooled connections.
const SPARE_FILES: u64 = 200;
/// Fewer streams than this are too few for a proxy that others depend on.
const STREAMS_WANTED: u64 = 10_000;
/// Upstream connections that one engine's address can have are bounded by the local ports.
const PORTS_WANTED: u64 = 20_000;

pub fn run(args: &DoctorArgs) -> ExitCode {
    let tree = Tree::new("/");
    let cores = Cores {
        shards: args.shards,
        cpus: args.cpus.clone().map(|list| list.0),
        numa: args.numa,
        ..Cores::default()
    };
    let plan = match cores::plan(&cores) {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("doctor: {why}");
            return ExitCode::FAILURE;
        }
    };
    let shards = try_shards(&plan);
    let machine = Machine::read(&tree);
    let mut findings = machine.findings(&shards);
    findings.extend(ring_findings(&shards));
    print!("{}", report(&machine, &shards, &findings));
    if args.strict && findings.iter().any(|one| one.fix.is_some()) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A root to read files below.
struct Tree(PathBuf);

impl Tree {
    fn new(root: impl AsRef<Path>) -> Tree {
        Tree(root.as_ref().into())
    }

    fn text(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.0.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a folder, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join(path));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }
}

struct Node {
    id: usize,
    cpus: Vec<usize>,
    memory_kib: u64,
}

struct Nic {
    name: String,
    /// `None`: the machine has one node, or the card does not say.
    node: Option<usize>,
    mbit_per_s: Option<u64>,
}

/// A limit of the process: soft and hard. `None`: there is none.
type Limit = (Option<u64>, Option<u64>);

/// What was read.
struct Machine {
    kernel: String,
    nodes: Vec<Node>,
    nics: Vec<Nic>,
    governor: Option<String>,
    /// CPUs' worth of time that the container may use.
    quota: Option<f64>,
    somaxconn: Option<u64>,
    local_ports: Option<u64>,
    io_uring_disabled: Option<u64>,
    files: Limit,
    locked_memory: Limit,
}

impl Machine {
    fn read(tree: &Tree) -> Machine {
        let ports = tree.text("proc/sys/net/ipv4/ip_local_port_range");
        Machine {
            kernel: tree
                .text("proc/sys/kernel/osrelease")
                .unwrap_or_else(|| "?".into()),
            nodes: nodes(tree),
            nics: nics(tree),
            governor: tree.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            quota: tree.text("sys/fs/cgroup/cpu.max").and_then(|t| quota(&t)),
            somaxconn: tree.number("proc/sys/net/core/somaxconn"),
            local_ports: ports.and_then(|t| span(&t)),
            io_uring_disabled: tree.number("proc/sys/kernel/io_uring_disabled"),
            files: limit::read(libc::RLIMIT_NOFILE),
            locked_memory: limit::read(libc::RLIMIT_MEMLOCK),
        }
    }

    fn node_of(&self, cpu: usize) -> Option<usize> {
        let holds = |node: &&Node| node.cpus.contains(&cpu);
        self.nodes.iter().find(holds).map(|node| node.id)
    }

    fn findings(&self, shards: &[Shard]) -> Vec<Finding> {
        let mut found = vec![self.open_files(), self.accept_queue()];
        found.extend(self.ports());
        found.extend(self.locked());
        found.extend(self.time(shards));
        found.extend(self.governor());
        found.extend(self.memory_and_cards(shards));
        found
    }

    fn open_files(&self) -> Finding {
        let (soft, hard) = self.files;
        let Some(hard) = hard else {
            return good("open files: no limit");
        };
        let streams = hard.saturating_sub(SPARE_FILES) / 2;
        let soft = soft.unwrap_or(hard);
        let about = format!(
            "open files: {soft}, raised to {hard} at the start: room for about {streams} streams"
        );
        if streams >= STREAMS_WANTED {
            return good(about);
        }
        bad(
            about,
            "raise the hard limit: LimitNOFILE=1048576 in the unit, --ulimit nofile=1048576 for a container",
        )
    }

    fn accept_queue(&self) -> Finding {
        let wanted = listen::BACKLOG as u64;
        match self.somaxconn {
            Some(now) if now < wanted => bad(
                format!("net.core.somaxconn: {now}, and a shard asks for {wanted} waiting clients"),
                format!("sysctl -w net.core.somaxconn={wanted}"),
            ),
            Some(now) => good(format!(
                "net.core.somaxconn: {now}, a shard asks for {wanted}"
            )),
            None => good("net.core.somaxconn: cannot be read here"),
        }
    }

    fn ports(&self) -> Option<Finding> {
        let now = self.local_ports?;
        let about = format!("local ports: {now}, each a stream to one engine's address");
        Some(if now >= PORTS_WANTED {
            good(about)
        } else {
            bad(
                about,
                "sysctl -w net.ipv4.ip_local_port_range='10000 65000'",
            )
        })
    }

    /// Before 5.12 a ring's memory counts as locked.
    fn locked(&self) -> Option<Finding> {
        let (_, hard) = self.locked_memory;
        let counts = version(&self.kernel).is_some_and(|version| version < (5, 12));
        let text = hard.map_or("no limit".into(), |bytes| format!("{} KiB", bytes >> 10));
        if !counts {
            return Some(good(format!(
                "locked memory: {text}; this kernel's rings do not count"
            )));
        }
        let about = format!("locked memory: {text}, and this kernel counts rings as such");
        Some(match hard {
            Some(bytes) if bytes < 64 << 20 => bad(about, "LimitMEMLOCK=infinity in the unit"),
            _ => good(about),
        })
    }

    fn time(&self, shards: &[Shard]) -> Option<Finding> {
        let quota = self.quota?;
        let about = format!(
            "CPU quota: {quota:.1} CPUs for {} shards; at its end all of them stand still for up to 0.1 s",
            shards.len()
        );
        Some(if quota < shards.len() as f64 {
            let whole = (quota as usize).max(1);
            bad(
                about,
                format!("--shards {whole}, or a cpuset instead of a quota"),
            )
        } else {
            good(about)
        })
    }

    fn governor(&self) -> Option<Finding> {
        let name = self.governor.as_deref()?;
        let about = format!("CPU frequency governor: {name}");
        Some(match name {
            "performance" => good(about),
            _ => bad(
                about,
                "cpupower frequency-set -g performance: waking a slowed core delays tokens",
            ),
        })
    }

    /// Shards, their memory, and the cards that feed them should be on one node.
    fn memory_and_cards(&self, shards: &[Shard]) -> Vec<Finding> {
        if self.nodes.len() < 2 {
            return vec![good("NUMA: one node, so nothing is far away")];
        }
        let mut used: Vec<usize> = shards.iter().filter_map(|shard| shard.node).collect();
        used.sort_unstable();
        used.dedup();
        let mut found = Vec::new();
        let up = self
            .nics
            .iter()
            .filter_map(|nic| Some((nic, nic.node?)))
            .collect::<Vec<_>>();
        for (nic, node) in &up {
            let far: Vec<String> = used
                .iter()
                .filter(|one| *one != node)
                .map(usize::to_string)
                .collect();
            if far.is_empty() {
                found.push(good(format!(
                    "{} and the shards are on node {node}",
                    nic.name
                )));
                continue;
            }
            found.push(bad(
                format!(
                    "{} is on node {node}, but shards run on node {}: each packet crosses over",
                    nic.name,
                    far.join(" and ")
                ),
                format!("--numa {node}, or one server per node, each for its own card"),
            ));
        }
        if up.is_empty() && used.len() > 1 {
            found.push(good(format!(
                "NUMA: shards on {} nodes; no card says which node it is on",
                used.len()
            )));
        }
        found
    }
}

fn nodes(tree: &Tree) -> Vec<Node> {
    let folder = "sys/devices/system/node";
    let of = |name: String| {
        let id = name.strip_prefix("node")?.parse().ok()?;
        let cpus = cores::parse(&tree.text(&format!("{folder}/{name}/cpulist"))?);
        let total = tree.text(&format!("{folder}/{name}/meminfo"))?;
        let line = total.lines().find(|line| line.contains("MemTotal:"))?;
        let memory_kib = line.split_whitespace().rev().nth(1)?.parse().ok()?;
        Some(Node {
            id,
            cpus,
            memory_kib,
        })
    };
    let mut nodes: Vec<Node> = tree.names(folder).into_iter().filter_map(of).collect();
    nodes.sort_unstable_by_key(|node| node.id);
    nodes
}

/// The cards that are up. What has no device behind it (loopback, bridges) is no card.
fn nics(tree: &Tree) -> Vec<Nic> {
    let folder = "sys/class/net";
    let of = |name: String| {
        let at = |file: &str| format!("{folder}/{name}/{file}");
        if tree.names(&at("device")).is_empty() || tree.text(&at("operstate"))? != "up" {
            return None;
        }
        Some(Nic {
            // The kernel says -1 where there is only one node.
            node: tree
                .number(&at("device/numa_node"))
                .map(|node| node as usize),
            mbit_per_s: tree.number(&at("speed")),
            name,
        })
    };
    tree.names(folder).into_iter().filter_map(of).collect()
}

/// `200000 100000` as the kernel writes it: two CPUs' worth.
fn quota(text: &str) -> Option<f64> {
    let (time, period) = text.split_once(' ')?;
    let (time, period) = (time.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (period > 0.0).then_some(time / period)
}

/// How many numbers `32768 60999` has.
fn span(text: &str) -> Option<u64> {
    let mut ends = text.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    (last >= first).then(|| last - first + 1)
}

fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut parts = kernel.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// One shard as it would run: its runtime was built on its CPU, and is gone again.
struct Shard {
    cpu: Option<usize>,
    node: Option<usize>,
    /// The rung of the driver ladder, or why there was none.
    driver: Result<Driver, String>,
    /// Why not a higher one.
    why: String,
    pinned: bool,
}

fn try_shards(plan: &[Option<usize>]) -> Vec<Shard> {
    let machine = Machine::read(&Tree::new("/"));
    let one = |cpu: Option<usize>| {
        let built = move || {
            let pinned = cpu.is_none_or(cores::pin);
            let built = runtime::build(false);
            let driver = built.as_ref().map(|b| b.driver);
            let why = built
                .as_ref()
                .map_or(String::new(), |built| built.why.clone());
            (pinned, driver.map_err(|error| error.to_string()), why)
        };
        // A ring belongs to the thread that made it.
        let failed = || (false, Err("its thread failed".to_owned()), String::new());
        let (pinned, driver, why) = std::thread::spawn(built)
            .join()
            .unwrap_or_else(|_| failed());
        Shard {
            cpu,
            node: cpu.and_then(|cpu| machine.node_of(cpu)),
            driver,
            why,
            pinned,
        }
    };
    plan.iter().map(|cpu| one(*cpu)).collect()
}

fn ring_findings(shards: &[Shard]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        if !shard.pinned {
            found.push(bad(
                format!("shard {number} could not be pinned"),
                "allow sched_setaffinity, or give --cpus with CPUs of this container",
            ));
        }
        match &shard.driver {
            Err(why) => found.push(bad(
                format!("shard {number} has no runtime: {why}"),
                "raise the limits above",
            )),
            Ok(Driver::Deferred) => {}
            Ok(driver) => found.push(bad(
                format!("shard {number} runs on {}: {}", driver.name(), shard.why),
                match driver {
                    Driver::Epoll => {
                        "allow io_uring: sysctl kernel.io_uring_disabled=0, and its three system calls in the \
                         container's seccomp profile (about a quarter less CPU)"
                    }
                    _ => "a kernel of 6.1 or newer (about a sixth less CPU per token)",
                },
            )),
        }
    }
    found.dedup_by(|a, b| a.fix == b.fix && a.fix.is_some());
    if found.is_empty() {
        found.push(good(format!(
            "io_uring: all shards on {}",
            Driver::Deferred.name()
        )));
    }
    found
}

/// One thing that was looked at.
#[derive(Debug, PartialEq)]
struct Finding {
    about: String,
    /// What to change; `None`: it is well.
    fix: Option<String>,
}

fn good(about: impl Into<String>) -> Finding {
    Finding {
        about: about.into(),
        fix: None,
    }
}

fn bad(about: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        about: about.into(),
        fix: Some(fix.into()),
    }
}

impl Display for Finding {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match &self.fix {
            None => writeln!(out, "ok       {}", self.about),
            Some(fix) => writeln!(out, "change   {}\n         -> {fix}", self.about),
        }
    }
}

fn report(machine: &Machine, shards: &[Shard], findings: &[Finding]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:<8} {text}");
    line(
        "pdrelay",
        format!("{}, kernel {}", env!("CARGO_PKG_VERSION"), machine.kernel),
    );
    for node in &machine.nodes {
        line(
            "node",
            format!(
                "{}: CPUs {}, {:.1} GiB",
                node.id,
                cores::list(&node.cpus),
                node.memory_kib as f64 / f64::from(1 << 20)
            ),
        );
    }
    for nic in &machine.nics {
        let speed = nic
            .mbit_per_s
            .map_or(String::new(), |mbit| format!(", {mbit} Mbit/s"));
        let node = nic.node.map_or("any".into(), |node| node.to_string());
        line("card", format!("{}: node {node}{speed}", nic.name));
    }
    for (number, shard) in shards.iter().enumerate() {
        let cpu = shard.cpu.map_or("any".into(), |cpu| cpu.to_string());
        let node = shard.node.map_or("?".into(), |node| node.to_string());
        let driver = shard.driver.as_ref().map_or("none", |driver| driver.name());
        line(
            "shard",
            format!("{number}: CPU {cpu}, node {node}, {driver}"),
        );
    }
    let features = match runtime::features() {
        Ok(features) => features.join(" "),
        Err(error) => {
            let switch = machine.io_uring_disabled.unwrap_or(0);
            format!("none ({error}; kernel.io_uring_disabled is {switch})")
        }
    };
    line("io_uring", features);
    for one in findings {
        let _ = write!(out, "{one}");
    }
    out
}

#[cfg(test)]
mod tests;
