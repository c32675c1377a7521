//! The handle to a running simulator.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::cache::Cache;
use crate::engine::ec::Encodings;
use crate::fault::Fault;
use crate::ledger::{Ledger, LedgerReport, lock};
use crate::meeting::Meetings;
use crate::options::{Notices, Options};
use crate::thread::{Post, run};
use crate::transcript::{Received, Transcript};
use crate::transfer::Transfers;
use crate::world::{Shared, World};

/// Threads settle in well under this, or something is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Running engines. Dropping it stops them.
pub struct Sim {
    world: Arc<World>,
    addresses: Vec<SocketAddr>,
    workers: Vec<Worker>,
    stopping: Arc<AtomicBool>,
    settled: Mutex<mpsc::Receiver<io::Result<()>>>,
    /// Bound but never listening: they keep the ports ours while an engine is down.
    _ports: Vec<Socket>,
}

struct Worker {
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Sim {
    /// Starts all engines; when it returns, each listens.
    pub fn start(options: Options) -> io::Result<Sim> {
        let threads = options.threads.max(1);
        let ledger = Ledger::new(options.engines.len());
        let mut ports = Vec::new();
        let mut engines = Vec::new();
        for (index, engine) in options.engines.iter().enumerate() {
            let (socket, address) = reserve(SocketAddr::new(options.host, engine.port))?;
            ports.push(socket);
            let mut side = None;
            if engine.has_side_port() {
                let (socket, address) = reserve(SocketAddr::new(options.host, engine.side_port))?;
                ports.push(socket);
                side = Some(address);
            }
            ledger.begin(index, 1);
            let transcript = options.record.then(Transcript::default);
            engines.push(Shared::new(engine.clone(), address, side, transcript));
        }
        let caches = engines.iter().map(|_| Cache::default()).collect();
        let world = Arc::new(World {
            seed: options.seed,
            threads,
            started: Instant::now(),
            engines,
            ledger,
            encodings: Encodings::default(),
            transfers: Transfers::default(),
            meetings: Meetings::default(),
            caches,
            store: Cache::default(),
        });
        let stopping = Arc::new(AtomicBool::new(false));
        let (told, settled) = mpsc::channel();
        let mut sim = Sim {
            addresses: world.engines.iter().map(|e| e.address).collect(),
            world,
            workers: Vec::new(),
            stopping,
            settled: Mutex::new(settled),
            _ports: ports,
        };
        for thread in 0..threads {
            let cpus = options.cpus.as_deref().filter(|c| !c.is_empty());
            let cpu = cpus.map(|c| c[thread % c.len()]);
            sim.workers.push(sim.worker(thread, cpu, told.clone())?);
        }
        sim.wait()?;
        Ok(sim)
    }

    fn worker(
        &self,
        thread: usize,
        cpu: Option<usize>,
        told: mpsc::Sender<io::Result<()>>,
    ) -> io::Result<Worker> {
        let (wake, theirs) = UnixStream::pair()?;
        let settled = move |result| drop(told.send(result));
        let post = Post {
            wake: theirs,
            stopping: self.stopping.clone(),
            settled: Box::new(settled),
        };
        let world = self.world.clone();
        let builder = std::thread::Builder::new().name(format!("pdsim-{thread}"));
        let thread = builder.spawn(move || run(world, cpu, post))?;
        Ok(Worker {
            wake,
            thread: Some(thread),
        })
    }

    /// One word from each thread.
    fn wait(&self) -> io::Result<()> {
        let settled = lock(&self.settled);
        for _ in &self.workers {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "a simulator thread is stuck");
            settled.recv_timeout(PATIENCE).map_err(late)??;
        }
        Ok(())
    }

    /// Has every thread look at the wishes, and waits until it did.
    fn settle(&self) {
        for worker in &self.workers {
            let _ = (&worker.wake).write_all(&[1]);
        }
        if let Err(e) = self.wait() {
            self.world
                .ledger
                .violation(|| format!("the simulator did not settle: {e}"));
        }
    }

