//! `/instances/add` and `/instances/remove`: engines that come and go by hand.
//!
//! Adding asks the engine for its models first. Removing drains: no new requests go there, and when the
//! last one has ended it is out of the list. What does not end in time stays, and takes requests again:
//! whoever asked was told so, and a half-removed instance would be lost capacity that nobody sees.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::change::{Change, Refused};
use crate::cluster::names::resolve_aside;
use crate::cluster::{Cluster, Health, Instance, fetch};
use crate::config::{Address, Config, InstanceConfig, Role};
use crate::exchange::Request;
use crate::exchange::shape::{self, BAD, SERVER};
use crate::log;
use crate::net::stream::Target;
use crate::server::{Shared, admin};

/// How long an engine may take to say what it serves.
const VALIDATION: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A role and where.
#[derive(Debug, Clone)]
pub struct Place {
    pub role: Role,
    pub address: Address,
}

#[derive(Debug, Clone)]
pub struct Removal {
    pub place: Place,
    pub limit: Duration,
}

/// A status and a body.
pub type Said = (u16, Vec<u8>);

pub fn bad(message: &str) -> Said {
    (400, shape::object(message, BAD))
}

/// May this request change anything? `Err`: what it is told.
pub fn authorize(request: &Request, config: &Config) -> Result<(), Said> {
    let head = request.head_bytes();
    let Some(given) = request.head.fields.get(head, "x-api-key") else {
        let missing = br#"{"detail":[{"type":"missing","loc":["header","x-api-key"],"msg":"Field required","input":null}]}"#;
        return Err((422, missing.to_vec()));
    };
    let key = config
        .admin_api_key
        .as_ref()
        .filter(|key| !key.0.is_empty());
    let Some(key) = key else {
        return Err((500, shape::object("Server configuration error", SERVER)));
    };
    match admin::same(given, key.0.as_bytes()) {
        true => Ok(()),
        false => Err((403, shape::object("Forbidden: Invalid API Key", BAD))),
    }
}

/// `{"type":"decode","instance":"10.0.0.3:8200"}`
pub fn addition(body: &[u8]) -> Result<Place, Said> {
    let (role, value) = role(body)?;
    let text = value.get("instance").and_then(Value::as_str);
    let address = address(text.unwrap_or_default())?;
    Ok(Place { role, address })
}

/// The same, and perhaps `"timeout_seconds":60`.
pub fn removal(body: &[u8]) -> Result<Removal, Said> {
    let (role, value) = role(body)?;
    let text = value.get("instance").and_then(Value::as_str);
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Err(bad("Invalid instance"));
    };
    let limit = limit(&value)?;
    // What is no address is not in the list.
    let address = Address::parse(text).map_err(|_| not_found())?;
    let place = Place { role, address };
    Ok(Removal { place, limit })
}

fn role(body: &[u8]) -> Result<(Role, Value), Said> {
    let value: Value = serde_json::from_slice(body).map_err(|e| bad(&e.to_string()))?;
    let role = match value.get("type").and_then(Value::as_str) {
        Some("prefill") => Role::Prefill,
        Some("decode") => Role::Decode,
        Some("aggregated" | "dual") => Role::Aggregated,
        _ => return Err(bad("Invalid instance type")),
    };
    Ok((role, value))
}

fn not_found() -> Said {
    (404, shape::object("Instance not found", BAD))
}

/// The original takes IPv4 and `localhost` only; names and `[v6]:port` are good here as well.
fn address(text: &str) -> Result<Address, Said> {
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        return Err(bad("Invalid instance format"));
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err(bad("Invalid instance format"));
    }
    let port: Result<i64, _> = port.parse();
    match (port, Address::parse(text)) {
        (Ok(port), _) if !(1..=65_535).contains(&port) => Err(bad("Invalid port number")),
        (Ok(_), Ok(address @ Address::Tcp { .. })) => Ok(address),
        _ => Err(bad("Invalid instance address")),
    }
}

/// How long a removal may wait.
fn limit(body: &Value) -> Result<Duration, Said> {
    let seconds = match body.get("timeout_seconds") {
        None => Some(60.0),
        Some(value) => value.as_f64(),
    };
    seconds
        .filter(|s| (0.0..=3600.0).contains(s))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| bad("timeout_seconds must be between 0 and 3600"))
}

/// The models that clients are told of: the one of a single-model config, else all that instances serve.
pub fn models(config: &Config, cluster: &Cluster) -> BTreeSet<Arc<str>> {
    let mut models = BTreeSet::new();
    if !config.model.is_empty() {
        models.insert(Arc::from(config.model.as_str()));
        if !config.models.strict {
            return models;
        }
    }
    models.extend(cluster.instances.iter().filter_map(|one| one.model()));
    models
}

pub async fn add(shared: &Shared, place: Place) -> Said {
    let config = shared.config.get();
    let Place { role, address } = place;
    let name = address.to_string();
    let known = models(&config, &shared.cluster.get());
    let targets = resolve_aside(&address).await;
    let Some(model) = served(&config, &address, &targets).await else {
        return bad("Instance validation failed");
    };
    if !known.is_empty() && !known.contains(&*model) {
        log::warning(|| format!("{name} is not added: it serves {model}, which is not ours"));
        return bad("Instance validation failed");
    }
    let one = InstanceConfig {
        model,
        ..InstanceConfig::new(address.clone(), role)
    };
    match admin::apply_found(shared, &[Change::Add(one)], &[(address, targets)]) {
        Ok(()) => {
            log::warning(|| format!("admin: {} {name} is added", role.name()));
            // It has just answered: until its first probe it is not as good as gone.
            let cluster = shared.cluster.get();
            if let Some(one) = cluster.instances.iter().find(|one| *one.name == *name) {
                one.note_found(Health::Healthy);
            }
            shared.backends.note(&cluster);
            message(format!("Added {name} to {}_instances.", role.name()))
        }
        Err(refused) => {
            log::warning(|| format!("{name} is not added: {refused}"));
            match refused {
                Refused::Unused(..) => bad("Invalid instance type"),
                _ => bad("Instance already exists"),
            }
        }
    }
}

