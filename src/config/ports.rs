//! The ports that we listen on, and that nobody else is at any of them: an instance that is ourselves gets every
//! request back to us, until nothing is left to send it with; and of two listeners on one port only one can start.

use std::net::IpAddr;

use super::reader::Report;
use super::{Config, Role, lmcache};

/// The main port, and a sidecar's port of each further rank: each with its rank.
pub fn of_ranks(config: &Config) -> Vec<(u16, u16)> {
    let mut ports = vec![(0, config.port)];
    if config.sidecar.is_some() {
        let decode = config.instances.iter();
        let ranks = decode.filter(|one| one.role == Role::Decode).count();
        // Any free port stays any free port.
        let port = |rank| match config.port {
            0 => 0,
            port => port.saturating_add(rank),
        };
        ports.extend((1..ranks as u16).map(|rank| (rank, port(rank))));
    }
    ports
}

/// One of our listeners, and what it is called where it is configured.
struct Listener<'a> {
    host: &'a str,
    port: u16,
    what: String,
}

fn listeners(config: &Config) -> Vec<Listener<'_>> {
    let host = config.host.as_str();
    let mut all = Vec::new();
    for (rank, port) in of_ranks(config) {
        let what = match rank {
            0 => format!("port {port}"),
            _ => format!("port {port} of rank {rank}"),
        };
        all.push(Listener { host, port, what });
    }
    if let Some(port) = config.sidecar.as_ref().and_then(|s| s.metrics_port) {
        let what = format!("sidecar.metrics_port {port}");
        all.push(Listener { host, port, what });
    }
    all.extend(notices(config));
    // 0: any free one, which nobody can know.
    all.retain(|listener| listener.port != 0);
    all
}

fn notices(config: &Config) -> Option<Listener<'_>> {
    let lmcache = &config.lmcache;
    let used = lmcache::used(config) && lmcache.variant == lmcache::Variant::Notified;
    used.then(|| Listener {
        host: &lmcache.host,
        port: lmcache.port,
        what: format!("lmcache.port {}", lmcache.port),
    })
}

/// `places[i]`: as in [`super::check::check`].
pub(super) fn check(config: &Config, places: &[String], report: &mut Report) {
    check_metrics_port(config, report);
    check_notices(config, report);
    let ours = listeners(config);
    let pod = config.sidecar.as_ref().and_then(|sidecar| sidecar.pod_ip);
    for (instance, place) in config.instances.iter().zip(places) {
        let Some((host, port)) = instance.address.network() else {
            continue;
        };
        let here = |one: &&Listener| one.port == port && leads_to(host, one.host, pod);
        let Some(listener) = ours.iter().find(here) else {
            continue;
        };
        let (role, address) = (instance.role.name(), &instance.address);
        let message = format!(
            "{role} {address} is pdrelay itself, which listens there ({}): every request would come back to it",
            listener.what
        );
        let fix = match config.sidecar {
            Some(_) => {
                "change port or the engine's port (--port, --vllm-port): each rank counts both up by one"
            }
            None => "give one of them another port",
        };
        report.problem(place, message, fix);
    }
}

fn check_metrics_port(config: &Config, report: &mut Report) {
    let port = config.sidecar.as_ref().and_then(|s| s.metrics_port);
    let Some(port) = port.filter(|port| *port != 0) else {
        return;
    };
    if of_ranks(config).iter().any(|(_, of_rank)| *of_rank == port) {
        let message = "metrics_port is a port that a rank listens on";
        report.problem("sidecar.metrics_port", message, "choose another one");
    }
}

/// Notices have a listener of their own.
fn check_notices(config: &Config, report: &mut Report) {
    let Some(notices) = notices(config).filter(|one| one.port != 0 && one.port == config.port)
    else {
        return;
    };
    if meet(notices.host, &config.host) {
        let message = format!(
            "{} is where clients come (port {}): notices need a port of their own",
            notices.what, config.port
        );
        let (key, fix) = match report.is_set("zmq") {
            true => ("zmq.port", "choose another one of the two"),
            false => (
                "lmcache.port",
                "choose another one of the two (--proxy-port, --port)",
            ),
        };
        report.problem(key, message, fix);
    }
}

/// Can only one of two listen on one port?
fn meet(one: &str, other: &str) -> bool {
    let any = |host| ip(host).is_some_and(|ip| ip.is_unspecified());
    any(one) || any(other) || leads_to(one, other, None) || leads_to(other, one, None)
}

/// Is what connects to `host` connected to who listens at `own`? Names are not looked up: two that are spelled
/// alike are the same, and `localhost` is this machine.
fn leads_to(host: &str, own: &str, pod: Option<IpAddr>) -> bool {
    let (to, at) = (ip(host), ip(own));
    let local = |ip: Option<IpAddr>, name: &str| match ip {
        // To connect to "any" is to connect to this machine.
        Some(ip) => ip.is_loopback() || ip.is_unspecified(),
        None => is_localhost(name),
    };
    match at {
        Some(at) if at.is_unspecified() => local(to, host) || (to.is_some() && to == pod),
        Some(at) if to.is_none() => is_localhost(host) && at.is_loopback(),
        Some(at) if to.is_some_and(|to| to.is_unspecified()) => at.is_loopback(),
        Some(at) => to == Some(at),
        None if is_localhost(own) => local(to, host),
        None => host.eq_ignore_ascii_case(own),
    }
}

fn ip(host: &str) -> Option<IpAddr> {
    host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn is_localhost(name: &str) -> bool {
    name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_all_its_local_names() {
        for (host, own) in [
            ("127.0.0.1", "0.0.0.0"),
            ("127.9.9.9", "0.0.0.0"),
            ("::1", "::"),
            ("127.0.0.1", "::"),
            ("::ffff:127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "0.0.0.0"),
            ("localhost", "0.0.0.0"),
            ("LOCALHOST.", "127.0.0.1"),
            ("127.0.0.1", "localhost"),
            ("10.0.0.1", "10.0.0.1"),
            ("pod-1", "pod-1"),
        ] {
            assert!(leads_to(host, own, None), "{host} {own}");
        }
        // An engine on the loopback beside a proxy on the machine's address is not that proxy.
        for (host, own) in [
            ("127.0.0.1", "10.0.0.1"),
            ("127.0.0.2", "127.0.0.1"),
            ("localhost", "10.0.0.1"),
            ("10.0.0.1", "0.0.0.0"),
            ("10.0.0.2", "10.0.0.1"),
            ("pod-2", "pod-1"),
            ("pod-1", "0.0.0.0"),
        ] {
            assert!(!leads_to(host, own, None), "{host} {own}");
        }
        let pod = ip("10.0.0.1");
        assert!(leads_to("10.0.0.1", "0.0.0.0", pod) && !leads_to("10.0.0.2", "0.0.0.0", pod));
    }
}
