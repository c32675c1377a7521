//! The face of llm-d's sidecar: a few paths are split between P and D, its own liveness is one, and everything else is
//! the engine's next to us, whatever the method.

use super::Route;
use crate::config::sidecar::{Generation, Sidecar};
use crate::exchange::pinned;
use crate::metrics::Endpoint;
use crate::wire::head::{Method, RequestHead};

/// Its own paths, from which generation on, and what they count as.
const SPLIT: [(&str, Generation, Endpoint); 5] = [
    ("/v1/chat/completions", Generation::G1, Endpoint::Chat),
    ("/v1/completions", Generation::G1, Endpoint::Completions),
    ("/v1/responses", Generation::G2, Endpoint::Responses),
    ("/v1/messages", Generation::G3, Endpoint::Messages),
    ("/inference/v1/generate", Generation::G3, Endpoint::Generate),
];

/// All paths that are not merely the engine's, for the documents.
pub fn paths() -> impl Iterator<Item = &'static str> {
    let split = SPLIT.iter().map(|(path, ..)| *path);
    split.chain(["/health"])
}

pub fn route(sidecar: &Sidecar, head: &RequestHead, bytes: &[u8]) -> Route {
    let path = head.path(bytes);
    if path == "/health" && matches!(head.method, Method::Get | Method::Head) {
        return Route::Health;
    }
    let split = SPLIT.iter().find(|(known, since, _)| {
        *known == path && *since <= sidecar.generation && head.method == Method::Post
    });
    match split {
        // Nothing is to be done for it: the engine gets it untouched, whatever it is.
        Some((_, _, endpoint)) if asks(sidecar, head, bytes, *endpoint) => {
            Route::Generate(*endpoint)
        }
        _ => Route::Forward,
    }
}

fn asks(sidecar: &Sidecar, head: &RequestHead, bytes: &[u8], endpoint: Endpoint) -> bool {
    let chunked = sidecar.decode_chunk > 0 && endpoint == Endpoint::Chat;
    chunked || pinned::named(head, bytes)
}

/// The port for our own pages: nothing of the engine's.
pub fn own(head: &RequestHead, bytes: &[u8]) -> Route {
    match (head.path(bytes), head.method) {
        ("/metrics", Method::Get | Method::Head) => Route::Metrics,
        ("/status", Method::Get | Method::Head) => Route::Status,
        ("/health", Method::Get | Method::Head) => Route::Health,
        ("/ready", Method::Get | Method::Head) => Route::Ready,
        ("/metrics" | "/status" | "/health" | "/ready", _) => Route::MethodNotAllowed("GET, HEAD"),
        _ => Route::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: Generation, head: &str) -> Route {
        let bytes = head.as_bytes();
        let sidecar = Sidecar {
            generation,
            ..Sidecar::default()
        };
        route(&sidecar, &RequestHead::parse(bytes).unwrap(), bytes)
    }

    #[test]
    fn paths_are_split_from_their_generation_on() {
        for (path, since, endpoint) in SPLIT {
            for generation in [Generation::G1, Generation::G2, Generation::G3] {
                let expected = match generation >= since {
                    true => Route::Generate(endpoint),
                    false => Route::Forward,
                };
                let head = |method: &str, more: &str| {
                    format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n")
                };
                let named = "X-Prefiller-Host-Port: p:1\r\n";
                assert_eq!(at(generation, &head("POST", named)), expected, "{path}");
                assert_eq!(at(generation, &head("GET", named)), Route::Forward);
                assert_eq!(at(generation, &head("POST", "")), Route::Forward);
                let empty = "X-Prefiller-Host-Port: \r\n";
                assert_eq!(at(generation, &head("POST", empty)), Route::Forward);
            }
        }
    }

    #[test]
    fn everything_else_is_the_engine_s() {
        for line in [
            "GET /metrics",
            "DELETE /v1/x",
            "BREW /",
            "POST /health",
            "GET /status",
        ] {
            let head = format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(at(Generation::G3, &head), Route::Forward, "{line}");
        }
        let head = "GET /health?x HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(at(Generation::G1, head), Route::Health);
    }
}
