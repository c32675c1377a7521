//! The HTTP side, attacked from outside.

mod binary;
mod bodies_never_reach_engines_changed;
mod broken_streams_never_end_clean;
mod chunks_never_allocate;
mod crowds_never_lose_a_request;
mod departed_clients_never_keep_an_engine_busy;
mod fake;
mod framing_never_changes_body_bytes;
mod headers_never_get_lost_or_leak;
mod hostile_answers_never_reach_a_client;
mod hostile_sizes_never_stop_the_proxy;
mod mutations_never_confuse_an_engine;
mod never_crossed;
mod paced_shards_never_fall_asleep;
mod pipelined_requests_never_swap_answers;
mod slow_clients_never_hold_a_place;
mod smuggled_requests_never_reach_an_engine;
mod stale_connections_never_fail_a_request;
mod steered_connections_never_land_elsewhere;
mod unix_sockets_never_differ_from_tcp;
mod wrong_paths_never_reach_an_engine;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pdrelay::config::Config;

use crate::support::{Client, Response, Rig, rig_with};

/// A rig whose engines see nothing but what clients send: no health probes.
fn quiet(
    handshake: &str,
    engines: Vec<pdsim::EngineOptions>,
    change: impl FnOnce(&mut Config),
) -> Rig {
    rig_with(handshake, engines, |config| {
        config.health_check.enabled = false;
        change(config);
    })
}

/// One request of these bytes on a connection of its own.
fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Response {
    let mut client = Client::connect(address);
    client.send(bytes);
    client.response()
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
    /// Not at all, in the time given.
    Open,
}

/// Everything that still comes on the connection, and how it ends.
fn rest_of(client: &mut Client) -> (Vec<u8>, End) {
    let mut piece = [0; 16 << 10];
    loop {
        match client.stream.read(&mut piece) {
            Ok(0) => return (std::mem::take(&mut client.rest), End::Fin),
            Ok(n) => client.rest.extend_from_slice(&piece[..n]),
            Err(e) => {
                let end = match e.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Open,
                    _ => End::Reset,
                };
                return (std::mem::take(&mut client.rest), end);
            }
        }
    }
}

fn patience(client: &Client, ms: u64) {
    let limit = Some(Duration::from_millis(ms));
    client.stream.set_read_timeout(limit).expect("a limit");
}

/// The time until `ready`, at most ten seconds.
fn time_until(what: &str, ready: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    crate::support::eventually(what, ready);
    began.elapsed()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
