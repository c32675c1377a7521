//! Which models there are, and who serves each.
//!
//! Nothing of it is looked at on the way of a request while all instances serve one model and any name is
//! taken for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_utils::CachePadded;

use super::Instance;
use crate::config::Role;

/// Whom a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every instance.
    All,
    /// Those of one model, by its position in [`Models`].
    One(usize),
}

/// No instance serves the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoModel {
    /// Nor will one.
    Unknown,
    /// Some have not been asked yet what they serve.
    NotYet,
}

/// Where taking turns has come to, per role. Shared by all shards and by all snapshots.
#[derive(Debug, Default)]
pub struct Turns([CachePadded<AtomicU64>; Role::ALL.len()]);

impl Turns {
    pub fn of(&self, role: Role) -> &AtomicU64 {
        &self.0[role as usize]
    }
}

/// One model's part of a cluster.
pub struct Served {
    pub name: Arc<str>,
    by_role: [Vec<Arc<Instance>>; Role::ALL.len()],
    turns: Arc<Turns>,
}

impl Served {
    pub fn role(&self, role: Role) -> &[Arc<Instance>] {
        &self.by_role[role as usize]
    }

    /// Is it served by aggregated instances and by nobody else?
    pub fn only_aggregated(&self) -> bool {
        Role::ALL
            .iter()
            .all(|role| self.role(*role).is_empty() != (*role == Role::Aggregated))
    }
}

/// The models of one snapshot that requests are told apart by; none while every instance will do.
#[derive(Default)]
pub struct Models {
    /// A model that nobody serves is an error; else it goes to anyone.
    pub strict: bool,
    served: Vec<Served>,
    by_name: HashMap<Box<[u8]>, usize>,
    turns: Arc<Turns>,
}

impl Models {
    pub(super) fn none(strict: bool) -> Models {
        Models {
            strict,
            ..Models::default()
        }
    }

    /// Where `strict`, an instance serves the model that it is configured for or says it serves, and one
    /// that has not said serves none. Else only what is configured tells instances apart (engines behind
    /// one address may well name one model differently), and one without a model serves any.
    pub(super) fn of(instances: &[Arc<Instance>], strict: bool, before: &Models) -> Models {
        let names: Vec<Option<Arc<str>>> = instances
            .iter()
            .map(|one| match strict {
                true => one.model(),
                false => one.configured.clone(),
            })
            .collect();
        let mut models = Models {
            turns: before.turns.clone(),
            ..Models::none(strict)
        };
        for name in names.iter().flatten() {
            let next = models.served.len();
            let at = *models.by_name.entry(name.as_bytes().into()).or_insert(next);
            if at == next {
                let known = before.served.iter().find(|one| one.name == *name);
                models.served.push(Served {
                    name: name.clone(),
                    by_role: Default::default(),
                    turns: known.map(|one| one.turns.clone()).unwrap_or_default(),
                });
            }
        }
        if !strict && models.served.len() < 2 {
            models.served.clear();
            models.by_name.clear();
        }
        for (instance, name) in instances.iter().zip(&names) {
            for one in &mut models.served {
                if name.as_ref().map_or(!strict, |name| *name == one.name) {
                    one.by_role[instance.role as usize].push(instance.clone());
                }
            }
        }
        models
    }

    /// Does it matter which model a request names?
    pub fn matter(&self) -> bool {
        self.strict || !self.served.is_empty()
    }

    /// In the order in which instances name them.
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub fn in_scope(&self, scope: Scope) -> Option<&Served> {
        match scope {
            Scope::All => None,
            Scope::One(at) => self.served.get(at),
        }
    }

    pub fn turns(&self, scope: Scope) -> &Turns {
        self.in_scope(scope)
            .map_or(&self.turns, |served| &served.turns)
    }
}
