//! One shard: a pinned thread with its own ring, listener, pools, view of load and metric cells.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::load::LoadView;
use crate::config::{Cores, Surface};
use crate::error::{Error, Kind, Stage};
use crate::exchange::budget::Budget;
use crate::exchange::notice::Waiters;
use crate::exchange::release::{self, Met, Releases};
use crate::exchange::{Tools, shape};
use crate::log;
use crate::metrics::{Counter, Gauge};
use crate::net::buffer::Buffers;
use crate::net::gate::Gate;
use crate::net::listen;
use crate::net::pace::{Manner, Pace};
use crate::net::pool::Pool;
use crate::net::runtime::{self, Driver};
use crate::net::stream::{Stream, shutdown_now};
use crate::net::sweep::{SWEEP_EVERY, Sweep, Wait};
use crate::rng::Rng;
use crate::shared::Reader;

use super::{Shared, connection, control, cores};

/// How long a draining shard waits for the next request on a connection whose client could not know that it
/// drains. Clients that keep a connection for the next request, and have one, send it within milliseconds.
const LAST_CALL: Duration = Duration::from_secs(1);

/// What other threads tell a shard.
pub enum Letter {
    /// The control thread's answer.
    Answered {
        ticket: u64,
        status: u16,
        body: Vec<u8>,
    },
    /// The notices of this ticket are there.
    Noticed(u64),
    Drain,
    /// The time for draining is over: what still runs is ended, and says so to its client.
    CutOff,
    Stop,
}

/// What a shard thread starts with.
pub struct Start {
    pub index: usize,
    pub cpu: Option<usize>,
    /// Each with its door; the main one first.
    pub listeners: Vec<(u16, TcpListener)>,
    pub ear: UnixStream,
    pub shared: Arc<Shared>,
    /// One line when it serves, or why it cannot.
    pub report: Sender<(usize, Result<String, String>)>,
}

pub fn spawn(start: Start) -> io::Result<JoinHandle<()>> {
    let name = format!("shard-{}", start.index);
    std::thread::Builder::new()
        .name(name)
        .spawn(move || run(start))
}

/// The shard as its connections see it.
pub struct Shard {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub tools: Rc<Tools>,
    /// Request body bytes held now.
    pub body_memory: Rc<Cell<usize>>,
    /// Renders asked of the control thread and not yet here.
    renders: RefCell<HashMap<u64, Render>>,
    tickets: Cell<u64>,
    /// The drain is over: nothing is begun any more.
    pub cut_off: Cell<bool>,
    stop: Cell<bool>,
    stop_waker: RefCell<Option<Waker>>,
    listeners: Vec<(u16, RawFd)>,
}

enum Render {
    Waiting(Option<Waker>),
    Here((u16, Vec<u8>)),
}

fn run(start: Start) {
    // Pin first: the ring and all memory touched from here on are then local to this core.
    let pinned = start.cpu.is_none_or(cores::pin);
    let manner = manner(&start.shared.config.get().cores);
    let built = match runtime::build(matches!(manner, Manner::BusyPoll(_))) {
        Ok(built) => built,
        Err(error) => {
            let _ = start
                .report
                .send((start.index, Err(format!("no I/O driver works: {error}"))));
            return;
        }
    };
    let _ = start.shared.drivers[start.index].set(built.driver);
    let line = describe(&start, &built.driver, &built.why, pinned);
    let mut runtime = built.runtime;
    runtime.block_on(serve(start, built.driver, line));
}

fn manner(cores: &Cores) -> Manner {
    match (cores.batch_window, cores.busy_poll) {
        (Duration::ZERO, Duration::ZERO) => Manner::Wait,
        (Duration::ZERO, limit) => Manner::BusyPoll(limit),
        (window, _) => Manner::Window(window),
    }
}

fn describe(start: &Start, driver: &Driver, why: &str, pinned: bool) -> String {
    let place = match start.cpu {
        Some(cpu) if pinned => format!("CPU {cpu}"),
        Some(cpu) => format!("not pinned (the kernel refused CPU {cpu})"),
        None => "not pinned".to_owned(),
    };
    let why = if why.is_empty() {
        String::new()
    } else {
        format!(" ({why})")
    };
    let pace = crate::config::pace(&start.shared.config.get().cores);
    let pace = pace.map_or(String::new(), |pace| format!(", {pace}"));
    format!(
        "shard {} on {place}, {}{why}{pace}",
        start.index,
        driver.name()
    )
}

