//! `epd`: media to the encoders first, then another handshake over what came of them.

use pdrelay::config::epd::Version;
use pdrelay::config::{Config, Surface};
use pdsim::{EcMode, EngineOptions, Role};
use sha2::{Digest, Sha256};

use super::body;
use crate::support::{MODEL, Rig, chat, completion, engine, post_bytes, rig_with};

/// Encoders, then prefill, then decode engines; with neither of the last two: one that does both.
pub fn engines(e: usize, p: usize, d: usize, ec: EcMode) -> Vec<EngineOptions> {
    let both = usize::from(p + d == 0);
    let many = |role, n| std::iter::repeat_n(role, n);
    let roles = many(Role::Encode, e)
        .chain(many(Role::Prefill, p))
        .chain(many(Role::Decode, d))
        .chain(many(Role::Both, both));
    roles
        .map(|role| EngineOptions {
            ec,
            local_media: true,
            ..engine(role)
        })
        .collect()
}

pub fn epd(engines: Vec<EngineOptions>, change: impl FnOnce(&mut Config)) -> Rig {
    rig_with("epd", engines, |c| {
        c.surface = Surface::Epd;
        change(c);
    })
}

pub fn v1(c: &mut Config) {
    c.epd.version = Version::V1;
}

pub fn url(url: &str) -> String {
    format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#)
}

/// A chat with these parts and a text.
pub fn with_media(parts: &[&str], more: &str) -> String {
    let parts = parts.join(",");
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"be brief"}},{{"role":"user","content":[{parts},{{"type":"text","text":"what is it?"}}]}}]{more}}}"#
    )
}

