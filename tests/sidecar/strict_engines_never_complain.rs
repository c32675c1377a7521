//! Each connector in front of engines that speak its dialect, and refuse what the real ones refuse: the text is that
//! of one engine, nothing is held, and the ledger has no mistake to tell of.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pdrelay::config::Role;
use pdrelay::server::Server;
use pdsim::{EcMode, EngineOptions, KvMode, Sim};

use super::beside;
use crate::support::{
    Client, Response, aggregated, chat, completion, config, engine, engines, eventually, post_bytes,
};

/// The dialects in which engines meet or share by themselves, by the sidecar's names.
const CONNECTORS: [(&str, KvMode); 4] = [
    ("sglang", KvMode::Sglang),
    ("mooncake", KvMode::Mooncake),
    ("offloading", KvMode::Offloading),
    ("shared-storage", KvMode::SharedStorage),
];
/// Those in which P and D are asked at once.
const AT_ONCE: [(&str, KvMode); 2] = [CONNECTORS[0], CONNECTORS[1]];

struct World {
    sim: Sim,
    server: Server,
    p: SocketAddr,
}

fn world(connector: &str, kv: KvMode, change: impl Fn(&mut EngineOptions)) -> World {
    let mut engines = engines(1, 1);
    for engine in &mut engines {
        engine.kv = kv;
        engine.cached_details = true;
        change(engine);
    }
    let options = pdsim::Options {
        engines,
        ..pdsim::Options::default()
    };
    let sim = Sim::start(options).expect("the simulator starts");
    let (p, d) = (sim.addresses()[0], sim.addresses()[1]);
    let side = sim.side(0).map_or(1, |side| side.port());
    let args = [
        format!("--kv-connector={connector}"),
        format!("--mooncake-bootstrap-port={side}"),
        format!("--p2p-connector-port={side}"),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = super::beside_with("sidecar", d, &args, |config| {
        config.sidecar.as_mut().unwrap().bootstrap_port = side;
    });
    World { sim, server, p }
}

impl World {
    fn send(&self, path: &str, body: &str, more: &str) -> Client {
        let mut client = Client::connect(self.server.address);
        let all = format!("x-prefiller-host-port: {}\r\n{more}", self.p);
        client.send(post_bytes(path, body, &all));
        client
    }

    fn ask(&self, path: &str, body: &str, more: &str) -> Response {
        self.send(path, body, more).response()
    }

    /// When P, too, has come to its end.
    fn clean(&self) -> pdsim::LedgerReport {
        eventually("both are done", || {
            (0..2).all(|engine| self.sim.open_requests(engine) == 0)
        });
        let ledger = self.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!((ledger.held_now, ledger.unmet), (0, 0));
        ledger
    }
}

/// More than a block, and unlike every other text from its beginning.
fn long(tag: &str) -> String {
    format!("{tag}: a prompt that fills some blocks of KV. ").repeat(4)
}

#[test]
fn text_is_that_of_one_engine() {
    let single = aggregated(1);
    for (connector, kv) in CONNECTORS {
        let world = world(connector, kv, |_| {});
        let mut asked = 0;
        for (path, body) in [
            (
                "/v1/chat/completions",
                chat(&long("1"), r#","max_tokens":12,"temperature":0"#),
            ),
            (
                "/v1/chat/completions",
                chat(&long("2"), r#","max_tokens":12,"stream":true"#),
            ),
            (
                "/v1/completions",
                completion(&long("3"), r#","max_tokens":12,"stream":true"#),
            ),
            (
                "/v1/completions",
                completion(&long("4"), r#","max_tokens":1"#),
            ),
            // D ends on its first token: P must have kept what it has all the same.
            (
                "/v1/completions",
                completion(&format!("{}[[eos@1]]", long("5")), r#","max_tokens":5"#),
            ),
            (
                "/v1/completions",
                completion(
                    &format!("{}[[eos@3]]", long("6")),
                    r#","max_tokens":5,"stop":["x"]"#,
                ),
            ),
        ] {
            let alone = single.post(path, &body).generated();
            let response = world.ask(path, &body, "");
            assert_eq!(
                (response.status, response.complete),
                (200, true),
                "{connector}: {}",
                response.text()
            );
            assert_eq!(response.generated(), alone, "{connector} {body}");
            asked += 1;
        }
        let ledger = world.clean();
        match kv {
            KvMode::SharedStorage => assert_eq!((ledger.pushes, ledger.loaded), (asked, asked)),
            _ => assert_eq!(
                (ledger.grants, ledger.fetched),
                (asked, asked),
                "{connector}"
            ),
        }
        assert_eq!(ledger.recomputed, 0, "{connector}");
        assert_eq!(
            world.sim.requests(0),
            asked,
            "{connector}: each was prefilled once"
        );
    }
}

#[test]
fn a_batch_is_every_one_s_own_text() {
    let single = aggregated(1);
    let body = format!(
        r#"{{"prompt":["{}","{}"],"max_tokens":6}}"#,
        long("one"),
        long("two")
    );
    let texts = |response: &Response| {
        assert_eq!(response.status, 200, "{}", response.text());
        let all = response.json()["choices"].clone();
        [0, 1].map(|choice| all[choice]["text"].clone())
    };
    let alone = texts(&single.post("/v1/completions", &body));
    for (connector, kv) in CONNECTORS {
        let world = world(connector, kv, |_| {});
        assert_eq!(
            texts(&world.ask("/v1/completions", &body, "")),
            alone,
            "{connector}"
        );
        let ledger = world.clean();
        // SGLang's engines count a batch's rooms up; where one id is for one prompt, D computes.
        let grants = if kv == KvMode::Sglang { 2 } else { 0 };
        assert_eq!(
            (ledger.grants, ledger.fetched),
            (grants, grants),
            "{connector}"
        );
    }
}

#[test]
fn samples_never_need_more_than_one_prefill() {
    for (connector, kv) in CONNECTORS {
        let world = world(connector, kv, |_| {});
        let body = completion(&long("n"), r#","max_tokens":4,"n":2"#);
        let response = world.ask("/v1/completions", &body, "");
        if kv == KvMode::Sglang {
            // Its own limit: what it says is what the client is told.
            assert_eq!(response.status, 500);
            assert!(
                response.text().contains("one bootstrap room"),
                "{}",
                response.text()
            );
            continue;
        }
        assert_eq!(response.status, 200, "{connector}: {}", response.text());
        let choices = response.json()["choices"].clone();
        assert_ne!(choices[0]["text"], choices[1]["text"]);
        let ledger = world.clean();
        assert!(
            ledger.grants <= 1 && ledger.recomputed == 0,
            "{connector}: {ledger:?}"
        );
    }
}

#[test]
fn many_at_once_never_meet_the_wrong_one() {
    for (connector, kv) in CONNECTORS {
        let world = world(connector, kv, |engine| {
            engine.ranks = 2;
            engine.timing.prefill_tokens_per_s = 100_000.0;
        });
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let world = &world;
                scope.spawn(move || {
                    for turn in 0..12 {
                        let text = long(&format!("{thread} {turn}"));
                        let stream = if turn % 2 == 0 {
                            r#","stream":true"#
                        } else {
                            ""
                        };
                        let more = format!(r#","max_tokens":3{stream}"#);
                        let response = world.ask("/v1/completions", &completion(&text, &more), "");
                        let expected = pdsim::expected(pdsim::prompt_hash(&text), 0, 3);
                        assert_eq!(
                            response.generated(),
                            expected,
                            "{connector}: {}",
                            response.text()
                        );
                    }
                });
            }
        });
        let ledger = world.clean();
        if kv != KvMode::SharedStorage {
            assert_eq!((ledger.grants, ledger.fetched), (96, 96), "{connector}");
        }
        assert_eq!(ledger.recomputed, 0, "{connector}");
    }
}

#[test]
fn a_failed_p_is_told_where_p_comes_first() {
    for (connector, kv) in [CONNECTORS[2], CONNECTORS[3]] {
        let world = world(connector, kv, |_| {});
        let body = completion(&long("x"), r#","max_tokens":4"#);
        for (fault, status) in [
            ("status:503", 503),
            ("accept-then-close", 502),
            ("half-body", 502),
        ] {
            let fault = format!("x-sim-fault-prefill: {fault}\r\n");
            let response = world.ask("/v1/completions", &body, &fault);
            assert_eq!(response.status, status, "{connector} {fault}");
        }
        assert_eq!(world.sim.requests(1), 0, "{connector}: D is not asked");
        assert_eq!(world.sim.ledger().violations, Vec::<String>::new());
        world.sim.kill(0);
        assert_eq!(
            world.ask("/v1/completions", &body, "").status,
            502,
            "{connector}"
        );
    }
}

/// D would wait for minutes (here 300 s): P's failure is the answer, before a byte of D's.
#[test]
fn a_failed_p_never_leaves_a_client_waiting_for_decode() {
    for (connector, kv) in AT_ONCE {
        let world = world(connector, kv, |_| {});
        for (number, stream) in ["", r#","stream":true"#].iter().enumerate() {
            let body = completion(&long("x"), &format!(r#","max_tokens":4{stream}"#));
            for (fault, status) in [
                ("status:503", 503),
                ("status:422", 422),
                ("accept-then-close", 502),
            ] {
                let fault = format!("x-sim-fault-prefill: {fault}\r\n");
                let response = world.ask("/v1/completions", &body, &fault);
                assert_eq!(
                    response.status,
                    status,
                    "{connector} {stream} {fault}: {}",
                    response.text()
                );
            }
            // The next one is not the worse for it.
            let good = long(&format!("good {number}"));
            let good = completion(&good, &format!(r#","max_tokens":4{stream}"#));
            let response = world.ask("/v1/completions", &good, "");
            assert_eq!(response.status, 200, "{connector}: {}", response.text());
            assert_eq!(
                response.generated().len(),
                4 * 12,
                "{connector}: {}",
                response.text()
            );
        }
        assert_eq!(world.clean().grants, 2, "{connector}");
        world.sim.kill(0);
        let response = world.ask("/v1/completions", &completion("x", ""), "");
        // SGLang's D may be the first to say that nobody is there.
        assert!(
            [500, 502].contains(&response.status),
            "{connector}: {}",
            response.text()
        );
    }
}

/// What P says too late, or badly, does not matter once D has what it came for.
#[test]
fn a_p_that_answers_badly_never_takes_d_s_answer_away() {
    let world = world("mooncake", KvMode::Mooncake, |engine| {
        engine.timing.decode_tick = Duration::from_millis(20);
    });
    for fault in ["half-body", "slow-head:300"] {
        let fault = format!("x-sim-fault-prefill: {fault}\r\n");
        let text = long(&fault[21..30]);
        let response = world.ask(
            "/v1/completions",
            &completion(&text, r#","max_tokens":10"#),
            &fault,
        );
        assert_eq!(
            response.generated(),
            pdsim::expected(pdsim::prompt_hash(&text), 0, 10)
        );
    }
    world.clean();
}

#[test]
fn clients_that_leave_never_keep_an_engine() {
    for (connector, kv) in CONNECTORS {
        let world = world(connector, kv, |engine| {
            engine.timing.decode_tick = Duration::from_millis(20);
            engine.timing.prefill_tokens_per_s = 2000.0;
            // A P that is at its end when D is not asked any more holds what it has for so long.
            engine.lease = Duration::from_secs(3);
        });
        let body = |tag: &str| completion(&long(tag), r#","max_tokens":500,"stream":true"#);
        for turn in 0..3 {
            // In the middle of the stream.
            let mut client = world.send("/v1/completions", &body(&format!("a{turn}")), "");
            assert!(client.head().starts_with("HTTP/1.1 200"));
            drop(client);
            // Wherever the request is by then.
            let client = world.send("/v1/completions", &body(&format!("b{turn}")), "");
            std::thread::sleep(Duration::from_millis(10 * turn));
            drop(client);
        }
        eventually("nothing runs", || {
            (0..2).all(|engine| world.sim.open_requests(engine) == 0)
        });
        let ledger = world.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new(), "{connector}");
        eventually("nothing is held", || world.sim.ledger().held_now == 0);
    }
}

/// D finds enough, or it does not and P is asked; nothing of the answer that said so is seen.
#[test]
fn a_threshold_costs_one_prefill_and_only_the_first_time() {
    let single = aggregated(1);
    for stream in ["", r#","stream":true"#] {
        let world = world("shared-storage", KvMode::SharedStorage, |_| {});
        for (path, body) in [
            (
                "/v1/completions",
                completion(
                    &long("t"),
                    &format!(r#","max_tokens":5,"cache_hit_threshold":0.8{stream}"#),
                ),
            ),
            (
                "/v1/chat/completions",
                chat(
                    &long("u"),
                    &format!(r#","max_tokens":5,"cache_hit_threshold":0.8{stream}"#),
                ),
            ),
        ] {
            let alone = single.post(path, &body).generated();
            let before = world.sim.requests(0);
            for _ in 0..3 {
                let response = world.ask(path, &body, "");
                assert_eq!((response.status, response.complete), (200, true));
                assert_eq!(response.generated(), alone);
                assert!(
                    !response.text().contains("cache_threshold"),
                    "{}",
                    response.text()
                );
            }
            assert_eq!(world.sim.requests(0), before + 1, "{path} {stream}");
        }
        assert_eq!(world.clean().recomputed, 0);
    }
}

/// D's engine calls all of the prompt cached, since it computed nothing of it: what P had of it is what counts.
#[test]
fn cached_tokens_are_p_s() {
    let world = world("nixlv2", KvMode::Nixl, |_| {});
    // 168 bytes: 56 tokens, and three whole blocks.
    let text = long("c");
    assert_eq!(text.len(), 168);
    let cached = |value: &serde_json::Value| {
        value["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    for (turn, expected) in [(0, 0), (1, 48), (2, 48)] {
        let whole = world.ask(
            "/v1/completions",
            &completion(&text, r#","max_tokens":3"#),
            "",
        );
        assert_eq!(cached(&whole.json()), Some(expected), "turn {turn}");
    }
    let more = r#","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}"#;
    let response = world.ask("/v1/completions", &completion(&text, more), "");
    let events = response.events();
    let usage = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(cached(&usage), Some(48), "{events:?}");
    world.clean();
}

#[test]
fn encoders_of_both_kinds_are_asked_for_what_they_can_do() {
    let item =
        |name: &str| format!(r#"{{"type":"image_url","image_url":{{"url":"http://h/{name}"}}}}"#);
    let content = format!(
        r#"[{{"type":"text","text":"look"}},{},{}]"#,
        item("a"),
        item("b")
    );
    let single = aggregated(1);
    for (connector, ec) in [("ec-example", EcMode::Example), ("ec-nixl", EcMode::Nixl)] {
        let mut all = vec![engine(pdsim::Role::Encode)];
        all.extend(engines(1, 1));
        for one in &mut all {
            one.ec = ec;
        }
        let options = pdsim::Options {
            engines: all,
            ..pdsim::Options::default()
        };
        let sim = Sim::start(options).expect("the simulator starts");
        let [e, p, d] = sim.addresses() else {
            panic!("three engines")
        };
        let server = beside("sidecar", *d, &[&format!("--ec-connector={connector}")]);
        let named = format!("x-encoder-hosts-ports: {e}\r\nx-prefiller-host-port: {p}\r\n");
        for more in [
            "",
            r#","stream":true,"stream_options":{"include_usage":true},"temperature":0,"user":"u""#,
        ] {
            let body = format!(
                r#"{{"messages":[{{"role":"user","content":{content}}}],"max_tokens":5{more}}}"#
            );
            let alone = single.post("/v1/chat/completions", &body).generated();
            let response = super::post_plain(&server, "/v1/chat/completions", &body, &named);
            assert_eq!(response.status, 200, "{connector}: {}", response.text());
            assert_eq!(response.generated(), alone);
        }
        let ledger = sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new(), "{connector}");
        // Two items, twice; P and D are each shown both.
        let shown = if ec == EcMode::Nixl { 8 } else { 0 };
        assert_eq!((ledger.encoded, ledger.embedded), (4, shown), "{connector}");
        assert_eq!((ledger.grants, ledger.fetched), (2, 2));
    }
}

/// A P that comes back is another engine: its old id is not used for longer than it takes to notice.
#[test]
fn a_p_that_was_restarted_is_met_again() {
    for (connector, kv) in AT_ONCE {
        let world = world(connector, kv, |engine| {
            engine.patience = Duration::from_millis(300)
        });
        let ask = |tag: &str| {
            let text = long(tag);
            let response = world.ask(
                "/v1/completions",
                &completion(&text, r#","max_tokens":3"#),
                "",
            );
            (response.status == 200).then(|| {
                assert_eq!(
                    response.generated(),
                    pdsim::expected(pdsim::prompt_hash(&text), 0, 3)
                );
            })
        };
        assert!(ask("before").is_some());
        world.sim.restart(0);
        let begun = Instant::now();
        while ask("after").is_none() {
            assert!(
                begun.elapsed() < Duration::from_secs(15),
                "{connector}: never again"
            );
        }
        assert_eq!(world.sim.ledger().violations, Vec::<String>::new());
    }
}

/// Without a header: each of two P has its own bootstrap or peer port, and D is told of the right one's.
#[test]
fn two_p_on_one_host_are_never_taken_for_each_other() {
    for (handshake, kv) in [
        ("sglang", KvMode::Sglang),
        ("mooncake", KvMode::Mooncake),
        ("offloading", KvMode::Offloading),
    ] {
        let mut all = engines(2, 2);
        all.iter_mut().for_each(|engine| engine.kv = kv);
        let options = pdsim::Options {
            engines: all,
            ..pdsim::Options::default()
        };
        let sim = Sim::start(options).expect("the simulator starts");
        let roles = [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode];
        let mut config = config(handshake, &roles, sim.addresses());
        for (index, instance) in config.instances.iter_mut().enumerate().take(2) {
            instance.side_port = sim.side(index).map(|side| side.port());
        }
        let server = Server::start(config).expect("the proxy starts");
        for number in 0..12 {
            let text = long(&format!("{number}"));
            let body = completion(&text, r#","max_tokens":3"#);
            let response = Client::connect(server.address).post("/v1/completions", &body);
            let expected = pdsim::expected(pdsim::prompt_hash(&text), 0, 3);
            assert_eq!(
                response.generated(),
                expected,
                "{handshake}: {}",
                response.text()
            );
        }
        eventually("all P are done", || sim.ledger().held_now == 0);
        let ledger = sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new(), "{handshake}");
        assert_eq!((ledger.fetched, ledger.recomputed), (12, 0), "{handshake}");
        assert!(sim.requests(0) > 0 && sim.requests(1) > 0);
    }
}
