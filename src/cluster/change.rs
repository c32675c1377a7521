//! Changes of a running cluster: each makes a new snapshot from the old one. Requests that run keep
//! theirs, and with it the instances in it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Cluster, Instance};
use crate::config::{Address, CircuitBreaker, Config, InstanceConfig, Role};
use crate::metrics::Metrics;

/// One step, from the admin API or from a reloaded file.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new address; refused if it is there.
    Add(InstanceConfig),
    /// As a file lists it: also a second copy of an address.
    Put(InstanceConfig),
    /// No new requests; it stays in the list until it is removed or resumed.
    Drain(Role, Address),
    /// Takes requests again.
    Resume(Role, Address),
    /// Out of the list. What runs on it runs to its end.
    Remove(Role, Address),
    /// The same, of the instance with this index: whoever has the address by now stays.
    RemoveOne(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut say = |what: &str, role: &Role, address: &Address| {
            write!(f, "{what} {} {address}", role.name())
        };
        match self {
            Change::Add(one) | Change::Put(one) => say("add", &one.role, &one.address),
            Change::Drain(role, address) => say("drain", role, address),
            Change::Resume(role, address) => say("resume", role, address),
            Change::Remove(role, address) => say("remove", role, address),
            Change::RemoveOne(index) => write!(f, "remove instance {index}"),
        }
    }
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    Exists(String),
    Unknown(String),
    /// No stage of this handshake asks such an instance.
    Unused(Role, &'static str),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Exists(what) => write!(f, "{what} is in the list already"),
            Refused::Unknown(what) => write!(f, "{what} is not in the list"),
            Refused::Unused(role, handshake) => {
                let role = role.name();
                write!(f, "handshake {handshake} does not use {role} instances")
            }
        }
    }
}

impl Cluster {
    /// The cluster after this change.
    pub fn after(
        &self,
        change: &Change,
        breaker: &CircuitBreaker,
        metrics: &Metrics,
    ) -> Result<Cluster, Refused> {
        let mut instances = self.instances.clone();
        let mut next_index = self.next_index;
        match change {
            Change::Add(one) | Change::Put(one) => {
                let new = matches!(change, Change::Add(_));
                if new && self.find(one.role, &one.address).is_some() {
                    return Err(Refused::Exists(format!(
                        "{} {}",
                        one.role.name(),
                        one.address
                    )));
                }
                instances.push(Arc::new(Instance::new(next_index, one, breaker, metrics)));
                next_index += 1;
            }
            Change::Drain(role, address) | Change::Resume(role, address) => {
                let drain = matches!(change, Change::Drain(..));
                self.known(*role, address)?
                    .draining
                    .store(drain, Ordering::Relaxed);
            }
            Change::Remove(..) | Change::RemoveOne(_) => {
                // Not marked: until the new list is published it is the list, and
                // afterwards nobody picks from the old one.
                let gone = match change {
                    Change::Remove(role, address) => self.known(*role, address)?,
                    Change::RemoveOne(index) => self
                        .instances
                        .iter()
                        .find(|one| one.index == *index)
                        .ok_or_else(|| Refused::Unknown(format!("instance {index}")))?,
                    _ => unreachable!("matched above"),
                };
                instances.retain(|one| one.index != gone.index);
                // The same address may be listed twice (legacy lists); then its series live on.
                if !instances
                    .iter()
                    .any(|i| i.role == gone.role && i.address == gone.address)
                {
                    metrics.forget_instance(gone.role.name(), &gone.name);
                }
            }
        }
        let estimate = self.estimate.clone();
        Ok(Cluster::of(instances, next_index, estimate, &self.models))
    }

    fn find(&self, role: Role, address: &Address) -> Option<&Arc<Instance>> {
        self.role(role).iter().find(|one| one.address == *address)
    }

    fn known(&self, role: Role, address: &Address) -> Result<&Arc<Instance>, Refused> {
        self.find(role, address)
            .ok_or_else(|| Refused::Unknown(format!("{} {address}", role.name())))
    }
}

/// What is to be done when one file replaces another. Only addresses that the two list differently are
/// touched: what was added or removed by hand stays so. Of those, the cluster gets exactly the copies that
/// the new file lists.
pub fn between(cluster: &Cluster, old: &Config, new: &Config) -> Vec<Change> {
    let mut places: Vec<(Role, &Address)> = Vec::new();
    for one in old.instances.iter().chain(&new.instances) {
        if !places.contains(&(one.role, &one.address)) {
            places.push((one.role, &one.address));
        }
    }
    let (mut removals, mut additions) = (Vec::new(), Vec::new());
    for (role, address) in places {
        let listed = |config: &Config| -> Vec<InstanceConfig> {
            let here = |one: &&InstanceConfig| one.role == role && one.address == *address;
            config.instances.iter().filter(here).cloned().collect()
        };
        let mut wanted = listed(new);
        if same(listed(old), &wanted) {
            continue;
        }
        for one in cluster.role(role).iter().filter(|i| i.address == *address) {
            match wanted.iter().position(|w| one.configured_as(w)) {
                Some(at) => drop(wanted.swap_remove(at)),
                None => removals.push(Change::RemoveOne(one.index)),
            }
        }
        additions.extend(wanted.into_iter().map(Change::Put));
    }
    removals.extend(additions);
    removals
}

