//! Surfaces: the HTTP face that a client or an operator sees. Chosen by the config; one file each.
//!
//! * **For:** which paths exist, with which methods, and what they are.
//! * **Must never:** answer by itself: it only says what a path is.
//! * **To extend:** another program's face is one file with a `route` of the same shape.

pub mod native;

use crate::metrics::Endpoint;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Runs the handshake.
    Generate(Endpoint),
    /// Goes to one healthy instance as it is.
    Forward,
    /// Is the proxy alive?
    Health,
    /// Could a request be served now?
    Ready,
    Metrics,
    Status,
    /// The admin API.
    Admin(AdminPath),
    NotFound,
    /// The path exists, but not with this method; what it allows.
    MethodNotAllowed(&'static str),
}

/// A path of the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminPath {
    Instances,
    Drain,
    Resume,
}
