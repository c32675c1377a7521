//! pdrelay's own face: the OpenAI paths, the engines' inference paths, and the operator's four.

use super::{AdminPath, Route, listed, plain};
use crate::metrics::Endpoint;
use crate::wire::head::Method;

/// Inference paths of engines outside `/v1/`: forwarded to one healthy instance.
const FORWARDED: &[&str] = &[
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/score",
    "/rerank",
    "/classify",
    "/v2/rerank",
    "/ping",
    "/version",
    "/invocations",
];

/// Paths under `/v1/` that change an engine: not forwarded unless the config lists them.
const ENGINE_ADMIN: &[&str] = &["/v1/load_lora_adapter", "/v1/unload_lora_adapter"];

const GET: &str = "GET, HEAD";

/// `forward`: the config's extra paths, exact or ending in `*`.
pub fn route(method: Method, path: &str, forward: &[String]) -> Route {
    let post = |route| match method {
        Method::Post => route,
        _ => Route::MethodNotAllowed("POST"),
    };
    let get = |route| match method {
        Method::Get | Method::Head => route,
        _ => Route::MethodNotAllowed(GET),
    };
    match path {
        "/v1/chat/completions" => post(Route::Generate(Endpoint::Chat)),
        "/v1/completions" => post(Route::Generate(Endpoint::Completions)),
        "/health" => get(Route::Health),
        "/ready" => get(Route::Ready),
        "/metrics" => get(Route::Metrics),
        "/status" => get(Route::Status),
        "/admin/instances" => match method {
            Method::Get | Method::Head | Method::Post | Method::Delete => {
                Route::Admin(AdminPath::Instances)
            }
            _ => Route::MethodNotAllowed("GET, HEAD, POST, DELETE"),
        },
        "/admin/instances/drain" => post(Route::Admin(AdminPath::Drain)),
        "/admin/instances/resume" => post(Route::Admin(AdminPath::Resume)),
        "/v1/models" => get(Route::Forward),
        _ if forwarded(path, forward) => match method {
            Method::Other => {
                Route::MethodNotAllowed("GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS")
            }
            _ => Route::Forward,
        },
        _ => Route::NotFound,
    }
}

fn forwarded(path: &str, forward: &[String]) -> bool {
    listed(path, forward)
        || FORWARDED.contains(&path)
        || (path.starts_with("/v1/") && plain(path) && !ENGINE_ADMIN.contains(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: Method, path: &str) -> Route {
        route(method, path, &["/start_profile".into(), "/debug/*".into()])
    }

    #[test]
    fn engine_admin_paths_are_not_reachable_unless_listed() {
        for path in [
            "/reset_prefix_cache",
            "/sleep",
            "/v1/load_lora_adapter",
            "/v1/../sleep",
            "/",
        ] {
            assert_eq!(at(Method::Post, path), Route::NotFound, "{path}");
        }
        assert_eq!(at(Method::Post, "/start_profile"), Route::Forward);
        assert_eq!(at(Method::Get, "/debug/anything"), Route::Forward);
    }

    #[test]
    fn wrong_methods_say_what_is_allowed() {
        assert_eq!(
            at(Method::Get, "/v1/completions"),
            Route::MethodNotAllowed("POST")
        );
        assert_eq!(at(Method::Post, "/metrics"), Route::MethodNotAllowed(GET));
        assert_eq!(at(Method::Head, "/health"), Route::Health);
    }

    #[test]
    fn inference_paths_are_forwarded() {
        for path in [
            "/v1/embeddings",
            "/tokenize",
            "/rerank",
            "/v1/audio/transcriptions",
        ] {
            assert_eq!(at(Method::Post, path), Route::Forward, "{path}");
        }
    }
}
