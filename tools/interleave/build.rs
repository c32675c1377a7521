//! Copies production sources, with loom's atomics in them, to where the tests include them.

use std::path::Path;
use std::{env, fs};

/// Whole files, by the names under which the tests include them.
const WHOLE: [(&str, &str); 6] = [
    ("shared.rs", "src/shared.rs"),
    ("breaker.rs", "src/cluster/breaker.rs"),
    ("load.rs", "src/cluster/load.rs"),
    ("models.rs", "src/cluster/models.rs"),
    ("cell.rs", "src/metrics/cell.rs"),
    ("shard.rs", "src/metrics/shard.rs"),
];

fn main() {
    for (to, from) in WHOLE {
        write(to, &read(from));
    }
    // The modules below are the tests' to name, or of no use here.
    let cluster = read("src/cluster/mod.rs");
    let kept = |line: &&str| !(line.starts_with("pub mod ") && line.ends_with(';'));
    let cluster: Vec<&str> = cluster.lines().filter(kept).collect();
    write("cluster.rs", &cluster.join("\n"));
    // Of the releases only what threads share.
    let release = read("src/exchange/release.rs");
    let met = between(
        &release,
        "#[derive(Default)]\npub struct Met",
        "/// The shard's release task",
    );
    write("met.rs", met);
}

fn read(path: &str) -> String {
    // As cargo says when it runs this: a build folder may serve several checkouts.
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let root = Path::new(&root).join("../..");
    let path = root.join(path);
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let from = text.find(start).unwrap_or_else(|| panic!("no {start:?}"));
    let length = text[from..]
        .find(end)
        .unwrap_or_else(|| panic!("no {end:?}"));
    &text[from..from + length]
}

/// Without the unit tests and the file's own page, which cannot be included, and with loom's cells.
fn write(name: &str, text: &str) {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
    let code = text.lines().filter(|line| !line.starts_with("//!"));
    let code = code.collect::<Vec<_>>().join("\n");
    let code = code
        .replace("std::sync::atomic", "loom::sync::atomic")
        .replace(
            "use std::sync::{Arc, Mutex, MutexGuard, ",
            "use loom::sync::{Mutex, MutexGuard};\nuse std::sync::{Arc, ",
        )
        .replace(
            "use std::sync::{Arc, Mutex, ",
            "use loom::sync::Mutex;\nuse std::sync::{Arc, ",
        );
    // A form of import that is not replaced would silently test nothing.
    for line in code.lines().filter(|line| line.contains("std::sync")) {
        // (A OnceLock may stay: loom has none, and what is in one does not change.)
        let line = line.replace("OnceLock", "");
        let plain = !["Mutex", "RwLock", "Once", "Condvar", "*"]
            .iter()
            .any(|t| line.contains(t));
        assert!(plain, "{name}: loom is not put in place of: {line}");
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join(name), code).expect("OUT_DIR can be written");
}
