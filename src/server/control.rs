//! The threads off the data path, each with an epoll runtime. *control*: rendered pages, the admin API's
//! changes, the wedge watch, an InferencePool's pods. *probes*: health checks, by themselves, since
//! monoio-http-client reads an answer to its end before it hands anything over: an engine whose `/health`
//! never ends must not take the operator's pages with it.

use std::collections::HashSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::breaker::{State, now_ms};
use crate::cluster::learn::Questions;
use crate::cluster::names::resolve;
use crate::cluster::{Health, Instance, health, kubernetes};
use crate::config::{Address, Config, Surface};
use crate::log;
use crate::metrics::{Sampled, Scrape};
use crate::net::runtime::{self, Driver};
use crate::net::stream::Stream;

use super::{Shared, admin, epd, startup, status, xpyd};

/// What a shard asks of the control thread. Pages are rendered here: a scrape of 64 shards on a shard
/// would be a stutter in every stream.
#[derive(Debug, Clone)]
pub enum Ask {
    Metrics,
    Status,
    /// May wait for DNS: answered in a task, as the next.
    Admin(admin::Ask),
    Epd(epd::Ask),
    /// Waits for engines.
    Xpyd(xpyd::Ask),
}

pub enum Letter {
    Ask { shard: usize, ticket: u64, ask: Ask },
    Stop,
}

/// How often DNS names are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// How soon an instance that was added is probed.
const NEW_INSTANCES_EVERY: Duration = Duration::from_millis(200);
const WEDGE_CHECK_EVERY: Duration = Duration::from_secs(1);

pub fn spawn(shared: Arc<Shared>, ear: UnixStream) -> io::Result<JoinHandle<()>> {
    sample_instances(&shared);
    let weak = Arc::downgrade(&shared);
    // Not joined at the end: it may be held up by an engine, and holds nothing itself.
    std::thread::Builder::new()
        .name("probes".into())
        .spawn(move || match runtime::control() {
            Ok(mut runtime) => runtime.block_on(watch_all(weak)),
            Err(error) => log::error(|| format!("health probes cannot start: {error}")),
        })?;
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || match runtime::control() {
            Ok(mut runtime) => runtime.block_on(run(shared, ear)),
            Err(error) => log::error(|| format!("the control thread cannot start: {error}")),
        })
}

async fn run(shared: Arc<Shared>, ear: UnixStream) {
    monoio::spawn(watch_wedges(shared.clone()));
    monoio::spawn(startup::watch(shared.clone()));
    monoio::spawn(startup::heartbeat(shared.clone()));
    if shared.config.get().epd.dynamic_registration {
        monoio::spawn(epd::roster::forget(shared.clone()));
    }
    let config = shared.config.get();
    let allow = config.sidecar.as_ref().and_then(|s| s.allow.as_ref());
    if let Some(pool) = allow.and_then(|allow| allow.pool.clone()) {
        let members = Arc::downgrade(&shared.hosts.members);
        monoio::spawn(kubernetes::follow(pool, members));
    }
    drop(config);
    let desk = xpyd::Desk::new(shared.clone());
    let stream = match Stream::from_unix(ear.into(), Driver::Epoll) {
        Ok(stream) => stream,
        Err(error) => return log::error(|| format!("the control thread is deaf: {error}")),
    };
    let mut buf = Vec::with_capacity(64);
    loop {
        buf.clear();
        let (result, back) = stream.read(buf).await;
        buf = back;
        for letter in shared.control.take() {
            match letter {
                Letter::Stop => return,
                Letter::Ask { shard, ticket, ask } => {
                    let asker = xpyd::Asker { shard, ticket };
                    let answer = match ask {
                        Ask::Metrics => (200, metrics(&shared)),
                        Ask::Status => (200, status::render(&shared)),
                        Ask::Admin(ask) => {
                            let shared = shared.clone();
                            monoio::spawn(async move {
                                asker.answer(&shared, admin::carry_out(&shared, ask).await);
                            });
                            continue;
                        }
                        Ask::Epd(ask) => {
                            epd::take(&shared, asker, ask);
                            continue;
                        }
                        Ask::Xpyd(ask) => {
                            desk.take(asker, ask);
                            continue;
                        }
                    };
                    asker.answer(&shared, answer);
                }
            }
        }
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
    }
}

