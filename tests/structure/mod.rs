//! The shape of the house (the map is in `src/lib.rs`), checked on the sources themselves.

mod features_never_lack_a_part;
mod floors_never_point_up;
mod folders_never_lack_their_purpose;
mod names_never_say_nothing;
mod sources_never_know_a_machine;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder of the repository, as paths from its root, sorted.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        for entry in entries {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(root()).unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

/// The Rust files below a folder, with their texts.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let rust = |p: &PathBuf| p.extension().is_some_and(|e| e == "rs");
    let with_text = |p: PathBuf| {
        let text = read(&p);
        (p, text)
    };
    files(folder)
        .into_iter()
        .filter(rust)
        .map(with_text)
        .collect()
}

/// The text without comments. (A `//` within a string cuts that line short; nothing is looked for there.)
fn code(text: &str) -> String {
    let without = |line: &str| line.split("//").next().unwrap_or("").to_owned() + "\n";
    text.lines().map(without).collect()
}

/// The identifier that a text begins with.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}
