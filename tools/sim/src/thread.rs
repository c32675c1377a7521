//! A simulator thread: its runtime, its listeners, its sweep, and the pipe that wakes it.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use monoio::io::AsyncReadRent;
use monoio::net::{ListenerOpts, TcpListener, UnixStream};
use monoio::time::{TimeDriver, sleep};
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

use crate::connection::{Gate, serve};
use crate::engine::Engine;
use crate::fault::Fault;
use crate::ledger::lock;
use crate::options::KvMode;
use crate::world::World;

const SWEEP: Duration = Duration::from_millis(100);

/// What a thread gets from, and tells, the one that started it.
pub(crate) struct Post {
    pub wake: std::os::unix::net::UnixStream,
    pub stopping: Arc<AtomicBool>,
    /// Called after each settling.
    pub settled: Box<dyn Fn(io::Result<()>) + Send>,
}

/// Numbers the connections of all threads.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Runs until told to stop.
pub(crate) fn run(world: Arc<World>, cpu: Option<usize>, post: Post) {
    if let Some(cpu) = cpu {
        pin_to(cpu);
    }
    match Ring::build() {
        Ok(Ring::Uring(mut runtime)) => runtime.block_on(main(world, post)),
        Ok(Ring::Epoll(mut runtime)) => {
            // Epoll reads when told to: a blocking pipe would stop the thread. (A ring waits by
            // itself, and only if the descriptor blocks.)
            let _ = post.wake.set_nonblocking(true);
            runtime.block_on(main(world, post));
        }
        Err(e) => (post.settled)(Err(e)),
    }
}

fn pin_to(cpu: usize) {
    // SAFETY: an all-zero cpu_set_t is an empty set, and it lives through the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

enum Ring {
    Uring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl Ring {
    /// The best driver that this kernel gives: monoio's own detection does not try our ring flags.
    fn build() -> io::Result<Ring> {
        let forced = std::env::var("MONOIO_FORCE_LEGACY_DRIVER");
        if !forced.is_ok_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes")) {
            let mut tuned = io_uring::IoUring::builder();
            tuned
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_cqsize(16_384);
            for ring in [tuned, io_uring::IoUring::builder()] {
                let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
                if let Ok(runtime) = builder.with_entries(4096).enable_timer().build() {
                    return Ok(Ring::Uring(runtime));
                }
            }
        }
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .map(Ring::Epoll)
    }
}

async fn main(world: Arc<World>, post: Post) {
    let ticker = Rc::new(Cell::new(0));
    let engines: Vec<Rc<Engine>> = (0..world.engines.len())
        .map(|index| Engine::new(world.clone(), index, ticker.clone()))
        .collect();
    crate::clock::refresh();
    let settle_all = || engines.iter().try_for_each(settle);
    (post.settled)(settle_all());
    monoio::spawn(sweep(world.clone(), engines.clone(), ticker));
    let mut wake = match UnixStream::from_std(post.wake) {
        Ok(wake) => wake,
        Err(e) => return (post.settled)(Err(e)),
    };
    let mut byte = vec![0u8; 64];
    loop {
        let (result, back) = wake.read(byte).await;
        byte = back;
        if post.stopping.load(Ordering::Acquire) || !matches!(result, Ok(n) if n > 0) {
            break;
        }
        (post.settled)(settle_all());
    }
    for engine in &engines {
        engine.close_listeners();
        engine.reset_connections();
    }
    // Let the tasks end by themselves: a runtime dropped over I/O in flight is not worth the risk.
    for _ in 0..100 {
        if engines.iter().all(|e| e.doors.borrow().is_empty()) {
            break;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Brings an engine, on this thread, to the state that is wished for it.
pub(crate) fn settle(engine: &Rc<Engine>) -> io::Result<()> {
    let shared = engine.shared();
    let up = shared.up.load(Ordering::Acquire);
    let incarnation = if up {
        shared.incarnation.load(Ordering::Acquire)
    } else {
        0
    };
    if engine.incarnation.replace(incarnation) != incarnation {
        engine.close_listeners();
        engine.reset_connections();
        engine
            .id
            .set(engine.world.engine_id(engine.index, incarnation));
    }
    let open = up && *lock(&shared.fault) != Some(Fault::Refuse);
    if !open {
        engine.close_listeners();
        return Ok(());
    }
    // Of the others that have a side port nobody comes by HTTP.
    let bootstraps = matches!(shared.options.kv, KvMode::Sglang | KvMode::Mooncake);
    let doors = [
        (Gate::Engine, Some(shared.address)),
        (Gate::Bootstrap, shared.side.filter(|_| bootstraps)),
    ];
    for (gate, address) in doors {
        let place = &engine.listeners[gate as usize];
        if let (None, Some(address)) = (place.get(), address) {
            let opts = ListenerOpts::new().backlog(4096);
            let listener = TcpListener::bind_with_config(address, &opts)?;
            plain_congestion_control(listener.as_raw_fd());
            place.set(Some(listener.as_raw_fd()));
            monoio::spawn(accept(engine.clone(), listener, gate));
        }
    }
    Ok(())
}

/// Accepted sockets inherit it. The default may be one with pacing timers (BBR), which on loopback
/// only costs time that a benchmark would book on the proxy's account.
fn plain_congestion_control(listener: i32) {
    // SAFETY: the name outlives the call, and a refusal does not matter.
    unsafe {
        let name = c"reno";
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION);
        libc::setsockopt(listener, level, option, name.as_ptr().cast(), 4);
    }
}

async fn accept(engine: Rc<Engine>, listener: TcpListener, gate: Gate) {
    let fd = listener.as_raw_fd();
    loop {
        let accepted = listener.accept().await;
        if engine.listeners[gate as usize].get() != Some(fd) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                let fault = engine.shared().faulty.load(Ordering::Relaxed);
                if fault && *lock(&engine.shared().fault) == Some(Fault::AcceptThenClose) {
                    continue;
                }
                let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
                monoio::spawn(guarded(
                    engine.clone(),
                    serve(engine.clone(), stream, number, gate),
                ));
            }
            // Out of descriptors, or a connection that died in the queue.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A panic ends one connection, not the thread with everything on it.
async fn guarded(engine: Rc<Engine>, work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    let survived = std::future::poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(poll) => poll.map(|()| true),
            Err(_) => Poll::Ready(false),
        }
    })
    .await;
    if !survived {
        engine
            .world
            .ledger
            .violation(|| "the simulator itself panicked".into());
    }
}

/// Ten times a second: the coarse clock, idle connections, engines that died by themselves.
async fn sweep(world: Arc<World>, engines: Vec<Rc<Engine>>, ticker: Rc<Cell<u64>>) {
    loop {
        sleep(SWEEP).await;
        crate::clock::refresh();
        let now = world.now() / 1_000_000;
        ticker.set(now);
        for engine in &engines {
            let _ = settle(engine);
            let Some(limit) = engine.options().keep_alive else {
                continue;
            };
            let limit = limit.as_millis() as u64;
            for door in engine.doors.borrow().values() {
                let since = door.idle_since.get();
                if since != u64::MAX && now.saturating_sub(since) >= limit {
                    // The pending read ends, and its task closes the connection.
                    // SAFETY: a door is listed only while its connection is open.
                    unsafe { libc::shutdown(door.fd, libc::SHUT_RDWR) };
                }
            }
        }
    }
}
