//! Floor 6: the threads. Shards serve clients, one control thread watches the cluster.
//!
//! * **For:** building everything from a [`Config`], starting it, draining it.
//! * **Must never:** know a handshake's steps or a policy's reasons; do on a shard what can wait for the
//!   control thread.
//! * **To extend:** another program's paths and shapes are a file in `surface/`.
//!
//! ```text
//! listen -> shard -> connection -> intake (a Request) -> surface (a Route)
//!                                     -> attempt -> <handshake>   |  forward  |  own answer
//! ```

pub mod admin;
pub mod attempt;
pub mod connection;
pub mod control;
pub mod cores;
pub mod doors;
pub mod epd;
pub mod forward;
pub mod intake;
pub mod mailbox;
pub mod pages;
pub mod reload;
pub mod shard;
pub mod startup;
pub mod status;
pub mod surface;
pub mod xpyd;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::guest::Guests;
use crate::cluster::names::resolve;
use crate::cluster::{Cluster, Instance};
use crate::config::{Config, Role};
use crate::error::KINDS;
use crate::exchange::pinned::{Hosts, TrustOf};
use crate::exchange::{Exchange, Policies};
use crate::handshake::{self, Handshake};
use crate::log;
use crate::metrics::{self, Counter, Gauge, Metrics, Wait};
use crate::net::runtime::Driver;
use crate::net::stream::Target;
use crate::net::tls::Acceptor;
use crate::net::{limit, listen};
use crate::policy;
use crate::shared::Published;
use mailbox::Mailbox;

/// How long requests that are cut off at the end may take to say so.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What all threads share. Read-mostly; what changes per request lives in the shards.
pub struct Shared {
    pub config: Arc<Published<Config>>,
    pub cluster: Arc<Published<Cluster>>,
    pub handshake: Box<dyn Handshake>,
    pub handshake_name: &'static str,
    /// The roles that it needs.
    pub needs: Vec<Role>,
    /// For models that only aggregated instances serve, whatever the handshake of the others.
    pub aggregated: Box<dyn Handshake>,
    pub policies: Arc<Policies>,
    pub hosts: Arc<Hosts>,
    /// Makes TLS of clients' connections, where they may speak it.
    pub acceptor: Option<Acceptor>,
    pub metrics: Arc<Metrics>,
    pub started: Instant,
    /// Generate requests in flight in the process.
    pub in_flight: AtomicUsize,
    pub connections: AtomicUsize,
    pub draining: Arc<AtomicBool>,
    /// The threads have been told to end.
    pub stopped: AtomicBool,
    pub shards: Arc<Vec<Mailbox<shard::Letter>>>,
    pub control: Mailbox<control::Letter>,
    /// Held while the cluster is being changed.
    pub changing: Mutex<()>,
    pub drivers: Vec<std::sync::OnceLock<Driver>>,
    pub open_files_max: u64,
    /// Have the backends been there, and what if they do not come?
    pub backends: startup::Backends,
    /// The families of xPyD-proxy's `/metrics`.
    pub xpyd: metrics::xpyd::Families,
}

impl Shared {
    /// Could a generate request be served now?
    pub fn ready(&self) -> bool {
        let now = crate::cluster::breaker::now_ms();
        let cluster = self.cluster.get();
        let up = |role: &Role| cluster.available(*role, now);
        !self.draining.load(Ordering::Relaxed)
            && (self.needs.iter().all(up)
                || up(&Role::Aggregated)
                // P comes with the request.
                || (self.config.get().sidecar.is_some() && up(&Role::Decode)))
    }

    /// What it lacks for that, by role.
    pub fn missing(&self) -> String {
        let now = crate::cluster::breaker::now_ms();
        let cluster = self.cluster.get();
        let missing = self.needs.iter().filter(|r| !cluster.available(**r, now));
        let named: Vec<String> = missing
            .map(|role| format!("no {} instance is available", role.name()))
            .collect();
        named.join(", and ")
    }

