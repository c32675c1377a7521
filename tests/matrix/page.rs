//! `docs/failures.md`, written from the table.

use super::table::{Cell, Expect, Stage, TABLE};

const INTRO: &str = include_str!("intro.md");

pub fn text() -> String {
    let mut out = INTRO.to_owned();
    for stage in Stage::ALL {
        let (title, about) = match stage {
            Stage::Prefill => (
                "Prefill",
                "P fails, before anything was sent to the client.",
            ),
            Stage::DecodeHead => (
                "Decode, up to its head",
                "D fails. The client asked for a whole answer, so that D's body follows its head at once.",
            ),
            Stage::Stream => (
                "Decode stream",
                "D fails (or the client does) after the first events have reached the client.",
            ),
        };
        out += &format!("\n## {title}\n\n{about}\n");
        for (at, handshake) in ["nixl", "sequential", "aggregated"].into_iter().enumerate() {
            out += &format!("\n### {title}: `{handshake}`\n\n");
            let rows = TABLE.iter().filter(|row| row.stage == stage);
            let cells: Vec<_> = rows
                .map(|row| (row.what.words(), row.cells()[at].1))
                .collect();
            out += &section(&cells);
        }
    }
    out
}

/// One stage under one handshake.
fn section(cells: &[(&str, &Cell)]) -> String {
    let mut out = String::new();
    let kv = cells
        .iter()
        .any(|(_, c)| matches!(c, Cell::Happens(e) if e.kv != [0; 3]));
    let happens = cells.iter().any(|(_, c)| matches!(c, Cell::Happens(_)));
    if happens {
        let more = if kv {
            " KV at P | grants counted |"
        } else {
            ""
        };
        let line = if kv { "---|---|" } else { "" };
        out += &format!(
            "| fault | client gets | P, D asked | retries | blamed |{more} with a second instance |\n\
             |---|---|---|---|---|{line}---|\n"
        );
        for (what, cell) in cells {
            if let Cell::Happens(expect) = cell {
                out += &line_of(what, expect, kv);
            }
        }
        out.push('\n');
    }
    // Reasons, each with what it is the reason for.
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (what, cell) in cells {
        if let Cell::Never(why) = cell {
            match reasons.iter_mut().find(|(w, _)| w == why) {
                Some((_, list)) => list.push(what),
                None => reasons.push((why, vec![what])),
            }
        }
    }
    for (why, list) in reasons {
        out += &format!("Cannot happen ({why}): {}.\n\n", list.join("; "));
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

fn line_of(what: &str, e: &Expect, kv: bool) -> String {
    let blamed = match e.blame {
        [] => "nobody".to_owned(),
        list => list
            .iter()
            .map(|(kind, n)| format!("{kind} {n}"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let named = |names: [&str; 3], counts: [u64; 3]| {
        let list: Vec<_> = names
            .iter()
            .zip(counts)
            .filter(|(_, n)| *n > 0)
            .map(|(name, n)| format!("{n} {name}"))
            .collect();
        if list.is_empty() {
            "none".into()
        } else {
            list.join(", ")
        }
    };
    let more = match kv {
        true => format!(
            " {} | {} |",
            named(["fetched", "released", "left to its lease"], e.kv),
            named(["spent", "released", "expired_unreleased"], e.grants),
        ),
        false => String::new(),
    };
    let saved = match e.saved {
        Some((p, d)) => format!("200, whole (P {p}, D {d})"),
        None => "the same".to_owned(),
    };
    format!(
        "| {what} | {} {} | {}, {} | {} | {blamed} |{more} {saved} |\n",
        e.status,
        e.body.words(),
        e.p,
        e.d,
        e.retries,
    )
}
