//! The face of vLLM's `disagg_epd_proxy.py`: its paths, and beside them ours that its users will want.

use super::Route;
use super::table::{self, Row, row};
use crate::metrics::Endpoint;
use crate::wire::head::Method;

/// What only this surface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    Health,
    /// Asked of one engine per role.
    Profile,
    /// Instances that come and go.
    Instances,
}

const ROWS: &[Row] = &[
    row(
        "/v1/chat/completions",
        "POST",
        Route::Generate(Endpoint::Chat),
    ),
    row(
        "/v1/completions",
        "POST",
        Route::Generate(Endpoint::Completions),
    ),
    row("/v1/responses", "POST", Route::Decode),
    row("/v1/models", "GET", Route::Decode),
    row("/health", "GET", Route::Epd(Page::Health)),
    row("/start_profile", "POST", Route::Epd(Page::Profile)),
    row("/stop_profile", "POST", Route::Epd(Page::Profile)),
    row(
        "/instances",
        "GET, POST, DELETE",
        Route::Epd(Page::Instances),
    ),
    row("/ready", "GET", Route::Ready),
    row("/metrics", "GET", Route::Metrics),
    row("/status", "GET", Route::Status),
];

/// All of its own paths, for the documents.
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
    fn every_path_takes_its_methods_and_says_which() {
        for row in ROWS {
            for (method, name) in [
                (Method::Get, "GET"),
                (Method::Post, "POST"),
                (Method::Delete, "DELETE"),
                (Method::Put, "PUT"),
            ] {
                let expected = match row.allow.contains(name) {
                    true => row.route,
                    false => Route::MethodNotAllowed(row.allow),
                };
                assert_eq!(
                    route(method, row.path, &[]),
                    expected,
                    "{name} {}",
                    row.path
                );
            }
        }
        assert_eq!(route(Method::Get, "/v1/chat", &[]), Route::NotFound);
        let more = ["/tokenize".to_owned()];
        assert_eq!(route(Method::Post, "/tokenize", &more), Route::Forward);
    }
}
