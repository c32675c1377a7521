//! One engine does prefill and decode.
//!
//! ```text
//!  client      proxy      engine
//!    |--req------>|--req--->|
//!    |<==tokens===|<========|
//! ```

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Reply, Stop};

use super::{Handshake, Running, Spec};

pub const SPEC: Spec = Spec {
    name: "aggregated",
    about: "one engine does prefill and decode",
    needs: &[Role::Aggregated],
    build: |_| Ok(Box::new(Aggregated)),
};

struct Aggregated;

impl Handshake for Aggregated {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(script(x, reply))
    }
}

async fn script(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let engine = x.pick(Role::Aggregated)?;
    // Boxed: a stream rests in the relay, and should not be as large as what came before.
    let stream = Box::pin(x.open(engine, Leg::new(Stage::DecodeHead))).await?;
    reply.relay(x, stream).await
}
