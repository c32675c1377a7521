//! `docs/epd/compatibility.md`: made of `epd.txt`, and each of its rows tried on the program.

use std::collections::BTreeSet;
use std::time::Duration;

use pdrelay::config::Known;
use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::server::surface::{Route, epd};
use pdrelay::wire::head::Method;

use super::{cell, is_the_page, read, root};

const SOURCE: &str = include_str!("epd.txt");

const INTRO: &str = "\
# disagg_epd_proxy: what is the same here

Every flag, variable, path, head field and body member of vLLM's EPD proxy, in its three versions, and what becomes of it under
`pdrelay epd`. *In* says which version has it. *Here*: `same`, `differs` (on purpose, with the reason), or `absent`.

This page is generated from `tests/docs/epd.txt`, and a test tries every row on the program. How to begin: [epd.md](../epd.md).
";

struct Row {
    kind: &'static str,
    name: &'static str,
    versions: &'static str,
    status: &'static str,
    note: &'static str,
    shown: &'static str,
}

/// All rows, and the titles of the sections by their kind.
fn table() -> (Vec<Row>, Vec<(&'static str, &'static str)>) {
    let (mut rows, mut titles): (Vec<Row>, Vec<_>) = (Vec::new(), Vec::new());
    let lines = SOURCE
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    for line in lines {
        if let Some((kind, title)) = line.strip_prefix('[').and_then(|l| l.split_once("] ")) {
            titles.push((kind, title));
            continue;
        }
        let cells: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
        let [name, versions, status, note, shown] = cells[..] else {
            panic!("{line}");
        };
        let kind = titles.last().expect("a section comes first").0;
        rows.push(Row {
            kind,
            name,
            versions,
            status,
            note,
            shown,
        });
    }
    (rows, titles)
}

fn of(kind: &str) -> Vec<Row> {
    let (rows, _) = table();
    let rows: Vec<Row> = rows.into_iter().filter(|row| row.kind == kind).collect();
    assert!(!rows.is_empty(), "no [{kind}]");
    rows
}

#[test]
fn the_page_is_the_table() {
    let mut text = INTRO.to_owned();
    let (rows, titles) = table();
    for (kind, title) in titles {
        text += &format!(
            "\n## {title}\n\n| what | in | here | difference and reason, or remark | held by |\n"
        );
        text += "|---|---|---|---|---|\n";
        for row in rows.iter().filter(|row| row.kind == kind) {
            let name = match row.name.split_once(" (") {
                _ if kind == "behaviour" || row.name.starts_with("others") => row.name.to_owned(),
                _ if row.name.ends_with("flags") || row.name.starts_with("uuid of") => {
                    row.name.to_owned()
                }
                Some((name, more)) => format!("`{name}` ({more}"),
                None => format!("`{}`", row.name),
            };
            let held = match kind {
                "headers" | "fields" | "behaviour" => {
                    let file = format!("tests/{}.rs", row.shown);
                    assert!(root().join(&file).exists(), "{file}");
                    format!("[{}](../../{file})", row.shown)
                }
                _ => String::new(),
            };
            let note = cell(row.note);
            text += &format!(
                "| {name} | {} | {} | {note} | {held} |\n",
                row.versions, row.status
            );
        }
    }
    is_the_page("docs/epd/compatibility.md", &text);
}

#[test]
fn every_difference_has_its_reason() {
    let mut seen = BTreeSet::new();
    for row in table().0 {
        assert!(
            ["same", "differs", "absent"].contains(&row.status),
            "{}",
            row.name
        );
        let known = |v: &str| ["v1", "v2", "v3", "ours"].contains(&v);
        assert!(row.versions.split(' ').all(known), "{}", row.name);
        assert!(
            row.status == "same" || row.note.len() > 10 || row.note == "as above",
            "{}",
            row.name
        );
        assert!(
            seen.insert((row.kind, row.name)),
            "{} is there twice",
            row.name
        );
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
        String::new()
    }
}

