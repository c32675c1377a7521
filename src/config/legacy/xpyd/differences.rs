//! What is different on pdrelay from xPyD-proxy, for one configuration: the comments of `pdrelay migrate`.

use crate::config::write::Note;
use crate::config::{Config, FirstTokenSource, Role, Surface};

pub fn notes(config: &Config) -> Vec<Note> {
    let mut notes = vec![
        Note::on(
            "",
            "Made by `pdrelay migrate xpyd`. Check it with `pdrelay check -c FILE`, start it with \
             `pdrelay serve -c FILE`. Comments say what is different from xPyD-proxy.",
        ),
        Note::on(
            "",
            "Everywhere: an engine's error keeps its own status and body (xPyD made most of them 500, or \
             200 without a body); a prefill 4xx is the answer, and decode is not asked; bodies are passed \
             on byte by byte; prompts are counted without a tokenizer; engine connections are used again.",
        ),
        Note::on(
            "surface",
            "The paths, error bodies and metrics of xPyD 1.8. Remove it for pdrelay's own. An \
             Authorization header of the client goes to the engines unless openai_api_key is set.",
        ),
        Note::on(
            "startup",
            "Only until the first readiness: 1.0 could end the process later, too, and 1.8 went on for \
             ever. probe_interval_seconds is read as \"at most\".",
        ),
        Note::on(
            "retry",
            match config.retry.enabled {
                true => {
                    "Retries happen (xPyD read this section and never retried), before the first byte only. \
                     enabled: false turns them off."
                }
                false => "Off, as in every version of xPyD, whatever its section said.",
            },
        ),
        Note::on(
            "health_check",
            match config.health_check.enabled {
                true => {
                    "On unless it is turned off (xPyD: off): a dead engine gets no traffic. An engine counts \
                     as healthy before its first probe."
                }
                false => {
                    "Off: only requests show which engine is dead, and those that find it so are sent on."
                }
            },
        ),
        Note::on(
            "circuit_breaker",
            match config.circuit_breaker.enabled {
                true => {
                    "On unless it is turned off (xPyD: off). An open one recovers: xPyD's stayed half-open \
                     for ever. timeout_duration_seconds is ejection_max; the first ejection is shorter. A \
                     decode failure is not charged to the prefill engine."
                }
                false => "Off: an engine that fails keeps its share of the traffic.",
            },
        ),
        Note::on(
            "timeouts",
            "xPyD waits without end; here every wait has one (configs/reference.yaml shows them).",
        ),
        Note::on(
            "limits",
            "xPyD has none; here bodies above 64 MiB and more than 65536 requests at once are refused.",
        ),
    ];
    if config.log_level != crate::config::LogLevel::Info {
        let text = "The level of all lines (xPyD: of its web server's only). `info` has a line per request.";
        notes.push(Note::on("log_level", text));
    }
    if config.first_token_source == FirstTokenSource::Prefill {
        let text = "The first token comes as an event with decode's id, once decode has answered; n > 1, \
                    tools and logprobs take it from decode.";
        notes.push(Note::on("first_token_source", text));
    }
    let mut policies = vec![
        config.scheduling.prefill.as_str(),
        config.scheduling.decode.as_str(),
    ];
    policies.extend(config.models.schedulers.values().map(String::as_str));
    let of_ring = |name: &&str| matches!(*name, "consistent_hash" | "cache_aware");
    if policies.iter().any(of_ring) {
        let text =
            "Rings hash with SHA-256, as in 1.7 and later: 1.0 (MD5) sent the same key elsewhere.";
        notes.push(Note::on("scheduling", text));
    }
    if policies.contains(&"load_balanced") {
        let text = "load_balanced ranks by estimated prompt lengths; no length is ever refused. \
                    pdrelay's own default is least_load.";
        notes.push(Note::on("scheduling", text));
    }
    let has = |role: Role| config.instances.iter().any(|i| i.role == role);
    if config.surface == Surface::Xpyd && !has(Role::Prefill) && !has(Role::Aggregated) {
        let text = "No prefill engine: every completion is a 503 until /instances/add adds one.";
        notes.push(Note::on("prefill", text));
    }
    if config.models.strict {
        let text = "A model that nobody here serves is a 404.";
        notes.push(Note::on("instances", text));
    }
    notes
}
