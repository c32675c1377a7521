//! `docs/xpyd/compatibility.md`: made of `compatibility.txt`, and each of its rows tried on the program.

use std::collections::BTreeSet;
use std::time::Duration;

use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::config::load::{self, Known, Overrides, Source};
use pdrelay::config::{Surface, legacy::xpyd, schema};
use pdrelay::server::surface::{self, Route};
use pdrelay::wire::head::Method;

use super::{cell, is_the_page, read, root};
use crate::support::{completion, engines, eventually, rig_with};

const SOURCE: &str = include_str!("compatibility.txt");

const INTRO: &str = "\
# xPyD-proxy 1.0 and 1.8: what is the same here

Every flag, YAML field, endpoint, metric family and environment variable of both versions, and what becomes of it under
`pdrelay xpyd`. *In* says which version has it. *Here*: `same`, `differs` (on purpose, with the reason), or `absent`.
Behaviour that belongs to no single row is at the end.

This page is generated from `tests/docs/compatibility.txt`, and a test tries every row on the program: flags on the parser,
fields on the schema, endpoints on the router, families on a running proxy's `/metrics`, variables in the sources.
[tools/compare](../../tools/compare) compares files and requests with the real programs.
";

#[derive(Debug)]
struct Entry {
    name: String,
    versions: String,
    status: String,
    note: String,
    shown: String,
}

#[derive(Debug)]
struct Part {
    kind: String,
    title: String,
    entries: Vec<Entry>,
}

fn parts() -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in SOURCE.lines().filter(|l| !l.trim().is_empty()) {
        if line.starts_with('#') {
            continue;
        }
        if let Some((kind, title)) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
            parts.push(Part {
                kind: kind.into(),
                title: title.into(),
                entries: vec![],
            });
            continue;
        }
        let part = parts.last_mut().expect("a section comes first");
        let cells: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        part.entries.push(Entry {
            name: cells[0].into(),
            versions: cells[1].into(),
            status: cells[2].into(),
            note: cells[3].into(),
            shown: cells[4].into(),
        });
    }
    parts
}

fn of(kind: &str) -> Vec<Entry> {
    let parts = parts().into_iter().filter(|p| p.kind == kind);
    let entries: Vec<Entry> = parts.flat_map(|p| p.entries).collect();
    assert!(!entries.is_empty(), "no [{kind}]");
    entries
}

#[test]
fn the_page_is_the_table() {
    let mut text = INTRO.to_owned();
    for part in parts() {
        text += &format!("\n## {}\n\n", part.title);
        let held = part.kind == "behaviour";
        let more = if held {
            (" held by |", "---|")
        } else {
            ("", "")
        };
        text += &format!(
            "| what | in | here | difference and reason, or remark |{}\n",
            more.0
        );
        text += &format!("|---|---|---|---|{}\n", more.1);
        for e in part.entries {
            let name = if held { e.name.clone() } else { code(&e.name) };
            let (versions, status, note) = (&e.versions, &e.status, cell(&e.note));
            text += &format!("| {name} | {versions} | {status} | {note} |");
            if held {
                let (file, path) = test_file(&e.shown);
                text += &format!(" [{file}](../../{path}) |");
            }
            text += "\n";
        }
    }
    is_the_page("docs/xpyd/compatibility.md", &text);
}

/// A test's name, and where it is.
fn test_file(name: &str) -> (&str, String) {
    let path = match name.starts_with("tools/") {
        true => format!("{name}.rs"),
        false => format!("tests/{name}.rs"),
    };
    assert!(root().join(&path).exists(), "{path}");
    (name.rsplit('/').next().unwrap(), path)
}

/// The name as code, what stands in brackets behind it as words.
fn code(name: &str) -> String {
    match name.split_once(" (") {
        Some((name, more)) => format!("`{name}` ({more}"),
        None if name.contains(' ')
            && name.starts_with(char::is_lowercase)
            && !name.contains(':') =>
        {
            name.into()
        }
        None => format!("`{name}`"),
    }
}

