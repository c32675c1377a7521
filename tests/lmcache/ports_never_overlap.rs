//! LMCache issues 2144 and 2195: hosts, ports and counts are paired as the original pairs them, but where
//! two decode instances would get the same port, the start fails instead of the transfer.

use std::time::Duration;

use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::config::lmcache::{Lmcache, Variant};
use pdrelay::config::{Config, Known, Role, Surface};

struct Said(String);

impl Terminal for Said {
    fn out(&mut self, text: &str) {
        self.0 += text;
    }
    fn err(&mut self, text: &str) {
        self.0 += text;
    }
    fn ask(&mut self, _: &str, _: Option<Duration>) -> Option<String> {
        None
    }
    fn stamp(&self) -> String {
        String::new()
    }
}

/// The config, or the exit code and what was said.
fn start(line: &str, env: &[(&str, &str)]) -> Result<Config, (u8, String)> {
    let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
    let mut terminal = Said(String::new());
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let program = legacy::by_argv0("/opt/disagg_proxy_server.py").unwrap();
    let env = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let outcome = (program.run)(&mut Call {
        args: &args,
        known: &Known {
            handshakes: &handshakes,
            policies: &policies,
        },
        env: &env,
        terminal: &mut terminal,
    });
    match outcome {
        Outcome::Serve(serve) => Ok(serve.loaded.config),
        Outcome::Exit(code) => Err((code, terminal.0)),
    }
}

fn receivers(lmcache: &Lmcache) -> Vec<String> {
    let shown = lmcache.receivers.iter().map(|(address, r)| {
        format!(
            "{address} {} {:?} {:?}",
            r.host, r.init_ports, r.alloc_ports
        )
    });
    shown.collect()
}

#[test]
fn nothing_given_is_what_the_original_assumes() {
    let config = start("", &[]).unwrap();
    assert_eq!((config.host.as_str(), config.port), ("localhost", 8000));
    assert_eq!(
        (config.lmcache.host.as_str(), config.lmcache.port),
        ("localhost", 8500)
    );
    assert_eq!(config.surface, Surface::Lmcache);
    assert_eq!(config.handshake, "lmcache");
    assert_eq!(config.scheduling.decode, "round_robin");
    assert_eq!(
        receivers(&config.lmcache),
        ["localhost:8200 localhost [8300] [8400]"]
    );
    assert_eq!(config.lmcache.bound_by, None);
}

#[test]
fn counted_decoders_have_counted_ports() {
    let config = start(
        "--num-decoders 2 --num-prefillers 3 --prefiller-port 7000",
        &[],
    )
    .unwrap();
    assert_eq!(
        receivers(&config.lmcache),
        [
            "localhost:8200 localhost [8300] [8400]",
            "localhost:8201 localhost [8301] [8401]"
        ]
    );
    let prefill = config.instances.iter().filter(|i| i.role == Role::Prefill);
    let prefill: Vec<String> = prefill.map(|i| i.address.to_string()).collect();
    assert_eq!(
        prefill,
        ["localhost:7000", "localhost:7001", "localhost:7002"]
    );
    // Listed ones have the same on each host.
    let line = "--decoder-host a,b --decoder-init-port 8300,8301 --decoder-alloc-port 8400,8401";
    let config = start(line, &[]).unwrap();
    assert_eq!(
        receivers(&config.lmcache),
        [
            "a:8200 a [8300, 8301] [8400, 8401]",
            "b:8200 b [8300, 8301] [8400, 8401]"
        ]
    );
}

#[test]
fn an_overlap_is_an_error_at_the_start() {
    for line in [
        // Two ranks each, counted up: the second decoder's first port is the first one's second.
        "--num-decoders 2 --decoder-init-port 8300,8301 --decoder-alloc-port 8400,8401",
        // Two decoders of one host with the same lists.
        "--decoder-port 8200,8201",
        // Counted up into the other kind.
        "--num-decoders 2 --decoder-init-port 8300 --decoder-alloc-port 8301",
    ] {
        let (code, said) = start(line, &[]).unwrap_err();
        assert_eq!(code, 1, "{line}");
        assert!(
            said.contains("share port 8") || said.contains("twice"),
            "{line}: {said}"
        );
    }
    let spaced = "--num-decoders 2 --decoder-init-port 8300,8302 --decoder-alloc-port 8400,8402";
    assert!(start(spaced, &[]).is_ok());
}

#[test]
fn mistakes_are_told_as_argparse_tells_them() {
    for (line, code, what) in [
        (
            "--prefiller-host a,b --prefiller-port 1,2,3",
            2,
            "2 hosts and 3 ports cannot be paired",
        ),
        ("--port x", 2, "argument --port: invalid int value: 'x'"),
        (
            "--decoder-init-port 1,70000",
            2,
            "port must be between 1 and 65535, got 70000",
        ),
        (
            "--decoder-init-port 1,2",
            1,
            "init_ports has 2 and alloc_ports 1",
        ),
        ("--no-such", 2, "unrecognized arguments: --no-such"),
        (
            "--pre a",
            2,
            "ambiguous option: --pre could match --prefiller-host, --prefiller-port",
        ),
        ("--notice-timeout 0s", 2, "it must be above 0"),
        ("--help", 0, "--decoder-alloc-port PORTS"),
    ] {
        let (got, said) = start(line, &[]).unwrap_err();
        assert_eq!(got, code, "{line}: {said}");
        assert!(said.contains(what), "{line}: {said}");
    }
    assert!(start("--proxy-p 1", &[]).is_ok(), "abbreviations are taken");
}

#[test]
fn clients_are_bound_by_the_environment() {
    let config = start("", &[("CLIENT_BOUND", "true")]).unwrap();
    assert_eq!(config.lmcache.bound_by.as_deref(), Some("session-id"));
    let env = [("CLIENT_BOUND", "True"), ("CLIENT_BOUND_KEY", "X-User")];
    assert_eq!(
        start("", &env).unwrap().lmcache.bound_by.as_deref(),
        Some("x-user")
    );
    assert_eq!(
        start("", &[("CLIENT_BOUND", "0")])
            .unwrap()
            .lmcache
            .bound_by,
        None
    );
    let config = start("--variant plain", &[]).unwrap();
    assert_eq!(config.lmcache.variant, Variant::Plain);
    assert!(config.lmcache.receivers.is_empty());
}
