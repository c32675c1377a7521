//! `startup.wait_timeout`: a proxy whose backends never come says so and ends; one that has been ready
//! never does.

use std::sync::mpsc;
use std::time::Duration;

use super::{face, rig_where};
use crate::support::{Rig, engines, rig_with};

fn told(rig: &Rig) -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel();
    rig.server.on_failure(move || {
        let _ = tell.send(());
    });
    told
}

fn lonely(limit: Option<Duration>) -> Rig {
    rig_with("sequential", engines(1, 2), |config| {
        face(config);
        config.startup.wait_timeout = limit;
        for one in &mut config.instances[1..] {
            one.address = pdrelay::config::Address::tcp("127.0.0.1", 1);
        }
    })
}

#[test]
fn it_says_who_is_missing() {
    let rig = lonely(Some(Duration::from_millis(500)));
    let told = told(&rig);
    assert!(rig.server.failure().is_none());
    told.recv_timeout(Duration::from_secs(10))
        .expect("it is told");
    let why = rig.server.failure().expect("a reason");
    for part in [
        "0.5 s",
        "startup.wait_timeout",
        "P=1/1 online",
        "D=0/2 online",
    ] {
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn without_a_limit_it_waits() {
    let rig = lonely(None);
    let told = told(&rig);
    assert!(told.recv_timeout(Duration::from_millis(800)).is_err());
    assert!(rig.server.failure().is_none());
}

#[test]
fn once_ready_it_never_ends_by_itself() {
    let limit = Duration::from_secs(4);
    let rig = rig_where(1, 1, |config| config.startup.wait_timeout = Some(limit));
    let told = told(&rig);
    rig.sim.kill(0);
    rig.sim.kill(1);
    assert!(
        told.recv_timeout(limit + Duration::from_millis(500))
            .is_err()
    );
    assert_eq!(rig.get("/status").status, 200);
}
