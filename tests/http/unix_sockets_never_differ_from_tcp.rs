//! An engine behind `unix:/path` is an engine.

use crate::support::{completion, eventually, post_bytes};

use super::fake::{Act, Fake, answer, at, proxy, send};
use super::{End, ms, rest_of};

fn path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("pdrelay-{}-{name}.sock", std::process::id()))
}

#[test]
fn requests_and_bodies_of_any_size() {
    let large = "r".repeat(300_000);
    let reply = large.clone();
    let fake = Fake::on_unix(&path("sizes"), move |number, _| match number {
        0 => vec![answer("{}")],
        1 => vec![answer(&reply)],
        _ => vec![send(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )],
    });
    let server = proxy(&[&fake], |_| {});
    let mut client = at(&server);
    let body = completion(&"p".repeat(2_000_000), "");
    assert_eq!(client.post("/v1/completions", &body).text(), "{}");
    assert!(client.post("/v1/completions", &completion("x", "")).text() == large);
    assert_eq!(
        client.post("/v1/completions", &completion("x", "")).text(),
        "abc"
    );
    let seen = fake.seen();
    assert!(seen[0].body() == body.as_bytes());
    assert_eq!(seen[0].header("host"), ["localhost"]);
    assert_eq!(fake.connections(), 1, "kept alive as any other");
}

#[test]
fn departures_deadlines_and_deaths() {
    let fake = Fake::on_unix(&path("ends"), |_, seen| {
        if seen.text().contains("hang") {
            return vec![Act::Hang];
        }
        if seen.text().contains("die") {
            return vec![
                send(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
                ),
                send("8\r\ndata: 1\n\r\n"),
                Act::Pause(20),
                Act::Close,
            ];
        }
        vec![answer("{}")]
    });
    let server = proxy(&[&fake], |c| c.timeouts.decode_head = ms(150));
    let mut client = at(&server);
    let response = client.post("/v1/completions", &completion("hang", ""));
    assert_eq!(response.status, 504, "{}", response.text());
    let response = client.post("/v1/completions", &completion("die", ""));
    assert!(
        !response.complete && response.text().contains("error"),
        "{}",
        response.text()
    );
    assert_eq!(rest_of(&mut client).1, End::Fin);
    let mut client = at(&server);
    client.send(post_bytes("/v1/completions", &completion("hang", ""), ""));
    eventually("it is there", || fake.seen().len() >= 3);
    drop(client);
    assert_eq!(
        at(&server)
            .post("/v1/completions", &completion("x", ""))
            .status,
        200
    );
    eventually("only the good connection is left", || fake.open() == 1);
    drop(fake);
    // The file is gone: as an engine that refuses connections.
    std::thread::sleep(ms(10));
}

#[test]
fn a_missing_socket_is_a_502() {
    let fake = Fake::on_unix(&path("gone"), |_, _| vec![answer("{}")]);
    let server = proxy(&[&fake], |_| {});
    std::fs::remove_file(path("gone")).unwrap();
    let response = at(&server).post("/v1/completions", &completion("x", ""));
    assert_eq!(response.status, 502, "{}", response.text());
    assert_eq!(at(&server).get("/health").status, 200);
}
