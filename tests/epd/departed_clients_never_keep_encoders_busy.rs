//! A client that leaves while its media are being encoded is noticed at once: every encoder's connection
//! closes, and nobody behind them is asked.

use std::time::{Duration, Instant};

use pdsim::{EcMode, Fault};

use super::{CHAT, engines, epd, url, with_media};
use crate::support::{eventually, post_bytes};

#[test]
fn all_encoders_are_told() {
    let rig = epd(engines(3, 1, 1, EcMode::V2), |_| {});
    for engine in [0, 1] {
        rig.sim.set_fault(engine, Some(Fault::HangBeforeHead));
    }
    let parts: Vec<String> = (0..3).map(|i| url(&format!("http://h/{i}"))).collect();
    let sent = with_media(&[&parts[0], &parts[1], &parts[2]], "");
    let mut client = rig.client();
    client.send(post_bytes(CHAT, &sent, ""));
    // All at the same time: the third has answered while the others hang.
    eventually("all encoders are asked", || {
        rig.sim.open_requests(0) == 1 && rig.sim.open_requests(1) == 1 && rig.posts(2).len() == 1
    });
    let left = Instant::now();
    drop(client);
    eventually("the encoders are told", || {
        rig.sim.open_requests(0) == 0 && rig.sim.open_requests(1) == 0
    });
    assert!(
        left.elapsed() < Duration::from_secs(2),
        "{:?}",
        left.elapsed()
    );
    eventually("it is over", || {
        rig.metric("pdrelay_requests_in_flight") <= 1.0
            && rig.sum("pdrelay_instance_in_flight", &[]) == 0.0
    });
    assert_eq!(
        (rig.posts(0).len(), rig.posts(3).len(), rig.posts(4).len()),
        (1, 0, 0)
    );
    // And the next client is served.
    rig.sim.set_fault(0, None);
    rig.sim.set_fault(1, None);
    assert_eq!(rig.post(CHAT, &sent).status, 200);
}

#[test]
fn an_encoder_that_hangs_is_given_up_in_time() {
    let rig = epd(engines(2, 1, 1, EcMode::V2), |c| {
        c.timeouts.prefill = Duration::from_millis(400);
    });
    rig.sim.set_fault(0, Some(Fault::HangBeforeHead));
    let sent = with_media(&[&url("http://h/a")], "");
    let response = rig.post(CHAT, &sent);
    assert_eq!(response.status, 504, "{}", response.text());
    assert!(
        response.json()["detail"]
            .as_str()
            .unwrap()
            .starts_with("Encoder request failed: ")
    );
    eventually("the encoder is told", || rig.sim.open_requests(0) == 0);
}
