//! `pdrelay doctor` tells of this machine, as a server started beside it would find it.

use super::{Serving, command, finish, run};
use crate::support::engines;

#[test]
fn its_shards_are_those_of_a_server() {
    let ran = run(&["doctor", "--shards", "1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let shard = ran.out.lines().find(|line| line.starts_with("shard "));
    let shard = shard.unwrap_or_else(|| panic!("{ran:?}"));
    assert!(shard.starts_with("shard    0: CPU "), "{shard}");
    let driver = shard.rsplit(' ').next().unwrap();
    let serving = Serving::start("nixl", engines(1, 1), &["--log-level", "info"]);
    let said = serving.end();
    assert!(said.contains(driver), "{driver} in {said}");
}

#[test]
fn a_forced_driver_is_something_to_change() {
    let mut forced = command(&["doctor", "--shards", "2", "--strict"]);
    forced.env("MONOIO_FORCE_LEGACY_DRIVER", "1");
    let ran = finish(forced);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let about = "change   shard 0 runs on epoll: MONOIO_FORCE_LEGACY_DRIVER is set\n         -> ";
    assert!(ran.out.contains(about), "{ran:?}");
}

#[test]
fn a_cpu_that_is_not_there_is_a_clear_error() {
    let ran = run(&["doctor", "--cpus", "1023"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("CPU 1023 may not be used"), "{ran:?}");
}
