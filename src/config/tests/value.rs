//! Single keys: what is accepted, and what it becomes.

use std::time::Duration;

use super::super::load::{Overrides, Source, load};
use super::super::{Address, Config, FirstTokenSource, LogLevel, Role, Secret, Surface};
use super::{KNOWN, PD, addresses, bad, good, odd, read, read_with, refused};

#[test]
fn instances_alone_give_the_defaults() {
    let config = good("");
    let expected = Config {
        instances: config.instances.clone(),
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert_eq!(addresses(&config, Role::Prefill), ["10.0.0.1:8100"]);
    assert_eq!(addresses(&config, Role::Decode), ["10.0.0.2:8200"]);
}

#[test]
fn a_complete_old_configuration_loads() {
    let config = read(
        r#"
model: /models/DeepSeek
port: "8868"
host: 127.0.0.1
log_level: warning
prefill: [10.0.0.1:8100, localhost:8101]
decode: [10.0.0.1:8200, 10.0.0.1:8200]
scheduling: loadbalanced
roundrobin: false
generator_on_p_node: false
first_token_source: decode
disaggregated_mode: direct
admin_api_key: adm
openai_api_key: oai
startup: {wait_timeout_seconds: 600, probe_interval_seconds: 10, heartbeat_interval_seconds: 30.0}
health_check: {enabled: true, interval_seconds: 10.0, timeout_seconds: 3.5}
circuit_breaker: {enabled: true, failure_threshold: 4, success_threshold: 3,
  timeout_duration_seconds: 20, window_duration_seconds: 90}
retry: {enabled: true, max_retries: 3, initial_backoff_ms: 50, max_backoff_ms: 2000,
  backoff_multiplier: 1.5, jitter_factor: 0.2, retryable_status_codes: [502, 503]}
"#,
    )
    .unwrap();
    assert_eq!(config.port, 8868);
    assert_eq!(config.log_level, LogLevel::Warning);
    assert_eq!(
        addresses(&config, Role::Decode),
        ["10.0.0.1:8200", "10.0.0.1:8200"]
    );
    assert_eq!(config.scheduling.decode, "load_balanced");
    assert_eq!(config.startup.wait_timeout, Some(Duration::from_secs(600)));
    assert_eq!(config.startup.probe_interval, Duration::from_secs(1));
    assert_eq!(
        config.startup.heartbeat_interval,
        Some(Duration::from_secs(30))
    );
    assert_eq!(config.handshake, "sequential");
    assert_eq!(config.admin_api_key, Some(Secret("adm".into())));
    assert_eq!(config.health_check.interval, Duration::from_secs(10));
    assert_eq!(config.health_check.timeout, Duration::from_millis(3500));
    assert_eq!(config.circuit_breaker.ejection_max, Duration::from_secs(20));
    assert_eq!(config.circuit_breaker.window, Duration::from_secs(90));
    assert_eq!(config.circuit_breaker.failure_threshold, 4);
    assert_eq!(config.retry.initial_backoff, Duration::from_millis(50));
    assert_eq!(config.retry.max_backoff, Duration::from_secs(2));
    assert_eq!(config.retry.retryable_status_codes, [502, 503]);
}

#[test]
fn sections_are_on_unless_they_say_off() {
    for section in ["retry", "health_check", "circuit_breaker"] {
        let enabled = |lines: &str| {
            let config = good(&lines.replace("SECTION", section));
            match section {
                "retry" => config.retry.enabled,
                "health_check" => config.health_check.enabled,
                _ => config.circuit_breaker.enabled,
            }
        };
        assert!(enabled(""));
        assert!(enabled("SECTION:\n"));
        assert!(enabled("SECTION: {}\n"));
        assert!(enabled("SECTION: {enabled: yes}\n"));
        assert!(!enabled("SECTION: {enabled: false}\n"));
        assert!(!enabled("SECTION: {enabled: off}\n"));
    }
}

#[test]
fn our_keys_and_their_units() {
    let config = good(
        "limits: {head_bytes_max: 16KiB, body_bytes_max: 1GB, body_memory_max: 2000000000, \
         in_flight_max: 7}\ntimeouts: {prefill: 450s, connect: 100ms, request: 1h, head: 5}\n\
         scheduling: {prefill: round_robin, load_view_max_age: 0}\nforward: [/v1/x, /admin/*]\n",
    );
    assert_eq!(config.limits.head_bytes_max, 16 << 10);
    assert_eq!(config.limits.body_bytes_max, 1_000_000_000);
    assert_eq!(config.limits.body_memory_max, 2_000_000_000);
    assert_eq!(config.limits.in_flight_max, 7);
    assert_eq!(config.timeouts.prefill, Duration::from_secs(450));
    assert_eq!(config.timeouts.connect, Duration::from_millis(100));
    assert_eq!(config.timeouts.request, Duration::from_secs(3600));
    assert_eq!(config.timeouts.head, Duration::from_secs(5));
    assert_eq!(config.scheduling.prefill, "round_robin");
    assert_eq!(config.scheduling.decode, "least_load");
    assert_eq!(config.scheduling.load_view_max_age, Duration::ZERO);
    assert_eq!(config.forward, ["/v1/x", "/admin/*"]);
}

#[test]
fn addresses_may_be_names_v6_or_unix() {
    let config = read(
        "prefill: ['[::1]:8100', prefill-0.svc.cluster.local:8100]\ndecode:\n\
         - unix:/run/decode.sock\n- {address: 'h:1', weight: 2.5}\n- {address: 'h:2'}\n",
    )
    .unwrap();
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["[::1]:8100", "prefill-0.svc.cluster.local:8100"]
    );
    assert_eq!(
        addresses(&config, Role::Decode),
        ["unix:/run/decode.sock", "h:1", "h:2"]
    );
    let weights: Vec<f64> = config.instances.iter().map(|i| i.weight).collect();
    assert_eq!(weights, [1.0, 1.0, 1.0, 2.5, 1.0]);
    for weight in ["0", "-1", ".nan", ".inf", "x"] {
        let problems = bad(&format!("encode: [{{address: 'h:1', weight: {weight}}}]"));
        assert!(
            problems.starts_with("x.yaml:3: encode[0].weight: weight must be"),
            "{problems}"
        );
    }
    let problems = bad("encode: [{weight: 1}]");
    assert_eq!(problems, "x.yaml:3: encode[0]: an instance needs 'address'");
}

