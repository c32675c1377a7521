//! Sound messages with a few bytes changed, cut at random. Whatever of it the proxy passes on, its engines
//! (strict parsers of their own) must find sound; whatever it does not, it refuses and lives.

use std::io::Write;

use crate::support::{Client, completion, engines, post_bytes};

use super::fake::{Act, Fake, answer, at, proxy, send};
use super::never_crossed::Dice;
use super::{End, patience, quiet, rest_of};

fn seed() -> u64 {
    let seed = u64::from(std::process::id());
    let seed = std::env::var("MUTATIONS_SEED").map_or(seed, |s| s.parse().expect("a seed"));
    println!("MUTATIONS_SEED={seed}");
    seed
}

/// Bytes and words that matter to parsers.
const SPICE: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"0\r\n\r\n",
    b"\0",
    b"\xff",
    b",",
    b";",
    b"5\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.1",
    b"GET / ",
    b"Expect: 100-continue\r\n",
    b"%00",
    b"-1",
    b"/../",
    b"Host: a\r\n",
    b"#",
];

fn mutate(dice: &mut Dice, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..1 + dice.roll(3) {
        let at = dice.roll(bytes.len() as u64) as usize;
        let spice = SPICE[dice.roll(SPICE.len() as u64) as usize];
        match dice.roll(4) {
            0 => bytes[at] = dice.roll(256) as u8,
            1 => drop(bytes.remove(at)),
            2 => drop(bytes.splice(at..at, spice.iter().copied())),
            _ => {
                let to = (at + dice.roll(20) as usize).min(bytes.len());
                drop(bytes.splice(at..to, spice.iter().copied()));
            }
        }
    }
    bytes
}

#[test]
fn in_requests() {
    let rig = quiet("nixl", engines(1, 1), |c| c.forward = vec!["/*".into()]);
    let mut dice = Dice(seed());
    let body = completion("mutated", r#","max_tokens":2,"stream":true"#);
    let chunked = format!(
        "POST /v1/completions?q=1 HTTP/1.1\r\nHost: t\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n\
         a;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\nx-t: 1\r\n\r\n",
        &body[..10],
        body.len() - 10,
        &body[10..]
    );
    let sound = [
        post_bytes(
            "/v1/completions",
            &body,
            "Connection: keep-alive, x-a\r\nx-a: b\r\n",
        ),
        chunked.into_bytes(),
        post_bytes("/tokenize", r#"{"prompt":"abc"}"#, ""),
        b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n".to_vec(),
    ];
    for _ in 0..1500 {
        let mut client = rig.client();
        patience(&client, 3000);
        let which = dice.roll(4) as usize;
        let mut bytes = mutate(&mut dice, &sound[which]);
        bytes.extend_from_slice(&sound[dice.roll(4) as usize]);
        let cut = dice.roll(bytes.len() as u64) as usize;
        for part in [&bytes[..cut], &bytes[cut..]] {
            let _ = client.stream.write_all(part);
        }
        // No more will come, so whatever is incomplete ends here.
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let (_, end) = rest_of(&mut client);
        assert_ne!(end, End::Open, "{:?}", String::from_utf8_lossy(&bytes));
    }
    let ledger = rig.sim.ledger();
    let bad: Vec<_> = ledger
        .violations
        .iter()
        .filter(|v| v.contains("bad HTTP"))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(rig.metric("pdrelay_panics_total"), 0.0);
    assert_eq!(rig.post("/v1/completions", &body).status, 200);
}

#[test]
fn in_answers() {
    let sse = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
               7;a=b\r\ndata: 1\r\nb\r\n\n\ndata: 22\n\r\n1\r\n\n\r\n0\r\nx-t: 1\r\n\r\n";
    let sound: Vec<Vec<u8>> = vec![
        sse.into(),
        b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 10\r\n\r\n0123456789".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec(),
    ];
    let seed = seed();
    let fake = Fake::new(move |number, seen| {
        if seen.text().contains("sound") {
            return vec![answer("sound")];
        }
        let mut dice = Dice(seed ^ (number as u64) << 20);
        let which = dice.roll(5) as usize;
        let bytes = mutate(&mut dice, &sound[which]);
        let (a, b) = bytes.split_at(dice.roll(bytes.len() as u64) as usize);
        let end = if dice.roll(2) == 0 {
            Act::Close
        } else {
            Act::Reset
        };
        vec![send(a), send(b), end]
    });
    let server = proxy(&[&fake], |c| {
        c.retry.enabled = false;
        c.circuit_breaker.enabled = false;
    });
    let mut client = at(&server);
    let mut dice = Dice(seed);
    for i in 0..600 {
        let version = if dice.roll(4) == 0 { "1.0" } else { "1.1" };
        let body = completion("x", "");
        client.send(format!(
            "POST /v1/completions HTTP/{version}\r\nhost: t\r\nconnection: keep-alive\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        if !one_sound_answer(&mut client) {
            client = at(&server);
        }
        if i % 5 == 0 {
            let response = client.post("/v1/completions", &completion("sound", ""));
            assert_eq!(
                (response.status, &*response.text()),
                (200, "sound"),
                "MUTATIONS_SEED={seed}"
            );
        }
    }
    assert!(
        server
            .shared
            .metrics
            .render()
            .contains("pdrelay_panics_total 0\n"),
        "MUTATIONS_SEED={seed}"
    );
}

/// The test's client is strict, too: it panics at framing that it cannot follow. True: it can go on.
fn one_sound_answer(client: &mut Client) -> bool {
    let response = client.response();
    let closing = response.header("connection") == Some("close");
    if !response.complete || closing {
        assert_ne!(rest_of(client).1, End::Open);
        return false;
    }
    assert!(
        client.rest.is_empty(),
        "{:?} behind {response:?}",
        String::from_utf8_lossy(&client.rest)
    );
    true
}
