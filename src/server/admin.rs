//! The admin API: instances added, drained, resumed and removed at run time.
//!
//! | request | body | answers |
//! |---|---|---|
//! | `GET /admin/instances` | | 200, the list as in `/status` |
//! | `POST /admin/instances` | `{"role":"decode","address":"10.0.0.3:8200"}` | 200; 409: there, by any name |
//! | `POST /admin/instances/drain` | the same | 200: no new requests; 404 if unknown |
//! | `POST /admin/instances/resume` | the same | 200: takes requests again |
//! | `DELETE /admin/instances` | the same | 200: out of the list; what runs on it runs to its end |
//!
//! A new instance may have a `"weight"` (1.0), a `"model"` (whatever it says it serves) and a `"side_port"` (see
//! `configs/reference.yaml`).
//!
//! All need the key (`admin_api_key`, or the variable `ADMIN_API_KEY`) as `X-Api-Key` or as a bearer
//! token: 401 without, 403 when no key is configured at all.

use serde::Deserialize;

use super::Shared;
use super::surface::AdminPath;
use crate::cluster::change::{Change, Refused};
use crate::cluster::names::{resolve, resolve_aside};
use crate::cluster::{Cluster, Instance, literal};
use crate::config::{Address, InstanceConfig, Role, Secret};
use crate::error::{Error, Kind, Stage};
use crate::exchange::Request;
use crate::handshake;
use crate::log;
use crate::net::stream::Target;
use crate::wire::head::{Method, Name};
use crate::wire::openai::error_body;

/// What is asked of the control thread.
#[derive(Debug, Clone)]
pub enum Ask {
    List,
    Change(Change),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    role: String,
    address: String,
    weight: Option<f64>,
    model: Option<String>,
    side_port: Option<u16>,
}

/// Is this request allowed, and what does it ask?
pub fn read(request: &Request, path: AdminPath, key: Option<&Secret>) -> Result<Ask, Error> {
    authorize(request, key)?;
    let method = request.head.method;
    if path == AdminPath::Instances && matches!(method, Method::Get | Method::Head) {
        return Ok(Ask::List);
    }
    let bad = |what: String| Error::new(Kind::BadRequest, Stage::Body, what);
    let body: Body = serde_json::from_slice(request.body()).map_err(|e| {
        bad(format!(
            "the body must be {{\"role\":..,\"address\":..}}: {e}"
        ))
    })?;
    let role = Role::ALL
        .into_iter()
        .find(|role| role.name() == body.role)
        .ok_or_else(|| {
            bad(format!(
                "role '{}' is none of encode, prefill, decode, aggregated",
                body.role
            ))
        })?;
    let address = Address::parse_url(&body.address).map_err(bad)?;
    let weight = body.weight.unwrap_or(1.0);
    if !(weight.is_finite() && weight > 0.0) {
        return Err(bad("weight must be above 0".into()));
    }
    Ok(Ask::Change(match (path, method) {
        (AdminPath::Drain, _) => Change::Drain(role, address),
        (AdminPath::Resume, _) => Change::Resume(role, address),
        (AdminPath::Instances, Method::Delete) => Change::Remove(role, address),
        (AdminPath::Instances, _) => Change::Add(InstanceConfig {
            weight,
            model: body.model.unwrap_or_default(),
            side_port: body.side_port,
            ..InstanceConfig::new(address, role)
        }),
    }))
}

fn authorize(request: &Request, key: Option<&Secret>) -> Result<(), Error> {
    let Some(key) = key else {
        let what = "the admin API is off: set admin_api_key, or the variable ADMIN_API_KEY";
        return Err(Error::new(Kind::Forbidden, Stage::Body, what));
    };
    let head = request.head_bytes();
    let bearer = request.head.fields.find(head, Name::Authorization);
    let bearer = bearer.and_then(|v| v.strip_prefix(b"Bearer "));
    let given = request
        .head
        .fields
        .get(head, "x-api-key")
        .or(bearer)
        .unwrap_or_default();
    if same(given, key.0.as_bytes()) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unauthorized,
        Stage::Body,
        "this needs the admin key, as X-Api-Key",
    ))
}

/// Compares in a time that does not tell how much is right.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = b
        .iter()
        .enumerate()
        .fold(a.len() ^ b.len(), |differ, (i, byte)| {
            differ | usize::from(a.get(i).copied().unwrap_or(0) ^ byte)
        });
    differ == 0
}

