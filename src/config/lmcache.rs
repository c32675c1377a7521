//! The `lmcache:` section: how prefill tells us that KV has arrived, and where it has to put it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::wire::lmcache::Receiver;

use super::reader::Report;
use super::{Address, Config, FirstTokenSource, Role};

#[derive(Debug, Clone, PartialEq)]
pub struct Lmcache {
    /// Default `notified`.
    pub variant: Variant,
    /// Where notices are taken: an IP, `localhost` or a DNS name. Default `127.0.0.1`.
    pub host: String,
    /// Default 8500. (0 is allowed through the API for tests: any free port.)
    pub port: u16,
    /// From P's answer until all notices have come. Default 10 s.
    pub notice_timeout: Duration,
    /// What then. Default `recompute`.
    pub on_timeout: OnTimeout,
    /// A prompt of fewer tokens is not transferred by LMCache, so that nothing is waited for. Default 16, a
    /// block of vLLM's.
    pub short_prompt: u32,
    /// Who makes the first token, where a request allows it. Default `prefill`.
    pub first_token: FirstTokenSource,
    /// Default `auto`.
    pub chat: Chat,
    /// D is told the request's id among the notices (`lmcache.pd_handoff_id`). Default off.
    pub handoff_id: bool,
    /// Requests with the same value in this header field go to the same instances.
    pub bound_by: Option<String>,
    /// By the decode instance's address.
    pub receivers: BTreeMap<Address, Receiver>,
}

/// Which of LMCache's protocols the engines speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// P is told where D is, and sends a notice per rank when the KV is there.
    Notified,
    /// P only answers with its first token.
    FirstToken,
    /// P only fills a store that it shares with D.
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// D is asked all the same, and computes what it lacks.
    Recompute,
    /// The client gets a 504.
    Error,
}

/// Which path of the engines a chat takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chat {
    /// `native`; `completions` where P has no such path.
    Auto,
    /// The engines' own, so that nothing is lost.
    Native,
    /// P renders it to tokens and prefills those; D gets the chat.
    Render,
    /// As LMCache's own proxy: tokens to both, and D's completion is told as a chat.
    Completions,
}

impl Default for Lmcache {
    fn default() -> Self {
        Lmcache {
            variant: Variant::Notified,
            host: "127.0.0.1".into(),
            port: 8500,
            notice_timeout: Duration::from_secs(10),
            on_timeout: OnTimeout::Recompute,
            short_prompt: 16,
            first_token: FirstTokenSource::Prefill,
            chat: Chat::Auto,
            handoff_id: false,
            bound_by: None,
            receivers: BTreeMap::new(),
        }
    }
}

/// Is it the handshake, or the one behind the encoders?
pub(super) fn used(config: &Config) -> bool {
    super::epd::runs(config, "lmcache")
}

/// What the section and the instances demand of each other. (`key`: where receivers were written.)
pub(super) fn check(config: &Config, key: &str, report: &mut Report) {
    let lmcache = &config.lmcache;
    if !used(config) || lmcache.variant != Variant::Notified {
        return;
    }
    // A mode without its section was said.
    if !report.is_sound("disaggregated_mode") {
        return;
    }
    if !report.is_sound(key) || !report.is_sound("decode") || !report.is_sound("instances") {
        return;
    }
    for instance in config.instances.iter().filter(|i| i.role == Role::Decode) {
        if !lmcache.receivers.contains_key(&instance.address) {
            let message = format!(
                "decode {} has no receiver: prefill would not know where to put its KV",
                instance.address
            );
            let fix = format!(
                "write {key}: {{\"{}\": {{host: HOST, init_ports: [8300], alloc_ports: [8400]}}}}",
                instance.address
            );
            report.problem(key, message, fix);
        }
    }
    for (address, receiver) in &lmcache.receivers {
        let place = format!("{key}.{address}");
        if let Some(why) = fault(receiver) {
            report.problem(&place, format!("receiver of {address}: {why}"), "");
        }
    }
    let all: Vec<(&Address, &Receiver)> = lmcache.receivers.iter().collect();
    for (i, (address, receiver)) in all.iter().enumerate() {
        for (other, with) in &all[..i] {
            let shared = ports(receiver).find(|port| ports(with).any(|theirs| theirs == *port));
            let Some(port) = shared.filter(|_| receiver.host == with.host) else {
                continue;
            };
            let message = format!(
                "receivers of {other} and {address} share port {port} of {}: one's KV would go to the other",
                receiver.host
            );
            let fix = "each rank of each decode instance needs ports of its own";
            report.problem(&format!("{key}.{address}"), message, fix);
        }
    }
}

fn ports(receiver: &Receiver) -> impl Iterator<Item = u16> + '_ {
    let lists = [
        &receiver.init_ports,
        &receiver.alloc_ports,
        &receiver.query_ports,
    ];
    lists.into_iter().flatten().copied()
}

/// What is wrong with a receiver by itself.
fn fault(receiver: &Receiver) -> Option<String> {
    let (init, alloc) = (receiver.init_ports.len(), receiver.alloc_ports.len());
    if receiver.host.is_empty() {
        return Some("it needs a host".into());
    }
    if init == 0 || alloc == 0 {
        return Some("init_ports and alloc_ports need a port for each rank".into());
    }
    if init != alloc {
        let why = format!("init_ports has {init} and alloc_ports {alloc}: one of each per rank");
        return Some(why);
    }
    let query = receiver.query_ports.len();
    if query != 0 && query != init {
        return Some(format!(
            "query_ports has {query}, but there are {init} ranks"
        ));
    }
    let all: Vec<u16> = ports(receiver).collect();
    let twice = all
        .iter()
        .enumerate()
        .find(|(i, port)| all[..*i].contains(port));
    twice.map(|(_, port)| format!("port {port} is there twice"))
}
