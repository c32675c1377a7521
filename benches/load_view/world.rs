//! The simulated world: arrivals, instances that work, and shards that pick with what they know.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pdrelay::cluster::load::{Counts, InFlight, LoadView};
use pdrelay::cluster::ring::Points;
use pdrelay::cluster::{Cluster, Instance};
use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::metrics::Metrics;
use pdrelay::policy::{self, Ask, Candidate, Facts, Policy};
use pdrelay::rng::Rng;

/// Tokens per second of one prefill instance, and sequences at once and seconds per token of a decode one.
const PREFILL_RATE: f64 = 40_000.0;
const DECODE_SEATS: usize = 64;
const DECODE_TICK: f64 = 0.015;
/// How busy the instances are, on average.
const UTILISATION: f64 = 0.75;
/// One in so many arrivals is a burst of so many requests.
const BURST: (f64, usize) = (20.0, 8);

#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub role: Role,
    pub shards: usize,
    pub instances: usize,
    pub requests: usize,
    pub seed: u64,
}

/// What a pick goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Knows {
    /// Every shard's requests at this moment, and how long each really is.
    All,
    /// This shard's exactly, the others' up to this old; lengths by estimate.
    View(Duration),
    /// Whose turn it is.
    Nothing,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub wait_p99_ms: f64,
    /// From arrival to the end of the work: what a client sees of it.
    pub total_p99_ms: f64,
    pub imbalance: f64,
}

/// One request, its sizes drawn before anything is picked, so that every scheduler gets the same ones.
#[derive(Clone, Copy)]
struct Work {
    at: f64,
    shard: usize,
    /// Seconds.
    takes: f64,
    tokens: f64,
    estimate: u64,
}

struct Engine {
    seats: usize,
    running: usize,
    waiting: VecDeque<(usize, f64)>,
    /// True seconds of work that wait or run, and how many requests.
    backlog: f64,
    requests: usize,
    /// When one seat would be through with all of it.
    free_at: f64,
}

/// Ends of work: time (nanoseconds, so that they have an order), request, instance.
type Ends = BinaryHeap<Reverse<(u64, usize, usize)>>;

pub fn play(scene: &Scene, knows: Knows) -> Outcome {
    let work = draw(scene);
    let instances = instances(scene);
    let age = match knows {
        Knows::View(age) => age,
        _ => Duration::ZERO,
    };
    let views: Vec<Rc<LoadView>> = (0..scene.shards).map(|_| LoadView::new(age)).collect();
    let name = match knows {
        Knows::Nothing => "round_robin",
        _ => "least_load",
    };
    let policy = policy::build(name).unwrap();
    let seats = match scene.role {
        Role::Prefill => 1,
        _ => DECODE_SEATS,
    };
    let mut engines: Vec<Engine> = (0..scene.instances)
        .map(|_| Engine {
            seats,
            running: 0,
            waiting: VecDeque::new(),
            backlog: 0.0,
            requests: 0,
            free_at: 0.0,
        })
        .collect();
    let mut held: Vec<Option<InFlight>> = (0..work.len()).map(|_| None).collect();
    let picks = Picks::new(scene, &instances, &*policy);
    let mut ends = Ends::new();
    let mut waits = Vec::with_capacity(work.len());
    let mut totals = Vec::with_capacity(work.len());
    let (mut imbalance, mut samples) = (0.0, 0u64);
    // The first fifth fills the instances.
    let settled = work.len() / 5;
    for (id, one) in work.iter().enumerate() {
        while let Some(Reverse((at, done, engine))) = ends.peek().copied() {
            if at as f64 / 1e9 > one.at {
                break;
            }
            ends.pop();
            held[done] = None;
            let next = finish(&mut engines[engine], engine, done, at, &work, &mut ends);
            if let Some((id, wait)) = next.filter(|next| next.0 >= settled) {
                waits.push(wait);
                totals.push(wait + work[id].takes);
            }
        }
        let chosen = match knows {
            Knows::All => idlest(&engines, scene.role, id, one.at),
            _ => picks.pick(&views[one.shard], one),
        };
        held[id] = Some(views[one.shard].charge(&instances[chosen], one.estimate));
        let engine = &mut engines[chosen];
        engine.backlog += one.takes;
        engine.requests += 1;
        engine.free_at = engine.free_at.max(one.at) + one.takes;
        if engine.running < engine.seats {
            engine.running += 1;
            ends.push(Reverse((((one.at + one.takes) * 1e9) as u64, id, chosen)));
            if id >= settled {
                waits.push(0.0);
                totals.push(one.takes);
            }
        } else {
            engine.waiting.push_back((id, one.at));
        }
        if id >= settled && id % 16 == 0 {
            let loads = engines.iter().map(|engine| match scene.role {
                Role::Prefill => engine.backlog,
                _ => engine.requests as f64,
            });
            let (most, sum) = loads.fold((0.0f64, 0.0), |(m, s), load| (m.max(load), s + load));
            if sum > 0.0 {
                imbalance += most / (sum / engines.len() as f64);
                samples += 1;
            }
        }
    }
    let at =
        |values: &[f64], share: f64| values[((values.len() - 1) as f64 * share) as usize] * 1e3;
    waits.sort_unstable_by(f64::total_cmp);
    totals.sort_unstable_by(f64::total_cmp);
    Outcome {
        wait_p99_ms: at(&waits, 0.99),
        total_p99_ms: at(&totals, 0.99),
        imbalance: imbalance / samples.max(1) as f64,
    }
}

