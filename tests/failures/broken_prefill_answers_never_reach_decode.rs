//! What P answers is read whole and understood before D is asked: garbage, too much or too little of it is
//! a 502 that names P.

use super::message;
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, completion, config};
use pdrelay::config::{Config, Role};
use pdrelay::server::Server;

fn check(what: &str, say: fn() -> Say, change: fn(&mut Config)) {
    let p = Scripted::start(move |_, _| say());
    let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    let roles = [Role::Prefill, Role::Decode];
    let mut config = config("nixl", &roles, &[p.address, d.address]);
    config.retry.enabled = false;
    change(&mut config);
    let server = Server::start(config).expect("the proxy starts");
    let mut client = Client::connect(server.address);
    for _ in 0..2 {
        let response = client.post("/v1/completions", &completion("x", ""));
        assert_eq!(response.status, 502, "{what}: {}", response.text());
        let message = message(&response);
        assert!(
            message.contains(&p.address.to_string()),
            "{what}: {message}"
        );
        assert!(message.starts_with("prefill "), "{what}: {message}");
    }
    assert_eq!(d.requests().len(), 0, "{what}");
    let sample = |kind: &str| {
        let page = Client::connect(server.address).get("/metrics").text();
        let start = format!(
            "pdrelay_upstream_failures_total{{role=\"prefill\",instance=\"{}\",kind=\"{kind}\"}} ",
            p.address
        );
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix(&start).map(str::to_owned));
        line.map_or(0.0, |v| v.parse::<f64>().unwrap())
    };
    let counted = sample("bad_response") + sample("reset");
    assert_eq!(counted, 2.0, "{what}: not counted against P");
}

fn same(_: &mut Config) {}

#[test]
fn garbage() {
    check("no head", || Say::Bytes(b"garbage\r\n\r\n".to_vec()), same);
    check("no JSON", || Say::Bytes(answer("200 OK", "<html>")), same);
    check(
        "half a JSON",
        || Say::Bytes(answer("200 OK", r#"{"kv_transfer_params":{"#)),
        same,
    );
    check(
        "params that are no object",
        || Say::Bytes(answer("200 OK", r#"{"kv_transfer_params":"x"}"#)),
        same,
    );
    let no_text = || {
        let mut bytes = answer("200 OK", r#"{"kv_transfer_params":{"a":"?"}}"#);
        let at = bytes.iter().rposition(|b| *b == b'?').unwrap();
        bytes[at] = 0xff;
        Say::Bytes(bytes)
    };
    check("params that are no text", no_text, same);
    check("no object", || Say::Bytes(answer("200 OK", "[1]")), same);
    check("nothing", || Say::Bytes(answer("200 OK", "")), same);
    let nothing = || Say::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
    check("no content", nothing, same);
    let bad_chunk = || {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        Say::Bytes(format!("{head}zz\r\n{{}}\r\n0\r\n\r\n").into_bytes())
    };
    check("bad chunks", bad_chunk, same);
    let two = || {
        Say::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}".to_vec())
    };
    check("two lengths", two, same);
    let switched = || Say::Bytes(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec());
    check("101", switched, same);
}

/// An event stream, though a whole answer was asked for: vLLM so answers `stream:true`, without params.
#[test]
fn a_stream_in_its_place() {
    let stream = || {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let event = "data: {\"choices\":[]}\n\ndata: [DONE]\n\n";
        Say::Bytes(format!("{head}content-length: {}\r\n\r\n{event}", event.len()).into_bytes())
    };
    check("a stream", stream, same);
}

#[test]
fn too_much() {
    let small = |config: &mut Config| {
        config.limits.answer_bytes_max = 2048;
        config.limits.head_bytes_max = 2048;
    };
    let long = || {
        let body = format!(r#"{{"x":"{}"}}"#, "y".repeat(3000));
        Say::Bytes(answer("200 OK", &body))
    };
    check("long", long, small);
    let endless = || {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        let chunk = format!("400\r\n{}\r\n", " ".repeat(0x400)).repeat(64);
        Say::Bytes([head, chunk.into_bytes()].concat())
    };
    check("endless chunks", endless, small);
    let huge_length =
        || Say::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000000000000000\r\n\r\n{".to_vec());
    check("a length beyond the limit", huge_length, small);
    let head = || {
        let line = format!("x-long: {}\r\n", "y".repeat(3000));
        Say::Bytes(format!("HTTP/1.1 200 OK\r\n{line}content-length: 2\r\n\r\n{{}}").into_bytes())
    };
    check("a long head", head, small);
}

#[test]
fn too_little() {
    let half_head = || Say::Close(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec());
    check("half a head", half_head, same);
    let half_body = || Say::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec());
    check("half a body", half_body, same);
    let reset = || Say::Reset(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec());
    check("a reset", reset, same);
    let half_chunks =
        || Say::Close(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n".to_vec());
    check("half the chunks", half_chunks, same);
    check("nothing at all", || Say::Close(vec![]), same);
}

/// Some engines say with a 200 that they have failed.
#[test]
fn an_error_that_calls_itself_a_success() {
    for error in [
        r#"{"error":{"message":"out of memory","code":500}}"#,
        r#"{"error":{"message":"no code"},"kv_transfer_params":{"a":1}}"#,
        r#"{"error":"words"}"#,
    ] {
        let p = Scripted::start(move |_, _| Say::Bytes(answer("200 OK", error)));
        let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
        let roles = [Role::Prefill, Role::Decode];
        for handshake in ["nixl", "sequential"] {
            let mut config = config(handshake, &roles, &[p.address, d.address]);
            config.health_check.enabled = false;
            config.retry.enabled = false;
            let server = Server::start(config).expect("the proxy starts");
            let mut client = Client::connect(server.address);
            // More often than a breaker allows: what a client may have caused must not take an engine out.
            for _ in 0..7 {
                let response = client.post("/v1/completions", &completion("x", ""));
                assert_eq!(response.status, 502, "{error}: {}", response.text());
            }
        }
        assert_eq!((p.requests().len(), d.requests().len()), (14, 0), "{error}");
    }
    // The client's own mistake: its true status, once, in the engine's words.
    const MINE: &str = r#"{"error":{"message":"too long","code":400}}"#;
    let p = Scripted::start(|_, _| Say::Bytes(answer("200 OK", MINE)));
    let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    let roles = [Role::Prefill, Role::Decode];
    let server = Server::start(config("nixl", &roles, &[p.address, d.address])).unwrap();
    let response = Client::connect(server.address).post("/v1/completions", &completion("x", ""));
    assert_eq!((response.status, response.text().as_str()), (400, MINE));
    assert!(
        response.head.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{}",
        response.head
    );
    let posts = |e: &Scripted| {
        e.requests()
            .iter()
            .filter(|r| r.starts_with("POST"))
            .count()
    };
    assert_eq!((posts(&p), posts(&d)), (1, 0));
    // A null is none.
    let p = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"error":null}"#)));
    let server = Server::start(config("sequential", &roles, &[p.address, d.address])).unwrap();
    let response = Client::connect(server.address).post("/v1/completions", &completion("x", ""));
    assert_eq!(response.status, 200);
}
