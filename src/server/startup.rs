//! From the start to the first readiness, and what the log says of the backends: on the control thread.
//!
//! A proxy listens at once. If `startup.wait_timeout` passes before a request could have been served even
//! once, something is wrong that waiting will not mend, and whoever started the process should see it
//! fail. After that it never ends by itself, whatever its backends do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::Shared;
use crate::cluster::{Cluster, Health};
use crate::config::{Config, Role, Surface};
use crate::log;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a heartbeat that is switched off looks whether it is on again (after a reload).
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// What became of the wait for the backends.
#[derive(Default)]
pub struct Backends {
    seen: AtomicBool,
    failure: OnceLock<String>,
    act: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Backends {
    /// Have they been there once?
    pub fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }

    /// Takes note if they are there. Asked after each good probe, so that no short time is missed.
    pub fn note(&self, cluster: &Cluster) {
        if !self.seen() && cluster.complete() {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// At once, if it has failed already.
    pub fn on_failure(&self, act: Box<dyn Fn() + Send>) {
        let mut kept = self.act.lock().unwrap_or_else(PoisonError::into_inner);
        if self.failure().is_some() {
            act();
        }
        *kept = Some(act);
    }

    fn fail(&self, why: String) {
        let kept = self.act.lock().unwrap_or_else(PoisonError::into_inner);
        if self.failure.set(why).is_ok()
            && let Some(act) = &*kept
        {
            act();
        }
    }
}

/// Does anybody want to know whether the backends are there, beyond what health checks are for?
pub fn watches(config: &Config) -> bool {
    config.surface == Surface::Xpyd
        || config.startup.wait_timeout.is_some()
        || config.startup.heartbeat_interval.is_some()
}

/// How often an instance is probed.
pub fn probe_every(config: &Config, seen: bool) -> Duration {
    let (startup, check) = (config.startup.probe_interval, config.health_check.interval);
    match config.health_check.enabled {
        true if watches(config) && !seen => startup.min(check),
        true => check,
        false => startup,
    }
}

/// Waits for the first readiness; fails if it does not come in time.
pub async fn watch(shared: Arc<Shared>) {
    loop {
        if shared.backends.seen() {
            return;
        }
        let config = shared.config.get();
        if let Some(limit) = config.startup.wait_timeout
            && shared.started.elapsed() >= limit
        {
            let state = line(&shared.cluster.get());
            let why = format!(
                "no prefill and decode instance (or aggregated one) was healthy within {} s \
                 (startup.wait_timeout): {state}; are the engines up, and their addresses right?",
                limit.as_secs_f64()
            );
            return shared.backends.fail(why);
        }
        drop(config);
        monoio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says now and then who is there.
pub async fn heartbeat(shared: Arc<Shared>) {
    loop {
        let interval = shared.config.get().startup.heartbeat_interval;
        monoio::time::sleep(interval.unwrap_or(IDLE_EVERY)).await;
        if interval.is_some() {
            log::always(|| format!("Node heartbeat | {}", line(&shared.cluster.get())));
        }
    }
}

/// `mode=disaggregated | P=1/1 online | D=2/2 online`
fn line(cluster: &Cluster) -> String {
    let of = |role: Role, letter: char| {
        let all = cluster.role(role);
        let online = all.iter().filter(|one| one.found() == Health::Healthy);
        (!all.is_empty()).then(|| format!("{letter}={}/{} online", online.count(), all.len()))
    };
    let split = [of(Role::Prefill, 'P'), of(Role::Decode, 'D')];
    let whole = of(Role::Aggregated, 'A');
    let mode = match (split.iter().any(Option::is_some), whole.is_some()) {
        (true, true) => "mixed",
        (false, true) => "aggregated",
        _ => "disaggregated",
    };
    let fields = split.into_iter().chain([whole]).flatten();
    let fields: Vec<String> = [format!("mode={mode}")].into_iter().chain(fields).collect();
    fields.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Address, InstanceConfig};
    use crate::metrics::Metrics;

    fn cluster(roles: &[Role]) -> Cluster {
        let one = |(i, role): (usize, &Role)| {
            InstanceConfig::new(Address::tcp("127.0.0.1", i as u16 + 1), *role)
        };
        let config = Config {
            instances: roles.iter().enumerate().map(one).collect(),
            ..Config::default()
        };
        Cluster::from_config(&config, &Metrics::new(1))
    }

    #[test]
    fn the_line_names_each_role_that_is_configured() {
        use Role::{Aggregated, Decode, Prefill};
        for (roles, expected) in [
            (
                &[Prefill, Decode, Decode][..],
                "mode=disaggregated | P=0/1 online | D=0/2 online",
            ),
            (&[Aggregated][..], "mode=aggregated | A=0/1 online"),
            (&[Decode][..], "mode=disaggregated | D=0/1 online"),
            (
                &[Prefill, Decode, Aggregated][..],
                "mode=mixed | P=0/1 online | D=0/1 online | A=0/1 online",
            ),
        ] {
            assert_eq!(line(&cluster(roles)), expected);
        }
    }

    #[test]
    fn a_failure_is_told_whenever_it_is_asked_for() {
        let (told, hear) = std::sync::mpsc::channel();
        let backends = Backends::default();
        backends.fail("a".into());
        assert_eq!(backends.failure(), Some("a"));
        backends.on_failure(Box::new(move || told.send(()).unwrap()));
        assert!(hear.try_recv().is_ok());
        backends.fail("b".into());
        assert_eq!(backends.failure(), Some("a"), "the first one counts");
        assert!(hear.try_recv().is_err());
    }
}