/// One is done; whoever waited longest begins: it, and how long it waited.
fn finish(
    engine: &mut Engine,
    index: usize,
    done: usize,
    at: u64,
    work: &[Work],
    ends: &mut Ends,
) -> Option<(usize, f64)> {
    engine.backlog -= work[done].takes;
    engine.requests -= 1;
    let Some((next, since)) = engine.waiting.pop_front() else {
        engine.running -= 1;
        return None;
    };
    ends.push(Reverse((at + (work[next].takes * 1e9) as u64, next, index)));
    Some((next, at as f64 / 1e9 - since))
}

/// With true lengths of everything that waits and runs. Equals take turns.
fn idlest(engines: &[Engine], role: Role, turn: usize, now: f64) -> usize {
    let key = |at: usize| match role {
        Role::Prefill => (engines[at].free_at.max(now), 0.0),
        _ => (engines[at].requests as f64, engines[at].backlog),
    };
    let places = (0..engines.len()).map(|step| (turn + step) % engines.len());
    places
        .min_by(|a, b| key(*a).partial_cmp(&key(*b)).unwrap())
        .unwrap()
}

/// The proxy's way of picking, without the proxy.
struct Picks<'a> {
    role: Role,
    instances: &'a [Arc<Instance>],
    policy: &'a dyn Policy,
    candidates: Cell<Vec<Candidate>>,
    rotations: Vec<Cell<u64>>,
    turn: AtomicU64,
    rng: Rng,
}

impl<'a> Picks<'a> {
    fn new(scene: &Scene, instances: &'a [Arc<Instance>], policy: &'a dyn Policy) -> Self {
        let rng = Rng::seeded(scene.seed ^ 0x5eed);
        Picks {
            role: scene.role,
            instances,
            policy,
            candidates: Cell::default(),
            rotations: (0..scene.shards).map(|_| Cell::new(rng.next())).collect(),
            turn: AtomicU64::new(0),
            rng,
        }
    }

    fn pick(&self, view: &LoadView, one: &Work) -> usize {
        let mut candidates = self.candidates.take();
        candidates.clear();
        // The view takes 0 for "never read".
        let now_us = (one.at * 1e6) as u64 + 1;
        candidates.extend(
            self.instances
                .iter()
                .enumerate()
                .map(|(position, instance)| Candidate {
                    position,
                    load: view.read(instance, now_us),
                    weight: 1.0,
                    max_model_len: 131_072,
                }),
        );
        let rotation = &self.rotations[one.shard];
        rotation.set(rotation.get().wrapping_add(1));
        let ask = Ask {
            role: self.role,
            prompt_tokens: one.estimate,
            total_tokens: one.estimate,
            rotation: rotation.get(),
            turn: &self.turn,
            rng: &self.rng,
            facts: self,
        };
        let chosen = self.policy.pick(&candidates, &ask);
        self.candidates.set(candidates);
        chosen
    }
}

impl Facts for Picks<'_> {
    fn load(&self, position: usize) -> Counts {
        self.instances[position].load.read()
    }

    fn session(&self) -> u128 {
        u128::from(self.rng.next())
    }

    fn prefix(&self) -> u128 {
        u128::from(self.rng.next())
    }

    fn points(&self, position: usize) -> &Points {
        self.instances[position].points(1)
    }
}

fn instances(scene: &Scene) -> Vec<Arc<Instance>> {
    let one = |i: usize| {
        InstanceConfig::new(
            Address::tcp(format!("10.0.{}.{}", i / 256, i % 256), 8000),
            scene.role,
        )
    };
    let config = Config {
        instances: (0..scene.instances).map(one).collect(),
        ..Config::default()
    };
    Cluster::from_config(&config, &Metrics::new(1)).instances
}

fn draw(scene: &Scene) -> Vec<Work> {
    let rng = Rng::seeded(scene.seed);
    let mut work: Vec<Work> = Vec::with_capacity(scene.requests);
    // Sizes first: the rate that keeps the instances busy follows from their mean.
    for _ in 0..scene.requests {
        let (tokens, takes) = match scene.role {
            Role::Prefill => {
                let tokens = log_normal(&rng, 900.0, 1.1).clamp(16.0, 32_768.0);
                (tokens, tokens / PREFILL_RATE)
            }
            _ => {
                let answer = log_normal(&rng, 250.0, 0.9).clamp(1.0, 4_096.0);
                let prompt = log_normal(&rng, 900.0, 1.1).clamp(16.0, 32_768.0);
                (prompt, answer * DECODE_TICK)
            }
        };
        work.push(Work {
            at: 0.0,
            shard: (rng.next() % scene.shards as u64) as usize,
            takes,
            tokens,
            // Bytes times a learned ratio: 15 % off, one way or the other.
            estimate: 0,
        });
    }
    for one in &mut work {
        one.estimate = (one.tokens * log_normal(&rng, 1.0, 0.15)).max(1.0) as u64;
    }
    let mean = work.iter().map(|one| one.takes).sum::<f64>() / work.len() as f64;
    let seats = match scene.role {
        Role::Prefill => 1,
        _ => DECODE_SEATS,
    };
    // Decode holds many at once and so evens itself out: it takes more to make anybody wait.
    let busy = match scene.role {
        Role::Prefill => UTILISATION,
        _ => 0.95,
    };
    let rate = busy * (scene.instances * seats) as f64 / mean;
    let per_arrival = 1.0 + (BURST.1 as f64 - 1.0) / BURST.0;
    let (mut now, mut left) = (0.0, 0);
    for one in &mut work {
        if left == 0 {
            now -= (1.0 - rng.unit()).ln() * per_arrival / rate;
            left = if rng.unit() < 1.0 / BURST.0 {
                BURST.1
            } else {
                1
            };
        }
        left -= 1;
        one.at = now;
    }
    work
}

fn log_normal(rng: &Rng, median: f64, sigma: f64) -> f64 {
    let (a, b) = (1.0 - rng.unit(), rng.unit());
    let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    median * (sigma * normal).exp()
}
