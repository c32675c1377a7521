//! xPyD-proxy's command line, seen from its own side: what it says and what it decides.

use std::time::Duration;

use super::super::legacy::{self, Call, Outcome, Terminal};
use super::super::{Config, FirstTokenSource, LogLevel, Role, Surface};
use super::{KNOWN, addresses};

#[derive(Default)]
struct Page {
    out: String,
    err: String,
    /// Typed in advance.
    answers: Vec<String>,
}

impl Terminal for Page {
    fn out(&mut self, text: &str) {
        self.out += text;
    }
    fn err(&mut self, text: &str) {
        self.err += text;
    }
    fn ask(&mut self, prompt: &str, _: Option<Duration>) -> Option<String> {
        self.out += prompt;
        (!self.answers.is_empty()).then(|| self.answers.remove(0))
    }
    fn stamp(&self) -> String {
        "STAMP".into()
    }
}

/// A folder that is gone with the test.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("pdrelay-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn call(program: &str, line: &str, env: &[(&str, &str)], answers: &[&str]) -> (Outcome, Page) {
    let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
    let mut page = Page {
        answers: answers.iter().map(|a| (*a).to_owned()).collect(),
        ..Page::default()
    };
    let env = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let outcome = (legacy::by_name(program).unwrap().run)(&mut Call {
        args: &args,
        known: &KNOWN,
        env: &env,
        terminal: &mut page,
    });
    (outcome, page)
}

fn served(program: &str, line: &str, env: &[(&str, &str)]) -> Config {
    match call(program, line, env, &[]) {
        (Outcome::Serve(serve), _) => serve.loaded.config,
        (Outcome::Exit(code), page) => panic!("{line}: {code}\n{}{}", page.out, page.err),
    }
}

fn ended(program: &str, line: &str, env: &[(&str, &str)]) -> (u8, String, String) {
    match call(program, line, env, &[]) {
        (Outcome::Exit(code), page) => (code, page.out, page.err),
        (Outcome::Serve(_), _) => panic!("{line}: it serves"),
    }
}

#[test]
fn the_old_command_line_needs_no_file() {
    let line = "--model /models/m --pre 10.0.0.1:8100 h:8101 --dec d:1 d:1 --generator_on_p_node \
                --roundrobin --log-level info --port 9 --disaggregated-mode nixl";
    let config = served("xpyd", line, &[]);
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["10.0.0.1:8100", "h:8101"]
    );
    assert_eq!(addresses(&config, Role::Decode), ["d:1", "d:1"]);
    assert_eq!((config.model.as_str(), config.port), ("/models/m", 9));
    assert_eq!(config.first_token_source, FirstTokenSource::Prefill);
    assert_eq!(config.scheduling.prefill, "round_robin");
    assert_eq!(
        (config.log_level, config.surface),
        (LogLevel::Info, Surface::Xpyd)
    );
    assert_eq!(config.handshake, "nixl");
    let (code, _, err) = ended("xpyd", "--model m --prefill p:1", &[]);
    assert_eq!(code, 1);
    assert!(err.starts_with("xpyd: failed to load config: "), "{err}");
    assert!(
        err.contains("Please specify at least one decode node."),
        "{err}"
    );
}

#[test]
fn what_is_typed_wins_over_the_file_even_if_it_is_the_default() {
    let folder = Folder::new("wins");
    let text = "model: m\nport: 9000\nlog_level: debug\nscheduling: cache_aware\n\
                disaggregated_mode: nixl\nfirst_token_source: prefill\n\
                prefill: [p:1]\ndecode: [d:1]\n";
    let file = folder.file("x.yaml", text);
    let flags = "--port 8000 --log-level warning --roundrobin --disaggregated-mode direct \
                 --first-token-source decode --decode x:1";
    let config = served("xpyd", &format!("proxy --config {file} {flags}"), &[]);
    assert_eq!((config.port, config.log_level), (8000, LogLevel::Warning));
    assert_eq!(config.scheduling.decode, "round_robin");
    assert_eq!(config.handshake, "sequential");
    assert_eq!(config.first_token_source, FirstTokenSource::Decode);
    assert_eq!(addresses(&config, Role::Decode), ["x:1"]);
    // The variable counts where no file is named, and only there.
    let other = folder.file(
        "other.yaml",
        "model: other\ndecode: [d:1]\nprefill: [p:1]\n",
    );
    let env = [("XPYD_CONFIG", other.as_str())];
    assert_eq!(served("xpyd", "", &env).model, "other");
    assert_eq!(served("xpyd", &format!("-c {file}"), &env).model, "m");
    let (code, _, err) = ended("xpyd", "--config /nowhere.yaml", &env);
    assert_eq!(code, 1);
    assert_eq!(
        err,
        "xpyd: failed to load config: Config file not found: /nowhere.yaml\n"
    );
}

