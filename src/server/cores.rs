//! Which CPUs the shards run on. Everything comes from the affinity mask and sysfs; no topology library.

use std::collections::BTreeSet;
use std::fs;

use crate::config::Cores;

/// The CPUs to pin shards to, in shard order; `None` in a place: not pinned.
pub fn plan(cores: &Cores) -> Result<Vec<Option<usize>>, String> {
    let allowed = allowed();
    if let Some(cpus) = &cores.cpus {
        if let Some(bad) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(format!(
                "cpus: CPU {bad} may not be used by this process, which may use CPU {}",
                list(&allowed)
            ));
        }
        return Ok(cpus.iter().map(|cpu| Some(*cpu)).collect());
    }
    let mut usable = allowed;
    if let Some(node) = cores.numa {
        let of_node = node_cpus(node).ok_or_else(|| format!("numa: there is no node {node}"))?;
        usable.retain(|cpu| of_node.contains(cpu));
        if usable.is_empty() {
            return Err(format!(
                "numa: no CPU of node {node} may be used by this process"
            ));
        }
    }
    let physical = one_per_core(&usable);
    let Some(shards) = cores.shards else {
        return Ok(physical.into_iter().map(Some).collect());
    };
    // First one per physical core, then their siblings; more shards than CPUs are left unpinned.
    let siblings = usable.iter().filter(|cpu| !physical.contains(cpu));
    let order: Vec<usize> = physical.iter().chain(siblings).copied().collect();
    Ok((0..shards).map(|i| order.get(i).copied()).collect())
}

/// CPUs in this process's affinity mask (a container's cpuset included).
fn allowed() -> Vec<usize> {
    let mut ids: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|c| c.id)
        .collect();
    ids.sort_unstable();
    if ids.is_empty() { vec![0] } else { ids }
}

fn one_per_core(cpus: &[usize]) -> Vec<usize> {
    let mut taken = BTreeSet::new();
    cpus.iter()
        .copied()
        .filter(|cpu| taken.insert(siblings(*cpu)))
        .collect()
}

/// The lowest CPU of the physical core that `cpu` belongs to.
fn siblings(cpu: usize) -> usize {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let text = fs::read_to_string(path).unwrap_or_default();
    parse(&text).first().copied().unwrap_or(cpu)
}

fn node_cpus(node: usize) -> Option<Vec<usize>> {
    fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist"))
        .ok()
        .map(|text| parse(&text))
}

/// `0-3,8` as the kernel writes it.
pub fn parse(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            cpus.extend(from..=to);
        }
    }
    cpus
}

pub fn list(cpus: &[usize]) -> String {
    cpus.iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Pins the calling thread. False if the kernel refuses.
pub fn pin(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_read() {
        assert_eq!(parse("0-2,5,8-9\n"), [0, 1, 2, 5, 8, 9]);
        assert_eq!(parse(""), Vec::<usize>::new());
    }

    #[test]
    fn more_shards_than_cpus_are_left_unpinned() {
        let cores = Cores {
            shards: Some(1024),
            ..Cores::default()
        };
        let plan = plan(&cores).unwrap();
        assert_eq!(plan.len(), 1024);
        assert!(plan[0].is_some() && plan[1023].is_none());
    }

    #[test]
    fn a_cpu_that_is_not_ours_is_refused() {
        let cores = Cores {
            cpus: Some(vec![1 << 20]),
            ..Cores::default()
        };
        assert!(plan(&cores).unwrap_err().contains("may not be used"));
    }
}
