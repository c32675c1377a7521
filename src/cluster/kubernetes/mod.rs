//! The pods of an InferencePool, from the Kubernetes API: a list, then a watch from where the list was.
//!
//! * **For:** who may be named in a header, by address, by name, and by the ports that the pool serves on.
//! * **Must never:** forget what it knew because the API is away for a while, nor admit anybody before it knows.
//! * **To extend:** another resource is another path and another shape in `object`.
//!
//! A thread of its own, with blocking calls: there is one watch, and nobody waits for it.

mod client;
mod object;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, Weak};
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

/// Follows the pool for as long as somebody reads `members`.
pub fn follow(pool: Pool, members: &Arc<Published<Members>>) -> io::Result<()> {
    let weak = Arc::downgrade(members);
    let run = move || {
        let mut wait = AGAIN_FIRST;
        while weak.strong_count() > 0 {
            match round(&pool, &weak) {
                Ok(()) => wait = AGAIN_FIRST,
                Err(why) => {
                    log::limited("inference_pool", log::Level::Warning, || {
                        let (namespace, name) = (&pool.namespace, &pool.name);
                        format!("InferencePool {namespace}/{name} cannot be followed: {why}")
                    });
                    std::thread::sleep(wait);
                    wait = (2 * wait).min(AGAIN_MAX);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("inference-pool".into())
        .spawn(run)
        .map(|_| ())
}

/// One list, and watches from there until the list is too old or the pool selects other pods.
fn round(pool: &Pool, members: &Weak<Published<Members>>) -> Result<(), String> {
    let client = Client::new(pool)?;
    let selected: PoolObject = client.get(&pool_path(pool))?;
    let path = pods_path(pool, &selected)?;
    let list: List = client.get(&path)?;
    let mut version = list.metadata.resource_version.clone();
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for pod in list.items {
        pods.insert(pod.metadata.name.clone(), pod);
    }
    let mut shown = Members::default();
    loop {
        show(&pods, &selected, members, &mut shown);
        let watch = format!(
            "{path}&watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_S}&resourceVersion={version}"
        );
        let mut too_old = false;
        let said = client.watch(&watch, &mut |line| {
            let Ok(change) = serde_json::from_slice::<Change>(line) else {
                return true;
            };
            if change.kind == "ERROR" {
                too_old = true;
                return false;
            }
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
        })?;
        if members.strong_count() == 0 || too_old || said == Said::Gone {
            // 410: what it remembers begins later than what we know.
            return Ok(());
        }
        let now: PoolObject = client.get(&pool_path(pool))?;
        if now != selected {
            return Ok(());
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
