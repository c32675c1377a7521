//! `--validate-config FILE`: what the file means, in 1.8's lines, or everything that is wrong with it.

use std::fmt::Write as _;
use std::path::Path;

use super::super::Terminal;
use crate::config::load::{Known, Overrides};
use crate::config::schema::MODES;
use crate::config::{Config, Role};

pub fn run(path: &str, known: &Known, terminal: &mut dyn Terminal) -> u8 {
    // Nothing but the file counts: no other flag, no environment.
    match super::load(Some(Path::new(path)), &Overrides::default(), known, &|_| {
        None
    }) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                terminal.err(&format!("warning: {warning}\n"));
            }
            terminal.out(&format!(
                "Config is valid: {path}\n{}",
                page(&loaded.config)
            ));
            0
        }
        Err(problems) => {
            terminal.err(&format!("Config validation failed: {problems}\n"));
            1
        }
    }
}

fn page(config: &Config) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "  {name}: {value}");
    let count = |role: Role| config.instances.iter().filter(|i| i.role == role).count();
    let disaggregated = count(Role::Aggregated) < config.instances.len();
    let transfer = MODES
        .iter()
        .find(|(_, handshake)| *handshake == config.handshake)
        .map_or(config.handshake.as_str(), |(mode, _)| mode);
    if !config.models.strict && count(Role::Aggregated) == 0 {
        match count(Role::Prefill) {
            0 => line("topology", "decode-only"),
            _ => {
                line("topology", "disaggregated");
                line("transfer", transfer);
            }
        }
        line("model", &config.model);
        for role in [Role::Prefill, Role::Decode] {
            line(role.name(), &format!("{} instances", count(role)));
        }
    } else {
        match disaggregated {
            true => {
                line("topology", "disaggregated");
                line("transfer", transfer);
            }
            false => line("topology", "aggregated"),
        }
        let mut models: Vec<&str> = config.instances.iter().map(|i| i.model.as_str()).collect();
        models.retain(|name| !name.is_empty());
        models.sort_unstable();
        models.dedup();
        match models.is_empty() {
            true => line("models", "auto-detected"),
            false => line("models", &models.join(", ")),
        }
        for role in [Role::Aggregated, Role::Prefill, Role::Decode] {
            if count(role) > 0 {
                line(role.name(), &format!("{} instances", count(role)));
            }
        }
    }
    line("port", &config.port.to_string());
    line("log_level", config.log_level.name());
    text
}