    /// One per engine, in the order of the options.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where an engine's bootstrap server (P of SGLang and Mooncake) or its peers (offloading) are.
    pub fn side(&self, engine: usize) -> Option<SocketAddr> {
        self.world.engines[engine].side
    }

    /// What the engine received, oldest first. Empty if `record` is off.
    pub fn transcript(&self, engine: usize) -> Vec<Received> {
        self.world.engines[engine]
            .transcript
            .as_ref()
            .map_or_else(Vec::new, Transcript::all)
    }

    pub fn ledger(&self) -> LedgerReport {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let (encodings, transfers) = (&self.world.encodings, &self.world.transfers);
        LedgerReport {
            encoded: load(&encodings.encoded),
            embedded: load(&encodings.embedded),
            transferred: load(&encodings.transferred),
            pushes: load(&transfers.pushes),
            loaded: load(&transfers.loaded),
            recomputed: load(&transfers.recomputed),
            unmet: load(&self.world.meetings.unmet),
            ..self.world.ledger.report(self.world.now())
        }
    }

    /// Tokens whose KV the engine holds for others.
    pub fn held_tokens(&self, engine: usize) -> u64 {
        self.world.ledger.held_tokens(engine, self.world.now())
    }

    /// Where the workers of the prefill engines send LMCache's notices, from now on.
    pub fn notices_to(&self, address: SocketAddr) {
        self.world.transfers.connect(&self.world, address);
    }

    /// What becomes of the transfers and notices of a prefill engine from now on.
    pub fn set_notices(&self, engine: usize, fault: Notices) {
        self.world.transfers.set_fault(engine, fault);
    }

    /// From now on every request to the engine gets `fault`; `None` ends it.
    pub fn set_fault(&self, engine: usize, fault: Option<Fault>) {
        self.world.engines[engine].set_fault(fault);
        self.settle();
    }

    /// Closes the listener and breaks all connections with RST; the KV is lost.
    pub fn kill(&self, engine: usize) {
        if self.world.engines[engine].up.swap(false, Ordering::AcqRel) {
            self.world.lose(engine);
        }
        self.settle();
    }

    /// The engine comes back at the same address under a new engine id, whether it was down or not.
    pub fn restart(&self, engine: usize) {
        let shared = &self.world.engines[engine];
        if shared.up.load(Ordering::Acquire) {
            self.kill(engine);
        }
        let incarnation = shared.incarnation.fetch_add(1, Ordering::AcqRel) + 1;
        self.world.ledger.begin(engine, incarnation);
        shared.up.store(true, Ordering::Release);
        self.settle();
    }

    pub fn is_up(&self, engine: usize) -> bool {
        self.world.engines[engine].up.load(Ordering::Acquire)
    }

    /// Requests whose head has come and whose answer is not finished.
    pub fn open_requests(&self, engine: usize) -> usize {
        self.world.engines[engine].open.load(Ordering::Relaxed)
    }

    pub fn connections(&self, engine: usize) -> usize {
        self.world.engines[engine]
            .connections
            .load(Ordering::Relaxed)
    }

    /// All requests that the engine ever read, whether recorded or not.
    pub fn requests(&self, engine: usize) -> u64 {
        self.world.engines[engine].requests.load(Ordering::Relaxed)
    }

    /// Since the simulator's start: the clock of `Received::at`.
    pub fn elapsed(&self) -> Duration {
        self.world.started.elapsed()
    }

    /// Stops all threads and waits for them.
    pub fn stop(self) {}
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        for worker in &mut self.workers {
            let _ = (&worker.wake).write_all(&[0]);
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// Binds a port so that it stays ours. With SO_REUSEPORT a second simulator would silently share it,
/// so a bind without it goes first.
fn reserve(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let open = |shared: bool| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    if address.port() != 0 {
        let taken = |e: io::Error| io::Error::new(e.kind(), format!("{address}: {e}"));
        drop(open(false).map_err(taken)?);
    }
    let socket = open(true)?;
    let bound = socket.local_addr()?.as_socket();
    let bound = bound.ok_or_else(|| io::Error::other("no IP address was bound"))?;
    Ok((socket, bound))
}