#[test]
fn instances_are_ordered_by_role_and_then_as_written() {
    let config = read(
        "handshake: nixl\ninstances:\n- {address: 'd:1', role: decode}\n- {address: 'p:2', role: prefill}\n\
         - {address: 'p:1', role: prefill, weight: 3}\n",
    )
    .unwrap();
    let shown: Vec<String> = config
        .instances
        .iter()
        .map(|i| i.address.to_string())
        .collect();
    assert_eq!(shown, ["p:2", "p:1", "d:1"]);
    let config = read("instances: [{address: 'a:1', role: dual, model: m}]").unwrap();
    assert_eq!(config.handshake, "aggregated");
    assert_eq!(config.model, "m");
    assert_eq!(
        refused("instances: [{address: 'a:1', role: boss}, {role: decode}, x]"),
        "x.yaml:1: instances[0].role: role must be 'prefill', 'decode', or 'aggregated', got 'boss' \
         (known: encode, prefill, decode, aggregated, dual)\n\
         x.yaml:1: instances[1]: an instance needs 'address'\n\
         x.yaml:1: instances[2]: instances[2] must be {address, role}, got str"
    );
}

/// Signs, which `parse` takes for part of a number, and what would end a log line.
#[test]
fn addresses_hold_nothing_odd() {
    for text in [
        "h:+80",
        "h:-80",
        "unix:/a\nb",
        "unix:/a\rb",
        "unix:/a\u{7f}b",
    ] {
        assert!(Address::parse(text).is_err(), "{text:?}");
    }
    assert_eq!(Address::parse("h:080"), Ok(Address::tcp("h", 80)));
    // A host of this name, shown as hosts are, would be read as a socket.
    for text in ["unix:4", "unIx:4", "[unix]:4", "[UNIX]:4"] {
        let why = Address::parse(text).expect_err(text);
        assert!(why.ends_with("written unix:/absolute/path"), "{why}");
    }
    assert_eq!(Address::parse("UNIX:/a"), Address::parse("unix:/a"));
}

