//! With `steer_by_cpu`, a connection is served where its packets arrive: over loopback, on the client's own CPU.

use std::time::Duration;

use crate::support::{Client, Rig, engine, eventually, rig_with};

const MANY: i64 = 24;

/// Connections of each shard, without the one that asks.
fn connections(asks: &mut Client, on: usize) -> Vec<i64> {
    let status = asks.get("/status").json();
    let shards = status["shards"].as_array().expect("shards");
    let count = |shard: &serde_json::Value| shard["connections"].as_i64().expect("a number");
    let mut counts: Vec<i64> = shards.iter().map(count).collect();
    counts[on] -= 1;
    counts
}

/// Opened by a thread that may run on this CPU alone; the first one asks.
fn clients(rig: &Rig, cpu: usize) -> Vec<Client> {
    let address = rig.server.address;
    let opened = std::thread::spawn(move || {
        assert!(core_affinity::set_for_current(core_affinity::CoreId {
            id: cpu
        }));
        let opened: Vec<Client> = (0..=MANY).map(|_| Client::connect(address)).collect();
        // A shard counts it when it has accepted it.
        std::thread::sleep(Duration::from_millis(20));
        opened
    });
    opened.join().expect("the clients")
}

#[test]
fn each_shard_gets_those_of_its_cpu() {
    let cpus = core_affinity::get_core_ids().expect("CPUs");
    let cpus: Vec<usize> = cpus.iter().map(|cpu| cpu.id).take(2).collect();
    let rig = rig_with("aggregated", vec![engine(pdsim::Role::Both)], |config| {
        config.cores.shards = None;
        config.cores.cpus = Some(cpus.clone());
        config.cores.steer_by_cpu = true;
    });
    for (shard, cpu) in cpus.iter().enumerate() {
        let mut opened = clients(&rig, *cpu);
        let mut wanted = vec![0; cpus.len()];
        wanted[shard] = MANY;
        let mut seen = Vec::new();
        eventually("all are on the shard of their CPU", || {
            let now = connections(&mut opened[0], shard);
            if now != seen {
                println!("CPU {cpu}, wanted {wanted:?}: {now:?}");
                seen = now;
            }
            seen == wanted
        });
        drop(opened);
    }
}
