//! One word everywhere: a handshake is a file with its diagram, a row, a config, a test; a policy is a file
//! and a row.

use std::path::Path;

use pdrelay::config::{self, Known, Role};
use pdrelay::handshake::{self, HANDSHAKES};
use pdrelay::policy::{self, POLICIES};

use super::{files, read, root};

fn known<T>(then: impl FnOnce(&Known) -> T) -> T {
    let (handshakes, policies) = (handshake::names(), policy::names());
    then(&Known {
        handshakes: &handshakes,
        policies: &policies,
    })
}

/// The files of a folder but `mod.rs`, by their names without ending; a folder in it counts as one.
fn stems(folder: &str) -> Vec<String> {
    let first = |p: &std::path::PathBuf| {
        let inside = p.strip_prefix(folder).unwrap();
        let first = inside.components().next().unwrap().as_os_str();
        let name = Path::new(first).file_stem().unwrap();
        name.to_str().unwrap().to_owned()
    };
    let mut stems: Vec<String> = files(folder).iter().map(first).collect();
    // What several handshakes are made of.
    const PARTS: [&str; 3] = ["aside", "beside", "mod"];
    stems.retain(|s| !PARTS.contains(&s.as_str()));
    stems.sort();
    stems.dedup();
    stems
}

fn sorted(names: Vec<&'static str>) -> Vec<&'static str> {
    let mut names = names;
    names.sort_unstable();
    names
}

#[test]
fn files_and_rows_are_the_same() {
    assert_eq!(stems("src/handshake"), sorted(handshake::names()));
    assert_eq!(stems("src/policy"), sorted(policy::names()));
}

#[test]
fn every_handshake_is_drawn() {
    for spec in HANDSHAKES {
        let mut path = format!("src/handshake/{}.rs", spec.name);
        if !root().join(&path).exists() {
            path = format!("src/handshake/{}/mod.rs", spec.name);
        }
        let text = read(Path::new(&path));
        let head: String = text.lines().take_while(|l| l.starts_with("//!")).collect();
        assert!(head.contains("```text"), "{path}: no diagram");
        assert!(
            head.contains("client") && head.contains("proxy"),
            "{path}: no actors"
        );
        assert!(
            head.contains("->|") && head.contains("|<="),
            "{path}: no arrows"
        );
    }
}

#[test]
fn every_handshake_has_a_config_and_a_test() {
    for spec in HANDSHAKES {
        let file = root().join(format!("configs/{}.yaml", spec.name));
        let config = known(|known| config::from_file(&file, known));
        let config = config.unwrap_or_else(|problems| panic!("{}:\n{problems}", file.display()));
        assert_eq!(config.handshake, spec.name);
        for role in spec.needs {
            assert!(config.instances.iter().any(|i| i.role == *role), "{role:?}");
        }
        let test = root().join(format!("tests/handshakes/{}.rs", spec.name));
        assert!(test.is_file(), "no {}", test.display());
    }
}

#[test]
fn every_config_loads() {
    let is_yaml = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "yaml");
    for path in files("configs").into_iter().filter(is_yaml) {
        let loaded = known(|known| config::from_file(root().join(&path), known));
        assert!(
            loaded.is_ok(),
            "{}:\n{}",
            path.display(),
            loaded.unwrap_err()
        );
    }
}

/// The config checks the roles that a handshake needs; it must not forget one.
#[test]
fn no_handshake_starts_without_its_roles() {
    for spec in HANDSHAKES {
        for missing in spec.needs {
            let mut text = format!("handshake: {}\n", spec.name);
            for role in Role::ALL {
                if spec.needs.contains(&role) && role != *missing {
                    text += &format!("{}: [{}:1]\n", role.name(), role.name());
                }
            }
            let loaded = known(|known| config::from_str(&text, "x", known));
            assert!(loaded.is_err(), "{} without {missing:?} loads", spec.name);
        }
    }
}

#[test]
fn every_row_says_what_it_is() {
    for (name, about) in HANDSHAKES
        .iter()
        .map(|h| (h.name, h.about))
        .chain(POLICIES.iter().map(|p| (p.name, p.about)))
    {
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(
            plain && !about.is_empty() && !about.contains('\n'),
            "{name}"
        );
    }
    for name in handshake::names() {
        assert!(handshake::find(name).is_some());
    }
    for name in policy::names() {
        assert!(policy::build(name).is_some());
    }
    assert!(handshake::find("nope").is_none() && policy::build("nope").is_none());
}

#[test]
fn users_are_told_of_every_handshake_and_policy() {
    let readme = read(Path::new("README.md"));
    for name in handshake::names() {
        assert!(readme.contains(name), "README.md does not mention {name}");
    }
    let reference = read(Path::new("configs/reference.yaml"));
    for name in policy::names() {
        assert!(
            reference.contains(name),
            "configs/reference.yaml does not mention {name}"
        );
    }
}

/// The table at the head of `tests/suite.rs` is complete, and names files that are there.
#[test]
fn no_promise_lacks_its_tests() {
    let table = read(Path::new("tests/suite.rs"));
    for promise in 1..=10 {
        let rows = table
            .lines()
            .filter(|line| line.starts_with(&format!("//! | {promise} ")));
        let named: Vec<&str> = rows
            .flat_map(|row| row.split('`').skip(1).step_by(2))
            .collect();
        assert!(!named.is_empty(), "promise {promise} has no row");
        for name in named {
            let path = root().join("tests").join(name).with_extension("rs");
            assert!(path.exists(), "{path:?}");
        }
    }
}
