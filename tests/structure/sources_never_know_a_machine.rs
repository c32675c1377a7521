//! Nothing in the repository names a place on somebody's machine, or a file outside of it.

use std::path::PathBuf;

use super::{files, root};

/// Put together here, so that this file is not its own finding.
fn places() -> Vec<String> {
    let folder = |name: &str| format!("/{name}/");
    let mut places: Vec<String> = ["work", "root", "home", "Users"].map(folder).to_vec();
    places.push(format!("..{}", folder("shared")));
    places.push(format!("/tmp/{}", "target"));
    places.push(["C:", "Users"].join("\\"));
    places
}

#[test]
fn no_path_of_a_machine() {
    let mut all: Vec<PathBuf> = ["src", "tests", "tools", "configs", "docs", "benches", ".ci"]
        .into_iter()
        .filter(|folder| root().join(folder).is_dir())
        .flat_map(files)
        .collect();
    all.extend(["README.md", "Cargo.toml"].map(PathBuf::from));
    for path in all {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else {
            continue; // not text
        };
        for (number, line) in text.lines().enumerate() {
            for place in places() {
                assert!(
                    !line.contains(&place),
                    "{}:{}: {place}: {line}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}
