//! vLLM's OffloadingConnector with its peer-to-peer tier: P keeps what it computes under an id of ours, and D pulls it
//! from P's port. (Source: llm-d-router since August 2026, which asks P first.)
//!
//! ```text
//!  client      proxy                              P           D
//!    |--req------>|--1 token, remote_decoder---->|           |
//!    |            |<--answer---------------------|           |
//!    |            |--req + remote_prefiller----------------->|
//!    |            |                              |<==pulls===|
//!    |<==tokens===|<=========================================|
//! ```

use std::borrow::Cow;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Picked, Reply, Stop};
use crate::id;
use crate::wire::json::{Edit, put_string};
use crate::wire::openai::KV_PARAMS;

use super::beside::chunked;
use super::{Handshake, Running, Spec, side_port, skips_batch};

pub const SPEC: Spec = Spec {
    name: "offloading",
    about: "vLLM OffloadingConnector: decode pulls from prefill's peer-to-peer port",
    needs: &[Role::Prefill, Role::Decode],
    build: |_| Ok(Box::new(Offloading)),
};

/// Of the connector's peers, unless it is configured.
const P2P_PORT: u16 = 7777;

struct Offloading;

impl Handshake for Offloading {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(match skips_batch(x) || x.skip_prefill() {
        true => Edit::Remove(KV_PARAMS),
        false => Box::pin(prefill(x)).await?,
    });
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    if chunked::applies(x) {
        return Box::pin(chunked::decode(x, reply, &leg.edits, None)).await;
    }
    let decode = x.pick(Role::Decode)?;
    let stream = Box::pin(x.open(decode, leg)).await?;
    reply.relay(x, stream).await
}

/// What D is to be told.
async fn prefill(x: &Exchange) -> Result<Edit, Stop> {
    let prefill = x.pick(Role::Prefill)?;
    let id = id::fresh(&x.tools.rng);
    let peer = peer(x, &prefill, &id);
    let mut params = format!(r#"{{"remote_decoder":{{"kv_request_id":"{id}"}}"#);
    if let Some(source) = x.kv_source(Some(prefill.instance())) {
        params += r#","remote_kv_source":"#;
        params += &source;
    }
    params.push('}');
    let mut leg = Leg::new(Stage::Prefill);
    leg.plain_answer = true;
    leg.edits = x.one_token_edits();
    leg.edits
        .push(Edit::Set(KV_PARAMS, Cow::Owned(params.into_bytes())));
    if let Some(pins) = &x.pins {
        pins.add_edits(&mut leg.edits);
    }
    x.call(prefill, leg).await?;
    Ok(Edit::Set(KV_PARAMS, Cow::Owned(peer)))
}

fn peer(x: &Exchange, prefill: &Picked, id: &str) -> Vec<u8> {
    let place = prefill.instance().address.network();
    let (host, port) = place.unwrap_or(("localhost", 0));
    let first = side_port(x, prefill.instance(), |s| s.p2p_port, P2P_PORT);
    // Ranks of one pod have ports in a row, for both.
    let ranks = x.cluster.role(Role::Decode).len() as u16;
    let rank = port.checked_sub(x.config.port);
    let rank = rank.filter(|rank| x.config.sidecar.is_some() && *rank < ranks);
    let mut out =
        format!(r#"{{"remote_prefiller":{{"kv_request_id":"{id}","remote_host":"#).into_bytes();
    put_string(&mut out, host);
    let port = first.saturating_add(rank.unwrap_or(0));
    out.extend_from_slice(format!(r#","remote_port":{port}}}}}"#).as_bytes());
    out
}
