//! `pdrelay check`: what a configuration means, or everything that is wrong with it.

use super::{File, root, run};

#[test]
fn every_example_is_good() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue; // not a configuration: configs/shims
        }
        let path = path.to_str().unwrap();
        let ran = run(&["check", "--config", path]);
        assert_eq!(ran.code, Some(0), "{path}: {}", ran.err);
        assert_eq!(ran.err, "", "{path}");
        for word in ["listen", "handshake", "limits", "timeouts"] {
            assert!(ran.out.contains(word), "{path}: no {word} in {}", ran.out);
        }
        seen += 1;
    }
    assert!(seen >= 4);
}

#[test]
fn the_topology_is_printed_whole() {
    let path = root().join("configs/nixl.yaml");
    let ran = run(&["check", "-c", path.to_str().unwrap()]);
    for address in [
        "10.0.0.1:8100",
        "10.0.0.2:8100",
        "10.0.0.3:8200",
        "10.0.0.3:8201",
        "10.0.0.4:8200",
        "10.0.0.4:8201",
    ] {
        assert_eq!(
            ran.out.matches(address).count(),
            1,
            "{address} in {}",
            ran.out
        );
    }
    // Flags win over the file.
    let ran = run(&[
        "check",
        "-c",
        path.to_str().unwrap(),
        "--decode",
        "d:1",
        "--port",
        "77",
    ]);
    assert!(
        ran.out.contains("d:1") && ran.out.contains(":77"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("10.0.0.3"), "{}", ran.out);
}

#[test]
fn all_mistakes_are_named_with_their_lines() {
    let file = File::new(
        "broken.yaml",
        "prefil: [a:1]\n\
         decode: [127.0.0.1]\n\
         port: 99999\n\
         scheduling: fastest\n\
         timeouts: {connect: 2x}\n\
         limits:\n\
         \x20 body_bytes_max: -1\n\
         handshake: nixel\n\
         port: 1\n\
         log_level: loud\n",
    );
    let ran = run(&["check", "--config", file.path()]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert_eq!(ran.out, "");
    for line in [1, 2, 3, 4, 5, 7, 8, 9, 10] {
        let place = format!("{}:{line}: ", file.path());
        assert!(
            ran.err.contains(&place),
            "nothing about line {line} in\n{}",
            ran.err
        );
    }
    // What was meant is suggested.
    for word in ["prefill", "nixl"] {
        assert!(
            ran.err.contains(&format!("'{word}'")) || ran.err.contains(word),
            "{}",
            ran.err
        );
    }
    // `serve` says the same and binds nothing.
    let serve = run(&["serve", "--config", file.path()]);
    assert_eq!((serve.code, serve.err), (Some(1), ran.err));
}

#[test]
fn files_that_are_none_are_refused() {
    for (name, text) in [
        ("empty.yaml", ""),
        ("list.yaml", "- 1\n"),
        ("unclosed.yaml", "prefill: [a:1\n"),
        ("tabs.yaml", "limits:\n\tx: 1\n"),
        ("bomb.yaml", "a: &a [1]\nb: [*a, *a]\n"),
    ] {
        let file = File::new(name, text);
        let ran = run(&["check", "--config", file.path()]);
        assert_eq!(ran.code, Some(1), "{name}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(name), "{name}: {}", ran.err);
    }
    let ran = run(&["check", "--config", "/no/such.yaml"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.err, "Config file not found: /no/such.yaml\n");
}
