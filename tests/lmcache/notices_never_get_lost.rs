//! Every kind of notice, at every time, is counted once for its request and disturbs no other.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pdrelay::config::lmcache::OnTimeout;
use pdsim::{Notices, expected, prompt_hash};

use super::TEXT;
use crate::support::lmcache::{NOTICES_HOST, SOON, engines, receivers, rig, rig_with};
use crate::support::{Rig, completion, eventually, post_bytes};

fn ask(rig: &Rig) {
    let response = rig.post("/v1/completions", &completion(TEXT, r#","max_tokens":4"#));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.generated(), expected(prompt_hash(TEXT), 0, 4));
}

fn waits(rig: &Rig, outcome: &str) -> f64 {
    rig.metric(&format!(
        r#"pdrelay_notice_waits_total{{outcome="{outcome}"}}"#
    ))
}

fn seen(rig: &Rig, kind: &str) -> f64 {
    rig.metric(&format!(r#"pdrelay_notices_total{{kind="{kind}"}}"#))
}

#[test]
fn whatever_else_comes_in_between_passes_by() {
    for (fault, unknown, unreadable) in [
        (Notices::Sent, 0.0, 0.0),
        (Notices::Late(Duration::from_millis(150)), 0.0, 0.0),
        (Notices::Foreign, 4.0, 0.0),
        (Notices::Garbage, 0.0, 4.0),
    ] {
        let rig = rig(1, 1, 2);
        rig.sim.set_notices(0, fault);
        ask(&rig);
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new(), "{fault:?}");
        assert_eq!((ledger.loaded, ledger.recomputed), (1, 0), "{fault:?}");
        assert_eq!(waits(&rig, "arrived"), 1.0, "{fault:?}");
        assert_eq!(
            (seen(&rig, "unknown"), seen(&rig, "unreadable")),
            (unknown, unreadable),
            "{fault:?}"
        );
        // And the next request is served as well.
        rig.sim.set_notices(0, Notices::Sent);
        ask(&rig);
        assert_eq!(waits(&rig, "arrived"), 2.0, "{fault:?}");
    }
}

/// Said twice it is there twice: a rank that repeats itself cannot be told from another one. But it is
/// never taken for another request's.
#[test]
fn a_notice_that_comes_after_its_request_waits_for_nobody() {
    let rig = rig(1, 1, 1);
    rig.sim.set_notices(0, Notices::Twice);
    for _ in 0..5 {
        ask(&rig);
    }
    eventually("all ten were seen", || {
        seen(&rig, "counted") + seen(&rig, "unknown") == 10.0
    });
    assert_eq!(rig.metric("pdrelay_notices_open"), 0.0);
    assert_eq!(rig.sim.ledger().loaded, 5);
}

#[test]
fn a_deadline_ends_the_wait_and_decode_computes() {
    for fault in [Notices::Lost, Notices::Silent] {
        let rig = rig_with(engines(1, 1, 2), |config| {
            config.lmcache.notice_timeout = SOON
        });
        rig.sim.set_notices(0, fault);
        let began = Instant::now();
        ask(&rig);
        assert!(began.elapsed() >= SOON);
        assert_eq!(waits(&rig, "timed_out"), 1.0);
        assert_eq!(rig.metric("pdrelay_notices_open"), 0.0);
    }
}

#[test]
fn a_deadline_can_be_an_error() {
    let rig = rig_with(engines(1, 1, 1), |config| {
        config.lmcache.notice_timeout = SOON;
        config.lmcache.on_timeout = OnTimeout::Error;
    });
    rig.sim.set_notices(0, Notices::Lost);
    let response = rig.post("/v1/completions", &completion(TEXT, ""));
    assert_eq!(response.status, 504);
    let message = response.json()["error"]["message"].to_string();
    assert!(
        message.contains("Timed out waiting for ZMQ notification"),
        "{message}"
    );
    assert!(
        rig.posts(1).iter().all(|l| l.path == "/tokenize"),
        "decode is not asked"
    );
}

#[test]
fn a_transfer_that_says_it_failed_is_not_waited_for() {
    let rig = rig(1, 1, 2);
    rig.sim.set_notices(0, Notices::Failed);
    let began = Instant::now();
    ask(&rig);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "well below the deadline"
    );
    assert_eq!(waits(&rig, "failed"), 1.0);
    assert_eq!(rig.sim.ledger().recomputed, 1);
}

/// Senders keep what they have to say while the proxy is down, and say it to the next one.
#[test]
fn another_start_never_counts_what_was_meant_for_this_one() {
    use pdrelay::config::Role;
    use pdrelay::server::Server;
    use pdsim::Sim;

    let engines = engines(1, 1, 1);
    let sim = Sim::start(pdsim::Options {
        engines: engines.clone(),
        ..pdsim::Options::default()
    })
    .unwrap();
    // A port of our own for both starts. The senders are there before either.
    let port = quiet_port();
    sim.notices_to(port);
    let start = || {
        let roles = [Role::Prefill, Role::Decode];
        let mut config = crate::support::config("lmcache", &roles, sim.addresses());
        config.lmcache.port = port.port();
        config.lmcache.notice_timeout = SOON;
        receivers(&mut config, &engines);
        Server::start(config).unwrap()
    };
    let sim_of = |server| Rig {
        server,
        sim: Sim::start(pdsim::Options::default()).unwrap(),
    };
    let first = sim_of(start());
    sim.set_notices(0, Notices::Late(Duration::from_millis(900)));
    ask(&first);
    assert_eq!(waits(&first, "timed_out"), 1.0);
    drop(first);
    let second = sim_of(start());
    eventually("what was late has come here", || {
        seen(&second, "unknown") == 1.0
    });
    sim.set_notices(0, Notices::Sent);
    ask(&second);
    assert_eq!(
        (waits(&second, "arrived"), seen(&second, "counted")),
        (1.0, 1.0)
    );
}

/// A free port below those that the kernel gives to whoever connects: a sender that knocks at one of these
/// while nobody listens may be connected with itself.
fn quiet_port() -> std::net::SocketAddr {
    let first = 21_000 + (std::process::id() % 5_000) as u16;
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = (first..first + 500).find(free).expect("a free port");
    std::net::SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_client_that_leaves_while_it_waits_is_noticed() {
    let rig = rig(1, 1, 1);
    rig.sim.set_notices(0, Notices::Lost);
    let mut client = rig.client();
    client.send(post_bytes("/v1/completions", &completion(TEXT, ""), ""));
    eventually("P has answered", || {
        rig.posts(0)
            .iter()
            .any(|l| l.path == "/v1/completions" && l.outcome == pdsim::Outcome::Answered(200))
    });
    eventually("it waits", || rig.metric("pdrelay_notices_open") == 1.0);
    drop(client);
    eventually("it does not wait any more", || {
        rig.metric("pdrelay_notices_open") == 0.0
    });
    assert_eq!(
        rig.metric(r#"pdrelay_client_gone_total{stage="prefill"}"#),
        1.0
    );
    assert!(rig.posts(1).iter().all(|l| l.path == "/tokenize"));
}

#[test]
fn many_requests_at_once_get_their_own() {
    let rig = rig(2, 2, 4);
    rig.sim
        .set_notices(0, Notices::Late(Duration::from_millis(5)));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let rig = &rig;
            scope.spawn(move || {
                let mut client = rig.client();
                for i in 0..25 {
                    let text = format!("{TEXT} {thread} {i}");
                    let sent = completion(&text, r#","max_tokens":3,"stream":true"#);
                    let response = client.post("/v1/completions", &sent);
                    assert_eq!(response.generated(), expected(prompt_hash(&text), 0, 3));
                }
            });
        }
    });
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.pushes, ledger.loaded), (200, 200));
    assert_eq!(waits(&rig, "arrived"), 200.0);
    assert_eq!((seen(&rig, "counted"), seen(&rig, "unknown")), (800.0, 0.0));
}

/// Half a greeting, and nothing more: such a peer keeps its place no longer than a client that never sends its head.
#[test]
fn peers_that_never_say_what_they_are_never_keep_a_place() {
    let rig = rig_with(engines(1, 1, 1), |config| {
        config.timeouts.head = Duration::from_millis(300);
    });
    ask(&rig);
    let senders = |count: f64| {
        eventually("the senders are counted", || {
            rig.metric("pdrelay_notice_senders") == count
        });
    };
    senders(1.0);
    let port = rig.server.notices().expect("a notice port").port();
    let held: Vec<TcpStream> = (0..8)
        .map(|n| {
            let mut peer = TcpStream::connect((NOTICES_HOST, port)).unwrap();
            peer.write_all(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f][..n])
                .unwrap();
            peer
        })
        .collect();
    for mut peer in held {
        peer.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut rest = Vec::new();
        let ended = peer.read_to_end(&mut rest);
        let waits = ended.is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        assert!(!waits, "it is closed, one way or the other");
    }
    // A sender that is known stays, and is listened to.
    senders(1.0);
    ask(&rig);
    assert_eq!(waits(&rig, "arrived"), 2.0);
}
