//! Machines that nobody here owns, laid out as files.

use std::path::PathBuf;

use super::*;

/// Gone with the test.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str, files: &[(&str, &str)]) -> Fake {
        let root =
            std::env::temp_dir().join(format!("pdrelay-doctor-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Fake(root)
    }

    fn machine(&self) -> Machine {
        let mut machine = Machine::read(&Tree::new(&self.0));
        machine.files = (Some(1024), Some(1 << 20));
        machine.locked_memory = (Some(8 << 20), Some(8 << 20));
        machine
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const TWO_NODES: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.1.0-test\n"),
    ("proc/sys/net/core/somaxconn", "128\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("sys/devices/system/node/node0/cpulist", "0-3\n"),
    (
        "sys/devices/system/node/node0/meminfo",
        "Node 0 MemTotal:       33554432 kB\nNode 0 MemFree: 1 kB\n",
    ),
    ("sys/devices/system/node/node1/cpulist", "4-7\n"),
    (
        "sys/devices/system/node/node1/meminfo",
        "Node 1 MemTotal:       33554432 kB\n",
    ),
    ("sys/class/net/eth0/operstate", "up\n"),
    ("sys/class/net/eth0/speed", "100000\n"),
    ("sys/class/net/eth0/device/numa_node", "1\n"),
    ("sys/class/net/eth1/operstate", "down\n"),
    ("sys/class/net/eth1/device/numa_node", "0\n"),
    ("sys/class/net/lo/operstate", "unknown\n"),
    ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
];

fn shard(cpu: usize, machine: &Machine) -> Shard {
    Shard {
        cpu: Some(cpu),
        node: machine.node_of(cpu),
        driver: Ok(Driver::Deferred),
        why: String::new(),
        pinned: true,
    }
}

fn fixes(findings: &[Finding]) -> Vec<&str> {
    findings
        .iter()
        .filter_map(|one| one.fix.as_deref())
        .collect()
}

#[test]
fn a_card_far_from_the_shards_is_seen() {
    let fake = Fake::new("card", TWO_NODES);
    let machine = fake.machine();
    assert_eq!(machine.nics.len(), 1, "one card is down, one is none");
    let far = machine.memory_and_cards(&[shard(0, &machine), shard(5, &machine)]);
    assert_eq!(far.len(), 1);
    assert!(far[0].about.contains("eth0 is on node 1") && far[0].about.contains("on node 0:"));
    assert!(far[0].fix.as_ref().unwrap().starts_with("--numa 1"));
    let near = machine.memory_and_cards(&[shard(4, &machine), shard(5, &machine)]);
    assert_eq!(fixes(&near), [""; 0]);
}

#[test]
fn small_limits_are_seen() {
    let fake = Fake::new("limits", TWO_NODES);
    let mut machine = fake.machine();
    let shards: Vec<Shard> = (4..8).map(|cpu| shard(cpu, &machine)).collect();
    let found = machine.findings(&shards);
    assert_eq!(
        fixes(&found),
        [
            "sysctl -w net.core.somaxconn=4096",
            "--shards 1, or a cpuset instead of a quota"
        ]
    );
    machine.files.1 = Some(4096);
    machine.local_ports = Some(100);
    machine.kernel = "5.10.0".into();
    assert_eq!(fixes(&machine.findings(&shards)).len(), 5);
}

#[test]
fn a_lower_rung_is_seen_once_for_all_shards() {
    let fake = Fake::new("rung", TWO_NODES);
    let machine = fake.machine();
    let low = |cpu| Shard {
        driver: Ok(Driver::Epoll),
        why: "io_uring: Operation not permitted".into(),
        ..shard(cpu, &machine)
    };
    let found = ring_findings(&[low(0), low(1)]);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .about
            .contains("epoll: io_uring: Operation not permitted")
    );
    assert_eq!(fixes(&ring_findings(&[shard(0, &machine)])), [""; 0]);
}

#[test]
fn the_report_has_a_line_for_everything() {
    let fake = Fake::new("report", TWO_NODES);
    let machine = fake.machine();
    let shards = [shard(2, &machine)];
    let text = report(&machine, &shards, &machine.findings(&shards));
    for line in [
        "node     1: CPUs 4,5,6,7, 32.0 GiB",
        "card     eth0: node 1, 100000 Mbit/s",
        "shard    0: CPU 2, node 0, io_uring+defer_taskrun",
        "change   net.core.somaxconn: 128",
        "         -> sysctl -w net.core.somaxconn=4096",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn what_the_kernel_writes_is_read() {
    assert_eq!(quota("max 100000"), None);
    assert_eq!(quota("50000 100000"), Some(0.5));
    assert_eq!(span("32768\t60999"), Some(28_232));
    assert_eq!(version("6.18.0-rc1"), Some((6, 18)));
    assert_eq!(version("x"), None);
}
