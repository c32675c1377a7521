//! The face of vLLM's multi-turn proxy: two generation paths and its `/health`. Beside them ours, which it did
//! not have: `/v1/models`, and the operator's.

use super::Route;
use super::native;
use crate::handshake::Conversations;
use crate::wire::head::Method;

/// Its own paths, for the documents.
pub const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/health"];

pub fn route(method: Method, path: &str, forward: &[String]) -> Route {
    match native::route(method, path, forward) {
        Route::Health => Route::Conversations,
        route => route,
    }
}

/// What its `/health` says. `null`: a shared store keeps them, and only that could count.
pub fn health(conversations: Option<Conversations>) -> Vec<u8> {
    let (kept, expired) = match conversations {
        Some(all) => (all.kept, all.expired),
        None => (Some(0), 0),
    };
    let kept = kept.map_or("null".into(), |n| n.to_string());
    format!(r#"{{"status":"ok","cached_conversations":{kept},"evicted_stale":{expired}}}"#)
        .into_bytes()
}
