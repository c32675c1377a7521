//! The same against `redis-server` itself, where it is installed: our stand-in is only what we think it is.

use std::time::Duration;

use pdrelay::config::RedisAddress;

use super::proxies_never_take_twice::{first, three_turns};
use super::redis::Real;
use super::{Talk, clean, conversations, right, talk_rig};
use crate::support::eventually;

#[test]
fn three_turns_on_three_proxies() {
    let Some(redis) = Real::start(&[]) else {
        return;
    };
    three_turns(&redis.url(""));
}

#[test]
fn with_a_password_and_over_a_socket() {
    let Some(redis) = Real::start(&["--requirepass", "p@ss word"]) else {
        return;
    };
    three_turns(&redis.url(":p%40ss%20word@"));
    let socket = redis.socket();
    three_turns(&format!("unix://:p%40ss%20word@{}?db=2", socket.display()));
    // With a wrong one nothing is kept, and nothing fails.
    let rig = first(&redis.url(":wrong@"));
    let mut talk = Talk::new("c");
    for _ in 0..2 {
        talk.say(rig.server.address, "hello");
        right(&talk);
    }
    assert_eq!(conversations(&rig, "reused"), 0.0);
    assert!(conversations(&rig, "store_failed") > 0.0);
}

/// Before 6.2 there is no GETDEL.
#[test]
fn without_getdel() {
    let Some(redis) = Real::start(&["--rename-command", "GETDEL", ""]) else {
        return;
    };
    three_turns(&redis.url(""));
}

#[test]
fn killing_it_midway_costs_only_the_reuse() {
    let Some(mut redis) = Real::start(&[]) else {
        return;
    };
    let at = RedisAddress::parse(&redis.url("")).unwrap();
    let rig = talk_rig(|config| {
        config.multiturn.redis = Some(at);
        config.multiturn.redis_timeout = Duration::from_millis(500);
        config.cores.shards = Some(1);
    });
    let mut talk = Talk::new("c");
    let say = |talk: &mut Talk| {
        talk.say(rig.server.address, "hello");
        right(talk);
    };
    say(&mut talk);
    super::counted(&rig, "stored", 1.0);
    say(&mut talk);
    assert_eq!(conversations(&rig, "reused"), 1.0);
    redis.kill();
    for _ in 0..3 {
        say(&mut talk);
    }
    assert_eq!(conversations(&rig, "reused"), 1.0);
    assert!(conversations(&rig, "store_failed") > 0.0);
    redis.again();
    eventually("conversations go on again", || {
        say(&mut talk);
        conversations(&rig, "reused") > 1.0
    });
    clean(&rig);
}
