//! Whatever is too much is refused in words, and the next request is served.

use std::io::Write;
use std::thread;

use crate::support::{Client, Rig, chat, completion, engines, eventually, post_bytes, rig};

use super::binary::{Denied, Process};
use super::{End, ms, patience, quiet, raw, rest_of};

const MIB: usize = 1 << 20;

fn serves(rig: &Rig) {
    for (path, body) in [
        ("/v1/completions", completion("still there", "")),
        ("/v1/chat/completions", chat("and here", "")),
    ] {
        let response = rig.post(path, &body);
        assert_eq!(response.status, 200, "{}", response.text());
    }
}

#[test]
fn nested_brackets_are_a_400() {
    let rig = rig("nixl", 1, 1);
    let deep = "[".repeat(64 << 10);
    let bodies = [
        deep.clone(),
        format!(r#"{{"prompt":{deep}"#),
        format!(r#"{{"prompt":{deep}{}}}"#, "]".repeat(64 << 10)),
        format!(
            r#"{{"prompt":{}1{}}}"#,
            r#"{"a":"#.repeat(9000),
            "}".repeat(9000)
        ),
        "{".repeat(64 << 10),
        "\"".repeat(64 << 10),
    ];
    let mut client = rig.client();
    for body in bodies {
        let response = client.post("/v1/completions", &body);
        assert_eq!(response.status, 400, "{}", response.text());
        assert_eq!(response.json()["error"]["code"], 400);
    }
    let response = client.post("/v1/completions", &completion("after", ""));
    assert_eq!(response.status, 200, "the same connection goes on");
    assert_eq!(rig.posts(0).len(), 1);
}

#[test]
fn heads_without_end_are_a_431() {
    let rig = rig("nixl", 1, 1);
    let heads = [
        format!(
            "GET /health HTTP/1.1\r\nhost: t\r\nx-long: {}\r\n\r\n",
            "a".repeat(4 * MIB)
        ),
        format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "a".repeat(4 * MIB)),
        format!(
            "GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n",
            "x-a: b\r\n".repeat(4 * MIB / 8)
        ),
        format!(
            "GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n",
            "x-a: b\r\n".repeat(200)
        ),
        "a".repeat(4 * MIB),
    ];
    for head in heads {
        let response = raw(rig.server.address, head);
        assert_eq!(response.status, 431, "{}", response.text());
        assert_eq!(response.header("connection"), Some("close"));
    }
    serves(&rig);
}

#[test]
fn a_body_announced_too_large_is_refused_before_it_is_sent() {
    let rig = rig("nixl", 1, 1);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        100 * MIB
    );
    let mut client = rig.client();
    client.send(head);
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 413 "), "no 100 first: {head}");
    assert!(head.contains("connection: close"), "{head}");
    serves(&rig);
}

/// The client writes all of it before it reads: the answer must still be there.
#[test]
fn a_body_sent_too_large_does_not_eat_its_answer() {
    let rig = quiet("nixl", engines(1, 1), |c| {
        c.limits.body_bytes_max = 20 * MIB
    });
    let piece = vec![b'x'; MIB];
    for chunked in [false, true] {
        let mut client = rig.client();
        let framing = if chunked {
            "transfer-encoding: chunked".into()
        } else {
            format!("content-length: {}", 100 * MIB)
        };
        client.send(format!(
            "POST /v1/completions HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n"
        ));
        for _ in 0..100 {
            if chunked {
                client.send("100000\r\n");
            }
            client.send(&piece);
            if chunked {
                client.send("\r\n");
            }
        }
        let response = client.response();
        assert_eq!(response.status, 413, "{}", response.text());
        assert_eq!(response.json()["error"]["code"], 413);
        assert_eq!(rest_of(&mut client), (vec![], End::Fin));
    }
    serves(&rig);
    assert_eq!(rig.posts(0).len(), 2);
}

#[test]
fn bad_utf8_is_a_400_in_a_generate_body_and_nowhere_else() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    let body = b"{\"model\":\"dummy\",\"prompt\":\"\xff\xfe\"}";
    let post = |path: &str, more: &[u8]| {
        let mut bytes = format!("POST {path} HTTP/1.1\r\nhost: t\r\n").into_bytes();
        bytes.extend_from_slice(more);
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        raw(rig.server.address, bytes)
    };
    assert_eq!(post("/v1/completions", b"").status, 400);
    assert_eq!(rig.posts(0).len(), 0);
    post("/tokenize", b"x-name: caf\xe9\r\n");
    let received = &rig.posts(0)[0];
    assert_eq!(
        received.body, body,
        "a forwarded body is the engine's business"
    );
    assert_eq!(
        received.header("x-name"),
        Some("caf\u{fffd}"),
        "obs-text passes"
    );
    serves(&rig);
}

#[test]
fn connections_above_the_limit_are_told_so() {
    let rig = quiet("nixl", engines(1, 1), |c| c.limits.connections_max = 3);
    let mut held: Vec<Client> = (0..3).map(|_| rig.client()).collect();
    for client in &mut held {
        assert_eq!(client.get("/health").status, 200);
    }
    for early in [false, true] {
        let mut fourth = rig.client();
        if early {
            let _ = fourth
                .stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n");
            thread::sleep(ms(20));
        }
        let response = fourth.response();
        assert_eq!(response.status, 503);
        assert_eq!(response.header("retry-after"), Some("1"));
        assert!(response.complete);
        assert_eq!(response.json()["error"]["code"], 503);
        assert!(fourth.closed());
    }
    held.pop();
    eventually("a place is free", || rig.get("/health").status == 200);
    for client in &mut held {
        assert_eq!(
            client.get("/health").status,
            200,
            "the others never noticed"
        );
    }
}

