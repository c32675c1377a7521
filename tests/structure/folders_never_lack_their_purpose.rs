//! Each folder's `mod.rs` begins with what it is for, what it must never do, and how to extend it.

use super::{read, sources};

#[test]
fn every_folder_says_what_it_is_for() {
    let mut seen = 0;
    for (path, text) in sources("src") {
        let tests = path.components().any(|c| c.as_os_str() == "tests");
        if !path.ends_with("mod.rs") || tests {
            continue;
        }
        seen += 1;
        let head: Vec<&str> = text.lines().take_while(|l| l.starts_with("//!")).collect();
        for part in ["* **For:**", "* **Must never:**", "* **To extend:**"] {
            let found = head.iter().filter(|l| l.contains(part)).count();
            assert_eq!(found, 1, "{}: {part}", path.display());
        }
    }
    assert!(seen >= 10);
}

/// No file without a sentence of its own.
#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "tools"] {
        for (path, text) in sources(folder) {
            let tests = path.components().any(|c| c.as_os_str() == "tests");
            let first = text.lines().next().unwrap_or("");
            assert!(
                first.starts_with("//! ") || tests,
                "{}: begins with {first:?}",
                path.display()
            );
        }
    }
}

/// The map names every module.
#[test]
fn the_map_is_complete() {
    let map = read(std::path::Path::new("src/lib.rs"));
    let (text, code) = map.split_once("\npub mod ").expect("a map, then modules");
    for line in format!("pub mod {code}").lines() {
        let Some(name) = line
            .strip_prefix("pub mod ")
            .and_then(|l| l.strip_suffix(';'))
        else {
            continue;
        };
        assert!(
            text.contains(name),
            "src/lib.rs does not tell what {name} is"
        );
    }
}
