//! One pick by each policy, and what the keys of some cost: nanoseconds.
//!
//! `cargo bench --bench policy`. Compare the rows with each other, not with another machine's.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pdrelay::cluster::load::{Counts, Load};
use pdrelay::cluster::ring::{Points, place};
use pdrelay::config::Role;
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

fn main() {
    println!("{:<28} {:>10} {:>10} {:>10}", "candidates", 4, 16, 256);
    for spec in POLICIES {
        let policy = policy::build(spec.name).unwrap();
        let ns = [4, 16, 256].map(|count| {
            let known = Known {
                loads: (0..count).map(|_| Load::default()).collect(),
                points: (0..count)
                    .map(|i| Points::of(&format!("10.0.0.{i}:8100"), 160))
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
            "{:<28} {:>10.0} {:>10.0} {:>10.0}",
            spec.name, ns[0], ns[1], ns[2]
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
