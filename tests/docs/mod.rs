//! The documents, held to the program: tables are checked row by row, commands are run, links followed.

mod commands_never_fail;
mod epd_rows_never_lie;
mod links_never_lead_nowhere;
mod lmcache_rows_never_lie;
mod metrics_never_lack_a_line;
mod rows_never_lie;
mod sidecar_rows_never_lie;
mod turns_never_lie;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All pages below `docs/`, from the repository's root, sorted.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match root().join(&path).is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == "md") => pages.push(path),
                false => {}
            }
        }
    }
    pages.sort();
    pages
}

/// This page is what is generated: written with UPDATE_DOCS=1, else compared.
fn is_the_page(path: &str, text: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(root().join(path), text).expect("the page is written");
    }
    let there = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    assert!(
        there == text,
        "{path} is not what its source says: UPDATE_DOCS=1 writes it"
    );
}

/// Pipes in a cell would end it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
