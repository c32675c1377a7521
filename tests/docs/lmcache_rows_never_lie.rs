//! `docs/lmcache/compatibility.md`: made of `lmcache.txt`, and each of its rows tried on the program.

use std::collections::BTreeSet;
use std::time::Duration;

use pdrelay::config::Known;
use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::server::surface::{self, Route};
use pdrelay::wire::head::Method;

use super::{cell, is_the_page, read, root};

const SOURCE: &str = include_str!("lmcache.txt");

const INTRO: &str = "\
# LMCache's disagg_proxy_server: what is the same here

Every flag, variable, path and field, and what becomes of it under `pdrelay lmcache`. *In*: the current family, older proxies,
LMCache-Ascend's derivative, or ours alone. *Here*: `same`, `differs` (on purpose, with the reason), or `absent`.

This page is generated from `tests/docs/lmcache.txt`, and a test tries every row.
";

struct Row {
    kind: String,
    title: String,
    name: String,
    versions: String,
    status: String,
    note: String,
    shown: String,
}

fn rows() -> Vec<Row> {
    let (mut kind, mut title) = (String::new(), String::new());
    let mut rows = Vec::new();
    for line in SOURCE
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Some(head) = line.strip_prefix('[') {
            let (of, words) = head.split_once("] ").expect("a kind and a title");
            (kind, title) = (of.into(), words.into());
            continue;
        }
        let cells: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let cells: Vec<&str> = match cells.as_slice() {
            [a, b, c, rest] => {
                let (note, shown) = rest.split_once("| ").unwrap_or_else(|| panic!("{line}"));
                vec![a, b, c, note.trim(), shown]
            }
            _ => cells,
        };
        assert_eq!(cells.len(), 5, "{line}");
        rows.push(Row {
            kind: kind.clone(),
            title: title.clone(),
            name: cells[0].into(),
            versions: cells[1].into(),
            status: cells[2].into(),
            note: cells[3].into(),
            shown: cells[4].into(),
        });
    }
    rows
}

fn of(kind: &str) -> Vec<Row> {
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.kind == kind).collect();
    assert!(!rows.is_empty(), "no [{kind}]");
    rows
}

#[test]
fn the_page_is_the_table() {
    let mut text = INTRO.to_owned();
    let mut title = String::new();
    for row in rows() {
        if row.title != title {
            title.clone_from(&row.title);
            text += &format!(
                "\n## {title}\n\n| what | in | here | difference and reason, or remark |\n|---|---|---|---|\n"
            );
        }
        let name = match row.kind.as_str() {
            "behaviour" => row.name.clone(),
            _ => format!("`{}`", row.name),
        };
        text += &format!(
            "| {name} | {} | {} | {} |\n",
            row.versions,
            row.status,
            cell(&row.note)
        );
    }
    is_the_page("docs/lmcache/compatibility.md", &text);
}

#[test]
fn every_difference_of_lmcache_has_its_reason() {
    let mut seen = BTreeSet::new();
    for row in rows() {
        let at = format!("{}: {}", row.title, row.name);
        assert!(
            ["same", "differs", "absent"].contains(&row.status.as_str()),
            "{at}"
        );
        let known = ["current", "older", "current older", "ascend", "ours"];
        assert!(known.contains(&row.versions.as_str()), "{at}");
        assert!(
            row.status == "same" || row.note.len() > 10,
            "{at} gives no reason"
        );
        assert!(seen.insert(at.clone()), "{at} is there twice");
    }
}

struct Said(String);

impl Terminal for Said {
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
        String::new()
    }
}

fn call(args: &str) -> (String, String) {
    let args: Vec<String> = args.split_whitespace().map(Into::into).collect();
    let mut terminal = Said(String::new());
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let program = legacy::by_name("lmcache").unwrap();
    let outcome = (program.run)(&mut Call {
        args: &args,
        known: &Known {
            handshakes: &handshakes,
            policies: &policies,
        },
        env: &|_| None,
        terminal: &mut terminal,
    });
    let end = match outcome {
        Outcome::Exit(code) => code.to_string(),
        Outcome::Serve(_) => "serve".into(),
    };
    (end, terminal.0)
}

#[test]
fn flags_of_lmcache_are_taken() {
    let mut listed = String::new();
    for row in of("flags") {
        let (expected, args) = row
            .shown
            .split_once(' ')
            .expect("how it ends, and arguments");
        let (end, said) = call(args);
        assert_eq!(end, expected, "{}: {said}", row.name);
        listed += &format!("{} ", row.name);
    }
    let (_, help) = call("--help");
    let known: BTreeSet<&str> = listed.split([' ', ',']).collect();
    let lines = help.lines().filter(|l| l.starts_with("  -"));
    let flags = lines
        .flat_map(|l| l.split([' ', ',']))
        .filter(|w| w.starts_with('-'));
    for flag in flags {
        assert!(known.contains(flag), "{flag} is not in the table");
    }
}

#[test]
fn paths_of_lmcache_are_where_they_were() {
    let mut listed = BTreeSet::new();
    for row in of("endpoints") {
        let (method, path) = row.shown.split_once(' ').expect("a method and a path");
        let method = match method {
            "GET" => Method::Get,
            _ => Method::Post,
        };
        let route = surface::lmcache::route(method, path, &[]);
        let nothing = matches!(route, Route::NotFound | Route::MethodNotAllowed(_));
        assert_eq!(nothing, row.status == "absent", "{}: {route:?}", row.name);
        listed.insert(path.to_owned());
    }
    for path in surface::lmcache::paths() {
        assert!(listed.contains(path), "{path} is not in the table");
    }
}

#[test]
fn variables_and_fields_of_lmcache_are_in_the_sources() {
    for row in of("variables") {
        assert!(
            read(&row.shown).contains(&format!("\"{}\"", row.name)),
            "{}",
            row.name
        );
    }
    for row in of("fields") {
        let (file, word) = row.shown.split_once(' ').expect("a file and a word");
        assert!(
            read(file).contains(word),
            "{}: {file} has no {word}",
            row.name
        );
    }
    for row in of("behaviour") {
        let path = root().join("tests").join(&row.shown).with_extension("rs");
        assert!(path.exists(), "{path:?}");
    }
}
