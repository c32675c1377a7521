//! Picking: snapshot, candidates, policy, load charged.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Instance;
use crate::cluster::breaker::{State, at_ms, now_ms};
use crate::cluster::load::{Counts, InFlight};
use crate::cluster::models::Scope;
use crate::cluster::ring::{Points, place};
use crate::config::Role;
use crate::error::{Error, Kind, Stage};
use crate::log;
use crate::metrics::{Failure, InstanceCounter};
use crate::policy::{Ask, Candidate, Facts, Policy};
use crate::wire::json::string_value;
use crate::wire::prompt::first_words;

use super::shape::NOT_CONFIGURED;
use super::{Exchange, Request, Stop};

/// How often a pick is made again because another shard was quicker: then it stands.
const PICKS_AGAIN: u32 = 4;

/// An instance chosen for one leg, charged with it until this is dropped.
pub struct Picked {
    pub in_flight: InFlight,
    /// This request is the one trial of an ejected instance.
    pub trial: bool,
}

impl Picked {
    pub fn instance(&self) -> &Arc<Instance> {
        &self.in_flight.instance
    }
}

impl Exchange {
    /// Chooses an instance of this role.
    pub fn pick(&self, role: Role) -> Result<Picked, Stop> {
        let pinned = self.pinned.borrow();
        if let Some(pinned) = pinned.iter().find(|one| one.role == role) {
            return Ok(self.pick_this(pinned));
        }
        drop(pinned);
        self.pick_except(role, &[])
    }

    /// This one, whatever its standing and whoever else there is.
    pub fn pick_this(&self, instance: &Arc<Instance>) -> Picked {
        let now = now_ms();
        let half_open = instance.breaker.state(now) == State::HalfOpen;
        Picked {
            in_flight: self.tools.view.charge(instance, self.prompt_tokens()),
            trial: half_open && instance.breaker.claim_trial(now),
        }
    }

    /// From now on every pick of its role is this one: others have been told of it.
    pub fn pin(&self, instance: &Arc<Instance>) {
        self.pinned.borrow_mut().push(instance.clone());
    }

    pub fn unpin_all(&self) {
        self.pinned.borrow_mut().clear();
    }

    pub(super) fn is_pinned(&self, role: Role) -> bool {
        self.pinned.borrow().iter().any(|one| one.role == role)
    }

    /// All that may take a leg now, in configured order: those in good standing that have not failed this
    /// request, else whoever is not draining. For scripts that share work out among them.
    pub fn crew(&self, role: Role) -> Vec<Arc<Instance>> {
        let all = self.members_now(role);
        let now = now_ms();
        let avoided = self.avoid.borrow();
        let good = |one: &&Arc<Instance>| {
            !one.draining() && one.in_standing(now) && !avoided.contains(&one.index)
        };
        let crew: Vec<_> = all.iter().filter(good).cloned().collect();
        match crew.is_empty() {
            true => all.into_iter().filter(|one| !one.draining()).collect(),
            false => crew,
        }
    }

    /// Nobody of this role is there.
    pub fn nobody(&self, role: Role) -> Error {
        no_instance(role, self.members_now(role).len(), 0)
    }

    /// Chooses one that is not among `tried` (by index). From the list as it is now: every engine of the
    /// list that this request began with may have been replaced since.
    pub fn pick_except(&self, role: Role, tried: &[usize]) -> Result<Picked, Stop> {
        let cluster = self.tools.cluster.get();
        if let Some(pins) = &self.pins
            && let Some(instance) = pins.instance(role)
        {
            return Ok(self.pick_this(&instance));
        }
        let scope = self.scope_in(&cluster);
        let instances = scope.map_or(&[][..], |scope| cluster.members(scope, role));
        // One reading for the breakers and for the shard's view.
        let since_start = self.tools.sweep.clock.since_start(Instant::now());
        let now = at_ms(since_start);
        let mut candidates = self.tools.candidates.borrow_mut();
        // In order of preference: those in good standing; then whoever is not tried, ejected or not.
        for strict in [true, false] {
            let strict_at = strict.then_some(now);
            self.fill(&mut candidates, instances, tried, since_start, strict_at);
            let mut again = PICKS_AGAIN;
            while !candidates.is_empty() {
                let (at, seen) = self.choose(role, instances, &candidates);
                let instance = &instances[candidates[at].position];
                let trial = strict && instance.breaker.state(now) == State::HalfOpen;
                if trial && !instance.breaker.claim_trial(now) {
                    candidates.remove(at);
                    continue;
                }
                let tokens = self.prompt_tokens();
                let (in_flight, before) = self.tools.view.charge_and_see(instance, tokens);
                // Another shard took it in the same moment: no longer what was chosen.
                let taken = seen.is_some_and(|seen| before > seen.requests);
                if taken && again > 0 && !trial {
                    again -= 1;
                    continue;
                }
                return Ok(Picked { in_flight, trial });
            }
        }
        Err(Stop::Error(no_instance(role, instances.len(), tried.len())))
    }