/// Carries it out, on the control thread. Status and JSON body.
pub async fn carry_out(shared: &Shared, ask: Ask) -> (u16, Vec<u8>) {
    let change = match ask {
        Ask::List => return (200, super::status::instances(shared)),
        Ask::Change(change) => change,
    };
    let found = match unnamed(&change) {
        Some(address) => vec![(address.clone(), resolve_aside(address).await)],
        None => Vec::new(),
    };
    let refused = match apply_found(shared, std::slice::from_ref(&change), &found) {
        Ok(()) => {
            log::warning(|| format!("admin: {change}"));
            return (200, super::status::instances(shared));
        }
        Err(refused) => refused,
    };
    let status = match refused {
        Refused::Exists(_) => 409,
        Refused::Unknown(_) => 404,
        Refused::Unused(..) => 400,
    };
    let body = error_body(&refused.to_string(), "invalid_request_error", status);
    (status, body)
}

/// The address that this change brings, if it has to be looked up.
fn unnamed(change: &Change) -> Option<&Address> {
    match change {
        Change::Add(one) | Change::Put(one) if literal(&one.address).is_empty() => {
            Some(&one.address)
        }
        _ => None,
    }
}

/// Applies all of them and publishes the result, or none. Looks names up, and waits for that.
pub fn apply(shared: &Shared, changes: &[Change]) -> Result<(), Refused> {
    let names = changes.iter().filter_map(unnamed);
    // Before the turn is taken: whoever waits for it must not wait for DNS.
    let found: Vec<_> = names.map(|name| (name.clone(), resolve(name))).collect();
    apply_found(shared, changes, &found)
}

/// The same, once it is known where the names are.
pub fn apply_found(
    shared: &Shared,
    changes: &[Change],
    found: &[(Address, Vec<Target>)],
) -> Result<(), Refused> {
    let breaker = &shared.config.get().circuit_breaker;
    // One writer at a time: the admin API runs on the control thread, a reload on the main one.
    let _turn = shared
        .changing
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut next: Option<Cluster> = None;
    for change in changes {
        let before = shared.cluster.get();
        let before = next.as_ref().unwrap_or(&before);
        if let Change::Add(one) = change {
            addable(shared, before, one, found)?;
        }
        next = Some(before.after(change, breaker, &shared.metrics)?);
    }
    if let Some(next) = next {
        for instance in next.instances.iter().filter(|i| i.targets.get().is_empty()) {
            // What is not found now is looked up again by the names' own thread.
            if let Some((_, targets)) = found.iter().find(|(name, _)| *name == instance.address) {
                instance.targets.publish(targets.clone());
            }
        }
        super::prepare(&shared.config.get(), &next);
        if let Err(why) = shared.hosts.prepare(&shared.config.get(), &next) {
            crate::log::error(|| format!("engines behind TLS cannot be reached: {why}"));
        }
        shared.cluster.publish(next);
    }
    Ok(())
}

/// Would it be of use, and is it a new engine? (By its place: it may be in the list by another name.)
fn addable(
    shared: &Shared,
    cluster: &Cluster,
    one: &InstanceConfig,
    found: &[(Address, Vec<Target>)],
) -> Result<(), Refused> {
    let name = shared.handshake_name;
    let of_row = handshake::find(name).map_or(&[][..], |spec| spec.needs);
    let needed = shared.needs.contains(&one.role) || of_row.contains(&one.role);
    if one.role != Role::Aggregated && !needed {
        return Err(Refused::Unused(one.role, name));
    }
    let mut targets = literal(&one.address);
    if let Some((_, looked_up)) = found.iter().find(|(name, _)| *name == one.address) {
        targets.extend_from_slice(looked_up);
    }
    let same = |other: &&std::sync::Arc<Instance>| {
        let theirs = other.targets.get();
        // Behind one address there may be several, told apart by their prefixes.
        other.address.prefix() == one.address.prefix()
            && theirs.iter().any(|target| targets.contains(target))
    };
    match cluster.instances.iter().find(same) {
        Some(other) if other.address == one.address => Err(Refused::Exists(format!(
            "{} {}",
            other.role.name(),
            other.name
        ))),
        Some(other) => {
            let (role, name) = (other.role.name(), &other.name);
            Err(Refused::Exists(format!(
                "{} (as {role} {name})",
                one.address
            )))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_compare_whole() {
        assert!(super::same(b"secret", b"secret"));
        for wrong in ["", "s", "secre", "secreT", "secrets"] {
            assert!(!super::same(wrong.as_bytes(), b"secret"), "{wrong}");
        }
    }
}
