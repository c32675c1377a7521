//! Prefill, then decode with the original body; the engines share KV by themselves (a common store, or
//! each other's cache). The `direct` mode of xPyD-proxy.
//!
//! ```text
//!  client      proxy          P           D
//!    |--req------>|--1 token-->|           |
//!    |            |<--answer---|           |
//!    |            |--req------------------>|
//!    |<==tokens===|<=======================|
//! ```

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Reply, Stop};

use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "sequential",
    about: "prefill, then decode with the original body",
    needs: &[Role::Prefill, Role::Decode],
    build: || Box::new(Sequential),
};

struct Sequential;

impl Handshake for Sequential {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    if !x.skip_prefill() {
        let prefill = x.pick(Role::Prefill)?;
        // Boxed, all but the relay: a stream rests there, and should not be as large as what came before.
        Box::pin(x.call(prefill, x.prefill_leg())).await?;
    }
    let decode = x.pick(Role::Decode)?;
    let stream = Box::pin(x.open(decode, Leg::new(Stage::DecodeHead))).await?;
    reply.relay(x, stream).await
}
