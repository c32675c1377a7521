//! How old may a shard's view of the load be? A seeded simulation of shards and instances, played with the proxy's own
//! `LoadView` and policies on a made-up clock, against a scheduler that knows everything at every pick.
//!
//! `cargo bench --bench load_view` prints the tables; `-- --svg FILE` draws the curve (docs/load_view.svg);
//! `-- --quick` is a tenth of it.
//!
//! Requests come in bursts (an agent's fan-out: one in twenty arrivals is 8 requests at once) and land on any shard.
//! Lengths are log-normal, as published traces of chats and code assistants are. A prefill instance works on one prompt
//! at a time; a decode instance runs 64 sequences at a time; whoever finds it full waits. *Wait* is the time until work
//! begins; the *whole* is the wait and the work. *Imbalance* is the busiest instance's load over the mean, seen by arrivals.

#[path = "load_view/chart.rs"]
mod chart;
#[path = "load_view/world.rs"]
mod world;

use std::time::Duration;

use pdrelay::config::Role;
use world::{Knows, Outcome, Scene, play};

/// Staleness of the view, microseconds.
const AGES_US: [u64; 9] = [
    0, 100, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000,
];
const SHARDS: [usize; 4] = [1, 4, 16, 64];
const INSTANCES: [usize; 3] = [16, 64, 256];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let requests = if args.iter().any(|a| a == "--quick") {
        20_000
    } else {
        200_000
    };
    let svg = args
        .iter()
        .position(|a| a == "--svg")
        .map(|at| &args[at + 1]);
    let mut panels = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        println!(
            "\n{}: p99 of the wait / of the whole, ms; imbalance\n",
            role.name()
        );
        head();
        for instances in INSTANCES {
            let mut lines = Vec::new();
            for shards in SHARDS {
                let scene = Scene {
                    role,
                    shards,
                    instances,
                    requests,
                    seed: 1,
                };
                let all = play(&scene, Knows::All);
                let views =
                    AGES_US.map(|age| play(&scene, Knows::View(Duration::from_micros(age))));
                let turns = play(&scene, Knows::Nothing);
                row(&scene, &all, &views, &turns);
                // The tails are noisy: the ratio is the mean of several worlds' where it is judged.
                let ratios = match shards {
                    64 => mean_ratios(&scene, if requests > 20_000 { 4 } else { 1 }),
                    _ => views.map(|one| one.total_p99_ms / all.total_p99_ms),
                };
                lines.push(chart::Line {
                    name: format!("{shards} shards"),
                    values: ratios.to_vec(),
                });
            }
            panels.push(chart::Panel {
                name: format!("{}, {instances} instances", role.name()),
                lines,
            });
        }
    }
    println!(
        "\np99 of wait and work over the all-knowing scheduler's, by the view's age (64 shards: mean of several seeds)\n"
    );
    println!("| | shards |{}", AGES_US.map(age).join(" | ") + " |");
    println!("|---|--:|{}", "--:|".repeat(AGES_US.len()));
    for panel in &panels {
        for line in &panel.lines {
            let cells: Vec<String> = line.values.iter().map(|r| format!("{r:.3}")).collect();
            println!("| {} | {} | {} |", panel.name, line.name, cells.join(" | "));
        }
    }
    if let Some(path) = svg {
        std::fs::write(path, chart::draw(&AGES_US, &panels)).expect("the chart can be written");
        println!("\n{path} is drawn");
    }
}

/// The same ages in several worlds: how p99 compares in each, on average.
fn mean_ratios(scene: &Scene, seeds: u64) -> [f64; AGES_US.len()] {
    let mut sums = [0.0; AGES_US.len()];
    for seed in 1..=seeds {
        let scene = Scene { seed, ..*scene };
        let all = play(&scene, Knows::All).total_p99_ms;
        for (sum, age) in sums.iter_mut().zip(AGES_US) {
            *sum += play(&scene, Knows::View(Duration::from_micros(age))).total_p99_ms / all;
        }
    }
    sums.map(|sum| sum / seeds as f64)
}

fn head() {
    let ages = AGES_US.map(|us| format!("view {}", age(us))).join(" | ");
    println!("| instances | shards | knows all | {ages} | takes turns |");
    println!("|--:|--:|{}", "---|".repeat(AGES_US.len() + 2));
}

fn row(scene: &Scene, all: &Outcome, views: &[Outcome], turns: &Outcome) {
    let cells: Vec<String> = std::iter::once(all)
        .chain(views)
        .chain(std::iter::once(turns))
        .map(|one| {
            format!(
                "{:.0} / {:.0}; {:.2}",
                one.wait_p99_ms, one.total_p99_ms, one.imbalance
            )
        })
        .collect();
    println!(
        "| {} | {} | {} |",
        scene.instances,
        scene.shards,
        cells.join(" | ")
    );
}

fn age(us: u64) -> String {
    match us {
        0 => "0".into(),
        us if us < 1_000 => format!("{} ms", us as f64 / 1e3),
        us if us < 1_000_000 => format!("{} ms", us / 1_000),
        us => format!("{} s", us / 1_000_000),
    }
}
