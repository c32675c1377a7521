//! What is read of Kubernetes objects: no more than is needed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub resource_version: String,
}

#[derive(Debug, Deserialize)]
pub struct List {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub items: Vec<Pod>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl Pod {
    /// Its addresses and its name.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = vec![self.metadata.name.clone(), self.status.pod_ip.clone()];
        hosts.extend(self.status.pod_ips.iter().map(|one| one.ip.clone()));
        hosts.retain(|host| !host.is_empty());
        hosts
    }
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub struct Change {
    #[serde(rename = "type")]
    pub kind: String,
    pub object: Box<RawValue>,
}

/// An InferencePool of any version.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PoolObject {
    spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: serde_json::Value,
    #[serde(default)]
    target_ports: Vec<TargetPort>,
    target_port_number: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct TargetPort {
    number: u16,
}

impl PoolObject {
    /// `matchLabels`, or, in the alpha version, the selector itself.
    pub fn labels(&self) -> Result<BTreeMap<String, String>, String> {
        let selector = &self.spec.selector;
        let labels = selector.get("matchLabels").unwrap_or(selector);
        let labels = BTreeMap::deserialize(labels).unwrap_or_default();
        match labels.is_empty() {
            // It would select every pod of the namespace.
            true => Err("its selector has no labels".into()),
            false => Ok(labels),
        }
    }

    pub fn ports(&self) -> Vec<u16> {
        let listed = self.spec.target_ports.iter().map(|port| port.number);
        listed.chain(self.spec.target_port_number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_both_versions_are_read() {
        let stable = r#"{"spec":{"selector":{"matchLabels":{"app":"x"}},"targetPorts":[{"number":8000},{"number":8001}]}}"#;
        let alpha = r#"{"spec":{"selector":{"app":"x"},"targetPortNumber":8000}}"#;
        for (text, ports) in [(stable, &[8000, 8001][..]), (alpha, &[8000])] {
            let pool: PoolObject = serde_json::from_str(text).unwrap();
            assert_eq!(pool.labels().unwrap()["app"], "x");
            assert_eq!(pool.ports(), ports);
        }
        let all: PoolObject = serde_json::from_str(r#"{"spec":{"selector":{}}}"#).unwrap();
        assert!(all.labels().is_err(), "not every pod of the namespace");
    }

    #[test]
    fn pods_are_known_by_name_and_by_every_address() {
        let pod = r#"{"metadata":{"name":"p"},"status":{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}"#;
        let pod: Pod = serde_json::from_str(pod).unwrap();
        assert_eq!(pod.hosts(), ["p", "10.0.0.1", "10.0.0.1", "fd00::1"]);
        let fresh: Pod = serde_json::from_str(r#"{"metadata":{"name":"p"}}"#).unwrap();
        assert_eq!(fresh.hosts(), ["p"]);
    }
}
