//! The face of xPyD-proxy 1.8: its paths, its readiness gate, and what it checks of a body.
//!
//! Until its backends are there it answers nothing but its own pages; a browser may ask from any origin;
//! a path that is known but for a slash at its end is a redirect.

use super::Route;
use super::table::{self, Row, row};
use crate::error::{Error, Kind, Stage};
use crate::exchange::Request;
use crate::metrics::Endpoint;
use crate::wire::head::{Method, Name, RequestHead};
use crate::wire::json::Object;

/// What only this surface has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The backends are not there (yet).
    Waiting,
    /// A browser asks whether it may ask.
    Preflight,
    /// A plain OPTIONS.
    Options,
    /// The path without its last slash exists.
    Redirect,
    Status,
    Instances,
    Models,
    /// Asks the engines.
    Fan(Fan),
    /// Forwarded if the body has these members.
    Engine(&'static [&'static str]),
    Add,
    Remove,
}

/// What is asked of engines on behalf of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fan {
    /// `/health` of all.
    Health,
    /// `/ping` of all.
    Ping,
    /// `/version` of the first healthy one.
    Version,
}

impl Fan {
    pub const fn path(self) -> &'static str {
        match self {
            Fan::Health => "/health",
            Fan::Ping => "/ping",
            Fan::Version => "/version",
        }
    }
}

const fn page(path: &'static str, page: Page) -> Row {
    row(path, "GET", Route::Xpyd(page))
}

const fn engine(path: &'static str, members: &'static [&'static str]) -> Row {
    row(path, "POST", Route::Xpyd(Page::Engine(members)))
}

const SCORE: &[&str] = &["model", "text_1", "text_2", "predictions"];
const RERANK: &[&str] = &["model", "query", "documents"];

/// Its paths, the busiest first. `/ready` is ours: nothing else says in a status whether it waits.
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
    page("/health", Page::Fan(Fan::Health)),
    row("/metrics", "GET", Route::Metrics),
    page("/v1/models", Page::Models),
    page("/status", Page::Status),
    page("/status/instances", Page::Instances),
    page("/version", Page::Fan(Fan::Version)),
    row("/ping", "GET, POST", Route::Xpyd(Page::Fan(Fan::Ping))),
    row("/ready", "GET", Route::Ready),
    engine("/v1/embeddings", &["model", "input"]),
    engine("/tokenize", &["model", "prompt"]),
    engine("/detokenize", &["model", "tokens"]),
    engine("/pooling", &["model", "messages"]),
    engine("/score", SCORE),
    engine("/v1/score", SCORE),
    engine("/rerank", RERANK),
    engine("/v1/rerank", RERANK),
    engine("/v2/rerank", RERANK),
    engine("/invocations", &["model", "prompt"]),
    row("/instances/add", "POST", Route::Xpyd(Page::Add)),
    row("/instances/remove", "POST", Route::Xpyd(Page::Remove)),
];

const NO_OPTIONS: [&str; 3] = ["/metrics", "/status/instances", "/ready"];

/// All of its own paths, for the documents.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.path)
}

/// `forward`: the config's extra paths.
pub fn route(method: Method, path: &str, forward: &[String]) -> Route {
    match (table::find(ROWS, path), path.strip_suffix('/')) {
        // Two pages of the original know no OPTIONS.
        (Some(row), _) if method == Method::Options && !NO_OPTIONS.contains(&row.path) => {
            Route::Xpyd(Page::Options)
        }
        (None, Some(path)) if table::find(ROWS, path).is_some() => Route::Xpyd(Page::Redirect),
        _ => table::route(ROWS, method, path, forward),
    }
}

/// Answered whether or not the backends are there.
pub fn exempt(path: &str) -> bool {
    const PATHS: [&str; 7] = [
        "/health",
        "/ping",
        "/status",
        "/metrics",
        "/instances/add",
        "/instances/remove",
        "/ready",
    ];
    PATHS.contains(&path) || path.starts_with("/status/")
}

/// Is it a browser's question whether it may ask?
pub fn preflight(head: &RequestHead, bytes: &[u8]) -> bool {
    head.method == Method::Options
        && head.fields.get(bytes, "origin").is_some()
        && head
            .fields
            .get(bytes, "access-control-request-method")
            .is_some()
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::BadRequest, Stage::Body, what.into())
}