fn metrics(shared: &Shared) -> Vec<u8> {
    let mut page = shared.metrics.render();
    if shared.config.get().surface == Surface::Xpyd {
        xpyd::measure::render(shared, &mut page);
    }
    page.into_bytes()
}

/// Whose health is watched already.
#[derive(Default)]
struct Watched {
    probes: HashSet<usize>,
    names: bool,
}

impl Watched {
    fn all_of(&mut self, shared: &Arc<Shared>) {
        for instance in &shared.cluster.get().instances {
            if self.probes.insert(instance.index) {
                monoio::spawn(probe(Arc::downgrade(shared), instance.clone()));
            }
            if !self.names && named(&instance.address) {
                self.names = true;
                if let Err(error) = watch_names(shared) {
                    log::error(|| format!("names are not looked up again: {error}"));
                }
            }
        }
    }
}

/// Sees to it that every instance of the cluster is probed; ends with the server.
async fn watch_all(shared: Weak<Shared>) {
    let mut watched = Watched::default();
    while let Some(shared) = alive(&shared) {
        watched.all_of(&shared);
        drop(shared);
        monoio::time::sleep(NEW_INSTANCES_EVERY).await;
    }
}

fn alive(shared: &Weak<Shared>) -> Option<Arc<Shared>> {
    shared
        .upgrade()
        .filter(|shared| !shared.stopped.load(Ordering::Relaxed))
}

/// Probes one instance until it is taken out of the cluster.
async fn probe(shared: Weak<Shared>, instance: Arc<Instance>) {
    let mut failures = 0;
    let mut questions = Questions::default();
    loop {
        let Some(server) = alive(&shared) else { return };
        if !server
            .cluster
            .get()
            .instances
            .iter()
            .any(|one| one.index == instance.index)
        {
            return;
        }
        let config = server.config.get();
        let check = config.health_check.clone();
        let every = startup::probe_every(&config, server.backends.seen());
        let probed = check.enabled || startup::watches(&config);
        drop(server);
        if !check.enabled {
            instance.set_health(Health::Unknown);
        }
        failures = match probed {
            true => health::round(&instance, &check, failures).await,
            false => 0,
        };
        let found = || {
            if let Some(server) = alive(&shared).filter(|_| probed && failures == 0) {
                server.backends.note(&server.cluster.get());
            }
        };
        // Where requests are told apart by what it says, the gate opens once it has said it; else at once.
        let unnamed = config.models.strict && instance.configured.is_none();
        if !unnamed {
            found();
        }
        if failures > 0 {
            instance.learned(None);
        } else if probed || wanted(&config, &instance) {
            let key = config.openai_api_key.as_ref();
            if questions.ask(&instance, key, check.timeout).await {
                relearn(&shared);
            }
        }
        if unnamed {
            found();
        }
        // While it is down, look more often: it should serve within 2 s of its first good answer.
        let soon = every.min(health::EVERY_WHILE_DOWN);
        monoio::time::sleep(if failures > 0 { soon } else { every }).await;
    }
}

/// Does anything depend on what the instance says of itself? Else, where health checks are off, nothing is
/// sent to it but requests.
fn wanted(config: &Config, instance: &Instance) -> bool {
    let unnamed = config.models.strict && instance.configured.is_none();
    unnamed || super::any_policy(config, |spec| spec.lengths)
}

/// An instance serves another model than was known: requests are routed by that from now on.
fn relearn(shared: &Weak<Shared>) {
    let Some(shared) = alive(shared) else { return };
    let _turn = shared
        .changing
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let cluster = shared.cluster.get();
    if cluster.models.strict {
        shared.cluster.publish(cluster.relearned());
    }
}

