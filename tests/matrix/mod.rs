//! The fault matrix: every way in which an engine or a client can fail, in each stage, under each
//! handshake; what must come of it is one table.

mod page;
mod scene;
mod table;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pdrelay::config::Role;
use pdrelay::server::Server;

use crate::support::scripted::{self, Say, Scripted};
use crate::support::{Client, completion, config};
use scene::Scene;
use table::{Body, Cell, Expect, Stage, TABLE, What};

/// Most of a cell is waiting.
const THREADS: usize = 12;

struct Job {
    handshake: &'static str,
    what: What,
    stage: Stage,
    expect: Expect,
}

#[test]
fn no_cell_is_empty() {
    for what in What::ALL {
        for stage in Stage::ALL {
            let rows = TABLE.iter().filter(|r| r.what == what && r.stage == stage);
            assert_eq!(rows.count(), 1, "{what:?} x {stage:?}");
        }
    }
    for row in TABLE {
        for (_, cell) in row.cells() {
            assert!(!matches!(cell, Cell::Never("")), "a reason is missing");
        }
    }
}

#[test]
fn every_cell_is_as_the_table_says() {
    let only = std::env::var("MATRIX").unwrap_or_default();
    let mut jobs: Vec<Job> = Vec::new();
    for row in TABLE {
        for (handshake, cell) in row.cells() {
            let Cell::Happens(expect) = cell else {
                continue;
            };
            let (what, stage) = (row.what, row.stage);
            if format!("{what:?} {stage:?} {handshake}").contains(&only) {
                jobs.push(Job {
                    handshake,
                    what,
                    stage,
                    expect: *expect,
                });
            }
        }
    }
    // The longest first.
    jobs.sort_by_key(|job| {
        !matches!(
            job.what,
            What::SlowClient | What::ClientGone | What::Garbage
        )
    });
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(job);
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} cells differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What is not as the table says.
fn check(job: &Job) -> Option<String> {
    let Job {
        handshake,
        what,
        stage,
        expect,
    } = job;
    let name = format!("{what:?} x {stage:?} x {handshake}");
    let outcome = std::panic::catch_unwind(|| {
        let (mut seen, mut wrong) = Scene::new(handshake, *what, *stage, false).play();
        if can_be_saved(*what) {
            let (with_spare, more) = Scene::new(handshake, *what, *stage, true).play();
            wrong.extend(more.into_iter().map(|w| format!("with a spare: {w}")));
            if with_spare.body == Body::Whole {
                seen.saved = Some((with_spare.p, with_spare.d));
            } else if (with_spare.status, with_spare.body) != (seen.status, seen.body) {
                wrong.push(format!("with a spare: {with_spare}"));
            }
        }
        if seen != *expect {
            wrong.push(format!("seen     {seen}\n  expected {expect}"));
        }
        wrong
    });
    let wrong = outcome.unwrap_or_else(|_| vec!["it panicked (see above)".into()]);
    (!wrong.is_empty()).then(|| format!("{name}:\n  {}", wrong.join("\n  ")))
}

/// Does a second instance make a difference to be looked at?
fn can_be_saved(what: What) -> bool {
    !matches!(
        what,
        What::SlowHead | What::SlowClient | What::ClientGone | What::ClientGoneUnmet
    )
}

#[test]
fn the_page_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/failures.md");
    let text = page::text();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &text).expect("docs/failures.md is written");
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == text,
        "docs/failures.md is not as tests/matrix/table.rs says: UPDATE_DOCS=1 writes it"
    );
}

/// The simulator sends a head before its body; an engine may send both in one piece.
#[test]
fn garbage_that_comes_with_the_head_is_as_a_bad_head() {
    let good = scripted::answer("200 OK", r#"{"good":true}"#);
    let bad = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nno chunk".to_vec();
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let engines = [(); 2].map(|()| {
        let (asked, good, bad) = (asked.clone(), good.clone(), bad.clone());
        Scripted::start(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Say::Bytes(bad.clone()),
            _ => Say::Bytes(good.clone()),
        })
    });
    let addresses = engines.each_ref().map(|e| e.address);
    let mut config = config("aggregated", &[Role::Aggregated; 2], &addresses);
    config.health_check.enabled = false;
    let server = Server::start(config).expect("the proxy starts");
    let response = Client::connect(server.address).post("/v1/completions", &completion("x", ""));
    assert_eq!(
        (response.status, &*response.text()),
        (200, r#"{"good":true}"#)
    );
    let page = server.shared.metrics.render();
    let blamed = page
        .lines()
        .filter(|l| l.contains("kind=\"bad_response\"} 1"));
    assert_eq!((blamed.count(), asked.load(Ordering::Relaxed)), (1, 2));
}
