//! Keys of `lmcache:`, and of the `zmq:` section of xPyD-proxy, which means the same.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::lmcache::{Chat, Lmcache, OnTimeout, Variant};
use crate::config::reader::{At, Report, Row, Section, put};
use crate::config::yaml::Value;
use crate::config::{Address, Config, FirstTokenSource};
use crate::wire::lmcache::Receiver;

use super::{FIRST_TOKENS, above_zero, parse_host, read_word};

const VARIANTS: (&str, &[(&str, Variant)]) = (
    "'notified', 'first_token' or 'plain'",
    &[
        ("notified", Variant::Notified),
        ("first_token", Variant::FirstToken),
        ("plain", Variant::Plain),
    ],
);

const ON_TIMEOUT: (&str, &[(&str, OnTimeout)]) = (
    "'recompute' or 'error'",
    &[
        ("recompute", OnTimeout::Recompute),
        ("error", OnTimeout::Error),
    ],
);

const CHATS: (&str, &[(&str, Chat)]) = (
    "'auto', 'native', 'render' or 'completions'",
    &[
        ("auto", Chat::Auto),
        ("native", Chat::Native),
        ("render", Chat::Render),
        ("completions", Chat::Completions),
    ],
);

pub static LMCACHE: Section<Lmcache> = Section {
    name: "lmcache",
    rows: rows! {
        "variant" => |l, at| put(&mut l.variant, read_word(at, &VARIANTS)),
        "host" => |l, at| put(&mut l.host, super::read_host(at)),
        "port" => |l, at| put(&mut l.port, super::read_port(at)),
        "notice_timeout" => |l, at| put(&mut l.notice_timeout, at.duration()),
        "on_timeout" => |l, at| put(&mut l.on_timeout, read_word(at, &ON_TIMEOUT)),
        "short_prompt" => |l, at| put(&mut l.short_prompt, at.integer(0..=1 << 20)),
        "first_token" => |l, at| put(&mut l.first_token, read_word(at, &FIRST_TOKENS)),
        "chat" => |l, at| put(&mut l.chat, read_word(at, &CHATS)),
        "handoff_id" => |l, at| put(&mut l.handoff_id, at.boolean()),
        "bound_by" => |l, at| if !at.is_null() { l.bound_by = read_field_name(at) },
        "receivers" => |l, at| l.receivers = read_receivers(at, &mut Vec::new()),
    },
};

/// A header field's name, in lower case.
fn read_field_name(at: &mut At) -> Option<String> {
    let text = at.text()?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(token) {
        let message = format!(
            "{} must be the name of a header field, got '{text}'",
            at.name()
        );
        at.fail(message, "write it like session-id");
        return None;
    }
    Some(text.to_ascii_lowercase())
}

/// A receiver, and what only its own decode instance reads.
struct Item {
    receiver: Receiver,
    skip_last_n_tokens: u32,
    discard_partial_chunks: bool,
}

static RECEIVER: Section<Item> = Section {
    name: "a receiver",
    rows: rows! {
        "host" => |r, at| put(&mut r.receiver.host, read_receiver_host(at)),
        "init_ports" => |r, at| r.receiver.init_ports = read_ports(at),
        "alloc_ports" => |r, at| r.receiver.alloc_ports = read_ports(at),
        "query_ports" => |r, at| r.receiver.query_ports = read_ports(at),
        "skip_last_n_tokens" => |r, at| put(&mut r.skip_last_n_tokens, at.integer(0..=1)),
        "discard_partial_chunks" => |r, at| put(&mut r.discard_partial_chunks, at.boolean()),
    },
};

fn read_receiver_host(at: &mut At) -> Option<String> {
    match parse_host(at.text()?) {
        Ok(host) => Some(host),
        Err(why) => {
            at.fail(why, "the address of the decode instance's LMCache workers");
            None
        }
    }
}

fn read_ports(at: &mut At) -> Vec<u16> {
    let mut ports = Vec::new();
    at.each("a list of ports", |at| {
        ports.extend(at.integer(1..=u16::MAX))
    });
    ports
}

