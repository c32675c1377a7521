//! Surfaces: the HTTP face that a client or an operator sees. Chosen by the config; one file each.
//!
//! * **For:** which paths exist, with which methods, and what they are.
//! * **Must never:** answer by itself: it only says what a path is.
//! * **To extend:** another program's face is one file with a `route` of the same shape (of a `table`, mostly),
//!   and its line in [`route`].

pub mod epd;
pub mod lmcache;
pub mod multiturn;
pub mod native;
pub mod sidecar;
mod table;
pub mod xpyd;

use crate::config::Surface;
use crate::metrics::Endpoint;
use crate::wire::head::{Method, RequestHead};

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Runs the handshake.
    Generate(Endpoint),
    /// Goes to one healthy instance as it is.
    Forward,
    /// Goes to one instance that decodes, as it is.
    Decode,
    /// Is the proxy alive?
    Health,
    /// The same, and how many conversations are kept.
    Conversations,
    /// Could a request be served now?
    Ready,
    Metrics,
    Status,
    /// The admin API.
    Admin(AdminPath),
    NotFound,
    /// The path exists, but not with this method; what it allows.
    MethodNotAllowed(&'static str),
    /// What only the EPD proxy's face has.
    Epd(epd::Page),
    /// What only xPyD-proxy's face has.
    Xpyd(xpyd::Page),
}

impl Route {
    /// Answered from the head alone: before a body, if there is one, since nobody should upload for it.
    pub fn needs_no_body(self) -> bool {
        use xpyd::Page::{Options, Preflight, Redirect, Waiting};
        matches!(
            self,
            Route::NotFound
                | Route::MethodNotAllowed(_)
                | Route::Xpyd(Waiting | Preflight | Options | Redirect)
        )
    }
}

/// What this request asks for. `forward`: the config's extra paths; `complete`: are the backends there?
pub fn route(
    surface: Surface,
    head: &RequestHead,
    bytes: &[u8],
    forward: &[String],
    complete: impl FnOnce() -> bool,
) -> Route {
    let path = head.path(bytes);
    match surface {
        // (A sidecar's is asked for its own.)
        Surface::Native | Surface::Sidecar => native::route(head.method, path, forward),
        Surface::Epd => epd::route(head.method, path, forward),
        Surface::Multiturn => multiturn::route(head.method, path, forward),
        Surface::Lmcache => lmcache::route(head.method, path, forward),
        Surface::Xpyd if !xpyd::exempt(path) && !complete() => Route::Xpyd(xpyd::Page::Waiting),
        Surface::Xpyd if xpyd::preflight(head, bytes) => Route::Xpyd(xpyd::Page::Preflight),
        Surface::Xpyd => xpyd::route(head.method, path, forward),
    }
}

/// Behind encoders, a response is generated as a chat is: it may hold media.
pub fn behind_encoders(route: Route, head: &RequestHead, bytes: &[u8]) -> Route {
    match (route, head.method) {
        (Route::Forward | Route::Decode, Method::Post) if head.path(bytes) == "/v1/responses" => {
            Route::Generate(Endpoint::Responses)
        }
        _ => route,
    }
}

/// Does this answer tell a browser that any origin may read it?
pub fn cors(surface: Surface, head: &RequestHead, bytes: &[u8], route: Route) -> bool {
    match surface {
        Surface::Epd
        | Surface::Lmcache
        | Surface::Multiturn
        | Surface::Native
        | Surface::Sidecar => false,
        // The gate stands before all else.
        Surface::Xpyd => {
            route != Route::Xpyd(xpyd::Page::Waiting) && head.fields.get(bytes, "origin").is_some()
        }
    }
}

/// No other spelling of another path. A dot segment could climb out of a prefix once the engine resolves
/// it, and what follows a `#` it may cut off.
fn plain(path: &str) -> bool {
    !path.contains("/.") && !path.contains("//") && !path.contains(['%', '#', '\\'])
}

/// Is this path among those that the config lists, exact or by a prefix that ends in `*`?
fn listed(path: &str, forward: &[String]) -> bool {
    forward.iter().any(|rule| match rule.strip_suffix('*') {
        Some(prefix) => plain(path) && path.starts_with(prefix),
        None => path == rule,
    })
}

/// A path of the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminPath {
    Instances,
    Drain,
    Resume,
}
