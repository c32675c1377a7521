//! The driver ladder: the fastest io_uring set-up that the kernel and the container allow, else epoll.

use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

/// Submission entries; completions get `CQ` since thousands of streams may complete in one turn.
const SQ: u32 = 4096;
const CQ: u32 = 16_384;

/// The rung a shard stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// io_uring with SINGLE_ISSUER and DEFER_TASKRUN (kernel 6.1 or newer).
    Deferred,
    /// io_uring without them.
    Ring,
    Epoll,
}

impl Driver {
    pub const fn name(self) -> &'static str {
        match self {
            Driver::Deferred => "io_uring+defer_taskrun",
            Driver::Ring => "io_uring",
            Driver::Epoll => "epoll",
        }
    }

    /// Do descriptors of this driver have to be non-blocking? (A ring answers EAGAIN on those at once
    /// instead of waiting; epoll needs them.)
    pub const fn nonblocking(self) -> bool {
        matches!(self, Driver::Epoll)
    }
}

/// A runtime of this thread. The ring belongs to the thread that made it: pin first, build then.
pub enum Shard {
    Ring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

/// What the ladder ended on, and why not higher.
pub struct Built {
    pub runtime: Shard,
    pub driver: Driver,
    /// Empty on the first rung.
    pub why: String,
}

/// Climbs down until a rung holds. `MONOIO_FORCE_LEGACY_DRIVER=1` starts at epoll.
///
/// A shard that `polls` looks for completions without waiting for one, and with DEFER_TASKRUN there are none before
/// somebody waits.
pub fn build(polls: bool) -> io::Result<Built> {
    if forced_legacy() {
        let why = "MONOIO_FORCE_LEGACY_DRIVER is set".to_owned();
        return Ok(Built {
            runtime: Shard::Epoll(epoll()?),
            driver: Driver::Epoll,
            why,
        });
    }
    let (mut why, rungs): (String, &[Driver]) = match polls {
        true => (
            "defer_taskrun does not go with polling".into(),
            &[Driver::Ring],
        ),
        false => (String::new(), &[Driver::Deferred, Driver::Ring]),
    };
    for &driver in rungs {
        match ring(driver) {
            Ok(runtime) => {
                return Ok(Built {
                    runtime: Shard::Ring(runtime),
                    driver,
                    why,
                });
            }
            Err(error) => {
                if !why.is_empty() {
                    why.push_str("; ");
                }
                why.push_str(&format!("{}: {error}", driver.name()));
            }
        }
    }
    Ok(Built {
        runtime: Shard::Epoll(epoll()?),
        driver: Driver::Epoll,
        why,
    })
}

/// A small epoll runtime for threads that are not on the data path.
pub fn control() -> io::Result<Runtime<TimeDriver<LegacyDriver>>> {
    epoll()
}

/// What this kernel's io_uring can do, by the kernel's own names.
pub fn features() -> io::Result<Vec<&'static str>> {
    let ring = io_uring::IoUring::new(8)?;
    let can = ring.params();
    let all = [
        ("nodrop", can.is_feature_nodrop()),
        ("fast_poll", can.is_feature_fast_poll()),
        ("ext_arg", can.is_feature_ext_arg()),
        ("single_mmap", can.is_feature_single_mmap()),
        ("submit_stable", can.is_feature_submit_stable()),
        ("native_workers", can.is_feature_native_workers()),
        ("rsrc_tags", can.is_feature_resource_tagging()),
        ("cqe_skip", can.is_feature_skip_cqe_on_success()),
        ("linked_file", can.is_feature_linked_file()),
    ];
    Ok(all.iter().filter(|one| one.1).map(|one| one.0).collect())
}

fn forced_legacy() -> bool {
    std::env::var("MONOIO_FORCE_LEGACY_DRIVER").is_ok_and(|v| v == "1" || v == "true")
}

fn ring(driver: Driver) -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let mut setup = io_uring::IoUring::builder();
    setup.setup_cqsize(CQ);
    if driver == Driver::Deferred {
        setup.setup_single_issuer().setup_defer_taskrun();
    }
    RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(SQ)
        .uring_builder(setup)
        .enable_timer()
        .build()
}

fn epoll() -> io::Result<Runtime<TimeDriver<LegacyDriver>>> {
    RuntimeBuilder::<LegacyDriver>::new()
        .with_entries(CQ)
        .enable_timer()
        .build()
}

impl Shard {
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Shard::Ring(runtime) => runtime.block_on(future),
            Shard::Epoll(runtime) => runtime.block_on(future),
        }
    }
}
