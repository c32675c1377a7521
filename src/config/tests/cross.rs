//! Keys that must fit each other.

use super::super::load::Overrides;
use super::super::{Role, from_str};
use super::{KNOWN, addresses, bad, good, odd, read, read_with, refused};
use std::time::Duration;

#[test]
fn each_handshake_needs_its_roles() {
    assert!(refused("decode: ['a:1']").contains("Please specify at least one prefill node."));
    assert!(refused("prefill: ['a:1']").contains("Please specify at least one decode node."));
    assert!(
        refused("handshake: aggregated\nprefill: []\n")
            .contains("Please specify at least one aggregated node.")
    );
    assert_eq!(
        refused("port: 1"),
        "x.yaml:1: no instances are configured (list prefill and decode addresses, or aggregated ones)"
    );
    assert_eq!(refused("{}").lines().count(), 1);
    let both = refused("prefill: []\ndecode: []");
    assert_eq!(both.lines().count(), 2, "{both}");
}

#[test]
fn a_list_with_mistakes_is_not_called_empty_too() {
    assert_eq!(refused("prefill: [x]\ndecode: ['a:1']").lines().count(), 1);
    assert_eq!(
        refused("prefill: 7\ndecode: {nodes: []}").lines().count(),
        2
    );
}

#[test]
fn roles_that_no_stage_uses_are_refused() {
    let problems = bad("aggregated: ['a:1']");
    assert!(problems.starts_with("x.yaml:3: aggregated: mixes aggregated and prefill/decode"));
    let problems = bad("handshake: aggregated\naggregated: ['a:1']");
    assert_eq!(problems.lines().count(), 2, "{problems}");
    assert_eq!(
        odd("encode: ['a:1']"),
        ["x.yaml:3: encode: handshake sequential does not use encode instances (remove them)"]
    );
}

#[test]
fn other_handshakes_judge_their_roles_themselves() {
    let known = super::Known {
        handshakes: &["epd"],
        ..KNOWN
    };
    let config = from_str(
        "handshake: epd\nencode: ['a:1']\naggregated: ['b:1']",
        "x",
        &known,
    );
    assert_eq!(addresses(&config.unwrap(), Role::Encode), ["a:1"]);
}

#[test]
fn one_address_has_one_role_and_may_repeat_in_it() {
    let problems = bad("encode: ['10.0.0.2:8200']");
    assert_eq!(
        problems,
        "x.yaml:2: decode[0]: Instance '10.0.0.2:8200' is already registered as encode, and cannot \
         be decode too (one engine has one role)"
    );
    let config = read("prefill: ['a:1']\ndecode: ['b:1', 'b:1']").unwrap();
    assert_eq!(addresses(&config, Role::Decode), ["b:1", "b:1"]);
    let text =
        "instances: [{address: 'b:1', role: dual}, {address: 'b:1', role: aggregated, weight: 2}]";
    let loaded = read_with(text, &Overrides::default()).unwrap();
    assert_eq!(loaded.config.instances.len(), 1);
    assert_eq!(
        loaded.warnings[0].to_string(),
        "x.yaml:1: instances[1]: Instance 'b:1' is listed twice as aggregated (the first one counts)"
    );
}

#[test]
fn instances_and_lists_exclude_each_other() {
    let problems = bad("instances: [{address: 'a:1', role: decode}]");
    assert_eq!(
        problems,
        "x.yaml:3: instances: Cannot use 'instances' or 'models' together with legacy \
         'prefill'/'decode' lists. (move what is under prefill, decode into instances, or the other way)"
    );
    let overrides = Overrides {
        decode: vec!["d:1".into()],
        ..Overrides::default()
    };
    let text =
        "instances: [{address: 'p:1', role: prefill}, {address: 'x:1', role: decode}]\nprefill: []";
    let loaded = read_with(text, &overrides).unwrap();
    assert_eq!(addresses(&loaded.config, Role::Decode), ["d:1"]);
    let model = "model: m\ninstances: [{address: 'a:1', role: dual, model: other}]";
    let loaded = read_with(model, &Overrides::default()).unwrap();
    assert_eq!(loaded.config.model, "other");
    assert!(
        loaded.warnings[0]
            .to_string()
            .contains("model has no effect")
    );
}

#[test]
fn cores_that_contradict() {
    assert_eq!(
        bad("shards: 3\ncpus: [0, 1]"),
        "x.yaml:3: shards: shards is 3, but cpus lists 2 (remove one of them: cpus implies the \
         number of shards)"
    );
    assert_eq!(good("shards: 2\ncpus: [0, 1]").cores.shards, Some(2));
    assert!(bad("cpus: [0, 1, 0]").contains("CPU 0 is listed twice"));
    assert!(bad("cpus: []").contains("cpus is an empty list"));
    assert!(bad("cpus: 0-3\nnuma: 0").contains("numa and cpus both choose the CPUs"));
    let paces = bad("batch_window: 300us\nbusy_poll: 1ms");
    assert!(
        paces.contains("batch_window has a shard rest, busy_poll has it never rest"),
        "{paces}"
    );
    let long = bad("batch_window: 1s");
    assert!(
        long.contains("batch_window is 1s") && long.contains("at most 10ms"),
        "{long}"
    );
    let poll = bad("busy_poll: 300");
    assert!(
        poll.contains("busy_poll is 5m") && poll.contains("at most 10s"),
        "{poll}"
    );
    let cores = good("batch_window: 300us\nbusy_poll: 0").cores;
    assert_eq!(cores.batch_window, Duration::from_micros(300));
}