#[test]
fn urls_are_addresses_with_a_prefix_or_tls() {
    for (text, shown, prefix, tls) in [
        ("http://h:80", "h:80", "", false),
        ("http://h", "h:80", "", false),
        ("HTTP://h:81/", "h:81", "", false),
        ("http://h:81/a/b//", "http://h:81/a/b", "/a/b", false),
        ("https://h", "https://h:443", "", true),
        ("https://[::1]:8/x", "https://[::1]:8/x", "/x", true),
        ("http://[::1]", "[::1]:80", "", false),
        ("h:80", "h:80", "", false),
        ("unix:/run/a", "unix:/run/a", "", false),
    ] {
        let address = Address::parse_url(text).expect(text);
        assert_eq!(address.to_string(), shown);
        assert_eq!((address.prefix(), address.tls()), (prefix, tls), "{text}");
        assert_eq!(Address::parse_url(shown), Ok(address), "{text}");
    }
    for text in [
        "ftp://h:80",
        "http://",
        "http://h:80/a?b",
        "http://h:80?b",
        "http://h:80/a b",
        "http://h:80/a\nb",
        "http://u:p@h:80",
        "http://h:0",
        "http://unix:/a",
        "http://h:80#x",
    ] {
        assert!(Address::parse_url(text).is_err(), "{text:?}");
    }
}

#[test]
fn hosts() {
    for (text, host) in [
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "localhost"),
        ("'::'", "::"),
        ("'[::1]'", "::1"),
        ("proxy.example.org", "proxy.example.org"),
    ] {
        assert_eq!(good(&format!("host: {text}")).host, host);
    }
    for text in [
        "''",
        "300.1.1.1",
        "a b",
        "'a:b'",
        "http://x",
        "'unix:/x'",
        "'x:80'",
    ] {
        let problems = bad(&format!("host: {text}"));
        assert!(
            problems.contains("host must be an IP address or localhost"),
            "{problems}"
        );
    }
}

#[test]
fn a_problem_is_one_line_whatever_it_quotes() {
    let problems = bad("host: \"a\\nb\\e[2J\"\n\"x\\ny\": 1\n");
    assert_eq!(problems.lines().count(), 2, "{problems}");
    assert!(problems.contains("got 'a\\nb\\u{1b}[2J'"), "{problems}");
}

#[test]
fn ports() {
    for text in ["8000", "'8000'", "8000.0"] {
        assert_eq!(good(&format!("port: {text}")).port, 8000);
    }
    for (text, shown) in [
        ("0", "0"),
        ("65536", "65536"),
        ("-1", "-1"),
        ("'70000'", "70000"),
    ] {
        let message = format!("x.yaml:3: port: port must be between 1 and 65535, got {shown}");
        assert_eq!(bad(&format!("port: {text}")), message);
    }
    for text in [
        "x",
        "[1]",
        "true",
        "1.5",
        "99999999999999999999999999999999999999999999",
    ] {
        assert!(
            bad(&format!("port: {text}")).contains("port must be"),
            "{text}"
        );
    }
}

#[test]
fn aliases_of_policies() {
    for (name, ours) in [
        ("roundrobin", "round_robin"),
        ("round_robin", "round_robin"),
        ("loadbalanced", "load_balanced"),
        ("load_balanced", "load_balanced"),
        ("least_load", "least_load"),
    ] {
        let config = good(&format!("scheduling: {name}"));
        assert_eq!(
            [config.scheduling.prefill, config.scheduling.decode],
            [ours, ours]
        );
    }
    assert_eq!(good("roundrobin: true").scheduling.prefill, "round_robin");
    assert_eq!(
        good("roundrobin: true\nscheduling: {load_view_max_age: 2ms}")
            .scheduling
            .decode,
        "round_robin"
    );
    assert_eq!(
        good("roundrobin: true\nscheduling: least_load")
            .scheduling
            .prefill,
        "least_load"
    );
    assert_eq!(
        odd("roundrobin: true\nscheduling: least_load"),
        ["x.yaml:3: roundrobin: roundrobin has no effect: 'scheduling' decides (remove it)"]
    );
}