pub fn sha(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

const CHAT: &str = "/v1/chat/completions";

/// An id made of the request's, and six digits.
fn is_child(id: Option<&str>, begins: &str) {
    let id = id.expect("an id");
    let rest = id
        .strip_prefix(begins)
        .unwrap_or_else(|| panic!("{id} for {begins}"));
    assert!(
        rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
}

fn clean(rig: &Rig) {
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn the_first_version_gets_exactly_its_requests() {
    let rig = epd(engines(2, 1, 1, EcMode::V1), v1);
    let (a, b, c) = (
        url("http://h/a.png"),
        url("data:image/png;base64,QUJD"),
        url("file:///srv/c.png"),
    );
    let sent = with_media(
        &[&a, &b, &c],
        r#","max_tokens":3,"max_completion_tokens":3,"stream":true,"seed":1"#,
    );
    let mut client = rig.client();
    client.send(post_bytes(
        CHAT,
        &sent,
        "x-request-id: me\r\nauthorization: Bearer k\r\n",
    ));
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.complete);

    // Item by item, in turn, from the first encoder on; in any order of arrival.
    let mut first = rig.posts(0);
    first.sort_by_key(|leg| leg.header("x-request-id").map(str::to_owned));
    let second = rig.posts(1);
    assert_eq!((first.len(), second.len()), (2, 1));
    for (leg, item, n) in [(&first[0], &a, 0), (&second[0], &b, 1), (&first[1], &c, 2)] {
        assert_eq!(
            body(leg),
            format!(
                r#"{{"model":"dummy","messages":[{{"role":"user","content":[{item}]}}],"max_tokens":1,"stream":false}}"#
            )
        );
        assert_eq!(leg.path, CHAT);
        is_child(leg.header("x-request-id"), &format!("me:{n}:"));
        assert_eq!(leg.header("authorization"), Some("Bearer k"));
    }
    // Media go on in full.
    let p = &rig.posts(2)[0];
    let at_p = with_media(
        &[&a, &b, &c],
        r#","max_tokens":1,"max_completion_tokens":1,"stream":false,"seed":1KV"#,
    );
    assert_eq!(body(p), at_p.replace("KV", super::TEMPLATE));
    let d = &rig.posts(3)[0];
    assert!(body(d).starts_with(&sent[..sent.len() - 1]), "{}", body(d));
    assert!(
        body(d)[sent.len() - 1..].starts_with(r#","kv_transfer_params":{"do_remote_prefill":true"#)
    );
    assert!(
        [p, d]
            .iter()
            .all(|leg| leg.header("x-request-id") == Some("me"))
    );
    clean(&rig);
    let ledger = rig.sim.ledger();
    assert_eq!((ledger.encoded, ledger.fetched), (3, 1));

    // The next request begins with the first encoder again.
    rig.post(CHAT, &with_media(&[&a], ""));
    assert_eq!((rig.posts(0).len(), rig.posts(1).len()), (3, 1));
}

#[test]
fn newer_versions_batch_name_and_refer() {
    let rig = epd(engines(2, 1, 1, EcMode::V2), |c| {
        c.epd.version = Version::V2;
        c.epd.encoder_batch_max = 2;
    });
    let urls: Vec<String> = (0..7).map(|i| format!("http://h/{i}.png")).collect();
    let images: Vec<String> = urls.iter().map(|u| url(u)).collect();
    let audio = r#"{"type":"input_audio","input_audio":{"format":"wav","data":"UklGRg=="}}"#;
    let mut parts: Vec<&str> = images.iter().map(String::as_str).collect();
    parts.insert(1, audio);
    let more = r#","max_tokens":2,"session_id":"s","mm_processor_kwargs":{"min_pixels":1e3},"priority":5,"n":1,"ec_transfer_params":{"mine":{"a":1}}"#;
    let sent = with_media(&parts, more);
    let mut client = rig.client();
    client.send(post_bytes(CHAT, &sent, "x-request-id: me\r\n"));
    let response = client.response();
    assert_eq!(response.status, 200, "{}", response.text());

    // Items 0 2 4 6 go to the first encoder (all images), 1 (audio) 3 5 7 to the second.
    let named = |i: usize| images[i].replace("}}", &format!("}},\"uuid\":\"{}\"}}", sha(&urls[i])));
    let sound =
        sha(r#"{"input_audio": {"data": "UklGRg==", "format": "wav"}, "type": "input_audio"}"#);
    let audio_named = audio.replace("}}", &format!("}},\"uuid\":\"{sound}\"}}"));
    let wanted = |items: &[String]| {
        format!(
            r#"{{"model":"dummy","messages":[{{"role":"user","content":[{}]}}],"stream":false,"mm_processor_kwargs":{{"min_pixels":1e3}},"priority":5,"session_id":"s"}}"#,
            items.join(",")
        )
    };
    let bodies = |engine: usize| {
        let mut legs = rig.posts(engine);
        legs.sort_by_key(|leg| leg.header("x-request-id").map(str::to_owned));
        legs
    };
    // Images by their own number: 0 is item 0; 1 to 6 are items 2 to 7.
    let first = bodies(0);
    let texts: Vec<&str> = first.iter().map(body).collect();
    assert_eq!(
        texts,
        [wanted(&[named(0), named(1)]), wanted(&[named(3), named(5)])]
    );
    is_child(first[0].header("x-request-id"), "me:0:");
    is_child(first[1].header("x-request-id"), "me:4:");
    let second = bodies(1);
    let texts: Vec<&str> = second.iter().map(body).collect();
    assert_eq!(
        texts,
        [
            wanted(&[audio_named]),
            wanted(&[named(2), named(4)]),
            wanted(&[named(6)])
        ]
    );
    is_child(second[1].header("x-request-id"), "me:3:");

    // References at P and D, and where to fetch them; the simulator has checked each.
    for leg in [&rig.posts(2)[0], &rig.posts(3)[0]] {
        let text = body(leg);
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let content = &value["messages"][1]["content"];
        assert!(
            !text.contains("http://h/") && !text.contains("UklGRg"),
            "{text}"
        );
        assert_eq!(content[0]["type"], "image_embeds");
        assert_eq!(content[0]["uuid"], sha(&urls[0]));
        assert_eq!(content[0].as_object().unwrap().len(), 3);
        assert_eq!(content[1]["type"], "audio_embeds");
        assert_eq!(content[8]["text"], "what is it?");
        let params = value["ec_transfer_params"].as_object().unwrap();
        assert_eq!(params.len(), 9);
        assert_eq!(params["mine"]["a"], 1);
        assert!(params[&sha(&urls[3])]["peer_port"].is_number());
    }
    clean(&rig);
    let ledger = rig.sim.ledger();
    assert_eq!(
        (ledger.encoded, ledger.embedded, ledger.fetched),
        (8, 16, 1)
    );

    // The turn goes on: eight items with two encoders end where they began; one more, and it is the other's.
    for engine in [0, 1, 0] {
        let before = rig.posts(engine).len();
        assert_eq!(rig.post(CHAT, &with_media(&[&images[0]], "")).status, 200);
        assert_eq!(rig.posts(engine).len(), before + 1, "encoder {engine}");
    }
}

#[test]
fn nothing_else_of_the_body_changes() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |_| {});
    let item = url("http://h/a");
    let sent = super::CHAT.replace(
        r#""content":"Grüße, \"stream\":true \\""#,
        &format!(r#""content":[ {{"type":"text","text":"Grüße, \"stream\":true \\"}} , {item} ]"#),
    );
    assert_eq!(rig.post(CHAT, &sent).status, 200);
    let d = rig.posts(2).pop().unwrap();
    let reference = {
        let value: serde_json::Value = serde_json::from_slice(&d.body).unwrap();
        let grid = &value["messages"][0]["content"][1]["image_embeds"];
        format!(
            r#"{{"type":"image_embeds","image_embeds":{grid},"uuid":"{}"}}"#,
            sha("http://h/a")
        )
    };
    let wanted = sent.replace(&item, &reference);
    let end = wanted.rfind('}').unwrap();
    assert!(
        body(&d).starts_with(&wanted[..end]),
        "{}\n{wanted}",
        body(&d)
    );
}

#[test]
fn a_client_s_own_name_counts_in_the_newest_version_only() {
    for (version, named) in [
        (Version::V2, sha("http://h/a")),
        (Version::V3, "mine".to_owned()),
    ] {
        let rig = epd(engines(1, 0, 0, EcMode::V2), |c| c.epd.version = version);
        let item = r#"{"uuid":"mine","type":"image_url","image_url":{"url":"http://h/a"}}"#;
        assert_eq!(rig.post(CHAT, &with_media(&[item], "")).status, 200);
        let at_e: serde_json::Value = serde_json::from_slice(&rig.posts(0)[0].body).unwrap();
        assert_eq!(at_e["messages"][0]["content"][0]["uuid"], *named);
        let at_pd: serde_json::Value = serde_json::from_slice(&rig.posts(1)[0].body).unwrap();
        assert_eq!(at_pd["messages"][1]["content"][0]["uuid"], *named);
        clean(&rig);
    }
}

#[test]
fn without_rewriting_media_go_on_as_they_came() {
    let rig = epd(engines(1, 0, 0, EcMode::V2), |c| c.epd.rewrite = false);
    let sent = with_media(&[&url("http://h/a"), &url("http://h/b")], "");
    assert_eq!(rig.post(CHAT, &sent).status, 200);
    assert!(!body(&rig.posts(0)[0]).contains("uuid"));
    let at_pd = rig.posts(1).pop().unwrap();
    assert!(
        body(&at_pd).starts_with(&sent[..sent.len() - 1]),
        "{}",
        body(&at_pd)
    );
    assert!(body(&at_pd).contains(r#","ec_transfer_params":{"#));
    clean(&rig);
}

/// Nothing to be referred to: the item goes on, under its name.
#[test]
fn encodings_without_metadata_are_named_and_not_replaced() {
    let mut engines = engines(1, 0, 0, EcMode::V2);
    engines[0].ec_metadata = false;
    let rig = epd(engines, |_| {});
    let item = url("http://h/a");
    let sent = with_media(&[&item], "");
    assert_eq!(rig.post(CHAT, &sent).status, 200);
    let named = item.replace("}}", &format!("}},\"uuid\":\"{}\"}}", sha("http://h/a")));
    assert!(body(&rig.posts(1)[0]).contains(&named));
    clean(&rig);
}

#[test]
fn audio_is_rewritten_with_all_others_or_not_at_all() {
    use crate::support::scripted::{Say, Scripted, answer};
    // An encoder that knows images only.
    let encoder = Scripted::start(|_, request| {
        let known = request.contains("image_url");
        let of = request.split("\"uuid\":\"").nth(1).unwrap();
        let name = &of[..64];
        let metadata = if known {
            r#""metadata":{"g":[[1],[2]]},"#
        } else {
            ""
        };
        Say::Bytes(answer(
            "200 OK",
            &format!(r#"{{"ec_transfer_params":{{"{name}":{{{metadata}"peer_port":1}}}}}}"#),
        ))
    });
    let other = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "{}")));
    let roles = [
        pdrelay::config::Role::Encode,
        pdrelay::config::Role::Aggregated,
    ];
    let config = |version| {
        let mut config = crate::support::config("epd", &roles, &[encoder.address, other.address]);
        config.epd.version = version;
        config
    };
    let audio = r#"{"type":"audio_url","audio_url":{"url":"http://h/s"}}"#;
    let image = url("http://h/a");
    let sent = with_media(&[&image, audio], "");
    for (version, kinds) in [
        (Version::V2, ["image_embeds", "audio_url"]),
        (Version::V3, ["image_url", "audio_url"]),
    ] {
        let server = pdrelay::server::Server::start(config(version)).unwrap();
        let mut client = crate::support::Client::connect(server.address);
        assert_eq!(client.post(CHAT, &sent).status, 200);
        let got: serde_json::Value = serde_json::from_str(&other.bodies().pop().unwrap()).unwrap();
        let content = &got["messages"][1]["content"];
        for (n, kind) in kinds.iter().enumerate() {
            assert_eq!(content[n]["type"], *kind);
            assert_eq!(content[n]["uuid"].as_str().unwrap().len(), 64);
        }
    }
}

#[test]
fn encoders_push_to_whoever_will_decode() {
    let mut engines = engines(2, 0, 0, EcMode::V2);
    engines[2].ec_addresses = vec!["10.0.0.1:5555".into(), "10.0.0.1:5556".into()];
    let rig = epd(engines, |c| {
        c.instances[2].consumer.dp_size = 2;
        c.instances[2].consumer.addresses = vec!["10.0.0.1:5555".into(), "10.0.0.1:5556".into()];
    });
    let (a, b) = (url("http://h/a"), url("http://h/b"));
    for turn in 0..4 {
        let sent = with_media(&[&a, &b, &a], "");
        let mut client = rig.client();
        client.send(post_bytes(CHAT, &sent, "X-Data-Parallel-Rank: 7\r\n"));
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        let leg = rig.posts(2).pop().unwrap();
        let ranks: Vec<_> = (leg.headers.iter())
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-data-parallel-rank"))
            .collect();
        assert_eq!(ranks.len(), 1);
        assert_eq!(ranks[0].1, (turn % 2).to_string());
    }
    let at_e: serde_json::Value = serde_json::from_slice(&rig.posts(0)[0].body).unwrap();
    assert_eq!(at_e["ec_transfer_params"]["consumer_zmq"], "10.0.0.1:5555");
    let id = &at_e["ec_transfer_params"]["ec_items"][0]["transfer_id"];
    let at_d: serde_json::Value = serde_json::from_slice(&rig.posts(2)[0].body).unwrap();
    let items = at_d["ec_transfer_params"]["ec_items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    assert_eq!(items[0]["mm_hash"], sha("http://h/a"));
    assert_eq!(&items[0]["transfer_id"], id);
    // Requests without media have their rank, too.
    assert_eq!(rig.post(CHAT, &chat("hi", "")).status, 200);
    assert_eq!(
        rig.posts(2).pop().unwrap().header("x-data-parallel-rank"),
        Some("0")
    );
    clean(&rig);
    assert_eq!(rig.sim.ledger().transferred, 12);
}

#[test]
fn requests_without_media_go_straight_on() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |_| {});
    let sent = completion(
        "once",
        r#","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://h/a"}}]}],"max_tokens":2"#,
    );
    assert_eq!(rig.post("/v1/completions", &sent).status, 200);
    assert_eq!(rig.post(CHAT, &chat("hi", "")).status, 200);
    assert_eq!(rig.posts(0).len(), 0);
    assert_eq!((rig.posts(1).len(), rig.posts(2).len()), (2, 2));
    assert!(!body(&rig.posts(2)[1]).contains("ec_transfer_params"));
    clean(&rig);
}

/// Whatever stands between P and D, text is that of a single server that saw the media itself.
#[test]
fn text_is_that_of_a_single_server() {
    let single = crate::support::aggregated(1);
    let image = url("data:image/png;base64,AAAA");
    let sent = with_media(&[&image, &url("http://h/b")], r#","max_tokens":12"#);
    let wanted = single.post(CHAT, &sent).generated();
    assert!(!wanted.is_empty());
    for then in ["nixl", "sequential", "aggregated"] {
        let split = usize::from(then != "aggregated");
        let mut engines = engines(2, split, split, EcMode::V2);
        if then == "sequential" {
            engines.iter_mut().for_each(|e| e.kv = pdsim::KvMode::None);
        }
        let rig = epd(engines, |c| c.epd.then = Some(then.into()));
        for stream in [false, true] {
            let sent = sent.replace(
                "\"max_tokens\"",
                &format!("\"stream\":{stream},\"max_tokens\""),
            );
            let response = rig.post(CHAT, &sent);
            assert_eq!(response.status, 200, "{then}: {}", response.text());
            assert_eq!(response.generated(), wanted, "{then}");
        }
        clean(&rig);
    }
}
