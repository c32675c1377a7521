//! One pick by each policy, and what the keys of some cost: nanoseconds.
//!
//! `cargo bench --bench policy`. Compare the rows with each other, not with another machine's.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pdrelay::cluster::load::{Counts, Load, LoadView};
use pdrelay::cluster::ring::{Points, place};
use pdrelay::cluster::{Cluster, Instance};
use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::metrics::Metrics;
use pdrelay::policy::{self, Ask, Candidate, Facts, POLICIES};
use pdrelay::rng::Rng;
use pdrelay::wire::json::Object;
use pdrelay::wire::prompt::first_words;

struct Known {
    loads: Vec<Load>,
    points: Vec<Points>,
    place: std::cell::Cell<u128>,
}

impl Facts for Known {
    fn load(&self, position: usize) -> Counts {
        self.loads[position].read()
    }

    fn session(&self) -> u128 {
        self.place.get()
    }

    fn prefix(&self) -> u128 {
        self.place.get()
    }

    fn points(&self, position: usize) -> &Points {
        &self.points[position]
    }
}

const SIZES: [usize; 4] = [2, 16, 256, 1024];

fn main() {
    println!(
        "{:<28} {:>10} {:>10} {:>10} {:>10}",
        "candidates", 2, 16, 256, 1024
    );
    for spec in POLICIES {
        let policy = policy::build(spec.name).unwrap();
        let ns = SIZES.map(|count| {
            let known = Known {
                loads: (0..count).map(|_| Load::default()).collect(),
                points: (0..count)
                    .map(|i| Points::of(&format!("10.0.{}.{}:8100", i / 256, i % 256), 160))
                    .collect(),
                place: std::cell::Cell::default(),
            };
            let candidates: Vec<Candidate> = (0..count)
                .map(|position| Candidate {
                    position,
                    load: Counts::default(),
                    weight: 1.0,
                    max_model_len: 131_072,
                })
                .collect();
            let (turn, rng, mut rotation) = (AtomicU64::new(0), Rng::seeded(1), 0);
            per_op(|| {
                rotation += 1;
                known.place.set(u128::from(rng.next()) << 64);
                let ask = Ask {
                    role: Role::Decode,
                    prompt_tokens: 100,
                    total_tokens: 200,
                    rotation,
                    turn: &turn,
                    rng: &rng,
                    facts: &known,
                };
                black_box(policy.pick(&candidates, &ask));
            })
        });
        println!(
            "{:<28} {:>10.0} {:>10.0} {:>10.0} {:>10.0}",
            spec.name, ns[0], ns[1], ns[2], ns[3]
        );
    }
    let session = per_op(|| _ = black_box(place(b"session-0123456789")));
    println!("{:<28} {session:>10.0}", "place of a session");
    for (name, size) in [("1 KB", 1 << 10), ("100 KB", 100 << 10)] {
        let text = "The quick brown fox \\\"jumps\\\" over the lazy dog. ".repeat(size / 48);
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let object = Object::scan(body.as_bytes(), 128).unwrap();
        let ns = per_op(|| {
            let words = first_words(body.as_bytes(), &object, 256);
            black_box(place(words.as_bytes()));
        });
        println!("{:<28} {ns:>10.0}", format!("place of a {name} chat"));
    }
    threads();
}

/// What a shard does for one leg (read its view, pick, charge, give back) while others do the same on the same
/// counters: nanoseconds by threads and instances.
fn threads() {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts: Vec<usize> = (0..).map(|n| 1 << n).take_while(|n| *n < most).collect();
    counts.push(most);
    let columns: Vec<String> = counts.iter().map(|n| format!("{n:>10}")).collect();
    println!(
        "\n{:<28} {}",
        "view, pick, charge: threads",
        columns.join(" ")
    );
    for size in SIZES {
        let instances = instances(size);
        let ns: Vec<String> = counts
            .iter()
            .map(|count| format!("{:>10.0}", at_once(&instances, *count)))
            .collect();
        println!(
            "{:<28} {}",
            format!("least_load, {size} instances"),
            ns.join(" ")
        );
    }
}

fn instances(count: usize) -> Vec<Arc<Instance>> {
    let one = |i: usize| {
        let address = Address::tcp(format!("10.0.{}.{}", i / 256, i % 256), 8100);
        InstanceConfig::new(address, Role::Decode)
    };
    let config = Config {
        instances: (0..count).map(one).collect(),
        ..Config::default()
    };
    Cluster::from_config(&config, &Metrics::new(1)).instances
}

fn at_once(instances: &[Arc<Instance>], threads: usize) -> f64 {
    let gate = std::sync::Barrier::new(threads);
    let times: Vec<f64> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let gate = &gate;
                scope.spawn(move || one_shard(instances, thread as u64, gate))
            })
            .collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    times.iter().sum::<f64>() / threads as f64
}

fn one_shard(instances: &[Arc<Instance>], seed: u64, gate: &std::sync::Barrier) -> f64 {
    let view = LoadView::new(Config::default().scheduling.load_view_max_age);
    let policy = policy::build("least_load").unwrap();
    let (turn, rng) = (AtomicU64::new(0), Rng::seeded(seed));
    let known = Known {
        loads: Vec::new(),
        points: Vec::new(),
        place: std::cell::Cell::default(),
    };
    let (mut rotation, began) = (rng.next(), Instant::now());
    let mut candidates = Vec::new();
    gate.wait();
    per_op(|| {
        rotation = rotation.wrapping_add(1);
        let now = began.elapsed().as_micros() as u64;
        candidates.clear();
        candidates.extend(
            instances
                .iter()
                .enumerate()
                .map(|(position, instance)| Candidate {
                    position,
                    load: view.read(instance, now),
                    weight: 1.0,
                    max_model_len: 131_072,
                }),
        );
        let ask = Ask {
            role: Role::Decode,
            prompt_tokens: 100,
            total_tokens: 200,
            rotation,
            turn: &turn,
            rng: &rng,
            facts: &known,
        };
        let chosen = policy.pick(&candidates, &ask);
        drop(black_box(view.charge(&instances[chosen], 100)));
    })
}

/// The best of several short runs: noise only adds.
fn per_op(mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let (began, mut n) = (Instant::now(), 0u32);
        while began.elapsed() < Duration::from_millis(60) {
            for _ in 0..64 {
                f();
            }
            n += 64;
        }
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(n));
    }
    best
}