async fn serve(start: Start, driver: Driver, line: String) {
    let Start {
        index,
        listeners,
        ear,
        shared,
        report,
        cpu,
    } = start;
    let fds = listeners.iter();
    let fds = fds.map(|(door, listener)| (*door, listener.as_raw_fd()));
    let shard = match new_shard(index, shared, driver, fds.collect()) {
        Ok(shard) => Rc::new(shard),
        Err(error) => {
            let _ = report.send((index, Err(format!("it cannot begin: {error}"))));
            return;
        }
    };
    // Before the report: whoever connects once the server says that it listens is steered already.
    if let Some(cpu) = cpu.filter(|_| shard.tools.config().cores.steer_by_cpu) {
        for (_, listener) in &listeners {
            listen::prefer_packets_of(listener, cpu);
        }
    }
    let _ = report.send((index, Ok(line)));
    drop(report);
    for (door, listener) in listeners {
        monoio::spawn(accept(shard.clone(), listener, door, driver));
    }
    monoio::spawn(release::run(shard.tools.clone()));
    monoio::spawn(sweep(shard.clone()));
    let restless = shard.clone();
    monoio::spawn(async move { restless.tools.pace.keep_awake().await });
    let gated = shard.clone();
    monoio::spawn(async move { gated.tools.gate.keep().await });
    monoio::spawn(listen_to_letters(shard.clone(), ear, driver));
    poll_fn(|cx| {
        if shard.stop.get() {
            return Poll::Ready(());
        }
        *shard.stop_waker.borrow_mut() = Some(cx.waker().clone());
        shard.tools.pace.turn(cx, shard.tools.gate.crowded());
        Poll::Pending
    })
    .await;
    shard.tools.gate.close();
    shard.tools.sweep.forget_sleepers();
}

fn new_shard(
    index: usize,
    shared: Arc<Shared>,
    driver: Driver,
    listeners: Vec<(u16, RawFd)>,
) -> io::Result<Shard> {
    let config = shared.config.get();
    let idle_ms = config.timeouts.pool_idle.as_millis() as u64;
    let tools = Tools {
        driver,
        cluster: Reader::new(shared.cluster.clone()),
        policies: shared.policies.clone(),
        hosts: shared.hosts.clone(),
        buffers: Rc::new(Buffers::default()),
        pool: Pool::new(config.limits.idle_per_instance_max, idle_ms),
        view: LoadView::new(config.scheduling.load_view_max_age),
        sweep: Rc::new(Sweep::default()),
        pace: Pace::new(manner(&config.cores)),
        gate: Gate::new(driver)?,
        metrics: Rc::new(shared.metrics.shard(index)),
        rng: Rng::from_entropy(),
        redis: std::cell::OnceCell::new(),
        releases: Releases::new(config.limits.releases_max),
        met: Met::default(),
        budget: Budget::default(),
        // Shards start apart, or they would all begin with the same instance.
        rotation: std::array::from_fn(|_| Cell::new(index as u64)),
        candidates: RefCell::default(),
        settings: Reader::new(shared.config.clone()),
        shard: index,
        waiters: Waiters::default(),
        draining: shared.draining.clone(),
    };
    Ok(Shard {
        index,
        shared,
        tools: Rc::new(tools),
        body_memory: Rc::default(),
        renders: RefCell::default(),
        tickets: Cell::new(0),
        cut_off: Cell::new(false),
        stop: Cell::new(false),
        stop_waker: RefCell::new(None),
        listeners,
    })
}