    /// The instance of this number, if it can be chosen now; else as [`Exchange::pick`].
    pub fn pick_again(&self, role: Role, index: Option<usize>) -> Result<Picked, Stop> {
        let now = now_ms();
        let wanted = |one: &&Arc<Instance>| {
            let closed = one.breaker.state(now) != State::HalfOpen && one.in_standing(now);
            Some(one.index) == index && closed && !one.draining()
        };
        let members = match index {
            Some(_) if !self.is_pinned(role) => self.members_now(role),
            _ => Vec::new(),
        };
        match members.iter().find(wanted) {
            Some(instance) if !self.avoid.borrow().contains(&instance.index) => Ok(Picked {
                in_flight: self.tools.view.charge(instance, self.prompt_tokens()),
                trial: false,
            }),
            _ => self.pick(role),
        }
    }

    fn prompt_tokens(&self) -> u64 {
        self.cluster
            .estimate
            .tokens(self.request().summary.prompt_bytes)
    }

    fn fill(
        &self,
        candidates: &mut Vec<Candidate>,
        instances: &[Arc<Instance>],
        tried: &[usize],
        since_start: Duration,
        standing_at: Option<u64>,
    ) {
        candidates.clear();
        let now_us = since_start.as_micros() as u64;
        for (position, instance) in instances.iter().enumerate() {
            if tried.contains(&instance.index) {
                continue;
            }
            // Failed this same request before: only if there is nobody else.
            if standing_at.is_some() && self.avoid.borrow().contains(&instance.index) {
                continue;
            }
            let out = |now| !instance.in_standing(now);
            if instance.draining() || standing_at.is_some_and(out) {
                continue;
            }
            let load = self.tools.view.read(instance, now_us);
            candidates.push(Candidate {
                position,
                load,
                weight: instance.weight,
                max_model_len: instance.max_model_len(),
            });
        }
    }

    /// Also the load of it that the policy went by, if it wants that to hold.
    fn choose(
        &self,
        role: Role,
        instances: &[Arc<Instance>],
        candidates: &[Candidate],
    ) -> (usize, Option<Counts>) {
        let turns = &self.tools.rotation[role as usize];
        let rotation = turns.get();
        turns.set(rotation.wrapping_add(1));
        let scope = self.scope.get();
        let prompt_tokens = self.prompt_tokens();
        let answer_tokens = match role {
            Role::Encode => 0,
            Role::Prefill => 1,
            Role::Decode | Role::Aggregated => self.request().summary.max_tokens.unwrap_or(0),
        };
        let known = Known {
            x: self,
            instances,
            seen: Cell::new(None),
        };
        let ask = Ask {
            role,
            prompt_tokens,
            total_tokens: prompt_tokens.saturating_add(answer_tokens),
            rotation,
            turn: self.cluster.models.turns(scope).of(role),
            rng: &self.tools.rng,
            facts: &known,
        };
        let policy = self.policy(scope, role);
        let at = policy.pick(candidates, &ask).min(candidates.len() - 1);
        (at, known.seen.get())
    }

    fn policy(&self, scope: Scope, role: Role) -> &dyn Policy {
        let policies = &self.tools.policies;
        // Models of prefill and decode instances have the common policies, as in xPyD-proxy.
        if role == Role::Aggregated
            && !policies.models.is_empty()
            && let Some(served) = self.cluster.models.in_scope(scope)
            && served.only_aggregated()
            && let Some(own) = policies.models.get(&*served.name)
        {
            return &**own;
        }
        match role {
            Role::Encode => &*policies.encode,
            Role::Prefill => &*policies.prefill,
            Role::Decode => &*policies.decode,
            Role::Aggregated => &*policies.aggregated,
        }
    }

    /// The picked instance could not be reached: it is left out of choice, process-wide.
    pub fn unreachable(&self, picked: &Picked, why: &std::io::Error) {
        let instance = picked.instance();
        let metrics = &self.tools.metrics;
        instance
            .metrics
            .inc(metrics, InstanceCounter::failures(Failure::Connect));
        let jitter = self.tools.rng.unit();
        if instance.breaker.unreachable(now_ms(), jitter, picked.trial) {
            self.left_out(instance, format!("cannot be reached ({why})"));
        }
    }

    /// The picked instance failed this request: it is passed over in further tries, and left out of
    /// choice if that happens too often.
    pub fn charge_failure(&self, picked: &Picked, failure: Failure) {
        let instance = picked.instance();
        self.count_failure(instance, failure);
        let jitter = self.tools.rng.unit();
        if instance.breaker.failed(now_ms(), jitter, picked.trial) {
            self.left_out(
                instance,
                format!("keeps failing (last: {})", failure.name()),
            );
        }
    }