/// How it ends (and what it would serve), and what it said.
fn call(line: &str, env: &[(&str, &str)]) -> (String, String, String) {
    let args: Vec<String> = line
        .split(' ')
        .filter(|w| !w.is_empty())
        .map(Into::into)
        .collect();
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let env = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let mut terminal = Silent(String::new());
    let outcome = (legacy::by_name("epd").unwrap().run)(&mut Call {
        args: &args,
        known: &known,
        env: &env,
        terminal: &mut terminal,
    });
    let (end, config) = match outcome {
        Outcome::Exit(code) => (code.to_string(), String::new()),
        Outcome::Serve(serve) => ("serve".into(), format!("{:?}", serve.loaded.config)),
    };
    (end, config, terminal.0)
}

const WHOLE: &str = "--encode-servers-urls http://e:1 --decode-servers-urls http://d:1";
const KEY: &[(&str, &str)] = &[("ADMIN_API_KEY", "k")];

#[test]
fn flags_are_taken_and_mean_something() {
    let plain = call(WHOLE, KEY).1;
    let dynamic = call("--dynamic-registration", KEY).1;
    let mut listed = String::new();
    for row in of("flags") {
        let (expected, args) = row.shown.split_once(' ').unwrap();
        let (line, before) = match args.strip_prefix('=') {
            Some(line) => (line.to_owned(), &dynamic),
            None => (format!("{WHOLE} {args}"), &plain),
        };
        let (end, config, said) = call(&line, KEY);
        assert_eq!(end, expected, "{line}: {said}");
        // These have the usual value in the example, or it is the base itself.
        let usual = [
            "--prefill-servers-urls",
            "--ec-consumer-dp-size",
            "--dynamic-registration",
        ];
        if end == "serve" && !usual.contains(&row.name) {
            assert!(config != *before, "{line} changes nothing");
        }
        listed += &format!("{} ", row.name);
    }
    let (_, _, help) = call("--help", &[]);
    let known: BTreeSet<&str> = listed.split([' ', ',']).collect();
    let flags = help.lines().filter(|l| l.starts_with("  -"));
    let mut count = 0;
    for flag in flags
        .flat_map(|l| l.split([' ', ',']))
        .filter(|w| w.starts_with('-'))
    {
        assert!(known.contains(flag), "{flag} is not in the table");
        count += 1;
    }
    assert!(count > 15, "{help}");
}

#[test]
fn endpoints_are_where_they_were() {
    let mut listed = BTreeSet::new();
    for row in of("endpoints") {
        let (method, path) = row.shown.split_once(' ').unwrap();
        let method = match method {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            other => panic!("{other}"),
        };
        let route = epd::route(method, path, &[]);
        let nothing = matches!(route, Route::NotFound | Route::MethodNotAllowed(_));
        assert_eq!(nothing, row.status == "absent", "{}: {route:?}", row.name);
        listed.insert(path);
    }
    for path in epd::paths() {
        assert!(listed.contains(path), "{path} is not in the table");
    }
}

#[test]
fn variables_are_read() {
    let mut listed = BTreeSet::new();
    for row in of("variables") {
        assert!(
            read(row.shown).contains(&format!("\"{}\"", row.name)),
            "{}",
            row.name
        );
        listed.insert(row.name);
    }
    let text = read("src/config/legacy/epd/mod.rs");
    for word in text.split('"') {
        let name = word.len() > 5
            && word.contains('_')
            && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        assert!(!name || listed.contains(word), "{word} is not in the table");
    }
}

/// What a row says of bytes, the test that it names speaks of.
#[test]
fn bytes_are_held_by_the_tests_that_are_named() {
    for row in of("headers").iter().chain(&of("fields")) {
        let text = read(format!("tests/{}.rs", row.shown)).to_lowercase();
        let all = format!("{text}{}", read("tests/handshakes/mod.rs").to_lowercase());
        let names = row.name.split(" (").next().unwrap();
        if names.starts_with("others") || names.starts_with("uuid of") {
            continue;
        }
        for name in names.split(", ") {
            let wanted = match name {
                // Passed on as its sisters are: one list, one test.
                "media_io_kwargs" => continue,
                "video_embeds" | "content-type" => continue,
                name => name.to_lowercase(),
            };
            assert!(
                all.contains(&wanted),
                "{}: {name} is not in {}",
                row.name,
                row.shown
            );
        }
    }
}