#[test]
fn numbers_that_contradict() {
    assert!(bad("limits: {body_bytes_max: 2GiB}").starts_with(
        "x.yaml:3: limits.body_bytes_max: body_memory_max (1GiB) is below body_bytes_max (2GiB)"
    ));
    assert_eq!(
        bad("retry: {initial_backoff: 2s, max_backoff_ms: 1000}"),
        "x.yaml:3: retry.initial_backoff: initial_backoff (2s) is above max_backoff (1s)"
    );
    assert!(bad("circuit_breaker: {ejection_initial: 2s, ejection_max: 1s}").contains("is above"));
    assert_eq!(odd("timeouts: {pool_idle: 5s}").len(), 1);
}

#[test]
fn a_default_gives_way_to_what_is_written() {
    let breaker = good("circuit_breaker: {timeout_duration_seconds: 0.5}").circuit_breaker;
    assert_eq!(breaker.ejection_initial, Duration::from_millis(500));
    let breaker = good("circuit_breaker: {ejection_initial: 60s}").circuit_breaker;
    assert_eq!(breaker.ejection_max, Duration::from_secs(60));
    let retry = good("retry: {max_backoff_ms: 10}").retry;
    assert_eq!(retry.initial_backoff, Duration::from_millis(10));
    let retry = good("retry: {initial_backoff: 20s}").retry;
    assert_eq!(retry.max_backoff, Duration::from_secs(20));
}

/// Encoders, and these lines.
fn behind_encoders(then: &str, lines: &str) -> String {
    let text = format!(
        "handshake: epd\nencode: ['e:1']\nprefill: ['p:1']\ndecode: ['d:1']\nepd:\n  then: {then}\n{lines}"
    );
    read(&text).map_or_else(|problems| problems.to_string(), |_| String::new())
}

#[test]
fn what_cannot_follow_encoders_is_refused() {
    for then in [
        "nixl",
        "sequential",
        "multiturn",
        "mooncake",
        "offloading",
        "shared_storage",
    ] {
        assert_eq!(behind_encoders(then, ""), "", "{then}");
    }
    for chat in ["auto", "native"] {
        let lines = format!("lmcache: {{variant: plain, chat: {chat}}}");
        assert_eq!(behind_encoders("lmcache", &lines), "", "{chat}");
    }
    for (then, lines, line, key, why) in [
        (
            "sglang",
            "",
            6,
            "epd.then",
            "SGLang engines know no ec_transfer_params",
        ),
        ("nixl_flat", "", 6, "epd.then", "older than encoders"),
        ("epd", "", 6, "epd.then", "Unknown handshake 'epd'"),
        (
            "aggregated",
            "",
            1,
            "aggregated",
            "epd, then aggregated, does not use prefill",
        ),
        (
            "lmcache",
            "lmcache: {variant: plain, chat: render}",
            7,
            "lmcache.chat",
            "media have no place",
        ),
        (
            "lmcache",
            "lmcache: {variant: plain, chat: completions}",
            7,
            "lmcache.chat",
            "media have no place",
        ),
        (
            "multiturn",
            "first_token_source: prefill",
            7,
            "first_token_source",
            "decode's own first token",
        ),
    ] {
        let said = behind_encoders(then, lines);
        let begins = format!("x.yaml:{line}: {key}: ");
        assert!(
            said.starts_with(&begins) && said.contains(why),
            "{then}: {said}"
        );
        assert!(said.ends_with(')'), "it says what to do: {said}");
    }
    let consumer = |then: &str, of: &str| {
        refused(&format!(
            "handshake: epd\nencode: ['e:1']\ndecode: ['d:1']\nprefill:\n  - {{address: 'p:1', {of}}}\nepd: {{then: {then}}}"
        ))
    };
    let said = consumer("mooncake", "dp_size: 2");
    assert!(
        said.starts_with("x.yaml:5: prefill[0]: with then: mooncake the rank"),
        "{said}"
    );
    let said = consumer("shared_storage", "ec_addresses: ['10.0.0.1:5555']");
    assert!(
        said.starts_with("x.yaml:5: prefill[0]: with then: shared_storage"),
        "{said}"
    );
}

#[test]
fn conversations_behind_encoders_are_conversations() {
    let warnings = |text: &str| {
        read_with(text, &Overrides::default())
            .unwrap()
            .warnings
            .len()
    };
    let file = "encode: ['e:1']\nprefill: ['p:1']\ndecode: ['d:1']\nhandshake: epd\nmultiturn: {ttl: 60s}\n";
    assert_eq!(warnings(&format!("{file}epd: {{then: multiturn}}")), 0);
    assert_eq!(warnings(&format!("{file}epd: {{then: nixl}}")), 1);
}
