//! Command lines, YAML and environment of the three generations.

use pdrelay::config::sidecar::{Encode, Generation, PinnedFailure};
use pdrelay::config::{LogLevel, Role};

use super::started;

#[test]
fn names_stand_for_generations() {
    for (program, generation, port, failure) in [
        (
            "llm-d-routing-sidecar",
            Generation::G1,
            8001,
            PinnedFailure::Status,
        ),
        (
            "/app/pd-sidecar",
            Generation::G3,
            8200,
            PinnedFailure::RetryThenVerbatim,
        ),
        (
            "sidecar",
            Generation::G3,
            8200,
            PinnedFailure::RetryThenVerbatim,
        ),
    ] {
        let config = started(program, &[], &[]).unwrap();
        let sidecar = config.sidecar.unwrap();
        assert_eq!(
            (sidecar.generation, sidecar.prefill_failure),
            (generation, failure)
        );
        assert_eq!(config.port, 8000);
        assert_eq!(
            config.instances[0].address.to_string(),
            format!("localhost:{port}")
        );
        assert_eq!(config.handshake, "nixl");
        // TLS and plain HTTP, until one is asked for.
        assert!(!config.tls.unwrap().strict);
    }
}

#[test]
fn the_quick_start_of_the_first_generation_starts() {
    let line = [
        "-port=8000",
        "-vllm-port=8001",
        "-connector=nixlv2",
        "-v",
        "5",
    ];
    let config = started("llm-d-routing-sidecar", &line, &[]).unwrap();
    assert_eq!(config.log_level, LogLevel::Debug);
    let line = [
        "-secure-proxy=false",
        "-prefiller-use-tls",
        "-decoder-use-tls=true",
        "-prefiller-tls-insecure-skip-verify",
        "-connector",
        "lmcache",
        "-logtostderr",
    ];
    let config = started("llm-d-routing-sidecar", &line, &[]).unwrap();
    assert_eq!(config.tls, None);
    assert_eq!(config.handshake, "shared_storage");
    assert!(config.sidecar.unwrap().prefill_tls);
    assert_eq!(config.upstream_tls.skip_verify, [Role::Prefill]);
    assert_eq!(
        config.instances[0].address.to_string(),
        "https://localhost:8001"
    );
}

#[test]
fn every_flag_of_the_third_generation_is_taken() {
    let line = [
        "--port",
        "9000",
        "--model-server-port=7000",
        "--data-parallel-size=3",
        "--kv-connector=mooncake",
        "--ec-connector=ec-nixl",
        "--mooncake-bootstrap-port=1",
        "--p2p-connector-port=2",
        "--secure-proxy",
        "--cert-path=/certs",
        "--enable-tls=prefiller,encoder",
        "--tls-insecure-skip-verify=decoder",
        "--enable-ssrf-protection",
        "--inference-pool=ns/pool",
        "--pool-group=g",
        "--enable-prefiller-sampling",
        "--max-idle-conns-per-host=7",
        "--prefill-max-retries=4",
        "--prefill-retry-backoff=1.5s",
        "--decode-chunk-size=64",
        "--metrics-port=9999",
        "--tracing",
        "--zap-log-level=debug",
    ];
    let config = started("pd-sidecar", &line, &[]).unwrap();
    let sidecar = config.sidecar.clone().unwrap();
    let places: Vec<String> = config
        .instances
        .iter()
        .map(|i| i.address.to_string())
        .collect();
    assert_eq!(
        places,
        ["localhost:7000", "localhost:7001", "localhost:7002"]
    );
    assert_eq!((config.port, config.handshake.as_str()), (9000, "mooncake"));
    assert_eq!(sidecar.encode, Encode::Nixl);
    assert_eq!((sidecar.mooncake_port, sidecar.p2p_port), (1, 2));
    assert!(sidecar.prefill_tls && sidecar.encode_tls && sidecar.sample_prefill);
    assert_eq!(
        (sidecar.prefill_retries, sidecar.prefill_backoff.as_millis()),
        (4, 1500)
    );
    assert_eq!(
        (sidecar.decode_chunk, sidecar.metrics_port),
        (64, Some(9999))
    );
    let pool = sidecar.allow.unwrap().pool.unwrap();
    assert_eq!(
        (&*pool.namespace, &*pool.name, &*pool.group),
        ("ns", "pool", "g")
    );
    let tls = config.tls.unwrap();
    assert!(tls.strict && tls.cert_path.unwrap().ends_with("certs"));
    assert_eq!(config.limits.idle_per_instance_max, 7);
    assert_eq!(config.upstream_tls.skip_verify, [Role::Decode]);
}

