//! The face of xPyD-proxy 1.8, as its clients, operators and dashboards know it.

mod browsers_are_never_turned_away;
mod dashboards_never_lose_a_family;
mod engine_paths_never_reach_the_wrong_engine;
mod errors_never_change_their_shape;
mod gates_never_open_too_early;
mod hung_engines_never_hold_a_page;
mod pages_never_change_their_shape;
mod removals_never_cut_a_request;
mod waits_never_last_for_ever;
mod zmq_modes_never_wait_for_ever;

use std::time::Duration;

use pdrelay::config::{Config, Secret, Surface};

use crate::support::{Client, Response, Rig, engines, eventually, rig_with};

/// With this face, and engines that are looked at often.
fn face(config: &mut Config) {
    config.surface = Surface::Xpyd;
    config.model = crate::support::MODEL.into();
    config.startup.probe_interval = Duration::from_millis(20);
    config.health_check.interval = Duration::from_millis(20);
    config.admin_api_key = Some(Secret("k".into()));
}

/// `p` prefill and `d` decode engines in direct mode, found healthy.
fn rig(p: usize, d: usize) -> Rig {
    rig_where(p, d, |_| {})
}

fn rig_where(p: usize, d: usize, change: impl FnOnce(&mut Config)) -> Rig {
    let rig = rig_with("sequential", engines(p, d), |config| {
        face(config);
        change(config);
    });
    open(&rig);
    rig
}

/// Once found, its engines are not looked at again: what they are made to do to requests they do to health
/// checks, too.
fn unwatched(config: &mut Config) {
    config.startup.probe_interval = Duration::from_secs(600);
    config.health_check.interval = Duration::from_secs(600);
    config.retry.enabled = false;
    config.circuit_breaker.enabled = false;
}

/// Waits until the backends are there.
fn open(rig: &Rig) {
    eventually("the backends are found", || {
        rig.get("/v1/models").status == 200
    });
}

/// Sends these bytes on a connection of its own.
fn raw(rig: &Rig, method: &str, path: &str, more: &str, body: &str) -> Response {
    let mut client: Client = rig.client();
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: t\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.response_to(method)
}

/// A request of the admin, with the key.
fn admin(rig: &Rig, path: &str, body: &str) -> Response {
    raw(rig, "POST", path, "x-api-key: k\r\n", body)
}

/// `{"error":{"message":..,"type":..,"code":null}}`
fn object(message: &str, class: &str) -> String {
    format!(r#"{{"error":{{"message":"{message}","type":"{class}","code":null}}}}"#)
}
