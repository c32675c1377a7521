//! End-to-end fields travel both ways as they are; those of one connection stay on it.

use pdrelay::config::{Role, Secret};

use crate::support::{completion, post_bytes};

use super::fake::{Fake, at, proxy, send};
use super::raw;

const FIELDS: &str = "Authorization: Bearer client-key\r\ntraceparent: 00-abc-def-01\r\n\
    X-Custom: one\r\nx-custom: two\r\nX-Empty: \r\naccept: */*\r\nAccept-Encoding: gzip\r\n\
    user-agent: test/1\r\nX-Listed: hop\r\nX-Also: hop\r\n\
    Connection: x-listed, keep-alive,X-ALSO\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
    Proxy-Authorization: Basic c2VjcmV0\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\n";

const ANSWER: &str = "HTTP/1.1 200 Fine\r\nContent-Type: application/json; charset=utf-8\r\n\
    X-Custom: one\r\nx-custom: two\r\nset-cookie: a=b\r\nset-cookie: c=d\r\nserver: uvicorn\r\n\
    date: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Listed: hop\r\nConnection: x-listed\r\nKeep-Alive: timeout=5\r\n\
    Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nx-request-id: engines-own\r\nX-Name: caf\u{e9}\r\n\
    content-length: 2\r\n\r\n{}";

fn two(change: impl FnOnce(&mut pdrelay::config::Config)) -> (Fake, Fake, pdrelay::server::Server) {
    let p = Fake::always(vec![send(ANSWER)]);
    let d = Fake::always(vec![send(ANSWER)]);
    let server = proxy(&[&p, &d], |c| {
        c.handshake = "sequential".into();
        c.instances[0].role = Role::Prefill;
        c.instances[1].role = Role::Decode;
        change(c);
    });
    (p, d, server)
}

/// Engines behind a path: it stands in front of every path of theirs, also of probes, and is no part of
/// their `Host`.
#[test]
fn a_prefix_stands_in_front_of_every_path() {
    let (p, d, server) = two(|c| {
        c.health_check.enabled = true;
        c.health_check.interval = std::time::Duration::from_millis(20);
        for (one, prefix) in c.instances.iter_mut().zip(["p", "d/e"]) {
            let url = format!("http://{}/{prefix}/", one.address);
            one.address = pdrelay::config::Address::parse_url(&url).unwrap();
        }
    });
    let mut client = at(&server);
    client.send(post_bytes("/v1/completions?q=1", &completion("x", ""), ""));
    assert_eq!(client.response().status, 200);
    for (engine, prefix) in [(&p, "/p"), (&d, "/d/e")] {
        let asked = |line: String| {
            let seen = engine.seen();
            seen.iter().any(|one| one.text().starts_with(&line))
        };
        assert!(asked(format!("POST {prefix}/v1/completions?q=1 ")));
        crate::support::eventually("it is probed there", || {
            asked(format!("GET {prefix}/health "))
        });
        let seen = &engine.seen()[0];
        assert!(!seen.header("host")[0].contains('/'));
    }
}

const HOPS: [&str; 10] = [
    "x-listed",
    "x-also",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
];

#[test]
fn fields_travel_end_to_end_and_no_further() {
    let (p, d, server) = two(|_| {});
    let body = completion("x", "");
    let response = at(&server);
    let mut client = response;
    client.send(post_bytes("/v1/completions", &body, FIELDS));
    let response = client.response();
    for engine in [&p, &d] {
        let seen = &engine.seen()[0];
        let one = |name: &str| seen.header(name);
        assert_eq!(one("authorization"), ["Bearer client-key"]);
        assert_eq!(one("traceparent"), ["00-abc-def-01"]);
        assert_eq!(one("x-custom"), ["one", "two"]);
        assert_eq!(one("x-empty"), [""]);
        assert_eq!(one("accept"), ["*/*"]);
        assert_eq!(one("user-agent"), ["test/1"]);
        assert_eq!(one("content-type"), ["application/json"]);
        assert_eq!(
            one("host"),
            [engine.address.to_string()],
            "its own name, once"
        );
        assert_eq!(one("content-length").len(), 1);
        for hop in HOPS {
            assert_eq!(one(hop), Vec::<String>::new(), "{hop}");
        }
        assert!(
            seen.text().contains("X-Custom: one\r\n"),
            "names keep their case"
        );
    }
    assert!(
        p.seen()[0].header("accept-encoding").is_empty(),
        "P's answer is read by us"
    );
    assert_eq!(d.seen()[0].header("accept-encoding"), ["gzip"]);

    assert!(
        response.head.starts_with("HTTP/1.1 200 Fine\r\n"),
        "{}",
        response.head
    );
    let all = |name: &str| -> Vec<String> {
        response
            .head
            .lines()
            .filter_map(|l| l.split_once(": "))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_owned())
            .collect()
    };
    assert_eq!(all("content-type"), ["application/json; charset=utf-8"]);
    assert_eq!(all("x-custom"), ["one", "two"]);
    assert_eq!(all("set-cookie"), ["a=b", "c=d"]);
    assert_eq!(all("server"), ["uvicorn"]);
    assert_eq!(all("date").len(), 1);
    assert_eq!(all("x-name"), ["café"]);
    assert_eq!(all("content-length"), ["2"]);
    for hop in HOPS {
        assert_eq!(all(hop), Vec::<String>::new(), "{hop}");
    }
    let timing = response.header("server-timing").expect("Server-Timing");
    for stage in [
        "body;dur=",
        "prefill;dur=",
        "decode_head;dur=",
        "total;dur=",
    ] {
        assert!(timing.contains(stage), "{timing}");
    }
}