/// `strict`: gets those whose decode instance cannot go on from P's token.
fn read_receivers(at: &mut At, strict: &mut Vec<String>) -> BTreeMap<Address, Receiver> {
    let mut receivers = BTreeMap::new();
    let Value::Map(entries) = &at.node.value else {
        if !at.is_null() {
            at.mistyped("a mapping of decode addresses");
        }
        return receivers;
    };
    for index in at.entries() {
        let key = entries[index].key.as_str();
        let mut at = at.entry(index);
        let address = match Address::parse_url(key) {
            Ok(address) => address,
            Err(why) => {
                at.fail(
                    why,
                    "a receiver is written below the address of its decode instance",
                );
                continue;
            }
        };
        let mut item = Item {
            receiver: Receiver::default(),
            skip_last_n_tokens: 1,
            discard_partial_chunks: false,
        };
        at.section(&mut item, &RECEIVER);
        if item.skip_last_n_tokens == 0 || item.discard_partial_chunks {
            strict.push(key.to_owned());
        }
        receivers.insert(address, item.receiver);
    }
    receivers
}

/// xPyD-proxy's `zmq:`.
#[derive(Debug)]
pub struct Zmq {
    host: String,
    port: u16,
    timeout: Duration,
    receivers: BTreeMap<Address, Receiver>,
    /// Addresses of receivers that keep the last token's KV, or lose that of a part of a chunk.
    strict: Vec<String>,
}

static ZMQ: Section<Zmq> = Section {
    name: "zmq",
    rows: rows! {
        "host" => |z, at| put(&mut z.host, super::read_host(at)),
        "port" => |z, at| put(&mut z.port, super::read_port(at)),
        "notification_timeout_seconds" => |z, at| put(&mut z.timeout, above_zero(at)),
        "receivers" => |z, at| {
            let mut strict = Vec::new();
            z.receivers = read_receivers(at, &mut strict);
            z.strict = strict;
        },
    },
};

pub fn read_zmq(at: &mut At) -> Option<Zmq> {
    if at.is_null() {
        return None;
    }
    let mut zmq = Zmq {
        host: "127.0.0.1".into(),
        port: 7500,
        timeout: Duration::from_secs(30),
        receivers: BTreeMap::new(),
        strict: Vec::new(),
    };
    at.section(&mut zmq, &ZMQ);
    Some(zmq)
}

/// `disaggregated_mode: zmq` is this handshake, told in other words.
pub fn apply_zmq(zmq: Option<Zmq>, config: &mut Config, report: &mut Report) {
    let Some(zmq) = zmq else {
        let message = "disaggregated_mode=zmq requires a zmq configuration";
        let fix = "write zmq: {port: 7500, receivers: {\"HOST:PORT\": {host: HOST, init_ports: [..], \
                   alloc_ports: [..]}}}";
        return report.problem("disaggregated_mode", message, fix);
    };
    let prefill_first = config.first_token_source == FirstTokenSource::Prefill;
    if let Some(address) = zmq.strict.first().filter(|_| prefill_first) {
        let message = format!(
            "first_token_source=prefill requires skip_last_n_tokens=1 and \
             discard_partial_chunks=false for zmq receiver '{address}'"
        );
        report.problem(&format!("zmq.receivers.{address}"), message, "");
    }
    config.lmcache = Lmcache {
        variant: Variant::Notified,
        host: zmq.host,
        port: zmq.port,
        notice_timeout: zmq.timeout,
        on_timeout: OnTimeout::Error,
        first_token: config.first_token_source,
        receivers: zmq.receivers,
        ..std::mem::take(&mut config.lmcache)
    };
}

/// All keys of the section in `configs/reference.yaml`.
pub fn keys() -> impl Iterator<Item = String> {
    let rows = LMCACHE
        .rows
        .iter()
        .map(|row| format!("lmcache.{}", row.name));
    let of_zmq = ZMQ.rows.iter().map(|row| format!("zmq.{}", row.name));
    let names = || RECEIVER.rows.iter().map(|row| row.name);
    let of_both = names().filter(|name| *name != "query_ports");
    rows.chain(of_zmq)
        .chain(of_both.map(|name| format!("zmq.receivers.{name}")))
        .chain(names().map(|name| format!("lmcache.receivers.{name}")))
}