#[test]
fn every_difference_has_its_reason() {
    let mut seen = BTreeSet::new();
    for part in parts() {
        for e in part.entries {
            let at = format!("{}: {}", part.title, e.name);
            assert!(
                ["same", "differs", "absent"].contains(&e.status.as_str()),
                "{at}"
            );
            assert!(
                ["1.0", "1.8", "1.0 1.8", "ours"].contains(&e.versions.as_str()),
                "{at}"
            );
            assert!(
                e.status == "same" || e.note.len() > 10,
                "{at} gives no reason"
            );
            assert!(seen.insert(at.clone()), "{at} is there twice");
        }
    }
}

struct Silent(String);

impl Terminal for Silent {
    fn out(&mut self, text: &str) {
        self.0 += text;
    }
    fn err(&mut self, text: &str) {
        self.0 += text;
    }
    fn ask(&mut self, _: &str, _: Option<Duration>) -> Option<String> {
        None
    }
    fn stamp(&self) -> String {
        "20260101_000000".into()
    }
}

fn known<T>(then: impl FnOnce(&Known) -> T) -> T {
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    then(&Known {
        handshakes: &handshakes,
        policies: &policies,
    })
}

/// How it ends, and what it said.
fn call(program: &str, args: &[String], env: &[(&str, &str)]) -> (String, String) {
    let mut terminal = Silent(String::new());
    let env = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let outcome = known(|known| {
        let program = legacy::by_name(program).unwrap();
        (program.run)(&mut Call {
            args,
            known,
            env: &env,
            terminal: &mut terminal,
        })
    });
    let end = match outcome {
        Outcome::Exit(code) => code.to_string(),
        Outcome::Serve(_) => "serve".into(),
    };
    (end, terminal.0)
}

