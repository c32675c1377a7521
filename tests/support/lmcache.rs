//! LMCache engines behind a proxy: ranks, receivers, and notices that find their way.

use std::time::Duration;

use pdrelay::config::{Config, Role};
use pdrelay::server::Server;
use pdrelay::wire::lmcache::Receiver;
use pdsim::{EngineOptions, KvMode, Sim};

use super::{Rig, config, engine};

/// `p` prefill and `d` decode engines of so many ranks. Receivers' ports: 100 apart for each D.
pub fn engines(p: usize, d: usize, ranks: u32) -> Vec<EngineOptions> {
    let mut all = super::engines(p, d);
    for (i, one) in all.iter_mut().enumerate() {
        one.kv = KvMode::Lmcache;
        one.lmcache.ranks = ranks;
        if i >= p {
            let first = 20_000 + 100 * (i - p) as u16;
            one.lmcache.init_ports = (first..first + ranks as u16).collect();
            one.lmcache.alloc_ports = (first + 50..first + 50 + ranks as u16).collect();
        }
    }
    all
}

/// The section's receivers, as the engines have them.
pub fn receivers(config: &mut Config, engines: &[EngineOptions]) {
    for (instance, engine) in config.instances.iter().zip(engines) {
        if instance.role == Role::Decode {
            let receiver = Receiver {
                host: "127.0.0.1".into(),
                init_ports: engine.lmcache.init_ports.clone(),
                alloc_ports: engine.lmcache.alloc_ports.clone(),
                query_ports: Vec::new(),
            };
            config
                .lmcache
                .receivers
                .insert(instance.address.clone(), receiver);
        }
    }
}

/// Not where the engines of other tests are: a sender that looks for a proxy that is gone must not find one of
/// those on its port.
pub const NOTICES_HOST: &str = "127.0.0.2";

/// The rig most tests want.
pub fn rig(p: usize, d: usize, ranks: u32) -> Rig {
    rig_with(engines(p, d, ranks), |_| {})
}

pub fn rig_with(engines: Vec<EngineOptions>, change: impl FnOnce(&mut Config)) -> Rig {
    let roles: Vec<Role> = engines.iter().map(|e| super::role(e.role)).collect();
    let options = pdsim::Options {
        engines: engines.clone(),
        ..pdsim::Options::default()
    };
    let sim = Sim::start(options).expect("the simulator starts");
    let mut config = config("lmcache", &roles, sim.addresses());
    config.lmcache.host = NOTICES_HOST.into();
    config.lmcache.port = 0;
    receivers(&mut config, &engines);
    change(&mut config);
    let server = Server::start(config).expect("the proxy starts");
    if let Some(address) = server.notices() {
        sim.notices_to(address);
    }
    Rig { server, sim }
}

/// Long enough for a machine under load, short enough for a test that waits for it.
pub const SOON: Duration = Duration::from_millis(400);

/// An aggregated engine of the same kind, for texts to compare.
pub fn single() -> Rig {
    super::rig_with("aggregated", vec![engine(pdsim::Role::Both)], |_| {})
}
