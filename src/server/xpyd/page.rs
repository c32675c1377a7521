//! The pages of xPyD-proxy's face, answered on a shard: from what it knows, or by asking the control thread.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use serde::Serialize;

use crate::cluster::breaker::{State, now_ms};
use crate::cluster::{Cluster, Health, Instance};
use crate::config::Role;
use crate::error::{Error, Kind, Stage};
use crate::exchange::shape::{self, PROXY};
use crate::exchange::{Request, gone};
use crate::net::sweep::{Fired, Slot};
use crate::server::control;
use crate::server::pages::{Page as Answer, json};
use crate::server::shard::Shard;
use crate::server::surface::xpyd::Page;

use super::{Ask, change};

/// The methods that any origin may use.
const METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

pub async fn answer(
    shard: &Rc<Shard>,
    request: &Request,
    slot: &Slot,
    page: Page,
) -> Result<Answer, Error> {
    let cluster = shard.tools.cluster.get();
    Ok(match page {
        Page::Waiting => waiting(),
        Page::Preflight => preflight(request),
        Page::Options => json(200, b"null".to_vec()),
        Page::Redirect => redirect(request),
        Page::Status => json(200, status(&cluster)),
        Page::Instances => json(200, instances(&cluster)),
        Page::Models => json(200, models(shard, &cluster)),
        Page::Fan(fan) => ask(shard, slot, control::Ask::Xpyd(Ask::Fan(fan))).await?,
        Page::Add | Page::Remove => match wish(shard, request, page) {
            Ok(wish) => ask(shard, slot, control::Ask::Xpyd(wish)).await?,
            Err((status, body)) => json(status, body),
        },
        // Forwarded: it never comes here.
        Page::Engine(_) => json(404, shape::detail("Not Found")),
    })
}

/// Asks the control thread. A client that leaves meanwhile is not waited for; what it asked is done.
pub async fn ask(shard: &Rc<Shard>, slot: &Slot, what: control::Ask) -> Result<Answer, Error> {
    let mut answer = pin!(shard.ask(what));
    // The reader of this connection is of the same task: when it fires the slot, this is polled.
    poll_fn(|cx| match (answer.as_mut().poll(cx), slot.fired()) {
        (Poll::Ready((status, body)), _) => Poll::Ready(Ok(json(status, body))),
        (Poll::Pending, None) => Poll::Pending,
        (Poll::Pending, Some(Fired::ClientGone)) => Poll::Ready(Err(gone(Stage::Body))),
        (Poll::Pending, Some(Fired::Deadline(wait))) => {
            let what = format!("the wait ended after timeouts.{}", wait.name());
            Poll::Ready(Err(Error::new(Kind::Timeout, Stage::Body, what)))
        }
    })
    .await
}

fn wish(shard: &Rc<Shard>, request: &Request, page: Page) -> Result<Ask, change::Said> {
    change::authorize(request, &shard.tools.config())?;
    Ok(match page {
        Page::Remove => Ask::Remove(change::removal(request.body())?),
        _ => Ask::Add(change::addition(request.body())?),
    })
}

fn waiting() -> Answer {
    let body = shape::object("Waiting for backend nodes", PROXY);
    json(503, body).with("retry-after", "1")
}

/// A browser's question: any method of the list, any header.
fn preflight(request: &Request) -> Answer {
    let head = request.head_bytes();
    let field = |name| {
        let value = request.head.fields.get(head, name)?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let wanted = field("access-control-request-method").unwrap_or_default();
    let (status, body) = match METHODS.contains(&wanted.as_str()) {
        true => (200, "OK"),
        false => (400, "Disallowed CORS method"),
    };
    let mut page = Answer {
        content_type: "text/plain; charset=utf-8",
        ..json(status, body.into())
    };
    page = page
        .with(
            "vary",
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        )
        .with("access-control-allow-methods", METHODS.join(", "))
        .with("access-control-max-age", "600");
    match field("access-control-request-headers") {
        Some(headers) => page.with("access-control-allow-headers", headers),
        None => page,
    }
}

/// To the same path without its last slash. A relative reference: what stands before us may speak TLS, or
/// another name.
fn redirect(request: &Request) -> Answer {
    let target = request.target();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (target, String::new()),
    };
    let path = path.strip_suffix('/').unwrap_or(path);
    let page = Answer {
        content_type: "",
        ..json(307, Vec::new())
    };
    page.with("location", format!("{path}{query}"))
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[derive(Serialize)]
struct Status<'a> {
    prefill_node_count: usize,
    decode_node_count: usize,
    prefill_nodes: Vec<&'a str>,
    decode_nodes: Vec<&'a str>,
}

/// As listed: an address that the config names twice is there twice.
fn status(cluster: &Cluster) -> Vec<u8> {
    let names = |role| cluster.role(role).iter().map(|one| &*one.name).collect();
    let (prefill, decode): (Vec<&str>, Vec<&str>) = (names(Role::Prefill), names(Role::Decode));
    bytes(&Status {
        prefill_node_count: prefill.len(),
        decode_node_count: decode.len(),
        prefill_nodes: prefill,
        decode_nodes: decode,
    })
}

#[derive(Serialize)]
struct Instances<'a> {
    prefill_instances: Vec<Row<'a>>,
    decode_instances: Vec<Row<'a>>,
    aggregated_instances: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    address: &'a str,
    status: &'static str,
    circuit: &'static str,
    active_requests: i64,
    /// Seconds on the process's clock.
    last_check: Option<f64>,
}

fn instances(cluster: &Cluster) -> Vec<u8> {
    let rows = |role| {
        let mut rows: Vec<Row> = Vec::new();
        for one in cluster.role(role) {
            let active = one.load.read().requests;
            match rows.iter_mut().find(|row| row.address == &*one.name) {
                Some(row) => row.active_requests += active,
                None => rows.push(row(one, active)),
            }
        }
        rows
    };
    bytes(&Instances {
        prefill_instances: rows(Role::Prefill),
        decode_instances: rows(Role::Decode),
        aggregated_instances: rows(Role::Aggregated),
    })
}

fn row(one: &Instance, active_requests: i64) -> Row<'_> {
    Row {
        address: &one.name,
        status: match one.found() {
            _ if one.draining() => "draining",
            _ if one.wedged.load(std::sync::atomic::Ordering::Relaxed) => "unhealthy",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Unknown => "unknown",
        },
        circuit: match one.breaker.state(now_ms()) {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        },
        active_requests,
        last_check: one.found_at_ms().map(|ms| ms as f64 / 1000.0),
    }
}

#[derive(Serialize)]
struct Models<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u32,
    owned_by: &'static str,
}

fn models(shard: &Shard, cluster: &Cluster) -> Vec<u8> {
    let models = change::models(&shard.tools.config(), cluster);
    let model = |id| Model {
        id,
        object: "model",
        created: 0,
        owned_by: "system",
    };
    bytes(&Models {
        object: "list",
        data: models.iter().map(|id| model(&**id)).collect(),
    })
}
