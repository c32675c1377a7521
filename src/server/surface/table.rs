//! A face as a table: its paths, the methods that each takes, and what it is.

use super::{Route, listed};
use crate::wire::head::Method;

pub(super) struct Row {
    pub path: &'static str,
    /// The methods it takes, as a 405 says them. (HEAD goes with GET, said or not.)
    pub allow: &'static str,
    pub route: Route,
}

pub(super) const fn row(path: &'static str, allow: &'static str, route: Route) -> Row {
    Row { path, allow, route }
}

impl Row {
    pub fn takes(&self, method: Method) -> bool {
        let name = match method {
            Method::Get | Method::Head => "GET",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            _ => return false,
        };
        self.allow.split(", ").any(|allowed| allowed == name)
    }
}

pub(super) fn find(rows: &'static [Row], path: &str) -> Option<&'static Row> {
    rows.iter().find(|row| row.path == path)
}

/// What a request asks for that no rule of a face's own decides. `forward`: the config's extra paths.
pub(super) fn route(rows: &'static [Row], method: Method, path: &str, forward: &[String]) -> Route {
    match find(rows, path) {
        Some(row) if row.takes(method) => row.route,
        Some(row) => Route::MethodNotAllowed(row.allow),
        None if listed(path, forward) && method != Method::Other => Route::Forward,
        None => Route::NotFound,
    }
}
