//! Names that fit everything say nothing: they are not used for files or types.

use super::{code, files, sources, word};

const BANNED: [&str; 9] = [
    "manager", "handler", "helper", "helpers", "util", "common", "base", "service", "factory",
];

/// `HttpServiceFactory` or `http_service` as words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in name.chars() {
        if c.is_uppercase() || c == '_' || c == '-' {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
    }
    words
}

fn banned(name: &str) -> bool {
    words(name)
        .iter()
        .any(|w| BANNED.contains(&w.as_str()) || w == "utils")
}

#[test]
fn files_and_folders() {
    assert!(banned("http_utils") && banned("ServiceBase") && !banned("baseline"));
    for folder in ["src", "tests", "tools", "configs"] {
        for path in files(folder) {
            for part in path.components() {
                let part = part.as_os_str().to_str().unwrap();
                let stem = part.split('.').next().unwrap();
                assert!(!banned(stem), "{}", path.display());
            }
        }
    }
}

#[test]
fn types() {
    for folder in ["src", "tools"] {
        for (path, text) in sources(folder) {
            for line in code(&text).lines() {
                for kind in ["struct ", "enum ", "trait ", "type ", "union "] {
                    let Some(at) = line.find(kind) else { continue };
                    let name = word(&line[at + kind.len()..]);
                    assert!(!banned(name), "{}: {kind}{name}", path.display());
                }
            }
        }
    }
}

/// rustfmt leaves alone what it cannot break; the rest fits.
#[test]
fn lines_fit_the_page() {
    for folder in ["src", "tests", "tools"] {
        for (path, text) in sources(folder) {
            for (number, line) in text.lines().enumerate() {
                let comment = line.trim_start().starts_with("//");
                let most = if comment { 120 } else { 100 };
                let long = line.chars().count() > most;
                // Strings are not broken, nor the raw ones' inner lines.
                let tests = path.components().any(|c| c.as_os_str() == "tests");
                let string = line.contains('"') || tests;
                assert!(
                    !long || (string && !comment),
                    "{}:{}: {} columns",
                    path.display(),
                    number + 1,
                    line.chars().count()
                );
            }
        }
    }
}
