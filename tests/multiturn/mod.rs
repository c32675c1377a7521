//! Conversations: what is kept between turns, and that it is never more than a shortcut.

mod answers_never_lose_a_part;
mod dead_stores_never_fail_a_turn;
mod failures_never_cost_more_than_the_reuse;
mod histories_never_mix;
mod processes_never_lose_a_turn;
mod proxies_never_take_twice;
mod real_redis_never_differs;
mod redis;

use std::time::Duration;

use pdrelay::config::Config;
use serde_json::{Value, json};

use crate::support::{Client, Response, Rig, eventually, post_bytes, rig_with};

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

/// Engines that hand KV over in both directions, and answer chats as trained models do.
pub fn engines(p: usize, d: usize) -> Vec<pdsim::EngineOptions> {
    let mut engines = crate::support::engines(p, d);
    for engine in &mut engines {
        engine.bidirectional = true;
        engine.trimmed = true;
        engine.lease = Duration::from_secs(480);
    }
    engines
}

pub fn talk_rig(change: impl FnOnce(&mut Config)) -> Rig {
    rig_with("multiturn", engines(1, 1), change)
}

/// Counted under this outcome.
pub fn conversations(rig: &Rig, outcome: &str) -> f64 {
    rig.metric(&format!(
        "pdrelay_conversations_total{{outcome=\"{outcome}\"}}"
    ))
}

/// What P was asked with in its last request.
pub fn asked_with(rig: &Rig) -> Value {
    let leg = rig.posts(0).pop().expect("P was asked");
    let body: Value = serde_json::from_slice(&leg.body).unwrap();
    body["kv_transfer_params"].clone()
}

/// Did P's last request name KV that a D keeps?
pub fn reused(rig: &Rig) -> bool {
    let params = asked_with(rig);
    assert_eq!(params["do_remote_decode"], true, "{params}");
    assert_eq!(params["do_remote_prefill"], false, "{params}");
    params["remote_engine_id"].is_string()
}

/// No rule of the engines was broken, and no text was made of the wrong KV.
pub fn clean(rig: &Rig) {
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!((ledger.reused, ledger.wrong_prompt), (0, 0));
}

/// A person who talks to one address.
pub struct Talk {
    pub id: Value,
    pub messages: Vec<Value>,
    pub stream: bool,
    /// Further header lines, each with its CRLF.
    pub fields: String,
    /// Further members of every request.
    pub more: Value,
}

impl Talk {
    pub fn new(id: &str) -> Talk {
        Talk {
            id: json!(id),
            messages: vec![],
            stream: true,
            fields: String::new(),
            more: json!({"max_tokens": 6}),
        }
    }

    pub fn body(&self) -> String {
        let mut body = json!({
            "model": crate::support::MODEL,
            "messages": self.messages,
            "stream": self.stream,
        });
        let members = body.as_object_mut().unwrap();
        members.extend(self.more.as_object().unwrap().clone());
        if !self.id.is_null() {
            members.insert("conversation_id".into(), self.id.clone());
        }
        body.to_string()
    }

    /// Says something, and keeps the answer as clients do.
    pub fn say(&mut self, address: std::net::SocketAddr, text: &str) -> Response {
        self.messages.push(json!({"role": "user", "content": text}));
        let mut client = Client::connect(address);
        client.send(post_bytes(CHAT, &self.body(), &self.fields));
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.complete);
        let answer = response.generated();
        assert!(!answer.is_empty(), "{}", response.text());
        self.messages
            .push(json!({"role": "assistant", "content": answer}));
        response
    }
}

/// The text of a single server's answer to the same request.
pub fn alone(talk: &Talk) -> String {
    let mut one = crate::support::engine(pdsim::Role::Both);
    one.trimmed = true;
    let rig = rig_with("aggregated", vec![one], |_| {});
    let answered = talk.messages.len() - 1;
    let asked = Talk {
        id: Value::Null,
        messages: talk.messages[..answered].to_vec(),
        stream: false,
        fields: String::new(),
        more: talk.more.clone(),
    };
    rig.post(CHAT, &asked.body()).generated()
}

/// The last answer is what a single server says.
pub fn right(talk: &Talk) {
    let said = talk.messages.last().unwrap()["content"].as_str().unwrap();
    assert_eq!(said, alone(talk));
}

/// Waits until this many were counted under the outcome.
pub fn counted(rig: &Rig, outcome: &str, count: f64) {
    eventually(&format!("{count} {outcome}"), || {
        conversations(rig, outcome) == count
    });
}
