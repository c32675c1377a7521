//! A machine that stands still for a while (a paused VM, a starved core) loses time. That time is the
//! machine's, not an engine's: no deadline passes in it.

use std::time::Duration;

use super::{File, Serving};
use crate::support::{completion, engines, eventually, post_bytes};

#[test]
fn answers_that_came_meanwhile_are_taken() {
    let file = File::new(
        "stall.yaml",
        "timeouts: {prefill: 900ms, decode_head: 900ms, between_chunks: 900ms}\n\
         retry: {enabled: false}\n\
         health_check: {enabled: false}\n",
    );
    let mut engines = engines(1, 1);
    // About 400 ms for the prompt below.
    engines[0].timing.prefill_tokens_per_s = 1000.0;
    engines[1].timing.decode_tick = Duration::from_millis(100);
    let serving = Serving::start("nixl", engines, &["--config", file.path()]);
    let body = completion(&"word ".repeat(240), r#","max_tokens":4"#);
    // Stalled while P works, then while D does.
    for engine in [0, 1, 0, 1] {
        let mut client = serving.client();
        client.send(post_bytes("/v1/completions", &body, ""));
        eventually("an engine works", || serving.sim.open_requests(engine) > 0);
        serving.program.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(1500));
        serving.program.signal(libc::SIGCONT);
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let page = serving.client().get("/metrics").text();
    assert!(
        !page.contains("pdrelay_timeouts_total{wait=\"prefill\"} 1"),
        "{page}"
    );
}