#[test]
fn wrong_flags_are_usage_errors() {
    for (line, why) in [
        ("--force", "--force can only be used with --init-config"),
        (
            "--port 0",
            "argument --port: port must be between 1 and 65535",
        ),
        ("--port x", "argument --port: port must be an integer"),
        ("--nope", "unrecognized arguments: --nope"),
        (
            "--disaggregated-mode rdma",
            "argument --disaggregated-mode: invalid choice: 'rdma'",
        ),
        ("--config", "argument --config/-c: expected one argument"),
        (
            "fix-config",
            "the following arguments are required: config_path",
        ),
    ] {
        let (code, out, err) = ended("xpyd", line, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{line}");
        assert!(
            err.starts_with("usage: xpyd") && err.contains(why),
            "{line}: {err}"
        );
    }
    for line in ["--version", "-V", "proxy --version"] {
        let (code, out, _) = ended("xpyd", line, &[]);
        let version = concat!("xpyd 1.8.0 (pdrelay ", env!("CARGO_PKG_VERSION"), ")\n");
        assert_eq!((code, out.as_str()), (0, version));
    }
    let (code, out, _) = ended("xpyd", "--help", &[]);
    assert_eq!(code, 0);
    for flag in [
        "usage: xpyd [proxy] [-h]",
        "--init-config [PATH]",
        "--generator_on_p_node",
    ] {
        assert!(out.contains(flag), "{out}");
    }
}

#[test]
fn a_good_file_is_told_in_the_old_lines() {
    let folder = Folder::new("validate");
    for (text, page) in [
        (
            "model: m\nprefill: [p:1]\ndecode: [d:1, d:1]\n",
            "  topology: disaggregated\n  transfer: direct\n  model: m\n  prefill: 1 instances\n  \
             decode: 2 instances\n  port: 8000\n  log_level: warning\n",
        ),
        (
            "model: m\ndecode: [d:1]\nport: 7\n",
            "  topology: decode-only\n  model: m\n  prefill: 0 instances\n  decode: 1 instances\n  \
             port: 7\n  log_level: warning\n",
        ),
        (
            "models: [{name: b, prefill: [p:1], decode: [d:1]}, {name: a, aggregated: ['x:1']}]\n\
             disaggregated_mode: nixl\n",
            "  topology: disaggregated\n  transfer: nixl\n  models: a, b\n  aggregated: 1 instances\n  \
             prefill: 1 instances\n  decode: 1 instances\n  port: 8000\n  log_level: warning\n",
        ),
        (
            "instances: [{address: 'x:1', role: dual}]\n",
            "  topology: aggregated\n  models: auto-detected\n  aggregated: 1 instances\n  port: 8000\n  \
             log_level: warning\n",
        ),
    ] {
        let file = folder.file("x.yaml", text);
        let (code, out, _) = ended("xpyd", &format!("--validate-config {file} --port 5"), &[]);
        assert_eq!((code, out), (0, format!("Config is valid: {file}\n{page}")));
    }
    let file = folder.file("x.yaml", "prefill: [p:1]\ndecode: [d:1]\nport: 0\n");
    let (code, out, err) = ended("xpyd", &format!("--validate-config {file}"), &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(
        err,
        format!(
            "Config validation failed: {file}:1: model: Please specify a model name (required in \
             single-model mode). (write model: NAME, the name that clients use)\n\
             {file}:3: port: port must be between 1 and 65535, got 0\n"
        )
    );
}

#[test]
fn a_config_is_never_replaced_unasked() {
    let folder = Folder::new("init");
    let path = folder.path("deep/x.yaml");
    let (code, out, _) = ended("xpyd", &format!("--init-config {path}"), &[]);
    let asked = "Configure interactively? [y/N] (5s timeout): \n";
    assert_eq!(
        (code, out),
        (0, format!("{asked}Config template written to {path}\n"))
    );
    assert!(
        !served("xpyd", &format!("-c {path}"), &[])
            .instances
            .is_empty()
    );
    let (code, _, err) = ended("xpyd", &format!("--init-config {path}"), &[]);
    assert_eq!(code, 2);
    assert!(
        err.contains(&format!(
            "config already exists: {path}; use --force to overwrite"
        )),
        "{err}"
    );
    std::fs::write(&path, "").unwrap();
    assert_eq!(
        ended("xpyd", &format!("--force --init-config {path}"), &[]).0,
        0
    );
    assert!(
        !served("xpyd", &format!("-c {path}"), &[])
            .instances
            .is_empty()
    );
    let inside_a_file = format!("{path}/x.yaml");
    let (code, _, err) = ended("xpyd", &format!("--init-config {inside_a_file}"), &[]);
    assert_eq!(code, 1);
    assert!(err.starts_with("xpyd: failed to write config: "), "{err}");
}

#[test]
fn answers_become_a_config() {
    let folder = Folder::new("wizard");
    let path = folder.path("x.yaml");
    let line = format!("--init-config {path}");
    let answers = [
        "y",
        "ring",
        "",
        "my \"model\"",
        "nixl",
        "a:1,b:2",
        "c",
        "c:3 d:4",
        "0",
        "81",
        "",
        "roundrobin",
        "prefill",
        "n",
    ];
    let (_, page) = call("xpyd", &line, &[], &answers);
    assert!(
        page.out.ends_with(&format!("Config written to {path}\n")),
        "{}",
        page.out
    );
    let config = served("xpyd", &format!("-c {path}"), &[]);
    assert_eq!((config.model.as_str(), config.port), ("my \"model\"", 81));
    assert_eq!(addresses(&config, Role::Prefill), ["a:1", "b:2"]);
    assert_eq!(addresses(&config, Role::Decode), ["c:3", "d:4"]);
    assert_eq!(config.handshake, "nixl");
    assert_eq!(config.first_token_source, FirstTokenSource::Prefill);
    assert!(!config.health_check.enabled);
    // Nobody answers to the end: nothing is written.
    let path = folder.path("y.yaml");
    let (outcome, page) = call("xpyd", &format!("--init-config {path}"), &[], &["y", ""]);
    assert!(matches!(outcome, Outcome::Exit(1)) && page.err.contains("nothing is written"));
    assert!(!std::path::Path::new(&path).exists());
    let answers = ["y", "aggregated", "m", "a:1", "", "", "", ""];
    call("xpyd", &format!("--init-config {path}"), &[], &answers);
    assert_eq!(
        served("xpyd", &format!("-c {path}"), &[]).handshake,
        "aggregated"
    );
}

#[test]
fn plain_slips_are_repaired() {
    let folder = Folder::new("fix");
    let file = folder.file(
        "f.yaml",
        "model: \" m \"\nport: 8000\nscheduling: loadbalance\nprefill: [\"10.0.0.1\", \" 10.0.0.2:8100 \"]\n\
         decode: [localhost, \"10.0.0.3:8200\"]\n",
    );
    let (code, out, _) = ended("xpyd", &format!("fix-config {file}"), &[]);
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "✅ Fixed 5 issue(s):\n\
         \x20 - model: ' m ' → 'm' (model name whitespace trimmed)\n\
         \x20 - prefill[0]: '10.0.0.1' → '10.0.0.1:8000' (default port added)\n\
         \x20 - prefill[1]: ' 10.0.0.2:8100 ' → '10.0.0.2:8100' (extra whitespace trimmed)\n\
         \x20 - decode[0]: 'localhost' → 'localhost:8000' (default port added)\n\
         \x20 - scheduling: 'loadbalance' → 'loadbalanced' (scheduler typo corrected)\n\
         \n--- Fixed config ---\n\
         model: m\nport: 8000\nscheduling: loadbalanced\nprefill:\n- 10.0.0.1:8000\n- 10.0.0.2:8100\n\
         decode:\n- localhost:8000\n- 10.0.0.3:8200\n\n"
    );
    let (code, out, _) = ended("xpyd", &format!("fix-config {file} --write"), &[]);
    assert_eq!(code, 0);
    assert!(
        out.contains(&format!("Backup saved to: {file}.STAMP.bak\n")),
        "{out}"
    );
    assert!(
        std::fs::read_to_string(format!("{file}.STAMP.bak"))
            .unwrap()
            .contains("\" m \"")
    );
    assert_eq!(
        ended("xpyd", &format!("fix-config {file}"), &[]).1,
        "✅ No issues found.\n"
    );
}

#[test]
fn odd_models_are_shown_to_their_owner() {
    let folder = Folder::new("odd");
    let file = folder.file(
        "f.yaml",
        "scheduling: round_robin\nmodels:\n\
         - {name: ' a', prefill: ['10.0.0.1'], decode: ['10.0.0.2:1'], aggregated: [10.0.0.9], \
         scheduler: consistenthash}\n\
         - {name: b, prefill: ['10.0.0.1:8000','x:1','x:2','x:3'], decode: ['10.0.0.2:1']}\n\
         - {name: c, prefill: ['x:9']}\n",
    );
    let (code, out, _) = ended("xpyd", &format!("fix-config {file}"), &[]);
    assert_eq!(code, 0);
    for line in [
        "  - scheduling: 'round_robin' → 'roundrobin' (scheduler typo corrected)",
        "  - models[0].name: ' a' → 'a' (model name whitespace trimmed)",
        "  - models[0].aggregated[0]: '10.0.0.9' → '10.0.0.9:8000' (default port added)",
        "  - models[0].scheduler: 'consistenthash' → 'consistent_hash' (scheduler typo corrected)",
        "⚠️  5 issue(s) need your attention:",
        "  - model 'a': Model 'a' has both aggregated and prefill/decode instances. Consider converting \
         all to aggregated or all to prefill/decode.",
        "  - address '10.0.0.1:8000': Address '10.0.0.1:8000' is used by multiple models: ['a', 'b']. \
         Possible conflict.",
        "  - model 'b': Model 'b' has 4 prefill and 1 decode instances (ratio 4.0:1). Consider \
         rebalancing.",
        "  - model 'c': Model 'c' has 1 prefill but no decode instances. disaggregated mode requires \
         both.",
    ] {
        assert!(out.lines().any(|l| l == line), "{line}\n{out}");
    }
    let roles = folder.file(
        "r.yaml",
        "instances: [{address: 10.0.0.1, role: agregated}, {address: h, role: ' decod '}]\n",
    );
    let (_, out, _) = ended("xpyd", &format!("fix-config {roles}"), &[]);
    assert!(
        out.contains("instances[0].role: 'agregated' → 'aggregated' (role normalized)"),
        "{out}"
    );
    assert!(
        out.contains("instances[1].role: ' decod ' → 'decod' (extra whitespace trimmed)"),
        "{out}"
    );
    for (text, why) in [
        ("- a\n", "Error: YAML config must be a mapping.\n"),
        ("a: [\n", "Error: malformed YAML: "),
    ] {
        let (code, _, err) = ended(
            "xpyd",
            &format!("fix-config {}", folder.file("b.yaml", text)),
            &[],
        );
        assert_eq!(code, 1);
        assert!(err.starts_with(why), "{err}");
    }
    let (code, _, err) = ended("xpyd", "fix-config /nowhere.yaml", &[]);
    assert_eq!(
        (code, err.as_str()),
        (1, "Error: config file not found: /nowhere.yaml\n")
    );
}

const SIZES: &str = "-pn 2 -pt 8 -pd 2 -pw 8 --decode-nodes 1 -dt 2 -dd 4 -dw 8";
const MACHINES: [(&str, &str); 3] = [
    ("XPYD_PREFILL_IPS", "10.0.0.1 10.0.0.2 10.0.0.3"),
    ("XPYD_DECODE_IPS", "10.0.1.1"),
    ("model_path", "/models/m"),
];

#[test]
fn the_start_script_expands_its_machines() {
    let config = served("xpyd-start", SIZES, &MACHINES);
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["10.0.0.1:8100", "10.0.0.2:8100"]
    );
    assert_eq!(
        addresses(&config, Role::Decode),
        [
            "10.0.1.1:8200",
            "10.0.1.1:8201",
            "10.0.1.1:8202",
            "10.0.1.1:8203"
        ]
    );
    assert_eq!((config.port, config.model.as_str()), (8868, "/models/m"));
    let mut env = MACHINES.to_vec();
    env.extend([
        ("XPYD_DRY_RUN", "1"),
        ("XPYD_PROXY_PORT", "80"),
        ("XPYD_LOG", "/logs"),
    ]);
    let line = format!("{SIZES} --model n --decode-base-port 9000 -dn 1");
    let (code, out, _) = ended("xpyd-start", &line, &env);
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "Running: pdrelay xpyd --model n --prefill 10.0.0.1:8100 10.0.0.2:8100 --decode 10.0.1.1:9000 \
         10.0.1.1:9001 10.0.1.1:9002 10.0.1.1:9003 --port 80 2>&1 | tee /logs/ProxyServer_STAMP.log\n"
    );
}

