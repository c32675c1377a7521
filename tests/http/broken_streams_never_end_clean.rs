//! An engine that fails in the middle of its answer: the client must not take what it has for the whole.
//! Where its framing and type allow one, it gets an `error` event; never a final chunk, never `[DONE]`.

use pdrelay::server::Server;

use crate::support::{Client, completion};

use super::fake::{Act, Fake, answer, at, proxy, send};
use super::{End, ms, rest_of};

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "data: {\"a\":1}\n\n";

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

/// A proxy whose only engine fails like this once, and is sound ever after.
fn failing(acts: Vec<Act>) -> (Fake, Server) {
    let fake = Fake::new(move |number, _| match number {
        0 => acts.clone(),
        _ => vec![answer("{}")],
    });
    let server = proxy(&[&fake], |c| c.timeouts.between_chunks = ms(150));
    (fake, server)
}

/// The engine fails when the reply has begun.
fn ask(fake: &Fake, server: &Server, version: &str) -> Client {
    let mut client = at(server);
    let body = completion("x", r#","stream":true"#);
    client.send(format!(
        "POST /v1/completions HTTP/{version}\r\nhost: t\r\nconnection: keep-alive\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let head = client.head();
    client.rest.splice(0..0, head.bytes());
    fake.go();
    client
}

fn next_works(fake: &Fake, server: &Server) {
    let response = at(server).post("/v1/completions", &completion("next", ""));
    assert_eq!((response.status, &*response.text()), (200, "{}"));
    let seen = fake.seen();
    let (first, last) = (&seen[0], seen.last().unwrap());
    assert_ne!(
        first.connection, last.connection,
        "the broken connection was used again"
    );
}

/// The ways to fail after a first write of `first`.
fn ends(first: &str) -> Vec<(&'static str, Vec<Act>)> {
    let begin = || vec![send(first), Act::Gate];
    let and = |act: Vec<Act>| [begin(), act].concat();
    vec![
        ("fin", and(vec![Act::Close])),
        ("reset", and(vec![Act::Reset])),
        ("stall", and(vec![Act::Hang])),
    ]
}

#[test]
fn event_streams_end_in_an_error_event() {
    let whole = format!("{SSE}{CHUNKED}{}{}", chunk(EVENT), chunk(EVENT));
    let mid_event = format!("{SSE}{CHUNKED}{}{}", chunk(EVENT), chunk("data: {\"b\""));
    let mut cases: Vec<(String, bool, Vec<Act>)> = Vec::new();
    for (name, acts) in ends(&whole) {
        cases.push((name.into(), false, acts));
    }
    for (name, acts) in ends(&mid_event) {
        cases.push((format!("{name} within an event"), true, acts));
    }
    for garbage in [
        "zz\r\n",
        "5\r\nhello!",
        "\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let acts = vec![send(&whole), Act::Gate, send(garbage), Act::Hang];
        cases.push((format!("garbage {garbage:?}"), false, acts));
    }
    let until_close = format!("{SSE}\r\n{EVENT}{EVENT}");
    for (name, acts) in ends(&until_close) {
        // For a body that ends with the connection a FIN is its end, but nothing else is.
        if name != "fin" {
            cases.push((format!("{name}, until close"), false, acts));
        }
    }
    for (name, within, acts) in cases {
        let (fake, server) = failing(acts);
        let mut client = ask(&fake, &server, "1.1");
        let response = client.response();
        let text = response.text();
        assert_eq!(response.status, 200, "{name}");
        assert!(!response.complete, "{name}: {text}");
        assert!(!text.contains("[DONE]"), "{name}: {text}");
        let events = response.events();
        let error: serde_json::Value = serde_json::from_str(events.last().unwrap())
            .unwrap_or_else(|e| panic!("{name}: {e} in {text}"));
        assert!(error["error"]["message"].is_string(), "{name}: {text}");
        assert!(
            error["error"]["code"].as_u64().unwrap() >= 500,
            "{name}: {text}"
        );
        assert!(text.starts_with(EVENT), "{name}: {text}");
        assert_eq!(
            within,
            text.contains("data: {\"b\"\n\ndata: "),
            "{name}: {text}"
        );
        assert_eq!(
            rest_of(&mut client).1,
            End::Fin,
            "{name}: the event must arrive"
        );
        next_works(&fake, &server);
    }
}

#[test]
fn other_answers_just_break() {
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let gzip = format!("{SSE}content-encoding: gzip\r\n");
    let firsts = [
        format!("{json}{CHUNKED}{}", chunk("{\"a\":")),
        format!("{SSE}{CHUNKED}{}1f\r\ndata: {{\"half", chunk(EVENT)),
        format!("{SSE}{CHUNKED}{}1f", chunk(EVENT)),
        format!("{SSE}{CHUNKED}{}0\r\nx-trailer: ", chunk(EVENT)),
        format!("{gzip}{CHUNKED}{}", chunk("\u{1}\u{2}")),
        format!("{json}content-length: 100\r\n\r\n{{\"a\":"),
        format!("{SSE}content-length: 100\r\n\r\n{EVENT}"),
    ];
    for first in &firsts {
        for (name, acts) in ends(first) {
            let (fake, server) = failing(acts);
            let mut client = ask(&fake, &server, "1.1");
            let response = client.response();
            assert_eq!(response.status, 200, "{name} after {first:?}");
            assert!(
                !response.complete,
                "{name} after {first:?}: {}",
                response.text()
            );
            let (rest, end) = rest_of(&mut client);
            assert_ne!(end, End::Open);
            let text = format!("{}{}", response.text(), String::from_utf8_lossy(&rest));
            assert!(!text.contains("error"), "{name} after {first:?}: {text}");
            next_works(&fake, &server);
        }
    }
}

/// Without chunks a FIN is a clean end, so these clients must see a reset.
#[test]
fn old_clients_see_a_reset() {
    let firsts = [
        format!("{SSE}{CHUNKED}{}", chunk(EVENT)),
        format!("{SSE}{CHUNKED}{}1f\r\ndata: {{", chunk(EVENT)),
        format!("{SSE}\r\n{EVENT}"),
    ];
    for first in &firsts {
        let until_close = !first.contains("chunked");
        for (name, acts) in ends(first) {
            if until_close && name == "fin" {
                continue;
            }
            let (fake, server) = failing(acts);
            let mut client = ask(&fake, &server, "1.0");
            let (bytes, end) = rest_of(&mut client);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(end, End::Reset, "{name} after {first:?}: {text}");
            assert!(!text.contains("error"), "{text}");
            next_works(&fake, &server);
        }
    }
    // With a length they can count for themselves.
    let first = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello";
    let (fake, server) = failing(vec![send(first), Act::Gate, Act::Close]);
    let response = ask(&fake, &server, "1.0").response();
    assert!(!response.complete);
    next_works(&fake, &server);
}

/// A client that goes on sending does not keep its connection.
#[test]
fn talking_on_does_not_keep_a_broken_connection() {
    use std::sync::atomic::Ordering::Relaxed;
    let first = format!("{SSE}{CHUNKED}{}", chunk(EVENT));
    for version in ["1.0", "1.1"] {
        let (fake, server) = failing(vec![send(&first), Act::Gate, Act::Close]);
        let mut client = ask(&fake, &server, version);
        let mut writer = client.stream.try_clone().unwrap();
        let talk = std::thread::spawn(move || {
            use std::io::Write;
            while writer.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let (bytes, end) = rest_of(&mut client);
        // (The writer may be the one that is told of the reset.)
        assert_ne!(end, End::Open);
        if version == "1.1" {
            assert!(String::from_utf8_lossy(&bytes).contains("error"));
        }
        crate::support::eventually("the proxy is rid of it", || {
            server.shared.connections.load(Relaxed) == 0
        });
        client.stream.shutdown(std::net::Shutdown::Both).ok();
        talk.join().unwrap();
        next_works(&fake, &server);
    }
}

/// A stream with more to say than anyone takes at once still ends where it broke: all of it arrives first.
#[test]
fn what_came_before_the_break_arrives() {
    let many: String = (0..2000)
        .map(|i| chunk(&format!("data: {{\"n\":{i}}}\n\n")))
        .collect();
    let (fake, server) = failing(vec![send(format!("{SSE}{CHUNKED}{many}")), Act::Close]);
    let mut client = ask(&fake, &server, "1.1");
    let response = client.response();
    assert!(!response.complete);
    let events = response.events();
    assert_eq!(events.len(), 2001);
    assert_eq!(events[1999], r#"{"n":1999}"#);
    next_works(&fake, &server);
}
