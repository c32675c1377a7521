//! `disaggregated_mode: zmq`: the LMCache handshake in the words of xPyD-proxy 1.8.

use pdrelay::config::load::{self, Known, Overrides, Source};
use pdrelay::config::{Config, legacy::xpyd};
use pdrelay::server::Server;
use pdsim::{Notices, Sim, expected, prompt_hash};

use crate::support::lmcache::engines;
use crate::support::{Rig, completion, eventually};

const TEXT: &str = "a prompt that is longer than a block of sixteen tokens, by far";

fn read(text: &str) -> Result<Config, String> {
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let source = Source {
        text,
        label: "f",
        file: None,
    };
    let defaults = xpyd::defaults();
    let loaded = load::load_over(
        defaults,
        Some(source),
        &Overrides::default(),
        &known,
        &|_| None,
    );
    loaded
        .map(|loaded| loaded.config)
        .map_err(|problems| problems.to_string())
}

fn rig(first: &str) -> Rig {
    let sim = Sim::start(pdsim::Options {
        engines: engines(1, 1, 2),
        ..pdsim::Options::default()
    })
    .unwrap();
    let [p, d] = [0, 1].map(|i| sim.addresses()[i]);
    let text = format!(
        "model: dummy\nprefill: ['{p}']\ndecode: ['{d}']\ndisaggregated_mode: zmq\nfirst_token_source: {first}\n\
         zmq:\n  port: 7500\n  notification_timeout_seconds: 0.4\n  receivers:\n    '{d}': {{host: 127.0.0.1, \
         init_ports: [20000, 20001], alloc_ports: [20050, 20051]}}\n"
    );
    let mut config = read(&text).unwrap();
    config.host = "127.0.0.1".into();
    config.port = 0;
    config.lmcache.host = crate::support::lmcache::NOTICES_HOST.into();
    config.lmcache.port = 0;
    config.cores.shards = Some(2);
    let server = Server::start(config).unwrap();
    sim.notices_to(server.notices().unwrap());
    let rig = Rig { server, sim };
    eventually("the backends are found", || {
        rig.get("/v1/models").status == 200
    });
    rig
}

#[test]
fn a_request_is_served_with_either_first_token() {
    for first in ["decode", "prefill"] {
        let rig = rig(first);
        for stream in ["", r#","stream":true"#] {
            let sent = completion(TEXT, &format!(r#","max_tokens":5{stream}"#));
            let response = rig.post("/v1/completions", &sent);
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 5));
        }
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!((ledger.loaded, ledger.recomputed), (2, 0));
        let asked = rig.posts(0);
        let told = asked
            .iter()
            .any(|l| String::from_utf8_lossy(&l.body).contains("ret_first_tok"));
        assert_eq!(told, first == "prefill");
    }
}

#[test]
fn a_notice_that_does_not_come_is_a_504() {
    let rig = rig("prefill");
    rig.sim.set_notices(0, Notices::Lost);
    let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":5"#));
    assert_eq!(response.status, 504, "{}", response.text());
    let error = &response.json()["error"];
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("Timed out waiting for ZMQ notification")
    );
    assert!(error["code"].is_null());
}

#[test]
fn a_section_that_cannot_work_is_refused() {
    let base = "model: m\nprefill: [a:1]\ndecode: [b:2]\ndisaggregated_mode: zmq\n";
    let one = "zmq: {receivers: {'b:2': {host: b, init_ports: [1], alloc_ports: [2]}}}\n";
    assert!(read(&format!("{base}{one}")).is_ok());
    for (more, what) in [
        ("", "disaggregated_mode=zmq requires a zmq configuration"),
        ("zmq: {}", "decode b:2 has no receiver"),
        (
            "zmq: {receivers: {'b:2': {host: b, init_ports: [], alloc_ports: []}}}",
            "a port for each rank",
        ),
        (
            "zmq: {receivers: {'b:2': {host: b, init_ports: [1, 2], alloc_ports: [3]}}}",
            "one of each per rank",
        ),
        (
            "zmq: {receivers: {'b:2': {host: b, init_ports: [1], alloc_ports: [1]}}}",
            "port 1 is there twice",
        ),
        (
            "zmq: {receivers: {'b:2': {host: b, port: 1}}}",
            "Unknown keys in a receiver: ['port']",
        ),
        (
            "first_token_source: prefill\nzmq: {receivers: {'b:2': {host: b, init_ports: [1], alloc_ports: [2], \
             skip_last_n_tokens: 0}}}",
            "requires skip_last_n_tokens=1",
        ),
    ] {
        let problems = read(&format!("{base}{more}\n")).unwrap_err();
        assert!(problems.contains(what), "{more}: {problems}");
    }
}