#[test]
fn the_start_script_never_guesses() {
    for (line, skip, why) in [
        (
            "",
            "",
            "Missing required argument: prefill_nodes. Run with --help for usage.",
        ),
        (
            SIZES,
            "XPYD_PREFILL_IPS",
            "XPYD_PREFILL_IPS is not set: list the prefill machines",
        ),
        (
            SIZES,
            "XPYD_DECODE_IPS",
            "XPYD_DECODE_IPS is not set: list the decode machines",
        ),
        (
            SIZES,
            "model_path",
            "model path is not set. Use --model <path> or set model_path env var.",
        ),
        ("-m benchmark", "", "mode benchmark never worked"),
        ("-m fast", "", "Unsupported mode: fast"),
        ("--nope", "", "unrecognized arguments: --nope"),
    ] {
        let env: Vec<(&str, &str)> = MACHINES
            .into_iter()
            .filter(|(key, _)| *key != skip)
            .collect();
        let (code, _, err) = ended("xpyd-start", line, &env);
        assert_eq!(code, 1, "{line}");
        assert!(err.starts_with(&format!("ERROR: {why}")), "{line}: {err}");
    }
    for (more, why) in [
        (
            "-pn 9",
            "prefill nodes exceeds available IP list length (9 > 3)",
        ),
        ("-pt 3", "prefill tp_size must be a power of two, got 3"),
        (
            "-pd 4",
            "prefill topology invalid: tp_size(8) * dp_size(4) != nodes(2) * world_size_per_node(8)",
        ),
        (
            "-pt 0",
            "prefill tp_size must be a positive integer, got: 0",
        ),
        (
            "--prefill-base-port 99999",
            "prefill base port must be between 1 and 65535, got: 99999",
        ),
    ] {
        let (code, _, err) = ended("xpyd-start", &format!("{SIZES} {more}"), &MACHINES);
        assert_eq!(code, 1);
        assert!(err.starts_with(&format!("ERROR: {why}")), "{more}: {err}");
    }
}

