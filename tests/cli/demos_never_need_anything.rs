//! `pdrelay demo`, `--version`, `--help`, completions: what one tries first.

use super::{free_port, run};

#[test]
fn one_request_is_shown_with_its_stages() {
    let ran = run(&["demo", "--once", "--port", "0"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.err, "");
    assert_eq!(
        ran.out.matches("simulated prefill").count(),
        2,
        "{}",
        ran.out
    );
    assert_eq!(
        ran.out.matches("simulated decode").count(),
        2,
        "{}",
        ran.out
    );
    for stage in [
        "stages (ms)",
        "prefill",
        "decode_head",
        "first token",
        "whole answer",
    ] {
        assert!(ran.out.contains(stage), "no {stage} in {}", ran.out);
    }
    // 24 tokens of text, each a word of its own.
    let words = ran
        .out
        .split_whitespace()
        .filter(|w| w.len() == 11 && w.starts_with('w'));
    assert_eq!(words.count(), 24, "{}", ran.out);
}

#[test]
fn every_handshake_has_a_demo() {
    for spec in pdrelay::handshake::HANDSHAKES {
        let more = ["--prefill", "1", "--decode", "1", "--handshake", spec.name];
        let ran = run(&[&["demo", "--once", "--port", "0"], &more[..]].concat());
        assert_eq!(ran.code, Some(0), "{}: {}", spec.name, ran.err);
        assert!(
            ran.out.contains("first token"),
            "{}: {}",
            spec.name,
            ran.out
        );
    }
    let ran = run(&["demo", "--once", "--port", "0", "--handshake", "nope"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("nixl") && ran.err.contains("sequential"),
        "{}",
        ran.err
    );
}

#[test]
fn a_taken_port_is_named() {
    let port = free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let ran = run(&["demo", "--once", "--port", &port.to_string()]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(&port.to_string()), "{}", ran.err);
}

#[test]
fn version_and_help() {
    let ran = run(&["--version"]);
    assert_eq!(
        (ran.code, ran.out),
        (Some(0), format!("pdrelay {}\n", env!("CARGO_PKG_VERSION")))
    );
    for args in [&["--help"][..], &["serve", "--help"], &["help", "demo"]] {
        let ran = run(args);
        assert_eq!(ran.code, Some(0), "{args:?}");
        assert!(ran.out.contains("Usage: pdrelay"), "{}", ran.out);
        assert!(
            ran.out.lines().all(|l| l.chars().count() <= 100),
            "{}",
            ran.out
        );
    }
    for args in [&[][..], &["nope"], &["serve", "--prot", "1"]] {
        let ran = run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.contains("Usage: pdrelay"), "{}", ran.err);
    }
}

#[test]
fn completion_scripts_are_whole() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
        for word in ["serve", "check", "demo", "log-level"] {
            assert!(ran.out.contains(word), "{shell}: no {word}");
        }
    }
    let script = super::File::new("completions.bash", &run(&["completions", "bash"]).out);
    let checked = std::process::Command::new("bash")
        .args(["-n", script.path()])
        .status();
    assert!(checked.map_or(true, |status| status.success()));
}