/// Says a generate request that it is JSON? (A charset or another parameter is no objection.)
pub fn check_type(request: &Request) -> Result<(), Error> {
    let head = request.head_bytes();
    let given = request.head.fields.find(head, Name::ContentType);
    let essence = given.and_then(|v| v.split(|b| *b == b';').next());
    match essence {
        Some(kind) if kind.trim_ascii().eq_ignore_ascii_case(b"application/json") => Ok(()),
        _ => {
            let what = "Unsupported Media Type: Only 'application/json' is allowed";
            Err(Error::new(Kind::UnsupportedMediaType, Stage::Body, what))
        }
    }
}

/// Why a body could not be indexed, in this surface's words. `absent`: what is said of a body that has no
/// members at all; `error`: what we would say.
pub fn unreadable(body: &[u8], absent: Error, error: Error) -> Error {
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    match (json, body.trim_ascii_start().first()) {
        (false, _) => bad("Invalid JSON in request body"),
        // JSON that we refuse all the same: nested too deeply, or with too many members.
        (true, Some(b'{')) => error,
        (true, _) => absent,
    }
}

const fn member(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "messages",
        _ => "prompt",
    }
}

/// A generate request without what it is about.
pub fn nothing_asked(endpoint: Endpoint) -> Error {
    bad(format!("Missing required field: {}", member(endpoint)))
}

/// Has a generate request what it is about?
pub fn check_generate(body: &[u8], object: &Object, endpoint: Endpoint) -> Result<(), Error> {
    match object.get(body, member(endpoint)) {
        None => Err(nothing_asked(endpoint)),
        Some(value) if endpoint == Endpoint::Chat && value.first() != Some(&b'[') => {
            Err(bad("Field messages must be a list"))
        }
        Some(_) => Ok(()),
    }
}

/// A request for an engine's other paths without these members.
pub fn lacks(members: &[&str]) -> Error {
    bad(format!("Missing required fields: {}", members.join(", ")))
}

/// Has such a request all that its path needs? One message names whatever is missing.
pub fn check_members(body: &[u8], object: &Object, members: &[&str]) -> Result<(), Error> {
    let mut absent = members.to_vec();
    absent.retain(|key| !object.has(body, key));
    match absent.is_empty() {
        true => Ok(()),
        false => Err(lacks(&absent)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: Method, path: &str) -> Route {
        route(method, path, &["/start_profile".into()])
    }

    #[test]
    fn every_path_takes_its_methods_and_says_which() {
        for row in ROWS {
            for (method, name) in [(Method::Get, "GET"), (Method::Post, "POST")] {
                let expected = match row.allow.contains(name) {
                    true => row.route,
                    false => Route::MethodNotAllowed(row.allow),
                };
                assert_eq!(at(method, row.path), expected, "{name} {}", row.path);
            }
            let options = match NO_OPTIONS.contains(&row.path) {
                true => Route::MethodNotAllowed(row.allow),
                false => Route::Xpyd(Page::Options),
            };
            assert_eq!(at(Method::Options, row.path), options, "{}", row.path);
            assert_eq!(
                at(Method::Delete, row.path),
                Route::MethodNotAllowed(row.allow)
            );
            let slash = format!("{}/", row.path);
            assert_eq!(at(Method::Post, &slash), Route::Xpyd(Page::Redirect));
        }
    }

    #[test]
    fn nothing_else_is_there_unless_listed() {
        for path in ["/", "", "/v1/audio/speech", "/sleep", "/status//", "/docs"] {
            assert_eq!(at(Method::Post, path), Route::NotFound, "{path}");
        }
        assert_eq!(at(Method::Post, "/start_profile"), Route::Forward);
    }

    #[test]
    fn only_pages_of_its_own_are_behind_no_gate() {
        let open: Vec<_> = ROWS.iter().map(|r| r.path).filter(|p| exempt(p)).collect();
        assert_eq!(
            open,
            [
                "/health",
                "/metrics",
                "/status",
                "/status/instances",
                "/ping",
                "/ready",
                "/instances/add",
                "/instances/remove"
            ]
        );
        assert!(!exempt("/nowhere"));
    }
}