#[test]
fn unknown_policies_list_what_exists() {
    let names = "['cache_aware', 'consistent_hash', 'least_load', 'load_balanced', 'loadbalanced', \
                 'power_of_two', 'round_robin', 'roundrobin']";
    assert_eq!(
        bad("scheduling: round-robbin"),
        format!(
            "x.yaml:3: scheduling: Invalid scheduling value 'round-robbin'; expected one of {names} \
             (did you mean 'round_robin'?)"
        )
    );
    let problems = bad("scheduling:\n  prefill: x\n  decode: least_load\n");
    let start = format!(
        "x.yaml:4: scheduling.prefill: Invalid scheduling value 'x'; expected one of {names} (known: "
    );
    assert!(problems.starts_with(&start), "{problems}");
    assert!(bad("scheduling: [x]").contains("must be a policy's name or a mapping"));
}

#[test]
fn handshakes_and_their_aliases() {
    assert_eq!(good("disaggregated_mode: direct").handshake, "sequential");
    assert_eq!(good("disaggregated_mode: nixl").handshake, "nixl");
    assert_eq!(
        good("disaggregated_mode: nixl\nhandshake: nixl").handshake,
        "nixl"
    );
    assert_eq!(read("aggregated: ['a:1']").unwrap().handshake, "aggregated");
    assert_eq!(
        bad("handshake: nixl\ndisaggregated_mode: direct"),
        "x.yaml:4: disaggregated_mode: disaggregated_mode means handshake: sequential, but \
         handshake is 'nixl' (keep one of the two keys)"
    );
    assert_eq!(
        bad("handshake: nixxl"),
        "x.yaml:3: handshake: Unknown handshake 'nixxl'; expected one of \
         ['aggregated', 'epd', 'lmcache', 'mooncake', 'multiturn', 'nixl', 'nixl_flat', 'offloading', 'sequential', 'sglang', 'shared_storage'] (did you mean 'nixl'?)"
    );
    assert_eq!(
        bad("disaggregated_mode: zmq"),
        "x.yaml:3: disaggregated_mode: disaggregated_mode=zmq requires a zmq configuration (write zmq: \
         {port: 7500, receivers: {\"HOST:PORT\": {host: HOST, init_ports: [..], alloc_ports: [..]}}})"
    );
    assert_eq!(
        odd("zmq: {port: 7500}"),
        ["x.yaml:3: zmq: zmq has no effect without disaggregated_mode: zmq (remove it)"]
    );
    assert!(bad("disaggregated_mode: x").contains("must be 'direct', 'nixl' or 'zmq', got 'x'"));
    // A mode is about prefill and decode: aggregated engines have no use for it.
    let config = read("disaggregated_mode: nixl\naggregated: ['a:1']").unwrap();
    assert_eq!(config.handshake, "aggregated");
}

#[test]
fn first_tokens_and_surfaces() {
    for lines in ["first_token_source: prefill", "generator_on_p_node: true"] {
        let first = good(lines).first_token_source;
        assert_eq!(first, FirstTokenSource::Prefill, "{lines}");
    }
    for lines in ["first_token_source: decode", "generator_on_p_node: false"] {
        let first = good(lines).first_token_source;
        assert_eq!(first, FirstTokenSource::Decode, "{lines}");
    }
    assert!(bad("first_token_source: me").contains("must be 'prefill' or 'decode', got 'me'"));
    assert_eq!(good("surface: native").surface, Surface::Native);
    assert_eq!(good("surface: xpyd\nmodel: m").surface, Surface::Xpyd);
    let words = "or 'xpyd', got 'openai'";
    let said = bad("surface: openai");
    assert!(
        said.contains("surface must be 'native', ") && said.contains(words),
        "{said}"
    );
}

#[test]
fn old_keys_without_effect_are_warned_about() {
    assert_eq!(
        odd("tokenizer_path: /models\n"),
        [
            "x.yaml:3: tokenizer_path: tokenizer_path has no effect: pdrelay counts prompts without a \
          tokenizer (remove it)"
        ]
    );
    assert!(bad("tokenizer_path: 7").contains("tokenizer_path must be a string, got int"));
}

