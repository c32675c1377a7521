//! Requests that come before the answer to the last one: answered one after the other, in order.

use std::thread;
use std::time::Duration;

use crate::support::{Client, completion, engine, engines, post_bytes, rig};

use super::{End, ms, quiet, rest_of};

fn tagged(i: usize, more: &str) -> Vec<u8> {
    let body = completion(
        &format!("pipelined prompt {i}"),
        &format!(r#","max_tokens":3{more}"#),
    );
    post_bytes(
        "/v1/completions",
        &body,
        &format!("x-request-id: r-{i}\r\n"),
    )
}

fn expected(i: usize) -> String {
    pdsim::expected(pdsim::prompt_hash(&format!("pipelined prompt {i}")), 0, 3)
}

fn take(client: &mut Client, i: usize) {
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-request-id"), Some(&*format!("r-{i}")));
    assert_eq!(response.generated(), expected(i));
}

#[test]
fn one_write_many_requests() {
    let rig = rig("nixl", 2, 2);
    for step in [usize::MAX, 1000, 333] {
        let mut client = rig.client();
        let mut all = Vec::new();
        for i in 0..20 {
            all.extend(tagged(i, if i % 3 == 0 { r#","stream":true"# } else { "" }));
            if i % 4 == 0 {
                all.extend_from_slice(b"\r\nGET /health HTTP/1.1\r\nhost: t\r\n\r\n");
            }
            if i % 5 == 0 {
                all.extend_from_slice(b"HEAD /v1/models HTTP/1.1\r\nhost: t\r\n\r\n");
            }
        }
        let mut writer = client.stream.try_clone().unwrap();
        let write = thread::spawn(move || {
            use std::io::Write;
            for piece in all.chunks(step.min(all.len())) {
                writer.write_all(piece).unwrap();
            }
        });
        for i in 0..20 {
            take(&mut client, i);
            if i % 4 == 0 {
                assert_eq!(client.response().json()["status"], "ok");
            }
            if i % 5 == 0 {
                assert_eq!(client.response_to("HEAD").status, 200);
            }
        }
        write.join().unwrap();
        assert!(client.rest.is_empty());
    }
}

#[test]
fn hundreds_of_small_ones() {
    let rig = rig("nixl", 1, 1);
    let mut client = rig.client();
    client.send("GET /health HTTP/1.1\r\nhost: t\r\n\r\n".repeat(500));
    for _ in 0..500 {
        assert_eq!(client.response().json()["status"], "ok");
    }
    assert!(client.rest.is_empty());
}

/// More requests come while an answer streams: it is not disturbed, and they wait their turn.
#[test]
fn a_request_during_a_stream_waits() {
    let mut slow = engine(pdsim::Role::Both);
    slow.timing.decode_tick = Duration::from_millis(5);
    let rig = quiet("aggregated", vec![slow], |c| c.cores.shards = Some(1));
    let mut client = rig.client();
    let body = completion("first", r#","max_tokens":30,"stream":true"#);
    client.send(post_bytes("/v1/completions", &body, ""));
    let head = client.head();
    assert!(head.contains("text/event-stream"), "{head}");
    client.rest.splice(0..0, head.bytes());
    // Far more than any buffer: only so much of it may be taken in meanwhile.
    let filler = completion(
        "bulky",
        &format!(r#","max_tokens":1,"pad":"{}""#, "p".repeat(200_000)),
    );
    let mut writer = client.stream.try_clone().unwrap();
    let write = thread::spawn(move || {
        use std::io::Write;
        for i in 0..5 {
            writer.write_all(&tagged(i, "")).unwrap();
            writer
                .write_all(&post_bytes("/v1/completions", &filler, ""))
                .unwrap();
        }
    });
    let first = client.response();
    assert!(first.complete);
    let text = pdsim::expected(pdsim::prompt_hash("first"), 0, 30);
    assert_eq!(first.generated(), text);
    for i in 0..5 {
        take(&mut client, i);
        assert_eq!(client.response().status, 200);
    }
    write.join().unwrap();
}

#[test]
fn nothing_is_served_after_the_last_request() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    for last in [
        "connection: close\r\n",
        "x-request-id: r-1\r\ncontent-length: 0\r\n",
    ] {
        let before = rig.posts(0).len();
        let mut client = rig.client();
        let mut all = tagged(0, "");
        let body = completion("pipelined prompt 1", r#","max_tokens":3"#);
        all.extend(post_bytes("/v1/completions", &body, last));
        all.extend(tagged(2, ""));
        client.send(all);
        take(&mut client, 0);
        let response = client.response();
        let closing = last.contains("close");
        assert_eq!(response.status, if closing { 200 } else { 400 });
        assert_eq!(rest_of(&mut client), (vec![], End::Fin), "and no more");
        assert_eq!(rig.posts(0).len() - before, 1 + usize::from(closing));
    }
    thread::sleep(ms(10));
}
