//! The control thread: health probes, name resolution, rendered pages. An epoll runtime, off the data
//! path.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::{Health, breaker, health, resolve};
use crate::config::Address;
use crate::log;
use crate::metrics::{Sampled, Scrape};
use crate::net::runtime::{self, Driver};
use crate::net::stream::Stream;

use super::{Shared, shard, status};

/// Pages that are rendered here: a scrape of 64 shards on a shard would be a stutter in every stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    Metrics,
    Status,
}

pub enum Letter {
    Render {
        shard: usize,
        ticket: u64,
        page: Page,
    },
    Stop,
}

/// How often DNS names are looked up again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

pub fn spawn(shared: Arc<Shared>, ear: UnixStream) -> io::Result<JoinHandle<()>> {
    sample_instances(&shared);
    watch_names(&shared)?;
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || match runtime::control() {
            Ok(mut runtime) => runtime.block_on(run(shared, ear)),
            Err(error) => log::error(|| format!("the control thread cannot start: {error}")),
        })
}

async fn run(shared: Arc<Shared>, ear: UnixStream) {
    let check = &shared.config.health_check;
    if check.enabled {
        for instance in shared.cluster.get().instances.iter().cloned() {
            monoio::spawn(health::watch(
                instance,
                check.path.clone(),
                check.interval,
                check.timeout,
            ));
        }
    }
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
                Letter::Render {
                    shard,
                    ticket,
                    page,
                } => {
                    let body = match page {
                        Page::Metrics => shared.metrics.render().into_bytes(),
                        Page::Status => status::render(&shared),
                    };
                    shared.shards[shard].post(shard::Letter::Rendered { ticket, body });
                }
            }
        }
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
    }
}

/// What only the cluster knows, read at scrape.
fn sample_instances(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared
        .metrics
        .on_scrape(Box::new(move |scrape: &mut Scrape| {
            let Some(shared) = weak.upgrade() else { return };
            let now = breaker::now_ms();
            let flag = |on: bool| if on { 1.0 } else { 0.0 };
            for one in &shared.cluster.get().instances {
                let labels = [one.role.name(), &*one.name];
                let load = one.load.read();
                scrape.add(Sampled::InstanceInFlight, &labels, load.requests as f64);
                let healthy = one.health() != Health::Unhealthy;
                scrape.add(Sampled::InstanceHealthy, &labels, flag(healthy));
                scrape.add(
                    Sampled::InstanceEjected,
                    &labels,
                    flag(one.breaker.state(now) == breaker::State::Open),
                );
            }
            for (index, driver) in shared.drivers.iter().enumerate() {
                let name = driver.get().map_or("starting", |d| d.name());
                scrape.add(Sampled::Shard, &[&index.to_string(), name], 1.0);
            }
        }));
}

/// A thread that looks DNS names up, if there are any: that blocks, even the control thread.
fn watch_names(shared: &Arc<Shared>) -> io::Result<()> {
    let named = |address: &Address| match address {
        Address::Tcp { host, .. } => host.parse::<std::net::IpAddr>().is_err(),
        Address::Unix(_) => false,
    };
    if !shared
        .cluster
        .get()
        .instances
        .iter()
        .any(|i| named(&i.address))
    {
        return Ok(());
    }
    let weak = Arc::downgrade(shared);
    let look = move || {
        loop {
            std::thread::sleep(RESOLVE_EVERY);
            let Some(shared) = weak.upgrade() else { return };
            if shared.draining.load(Ordering::Relaxed) {
                return;
            }
            for instance in shared.cluster.get().instances.iter() {
                let found = if named(&instance.address) {
                    resolve(&instance.address)
                } else {
                    vec![]
                };
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
