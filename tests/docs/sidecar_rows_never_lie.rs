//! `docs/sidecar/compatibility.md`: made of `sidecar.txt`, and each of its rows tried on the program.

use std::collections::BTreeSet;

use pdrelay::config::legacy::sidecar::flag::FLAGS;
use pdrelay::config::sidecar::Sidecar;
use pdrelay::exchange::pinned;
use pdrelay::server::surface::{Route, sidecar};
use pdrelay::wire::head::RequestHead;

use super::{cell, is_the_page, read, root};
use crate::sidecar::started;

const SOURCE: &str = include_str!("sidecar.txt");

const INTRO: &str = "\
# llm-d's sidecar: what is the same here

Every flag, header, route and variable of its three generations, and what becomes of it under `pdrelay sidecar`. *In* says
which generation has it: g1 is llm-d-routing-sidecar, g2 the inference scheduler's pd-sidecar, g3 the router's. *Here*: `same`,
`differs` (on purpose, with the reason), or `absent`. [How to move](../sidecar.md).

This page is generated from `tests/docs/sidecar.txt`, and a test tries every row on the program.
";

struct Row {
    kind: &'static str,
    title: &'static str,
    cells: [&'static str; 5],
}

fn rows() -> Vec<Row> {
    let (mut kind, mut title) = ("", "");
    let mut rows = Vec::new();
    for line in SOURCE.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            (kind, title) = rest.split_once("] ").expect("a title");
            continue;
        }
        let cells: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
        let cells = cells.try_into().unwrap_or_else(|_| panic!("{line}"));
        rows.push(Row { kind, title, cells });
    }
    rows
}

fn of(kind: &str) -> Vec<[&'static str; 5]> {
    let rows: Vec<_> = rows().into_iter().filter(|row| row.kind == kind).collect();
    assert!(!rows.is_empty(), "no [{kind}]");
    rows.into_iter().map(|row| row.cells).collect()
}

#[test]
fn the_page_is_the_table() {
    let mut text = INTRO.to_owned();
    let mut last = "";
    for Row { kind, title, cells } in rows() {
        let held = kind == "behaviour";
        if title != last {
            last = title;
            let more = if held {
                (" held by |", "---|")
            } else {
                ("", "")
            };
            text += &format!(
                "\n## {title}\n\n| what | in | here | difference and reason, or remark |{}\n",
                more.0
            );
            text += &format!("|---|---|---|---|{}\n", more.1);
        }
        let [name, generations, status, note, shown] = cells;
        let name = match held {
            true => name.to_owned(),
            false => format!("`{name}`"),
        };
        text += &format!("| {name} | {generations} | {status} | {} |", cell(note));
        if held {
            let path = format!("tests/{shown}.rs");
            assert!(root().join(&path).exists(), "{path}");
            let file = shown.rsplit('/').next().unwrap();
            text += &format!(" [{file}](../../{path}) |");
        }
        text += "\n";
    }
    is_the_page("docs/sidecar/compatibility.md", &text);
}

#[test]
fn every_difference_has_its_reason() {
    let mut seen = BTreeSet::new();
    for Row { title, cells, .. } in rows() {
        let [name, generations, status, note, _] = cells;
        let at = format!("{title}: {name}");
        assert!(["same", "differs", "absent"].contains(&status), "{at}");
        let known = |word: &str| ["g1", "g2", "g3", "ours"].contains(&word);
        assert!(generations.split(' ').all(known), "{at}");
        assert!(status == "same" || note.len() > 10, "{at} gives no reason");
        assert!(seen.insert(at.clone()), "{at} is there twice");
    }
}

#[test]
fn every_flag_ends_as_it_says() {
    let file = std::env::temp_dir().join(format!("pdrelay-sidecar-{}.yaml", std::process::id()));
    std::fs::write(&file, "port: 9000\n").unwrap();
    let mut listed = BTreeSet::new();
    for [name, generations, _, _, shown] in of("flags") {
        let (expected, args) = shown.split_once(' ').expect("how it ends, and arguments");
        let args = args.replace("{file}", file.to_str().unwrap());
        let args: Vec<&str> = args.split(' ').collect();
        let program = match generations {
            "g1" => "llm-d-routing-sidecar",
            _ => "pd-sidecar",
        };
        let (end, said) = match started(program, &args, &[]) {
            Ok(_) => ("serve".to_owned(), String::new()),
            Err((said, code)) => (code.to_string(), said),
        };
        assert_eq!(end, expected, "{name}: {args:?}: {said}");
        listed.insert(name);
    }
    let _ = std::fs::remove_file(file);
    for flag in FLAGS {
        assert!(listed.contains(flag.name), "the table lacks {}", flag.name);
    }
}

#[test]
fn every_header_is_known() {
    for [name, _, _, _, constant] in of("headers") {
        let known = match constant {
            "PREFILL" => pinned::PREFILL,
            "PREFILL_URL" => pinned::PREFILL_URL,
            "ENCODE" => pinned::ENCODE,
            "CACHE_SOURCE" => pinned::CACHE_SOURCE,
            "DATA_PARALLEL" => pinned::DATA_PARALLEL,
            other => panic!("{other}"),
        };
        assert_eq!(name, known);
    }
}

#[test]
fn every_route_is_what_it_says() {
    let mut listed = BTreeSet::new();
    for [name, _, _, _, shown] in of("routes") {
        let head = format!("{name} HTTP/1.1\r\nhost: x\r\nx-prefiller-host-port: p:1\r\n\r\n");
        let bytes = head.as_bytes();
        let head = RequestHead::parse(bytes).unwrap();
        let found = match sidecar::route(&Sidecar::default(), &head, bytes) {
            Route::Generate(_) => "split",
            Route::Health => "own",
            Route::Forward => "engine",
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(found, shown, "{name}");
        listed.insert(name.split(' ').nth(1).unwrap());
    }
    for path in sidecar::paths() {
        assert!(listed.contains(path), "the table lacks {path}");
    }
}

#[test]
fn every_variable_is_read() {
    let source = read("src/config/legacy/sidecar/translate.rs");
    for [name, _, status, _, _] in of("variables") {
        let is_read = source.contains(&format!("\"{name}\""));
        assert_eq!(is_read, status != "absent", "{name}");
    }
}