/// Accepts for ever, in a task that is never cancelled: a cancelled accept leaks a descriptor.
async fn accept(shard: Rc<Shard>, listener: TcpListener, door: u16, driver: Driver) {
    let _ = listener.set_nonblocking(driver.nonblocking());
    let Ok(listener) = monoio::net::TcpListener::from_std(listener) else {
        return;
    };
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // SAFETY: the number was just given up by its owner.
                let fd = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
                shard.clone().serve(fd, Some(peer.ip()), door);
            }
            Err(_) if shard.shared.draining.load(Ordering::Relaxed) => return,
            Err(error) => {
                // EMFILE and its kin pass; what must not happen is a loop at full speed.
                log::limited("accept", log::Level::Error, || {
                    format!("cannot accept a connection: {error}")
                });
                monoio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn sweep(shard: Rc<Shard>) {
    let tools = &shard.tools;
    let (mut idle, mut held) = (0i64, 0i64);
    let follow = |gauge, shown: &mut i64, now: usize| {
        tools.metrics.gauge_add(gauge, now as i64 - *shown);
        *shown = now as i64;
    };
    loop {
        monoio::time::sleep(SWEEP_EVERY).await;
        tools
            .sweep
            .run(|wait| tools.metrics.inc(Counter::timeouts(wait)));
        tools.pool.prune(tools.sweep.clock.coarse_ms());
        follow(Gauge::pool_idle(), &mut idle, tools.pool.idle());
        follow(
            Gauge::body_memory_bytes(),
            &mut held,
            shard.body_memory.get(),
        );
    }
}

async fn listen_to_letters(shard: Rc<Shard>, ear: UnixStream, driver: Driver) {
    let Ok(stream) = Stream::from_unix(ear.into(), driver) else {
        return;
    };
    let mut buf = Vec::with_capacity(64);
    loop {
        buf.clear();
        let (result, back) = stream.read(buf).await;
        buf = back;
        for letter in shard.shared.shards[shard.index].take() {
            match letter {
                Letter::Answered {
                    ticket,
                    status,
                    body,
                } => {
                    shard.answered(ticket, (status, body));
                }
                Letter::Noticed(ticket) => shard.tools.waiters.wake(ticket),
                Letter::Drain => shard.drain(),
                Letter::CutOff => {
                    let wait = Counter::timeouts(Wait::Drain);
                    shard.cut_off.set(true);
                    shard.tools.sweep.end_idle();
                    let ended = shard.tools.sweep.end_requests();
                    shard.tools.metrics.add(wait, ended as u64);
                }
                Letter::Stop => return shard.stop(),
            }
        }
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
    }
}

impl Shard {
    /// Serves one client connection, from wherever it was accepted.
    pub fn serve(self: Rc<Self>, fd: OwnedFd, peer: Option<IpAddr>, door: u16) {
        let metrics = self.tools.metrics.clone();
        metrics.inc(Counter::connections_accepted());
        let limit = self.tools.config().limits.connections_max;
        if self.shared.connections.fetch_add(1, Ordering::Relaxed) >= limit {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            metrics.inc(Counter::connections_rejected());
            log::limited("connections", log::Level::Warning, || {
                format!("limits.connections_max ({limit}) is reached: connections are refused")
            });
            return refuse(fd, self.tools.config().surface);
        }
        metrics.gauge_add(Gauge::connections_open(), 1);
        monoio::spawn(async move {
            connection::serve(&self, fd, peer, door).await;
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            self.tools.metrics.gauge_add(Gauge::connections_open(), -1);
        });
    }

    pub fn draining(&self) -> bool {
        self.tools.draining()
    }

    /// How long a client may wait before it sends its next request.
    pub fn idle_limit(&self) -> Duration {
        let timeouts = &self.tools.config().timeouts;
        match self.draining() {
            // (A short drain is not to be spent on those who have nothing to say.)
            true => timeouts.keep_alive.min(LAST_CALL).min(timeouts.drain / 4),
            false => timeouts.keep_alive,
        }
    }

    /// Has the control thread do something, and waits for its answer: a status and a body.
    pub async fn ask(&self, what: control::Ask) -> (u16, Vec<u8>) {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.renders
            .borrow_mut()
            .insert(ticket, Render::Waiting(None));
        self.shared.control.post(control::Letter::Ask {
            shard: self.index,
            ticket,
            ask: what,
        });
        // Dropped if the client leaves meanwhile; then the page is thrown away when it comes.
        let _forget = Forget {
            shard: self,
            ticket,
        };
        poll_fn(|cx| match self.renders.borrow_mut().get_mut(&ticket) {
            Some(Render::Here(body)) => Poll::Ready(std::mem::take(body)),
            Some(Render::Waiting(waker)) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready((500, Vec::new())),
        })
        .await
    }

    fn answered(&self, ticket: u64, answer: (u16, Vec<u8>)) {
        if let Some(render) = self.renders.borrow_mut().get_mut(&ticket)
            && let Render::Waiting(Some(waker)) = std::mem::replace(render, Render::Here(answer))
        {
            waker.wake();
        }
    }

    fn drain(self: &Rc<Self>) {
        // Clients whose connection the kernel has already taken are answered; closing the listener would
        // reset them.
        for (door, listener) in &self.listeners {
            while let Some(fd) = accept_now(*listener) {
                self.clone().serve(fd, None, *door);
            }
            // Ends the pending accept.
            shutdown_now(*listener);
        }
        self.tools.sweep.hurry_idle(self.idle_limit());
    }

    fn stop(&self) {
        self.stop.set(true);
        if let Some(waker) = self.stop_waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

struct Forget<'a> {
    shard: &'a Shard,
    ticket: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shard.renders.borrow_mut().remove(&self.ticket);
    }
}

/// A connection that waits in the listener's queue, if there is one.
fn accept_now(listener: RawFd) -> Option<OwnedFd> {
    // SAFETY: plain syscalls on a listener that is open; the new number has no other owner.
    unsafe {
        // The pending accept of a ring waits by itself and is not touched by this.
        let flags = libc::fcntl(listener, libc::F_GETFL);
        libc::fcntl(listener, libc::F_SETFL, flags | libc::O_NONBLOCK);
        let fd = libc::accept4(
            listener,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        );
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// One write that fits any socket buffer, then closed.
fn refuse(fd: OwnedFd, surface: Surface) {
    let what = "too many client connections";
    let error = Error::new(Kind::Overloaded, Stage::Head, what);
    let body = shape::body(surface, &error);
    let mut answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    // SAFETY: a plain non-blocking send on a descriptor that we own.
    unsafe {
        libc::send(
            fd.as_raw_fd(),
            answer.as_ptr().cast(),
            answer.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
}
