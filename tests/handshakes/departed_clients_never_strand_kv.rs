//! A client leaves while P holds, or is about to hold, KV for it: a D gets the params all the same, in the
//! way that makes it tell P. Here with a P that answers although it was told that nobody listens (real ones
//! do so when they are at their end), which the simulator's never do.

use std::net::SocketAddr;
use std::time::Duration;

use pdrelay::config::Role;
use pdrelay::server::Server;

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, completion, config, eventually, post_bytes};

/// So long does P take from its request to its answer.
const WORK: Duration = Duration::from_millis(400);

/// Answers with params of their own, late.
fn slow_prefill() -> Scripted {
    Scripted::start(|number, _| {
        std::thread::sleep(WORK);
        let body = format!(r#"{{"choices":[],"kv_transfer_params":{{"grant":{number}}}}}"#);
        Say::Bytes(answer("200 OK", &body))
    })
}

fn whole() -> Say {
    Say::Bytes(answer("200 OK", r#"{"choices":[]}"#))
}

/// A stream that has begun and will never end by itself.
fn stream() -> Say {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    Say::Bytes(format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes())
}

fn server(p: &Scripted, decoders: &[SocketAddr]) -> Server {
    let roles = [Role::Prefill, Role::Decode, Role::Decode];
    let addresses: Vec<_> = [p.address].iter().chain(decoders).copied().collect();
    let mut config = config("nixl", &roles, &addresses);
    config.health_check.enabled = false;
    Server::start(config).expect("the proxy starts")
}

/// One client that leaves while P works on its `number`th request.
fn leave(server: &Server, p: &Scripted, number: usize) {
    let mut client = Client::connect(server.address);
    let body = completion("x", r#","max_tokens":50,"n":1"#);
    client.send(post_bytes("/v1/completions", &body, ""));
    eventually("P works", || p.requests().len() == number);
    drop(client);
}

fn grants(server: &Server, outcome: &str) -> bool {
    let page = Client::connect(server.address).get("/metrics").text();
    let line = format!("pdrelay_kv_grants_total{{outcome=\"{outcome}\"}} ");
    page.lines().any(|l| {
        l.strip_prefix(&line)
            .is_some_and(|count| count != "0" && !count.is_empty())
    })
}

#[test]
fn at_a_first_contact_one_token_is_fetched() {
    let (p, d) = (slow_prefill(), Scripted::start(|_, _| whole()));
    let server = server(&p, &[d.address]);
    leave(&server, &p, 1);
    eventually("D has the params", || d.bodies().len() == 1);
    let body = d.bodies().remove(0);
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["kv_transfer_params"]["grant"], 0, "{body}");
    assert_eq!(
        (&json["max_tokens"], &json["stream"]),
        (&1.into(), &false.into())
    );
    eventually("it is counted", || grants(&server, "released"));
    assert!(!grants(&server, "expired_unreleased"));
}

/// Once the two have met, the head of a stream is enough, and no KV moves.
#[test]
fn a_pair_that_has_met_gets_a_stream_that_is_cut() {
    let p = slow_prefill();
    let d = Scripted::start(|number, _| if number == 0 { whole() } else { stream() });
    let server = server(&p, &[d.address]);
    let first = Client::connect(server.address).post("/v1/completions", &completion("x", ""));
    assert_eq!(first.status, 200);
    leave(&server, &p, 2);
    eventually("D has the params", || d.bodies().len() == 2);
    let body = d.bodies().remove(1);
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["kv_transfer_params"]["grant"], 1, "{body}");
    assert_eq!(json["stream"], true, "{body}");
    eventually("it is counted", || grants(&server, "released"));
}

/// A D that refuses has not taken them: the next one gets them.
#[test]
fn a_decode_that_refuses_leaves_them_to_the_next() {
    let p = slow_prefill();
    let refuse = || Say::Bytes(answer("503 Service Unavailable", "{}"));
    let one = Scripted::start(move |_, _| refuse());
    let two = Scripted::start(|_, _| whole());
    let server = server(&p, &[one.address, two.address]);
    // Twice: whichever is asked first, one of them is the one that refuses.
    for number in 1..=2 {
        leave(&server, &p, number);
        eventually("a D has taken them", || two.bodies().len() == number);
    }
    assert!(!grants(&server, "expired_unreleased"));
}

/// Without any D it is said so, and soon.
#[test]
fn grants_that_nobody_can_take_are_counted() {
    let (p, d) = (slow_prefill(), Scripted::start(|_, _| whole()));
    let address = d.address;
    drop(d);
    eventually("D is gone", || {
        std::net::TcpStream::connect(address).is_err()
    });
    let server = server(&p, &[address]);
    leave(&server, &p, 1);
    eventually("it is counted", || grants(&server, "expired_unreleased"));
}
