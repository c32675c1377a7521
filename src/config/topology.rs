//! The topology form of `prefill` / `decode`: machines and parallel sizes in, instance addresses out.
//!
//! ```text
//! nodes: [10.0.0.1:8200, 10.0.0.2:8200]   one machine each, with the port of its first instance
//! tp_size: 1                              accelerators per instance
//! dp_size: 16                             instances
//! world_size_per_node: 8                  accelerators per machine
//!                                         -> 10.0.0.1:8200 ... :8207, 10.0.0.2:8200 ... :8207
//! ```
//!
//! Instance `i` starts on machine `i * tp_size / world_size_per_node`. Ports count instances, not
//! accelerators: the k-th instance of a machine listens on its base port + k. An instance larger than
//! a machine spans several, and only the first of them has an address.

use super::address::Address;

pub struct Topology {
    pub nodes: Vec<Address>,
    pub tp_size: u64,
    pub dp_size: u64,
    pub world_size_per_node: u64,
}

/// One machine, `host:base_port`; the error is the sentence to show.
pub fn parse_node(role: &str, text: &str) -> Result<Address, String> {
    let text = text.trim();
    let Some((_, port)) = text.rsplit_once(':') else {
        return Err(format!("{role} invalid node format: {text}"));
    };
    if !port.parse::<u16>().is_ok_and(|p| p > 0) {
        return Err(format!("{role} invalid port in node {text}"));
    }
    match Address::parse(text) {
        Ok(Address::Unix(_) | Address::Url(_)) => {
            Err(format!("{role} invalid node format: {text}"))
        }
        Ok(address) => Ok(address),
        Err(why) => Err(format!("{role} invalid node format: {text}: {why}")),
    }
}

/// Every instance's address, in instance order.
pub fn expand(role: &str, topology: &Topology) -> Result<Vec<Address>, String> {
    let Topology {
        nodes,
        tp_size: tp,
        dp_size: dp,
        world_size_per_node: world,
    } = topology;
    for (name, size) in [
        ("tp_size", *tp),
        ("dp_size", *dp),
        ("world_size_per_node", *world),
    ] {
        if size < 1 {
            return Err(format!(
                "{role} {name} must be a positive integer, got {size}"
            ));
        }
    }
    for (name, size) in [("tp_size", *tp), ("dp_size", *dp)] {
        if !size.is_power_of_two() {
            return Err(format!("{role} {name} must be a power of two, got {size}"));
        }
    }
    if u128::from(*tp) * u128::from(*dp) != nodes.len() as u128 * u128::from(*world) {
        return Err(format!(
            "{role} topology invalid: tp_size({tp}) * dp_size({dp}) != nodes({}) * world_size_per_node({world})",
            nodes.len()
        ));
    }
    let mut instances = Vec::new();
    let mut placed = vec![0u32; nodes.len()];
    for i in 0..*dp {
        // i * tp < tp * dp = nodes * world, so the index is in range.
        let node = (u128::from(i) * u128::from(*tp) / u128::from(*world)) as usize;
        let Address::Tcp { host, port } = &nodes[node] else {
            return Err(format!("{role} invalid node format: {}", nodes[node]));
        };
        let Ok(port) = u16::try_from(u32::from(*port) + placed[node]) else {
            return Err(format!(
                "Port out of range in instance {host}:{}: node {} has no port left for its \
                 instance {}",
                u32::from(*port) + placed[node],
                nodes[node],
                placed[node]
            ));
        };
        placed[node] += 1;
        instances.push(Address::tcp(host.clone(), port));
    }
    Ok(instances)
}
