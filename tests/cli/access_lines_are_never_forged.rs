//! One request, one line, with what happened in it; nothing that a client sends can make another.

use std::collections::HashMap;

use super::{File, Serving};
use crate::support::{chat, completion, engines, post_bytes};

/// `key=value` pairs of a line, quoted ones unquoted; and the request and status, which have no key.
fn fields(line: &str) -> (HashMap<String, String>, String) {
    let mut fields = HashMap::new();
    let mut request = String::new();
    let mut rest = line.split_once(" info access ").expect(line).1;
    while !rest.is_empty() {
        let quoted = |text: &str| {
            let mut end = 1;
            while !text[end..].starts_with('"') {
                end += if text[end..].starts_with('\\') { 2 } else { 1 };
            }
            (text[1..end].replace("\\\"", "\""), end + 1)
        };
        if rest.starts_with('"') {
            let (text, used) = quoted(rest);
            request = text;
            rest = rest[used..].trim_start();
            let (status, after) = rest.split_once(' ').unwrap();
            fields.insert("status".into(), status.into());
            rest = after;
            continue;
        }
        let (key, after) = rest.split_once('=').expect(line);
        let (value, used) = match after.starts_with('"') {
            true => quoted(after),
            false => {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), end)
            }
        };
        assert_eq!(
            fields.insert(key.to_owned(), value),
            None,
            "{key} twice in {line}"
        );
        rest = after[used..].trim_start();
    }
    (fields, request)
}

fn lines(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|l| l.contains(" info access "))
        .collect()
}