#[test]
fn startup_in_both_spellings() {
    let of = |lines: &str| {
        let startup = good(lines).startup;
        let ms = |wait: Duration| wait.as_millis();
        (
            startup.wait_timeout.map(ms),
            ms(startup.probe_interval),
            startup.heartbeat_interval.map(ms),
        )
    };
    assert_eq!(of(""), (None, 1_000, None));
    assert_eq!(
        of("startup: {wait_timeout: 5m, probe_interval: 5s, heartbeat_interval: 30s}"),
        (Some(300_000), 5_000, Some(30_000))
    );
    // The old proxy's interval is an upper bound.
    let old =
        "wait_timeout_seconds: 60, probe_interval_seconds: 10, heartbeat_interval_seconds: 2.5";
    let expected = (Some(60_000), 1_000, Some(2_500));
    assert_eq!(of(&format!("startup: {{{old}}}")), expected);
    assert_eq!(of(&old.replace(", ", "\n")), expected);
    assert_eq!(of("probe_interval_seconds: 0"), (None, 100, None));
    assert_eq!(of("wait_timeout_seconds: 0\nstartup:"), (None, 1_000, None));
    for (lines, why) in [
        (
            "startup: {heartbeat_interval_seconds: 0}",
            "heartbeat_interval_seconds must be above 0",
        ),
        (
            "startup: {wait_timeout_seconds: -1}",
            "wait_timeout_seconds must be a number from 0 on, got -1",
        ),
        (
            "startup: {probe_interval: 0}",
            "probe_interval must be above 0",
        ),
        (
            "startup: {wait_timeout: 1s, wait_timeout_seconds: 1}",
            "two spellings of one key",
        ),
        (
            "startup: {wait_timeout_seconds: 1}\nwait_timeout_seconds: 1",
            "two spellings of one key",
        ),
    ] {
        assert!(bad(lines).contains(why), "{lines}: {}", bad(lines));
    }
    assert!(bad("startup: {foo: 1}").contains("Unknown keys in startup config: ['foo'] (known: "));
    assert!(bad("startup: [1]").contains("'startup' section must be a mapping, got list"));
    assert!(bad("cache_aware: 1").contains("'cache_aware' must be a mapping, got int"));
}

#[test]
fn two_spellings_of_one_key_are_an_error() {
    assert_eq!(
        bad("health_check: {interval: 1s, interval_seconds: 2}"),
        "x.yaml:3: health_check.interval_seconds: 'interval_seconds' and 'interval' are two \
         spellings of one key (keep one of them)"
    );
    assert!(bad("retry: {max_backoff_ms: 1, max_backoff: 2s}").contains("two spellings"));
}

#[test]
fn cores() {
    assert_eq!(good("cpus: [0, 2]").cores.cpus, Some(vec![0, 2]));
    assert_eq!(good("cpus: 0,2-5").cores.cpus, Some(vec![0, 2, 3, 4, 5]));
    assert_eq!(good("cpus: 3").cores.cpus, Some(vec![3]));
    assert_eq!(good("cpus: [0-1, 4]").cores.cpus, Some(vec![0, 1, 4]));
    assert_eq!(good("shards: 4\nnuma: 1").cores.shards, Some(4));
    assert_eq!(good("numa: 0").cores.numa, Some(0));
    assert_eq!(
        good("cpus: null\nshards: null\nnuma: null").cores,
        Default::default()
    );
    for lines in [
        "shards: 0",
        "shards: many",
        "numa: -1",
        "cpus: x",
        "cpus: [-1]",
        "cpus: {}",
    ] {
        assert_eq!(bad(lines).lines().count(), 1, "{lines}");
    }
}

#[test]
fn forward_paths() {
    for path in ["x", "''", "/a?b", "/a b", "/a*b", "'*'", "/a**", "/ä", "7"] {
        assert!(
            bad(&format!("forward: [{path}]")).starts_with("x.yaml:3: forward[0]: "),
            "{path}"
        );
    }
    assert!(bad("forward: /x").contains("must be a list of paths, got str"));
    assert!(bad("health_check: {path: 'health'}").contains("must begin with '/'"));
    assert!(bad("health_check: {path: \"/x\\r\\nHost: y\"}").contains("visible ASCII"));
}

#[test]
fn secrets_come_from_the_environment_first() {
    let text = format!("{PD}openai_api_key: from-file\nadmin_api_key: from-file\n");
    let source = Source {
        text: &text,
        label: "x.yaml",
        file: None,
    };
    let with = |env: &dyn Fn(&str) -> Option<String>| {
        load(Some(source), &Overrides::default(), &KNOWN, env)
    };
    let loaded = with(&|name| (name == "OPENAI_API_KEY").then(|| "from-env\n".into())).unwrap();
    assert_eq!(
        loaded.config.openai_api_key,
        Some(Secret("from-env".into()))
    );
    assert_eq!(
        loaded.config.admin_api_key,
        Some(Secret("from-file".into()))
    );
    let loaded = with(&|name| (name == "ADMIN_API_KEY").then(String::new)).unwrap();
    assert_eq!(loaded.config.admin_api_key, None);
    assert_eq!(loaded.warnings.len(), 1);
    let problems = with(&|_| Some("sk-1\r\nEvil: 1".into()))
        .unwrap_err()
        .to_string();
    assert!(problems.starts_with("environment: OPENAI_API_KEY: OPENAI_API_KEY has a character"));
    assert!(!problems.contains("sk-1"));
}