#[test]
fn yaml_and_environment_stand_below_flags() {
    let yaml = "port: 9001\nkv-connector: sglang\nenable-tls: [prefiller]\nsecure-proxy: false\nprefill-max-retries: 2";
    let line = ["--configuration", yaml, "--port=9002"];
    let env = [
        ("SGLANG_BOOTSTRAP_PORT", "77"),
        ("POD_IP", "10.0.0.1"),
        ("ENABLE_PREFILLER_SAMPLING", "true"),
    ];
    let config = started("pd-sidecar", &line, &env).unwrap();
    let sidecar = config.sidecar.unwrap();
    assert_eq!(
        (config.port, config.handshake.as_str(), config.tls),
        (9002, "sglang", None)
    );
    assert_eq!((sidecar.bootstrap_port, sidecar.prefill_retries), (77, 2));
    assert!(sidecar.sample_prefill && sidecar.prefill_tls);
    assert_eq!(sidecar.pod_ip, Some("10.0.0.1".parse().unwrap()));
    let pool = [
        ("INFERENCE_POOL_NAMESPACE", "ns"),
        ("INFERENCE_POOL_NAME", "pool"),
    ];
    let config = started(
        "llm-d-routing-sidecar",
        &["-enable-ssrf-protection=true"],
        &pool,
    )
    .unwrap();
    let pool = config.sidecar.unwrap().allow.unwrap().pool.unwrap();
    assert_eq!((&*pool.namespace, &*pool.name), ("ns", "pool"));
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    for (program, line, said, code) in [
        (
            "sidecar",
            &["--nope"][..],
            "flag provided but not defined: -nope",
            2,
        ),
        (
            "sidecar",
            &["--connector=lmcache"],
            "unknown connector \"lmcache\"; g3 has nixlv2, shared-storage",
            1,
        ),
        (
            "routing-sidecar",
            &["-connector=mooncake"],
            "g1 has nixlv2, nixl, lmcache",
            1,
        ),
        (
            "sidecar",
            &["--moriio-write-mode"],
            "MoRI-IO comes later",
            1,
        ),
        (
            "sidecar",
            &["--enable-ssrf-protection"],
            "needs an InferencePool",
            1,
        ),
        ("sidecar", &["--port=0"], "a port is between 1 and 65535", 1),
        ("sidecar", &["--configuration=prot: 1"], "unknown key", 1),
        (
            "sidecar",
            &["--configuration=a: 1", "--configuration-file=b"],
            "both given",
            1,
        ),
        (
            "sidecar",
            &["--enable-p2p-pull", "--kv-connector=sglang"],
            "nixlv2 only",
            1,
        ),
        (
            "sidecar",
            &["--prefill-retry-backoff=5"],
            "no duration like 200ms",
            1,
        ),
        ("sidecar", &["-h"], "--decode-chunk-size", 0),
    ] {
        let (text, exit) = started(program, line, &[]).expect_err(said);
        assert!(
            text.contains(said) && exit == code,
            "{line:?}: {exit} {text}"
        );
    }
}

/// What `pdrelay migrate` prints means the same.
#[test]
fn migrated_command_lines_are_the_same_configuration() {
    use pdrelay::config::legacy::{self, Call};
    use pdrelay::config::{self, Known, write};
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    for line in [
        &[][..],
        &[
            "--kv-connector=mooncake",
            "--mooncake-bootstrap-port=1",
            "--prefill-max-retries=3",
        ],
        &[
            "--generation=g2",
            "--ec-connector=ec-example",
            "--data-parallel-size=2",
            "--vllm-port=8200",
        ],
        &[
            "--enable-ssrf-protection",
            "--inference-pool=ns/pool",
            "--secure-proxy",
            "--cert-path=/c",
        ],
        &[
            "--enable-tls=prefiller,decoder",
            "--tls-insecure-skip-verify=decoder",
            "-v=4",
        ],
        &[
            "--decode-chunk-size=64",
            "--metrics-port=9999",
            "--secure-proxy=false",
            "-tracing",
        ],
    ] {
        let expected = started("sidecar", line, &[]).unwrap();
        let args: Vec<String> = line.iter().map(|arg| (*arg).to_owned()).collect();
        let mut heard = super::Heard::default();
        let migrated = (legacy::by_name("sidecar").unwrap().migrate)(&mut Call {
            args: &args,
            known: &known,
            env: &|_| None,
            terminal: &mut heard,
        });
        let migrated = migrated.unwrap_or_else(|code| panic!("{code}: {}", heard.err));
        let yaml = write::yaml(&migrated.loaded.config, &migrated.notes);
        let read = config::from_str(&yaml, "x", &known);
        let read = read.unwrap_or_else(|problems| panic!("{problems}\n{yaml}"));
        assert_eq!(read, expected, "{yaml}");
    }
}
