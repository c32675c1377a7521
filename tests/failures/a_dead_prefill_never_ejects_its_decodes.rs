//! P dies while many Ds' requests fetch their KV from it: they fail, and D is as well as before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pdrelay::config::Role;
use pdrelay::server::Server;

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, completion, config, eventually};

const GRANTED: &str = r#"{"id":"p","choices":[{"index":0,"text":"w","finish_reason":"length"}],"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e","remote_block_ids":[1],"remote_host":"h","remote_port":1}}"#;
const LOST: &str =
    r#"{"error":{"message":"KV load failure","type":"InternalServerError","code":500}}"#;
/// More than any breaker lets pass.
const MANY: usize = 24;

#[derive(Clone, Copy, PartialEq)]
enum P {
    Lives,
    /// Before D answers.
    Dies,
    /// It has failed so often that it is left out of choice; but it is the only one, and well again.
    WasEjected,
}

/// Ejections of D once `MANY` of its answers were 500.
fn ejections_of_d(fate: P) -> usize {
    let fails = if fate == P::WasEjected { MANY } else { 0 };
    let p = Scripted::start(move |number, _| match number < fails {
        true => Say::Close(answer("500 Internal Server Error", LOST)),
        false => Say::Close(answer("200 OK", GRANTED)),
    });
    let tell = Arc::new(AtomicBool::new(false));
    let told = tell.clone();
    let d = Scripted::start(move |_, _| {
        while !told.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Say::Bytes(answer("500 Internal Server Error", LOST))
    });
    let roles = [Role::Prefill, Role::Decode];
    let mut config = config("nixl", &roles, &[p.address, d.address]);
    config.health_check.enabled = false;
    config.retry.max_retries = 0;
    let server = Server::start(config).expect("the proxy starts");
    let ask = |address| {
        let body = completion("x", r#","max_tokens":4"#);
        Client::connect(address)
            .post("/v1/completions", &body)
            .status
    };
    let address = server.address;
    for _ in 0..fails {
        assert_eq!(ask(address), 500);
    }
    let clients: Vec<_> = (0..MANY)
        .map(|_| std::thread::spawn(move || ask(address)))
        .collect();
    eventually("all are at D", || d.requests().len() == MANY);
    if fate == P::Dies {
        drop(p);
        eventually("P is known to be gone", || ask(address) == 503);
    }
    tell.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.join().expect("a client"), 500);
    }
    let metrics = Client::connect(address).get("/metrics").text();
    let name = d.address.to_string();
    let of_d = |metric: &str| -> f64 {
        let lines = metrics.lines();
        let lines = lines.filter(|l| l.starts_with(metric) && l.contains(&name));
        lines
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    assert_eq!(of_d("pdrelay_upstream_failures_total"), MANY as f64);
    of_d("pdrelay_ejections_total") as usize
}

#[test]
fn those_who_fetched_from_it_stay_in() {
    assert_eq!(ejections_of_d(P::Dies), 0);
}

/// Without which the other would prove nothing.
#[test]
fn a_decode_that_fails_beside_a_living_prefill_is_ejected() {
    assert!(ejections_of_d(P::Lives) > 0);
}

#[test]
fn a_prefill_that_had_fallen_before_excuses_no_decode() {
    assert!(ejections_of_d(P::WasEjected) > 0);
}