    /// The script for this request: the configured one, unless only aggregated instances can serve it.
    pub fn script(&self, x: &Exchange) -> &dyn Handshake {
        if self.handshake.serves_aggregated() {
            return &*self.handshake;
        }
        let needs = &self.needs;
        let mixed = !needs.contains(&Role::Aggregated) && !x.members(Role::Aggregated).is_empty();
        if !mixed {
            return &*self.handshake;
        }
        let now = crate::cluster::breaker::now_ms();
        let up = |role: &Role| x.cluster.available_in(x.scope.get(), *role, now);
        let here = |role: &Role| !x.members(*role).is_empty();
        // A request that may go to either goes to the one that is up.
        if needs.iter().all(here) && (needs.iter().all(up) || !up(&Role::Aggregated)) {
            return &*self.handshake;
        }
        x.trace.handshake.set(Some(AGGREGATED));
        &*self.aggregated
    }
}

const AGGREGATED: &str = "aggregated";

/// A running proxy. Dropping it stops it at once; [`Server::drain`] lets streams finish first.
pub struct Server {
    pub address: SocketAddr,
    /// Of all doors.
    pub addresses: Vec<(u16, SocketAddr)>,
    pub shared: Arc<Shared>,
    /// One line per shard: its CPU, its driver, and why not a faster one.
    pub shard_lines: Vec<String>,
    shards: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds, starts all threads, and returns when every shard accepts.
    pub fn start(config: Config) -> io::Result<Server> {
        let cpus = cores::plan(&config.cores).map_err(io::Error::other)?;
        let open_files_max = limit::raise_nofile();
        // First what others connect to by themselves (notices): they may have been waiting for us.
        let (shared, ears, control_ear) = build(config, cpus.len(), open_files_max)?;
        let mut doors = Vec::new();
        let settings = shared.config.get();
        for (door, port) in doors::of(&settings) {
            doors.push((door, bind(&settings, port, cpus.len())?));
        }
        let address = doors[0].1[0].local_addr()?;
        let at = |(door, all): &(u16, Vec<TcpListener>)| Ok((*door, all[0].local_addr()?));
        let addresses: io::Result<Vec<_>> = doors.iter().map(at).collect();
        let addresses = addresses?;
        let control = control::spawn(shared.clone(), control_ear)?;
        let (report, reports) = mpsc::channel();
        let mut shards = Vec::new();
        for (index, (cpu, ear)) in cpus.iter().zip(ears).enumerate() {
            let listeners = doors.iter_mut();
            let listeners = listeners.filter_map(|(door, all)| Some((*door, all.pop()?)));
            let start = shard::Start {
                index,
                cpu: *cpu,
                listeners: listeners.collect(),
                ear,
                shared: shared.clone(),
                report: report.clone(),
            };
            shards.push(shard::spawn(start)?);
        }
        drop(report);
        let mut shard_lines = vec![String::new(); cpus.len()];
        for _ in 0..cpus.len() {
            let (index, line) = reports
                .recv()
                .map_err(|_| io::Error::other("a shard ended while it started"))?;
            shard_lines[index] = line.map_err(io::Error::other)?;
        }
        Ok(Server {
            address,
            addresses,
            shared,
            shard_lines,
            shards,
            control: Some(control),
        })
    }

    /// Stops accepting, lets what runs finish within the limit, then stops. True: nothing was cut.
    pub fn drain(mut self, limit: Duration) -> bool {
        self.shared.draining.store(true, Ordering::SeqCst);
        for shard in self.shared.shards.iter() {
            shard.post(shard::Letter::Drain);
        }
        let deadline = Instant::now() + limit;
        // Connections first; then the KV of those that left without their answer.
        let busy = || {
            self.shared.connections.load(Ordering::Relaxed) > 0
                || self.shared.metrics.level(Gauge::releases_pending()) > 0
        };
        while busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let clean = !busy() || self.cut_off(busy);
        self.stop();
        clean
    }

