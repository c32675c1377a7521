//! The files under configs/.

use std::path::{Path, PathBuf};

use super::super::load::{Overrides, Source, load, read};
use super::super::{Config, Role, schema};
use super::{KNOWN, addresses};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

#[test]
fn every_example_loads_without_a_warning() {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = read(&path).unwrap();
        let source = Source {
            text: &text,
            label: "x",
            file: Some(&path),
        };
        let loaded = load(Some(source), &Overrides::default(), &KNOWN, &|_| None)
            .unwrap_or_else(|problems| panic!("{}:\n{problems}", path.display()));
        assert_eq!(loaded.warnings, [], "{}", path.display());
        seen.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    for handshake in KNOWN.handshakes {
        assert!(
            seen.iter().any(|name| name == handshake),
            "no configs/{handshake}.yaml"
        );
        let config = super::super::from_file(configs().join(format!("{handshake}.yaml")), &KNOWN);
        assert_eq!(config.unwrap().handshake, *handshake);
    }
}

#[test]
fn the_nixl_example_expands_as_its_comments_say() {
    let config = super::super::from_file(configs().join("nixl.yaml"), &KNOWN).unwrap();
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["10.0.0.1:8100", "10.0.0.2:8100"]
    );
    assert_eq!(
        addresses(&config, Role::Decode),
        [
            "10.0.0.3:8200",
            "10.0.0.3:8201",
            "10.0.0.4:8200",
            "10.0.0.4:8201"
        ]
    );
}

#[test]
fn the_reference_shows_every_key_with_its_default() {
    let path = configs().join("reference.yaml");
    let config = super::super::from_file(&path, &KNOWN).unwrap();
    let expected = Config {
        file: Some(path.clone()),
        instances: config.instances.clone(),
        ..Config::default()
    };
    assert_eq!(config, expected);
    let text = read(&path).unwrap();
    for key in schema::keys() {
        let name = key.rsplit('.').next().unwrap();
        assert!(
            text.contains(&format!("{name}:")),
            "configs/reference.yaml does not show {key}"
        );
    }
}
