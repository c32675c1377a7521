//! Health probes go on for months: what each of them opens is closed again, however it ends.

use std::time::Duration;

use pdsim::Fault;

use super::{File, Serving};
use crate::support::{engines, eventually};

fn descriptors(serving: &Serving) -> usize {
    let folder = format!("/proc/{}/fd", serving.program.child.id());
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn good_refused_silent_and_broken_probes() {
    let text = "health_check: {interval: 5ms, timeout: 20ms}\n";
    let file = File::new("probes.yaml", text);
    let serving = Serving::start("nixl", engines(1, 1), &["--config", file.path()]);
    serving.sim.kill(1);
    for fault in [
        None,
        Some(Fault::HangBeforeHead),
        Some(Fault::AcceptThenClose),
        Some(Fault::HalfHead),
        Some(Fault::BadHead),
        Some(Fault::Status(500)),
    ] {
        serving.sim.set_fault(0, fault);
        // Some fifty probes, or ten of those that wait for their limit.
        std::thread::sleep(Duration::from_millis(50));
        let before = descriptors(&serving);
        std::thread::sleep(Duration::from_millis(250));
        // Those under way may differ.
        let after = descriptors(&serving);
        assert!(
            after <= before + 4,
            "{fault:?}: {before} descriptors, then {after}"
        );
    }
    serving.sim.set_fault(0, None);
    let healthy = |page: String| page.contains("\"healthy\"");
    eventually("P is seen well again", || {
        healthy(serving.client().get("/status").text())
    });
}
