//! A base64 image of 20 MB goes to its encoder byte by byte, once, and to nobody else.

use std::time::{Duration, Instant};

use pdsim::EcMode;

use super::{CHAT, engines, epd, url, with_media};
use crate::handshakes::epd::sha;

#[test]
fn twenty_megabytes_travel_once() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |_| {});
    let large = format!("data:image/png;base64,{}", "QUJD".repeat(5 << 20));
    let mut client = rig.client();
    // Unoptimised, on a machine that is busy with other things, hashing alone takes seconds.
    let patience = Duration::from_secs(120);
    client.stream.set_read_timeout(Some(patience)).unwrap();
    let began = Instant::now();
    let response = client.post(CHAT, &with_media(&[&url(&large)], ""));
    assert_eq!(response.status, 200, "{}", response.text());
    let took = began.elapsed();
    let leg = &rig.posts(0)[0];
    assert!(leg.body.len() > 20 << 20);
    let text = std::str::from_utf8(&leg.body).unwrap();
    assert!(text.contains(&large) && text.contains(&sha(&large)));
    for engine in [1, 2] {
        let leg = &rig.posts(engine)[0];
        assert!(leg.body.len() < 4096, "{}", leg.body.len());
    }
    assert!(took < patience, "{took:?}");
}
