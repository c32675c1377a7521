//! What a run takes from the system: the fastest ring that the host allows, else epoll; CPUs; descriptors.

use std::future::Future;
use std::io;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

use crate::args::Driver;

const ENTRIES: u32 = 4096;
/// monoio's default of 2,048 completions overflows, and slows down, with thousands of connections.
const COMPLETIONS: u32 = 16384;

pub enum Ring {
    Uring(Runtime<TimeDriver<IoUringDriver>>, &'static str),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl Ring {
    /// Must be called on the thread that will use it: a SINGLE_ISSUER ring belongs to its creator.
    pub fn build(driver: Driver) -> io::Result<Self> {
        let forced = std::env::var("MONOIO_FORCE_LEGACY_DRIVER").is_ok_and(|value| value == "1");
        match driver {
            Driver::UringDefer => uring(true),
            Driver::Uring => uring(false),
            Driver::Epoll => epoll(),
            Driver::Auto if forced || !monoio::utils::detect_uring() => epoll(),
            Driver::Auto => uring(true).or_else(|_| uring(false)).or_else(|_| epoll()),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Uring(_, name) => name,
            Self::Epoll(_) => "epoll",
        }
    }

    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime, _) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

fn uring(defer: bool) -> io::Result<Ring> {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_clamp();
    if defer {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    let runtime = RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(ENTRIES)
        .uring_builder(builder)
        .enable_timer()
        .build()?;
    Ok(Ring::Uring(
        runtime,
        if defer { "uring-defer" } else { "uring" },
    ))
}

fn epoll() -> io::Result<Ring> {
    let runtime = RuntimeBuilder::<LegacyDriver>::new()
        .with_entries(ENTRIES)
        .enable_timer()
        .build()?;
    Ok(Ring::Epoll(runtime))
}

/// Pins the calling thread to `cpus`.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain bits, and every index was checked against its 1,024 bits (Args::cpu_list).
    let result = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        for cpu in cpus {
            libc::CPU_SET(*cpu, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lifts the soft limit of open files to the hard one: the usual 1,024 is too few connections. Best effort, a
/// connection that cannot be opened is reported as such.
pub fn allow_many_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live struct of the right type.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