fn message(text: String) -> Said {
    let body = serde_json::json!({ "message": text });
    (200, body.to_string().into_bytes())
}

/// The first model that an engine names.
async fn served(config: &Config, address: &Address, targets: &[Target]) -> Option<String> {
    let name = address.to_string();
    let ask = fetch::Ask {
        targets,
        host: &address.host_port(),
        prefix: address.prefix(),
        path: "/v1/models",
        trust: None,
        key: config.openai_api_key.as_ref().map(|key| key.0.as_str()),
    };
    let answer = fetch::get(&ask, VALIDATION).await;
    let answer = answer
        .map_err(|why| log::warning(|| format!("{name} is not added: {why}")))
        .ok()?;
    if answer.status != 200 {
        log::warning(|| format!("{name} is not added: /v1/models answers {}", answer.status));
        return None;
    }
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    body["data"][0]["id"].as_str().map(str::to_owned)
}

pub async fn remove(shared: &Shared, removal: Removal) -> Said {
    let Removal { place, limit } = removal;
    let Place { role, address } = place;
    let name = address.to_string();
    let named: Vec<Arc<Instance>> = {
        let cluster = shared.cluster.get();
        let all = cluster
            .instances
            .iter()
            .filter(|one| one.address == address);
        all.cloned().collect()
    };
    // A list may hold one address twice; it goes as one.
    let going: Vec<_> = named.iter().filter(|one| one.role == role).collect();
    if going.is_empty() {
        return match named.first() {
            None => not_found(),
            Some(other) => bad(&format!(
                "Instance '{name}' has role '{}', not '{}'.",
                other.role.name(),
                role.name()
            )),
        };
    }
    // Ends with this removal, however it ends; another one of the same instances has its own.
    let _held: Vec<_> = going.iter().map(|one| one.removal()).collect();
    let deadline = Instant::now() + limit;
    loop {
        let left: i64 = going.iter().map(|one| one.load.read().requests).sum();
        if left <= 0 {
            break;
        }
        let now = Instant::now();
        if now >= deadline {
            let what = format!("Timed out draining {name}; {left} requests remain.");
            log::warning(|| format!("admin: {what}"));
            return (504, shape::object(&what, SERVER));
        }
        monoio::time::sleep(LOOK_EVERY.min(deadline - now)).await;
    }
    for one in &going {
        // These and no others: the address may have been added again meanwhile. (Unknown: somebody else has
        // removed it; it is gone, as was asked.)
        let _ = admin::apply(shared, &[Change::RemoveOne(one.index)]);
    }
    log::warning(|| format!("admin: {} {name} is removed", role.name()));
    message(format!("Removed {name} from {}_instances.", role.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        let (status, body) = addition(body.as_bytes()).unwrap_err();
        assert_eq!(status, 400);
        let value: Value = serde_json::from_slice(&body).unwrap();
        value["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn each_mistake_has_its_own_words() {
        for (body, words) in [
            (
                r#"{"type":"x","instance":"10.0.0.1:1"}"#,
                "Invalid instance type",
            ),
            (r#"{"instance":"10.0.0.1:1"}"#, "Invalid instance type"),
            ("[]", "Invalid instance type"),
            (r#"{"type":"decode"}"#, "Invalid instance format"),
            (
                r#"{"type":"decode","instance":5}"#,
                "Invalid instance format",
            ),
            (
                r#"{"type":"decode","instance":"a"}"#,
                "Invalid instance format",
            ),
            (
                r#"{"type":"decode","instance":"1:2:3"}"#,
                "Invalid instance format",
            ),
            (
                r#"{"type":"decode","instance":"1.2.3:1"}"#,
                "Invalid instance address",
            ),
            (
                r#"{"type":"decode","instance":"unix:7"}"#,
                "Invalid instance address",
            ),
            (
                r#"{"type":"decode","instance":"10.0.0.1:0"}"#,
                "Invalid port number",
            ),
            (
                r#"{"type":"decode","instance":"10.0.0.1:x"}"#,
                "Invalid instance address",
            ),
            (
                r#"{"type":"decode","instance":"10.0.0.1:70000"}"#,
                "Invalid port number",
            ),
        ] {
            assert_eq!(refused(body), words, "{body}");
        }
        assert!(!refused("{").is_empty());
        for good in ["10.0.0.1:1", "localhost:1", "[::1]:1", "engine-0.svc:1"] {
            let body = format!(r#"{{"type":"dual","instance":"{good}"}}"#);
            let place = addition(body.as_bytes()).unwrap();
            assert_eq!(place.role, Role::Aggregated);
            assert_eq!(place.address.to_string(), good);
        }
    }

    #[test]
    fn a_removal_waits_for_at_most_an_hour() {
        let of = |text: &str| limit(&serde_json::from_str(text).unwrap()).map_err(|said| said.0);
        assert_eq!(of("{}"), Ok(Duration::from_secs(60)));
        assert_eq!(
            of(r#"{"timeout_seconds":0.5}"#),
            Ok(Duration::from_millis(500))
        );
        for bad in ["-1", "3601", "\"5\"", "null", "true"] {
            assert_eq!(
                of(&format!(r#"{{"timeout_seconds":{bad}}}"#)),
                Err(400),
                "{bad}"
            );
        }
    }
}
