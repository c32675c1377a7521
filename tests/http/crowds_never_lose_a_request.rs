//! More clients ask at once than a shard begins in one turn: they stand in line, and some leave it.

use std::net::Shutdown;
use std::time::Duration;

use pdrelay::metrics::Gauge;
use pdrelay::net::runtime::Driver;

use super::ms;
use crate::support::{Client, Rig, completion, engines, eventually, post_bytes, rig_with};

const CLIENTS: usize = 400;

/// Whose client does not wait for the answer.
fn leaves(number: usize) -> bool {
    number % 4 == 3
}

/// All ask before any answer is read.
fn crowd(rig: &Rig, round: usize) {
    let prompt = |number: usize| format!("{number} of round {round}");
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| rig.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let more = r#","max_tokens":3,"stream":true"#;
        let body = completion(&prompt(number), more);
        client.send(post_bytes("/v1/completions", &body, ""));
        if leaves(number) {
            if number % 8 == 3 {
                let socket = socket2::SockRef::from(&client.stream);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            }
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        if leaves(number) {
            continue;
        }
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        let right = pdsim::expected(pdsim::prompt_hash(&prompt(number)), 0, 3);
        assert_eq!(response.generated(), right, "{}", prompt(number));
    }
}

#[test]
fn everybody_in_the_line_is_served_but_who_has_left() {
    let mut engines = engines(1, 1);
    engines[0].lease = ms(1500);
    // Long enough that many are under way.
    engines[1].timing.decode_tick = ms(30);
    let rig = rig_with("nixl", engines, |config| {
        config.cores.shards = Some(1);
        config.health_check.enabled = false;
    });
    let ring = rig.server.shared.drivers[0].get() != Some(&Driver::Epoll);
    let waited = || rig.metric(r#"pdrelay_stage_seconds_count{stage="queue"}"#);
    let mut round = 0;
    while round == 0 || (ring && waited() == 0.0) {
        assert!(round < 50, "nobody ever had to wait");
        crowd(&rig, round);
        round += 1;
    }
    assert!(ring || waited() == 0.0);
    eventually("all is over", || {
        let level = rig.server.shared.metrics.level(Gauge::requests_in_flight());
        level == 0 && rig.sim.ledger().held_now == 0
    });
    let ledger = rig.sim.ledger();
    assert!(ledger.fetched as usize >= round * CLIENTS * 3 / 4);
    assert!(ledger.violations.is_empty(), "{:?}", ledger.violations);
}
