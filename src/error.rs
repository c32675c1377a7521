//! Everything that can go wrong with one request, and what each means to the client, in one table.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Where a request stood. Also the `stage` label of metrics.
pub use crate::metrics::Stage;

/// Whom a failure is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    Client,
    Instance,
    Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    ClientTimeout,
    BodyTooLarge,
    HeadTooLarge,
    ExpectationFailed,
    UnsupportedMediaType,
    ClientGone,
    Overloaded,
    BodyMemory,
    Draining,
    NoInstance,
    ConnectFailed,
    Reset,
    BadResponse,
    AnswerTooLarge,
    Timeout,
    Internal,
}

/// One row per kind.
struct Row {
    kind: Kind,
    /// Metric label.
    name: &'static str,
    status: u16,
    /// OpenAI error type.
    class: &'static str,
    blame: Blame,
}

const fn row(
    kind: Kind,
    name: &'static str,
    status: u16,
    class: &'static str,
    blame: Blame,
) -> Row {
    Row {
        kind,
        name,
        status,
        class,
        blame,
    }
}

const BAD: &str = "invalid_request_error";
const DOWN: &str = "service_unavailable";
const UP: &str = "upstream_error";

const ROWS: [Row; 21] = [
    row(Kind::BadRequest, "bad_request", 400, BAD, Blame::Client),
    row(
        Kind::Unauthorized,
        "unauthorized",
        401,
        "authentication_error",
        Blame::Client,
    ),
    row(Kind::Forbidden, "forbidden", 403, BAD, Blame::Client),
    row(Kind::NotFound, "not_found", 404, BAD, Blame::Client),
    row(
        Kind::MethodNotAllowed,
        "method_not_allowed",
        405,
        BAD,
        Blame::Client,
    ),
    row(
        Kind::ClientTimeout,
        "client_timeout",
        408,
        BAD,
        Blame::Client,
    ),
    row(
        Kind::BodyTooLarge,
        "body_too_large",
        413,
        BAD,
        Blame::Client,
    ),
    row(
        Kind::HeadTooLarge,
        "head_too_large",
        431,
        BAD,
        Blame::Client,
    ),
    row(
        Kind::ExpectationFailed,
        "expectation_failed",
        417,
        BAD,
        Blame::Client,
    ),
    row(
        Kind::UnsupportedMediaType,
        "unsupported_media_type",
        415,
        BAD,
        Blame::Client,
    ),
    // 499 is nginx's number for it; nobody is left to read it but the log.
    row(Kind::ClientGone, "client_gone", 499, BAD, Blame::Client),
    row(Kind::Overloaded, "overloaded", 503, DOWN, Blame::Proxy),
    row(Kind::BodyMemory, "body_memory", 503, DOWN, Blame::Proxy),
    row(Kind::Draining, "draining", 503, DOWN, Blame::Proxy),
    row(Kind::NoInstance, "no_instance", 503, DOWN, Blame::Proxy),
    row(Kind::ConnectFailed, "connect", 502, UP, Blame::Instance),
    row(Kind::Reset, "reset", 502, UP, Blame::Instance),
    row(Kind::BadResponse, "bad_response", 502, UP, Blame::Instance),
    row(
        Kind::AnswerTooLarge,
        "answer_too_large",
        502,
        UP,
        Blame::Instance,
    ),
    row(Kind::Timeout, "timeout", 504, UP, Blame::Instance),
    row(
        Kind::Internal,
        "internal",
        500,
        "internal_error",
        Blame::Proxy,
    ),
];

/// The `kind` label values, in the order of [`Kind::index`].
pub const KINDS: [&str; ROWS.len()] = {
    let mut names = [""; ROWS.len()];
    let mut i = 0;
    while i < ROWS.len() {
        assert!(
            ROWS[i].kind as usize == i,
            "ROWS must be in the order of Kind"
        );
        names[i] = ROWS[i].name;
        i += 1;
    }
    names
};

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub fn all() -> impl Iterator<Item = Kind> {
        ROWS.iter().map(|row| row.kind)
    }

    pub const fn index(self) -> usize {
        self as usize
    }

    pub const fn name(self) -> &'static str {
        ROWS[self as usize].name
    }

    pub const fn status(self) -> u16 {
        ROWS[self as usize].status
    }

    /// The `type` in an OpenAI error body.
    pub const fn class(self) -> &'static str {
        ROWS[self as usize].class
    }

    pub const fn blame(self) -> Blame {
        ROWS[self as usize].blame
    }

    /// 503s say when to come back.
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            Kind::Overloaded | Kind::BodyMemory | Kind::Draining | Kind::NoInstance => Some(1),
            _ => None,
        }
    }
}

/// One failure of one request.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub stage: Stage,
    /// `host:port` of the instance at fault.
    pub instance: Option<Arc<str>>,
    pub cause: Cow<'static, str>,
}

impl Error {
    pub fn new(kind: Kind, stage: Stage, cause: impl Into<Cow<'static, str>>) -> Error {
        Error {
            kind,
            stage,
            instance: None,
            cause: cause.into(),
        }
    }

    pub fn at(mut self, instance: &Arc<str>) -> Error {
        self.instance = Some(instance.clone());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Some(instance) => write!(f, "{} {instance}: {}", self.stage.name(), self.cause),
            None => f.write_str(&self.cause),
        }
    }
}

impl std::error::Error for Error {}