    /// Ends what runs, and waits for a moment so that its clients are told and its access lines written. True: there
    /// were only connections without a request.
    fn cut_off(&self, busy: impl Fn() -> bool) -> bool {
        let metrics = &self.shared.metrics;
        let releases = metrics.level(Gauge::releases_pending());
        for shard in self.shared.shards.iter() {
            shard.post(shard::Letter::CutOff);
        }
        let deadline = Instant::now() + LAST_WORDS;
        while busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let requests = metrics.total(Counter::timeouts(Wait::Drain));
        let clean = requests == 0 && releases == 0;
        if !clean {
            log::warning(|| {
                format!(
                    "timeouts.drain is over: {requests} requests and {releases} KV releases were cut off"
                )
            });
        }
        clean
    }

    /// `act` is called if the backends do not come within `startup.wait_timeout`. (A server ends by itself
    /// only what is its own; the process is the caller's.)
    pub fn on_failure(&self, act: impl Fn() + Send + 'static) {
        self.shared.backends.on_failure(Box::new(act));
    }

    /// Why it cannot go on, if it cannot.
    pub fn failure(&self) -> Option<&str> {
        self.shared.backends.failure()
    }

    /// Where notices are taken, if the handshake has any.
    pub fn notices(&self) -> Option<SocketAddr> {
        self.shared
            .handshake
            .notices()
            .map(|socket| socket.pull.address)
    }

    fn stop(&mut self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.stopped.store(true, Ordering::SeqCst);
        for shard in self.shared.shards.iter() {
            shard.post(shard::Letter::Stop);
        }
        self.shared.control.post(control::Letter::Stop);
        for thread in self.shards.drain(..).chain(self.control.take()) {
            if thread.join().is_err() {
                log::error(|| "a thread ended in a panic".into());
            }
        }
        // Whoever comes next wants its address, whatever still holds on to `Shared`.
        if let Some(socket) = self.shared.handshake.notices() {
            socket.pull.close();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind(config: &Config, port: u16, shards: usize) -> io::Result<Vec<TcpListener>> {
    let place = format!("{}:{port}", config.host);
    let say = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "; another program has this port: stop it, or change `port`"
            }
            io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
            _ => "",
        };
        io::Error::new(
            error.kind(),
            format!("cannot listen on {place}: {error}{hint}"),
        )
    };
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let address = (host, port)
        .to_socket_addrs()
        .map_err(say)?
        .next()
        .ok_or_else(|| io::Error::other(format!("host {host} has no address")))?;
    listen::bind(address, shards).map_err(say)
}

type Ears = Vec<std::os::unix::net::UnixStream>;

