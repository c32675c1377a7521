//! Exit codes and the JSON file of the binary.

use std::process::{Command, Output};

use crate::server::*;

fn pdload(line: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_pdload");
    Command::new(program)
        .args(line.split_whitespace())
        .output()
        .unwrap()
}

#[test]
fn exit_codes_tell_success_failure_and_misuse_apart() {
    let good = serve(|stream, _| json_answer(stream, "a"));
    let bad = serve(|stream, _| send(stream, "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"));
    let code = |line: &str| pdload(line).status.code();
    assert_eq!(
        code(&format!("--url {good} --no-stream -n 5 -c 1")),
        Some(0)
    );
    assert_eq!(code(&format!("--url {bad} --no-stream -n 5 -c 1")), Some(1));
    assert_eq!(
        code(&format!("--url {bad} --no-stream -n 5 -c 1 --allow-errors")),
        Some(0)
    );
    let misuses = [
        "--nonsense",
        "-n 0",
        "--url http://192.0.2.1",
        "-n 1 --pid 2147483647",
    ];
    for misuse in misuses {
        assert_eq!(code(misuse), Some(2), "{misuse}");
    }
}

#[test]
fn json_goes_to_stdout_alone() {
    let url = serve(|stream, _| json_answer(stream, "a"));
    let output = pdload(&format!(
        "--url {url} --no-stream -n 5 -c 1 --json - --progress"
    ));
    let value = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    assert_eq!(value["requests"]["ok"], 5);
    assert_eq!(value["args"]["concurrency"], 1);
    assert!(value["latency"]["e2e"]["p99.9_us"].as_f64().unwrap() > 0.0);
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_legacy_driver_can_be_forced() {
    let url = serve(|stream, _| json_answer(stream, "a"));
    let output = Command::new(env!("CARGO_BIN_EXE_pdload"))
        .args(["--url", &url, "--no-stream", "-n", "5", "-c", "1"])
        .env("MONOIO_FORCE_LEGACY_DRIVER", "1")
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && table.contains(" epoll "),
        "{table}"
    );
}
