//! Engines are asked all at once, for a bounded time, and nothing else waits for them.

use std::time::{Duration, Instant};

use super::rig;

#[test]
fn a_page_about_engines_ends_in_time_and_others_do_not_wait() {
    let rig = rig(2, 2);
    for engine in [0, 1, 3] {
        rig.sim
            .set_fault(engine, Some(pdsim::Fault::HangBeforeHead));
    }
    let began = Instant::now();
    let mut slow = rig.client();
    slow.send("GET /health HTTP/1.1\r\nhost: t\r\n\r\n");
    std::thread::sleep(Duration::from_millis(100));
    for path in ["/metrics", "/status", "/status/instances"] {
        let one = Instant::now();
        assert_eq!(rig.get(path).status, 200, "{path}");
        assert!(one.elapsed() < Duration::from_secs(4), "{path} waited");
    }
    // Whoever asks meanwhile shares the round.
    let mut second = rig.client();
    second.send("GET /health HTTP/1.1\r\nhost: t\r\n\r\n");
    let response = slow.response();
    let took = began.elapsed();
    assert_eq!(response.status, 200);
    // Three that hang, one after the other, would be fifteen seconds.
    assert!(took < Duration::from_secs(12), "{took:?}");
    let page = response.json();
    for (engine, address) in rig.sim.addresses().iter().enumerate() {
        let status = &page[&address.to_string()]["status"];
        assert_eq!(*status, if engine == 2 { 200 } else { 500 }, "{engine}");
    }
    assert_eq!(second.response().text(), response.text());
    assert!(began.elapsed() < took + Duration::from_secs(1));
}
