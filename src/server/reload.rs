//! Reload: a new configuration for a running proxy. What runs keeps the old one to its end.

use std::time::Duration;

use crate::cluster::change;
use crate::config::{Config, Cores, Multiturn};
use crate::log;

use super::{Server, admin};

impl Server {
    /// Applies what can be applied without a restart, and says what cannot. All or nothing: a
    /// configuration that is refused changes nothing.
    pub fn reload(&self, mut new: Config) -> Result<(), String> {
        let shared = &self.shared;
        let old = shared.config.get();
        let fixed = needs_restart(&old, &new);
        if !fixed.is_empty() {
            log::warning(|| format!("reload: {} change only with a restart", fixed.join(", ")));
        }
        new.host.clone_from(&old.host);
        new.port = old.port;
        new.handshake.clone_from(&old.handshake);
        new.surface = old.surface;
        new.epd = old.epd.clone();
        new.sidecar.clone_from(&old.sidecar);
        new.tls.clone_from(&old.tls);
        new.upstream_tls.clone_from(&old.upstream_tls);
        new.cores = old.cores.clone();
        new.lmcache = old.lmcache.clone();
        new.scheduling = old.scheduling.clone();
        new.models = old.models.clone();
        new.multiturn = multiturn(&old.multiturn, &new.multiturn);
        let changes = change::between(&shared.cluster.get(), &old, &new);
        admin::apply(shared, &changes).map_err(|refused| refused.to_string())?;
        let count = changes.len();
        shared.config.publish(new);
        log::warning(|| format!("reload: done, {count} changes of instances"));
        Ok(())
    }
}

/// The store stays as it was started; what is said to whom may change.
fn multiturn(old: &Multiturn, new: &Multiturn) -> Multiturn {
    Multiturn {
        expose_kv_params: new.expose_kv_params,
        remote_host: new.remote_host,
        ..old.clone()
    }
}

/// Where the shards run, whatever their pace.
fn places(cores: &Cores) -> Cores {
    Cores {
        batch_window: Duration::ZERO,
        busy_poll: Duration::ZERO,
        ..cores.clone()
    }
}

/// Keys that differ and are read only at the start.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("host", old.host == new.host),
        ("port", old.port == new.port),
        ("handshake", old.handshake == new.handshake),
        ("surface", old.surface == new.surface),
        ("epd", old.epd == new.epd),
        ("sidecar", old.sidecar == new.sidecar),
        ("tls", old.tls == new.tls),
        ("upstream_tls", old.upstream_tls == new.upstream_tls),
        ("lmcache", old.lmcache == new.lmcache),
        (
            "shards, cpus, numa or steer_by_cpu",
            places(&old.cores) == places(&new.cores),
        ),
        (
            "batch_window",
            old.cores.batch_window == new.cores.batch_window,
        ),
        ("busy_poll", old.cores.busy_poll == new.cores.busy_poll),
        ("scheduling", old.scheduling == new.scheduling),
        ("the models' schedulers", old.models == new.models),
        ("log_level", old.log_level == new.log_level),
        (
            "multiturn (but for expose_kv_params and remote_host)",
            multiturn(&old.multiturn, &new.multiturn) == new.multiturn,
        ),
        (
            "timeouts.pool_idle",
            old.timeouts.pool_idle == new.timeouts.pool_idle,
        ),
        (
            "limits.releases_max",
            old.limits.releases_max == new.limits.releases_max,
        ),
    ];
    keys.into_iter()
        .filter(|(_, same)| !same)
        .map(|(key, _)| key)
        .collect()
}
