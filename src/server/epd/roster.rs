//! Dynamic registration: `/instances`, and the forgetting of those that stay away.
//!
//! A new instance is used at once, probed like any other, left out while its probes fail, and used again at
//! the first good one. After `epd.evicted_ttl` without one it is out of the list.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::Said;
use crate::cluster::change::Change;
use crate::cluster::names::resolve_aside;
use crate::cluster::{Cluster, Health, Instance};
use crate::config::epd::Consumer;
use crate::config::{Address, Config, InstanceConfig, Role};
use crate::exchange::{Request, shape};
use crate::log;
use crate::server::{Shared, admin};
use crate::wire::json::put_string;

const LOOK_EVERY: Duration = Duration::from_millis(200);
const RANKS_MAX: u32 = 1024;

/// The old names of roles, in the order in which the page lists them.
const ROLES: [(&str, Role); 4] = [
    ("encode", Role::Encode),
    ("prefill", Role::Prefill),
    ("decode", Role::Decode),
    ("prefill_decode", Role::Aggregated),
];

fn refuse(status: u16, why: impl AsRef<str>) -> Said {
    (status, shape::detail(why.as_ref()))
}

/// May this request change anything?
pub fn authorize(request: &Request, config: &Config) -> Result<(), Said> {
    let given = request.head.fields.get(request.head_bytes(), "x-api-key");
    let right = config.admin_api_key.as_ref().zip(given);
    match right.is_some_and(|(key, given)| admin::same(given, key.0.as_bytes())) {
        true => Ok(()),
        false => Err(refuse(403, "Invalid admin API key")),
    }
}

#[derive(Deserialize)]
struct Body {
    role: String,
    url: String,
    #[serde(default)]
    ec_zmq_addrs: Option<Vec<String>>,
    #[serde(default)]
    dp_size: Option<u32>,
}

/// `{"role":"decode","url":"http://10.0.0.3:8200"}`
pub fn addition(body: &[u8]) -> Result<InstanceConfig, Said> {
    let body: Body = serde_json::from_slice(body).map_err(|e| refuse(422, e.to_string()))?;
    let role = ROLES.iter().find(|(name, _)| *name == body.role);
    let Some((_, role)) = role else {
        let names = ROLES.map(|(name, _)| format!("'{name}'")).join(", ");
        return Err(refuse(422, format!("role must be one of {names}")));
    };
    let address = url(&body.url)?;
    let dp_size = body.dp_size.unwrap_or(1);
    if !(1..=RANKS_MAX).contains(&dp_size) {
        return Err(refuse(
            422,
            format!("dp_size must be between 1 and {RANKS_MAX}"),
        ));
    }
    let addresses = body.ec_zmq_addrs.unwrap_or_default();
    if !addresses.is_empty() && matches!(role, Role::Encode | Role::Decode) {
        return Err(refuse(
            400,
            format!("a {} instance takes no ec_zmq_addrs", body.role),
        ));
    }
    if !addresses.is_empty() && addresses.len() != dp_size as usize {
        return Err(refuse(
            422,
            "ec_zmq_addrs must have one address for each of dp_size",
        ));
    }
    Ok(InstanceConfig {
        consumer: Consumer { dp_size, addresses },
        ..InstanceConfig::new(address, *role)
    })
}

fn url(text: &str) -> Result<Address, Said> {
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(refuse(422, "url must begin with http:// or https://"));
    }
    Address::parse_url(text).map_err(|why| refuse(422, why))
}

/// `?url=..`, percent-encoded or not.
pub fn removal(target: &str) -> Result<Address, Said> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let given = query.split('&').find_map(|pair| pair.strip_prefix("url="));
    let Some(given) = given else {
        return Err(refuse(
            422,
            "url is missing: DELETE /instances?url=http://host:port",
        ));
    };
    url(&decoded(given))
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let hex = hex.filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let value = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(value.unwrap_or(bytes[at]));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// As it would be registered.
fn shown(instance: &Instance) -> String {
    match &instance.address {
        plain @ Address::Tcp { .. } => format!("http://{plain}"),
        other => other.to_string(),
    }
}

/// `{"encode":{"live":[..],"evicted":[..]},..}`
pub fn list(cluster: &Cluster) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, role) in ROLES {
        out.push(if out.is_empty() { b'{' } else { b',' });
        out.extend_from_slice(format!("\"{name}\":").as_bytes());
        for (open, evicted) in [(&b"{\"live\":["[..], false), (b",\"evicted\":[", true)] {
            out.extend_from_slice(open);
            let here = |one: &&Arc<Instance>| (one.health() == Health::Unhealthy) == evicted;
            for (n, one) in cluster.role(role).iter().filter(here).enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                put_string(&mut out, &shown(one));
            }
            out.push(b']');
        }
        out.push(b'}');
    }
    out.push(b'}');
    out
}