#[test]
fn a_line_says_what_happened() {
    let serving = Serving::start("nixl", engines(1, 1), &[]);
    let mut client = serving.client();
    let body = chat("some text", r#","stream":true,"max_tokens":4"#);
    client.send(post_bytes(
        "/v1/chat/completions?q=1",
        &body,
        "x-request-id: my-id\r\n",
    ));
    let streamed = client.response();
    client.send(post_bytes("/v1/completions", "{", ""));
    assert_eq!(client.response().status, 400);
    let fault = "x-sim-fault-prefill: status:422\r\n";
    client.send(post_bytes("/v1/completions", &completion("x", ""), fault));
    assert_eq!(client.response().status, 422);
    serving.sim.kill(1);
    assert_eq!(
        client.post("/v1/completions", &completion("x", "")).status,
        502
    );
    assert_eq!(client.get("/nope").status, 404);
    drop(client);
    let [p, d] = [0, 1].map(|i| serving.sim.addresses()[i].to_string());
    let said = serving.end();
    let lines = lines(&said);
    assert_eq!(lines.len(), 5, "{said}");

    let (line, request) = fields(lines[0]);
    let is = |key: &str, value: &str| assert_eq!(line[key], value, "{}", lines[0]);
    assert_eq!(request, "POST /v1/chat/completions?q=1");
    is("id", "my-id");
    is("client", "127.0.0.1");
    is("status", "200");
    is("endpoint", "chat");
    is("handshake", "nixl");
    is("prefill", &p);
    is("decode", &d);
    is("in", &body.len().to_string());
    let out = streamed.head.len() + streamed.raw_body.len();
    is("out", &out.to_string());
    is("retries", "0");
    is("end", "ok");
    let ms = |key: &str| line[key].parse::<f64>().unwrap();
    assert!(
        ms("prefill_ms") + ms("decode_head_ms") <= ms("total_ms"),
        "{}",
        lines[0]
    );
    assert!(ms("ttft_ms") <= ms("total_ms"), "{}", lines[0]);

    for (at, status, end, reason) in [
        (1, "400", "error", "bad_request"),
        (2, "422", "ok", ""),
        (3, "502", "error", "connect"),
        (4, "404", "error", "not_found"),
    ] {
        let (line, _) = fields(lines[at]);
        assert_eq!(
            (&*line["status"], &*line["end"]),
            (status, end),
            "{}",
            lines[at]
        );
        assert_eq!(
            line.get("reason").map_or("", |r| r),
            reason,
            "{}",
            lines[at]
        );
        // Whoever could not be reached is named, too.
        let named = (at == 3).then_some(&d);
        assert_eq!(line.get("decode"), named, "{}", lines[at]);
    }
    let (refused, _) = fields(lines[3]);
    assert_eq!(refused["prefill"], p);
    // There was nobody else to ask.
    assert_eq!(refused["retries"], "0");
}

#[test]
fn what_clients_send_stays_in_its_field() {
    let serving = Serving::start("nixl", engines(1, 1), &[]);
    let ids = [
        "a\"b",
        "x=1",
        "end=ok",
        "\\",
        "{\"j\":1}",
        "two words",
        "\u{e9}",
        "tab\there",
    ];
    let long = "i".repeat(250);
    let mut expected = Vec::new();
    for id in ids.iter().copied().chain([long.as_str()]) {
        let mut client = serving.client();
        let header = format!("x-request-id: {id}\r\n");
        client.send(post_bytes("/v1/completions", &completion("x", ""), &header));
        let response = client.response();
        assert_eq!(response.status, 200);
        expected.push(response.header("x-request-id").unwrap().to_owned());
    }
    for path in [
        "/x?\"_end=ok\"",
        "/x?\\\"",
        "/x%0a2026-01-01T00:00:00.000Z",
        &format!("/{}", "p".repeat(3000)),
    ] {
        let mut client = serving.client();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n"));
        assert_eq!(client.response().status, 404, "{path}");
    }
    // Not even requests: no head that is refused may leave more than its own line.
    for bytes in [
        "GET / HTTP/1.1\r\nx-request-id: a\n2026-01-01T00:00:00.000Z info access id=b\r\n\r\n",
        "2026 info access HTTP/1.1\r\n\r\n",
    ] {
        let mut client = serving.client();
        client.send(bytes);
        assert_eq!(client.response().status, 400);
    }
    let said = serving.end();
    let lines = lines(&said);
    assert_eq!(lines.len(), 9 + 4 + 2, "{said}");
    for (line, id) in lines.iter().zip(&expected) {
        let (fields, _) = fields(line);
        let unescaped = fields["id"].replace("\\\\", "\\");
        assert!(id.starts_with(unescaped.trim_end_matches("...")), "{line}");
        assert_eq!(fields["end"], "ok");
    }
    // They say what was asked for, where it looks like a request; else it may be the rest of a body.
    let asked: Vec<_> = lines[13..].iter().map(|line| fields(line).1).collect();
    assert_eq!(asked, ["GET /", "- -"], "{said}");
    assert!(
        said.lines()
            .all(|l| l.len() < 2000 && !l.contains(char::is_control)),
        "{said}"
    );
}

#[test]
fn quiet_levels_have_no_access_lines() {
    for level in ["warning", "error"] {
        let serving = Serving::start("nixl", engines(1, 1), &["--log-level", level]);
        let mut client = serving.client();
        assert_eq!(
            client.post("/v1/completions", &completion("x", "")).status,
            200
        );
        drop(client);
        let said = serving.end();
        assert_eq!(lines(&said).len(), 0, "{said}");
    }
}

/// An address of both families calls an IPv4 client by an IPv6 name.
#[test]
fn a_client_has_one_name_whatever_is_listened_on() {
    let serving = Serving::start("nixl", engines(1, 1), &["--host", "::"]);
    let response = serving
        .client()
        .post("/v1/completions", &completion("x", ""));
    assert_eq!(response.status, 200);
    let said = serving.end();
    assert_eq!(lines(&said).len(), 1, "{said}");
    let (fields, _) = fields(lines(&said)[0]);
    assert_eq!(fields["client"], "127.0.0.1", "{said}");
}

/// Those that a request's media went to, each once; of very many only the first.
#[test]
fn a_line_names_the_encoders_and_has_a_bound() {
    let encoder = || pdsim::EngineOptions {
        ec: pdsim::EcMode::V1,
        ..crate::support::engine(pdsim::Role::Encode)
    };
    let options = pdsim::Options {
        engines: std::iter::repeat_with(encoder).take(24).collect(),
        ..pdsim::Options::default()
    };
    let encoders = pdsim::Sim::start(options).unwrap();
    let names: Vec<String> = encoders
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = format!("encode: {names:?}\nepd: {{version: v1}}\n");
    let file = File::new("access-encoders.yaml", &text);
    let serving = Serving::start("epd", engines(1, 1), &["--config", file.path()]);
    let item = r#"{"type":"image_url","image_url":{"url":"http://h/a"}}"#;
    for count in [0, 2, 24, 25] {
        let mut parts = vec![item; count];
        parts.push(r#"{"type":"text","text":"look"}"#);
        let body = format!(
            r#"{{"model":"dummy","messages":[{{"role":"user","content":[{}]}}],"max_tokens":2}}"#,
            parts.join(",")
        );
        assert_eq!(
            serving.client().post("/v1/chat/completions", &body).status,
            200
        );
    }
    let said = serving.end();
    let lines = lines(&said);
    let encode = |at: usize| fields(lines[at]).0.get("encode").cloned();
    assert_eq!(encode(0), None);
    assert!(!lines[0].contains("encode_ms="), "{}", lines[0]);
    assert_eq!(encode(1).unwrap(), names[..2].join(","));
    assert!(lines[1].contains(" encode_ms="), "{}", lines[1]);
    let all = encode(2).unwrap();
    let (shown, more) = all.rsplit_once(",+").expect(&all);
    assert!((200..=256).contains(&shown.len()), "{all}");
    let (shown, more) = (shown.split(',').count(), more.parse::<usize>().unwrap());
    assert_eq!(shown + more, 24);
    assert!(all.starts_with(&names[..shown].join(",")), "{all}");
    // The first has got two of the 25.
    assert_eq!(encode(3).unwrap(), all);
}
