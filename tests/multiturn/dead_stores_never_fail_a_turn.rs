//! A Redis that is not there, says nothing, or says nonsense: the turn is computed, it is counted, and when the
//! Redis is well again, conversations are kept again.

use std::time::{Duration, Instant};

use pdrelay::config::RedisAddress;

use super::redis::{Fake, Mood};
use super::{Talk, clean, conversations, counted, right, talk_rig};
use crate::support::{Rig, eventually};

fn rig_over(url: &str) -> Rig {
    let redis = RedisAddress::parse(url).unwrap();
    talk_rig(|config| {
        config.multiturn.redis = Some(redis);
        config.multiturn.redis_timeout = Duration::from_millis(200);
        config.cores.shards = Some(1);
    })
}

#[test]
fn a_good_one_serves_all_turns() {
    for mood in [Mood::Good, Mood::Old] {
        let fake = Fake::start(mood);
        let rig = rig_over(&fake.url());
        let mut talk = Talk::new("c");
        for turn in 0..3 {
            talk.say(rig.server.address, "hello");
            right(&talk);
            counted(&rig, "stored", f64::from(turn + 1));
        }
        assert_eq!(conversations(&rig, "reused"), 2.0, "{mood:?}");
        assert_eq!(conversations(&rig, "store_failed"), 0.0, "{mood:?}");
        assert_eq!(fake.kept.lock().unwrap().values.len(), 1);
        fake.no_faults();
        clean(&rig);
    }
}

/// As a Redis does that was told to end idle connections soon.
#[test]
fn one_that_closes_after_each_word_is_connected_to_again() {
    let fake = Fake::start(Mood::Closes);
    let rig = rig_over(&fake.url());
    let mut talk = Talk::new("c");
    eventually("a turn is reused", || {
        talk.say(rig.server.address, "hello");
        right(&talk);
        conversations(&rig, "reused") > 0.0
    });
    fake.no_faults();
    clean(&rig);
}

#[test]
fn users_and_databases_are_told_first() {
    let fake = Fake::start(Mood::Good);
    let rig = rig_over(&format!("redis://me:se%20cret@{}/7", fake.address));
    Talk::new("c").say(rig.server.address, "hello");
    counted(&rig, "stored", 1.0);
    let commands = fake.kept.lock().unwrap().commands.clone();
    let texts: Vec<Vec<String>> = commands
        .iter()
        .map(|c| {
            c.iter()
                .map(|w| String::from_utf8_lossy(w).into_owned())
                .collect()
        })
        .collect();
    assert_eq!(texts[0], ["AUTH", "me", "se cret"]);
    assert_eq!(texts[1], ["SELECT", "7"]);
    assert_eq!(texts[2][0], "GETDEL");
    let key = &texts[2][1];
    assert!(
        key.starts_with("pdrelay:conversation:") && key.len() == 21 + 64,
        "{key}"
    );
    // Neither the conversation's name nor its text is to be read there.
    let value = texts[3][2].clone();
    assert!(!key.contains('c') || !value.contains("hello"), "{value}");
    assert_eq!((&*texts[3][3], &*texts[3][4]), ("PX", "450000"));
}

#[test]
fn a_bad_one_costs_only_the_reuse() {
    for mood in [
        Mood::Silent,
        Mood::Nonsense,
        Mood::Wrong,
        Mood::Garbled,
        Mood::Loading,
    ] {
        let fake = Fake::start(mood);
        let rig = rig_over(&fake.url());
        let mut talk = Talk::new("c");
        for _ in 0..3 {
            let began = Instant::now();
            talk.say(rig.server.address, "hello");
            // What a turn waits for a store is bounded (the rest is a machine that is busy).
            assert!(began.elapsed() < Duration::from_secs(5), "{mood:?}");
            right(&talk);
        }
        assert_eq!(conversations(&rig, "reused"), 0.0, "{mood:?}");
        eventually("it is counted", || {
            conversations(&rig, "store_failed") > 0.0
        });
        clean(&rig);
        // It recovers, and so do we.
        fake.set(Mood::Good);
        eventually("turns are reused again", || {
            let before = conversations(&rig, "reused");
            talk.say(rig.server.address, "hello");
            conversations(&rig, "reused") > before
        });
        right(&talk);
        clean(&rig);
    }
}

/// What somebody else has written over the params may look like an object: P must not be asked with it.
#[test]
fn damaged_params_cost_only_the_reuse() {
    let fake = Fake::start(Mood::Good);
    let rig = rig_over(&fake.url());
    let mut talk = Talk::new("c");
    talk.say(rig.server.address, "hello");
    // The store is told after the client.
    eventually("it is kept", || {
        !fake.kept.lock().unwrap().values.is_empty()
    });
    for value in fake.kept.lock().unwrap().values.values_mut() {
        let text = String::from_utf8(value.0.clone()).unwrap();
        let damaged = text.replacen(r#""params":{"#, r#""params":{"a":,"#, 1);
        assert_ne!(damaged, text);
        value.0 = damaged.into_bytes();
    }
    talk.say(rig.server.address, "and again");
    right(&talk);
    assert_eq!(conversations(&rig, "reused"), 0.0);
    assert_eq!(conversations(&rig, "store_failed"), 1.0);
    eventually("it is kept again", || {
        !fake.kept.lock().unwrap().values.is_empty()
    });
    talk.say(rig.server.address, "and once more");
    right(&talk);
    assert_eq!(conversations(&rig, "reused"), 1.0);
    clean(&rig);
}

#[test]
fn one_that_is_not_there_is_asked_again_later() {
    let fake = Fake::start(Mood::Good);
    let address = fake.address;
    drop(fake);
    let rig = rig_over(&format!("redis://{address}"));
    let mut talk = Talk::new("c");
    for _ in 0..3 {
        talk.say(rig.server.address, "hello");
        right(&talk);
    }
    assert_eq!(conversations(&rig, "reused"), 0.0);
    assert!(conversations(&rig, "store_failed") >= 3.0);
    clean(&rig);
}

/// A client that leaves while the store is asked is no failure of it, and strands nothing.
#[test]
fn a_client_that_leaves_meanwhile_leaves_nothing_behind() {
    use std::io::Write;
    let fake = Fake::start(Mood::Silent);
    let rig = rig_over(&fake.url());
    let mut talk = Talk::new("c");
    talk.messages = vec![serde_json::json!({"role": "user", "content": "x"})];
    for _ in 0..5 {
        let mut client = rig.client();
        let bytes = crate::support::post_bytes(super::CHAT, &talk.body(), "");
        client.stream.write_all(&bytes).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        drop(client);
    }
    eventually("nothing is in flight", || {
        rig.metric("pdrelay_requests_in_flight") <= 1.0
    });
    eventually("P holds nothing", || {
        let ledger = rig.sim.ledger();
        ledger.held_now == 0
    });
    clean(&rig);
}
