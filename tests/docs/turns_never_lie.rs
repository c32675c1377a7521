//! `docs/multiturn/compatibility.md`: made of `multiturn.txt`, and each of its rows tried on the program.

use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::config::{Known, Role, Surface};
use pdrelay::{handshake, policy};

use super::{cell, is_the_page, read, root};
use crate::multiturn::talk_rig;
use crate::support::completion;

const SOURCE: &str = include_str!("multiturn.txt");

const INTRO: &str = "\
# vLLM's disagg_proxy_multiturn.py: what is the same here

Every flag, path and variable of it, and what becomes of it under `pdrelay multiturn`. *Here*: `same`, `differs` (on purpose,
with the reason), or `added`. [The guide](../multiturn.md) says how to come from it.

This page is generated from `tests/docs/multiturn.txt`, and a test tries every row on the program.
";

struct Entry {
    kind: String,
    title: String,
    cells: [String; 4],
}

fn entries() -> Vec<Entry> {
    let (mut kind, mut title) = (String::new(), String::new());
    let mut all = Vec::new();
    for line in SOURCE
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'))
    {
        if let Some((k, t)) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
            (kind, title) = (k.into(), t.into());
            continue;
        }
        let cells: Vec<String> = line.splitn(4, '|').map(|c| c.trim().to_owned()).collect();
        let cells: [String; 4] = cells.try_into().unwrap_or_else(|_| panic!("{line}"));
        assert!(["same", "differs", "added"].contains(&&*cells[1]), "{line}");
        assert!(
            cells[1] == "same" || !cells[2].is_empty(),
            "no reason: {line}"
        );
        all.push(Entry {
            kind: kind.clone(),
            title: title.clone(),
            cells,
        });
    }
    all
}

fn of(kind: &str) -> Vec<[String; 4]> {
    let found = entries().into_iter().filter(|e| e.kind == kind);
    let found: Vec<_> = found.map(|e| e.cells).collect();
    assert!(!found.is_empty(), "no [{kind}]");
    found
}

#[test]
fn the_page_is_the_table() {
    let mut text = INTRO.to_owned();
    let mut title = String::new();
    for entry in entries() {
        let held = entry.kind == "behaviour";
        if entry.title != title {
            title.clone_from(&entry.title);
            let (more, line) = if held {
                (" held by |", "---|")
            } else {
                ("", "")
            };
            text += &format!(
                "\n## {title}\n\n| what | here | difference and reason, or remark |{more}\n"
            );
            text += &format!("|---|---|---|{line}\n");
        }
        let [name, status, note, shown] = &entry.cells;
        let code =
            name.starts_with('-') || name.starts_with(char::is_uppercase) || name.contains('/');
        let name = if code && !held {
            format!("`{name}`")
        } else {
            name.clone()
        };
        text += &format!("| {name} | {status} | {} |", cell(note));
        if held {
            let file = format!("tests/{shown}.rs");
            assert!(root().join(&file).exists(), "{file}");
            let short = shown.rsplit('/').next().unwrap();
            text += &format!(" [{short}](../../{file}) |");
        }
        text += "\n";
    }
    is_the_page("docs/multiturn/compatibility.md", &text);
}

struct Silent(String);

impl Terminal for Silent {
    fn out(&mut self, text: &str) {
        self.0 += text;
    }
    fn err(&mut self, text: &str) {
        self.0 += text;
    }
    fn ask(&mut self, _: &str, _: Option<std::time::Duration>) -> Option<String> {
        None
    }
    fn stamp(&self) -> String {
        String::new()
    }
}

fn call(args: &[String]) -> (Outcome, String) {
    let mut terminal = Silent(String::new());
    let (handshakes, policies) = (handshake::names(), policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let program = legacy::by_argv0("/opt/disagg_proxy_multiturn.py").expect("it is known");
    let outcome = (program.run)(&mut Call {
        args,
        known: &known,
        env: &|_| None,
        terminal: &mut terminal,
    });
    (outcome, terminal.0)
}

#[test]
fn flags_are_taken() {
    let mut listed = String::new();
    for [name, _, _, shown] in of("flags") {
        listed += &format!("{name}, ");
        let words: Vec<String> = shown.split(' ').map(str::to_owned).collect();
        let serves = words[0] == "serve";
        let (expected, args) = words.split_at(if serves { 4 } else { 1 });
        let (outcome, said) = call(args);
        match outcome {
            Outcome::Exit(code) => assert_eq!(code.to_string(), expected[0], "{name}: {said}"),
            Outcome::Serve(serve) => {
                assert!(serves, "{name}");
                let config = serve.loaded.config;
                let of = |role| {
                    let all = config.instances.iter().filter(|i| i.role == role);
                    all.map(|i| i.address.to_string())
                        .collect::<Vec<_>>()
                        .join(",")
                };
                let listens = format!("{}:{}", config.host, config.port);
                let found = [listens, of(Role::Prefill), of(Role::Decode)];
                assert_eq!(found, expected[1..], "{name}");
                assert_eq!(config.handshake, "multiturn");
                assert_eq!(config.surface, Surface::Multiturn);
                assert_eq!(config.scheduling.prefill, "round_robin");
            }
        }
    }
    let (_, help) = call(&["--help".into()]);
    let known: Vec<&str> = listed.split(", ").collect();
    let flags = help.lines().filter(|l| l.starts_with("  -"));
    for flag in flags
        .flat_map(|l| l.split([' ', ',']))
        .filter(|w| w.starts_with('-'))
    {
        assert!(known.contains(&flag), "{flag} is not in the table");
    }
    let (_, said) = call(&["--prefiller-ports".into(), "8x".into()]);
    let words =
        "multiturn: error: argument --prefiller-port/--prefiller-ports: invalid int value: '8x'\n";
    assert!(said.ends_with(words), "{said}");
    let (_, said) = call(&["--redis".into(), "redis://u:hush@h:x".into()]);
    assert!(said.contains("--redis") && !said.contains("hush"), "{said}");
}

#[test]
fn paths_answer() {
    let rig = talk_rig(|config| config.surface = Surface::Multiturn);
    crate::support::eventually("it is ready", || rig.get("/ready").status == 200);
    for [name, _, _, shown] in of("endpoints") {
        let [method, path, status] = shown.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let response = match method {
            "GET" => rig.get(path),
            _ if path.contains("chat") => rig.post(path, &crate::support::chat("x", "")),
            _ => rig.post(path, &completion("x", "")),
        };
        assert_eq!(
            response.status.to_string(),
            status,
            "{name}: {}",
            response.text()
        );
    }
    let health = rig.get("/health").text();
    assert_eq!(
        health,
        r#"{"status":"ok","cached_conversations":0,"evicted_stale":0}"#
    );
    let refused = rig.get("/v1/completions");
    assert_eq!(refused.header("allow"), Some("POST"));
    assert!(refused.json()["error"]["message"].is_string());
}

#[test]
fn variables_are_read() {
    let sources = read("src/config/load.rs");
    for [name, ..] in of("variables") {
        assert!(sources.contains(&format!("\"{name}\"")), "{name}");
    }
}
