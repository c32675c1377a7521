//! The decode engine gets the client's bytes; the prefill engine those bytes with the named fields
//! exchanged, and nothing else.

use std::net::TcpListener;
use std::time::Duration;

use pdrelay::config::{Address, InstanceConfig, Role};

use crate::support::{Rig, chat, completion, engines, post_bytes};

use super::fake::{Fake, answer, at, proxy};
use super::{ms, quiet};

/// Bodies that a JSON library would not write again as they are.
fn odd_bodies() -> Vec<String> {
    vec![
        r#"{"model":"dummy","prompt":"x","temperature":1.0,"top_p":1e0,"seed":12345678901234567890,"max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":"x","temperature":0.10000000000000000555,"presence_penalty":-0.0,"max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":"\u0061\u00e9\ud83d\ude00\/é😀\"\\","max_tokens":2}"#.into(),
        "\r\n\t {  \"max_tokens\" :\n2 ,\t\"prompt\"\r\n: \"x\" , \"model\":\"dummy\"  }  \n".into(),
        r#"{"max_tokens":2,"zeta":1,"alpha":2,"prompt":"x","model":"dummy","Zeta":{"b":1,"a":[2, 1 ,{}]}}"#.into(),
        r#"{"prompt":"old","model":"dummy","max_tokens":7,"prompt":"x","max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":"x","max\u005ftokens":2,"str\u0065am":false}"#.into(),
        r#"{"model":"dummy","prompt":"{\"stream\":true,\"max_tokens\":9}","max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":"x","metadata":{"stream":true,"max_tokens":9,"kv_transfer_params":{}},"max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":[1,2,3,16777216],"max_tokens":2}"#.into(),
        r#"{"model":"dummy","prompt":"x","stop":["]","}","\\"],"max_tokens":2,"":"","nothing":null}"#.into(),
        format!(r#"{{"model":"dummy","prompt":"{}","max_tokens":2}}"#, "long ".repeat(5000)),
    ]
}

fn last(rig: &Rig, engine: usize) -> String {
    let received = rig.posts(engine).pop().expect("a request");
    String::from_utf8(received.body).expect("UTF-8")
}

#[test]
fn the_decode_engine_gets_what_the_client_sent() {
    let rig = quiet("sequential", engines(1, 1), |_| {});
    let mut client = rig.client();
    for body in odd_bodies() {
        let response = client.post("/v1/completions", &body);
        assert_eq!(response.status, 200, "{body}: {}", response.text());
        assert_eq!(last(&rig, 1), body);
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

/// Seen through a second parser: the prefill engine's body is the client's with the named fields changed.
#[test]
fn the_prefill_engine_gets_the_same_prompt_and_one_token() {
    let rig = quiet("nixl", engines(1, 1), |_| {});
    let more = r#","stream":true,"stream_options":{"include_usage":true},"min_tokens":2,"best_of":1,"n":1,"max_completion_tokens":9"#;
    let mut bodies = odd_bodies();
    bodies.push(completion("y", more));
    for body in bodies {
        let response = rig.post("/v1/completions", &body);
        assert_eq!(response.status, 200, "{body}: {}", response.text());
        let mut sent: serde_json::Value = serde_json::from_str(&body).unwrap();
        let p: serde_json::Value = serde_json::from_str(&last(&rig, 0)).unwrap();
        let d: serde_json::Value = serde_json::from_str(&last(&rig, 1)).unwrap();
        let expected = sent.as_object_mut().unwrap();
        // D: as sent, with the params.
        let mut decode = expected.clone();
        decode.insert("kv_transfer_params".into(), d["kv_transfer_params"].clone());
        assert_eq!(d, serde_json::Value::Object(decode), "{body}");
        assert!(d["kv_transfer_params"]["remote_engine_id"].is_string());
        // P: as sent, one token, not streamed.
        for gone in ["stream_options", "min_tokens", "best_of"] {
            expected.remove(gone);
        }
        for one in ["n", "max_completion_tokens"] {
            if let Some(value) = expected.get_mut(one) {
                *value = 1.into();
            }
        }
        expected.insert("stream".into(), false.into());
        expected.insert("max_tokens".into(), 1.into());
        expected.insert("kv_transfer_params".into(), p["kv_transfer_params"].clone());
        assert_eq!(p, sent, "{body}");
        assert_eq!(p["kv_transfer_params"]["do_remote_decode"], true);
    }
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn params_of_a_client_never_reach_an_engine() {
    let forged = r#"{"do_remote_prefill":true,"remote_engine_id":"forged","remote_block_ids":[1]}"#;
    let spellings = [
        "\"kv_transfer_params\"",
        "\"kv\\u005ftransfer_params\"",
        "\"\\u006bv_transfer_params\"",
    ];
    for handshake in ["nixl", "sequential", "aggregated"] {
        let roles = match handshake {
            "aggregated" => vec![crate::support::engine(pdsim::Role::Both)],
            _ => engines(1, 1),
        };
        let rig = quiet(handshake, roles, |_| {});
        let engines = rig.sim.addresses().len();
        for key in spellings {
            for body in [
                format!(r#"{{{key}:{forged},"model":"dummy","prompt":"x"}}"#),
                format!(r#"{{"model":"dummy",{key}:{forged},"prompt":"x",{key}:null}}"#),
                format!(r#"{{"model":"dummy","prompt":"x" , {key} : {forged} }}"#),
                format!(r#"{{"model":"dummy","prompt":["a","b"],{key}:{forged}}}"#),
            ] {
                let response = rig.post("/v1/completions", &body);
                assert_eq!(
                    response.status,
                    200,
                    "{handshake} {body}: {}",
                    response.text()
                );
            }
        }
        for engine in 0..engines {
            for one in rig.posts(engine) {
                let text = String::from_utf8_lossy(&one.body).into_owned();
                assert!(!text.contains("forged"), "{handshake}: {text}");
                assert!(
                    text.matches("transfer_params").count() <= 1,
                    "{handshake}: {text}"
                );
            }
        }
        assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
    }
}

/// Bodies beyond a copied write, gathered from the client's own bytes: every one of them arrives, also at
/// an engine that takes them in small sips.
#[test]
fn large_bodies_arrive_whole() {
    let text: String = (0..500_000)
        .map(|i| format!("{:07x} ", i * 2_654_435_761u64 % 0xfff_ffff))
        .collect();
    let body = format!(
        r#"{{"stream":true,"stream_options":null,"model":"dummy","prompt":"{text}","min_tokens":1,"max_tokens":3 }}"#
    );
    assert!(body.len() > 4_000_000);
    let p = Fake::always(vec![answer("{}")]);
    let d = Fake::always(vec![answer(r#"{"fine":1}"#)]);
    let server = proxy(&[&p, &d], |c| {
        c.handshake = "sequential".into();
        c.instances[0].role = Role::Prefill;
        c.instances[1].role = Role::Decode;
    });
    let mut client = at(&server);
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for bytes in [
        post_bytes("/v1/completions", &body, ""),
        chunked.into_bytes(),
    ] {
        client.send(bytes);
        let response = client.response();
        assert_eq!((response.status, &*response.text()), (200, r#"{"fine":1}"#));
        assert!(d.seen().last().unwrap().body() == body.as_bytes());
        let prefill = body
            .replace(
                r#""stream":true,"stream_options":null,"#,
                r#""stream":false,"#,
            )
            .replace(r#""min_tokens":1,"max_tokens":3 }"#, r#""max_tokens":1 }"#);
        let got = p.seen().last().unwrap().body().to_vec();
        assert!(
            got == prefill.as_bytes(),
            "{:?}",
            difference(&got, prefill.as_bytes())
        );
    }
}

fn difference(a: &[u8], b: &[u8]) -> Option<(usize, String, String)> {
    let at = a.iter().zip(b).position(|(x, y)| x != y)?;
    let show = |s: &[u8]| {
        String::from_utf8_lossy(&s[at.saturating_sub(40)..(at + 40).min(s.len())]).into_owned()
    };
    Some((at, show(a), show(b)))
}

#[test]
fn an_engine_that_sips_gets_all_of_it() {
    use std::io::{Read, Write};
    let listener = {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket
            .bind(
                &"127.0.0.1:0"
                    .parse::<std::net::SocketAddr>()
                    .unwrap()
                    .into(),
            )
            .unwrap();
        socket.listen(8).unwrap();
        TcpListener::from(socket)
    };
    let address = listener.local_addr().unwrap();
    let body = chat(&"0123456789abcdef".repeat(100_000), "");
    let expected = body.clone();
    let engine = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        let mut sip = vec![0; 3000];
        while !all.ends_with(b"\"}]}") {
            let n = stream.read(&mut sip).unwrap();
            assert!(n > 0, "cut short after {} bytes", all.len());
            all.extend_from_slice(&sip[..n]);
            if all.len() % 64 < 8 {
                std::thread::sleep(Duration::from_micros(300));
            }
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .unwrap();
        let at = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        all.split_off(at)
    });
    let server = proxy(&[], |c| {
        let address = Address::tcp("127.0.0.1", address.port());
        c.instances = vec![InstanceConfig::new(address, Role::Aggregated)];
    });
    let response = at(&server).post("/v1/chat/completions", &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(engine.join().unwrap() == expected.as_bytes());
    std::thread::sleep(ms(1));
}
