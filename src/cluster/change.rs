//! Changes of a running cluster: each makes a new snapshot from the old one. Requests that run keep
//! theirs, and with it the instances in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Cluster, Instance};
use crate::config::{Address, CircuitBreaker, Config, InstanceConfig, Role};
use crate::metrics::Metrics;

/// One step, from the admin API or from a reloaded file.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Add(InstanceConfig),
    /// No new requests; it stays in the list until it is removed or resumed.
    Drain(Role, Address),
    /// Takes requests again.
    Resume(Role, Address),
    /// Out of the list. What runs on it runs to its end.
    Remove(Role, Address),
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    Exists(String),
    Unknown(String),
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
            Change::Add(one) => {
                if self.find(one.role, &one.address).is_some() {
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
            Change::Remove(role, address) => {
                // Not marked: until the new list is published (which may wait for DNS) it is the list, and
                // afterwards nobody picks from the old one.
                let gone = self.known(*role, address)?;
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

/// The changes that lead from one file's instances to another's. What was added by hand stays.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let mut gone = old.instances.clone();
    let mut changes = Vec::new();
    for one in &new.instances {
        match gone.iter().position(|o| o == one) {
            Some(at) => drop(gone.swap_remove(at)),
            None => changes.push(Change::Add(one.clone())),
        }
    }
    // Removals first: a changed weight is a removal and an addition of one address.
    let removals = gone
        .into_iter()
        .map(|one| Change::Remove(one.role, one.address));
    removals.chain(changes).collect()
}

/// What of these changes is still to be done. Added by hand before, or removed by hand: then that part of
/// the file is already so. (Added by hand with another weight: the file's counts.)
pub fn against(cluster: &Cluster, changes: Vec<Change>) -> Vec<Change> {
    let mut left = Vec::with_capacity(changes.len());
    for change in changes {
        match &change {
            Change::Remove(role, address) if cluster.find(*role, address).is_none() => continue,
            Change::Add(one) => {
                let removal = Change::Remove(one.role, one.address.clone());
                let listed = cluster.find(one.role, &one.address);
                if let Some(listed) = listed.filter(|_| !left.contains(&removal)) {
                    if listed.weight == one.weight {
                        continue;
                    }
                    left.push(removal);
                }
            }
            _ => {}
        }
        left.push(change);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(list: &[(Role, u16, f64)]) -> Config {
        let one = |(role, port, weight): &(Role, u16, f64)| InstanceConfig {
            address: Address::tcp("127.0.0.1", *port),
            role: *role,
            weight: *weight,
            model: String::new(),
        };
        Config {
            instances: list.iter().map(one).collect(),
            ..Config::default()
        }
    }

    #[test]
    fn a_reload_touches_only_what_changed() {
        use Role::{Decode, Prefill};
        let old = config(&[(Prefill, 1, 1.0), (Decode, 2, 1.0), (Decode, 3, 1.0)]);
        let new = config(&[(Prefill, 1, 1.0), (Decode, 3, 2.0), (Decode, 4, 1.0)]);
        let steps = between(&old, &new);
        let removed = |p| Change::Remove(Decode, Address::tcp("127.0.0.1", p));
        assert_eq!(steps.len(), 4);
        assert!(steps[..2].contains(&removed(2)) && steps[..2].contains(&removed(3)));
        assert!(matches!(&steps[2], Change::Add(one) if one.weight == 2.0));
        assert!(between(&old, &old).is_empty());
    }

    #[test]
    fn what_was_done_by_hand_is_no_obstacle_to_the_file() {
        use Role::Decode;
        let metrics = Metrics::new(1);
        let cluster = |list| Cluster::from_config(&config(list), &metrics);
        let old = config(&[(Decode, 1, 1.0), (Decode, 2, 1.0)]);
        let new = config(&[(Decode, 1, 2.0), (Decode, 3, 1.0)]);
        let steps = |cluster: &Cluster| against(cluster, between(&old, &new));
        // As the old file says: 1 and 2 go, 1 and 3 come.
        assert_eq!(
            steps(&cluster(&[(Decode, 1, 1.0), (Decode, 2, 1.0)])).len(),
            4
        );
        // 2 is gone and 3 is there.
        let left = steps(&cluster(&[(Decode, 1, 1.0), (Decode, 3, 1.0)]));
        assert!(matches!(&left[..], [Change::Remove(..), Change::Add(one)] if one.weight == 2.0));
        // 3 is there with another weight.
        let left = steps(&cluster(&[(Decode, 1, 1.0), (Decode, 3, 5.0)]));
        assert_eq!(left.len(), 4);
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
        let one = InstanceConfig {
            address,
            role: Role::Decode,
            weight: 1.0,
            model: String::new(),
        };
        let more = step(&less, Change::Add(one.clone())).unwrap();
        assert_eq!(more.instances.last().unwrap().index, 2);
        assert!(matches!(
            step(&more, Change::Add(one)),
            Err(Refused::Exists(_))
        ));
    }
}
