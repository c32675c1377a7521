//! The pods of an InferencePool, from the Kubernetes API: a list, then a watch from where the list was.
//!
//! * **For:** who may be named in a header, by address, by name, and by the ports that the pool serves on.
//! * **Must never:** forget what it knew because the API is away for a while, nor admit anybody before it knows.
//! * **To extend:** another resource is another path and another shape in `object`.
//!
//! A task of the control thread: there is one watch, and nobody waits for it.

mod client;
mod object;

use std::collections::{BTreeMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use crate::config::sidecar::Pool;
use crate::log;
use crate::shared::Published;
use client::{Client, Said};
use object::{Change, List, Pod, PoolObject};

/// Whom an InferencePool admits.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Members {
    /// Addresses and names of its pods.
    pub hosts: HashSet<String>,
    /// The ports that its pods serve on; empty: it does not say.
    pub ports: Vec<u16>,
}

impl Members {
    pub fn admit(&self, host: &str, port: u16) -> bool {
        self.hosts.contains(host) && (self.ports.is_empty() || self.ports.contains(&port))
    }
}

/// A watch lasts this long; then the pool itself is read again.
const WATCH_S: u32 = 30;
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// Why a round is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The pool selects other pods.
    Changed,
    /// The API's memory begins later than what we know: all is read again. At the very first watch behind a list
    /// that is a fault of the API's, and it will say so again.
    TooOld { at_once: bool },
}

/// Follows the pool for as long as somebody reads `members`.
pub async fn follow(pool: Pool, members: Weak<Published<Members>>) {
    let mut wait = AGAIN_FIRST;
    while members.strong_count() > 0 {
        let why = match round(&pool, &members).await {
            Ok(Over::Changed | Over::TooOld { at_once: false }) => {
                wait = AGAIN_FIRST;
                continue;
            }
            Ok(Over::TooOld { at_once: true }) => "a list is too old as soon as it is read".into(),
            Err(why) => why,
        };
        log::limited("inference_pool", log::Level::Warning, || {
            let (namespace, name) = (&pool.namespace, &pool.name);
            format!("InferencePool {namespace}/{name} cannot be followed: {why}")
        });
        monoio::time::sleep(wait).await;
        wait = (2 * wait).min(AGAIN_MAX);
    }
}

/// One list, and watches from there until the list is too old or the pool selects other pods.
async fn round(pool: &Pool, members: &Weak<Published<Members>>) -> Result<Over, String> {
    let client = Client::new(pool)?;
    let selected: PoolObject = client.get(&pool_path(pool)).await?;
    let path = pods_path(pool, &selected)?;
    let list: List = client.get(&path).await?;
    let mut version = list.metadata.resource_version.clone();
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for pod in list.items {
        pods.insert(pod.metadata.name.clone(), pod);
    }
    let mut shown = Members::default();
    let mut at_once = true;
    loop {
        show(&pods, &selected, members, &mut shown);
        let watch = format!(
            "{path}&watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_S}&resourceVersion={version}"
        );
        let mut too_old = false;
        let mut line = |line: &[u8]| {
            let Ok(change) = serde_json::from_slice::<Change>(line) else {
                return true;
            };
            if change.kind == "ERROR" {
                too_old = true;
                return false;
            }
            at_once = false;
            if let Ok(pod) = serde_json::from_str::<Pod>(change.object.get()) {
                version = pod.metadata.resource_version.clone();
                match change.kind.as_str() {
                    "DELETED" => _ = pods.remove(&pod.metadata.name),
                    "ADDED" | "MODIFIED" => _ = pods.insert(pod.metadata.name.clone(), pod),
                    _ => {}
                }
                show(&pods, &selected, members, &mut shown);
            }
            members.strong_count() > 0
        };
        let said = client.watch(&watch, &mut line).await?;
        // 410, as a line or as the status of a watch.
        if too_old || said == Said::Gone {
            return Ok(Over::TooOld { at_once });
        }
        at_once = false;
        let now: PoolObject = client.get(&pool_path(pool)).await?;
        if now != selected || members.strong_count() == 0 {
            return Ok(Over::Changed);
        }
    }
}

fn show(
    pods: &BTreeMap<String, Pod>,
    selected: &PoolObject,
    members: &Weak<Published<Members>>,
    shown: &mut Members,
) {
    let hosts = pods.values().flat_map(Pod::hosts).collect();
    let now = Members {
        hosts,
        ports: selected.ports(),
    };
    if let Some(members) = members.upgrade()
        && now != *shown
    {
        *shown = now.clone();
        members.publish(now);
    }
}

fn pool_path(pool: &Pool) -> String {
    let version = match pool.group.as_str() {
        "inference.networking.x-k8s.io" => "v1alpha2",
        _ => "v1",
    };
    let Pool {
        group,
        namespace,
        name,
        ..
    } = pool;
    format!("/apis/{group}/{version}/namespaces/{namespace}/inferencepools/{name}")
}

fn pods_path(pool: &Pool, selected: &PoolObject) -> Result<String, String> {
    let labels = selected.labels()?;
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let namespace = &pool.namespace;
    let selector = client::escape(&labels.join(","));
    Ok(format!(
        "/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
    ))
}
