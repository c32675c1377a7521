//! What is different on pdrelay from xPyD-proxy, for one configuration: what `pdrelay migrate` comments.

use crate::config::write::Note;
use crate::config::{Config, FirstTokenSource, LogLevel, Role, Surface};

const MADE: &str = "\
    Made by `pdrelay migrate xpyd`. Check it with `pdrelay check -c FILE`, start it with \
    `pdrelay serve -c FILE`. Comments say what is different from xPyD-proxy.";
const EVERYWHERE: &str = "\
    Everywhere: an engine's error keeps its own status and body (xPyD made most of them \
    500, or 200 without a body); a prefill 4xx is the answer, and decode is not asked; \
    bodies are passed on byte by byte; prompts are counted without a tokenizer; engine \
    connections are used again.";
const SURFACE: &str = "\
    The paths, error bodies and metrics of xPyD 1.8. Remove it for pdrelay's own. The \
    client's Authorization goes to the engines unless openai_api_key is set.";
const STARTUP: &str = "\
    Only until the first readiness: 1.0 could end the process later, too, and 1.8 went \
    on for ever. probe_interval_seconds is read as \"at most\".";
const RETRY: [&str; 2] = [
    "Off, as in every version of xPyD, whatever its section said.",
    "Retries happen (xPyD read this section and never retried), before the first byte \
    only. enabled: false turns them off.",
];
const HEALTH_CHECK: [&str; 2] = [
    "Off: only requests show which engine is dead, and those that find it so are sent on.",
    "On unless it is turned off (xPyD: off): a dead engine gets no traffic. An engine \
    counts as healthy before its first probe.",
];
const CIRCUIT_BREAKER: [&str; 2] = [
    "Off: an engine that fails keeps its share of the traffic.",
    "On unless it is turned off (xPyD: off). An open one recovers: xPyD's stayed \
    half-open for ever. timeout_duration_seconds is ejection_max; the first ejection is \
    shorter. A decode failure is not charged to the prefill engine.",
];
const TIMEOUTS: &str =
    "xPyD waits without end; here every wait has one (configs/reference.yaml shows them).";
const LIMITS: &str = "\
    xPyD has none; here bodies above 64 MiB and more than 65536 requests at once are \
    refused.";
const LOG_LEVEL: &str = "\
    The level of all lines (xPyD: of its web server's only). `info` has one line per \
    request.";
const FIRST_TOKEN: &str = "\
    The first token comes as an event with decode's id, once decode has answered; n > 1, \
    tools and logprobs take it from decode.";
const RINGS: &str =
    "Rings hash with SHA-256, as in 1.7 and later: 1.0 (MD5) sent the same key elsewhere.";
const LOAD_BALANCED: &str = "\
    load_balanced ranks by estimated prompt lengths; no length is ever refused. \
    pdrelay's own default is least_load.";
const DECODE_ONLY: &str =
    "No prefill engine: every completion is a 503 until /instances/add adds one.";
const STRICT: &str = "A model that nobody here serves is a 404.";

pub fn notes(config: &Config) -> Vec<Note> {
    let mut notes = vec![
        Note::on("", MADE),
        Note::on("", EVERYWHERE),
        Note::on("surface", SURFACE),
        Note::on("startup", STARTUP),
        Note::on("retry", RETRY[usize::from(config.retry.enabled)]),
        Note::on(
            "health_check",
            HEALTH_CHECK[usize::from(config.health_check.enabled)],
        ),
        Note::on(
            "circuit_breaker",
            CIRCUIT_BREAKER[usize::from(config.circuit_breaker.enabled)],
        ),
        Note::on("timeouts", TIMEOUTS),
        Note::on("limits", LIMITS),
    ];
    let mut note_if = |holds: bool, key, text| {
        if holds {
            notes.push(Note::on(key, text));
        }
    };
    note_if(config.log_level != LogLevel::Info, "log_level", LOG_LEVEL);
    let from_prefill = config.first_token_source == FirstTokenSource::Prefill;
    note_if(from_prefill, "first_token_source", FIRST_TOKEN);

    let scheduling = &config.scheduling;
    let uses = |policy: &str| {
        let mut of_models = config.models.schedulers.values();
        let of_all = scheduling.prefill == policy || scheduling.decode == policy;
        of_all || of_models.any(|name| name == policy)
    };
    let rings = uses("consistent_hash") || uses("cache_aware");
    note_if(rings, "scheduling", RINGS);
    note_if(uses("load_balanced"), "scheduling", LOAD_BALANCED);

    let has = |role: Role| config.instances.iter().any(|i| i.role == role);
    let decode_only = !has(Role::Prefill) && !has(Role::Aggregated);
    note_if(
        decode_only && config.surface == Surface::Xpyd,
        "prefill",
        DECODE_ONLY,
    );
    note_if(config.models.strict, "instances", STRICT);
    notes
}
