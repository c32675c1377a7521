//! Engines close idle connections whenever they like; the proxy may be reaching for one just then.

use std::thread;
use std::time::Duration;

use crate::support::{completion, engines};

use super::fake::{Act, Fake, answer, at, proxy};
use super::{ms, quiet};

#[test]
fn engines_that_close_idle_connections_are_no_error() {
    for handshake in ["nixl", "sequential"] {
        let mut engines = engines(1, 1);
        for engine in &mut engines {
            // The simulator looks every 100 ms.
            engine.keep_alive = Some(Duration::from_millis(1));
        }
        let rig = quiet(handshake, engines, |_| {});
        thread::scope(|scope| {
            for worker in 0..8u64 {
                let rig = &rig;
                scope.spawn(move || {
                    let mut client = rig.client();
                    for i in 0..12u64 {
                        let body = completion("stale", r#","max_tokens":2"#);
                        let response = client.post("/v1/completions", &body);
                        assert_eq!(response.status, 200, "{}", response.text());
                        // Around the moment when the engine closes.
                        thread::sleep(ms(90 + (worker * 5 + i * 3) % 20));
                    }
                });
            }
        });
        let ledger = rig.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
    }
}

/// The engine has read a request on a kept connection and closes without a word: it may only be sent
/// again on a fresh connection, once.
#[test]
fn a_connection_that_dies_under_a_request_is_replaced() {
    // The second request on each connection is not answered.
    let fake = Fake::new(|number, seen| match number == 0 || seen.connection > 0 {
        true => vec![answer("{}")],
        false => vec![Act::Close],
    });
    let server = proxy(&[&fake], |_| {});
    let mut client = at(&server);
    for _ in 0..3 {
        let response = client.post("/v1/completions", &completion("x", ""));
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let connections: Vec<usize> = fake.seen().iter().map(|s| s.connection).collect();
    assert_eq!(connections, [0, 0, 1, 1]);
}

/// A connection is kept for `pool_idle` and no longer.
#[test]
fn idle_connections_are_let_go() {
    let fake = Fake::always(vec![answer("{}")]);
    let server = proxy(&[&fake], |c| c.timeouts.pool_idle = ms(100));
    let mut client = at(&server);
    for _ in 0..3 {
        assert_eq!(client.post("/tokenize", "{}").status, 200);
    }
    assert_eq!((fake.connections(), fake.open()), (1, 1));
    crate::support::eventually("it is closed", || fake.open() == 0);
    assert_eq!(client.post("/tokenize", "{}").status, 200);
    assert_eq!(fake.connections(), 2);
}
