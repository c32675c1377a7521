//! A configuration as YAML, and read again.

use super::super::load::{Overrides, Source, load_over};
use super::super::{Config, LogLevel, legacy::xpyd, write};
use super::{KNOWN, PD, read};

/// Read as xPyD reads it.
fn old(text: &str) -> Config {
    let source = Source {
        text,
        label: "old.yaml",
        file: None,
    };
    let loaded = load_over(
        xpyd::defaults(),
        Some(source),
        &Overrides::default(),
        &KNOWN,
        &|_| None,
    );
    loaded
        .unwrap_or_else(|problems| panic!("{text}\n{problems}"))
        .config
}

/// Written, read natively, and the same.
fn comes_back(config: &Config) -> String {
    let text = write::yaml(config, &xpyd::differences::notes(config));
    let again = read(&text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    assert_eq!(again, *config, "{text}");
    text
}

#[test]
fn a_migrated_file_means_the_same() {
    let more = [
        "",
        "model: 'a \"b\" \\ c'\nhost: '::1'\nport: 9\nlog_level: debug\n",
        "scheduling: cache_aware\ncache_aware: {prefix_length: 7}\nfirst_token_source: prefill\n",
        "scheduling: consistent_hash\nconsistent_hash: {virtual_nodes: 7}\ndisaggregated_mode: nixl\n",
        "startup: {wait_timeout_seconds: 0, probe_interval_seconds: 0, heartbeat_interval_seconds: 0.25}\n",
        "retry: {enabled: false}\ncircuit_breaker: {enabled: false}\nhealth_check: {enabled: false}\n",
        "retry: {initial_backoff_ms: 0.5, jitter_factor: 0, retryable_status_codes: [503]}\n",
        "circuit_breaker: {timeout_duration_seconds: 0.3333, window_duration_seconds: 90}\n",
        "limits: {body_bytes_max: 1MiB}\ntimeouts: {prefill: 450s}\ncpus: 0-2\nforward: [/x, /y/*]\n",
        "disaggregated_mode: zmq\nzmq: {port: 7, host: '::1', notification_timeout_seconds: 2, receivers: \
         {'10.0.0.2:8200': {host: x, init_ports: [1, 2], alloc_ports: [3, 4]}, '10.0.0.3:8201': {host: x, \
         init_ports: [5], alloc_ports: [6]}, '10.0.0.4:8200': {host: y, init_ports: [5], alloc_ports: [6], \
         query_ports: [7]}, '10.0.0.4:8201': {host: z, init_ports: [5], alloc_ports: [6]}}}\n",
        "lmcache: {variant: plain, chat: render, handoff_id: true, bound_by: X-User, short_prompt: 0, \
         first_token: decode, on_timeout: error}\nhandshake: lmcache\n",
        "shards: 3\nnuma: 1\nprefill_failure: decode_only\n",
    ];
    for lines in more {
        let model = if lines.contains("model:") {
            ""
        } else {
            "model: m\n"
        };
        let text = comes_back(&old(&format!("{PD}{model}{lines}")));
        assert!(text.contains("surface: xpyd"), "{text}");
    }
    for text in [
        "model: m\ndecode: [10.0.0.1:1, 10.0.0.1:1]",
        "model: m\nprefill: {nodes: ['p:1'], tp_size: 1, dp_size: 4, world_size_per_node: 4}\n\
         decode: [unix:/run/d, {address: '[::1]:5', weight: 2.5}]",
        "instances: [{address: 'p:1', role: prefill}, {address: 'd:1', role: decode}]",
        "instances: [{address: 'p:1', role: prefill, model: b}, {address: 'd:1', role: decode, model: b}, \
         {address: 'x:1', role: aggregated, model: a}]",
        "models: [{name: a, aggregated: ['x:1', 'x:2'], scheduler: round_robin}, \
         {name: b, prefill: [p:1], decode: [d:1]}]\nscheduling: power_of_two",
        "model: m\naggregated: ['x:1']\ndisaggregated_mode: nixl",
    ] {
        comes_back(&old(text));
    }
    let usual = read(PD).unwrap();
    comes_back(&usual);
}

#[test]
fn every_difference_has_its_comment() {
    let text = comes_back(&old(&format!("{PD}model: m\nretry: {{enabled: false}}\n")));
    for word in [
        "# Everywhere: an engine's error keeps its own status",
        "# Off, as in every version of xPyD",
        "# circuit_breaker: On unless it is turned off (xPyD: off). An open one recovers",
        "# load_balanced ranks by estimated prompt lengths",
        "# timeouts: xPyD waits without end",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(text.lines().all(|line| line.len() <= 110), "{text}");
}

#[test]
fn keys_are_never_migrated() {
    let text = format!("{PD}model: m\nadmin_api_key: s3cret\nopenai_api_key: s3cret\n");
    let text = write::yaml(&old(&text), &[]);
    assert!(
        !text.contains("s3cret") && text.contains("# admin_api_key: ..."),
        "{text}"
    );
}

#[test]
fn defaults_of_the_old_proxy() {
    let config = old(&format!("{PD}model: m"));
    assert_eq!(config.log_level, LogLevel::Warning);
    assert_eq!(config.scheduling.decode, "load_balanced");
    assert_eq!(config.startup.wait_timeout.map(|w| w.as_secs()), Some(600));
    assert!(config.retry.enabled && config.health_check.enabled && config.circuit_breaker.enabled);
}
