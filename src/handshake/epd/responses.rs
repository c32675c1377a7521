//! `/v1/responses`: media in its `input`, and what of that API one engine has to do alone. (Source: vLLM 0.32.)
//!
//! * Its content parts are checked against OpenAI's own types: `image_embeds` is refused, and a `uuid` dropped.
//!   So media go on as they came, with the encoders' `ec_transfer_params`; encoders are given no names either,
//!   and all name an item by what it holds.
//! * What an engine keeps between responses, or works on behind the client's back, is where it was: in a D. So is a
//!   loop over tools of the engine's own, which would hand P's params to the engine once per round.

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::{Exchange, Leg, Reply, Request, Stop};
use crate::wire::cap::Api;
use crate::wire::json::{Edit, Object, elements};
use crate::wire::openai::KV_PARAMS;

/// Tools that the client runs.
const OF_THE_CLIENT: [&[u8]; 2] = [b"\"function\"", b"\"custom\""];

pub fn is(request: &Request) -> bool {
    Api::of(request.path()) == Api::Responses
}

/// Has one engine to serve it from its prompt on?
pub fn alone(request: &Request) -> bool {
    if !is(request) {
        return false;
    }
    let get = |key: &str| request.object.get(request.body(), key);
    let continued = get("previous_response_id").is_some_and(|id| id != b"null");
    let tools = get("tools").filter(|tools| tools.starts_with(b"["));
    let mut tools = elements(tools.unwrap_or(b"[]"));
    continued || get("background") == Some(b"true") || tools.any(own_tool)
}

fn own_tool(tool: &[u8]) -> bool {
    let object = Object::scan(tool, usize::MAX).unwrap_or_default();
    let kind = object.get(tool, "type");
    kind.is_none_or(|kind| !OF_THE_CLIENT.contains(&kind))
}

pub async fn to_decode(x: &Exchange, reply: &mut Reply) -> Result<(), Stop> {
    let role = match x.members_now(Role::Aggregated).is_empty() {
        true => Role::Decode,
        false => Role::Aggregated,
    };
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.edits.push(Edit::Remove(KV_PARAMS));
    let stream = Box::pin(x.open(x.pick(role)?, leg)).await?;
    reply.relay(x, stream).await
}