#[test]
fn programs_are_known_by_what_they_are_called() {
    for (argv0, name) in [
        ("xpyd", "xpyd"),
        ("/usr/local/bin/xpyd", "xpyd"),
        ("xpyd.py", "xpyd"),
        ("core/MicroPDProxyServer.py", "xpyd"),
        ("MicroPDProxyServer", "xpyd"),
        ("./xpyd_start_proxy.sh", "xpyd-start"),
        ("xpyd_start_proxy", "xpyd-start"),
    ] {
        assert_eq!(
            legacy::by_argv0(argv0).map(|p| p.name),
            Some(name),
            "{argv0}"
        );
    }
    for argv0 in ["pdrelay", "/opt/xpyd/pdrelay", "xpyd-old", ""] {
        assert!(legacy::by_argv0(argv0).is_none(), "{argv0}");
    }
}

fn of_compare(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/compare");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The recorded answers of 1.0.0 and 1.8.0; `tools/compare/xpyd-configs.py` asks the originals themselves.
#[test]
fn answers_are_those_of_the_originals() {
    let folder = Folder::new("originals");
    let cases = of_compare("xpyd-configs.txt");
    let mut files = std::collections::HashMap::new();
    for part in cases.split("\n=== ").skip(1) {
        let (head, text) = part.split_once('\n').unwrap_or((part, ""));
        let name = head.split(' ').next().unwrap();
        let text = if text.is_empty() {
            String::new()
        } else {
            format!("{text}\n")
        };
        let file = folder.file(&format!("{name}.yaml"), &text);
        files.insert(
            name,
            ended("xpyd", &format!("--validate-config {file}"), &[]),
        );
    }
    let differences = of_compare("xpyd-differences.tsv");
    let is_listed = |version: &str, name: &str| {
        let row = format!("case\t{name}\t{version}\t");
        differences.lines().any(|line| line.starts_with(&row))
    };
    let mut seen = 0;
    let answers = of_compare("xpyd-answers.tsv");
    for line in answers.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [version, name, code, text] = fields.as_slice() else {
            panic!("{line}");
        };
        let (ours, out, err) = &files[name];
        seen += 1;
        if is_listed(version, name) {
            continue;
        }
        assert_eq!(ours.to_string(), **code, "{version} {name}: {err}");
        if *ours == 0 {
            let of_old = |l: &&str| *version != "1.0" || !l.starts_with("  t");
            let lines: Vec<&str> = out.lines().skip(1).filter(of_old).collect();
            assert_eq!(lines.join("|"), *text, "{version} {name}");
        } else {
            let first = err.lines().next().unwrap();
            assert!(
                first.contains(text),
                "{version} {name}: {text:?} is not in {first:?}"
            );
        }
    }
    assert!(seen >= 160 && files.len() >= 150, "{seen} {}", files.len());
}
