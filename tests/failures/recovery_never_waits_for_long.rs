//! An engine that is back serves again within two seconds, however long it was away.

use std::time::{Duration, Instant};

use super::{ask, left_out, standing};
use crate::support::{Rig, engines, eventually, rig_with};

/// The promise is 2 s; here it shares two cores with every other test.
const AT_MOST: Duration = Duration::from_secs(8);

fn probed(p: usize, d: usize) -> Rig {
    rig_with("nixl", engines(p, d), |c| {
        c.health_check.interval = Duration::from_millis(100);
        // Long enough that only a probe can bring an instance back in time.
        c.circuit_breaker.ejection_initial = Duration::from_secs(25);
    })
}

#[test]
fn health_probes_bring_an_ejected_instance_back() {
    let rig = probed(1, 1);
    for engine in [0, 1] {
        // A request must meet it dead for its breaker to open; a probe that is faster keeps requests away.
        // Then the scene is played again.
        let ejected = (0..50).any(|_| {
            eventually("all are healthy", || ask(&rig).status == 200);
            rig.sim.kill(engine);
            // A decode instance that cannot be reached is a 502; one that the probes have found to be down
            // by now, and any prefill instance, a 503.
            let status = ask(&rig).status;
            assert!(status == 503 || status == 502 && engine == 1, "{status}");
            // (A probe that was under way when it died may have its answer yet, and close the breaker.)
            eventually("the probes see that it is down", || {
                standing(&rig, engine)["health"] == "unhealthy"
            });
            let ejected = left_out(&rig, engine);
            if !ejected {
                rig.sim.restart(engine);
            }
            ejected
        });
        assert!(ejected, "no request was ever faster than the probes");
        assert_eq!(rig.get("/ready").status, 503);
        rig.sim.restart(engine);
        let back = Instant::now();
        eventually("it serves again", || rig.get("/ready").status == 200);
        assert!(back.elapsed() < AT_MOST, "{:?}", back.elapsed());
        assert_eq!(ask(&rig).status, 200);
        let now = standing(&rig, engine);
        assert_eq!(
            (&now["health"], &now["breaker"]),
            (&"healthy".into(), &"closed".into())
        );
    }
}

/// Of two, the one that is back gets its share again.
#[test]
fn the_load_is_shared_again() {
    let rig = probed(1, 2);
    rig.sim.kill(1);
    (0..4).for_each(|_| assert_eq!(ask(&rig).status, 200));
    assert_eq!(rig.posts(1).len(), 0);
    rig.sim.restart(1);
    let back = Instant::now();
    eventually("it is asked again", || {
        assert_eq!(ask(&rig).status, 200);
        !rig.posts(1).is_empty()
    });
    assert!(back.elapsed() < AT_MOST, "{:?}", back.elapsed());
}

/// Without probes one request at a time tries it, when its term is over; the others do not wait for that.
#[test]
fn without_probes_one_request_tries() {
    let rig = rig_with("nixl", engines(1, 2), |c| {
        c.health_check.enabled = false;
        c.circuit_breaker.ejection_initial = Duration::from_millis(300);
    });
    rig.sim.kill(1);
    eventually("it is left out", || {
        assert_eq!(ask(&rig).status, 200);
        left_out(&rig, 1)
    });
    rig.sim.restart(1);
    let back = Instant::now();
    eventually("it is tried again", || {
        assert_eq!(ask(&rig).status, 200);
        !rig.posts(1).is_empty()
    });
    assert!(back.elapsed() < AT_MOST, "{:?}", back.elapsed());
    assert_eq!(standing(&rig, 1)["breaker"], "closed");
}

#[test]
fn a_flapping_probe_costs_nobody_a_request() {
    let rig = rig_with("nixl", engines(1, 2), |c| {
        c.health_check.interval = Duration::from_millis(10);
    });
    let (mut seen_down, mut seen_up) = (false, false);
    for round in 0..60 {
        let fault = (round / 10 % 2 == 0).then_some(pdsim::Fault::Status(503));
        // Only the probes of D0 fail; requests are sent to both.
        if round % 10 == 0 {
            rig.sim.set_fault(1, fault);
        }
        let before = rig.posts(1).len();
        let response = ask(&rig);
        let asked_the_faulty = rig.posts(1).len() > before && fault.is_some();
        assert!(
            response.status == 200 || asked_the_faulty,
            "{}",
            response.text()
        );
        match standing(&rig, 1)["health"].as_str().unwrap() {
            "unhealthy" => seen_down = true,
            "healthy" => seen_up = true,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(seen_down && seen_up);
    // An instance that is unhealthy is not asked.
    rig.sim.set_fault(1, Some(pdsim::Fault::Status(503)));
    eventually("it is unhealthy", || {
        standing(&rig, 1)["health"] == "unhealthy"
    });
    let before = rig.posts(1).len();
    (0..10).for_each(|_| assert_eq!(ask(&rig).status, 200));
    assert_eq!(rig.posts(1).len(), before);
}

/// One that answers, but only with errors, is left out after some of them; a passing probe is no proof
/// that it is well, a request that it serves is.
#[test]
fn an_instance_that_keeps_failing_is_left_out() {
    let mut engines = engines(1, 2);
    engines[1].faults.rates = vec![(pdsim::Fault::Status(500), 1.0)];
    let rig = rig_with("nixl", engines, |c| {
        c.health_check.enabled = false;
        c.circuit_breaker.failure_threshold = 3;
        c.circuit_breaker.success_threshold = 2;
        c.circuit_breaker.ejection_initial = Duration::from_secs(20);
        c.circuit_breaker.ejection_max = Duration::from_secs(20);
    });
    for _ in 0..20 {
        assert_eq!(ask(&rig).status, 200);
    }
    assert!(left_out(&rig, 1));
    assert_eq!(rig.posts(1).len(), 3);
    assert_eq!(super::failures(&rig, 1, "status_5xx"), 3.0);
    assert_eq!(rig.sum("pdrelay_ejections_total", &[]), 1.0);
}
