//! A server that cannot start says why, and what to do.

use super::{File, Serving, free_port, run};
use crate::support::engines;

#[test]
fn nothing_to_serve() {
    let ran = run(&["serve"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    for word in [
        "nothing to serve",
        "--config",
        "--prefill",
        "--decode",
        "--aggregated",
    ] {
        assert!(ran.err.contains(word), "no {word} in {}", ran.err);
    }
    let ran = run(&["serve", "--prefill", "127.0.0.1:1"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("decode"), "{}", ran.err);
}

#[test]
fn a_taken_port() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let instances = ["--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:2"];
    let here = ["serve", "--host", "127.0.0.1", "--port"];
    let ran = run(&[&here[..], &[&port], &instances].concat());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains(&format!("127.0.0.1:{port}")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("another program"), "{}", ran.err);

    // Another pdrelay is another program, too: both listen with SO_REUSEPORT and would share.
    let first = Serving::start("nixl", engines(1, 1), &[]);
    let port = first.address.port().to_string();
    let ran = run(&[&here[..], &[&port], &instances].concat());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains(&format!("127.0.0.1:{port}")),
        "{}",
        ran.err
    );
}

/// One request would come back to it until no descriptor is left.
#[test]
fn a_proxy_is_never_its_own_engine() {
    for (line, engine, ours) in [
        (
            "sidecar --port 28000 --vllm-port 28000",
            "localhost:28000",
            "(port 28000)",
        ),
        (
            "sidecar --port 28002 --vllm-port 28001 --data-parallel-size 2",
            "localhost:28002",
            "(port 28002)",
        ),
        (
            "routing-sidecar --port 28000 --vllm-port 28001 --data-parallel-size 2",
            "localhost:28001",
            "(port 28001 of rank 1)",
        ),
        (
            "serve --port 28200 --prefill 127.0.0.1:28100 --decode 127.0.0.1:28200",
            "127.0.0.1:28200",
            "(port 28200)",
        ),
    ] {
        let ran = run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (Some(1), ""),
            "{line}: {}",
            ran.err
        );
        let said = format!("decode {engine} is pdrelay itself, which listens there {ours}");
        assert!(ran.err.contains(&said), "{line}: {}", ran.err);
    }
    let lmcache = "lmcache --port 8500 --prefiller-port 8100 --decoder-port 8200";
    let ran = run(&lmcache.split(' ').collect::<Vec<_>>());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err
            .contains("lmcache.port 8500 is where clients come (port 8500)"),
        "{}",
        ran.err
    );
}

#[test]
fn addresses_and_cpus_that_are_not_there() {
    let instances = ["--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:2"];
    let port = free_port().to_string();
    for (more, word) in [
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--cpus", "1000"], "1000"),
        (["--numa", "900"], "900"),
    ] {
        let ran = run(&[&["serve", "--port", &port][..], &instances, &more].concat());
        assert_eq!(ran.code, Some(1), "{more:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{more:?}: {}", ran.err);
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
    }
}

/// An engine whose name has no address yet keeps nobody from starting.
#[test]
fn engines_may_come_later() {
    let port = free_port();
    let file = File::new(
        "later.yaml",
        &format!(
            "host: 127.0.0.1\nport: {port}\nprefill: [no.such.engine.invalid:1]\n\
             decode: [\"127.0.0.1:1\"]\n"
        ),
    );
    let mut child = super::Program::of(
        super::command(&["serve", "-c", file.path()])
            .spawn()
            .unwrap(),
    );
    crate::support::eventually("it listens", || child.err.so_far().contains("listens on"));
    let mut client = crate::support::Client::connect(([127, 0, 0, 1], port).into());
    assert_eq!(client.get("/health").status, 200);
    let response = client.post("/v1/completions", &crate::support::completion("x", ""));
    assert_eq!(response.status, 503, "{}", response.text());
    child.signal(libc::SIGTERM);
    assert_eq!(child.wait().code(), Some(143));
    assert!(child.err.text().contains("no.such.engine.invalid:1"));
}

/// As xPyD-proxy's users start it: a heartbeat in the log whatever its level, and an end with a reason if no
/// engine ever comes.
#[test]
fn backends_that_never_come_end_the_process() {
    let port = free_port();
    let file = File::new(
        "never.yaml",
        &format!(
            "model: m\nhost: 127.0.0.1\nport: {port}\nlog_level: error\nprefill: [\"127.0.0.1:1\"]\n\
             decode: [\"127.0.0.1:2\"]\nstartup: {{wait_timeout_seconds: 2, heartbeat_interval_seconds: 0.5}}\n"
        ),
    );
    let ran = super::run(&["xpyd", "--config", file.path()]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("startup.wait_timeout"), "{}", ran.err);
    let heartbeat = "Node heartbeat | mode=disaggregated | P=0/1 online | D=0/1 online";
    assert!(ran.err.contains(heartbeat), "{}", ran.err);
}

/// Its load would be counted in two places. (Where names lead is known at the start at the earliest: no mistake
/// of the file.)
#[test]
fn one_engine_by_two_names_is_pointed_out() {
    let port = free_port().to_string();
    let args = ["serve", "--host", "127.0.0.1", "--port", &port];
    let decode = ["--decode", "127.0.0.1:2", "localhost:2", "localhost:3"];
    let args = [&args[..], &["--prefill", "127.0.0.1:1"], &decode].concat();
    let mut program = super::Program::of(super::command(&args).spawn().unwrap());
    crate::support::eventually("it serves", || {
        program.err.so_far().contains(&format!(":{port}\n"))
    });
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
    let said = program.err.text();
    let pointed: Vec<_> = said
        .lines()
        .filter(|l| l.contains("by another name"))
        .collect();
    assert_eq!(pointed.len(), 1, "{said}");
    let warning = "decode localhost:2 is decode 127.0.0.1:2 by another name: list it once";
    assert!(pointed[0].contains(warning), "{said}");
}