#[test]
fn requests_above_the_limit_get_a_503_and_a_time_to_retry() {
    let rig = quiet("nixl", engines(1, 1), |c| c.limits.in_flight_max = 1);
    let mut first = rig.client();
    first.send(post_bytes(
        "/v1/completions",
        &completion("stuck", ""),
        "x-sim-fault: hang-before-head\r\n",
    ));
    eventually("it hangs at P", || rig.sim.open_requests(0) == 1);
    let mut second = rig.client();
    let response = second.post("/v1/completions", &completion("too many", ""));
    assert_eq!(response.status, 503);
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(
        rig.get("/v1/models").status,
        200,
        "only generate requests count"
    );
    drop(first);
    eventually("the place is free", || {
        second
            .post("/v1/completions", &completion("now", ""))
            .status
            == 200
    });
}

#[test]
fn bodies_above_the_memory_limit_get_a_503_and_give_it_back() {
    let mut engines = engines(1, 1);
    engines.iter_mut().for_each(|e| e.max_model_len = 1 << 20);
    let rig = quiet("nixl", engines, |c| {
        c.limits.body_memory_max = MIB;
        c.cores.shards = Some(1);
    });
    let big = completion(&"x".repeat(700_000), "");
    let whole = post_bytes("/v1/completions", &big, "");
    let mut first = rig.client();
    first.send(&whole[..whole.len() / 2]);
    let held = || rig.metric("pdrelay_body_memory_bytes");
    eventually("it is held", || held() == big.len() as f64);
    // A length, and chunks that grow past it.
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n",
        big.len()
    );
    for bytes in [&whole[..], chunked.as_bytes()] {
        let mut second = rig.client();
        second.send(bytes);
        let response = second.response();
        assert_eq!(response.status, 503, "{}", response.text());
        assert_eq!(response.header("retry-after"), Some("1"));
        assert_eq!(response.json()["error"]["code"], 503);
    }
    let small = rig.post("/v1/completions", &completion("small", ""));
    assert_eq!(small.status, 200, "a small one still fits");
    first.send(&whole[whole.len() / 2..]);
    assert_eq!(first.response().status, 200);
    let response = first.post("/v1/completions", &big);
    assert_eq!(response.status, 200, "and the memory is free again");
    // A client that leaves with its body half sent gives it back, too.
    first.send(&whole[..whole.len() / 2]);
    drop(first);
    eventually("given back", || {
        rig.post("/v1/completions", &big).status == 200
    });
}

#[test]
fn answers_of_a_prefill_above_the_limit_are_a_502() {
    let rig = quiet("nixl", engines(1, 1), |c| c.limits.answer_bytes_max = 200);
    let response = rig.post("/v1/completions", &completion("x", ""));
    assert_eq!(response.status, 502, "{}", response.text());
}

/// No descriptor is left: neither the listener nor the engines are to blame, and all is well once some are.
#[test]
fn descriptors_running_out_are_survived() {
    let sim = pdsim::Sim::start(pdsim::Options::pair(1, 1)).expect("the simulator starts");
    let [p, d] = sim.addresses() else { panic!() };
    let config = format!(
        "handshake: nixl\nhost: 127.0.0.1\nshards: 1\nprefill: [{p}]\ndecode: [{d}]\n\
         health_check: {{enabled: false}}\ntimeouts: {{connect: 500ms}}\n"
    );
    for legacy in ["0", "1"] {
        let environment = [("MONOIO_FORCE_LEGACY_DRIVER", legacy)];
        let process = Process::start(&config, Denied::Descriptors(64), &environment).unwrap();
        let mut held: Vec<Client> = Vec::new();
        while process.descriptors() < 64 {
            let mut client = Client::connect(process.address);
            patience(&client, 1000);
            client.send("GET /health HTTP/1.1\r\nhost: t\r\n\r\n");
            thread::sleep(ms(5));
            held.push(client);
        }
        // These wait in the queue of the listener.
        let waiting: Vec<Client> = (0..20).map(|_| Client::connect(process.address)).collect();
        let body = completion("no descriptor", "");
        let response = held[0].response();
        assert_eq!(response.status, 200);
        let response = held[0].post("/v1/completions", &body);
        assert_eq!(response.status, 503, "{}", response.text());
        assert_eq!(response.header("retry-after"), Some("1"));
        let keep = held.remove(0);
        drop((held, waiting));
        let mut client = keep;
        eventually("there are some again", || {
            client.post("/v1/completions", &body).status == 200
        });
        assert_eq!(Client::connect(process.address).get("/health").status, 200);
        let page = client.get("/metrics").text();
        let blamed = page
            .lines()
            .filter(|l| l.starts_with("pdrelay_ejections_total"));
        for line in blamed {
            assert!(line.ends_with(" 0"), "{line}");
        }
        assert!(process.end());
    }
}