#[test]
fn secrets_are_never_shown() {
    for lines in [
        "openai_api_key: 12345678",
        "admin_api_key: [s3cret]",
        "admin_api_key: 's3 cret'",
    ] {
        let problems = bad(lines);
        assert!(
            !problems.contains("s3") && !problems.contains("12345678"),
            "{problems}"
        );
    }
    let config = good("openai_api_key: s3cret\n");
    assert!(!format!("{config:?}").contains("s3cret"));
    assert_eq!(
        good("openai_api_key: ''\nadmin_api_key: null").openai_api_key,
        None
    );
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides {
        model: Some("m".into()),
        host: Some("::1".into()),
        port: Some(9000),
        log_level: Some(LogLevel::Debug),
        handshake: Some("nixl".into()),
        prefill: vec!["p:1".into(), "p:2".into()],
        cpus: Some(vec![1]),
        ..Overrides::default()
    };
    let text = format!("{PD}port: 1\nhandshake: sequential\nshards: 4\nnuma: 0\nmodel: x\n");
    let config = read_with(&text, &overrides).unwrap().config;
    assert_eq!(config.model, "m");
    assert_eq!(config.host, "::1");
    assert_eq!(config.port, 9000);
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(config.handshake, "nixl");
    assert_eq!(addresses(&config, Role::Prefill), ["p:1", "p:2"]);
    assert_eq!(addresses(&config, Role::Decode), ["10.0.0.2:8200"]);
    assert_eq!(config.cores.cpus, Some(vec![1]));
    assert_eq!((config.cores.shards, config.cores.numa), (None, None));

    let overrides = Overrides {
        shards: Some(2),
        ..Overrides::default()
    };
    let config = read_with(&format!("{PD}cpus: [0, 1, 2]\nnuma: null\n"), &overrides).unwrap();
    assert_eq!(
        (config.config.cores.shards, config.config.cores.cpus),
        (Some(2), None)
    );
}

#[test]
fn the_command_line_is_checked_like_the_file() {
    let overrides = Overrides {
        host: Some("a b".into()),
        port: Some(0),
        handshake: Some("nixxl".into()),
        decode: vec!["10.0.0.1:8100".into(), "nope".into()],
        shards: Some(0),
        ..Overrides::default()
    };
    assert_eq!(
        read_with(PD, &overrides).unwrap_err().to_string(),
        "\
command line: --host: host must be an IP address or localhost (or a host name), got 'a b'
command line: --port: port must be between 1 and 65535, got 0
command line: --shards: shards must be between 1 and 4096, got 0
command line: --decode[1]: Invalid instance format: nope; write host:port, for example 10.0.0.1:8100
command line: --handshake: Unknown handshake 'nixxl'; expected one of ['aggregated', 'epd', 'lmcache', 'mooncake', 'multiturn', 'nixl', 'nixl_flat', 'offloading', 'sequential', 'sglang', 'shared_storage'] (did you mean 'nixl'?)
command line: --decode[0]: Instance '10.0.0.1:8100' is already registered as prefill, and cannot be decode too (one engine has one role)"
    );
}

#[test]
fn one_engine_has_one_spelling() {
    let config = read(
        "prefill: ['[::FFFF:127.0.0.1]:8100', 'Prefill-0.SVC:08101']\n\
         decode: ['[0:0::1]:8200', '[::1]:8201']\n",
    )
    .unwrap();
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["127.0.0.1:8100", "prefill-0.svc:8101"]
    );
    assert_eq!(
        addresses(&config, Role::Decode),
        ["[::1]:8200", "[::1]:8201"]
    );
    let twice = read("prefill: ['[::1]:8100']\ndecode: ['[0::1]:8100']\n").unwrap_err();
    assert!(twice.to_string().contains("already registered"), "{twice}");
}