/// A folder that is gone with the test.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn flags_are_taken() {
    let folder = std::env::temp_dir().join(format!("pdrelay-table-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let folder = Folder(folder);
    let file = folder.0.join("xpyd.yaml");
    std::fs::copy(root().join("configs/xpyd.yaml"), &file).unwrap();
    let new = folder.0.join("new.yaml");
    let mut listed = String::new();
    for e in of("flags") {
        let (expected, args) = e.shown.split_once(' ').expect("how it ends, and arguments");
        let args: Vec<String> = args
            .split(' ')
            .map(|word| {
                word.replace("{file}", file.to_str().unwrap())
                    .replace("{new}", new.to_str().unwrap())
            })
            .collect();
        let (end, said) = call("xpyd", &args, &[]);
        assert_eq!(end, expected, "{}: {args:?}: {said}", e.name);
        listed += &format!("{} ", e.name);
    }
    assert!(new.exists(), "--init-config writes");
    all_flags_are_listed("xpyd", &["--help"], &listed);
    all_flags_are_listed("xpyd", &["fix-config", "--help"], &listed);
}

#[test]
fn script_flags_are_taken() {
    let env = [
        ("XPYD_PREFILL_IPS", "127.0.0.1 127.0.0.2"),
        ("XPYD_DECODE_IPS", "127.0.0.3"),
        ("XPYD_DRY_RUN", "1"),
    ];
    let whole = "-pn 1 -pt 8 -pd 1 -pw 8 -dn 1 -dt 1 -dd 8 -dw 8 --model m";
    let mut listed = String::new();
    for e in of("script") {
        let (expected, more) = e.shown.split_once(' ').expect("how it ends, and arguments");
        let args: Vec<String> = format!("{whole} {more}")
            .split(' ')
            .map(Into::into)
            .collect();
        let (end, said) = call("xpyd-start", &args, &env);
        assert_eq!(end, expected, "{}: {args:?}: {said}", e.name);
        listed += &format!("{} ", e.name);
    }
    let (end, _) = call("xpyd-start", &["--no-such-flag".into()], &env);
    assert_eq!(end, "1");
    all_flags_are_listed("xpyd-start", &["--help"], &format!("{listed} --help -h"));
}

/// Nothing in the help that the table does not have.
fn all_flags_are_listed(program: &str, args: &[&str], listed: &str) {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let (_, help) = call(program, &args, &[]);
    let known: BTreeSet<&str> = listed.split([' ', ',']).collect();
    let lines = help.lines().filter(|l| l.starts_with("  -"));
    let mut count = 0;
    for flag in lines
        .flat_map(|l| l.split([' ', ',']))
        .filter(|w| w.starts_with('-'))
    {
        assert!(
            known.contains(flag),
            "{program}: {flag} is not in the table"
        );
        count += 1;
    }
    assert!(count > 3, "{help}");
}

const BASE: &str = "model: m\nprefill: [127.0.0.1:1]\ndecode: [127.0.0.1:2]\n";

/// What a file means, as far as it is good.
fn meaning(text: &str) -> Result<String, String> {
    let source = Source {
        text,
        label: "f",
        file: None,
    };
    let none = |_: &str| None;
    let load = |known: &Known| {
        load::load_over(
            xpyd::defaults(),
            Some(source),
            &Overrides::default(),
            known,
            &none,
        )
    };
    match known(load) {
        Ok(loaded) => {
            let config = &loaded.config;
            // Secrets are not printed, but whether there are any.
            let keys = (
                &config.admin_api_key.is_some(),
                &config.openai_api_key.is_some(),
            );
            Ok(format!("{config:?} {keys:?}"))
        }
        Err(problems) => Err(problems.to_string()),
    }
}

#[test]
fn fields_are_read_and_mean_something() {
    let base = meaning(BASE).unwrap();
    let mut listed = String::new();
    for e in of("fields") {
        let shown = e.shown.replace("\\n", "\n");
        let (expected, lines) = match shown.split_once(' ') {
            Some((word @ ("none" | "bad"), lines)) => (word, lines.to_owned()),
            _ => ("", shown.clone()),
        };
        let text = match lines.strip_prefix('=') {
            Some(whole) => whole.to_owned(),
            None => format!("{BASE}{lines}\n"),
        };
        let got = meaning(&text);
        match expected {
            "bad" => assert!(got.is_err(), "{}: {text}", e.name),
            "none" => assert_eq!(got.as_ref(), Ok(&base), "{}: {text}", e.name),
            _ => {
                let got = got.unwrap_or_else(|why| panic!("{}: {why}", e.name));
                assert!(got != base, "{} changes nothing: {text}", e.name);
            }
        }
        let key = e.name.split([':', ',']).next().unwrap();
        let last = key.rsplit('.').next().unwrap();
        if !key.contains(' ') {
            assert!(
                text.contains(last),
                "{} is not in its example: {text}",
                e.name
            );
        }
        listed += &format!("\n{key}\n");
    }
    // The schema has no key of the originals that the table lacks: what is left is our own.
    const OURS: [&str; 30] = [
        "encode",
        "epd",
        "health_check.failure_threshold",
        "lmcache",
        "multiturn",
        "sidecar",
        "tls",
        "upstream_tls",
        "aggregated",
        "handshake",
        "surface",
        "limits",
        "timeouts",
        "prefill_failure",
        "shards",
        "cpus",
        "numa",
        "steer_by_cpu",
        "batch_window",
        "busy_poll",
        "forward",
        "retry.initial_backoff",
        "retry.max_backoff",
        "health_check.interval",
        "health_check.timeout",
        "health_check.wedge_after",
        "health_check.path",
        "circuit_breaker.ejection_initial",
        "circuit_breaker.ejection_max",
        "circuit_breaker.window",
    ];
    for key in schema::keys() {
        let ours = OURS.contains(&key.as_str())
            || [
                "epd.",
                "limits.",
                "timeouts.",
                "scheduling.",
                "lmcache.",
                "multiturn.",
                "sidecar.",
                "tls.",
                "upstream_tls.",
            ]
            .iter()
            .any(|s| key.starts_with(s))
            || (key.starts_with("startup.") && !key.ends_with("_seconds"));
        let with_parts = ["instances", "models"].contains(&key.as_str());
        let there = listed.contains(&format!("\n{key}\n"))
            || with_parts && listed.contains(&format!("\n{key}."));
        assert!(there != ours, "{key}: in the table: {there}, ours: {ours}");
    }
}

#[test]
fn endpoints_are_where_they_were() {
    let mut listed = BTreeSet::new();
    for e in of("endpoints") {
        let (method, path) = e.shown.split_once(' ').expect("a method and a path");
        let method = match method {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            other => panic!("{other}"),
        };
        let route = surface::xpyd::route(method, path, &[]);
        let nothing = matches!(route, Route::NotFound | Route::MethodNotAllowed(_));
        assert_eq!(nothing, e.status == "absent", "{}: {route:?}", e.name);
        listed.insert(path.to_owned());
    }
    for path in surface::xpyd::paths() {
        assert!(listed.contains(path), "{path} is not in the table");
    }
}

#[test]
fn families_are_on_the_page() {
    // Ticks, so that a stream has more than one chunk.
    let mut paced = engines(1, 1);
    paced[1].timing.decode_tick = Duration::from_millis(5);
    let rig = rig_with("sequential", paced, |config| {
        config.surface = Surface::Xpyd;
        config.model = crate::support::MODEL.into();
        config.startup.probe_interval = Duration::from_millis(20);
    });
    let body = completion("a", r#","stream":true,"max_tokens":4"#);
    eventually("a request is served", || {
        rig.post("/v1/completions", &body).status == 200
    });
    rig.sim.set_fault(1, Some(pdsim::Fault::Status(500)));
    rig.post("/v1/completions", &body);
    let created = "proxy_instance_errors_created{";
    eventually("it is counted", || {
        rig.get("/metrics").text().contains(created)
    });
    let page = rig.get("/metrics").text();
    let mut listed = BTreeSet::new();
    for e in of("metrics") {
        let kind = &e.shown;
        if let Some(ending) = e.name.strip_prefix('*') {
            assert!(page.contains(&format!("{ending} {kind}")), "{}", e.name);
            continue;
        }
        assert!(
            page.contains(&format!("# TYPE {} {kind}\n", e.name)),
            "{}",
            e.name
        );
        let sample = match kind.as_str() {
            "histogram" => format!("\n{}_bucket{{", e.name),
            _ => format!("\n{}", e.name),
        };
        assert!(page.contains(&sample), "{} has no sample", e.name);
        listed.insert(e.name);
    }
    let types = page.lines().filter_map(|l| l.strip_prefix("# TYPE proxy_"));
    for line in types.filter(|l| !l.ends_with("_created gauge")) {
        let name = format!("proxy_{}", line.split(' ').next().unwrap());
        assert!(listed.contains(&name), "{name} is not in the table");
    }
}

#[test]
fn variables_are_read() {
    let mut listed = BTreeSet::new();
    for e in of("variables") {
        match e.shown.as_str() {
            "none" => assert_eq!(e.status, "absent", "{}", e.name),
            file => {
                let text = read(file);
                assert!(
                    text.contains(&format!("\"{}\"", e.name)) || role(&text, &e.name),
                    "{}",
                    e.name
                );
                listed.insert(e.name);
            }
        }
    }
    // And whatever is read there is listed.
    for file in [
        "src/config/load.rs",
        "src/config/legacy/xpyd/start.rs",
        "tools/sim/src/dummy/args.rs",
    ] {
        let text = read(file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in code.split('"') {
            let name = word.len() > 5
                && word.contains('_')
                && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            assert!(
                !name || listed.contains(word),
                "{file}: {word} is not in the table"
            );
        }
    }
}

/// `XPYD_PREFILL_IPS` and its sister are put together from the role.
fn role(text: &str, name: &str) -> bool {
    let made = name.replace("PREFILL", "{}").replace("DECODE", "{}");
    name.starts_with("XPYD_") && text.contains(&format!("\"{made}\""))
}