#[test]
fn one_id_from_end_to_end() {
    let (p, d, server) = two(|_| {});
    let long = "i".repeat(300);
    let cases = [
        ("abc-123", true),
        ("0af7651916cd43dd8448eb211c80319c", true),
        (&*long, false),
        ("two words", false),
        ("caf\u{e9}", false),
        ("", false),
    ];
    for (id, kept) in cases {
        let mut client = at(&server);
        let field = format!("X-Request-ID: {id}\r\n");
        client.send(post_bytes("/v1/completions", &completion("x", ""), &field));
        let response = client.response();
        let returned = response.header("x-request-id").expect("an id").to_owned();
        assert_eq!(returned == id, kept, "{id:?} -> {returned:?}");
        assert!(kept || returned.len() == 36, "{returned:?}");
        for engine in [&p, &d] {
            assert_eq!(
                engine.seen().last().unwrap().header("x-request-id"),
                [&*returned]
            );
        }
        assert_eq!(
            response.head.to_lowercase().matches("x-request-id").count(),
            1
        );
    }
    // None at all, or two; and answers of our own.
    let mut ids = Vec::new();
    for bytes in [
        post_bytes("/v1/completions", &completion("x", ""), ""),
        post_bytes("/v1/completions", &completion("x", ""), ""),
        post_bytes("/v1/completions", "nonsense", ""),
        b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n".to_vec(),
        b"GET /nowhere HTTP/1.1\r\nhost: t\r\n\r\n".to_vec(),
    ] {
        let response = raw(server.address, bytes);
        ids.push(response.header("x-request-id").expect("an id").to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:?}");
    let field = "x-request-id: first\r\nx-request-id: second\r\n";
    let bytes = post_bytes("/v1/completions", &completion("x", ""), field);
    assert_eq!(
        raw(server.address, bytes).header("x-request-id"),
        Some("first")
    );
    assert_eq!(d.seen().last().unwrap().header("x-request-id"), ["first"]);
}

#[test]
fn a_key_of_ours_replaces_the_clients_and_only_then() {
    let secret = |c: &mut pdrelay::config::Config| c.openai_api_key = Some(Secret("ours".into()));
    let (p, d, server) = two(secret);
    for field in [
        "authorization: Bearer theirs\r\n",
        "",
        "authorization: a\r\nAuthorization: b\r\n",
    ] {
        let bytes = post_bytes("/v1/completions", &completion("x", ""), field);
        let response = raw(server.address, bytes);
        assert_eq!(response.status, 200);
        assert!(!response.head.contains("ours"));
        for engine in [&p, &d] {
            let seen = engine.seen().last().unwrap().clone();
            assert_eq!(seen.header("authorization"), ["Bearer ours"]);
        }
    }
    let (p, _d, server) = two(|_| {});
    raw(
        server.address,
        post_bytes("/v1/completions", &completion("x", ""), ""),
    );
    assert!(p.seen()[0].header("authorization").is_empty());
}

/// Also a request that is refused before it is read has one, for its line in the log.
#[test]
fn refusals_carry_the_id() {
    let (_p, _d, server) = two(|c| c.timeouts.body = super::ms(100));
    for (framing, status) in [
        ("content-length: 100000000\r\n\r\n", 413),
        ("content-length: 10\r\n\r\n", 408),
        ("transfer-encoding: chunked\r\n\r\nnonsense\r\n", 400),
    ] {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: t\r\nx-request-id: mine\r\n";
        let response = raw(server.address, format!("{head}{framing}"));
        assert_eq!(
            (response.status, response.header("x-request-id")),
            (status, Some("mine"))
        );
    }
}

/// A field that a peer lists in `Connection` is dropped, but never one that frames the message.
#[test]
fn no_peer_can_have_framing_dropped() {
    let (p, d, server) = two(|_| {});
    let body = completion("framed", "");
    let field = "connection: content-length, host, transfer-encoding, content-type\r\n";
    let bytes = post_bytes("/v1/completions", &body, field);
    assert_eq!(raw(server.address, bytes).status, 200);
    for engine in [&p, &d] {
        let seen = &engine.seen()[0];
        assert_eq!(seen.header("host").len(), 1);
        assert_eq!(seen.header("content-length").len(), 1);
    }
    assert_eq!(d.seen()[0].body(), body.as_bytes());
}