/// An instance that holds requests and says nothing for too long takes no more of them, until it says
/// something or holds none.
async fn watch_wedges(shared: Arc<Shared>) {
    loop {
        monoio::time::sleep(WEDGE_CHECK_EVERY).await;
        let limit = shared.config.get().health_check.wedge_after.as_millis() as u64;
        for instance in &shared.cluster.get().instances {
            let wedged = instance.silent_ms(now_ms()) > limit;
            if wedged != instance.wedged.swap(wedged, Ordering::Relaxed) {
                let (role, name) = (instance.role.name(), &instance.name);
                log::warning(|| match wedged {
                    true => {
                        format!("{role} {name} holds requests and has been silent for too long")
                    }
                    false => format!("{role} {name} is no longer silent"),
                });
            }
        }
    }
}

/// What only the cluster knows, read at scrape.
fn sample_instances(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    let sample = move |scrape: &mut Scrape| {
        let Some(shared) = weak.upgrade() else { return };
        let now = now_ms();
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        for one in &shared.cluster.get().instances {
            let labels = [one.role.name(), &*one.name];
            let load = one.load.read();
            scrape.add(Sampled::InstanceInFlight, &labels, load.requests as f64);
            let healthy = one.health() != Health::Unhealthy;
            scrape.add(Sampled::InstanceHealthy, &labels, flag(healthy));
            let ejected = one.breaker.state(now) == State::Open;
            scrape.add(Sampled::InstanceEjected, &labels, flag(ejected));
            let wedged = one.wedged.load(Ordering::Relaxed);
            scrape.add(Sampled::InstanceWedged, &labels, flag(wedged));
            scrape.add(Sampled::InstanceDraining, &labels, flag(one.draining()));
        }
        if let Some(socket) = shared.handshake.notices() {
            let seen = &socket.notices.seen;
            let of = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed) as f64;
            scrape.add(Sampled::Notices, &["counted"], of(&seen.counted));
            scrape.add(Sampled::Notices, &["failed"], of(&seen.failed));
            scrape.add(Sampled::Notices, &["unknown"], of(&seen.unknown));
            scrape.add(Sampled::Notices, &["unreadable"], of(&seen.unreadable));
            let peers = &socket.pull.peers;
            scrape.add(Sampled::NoticeSenders, &[], of(&peers.connected));
            scrape.add(Sampled::NoticeSendersRefused, &[], of(&peers.refused));
            scrape.add(Sampled::NoticesOpen, &[], socket.notices.open() as f64);
        }
        for (index, driver) in shared.drivers.iter().enumerate() {
            let name = driver.get().map_or("starting", |d| d.name());
            scrape.add(Sampled::Shard, &[&index.to_string(), name], 1.0);
        }
    };
    shared.metrics.on_scrape(Box::new(sample));
}

fn named(address: &Address) -> bool {
    address
        .network()
        .is_some_and(|(host, _)| host.parse::<std::net::IpAddr>().is_err())
}

/// A thread that looks DNS names up: that blocks, even the control thread.
fn watch_names(shared: &Arc<Shared>) -> io::Result<()> {
    let weak = Arc::downgrade(shared);
    let look = move || {
        loop {
            std::thread::sleep(RESOLVE_EVERY);
            let Some(shared) = weak.upgrade() else { return };
            if shared.draining.load(Ordering::Relaxed) {
                return;
            }
            for instance in shared
                .cluster
                .get()
                .instances
                .iter()
                .filter(|i| named(&i.address))
            {
                let found = resolve(&instance.address);
                // A resolver that fails for a moment must not take the addresses away.
                if !found.is_empty() && found != **instance.targets.get() {
                    instance.targets.publish(found);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("names".into())
        .spawn(look)
        .map(|_| ())
}