pub async fn add(shared: &Shared, one: InstanceConfig) -> Said {
    let found = vec![(one.address.clone(), resolve_aside(&one.address).await)];
    let cluster = shared.cluster.get();
    let mut changes = Vec::new();
    if let Some(known) = cluster.instances.iter().find(|i| i.address == one.address) {
        if known.role != one.role {
            let what = format!("{} is registered as {}", shown(known), name(known.role));
            return refuse(409, what);
        }
        if known.configured_as(&one) {
            return (200, br#"{"registered":false}"#.to_vec());
        }
        changes.push(Change::RemoveOne(known.index));
    }
    let whole = one.role == Role::Aggregated;
    let split = |role| matches!(role, Role::Prefill | Role::Decode);
    let other = |i: &&Arc<Instance>| match whole {
        true => split(i.role),
        false => split(one.role) && i.role == Role::Aggregated,
    };
    if let Some(other) = cluster.instances.iter().find(other) {
        let what = "prefill_decode does not mix with prefill and decode";
        return refuse(
            409,
            format!("{what}: {} is {}", shown(other), name(other.role)),
        );
    }
    let refreshed = !changes.is_empty();
    let said = format!("{} {}", name(one.role), one.address);
    changes.push(Change::Add(one));
    match admin::apply_found(shared, &changes, &found) {
        Ok(()) => {
            log::warning(|| format!("instances: {said} is registered"));
            let new = if refreshed { "false" } else { "true" };
            (200, format!("{{\"registered\":{new}}}").into_bytes())
        }
        Err(refused) => refuse(409, refused.to_string()),
    }
}

fn name(role: Role) -> &'static str {
    let row = ROLES.iter().find(|(_, known)| *known == role);
    row.map_or("", |(name, _)| name)
}

pub fn remove(shared: &Shared, address: &Address) -> Said {
    let cluster = shared.cluster.get();
    let going = cluster
        .instances
        .iter()
        .filter(|one| one.address == *address);
    let changes: Vec<Change> = going.map(|one| Change::RemoveOne(one.index)).collect();
    let removed = !changes.is_empty() && admin::apply(shared, &changes).is_ok();
    if removed {
        log::warning(|| format!("instances: {address} is removed"));
    }
    (200, format!("{{\"removed\":{removed}}}").into_bytes())
}

/// Takes those out of the list that have been away for too long.
pub async fn forget(shared: Arc<Shared>) {
    let mut since: HashMap<usize, Instant> = HashMap::new();
    while !shared.draining.load(Ordering::Relaxed) {
        monoio::time::sleep(LOOK_EVERY).await;
        let cluster = shared.cluster.get();
        let away = |one: &&Arc<Instance>| one.health() == Health::Unhealthy;
        since.retain(|index, _| {
            cluster
                .instances
                .iter()
                .filter(away)
                .any(|one| one.index == *index)
        });
        let Some(limit) = shared.config.get().epd.evicted_ttl else {
            continue;
        };
        for one in cluster.instances.iter().filter(away) {
            let since = since.entry(one.index).or_insert_with(Instant::now);
            if since.elapsed() >= limit
                && admin::apply(&shared, &[Change::RemoveOne(one.index)]).is_ok()
            {
                log::warning(|| format!("instances: {} is forgotten", shown(one)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> (u16, String) {
        let (status, body) = addition(body.as_bytes()).unwrap_err();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, value["detail"].as_str().unwrap().to_owned())
    }

    #[test]
    fn each_mistake_is_told() {
        for (body, status, words) in [
            ("{", 422, "EOF"),
            (r#"{"role":"decode"}"#, 422, "url"),
            (
                r#"{"role":"both","url":"http://h:1"}"#,
                422,
                "prefill_decode",
            ),
            (r#"{"role":"decode","url":"h:1"}"#, 422, "http://"),
            (r#"{"role":"decode","url":"http://h:0"}"#, 422, "Port"),
            (
                r#"{"role":"decode","url":"http://h:1","dp_size":0}"#,
                422,
                "dp_size",
            ),
            (
                r#"{"role":"decode","url":"http://h:1","dp_size":"2"}"#,
                422,
                "invalid type",
            ),
            (
                r#"{"role":"decode","url":"http://h:1","ec_zmq_addrs":["a"]}"#,
                400,
                "decode",
            ),
            (
                r#"{"role":"prefill","url":"http://h:1","dp_size":2,"ec_zmq_addrs":["a"]}"#,
                422,
                "one address",
            ),
        ] {
            let (got, said) = refused(body);
            assert_eq!(got, status, "{body}");
            assert!(said.contains(words), "{body}: {said}");
        }
        let body = r#"{"role":"prefill_decode","url":"http://h:1/a/","dp_size":2,"ec_zmq_addrs":["x","y"]}"#;
        let one = addition(body.as_bytes()).unwrap();
        assert_eq!(one.role, Role::Aggregated);
        assert_eq!(one.address.to_string(), "http://h:1/a");
        assert_eq!((one.consumer.dp_size, one.consumer.addresses.len()), (2, 2));
    }

    #[test]
    fn a_removal_names_its_url_in_the_query() {
        for target in [
            "/instances?url=http://h:1/",
            "/instances?a=b&url=http%3A%2F%2Fh%3a1",
        ] {
            assert_eq!(removal(target).unwrap(), Address::tcp("h", 1), "{target}");
        }
        assert!(removal("/instances").is_err() && removal("/instances?url=h%").is_err());
    }
}
