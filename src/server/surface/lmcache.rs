//! The face of LMCache's `disagg_proxy_server`: its two paths, and beside them what an operator needs of us.

use super::Route;
use super::table::{self, Row, row};
use crate::metrics::Endpoint;
use crate::wire::head::Method;

const GET: &str = "GET, HEAD";

/// The first two are its own; the others are ours.
const ROWS: &[Row] = &[
    row(
        "/v1/completions",
        "POST",
        Route::Generate(Endpoint::Completions),
    ),
    row(
        "/v1/chat/completions",
        "POST",
        Route::Generate(Endpoint::Chat),
    ),
    row("/health", GET, Route::Health),
    row("/ready", GET, Route::Ready),
    row("/metrics", GET, Route::Metrics),
    row("/status", GET, Route::Status),
    row("/v1/models", GET, Route::Forward),
];

/// All of its paths, for the documents.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.path)
}

/// `forward`: the config's extra paths.
pub fn route(method: Method, path: &str, forward: &[String]) -> Route {
    table::route(ROWS, method, path, forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_takes_its_methods_and_nothing_else_is_there() {
        for row in ROWS {
            let (right, wrong) = match row.allow {
                "POST" => (Method::Post, Method::Get),
                _ => (Method::Get, Method::Post),
            };
            assert_eq!(route(right, row.path, &[]), row.route);
            assert_eq!(
                route(wrong, row.path, &[]),
                Route::MethodNotAllowed(row.allow)
            );
        }
        for path in ["/", "/tokenize", "/v1/embeddings", "/admin/instances"] {
            assert_eq!(route(Method::Post, path, &[]), Route::NotFound, "{path}");
        }
        let forward = ["/tokenize".to_owned()];
        assert_eq!(route(Method::Post, "/tokenize", &forward), Route::Forward);
    }
}