    /// This instance failed this request, for all we know through no fault of its own: it is passed over in further
    /// tries, and no breaker hears of it.
    pub fn count_failure(&self, instance: &Instance, failure: Failure) {
        self.avoid.borrow_mut().push(instance.index);
        instance
            .metrics
            .inc(&self.tools.metrics, InstanceCounter::failures(failure));
    }

    fn left_out(&self, instance: &Instance, why: String) {
        instance
            .metrics
            .inc(&self.tools.metrics, InstanceCounter::ejections());
        log::limited_for("breaker", &instance.name, log::Level::Warning, || {
            let (role, name) = (instance.role.name(), &instance.name);
            format!("{role} {name} {why}: left out of choice for a while")
        });
    }

    /// As [`Exchange::ended`], of an operation at the picked instance: a deadline is its failure.
    pub fn ended_at(&self, picked: &Picked, stage: Stage) -> Option<Error> {
        let error = self.ended(stage)?;
        if error.kind != Kind::Timeout {
            return Some(error);
        }
        self.charge_failure(picked, Failure::Timeout);
        Some(error.at(&picked.instance().name))
    }

    /// It answered.
    pub fn reached(&self, picked: &Picked) {
        let instance = picked.instance();
        if !instance.breaker.at_rest() && instance.breaker.succeeded(now_ms(), picked.trial) {
            log::info(|| format!("{} {} is back", instance.role.name(), instance.name));
        }
    }
}

/// Places on the ring that have been worked out for one request.
#[derive(Default)]
pub(super) struct Places {
    session: Cell<Option<u128>>,
    prefix: Cell<Option<u128>>,
}

/// What policies may ask about one pick.
struct Known<'a> {
    x: &'a Exchange,
    instances: &'a [Arc<Instance>],
    seen: Cell<Option<Counts>>,
}

impl Facts for Known<'_> {
    fn rests_on(&self, load: Counts) {
        self.seen.set(Some(load));
    }

    fn load(&self, position: usize) -> Counts {
        self.instances[position].load.read()
    }

    fn session(&self) -> u128 {
        let places = &self.x.places;
        let found = places.session.get();
        let found = found.unwrap_or_else(|| session(&self.x.request()));
        places.session.set(Some(found));
        found
    }

    fn prefix(&self) -> u128 {
        let places = &self.x.places;
        let found = places.prefix.get().unwrap_or_else(|| {
            let request = self.x.request();
            let count = self.x.config.scheduling.prefix_length as usize;
            let words = first_words(request.body(), &request.object, count);
            place(words.as_bytes())
        });
        places.prefix.set(Some(found));
        found
    }

    fn points(&self, position: usize) -> &Points {
        self.instances[position].points(self.x.config.scheduling.virtual_nodes)
    }
}

/// Who asks: the session field, else the body's user, else the client's address.
fn session(request: &Request) -> u128 {
    let field = request
        .head
        .fields
        .get(request.head_bytes(), "x-session-id")
        .filter(|value| !value.is_empty());
    if let Some(value) = field {
        if value.is_ascii() {
            return place(value);
        }
        // Field values are Latin-1 to the old proxy, and hashed as UTF-8.
        let text: String = value.iter().map(|byte| char::from(*byte)).collect();
        return place(text.as_bytes());
    }
    let user = request.object.get(request.body(), "user");
    let user = user.and_then(string_value).filter(|user| !user.is_empty());
    match (user, request.peer) {
        (Some(user), _) => place(&user),
        (None, Some(peer)) => place(peer.to_canonical().to_string().as_bytes()),
        (None, None) => place(b"__default__"),
    }
}

fn no_instance(role: Role, all: usize, tried: usize) -> Error {
    let (kind_of, role) = (role, role.name());
    let text = if all == 0 {
        format!("no {role} {NOT_CONFIGURED}")
    } else if tried > 0 {
        format!("none of the {all} {role} instances can be reached")
    } else {
        format!("no {role} instance is available")
    };
    // Whoever gives the answer and cannot be reached is a bad gateway (502). One that only works towards it
    // is a service that is not there (503, with a Retry-After): nothing has been begun for this request.
    let (stage, unreachable) = match kind_of {
        Role::Encode => (Stage::Encode, Kind::NoInstance),
        Role::Prefill => (Stage::Prefill, Kind::NoInstance),
        Role::Decode | Role::Aggregated => (Stage::DecodeHead, Kind::ConnectFailed),
    };
    let kind = if tried > 0 {
        unreachable
    } else {
        Kind::NoInstance
    };
    Error::new(kind, stage, text)
}
