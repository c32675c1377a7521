//! Active health probes: `GET /health` of every instance, on the control thread.
//!
//! monoio-http-client is good enough here, one client per call: its pool hands half-used connections on,
//! so none outlives its probe.

use std::time::Duration;

use monoio_http_client::Client;

use super::{Health, Instance};
use crate::config::HealthCheck;
use crate::log;
use crate::net::stream::Target;

/// How often an instance is probed while it is down, at least.
pub const EVERY_WHILE_DOWN: Duration = Duration::from_secs(1);

/// One probe and what follows from it: for the instance's standing only where checks are on. Takes and
/// returns the number of failures in a row.
pub async fn round(instance: &Instance, check: &HealthCheck, failures: u32) -> u32 {
    let why = match monoio::time::timeout(check.timeout, probe(instance, &check.path)).await {
        Ok(Ok(())) => {
            instance.note_found(Health::Healthy);
            if check.enabled {
                good(instance);
            }
            return 0;
        }
        Ok(Err(why)) => why,
        Err(_) => "no answer in time".to_owned(),
    };
    // One that was never seen is not there; one that was is given a second chance.
    let most = check.failure_threshold;
    if failures + 1 >= most || instance.found() != Health::Healthy {
        instance.note_found(Health::Unhealthy);
    }
    if check.enabled {
        bad(instance, failures + 1 >= most, &why);
    }
    failures + 1
}

fn good(instance: &Instance) {
    let was = instance.health();
    instance.set_health(Health::Healthy);
    let back = instance.breaker.probed();
    if was == Health::Unhealthy || back {
        let (role, name) = (instance.role.name(), &instance.name);
        log::info(|| format!("{role} {name} passes its health check again"));
    }
}

fn bad(instance: &Instance, enough: bool, why: &str) {
    if enough && instance.health() != Health::Unhealthy {
        instance.set_health(Health::Unhealthy);
        let (role, name) = (instance.role.name(), &instance.name);
        log::warning(|| format!("{role} {name} fails its health check: {why}"));
    }
}

/// One probe. Any 2xx is healthy.
pub async fn probe(instance: &Instance, path: &str) -> Result<(), String> {
    let targets = instance.targets.get();
    let target = targets.first().ok_or("its name has no address")?;
    let raw = |path: String| async move {
        let status = raw_status(instance, target, &path).await;
        status.map_err(|e| e.to_string())
    };
    let status = match target {
        // Nor does it know whom to believe.
        Target::Tcp(_) if instance.address.tls() => {
            raw(format!("{}{path}", instance.prefix)).await?
        }
        Target::Tcp(address) => {
            let uri = format!("http://{address}{}{path}", instance.prefix);
            let request = Client::default().get(uri).header("host", &*instance.host);
            request
                .send()
                .await
                .map_err(|e| e.to_string())?
                .status()
                .as_u16()
        }
        // The client crate only dials TCP by URI.
        Target::Unix(_) => raw(path.to_owned()).await?,
    };
    match status {
        200..=299 => Ok(()),
        other => Err(format!("{path} answered {other}")),
    }
}

async fn raw_status(instance: &Instance, target: &Target, path: &str) -> std::io::Result<u16> {
    use crate::net::runtime::Driver;
    use crate::net::stream::Stream;
    use crate::wire::head::{HeadScan, ResponseHead};
    let bad = |what: &str| std::io::Error::other(what.to_owned());
    let mut stream = Stream::connect(target, Driver::Epoll, |_| {}).await?;
    if let Some(trust) = instance.trust.get() {
        let name = instance.address.network().map_or("", |(host, _)| host);
        stream = trust.connect(stream, name).await?;
    }
    let host = &instance.host;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.into_bytes()).await.0?;
    let mut bytes = Vec::with_capacity(16 << 10);
    let mut scan = HeadScan::default();
    loop {
        let (result, back) = stream.read(bytes).await;
        bytes = back;
        let n = result?;
        match scan.advance(&bytes) {
            Ok(Some(end)) => {
                let head = ResponseHead::parse(&bytes[..end]).map_err(|e| bad(e.message()))?;
                return Ok(head.status);
            }
            Ok(None) if n > 0 && bytes.len() < bytes.capacity() => {}
            _ => return Err(bad("no HTTP answer")),
        }
    }
}
