//! Whatever handshake is behind the encoders, each of its legs has references where the client had media, and text is
//! that of a single server. Where that cannot be, the configuration is refused (`config/tests/cross.rs`).

use pdrelay::config::{Address, InstanceConfig, Role};
use pdrelay::server::Server;
use pdsim::{EcMode, EngineOptions, KvMode};
use serde_json::{Value, json};

use super::{CHAT, engines, epd, url, with_media};
use crate::multiturn::{Talk, alone, clean, conversations, reused};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Rig, eventually, lmcache};

fn encoder() -> Scripted {
    Scripted::start(|_, request| {
        let of = request.split("\"uuid\":\"").nth(1).unwrap();
        let body = format!(
            r#"{{"ec_transfer_params":{{"{}":{{"metadata":{{"g":[[1],[2]]}},"peer_port":1}}}}}}"#,
            &of[..64]
        );
        Say::Bytes(answer("200 OK", &body))
    })
}

/// A host of this process alone, for what has to be on a port of its own.
fn own_host() -> String {
    let [_, b, c, d] = std::process::id().to_be_bytes();
    format!("127.{}.{c}.{}", 64 + b % 64, d.max(1))
}

fn refers(leg: &str, place: &str) {
    let body: Value = serde_json::from_str(leg).unwrap();
    let item = &body["messages"][1]["content"][0];
    assert_eq!(item["type"], "image_embeds", "{place}: {leg}");
    assert!(!leg.contains("http://h/a"), "{place}: {leg}");
    let name = item["uuid"].as_str().unwrap();
    assert_eq!(
        body["ec_transfer_params"][name]["peer_port"], 1,
        "{place}: {leg}"
    );
}

