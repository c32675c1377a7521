//! One file per topic.

mod cross;
mod example;
mod migrate;
mod models;
mod never_panics;
mod ports;
mod position;
mod print;
mod quantity;
mod topology;
mod value;
mod xpyd;

use super::load::{Loaded, Overrides, Source};
use super::{Config, Known, Problems, load};

pub const KNOWN: Known<'static> = Known {
    handshakes: &[
        "sequential",
        "nixl",
        "lmcache",
        "aggregated",
        "epd",
        "multiturn",
        "mooncake",
        "nixl_flat",
        "offloading",
        "sglang",
        "shared_storage",
    ],
    policies: &[
        "round_robin",
        "least_load",
        "load_balanced",
        "consistent_hash",
        "cache_aware",
        "power_of_two",
    ],
};

pub fn read(text: &str) -> Result<Config, Problems> {
    super::from_str(text, "x.yaml", &KNOWN)
}

pub fn read_with(text: &str, overrides: &Overrides) -> Result<Loaded, Problems> {
    let source = Source {
        text,
        label: "x.yaml",
        file: None,
    };
    load(Some(source), overrides, &KNOWN, &|_| None)
}

/// The instances that every good file needs.
pub const PD: &str = "prefill: [10.0.0.1:8100]\ndecode: [10.0.0.2:8200]\n";

/// `PD` and these lines: loaded.
pub fn good(lines: &str) -> Config {
    match read(&format!("{PD}{lines}")) {
        Ok(config) => config,
        Err(problems) => panic!("{lines}\n{problems}"),
    }
}

/// `PD` and these lines: what is wrong, one problem per line.
pub fn bad(lines: &str) -> String {
    match read(&format!("{PD}{lines}")) {
        Ok(_) => panic!("accepted: {lines}"),
        Err(problems) => problems.to_string(),
    }
}

/// `PD` and these lines: what is odd, one per line.
pub fn odd(lines: &str) -> Vec<String> {
    match read_with(&format!("{PD}{lines}"), &Overrides::default()) {
        Ok(loaded) => loaded.warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => panic!("{lines}\n{problems}"),
    }
}

/// The whole text: what is wrong.
pub fn refused(text: &str) -> String {
    match read(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(problems) => problems.to_string(),
    }
}

pub fn addresses(config: &Config, role: super::Role) -> Vec<String> {
    let of_role = config.instances.iter().filter(|i| i.role == role);
    of_role.map(|i| i.address.to_string()).collect()
}
