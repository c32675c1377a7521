//! A floor names only itself and floors below it, so that one can read the house from the ground up.

use std::collections::BTreeSet;
use std::path::Path;

use super::{code, files, sources, word};

const FLOORS: [&[&str]; 8] = [
    &["wire", "error", "id", "rng", "metrics", "log", "shared"],
    &["net", "config"],
    &["cluster"],
    &["policy"],
    &["exchange"],
    &["handshake"],
    &["server"],
    &["main", "lib", "demo", "doctor", "cli", "signal", "terminal"],
];

fn floor(module: &str) -> usize {
    let found = FLOORS.iter().position(|floor| floor.contains(&module));
    found.unwrap_or_else(|| panic!("src/{module} has no floor: give it one here and in src/lib.rs"))
}

/// The top-level module that a file belongs to.
fn module(path: &Path) -> String {
    let first = path.components().nth(1).expect("below src/");
    let name = Path::new(first.as_os_str()).file_stem().unwrap();
    name.to_str().unwrap().to_owned()
}

/// Top-level modules that the code names, by `crate::`, or by `super::` up to the top.
fn named(path: &Path, code: &str) -> BTreeSet<String> {
    // How many `super::` lead from this file to the top.
    let inner = path.components().count() - 2;
    let up = match path.ends_with("mod.rs") {
        true => inner,
        false => inner + 1,
    };
    let mut found = BTreeSet::new();
    for start in ["crate::".to_owned(), "super::".repeat(up)] {
        for (at, _) in code.match_indices(&start) {
            let deeper = code[..at].ends_with("super::");
            let rest = &code[at + start.len()..];
            if deeper || rest.starts_with("super::") {
                continue;
            }
            match rest.strip_prefix('{') {
                None => drop(found.insert(word(rest).to_owned())),
                Some(list) => found.extend(heads(list)),
            }
        }
    }
    // Not modules: macros and items of the crate's top, and inline test modules' `super::item`.
    let known = |name: &String| FLOORS.iter().any(|floor| floor.contains(&name.as_str()));
    found.retain(|name| !name.is_empty() && (known(name) || start_is_module(name)));
    found
}

/// A name of `src/` that the table of floors does not know.
fn start_is_module(name: &str) -> bool {
    let here = super::root().join("src").join(name);
    here.is_dir() || here.with_extension("rs").is_file()
}

/// The first names of a `{a, b::{c, d}, e}` list, its opening brace already taken.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (1, Vec::new(), true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            c if depth == 1 && fresh && (c.is_alphabetic() || c == '_') => {
                names.push(word(&list[at..]).to_owned());
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn the_reader_of_this_test_reads() {
    let names = |path: &str, code: &str| {
        let found = named(Path::new(path), code);
        found.into_iter().collect::<Vec<_>>().join(" ")
    };
    let list = "use crate::{log, net::{pool, stream}, wire};";
    assert_eq!(names("src/exchange/call.rs", list), "log net wire");
    assert_eq!(
        names("src/exchange/call.rs", "super::super::server::x()"),
        "server"
    );
    assert_eq!(names("src/exchange/mod.rs", "super::server::x()"), "server");
    assert_eq!(names("src/exchange/call.rs", "use super::send::Leg;"), "");
    assert_eq!(names("src/cli.rs", "use super::config::x;"), "config");
}

#[test]
fn no_floor_names_a_higher_one() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let here = module(&path);
        for name in named(&path, &code(&text)) {
            if floor(&name) > floor(&here) {
                wrong.push(format!(
                    "{}: floor {} ({here}) names floor {} ({name})",
                    path.display(),
                    floor(&here),
                    floor(&name)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every module has its floor, and its first line says the same.
#[test]
fn every_module_says_its_floor() {
    for path in files("src") {
        let here = module(&path);
        let floor = floor(&here);
        if path == Path::new("src").join(&here).join("mod.rs") {
            let text = super::read(&path);
            let start = format!("//! Floor {floor}: ");
            assert!(text.starts_with(&start), "{}: not {start}", path.display());
        }
    }
}

/// The command line is translated to a config: what runs with it is `main`'s to know.
#[test]
fn the_command_line_knows_only_the_config() {
    let text = super::read(Path::new("src/cli.rs"));
    let found = named(Path::new("src/cli.rs"), &code(&text));
    assert_eq!(found, BTreeSet::from(["config".to_owned()]));
}

/// Dependencies that are good in one place only: why stands in Cargo.toml and where they are used.
#[test]
fn dependencies_stay_where_they_belong() {
    let places = [
        // Simulated engines are part of the demo, never of a server.
        ("pdsim", "src/demo.rs"),
        // Its pool hands half-used connections on: one client per health probe, off the data path.
        ("monoio_http_client", "src/cluster/health.rs"),
        ("prometheus", "src/metrics/"),
        ("serde_yaml", "src/config/"),
        ("saphyr_parser", "src/config/"),
        ("clap", "src/cli.rs src/main.rs"),
        ("core_affinity", "src/server/cores.rs"),
    ];
    for (path, text) in sources("src") {
        let (path, code) = (path.to_str().unwrap().to_owned(), code(&text));
        for (name, allowed) in places {
            let here = allowed.split(' ').any(|place| path.starts_with(place));
            let used = code.contains(&format!("{name}::"));
            assert!(
                here || !used,
                "{path} uses {name}, which belongs to {allowed}"
            );
        }
    }
}