fn build(
    config: Config,
    shards: usize,
    open_files_max: u64,
) -> io::Result<(Arc<Shared>, Ears, std::os::unix::net::UnixStream)> {
    let metrics = Metrics::with_error_kinds(shards, &KINDS);
    let cluster = Cluster::from_config(&config, &metrics);
    resolve_names(&cluster);
    let spec = handshake::find(&config.handshake)
        .ok_or_else(|| io::Error::other(format!("unknown handshake {}", config.handshake)))?;
    let aggregated = handshake::find(AGGREGATED).unwrap_or(spec);
    let policies = policies(&config)?;
    prepare(&config, &cluster);
    let (script, plain) = ((spec.build)(&config)?, (aggregated.build)(&config)?);
    let script = handshake::beside(script, &config);
    let acceptor = doors::acceptor(&config)?;
    let trust = TrustOf::default();
    if doors::secret_upstream(&config) {
        trust.load(&config)?;
    }
    let hosts = Hosts {
        guests: Guests::new(&config.circuit_breaker, &metrics),
        members: Arc::new(Published::new(Default::default())),
        trust,
    };
    hosts.prepare(&config, &cluster)?;
    let mut mailboxes = Vec::new();
    let mut ears = Vec::new();
    for _ in 0..shards {
        let (mailbox, ear) = Mailbox::new()?;
        mailboxes.push(mailbox);
        ears.push(ear);
    }
    let (control, control_ear) = Mailbox::new()?;
    let shared = Arc::new(Shared {
        config: Arc::new(Published::new(config)),
        cluster: Arc::new(Published::new(cluster)),
        handshake_name: spec.name,
        needs: script.needs().unwrap_or_else(|| spec.needs.to_vec()),
        handshake: script,
        aggregated: plain,
        policies: Arc::new(policies),
        hosts: Arc::new(hosts),
        acceptor,
        metrics,
        started: Instant::now(),
        in_flight: AtomicUsize::new(0),
        connections: AtomicUsize::new(0),
        draining: Arc::default(),
        stopped: AtomicBool::new(false),
        shards: Arc::new(mailboxes),
        control,
        drivers: (0..shards).map(|_| std::sync::OnceLock::new()).collect(),
        changing: Mutex::new(()),
        open_files_max,
        backends: startup::Backends::default(),
        xpyd: metrics::xpyd::Families::new(shards),
    });
    if let Some(socket) = shared.handshake.notices() {
        // Not all of `Shared`, which owns the thread that rings.
        let shards = shared.shards.clone();
        socket.notices.ring_with(Box::new(move |shard, ticket| {
            if let Some(shard) = shards.get(shard) {
                shard.post(shard::Letter::Noticed(ticket));
            }
        }));
    }
    Ok((shared, ears, control_ear))
}

/// Before the shards start, so that the first request finds addresses.
fn resolve_names(cluster: &Cluster) {
    for instance in &cluster.instances {
        if instance.targets.get().is_empty() {
            let found = resolve(&instance.address);
            if found.is_empty() {
                let (role, name) = (instance.role.name(), &instance.name);
                log::warning(|| format!("{role} {name}: its name has no address yet"));
            }
            instance.targets.publish(found);
        }
    }
    let mut places: HashMap<Target, &Arc<Instance>> = HashMap::new();
    for instance in &cluster.instances {
        for target in &**instance.targets.get() {
            let other = *places.entry(target.clone()).or_insert(instance);
            if other.address != instance.address {
                let (role, name) = (instance.role.name(), &instance.name);
                let (other_role, other) = (other.role.name(), &other.name);
                log::warning(|| {
                    format!("{role} {name} is {other_role} {other} by another name: list it once")
                });
                break;
            }
        }
    }
}

fn policies(config: &Config) -> io::Result<Policies> {
    let build = |role: Role| {
        let name = match role {
            Role::Decode => &config.scheduling.decode,
            _ => &config.scheduling.prefill,
        };
        policy::build(name).ok_or_else(|| io::Error::other(format!("unknown policy {name}")))
    };
    // An unknown name of a single model's was warned of where the config was read.
    let own = config.models.schedulers.iter();
    let own = own.filter_map(|(model, name)| Some((model.clone(), policy::build(name)?)));
    Ok(Policies {
        models: own.collect(),
        encode: build(Role::Encode)?,
        prefill: build(Role::Prefill)?,
        decode: build(Role::Decode)?,
        aggregated: build(Role::Aggregated)?,
    })
}

/// Works out where instances stand on the ring, if a policy will ask: no request should wait for it.
fn prepare(config: &Config, cluster: &Cluster) {
    if any_policy(config, |spec| spec.ring) {
        for instance in &cluster.instances {
            instance.points(config.scheduling.virtual_nodes);
        }
    }
}

fn any_policy(config: &Config, of: impl Fn(&policy::Spec) -> bool) -> bool {
    let names = [&config.scheduling.prefill, &config.scheduling.decode];
    let mut names = names.into_iter().chain(config.models.schedulers.values());
    names.any(|name| policy::find(name).is_some_and(&of))
}