#[test]
fn every_leg_of_every_handshake_refers_to_them() {
    let host = own_host();
    // Where the mooncake connector's bootstrap server is.
    let bootstrap = Scripted::start_at(&format!("{host}:8998"), |_, _| {
        Say::Bytes(answer("200 OK", r#"{"0":{"engine_id":"e"}}"#))
    });
    for (then, more, at_p, at_d) in [
        ("nixl", "", 1, 1),
        ("sequential", "", 1, 1),
        ("multiturn", r#","conversation_id":"c""#, 1, 1),
        ("offloading", "", 1, 1),
        ("mooncake", "", 1, 1),
        ("shared_storage", "", 1, 1),
        ("shared_storage", r#","cache_hit_threshold":0.8"#, 1, 2),
        ("shared_storage", r#","cache_hit_threshold":0.1"#, 0, 1),
    ] {
        let encoder = encoder();
        let p = Scripted::start_at(&format!("{host}:0"), |_, _| {
            Say::Bytes(answer("200 OK", r#"{"kv_transfer_params":{"a":1}}"#))
        });
        let d = Scripted::start(|_, request| {
            let missed = request.contains(r#""cache_hit_threshold":0.8"#);
            let why = if missed { "cache_threshold" } else { "stop" };
            let body = format!(r#"{{"choices":[{{"finish_reason":"{why}"}}],"from":"d"}}"#);
            Say::Bytes(answer("200 OK", &body))
        });
        let roles = [Role::Encode, Role::Prefill, Role::Decode];
        let addresses = [encoder.address, p.address, d.address];
        let mut config = crate::support::config("epd", &roles, &addresses);
        config.instances[1] =
            InstanceConfig::new(Address::tcp(&*host, p.address.port()), Role::Prefill);
        config.epd.then = Some(then.into());
        config.health_check.enabled = false;
        let server = Server::start(config).unwrap();
        let sent = with_media(&[&url("http://h/a")], more);
        let response = Client::connect(server.address).post(CHAT, &sent);
        assert_eq!(response.status, 200, "{then}{more}: {}", response.text());
        assert_eq!(response.json()["from"], "d");
        eventually("P was asked", || p.bodies().len() == at_p);
        assert_eq!(d.bodies().len(), at_d, "{then}{more}");
        for (role, legs) in [("P", p.bodies()), ("D", d.bodies())] {
            legs.iter()
                .for_each(|leg| refers(leg, &format!("{then}{more}, {role}")));
        }
    }
    assert_eq!(bootstrap.requests().len(), 1);
}

/// The image is shown again in each turn, as clients do; it is encoded again, and its KV is reused.
#[test]
fn conversations_go_on_behind_encoders() {
    let mut all = engines(1, 1, 1, EcMode::V2);
    for engine in &mut all {
        engine.bidirectional = true;
        engine.trimmed = true;
        engine.lease = std::time::Duration::from_secs(480);
    }
    // Where the other tests of conversations look for P.
    all.rotate_left(1);
    let rig = epd(all, |c| c.epd.then = Some("multiturn".into()));
    let mut talk = Talk::new("c");
    talk.messages = vec![json!({"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "look at this"},
    ]})];
    for turn in 0..3 {
        talk.stream = turn % 2 == 0;
        talk.say(rig.server.address, "what is it?");
        let said = talk.messages.last().unwrap()["content"].clone();
        assert_eq!(said, alone(&talk), "turn {turn}");
        assert_eq!(reused(&rig), turn > 0);
        let at_p = String::from_utf8(rig.posts(0).pop().unwrap().body).unwrap();
        assert!(
            at_p.contains("image_embeds") && !at_p.contains("AAAA"),
            "{at_p}"
        );
        assert!(!at_p.contains("conversation_id"), "{at_p}");
    }
    assert_eq!(conversations(&rig, "reused"), 2.0);
    assert_eq!(rig.sim.ledger().encoded, 3);
    clean(&rig);
    // Another picture is another conversation.
    talk.messages[0]["content"][0]["image_url"]["url"] = json!("data:image/png;base64,BBBB");
    talk.say(rig.server.address, "and now?");
    assert!(!reused(&rig));
    assert_eq!(conversations(&rig, "mismatch"), 1.0);
    clean(&rig);
}

#[test]
fn lmcache_pushes_the_kv_of_media() {
    let mut all: Vec<EngineOptions> = engines(1, 0, 0, EcMode::V2);
    all.truncate(1);
    all[0].kv = KvMode::None;
    let pair = lmcache::engines(1, 1, 2);
    all.extend(pair.into_iter().map(|one| EngineOptions {
        ec: EcMode::V2,
        ..one
    }));
    let with_receivers = all.clone();
    let rig: Rig = epd(all, |c| {
        c.epd.then = Some("lmcache".into());
        c.lmcache.host = lmcache::NOTICES_HOST.into();
        c.lmcache.port = 0;
        lmcache::receivers(c, &with_receivers);
    });
    rig.sim
        .notices_to(rig.server.notices().expect("it listens for notices"));
    let single = crate::support::aggregated(1);
    let more = r#","max_tokens":5"#;
    for stream in ["false", "true"] {
        let more = format!(r#"{more},"stream":{stream}"#);
        let sent = with_media(&[&url("http://h/a"), &url("http://h/b")], &more);
        let response = rig.post(CHAT, &sent);
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.generated(), single.post(CHAT, &sent).generated());
    }
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.encoded, ledger.embedded), (4, 8));
    assert_eq!((ledger.pushes, ledger.loaded, ledger.recomputed), (2, 2, 0));
}

/// The P that encodings were pushed to is the one that is asked, whoever the client was bound to before.
#[test]
fn a_bound_client_never_leaves_its_encodings_behind() {
    let bodies = |p: &Scripted| p.bodies().len();
    let says = |body: &'static str| Scripted::start(move |_, _| Say::Bytes(answer("200 OK", body)));
    let (encoder, d) = (encoder(), says(r#"{"from":"d"}"#));
    let ps = [says("{}"), says("{}")];
    let roles = [Role::Encode, Role::Prefill, Role::Prefill, Role::Decode];
    let addresses = [encoder.address, ps[0].address, ps[1].address, d.address];
    let mut config = crate::support::config("epd", &roles, &addresses);
    config.epd.then = Some("lmcache".into());
    config.scheduling.prefill = "round_robin".into();
    config.lmcache.variant = pdrelay::config::lmcache::Variant::Plain;
    config.lmcache.bound_by = Some("session-id".into());
    config.cores.shards = Some(1);
    for (at, instance) in config.instances[1..3].iter_mut().enumerate() {
        instance.consumer.addresses = vec![format!("10.0.0.{at}:5555")];
    }
    let server = Server::start(config).unwrap();
    let sent = with_media(&[&url("http://h/a")], "");
    for turn in 1..=4 {
        let mut client = Client::connect(server.address);
        client.send(crate::support::post_bytes(
            CHAT,
            &sent,
            "session-id: me\r\n",
        ));
        assert_eq!(client.response().status, 200);
        let pushed = encoder.bodies().pop().unwrap();
        let asked = (0..2)
            .find(|at| pushed.contains(&format!("10.0.0.{at}:5555")))
            .unwrap();
        assert_eq!(bodies(&ps[0]) + bodies(&ps[1]), turn);
        let leg = ps[asked]
            .bodies()
            .pop()
            .expect("the one that encodings were pushed to");
        let id = pushed.split("transfer_id\":\"").nth(1).unwrap();
        assert!(leg.contains(&id[..32]), "{leg}");
    }
}