/// In whatever order.
fn same(mut a: Vec<InstanceConfig>, b: &[InstanceConfig]) -> bool {
    let taken = |one| a.iter().position(|o| o == one).map(|at| a.swap_remove(at));
    b.iter().map(taken).all(|one| one.is_some()) && a.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(list: &[(Role, u16, f64)]) -> Config {
        let one = |(role, port, weight): &(Role, u16, f64)| InstanceConfig {
            weight: *weight,
            ..InstanceConfig::new(Address::tcp("127.0.0.1", *port), *role)
        };
        Config {
            instances: list.iter().map(one).collect(),
            ..Config::default()
        }
    }

    /// The changes, and the ports and weights that are left by them.
    fn reload(
        cluster: &[(Role, u16, f64)],
        old: &[(Role, u16, f64)],
        new: &[(Role, u16, f64)],
    ) -> (usize, Vec<(u16, f64)>) {
        let metrics = Metrics::new(1);
        let mut cluster = Cluster::from_config(&config(cluster), &metrics);
        let steps = between(&cluster, &config(old), &config(new));
        for step in &steps {
            let next = cluster.after(step, &CircuitBreaker::default(), &metrics);
            cluster = next.unwrap_or_else(|why| panic!("{step}: {why}"));
        }
        let place = |one: &Arc<Instance>| match &one.address {
            Address::Tcp { port, .. } => (*port, one.weight),
            other => panic!("{other}"),
        };
        let mut left: Vec<_> = cluster.instances.iter().map(place).collect();
        left.sort_by(|a, b| a.partial_cmp(b).unwrap());
        (steps.len(), left)
    }

    #[test]
    fn a_reload_touches_only_what_changed() {
        use Role::{Decode, Prefill};
        let old = [(Prefill, 1, 1.0), (Decode, 2, 1.0), (Decode, 3, 1.0)];
        let new = [(Prefill, 1, 1.0), (Decode, 3, 2.0), (Decode, 4, 1.0)];
        let wanted = vec![(1, 1.0), (3, 2.0), (4, 1.0)];
        assert_eq!(reload(&old, &old, &new), (4, wanted));
        assert_eq!(reload(&old, &old, &old).0, 0);
    }

    #[test]
    fn what_was_done_by_hand_is_no_obstacle_to_the_file() {
        use Role::Decode;
        let old = [(Decode, 1, 1.0), (Decode, 2, 1.0)];
        let new = [(Decode, 1, 2.0), (Decode, 3, 1.0)];
        let wanted = vec![(1, 2.0), (3, 1.0)];
        // 2 is gone and 3 is there; then 3 is there with another weight.
        let by_hand = [(Decode, 1, 1.0), (Decode, 3, 1.0)];
        assert_eq!(reload(&by_hand, &old, &new), (2, wanted.clone()));
        let by_hand = [(Decode, 1, 1.0), (Decode, 3, 5.0)];
        assert_eq!(reload(&by_hand, &old, &new), (4, wanted));
        // What no file speaks of stays; what was removed and is listed as before does not come back.
        let by_hand = [(Decode, 2, 1.0), (Decode, 9, 1.0)];
        let more = [(Decode, 1, 1.0), (Decode, 2, 1.0), (Decode, 4, 1.0)];
        let wanted = vec![(2, 1.0), (4, 1.0), (9, 1.0)];
        assert_eq!(reload(&by_hand, &old, &more), (1, wanted));
    }

    /// Legacy lists may name one address twice.
    #[test]
    fn copies_come_and_go_one_by_one() {
        use Role::Decode;
        let (one, two) = ([(Decode, 1, 1.0)], [(Decode, 1, 1.0), (Decode, 1, 1.0)]);
        assert_eq!(reload(&one, &one, &two), (1, vec![(1, 1.0), (1, 1.0)]));
        assert_eq!(reload(&two, &two, &one), (1, vec![(1, 1.0)]));
        // Even if the second had never been there.
        assert_eq!(reload(&one, &two, &one), (0, vec![(1, 1.0)]));
        let heavy = [(Decode, 1, 2.0), (Decode, 1, 2.0)];
        assert_eq!(reload(&two, &two, &heavy), (4, vec![(1, 2.0), (1, 2.0)]));
    }

    #[test]
    fn an_index_is_never_given_to_another_address() {
        let metrics = Metrics::new(1);
        let config = config(&[(Role::Decode, 1, 1.0), (Role::Decode, 2, 1.0)]);
        let cluster = Cluster::from_config(&config, &metrics);
        let breaker = CircuitBreaker::default();
        let address = Address::tcp("127.0.0.1", 2);
        let step = |c: &Cluster, change| c.after(&change, &breaker, &metrics);
        let less = step(&cluster, Change::Remove(Role::Decode, address.clone())).unwrap();
        let one = InstanceConfig::new(address, Role::Decode);
        let more = step(&less, Change::Add(one.clone())).unwrap();
        assert_eq!(more.instances.last().unwrap().index, 2);
        assert!(matches!(
            step(&more, Change::Add(one)),
            Err(Refused::Exists(_))
        ));
    }
}
