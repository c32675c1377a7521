//! The ports that a server listens on: the main one, one for each further rank of a sidecar, and a sidecar's own
//! pages; and who may speak TLS there.

use std::io;

use super::connection::OWN_PAGES;
use crate::config::{Config, ports};
use crate::net::tls::Acceptor;

/// Each door and its port, the main one first.
pub fn of(config: &Config) -> Vec<(u16, u16)> {
    let mut doors = ports::of_ranks(config);
    let Some(sidecar) = &config.sidecar else {
        return doors;
    };
    if let Some(port) = sidecar.metrics_port {
        doors.push((OWN_PAGES, port));
    }
    doors
}

pub fn acceptor(config: &Config) -> io::Result<Option<Acceptor>> {
    let Some(tls) = &config.tls else {
        return Ok(None);
    };
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let pod = config.sidecar.as_ref().and_then(|sidecar| sidecar.pod_ip);
    names.extend(pod.map(|ip| ip.to_string()));
    let acceptor = Acceptor::new(tls.cert_path.as_deref(), &names, tls.strict);
    let say = |why| io::Error::other(format!("tls: {why}"));
    acceptor.map(Some).map_err(say)
}

/// May an engine be behind TLS?
pub fn secret_upstream(config: &Config) -> bool {
    let named = config.sidecar.is_some();
    named || config.instances.iter().any(|one| one.address.tls())
}
