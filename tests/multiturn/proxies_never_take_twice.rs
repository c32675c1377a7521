//! Several proxies with one store are as one: a turn on any of them goes on, and no two take the same.

use std::time::Duration;

use pdrelay::config::{RedisAddress, Role};
use pdrelay::server::Server;

use super::redis::{Fake, Mood};
use super::{Talk, alone, clean, conversations, counted, right, talk_rig};
use crate::support::{Client, Rig, config, eventually};

/// Another proxy in front of the same engines.
pub fn another(rig: &Rig, url: &str) -> Server {
    let roles = [Role::Prefill, Role::Decode];
    let mut config = config("multiturn", &roles, rig.sim.addresses());
    config.multiturn.redis = Some(RedisAddress::parse(url).unwrap());
    config.multiturn.redis_timeout = Duration::from_secs(2);
    Server::start(config).expect("the proxy starts")
}

pub fn first(url: &str) -> Rig {
    let redis = RedisAddress::parse(url).unwrap();
    talk_rig(|config| {
        config.multiturn.redis = Some(redis);
        config.multiturn.redis_timeout = Duration::from_secs(2);
    })
}

/// Three turns on three processes' worth of proxies; each goes on from the one before.
pub fn three_turns(url: &str) {
    let rig = first(url);
    let (second, third) = (another(&rig, url), another(&rig, url));
    let mut talk = Talk::new("shared");
    talk.say(rig.server.address, "one");
    right(&talk);
    counted(&rig, "stored", 1.0);
    talk.say(second.address, "two");
    right(&talk);
    assert!(super::reused(&rig));
    // What the second has stored is said on its own page.
    eventually("the second turn is stored", || {
        let page = Client::connect(second.address).get("/metrics").text();
        page.contains("pdrelay_conversations_total{outcome=\"stored\"} 1")
    });
    talk.say(third.address, "three");
    right(&talk);
    assert!(super::reused(&rig));
    clean(&rig);
}

#[test]
fn a_conversation_goes_on_anywhere() {
    let fake = Fake::start(Mood::Good);
    three_turns(&fake.url());
    fake.no_faults();
}

#[test]
fn two_at_once_never_have_the_same() {
    let fake = Fake::start(Mood::Good);
    let rig = first(&fake.url());
    let other = another(&rig, &fake.url());
    for round in 0..5 {
        let mut talk = Talk::new(&format!("c-{round}"));
        talk.say(rig.server.address, "first");
        eventually("it is kept", || {
            fake.kept.lock().unwrap().values.len() == round + 1
        });
        let threads: Vec<_> = [
            rig.server.address,
            other.address,
            rig.server.address,
            other.address,
        ]
        .into_iter()
        .enumerate()
        .map(|(i, address)| {
            let mut own = Talk::new(&format!("c-{round}"));
            own.messages.clone_from(&talk.messages);
            std::thread::spawn(move || {
                own.say(address, &format!("branch {i}"));
                own
            })
        })
        .collect();
        for thread in threads {
            let own = thread.join().unwrap();
            if round == 0 {
                assert_eq!(own.messages.last().unwrap()["content"], alone(&own));
            }
        }
    }
    // Once each, by whichever of the two; a second use would be told by the ledger.
    let line = "pdrelay_conversations_total{outcome=\"reused\"} ";
    let page = Client::connect(other.address).get("/metrics").text();
    let there = page
        .lines()
        .find_map(|l| l.strip_prefix(line)?.parse::<f64>().ok());
    assert_eq!(conversations(&rig, "reused") + there.unwrap_or(0.0), 5.0);
    clean(&rig);
}
