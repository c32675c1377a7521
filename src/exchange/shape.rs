//! The shape of error bodies: a property of the surface, in one table per surface. Statuses are the same
//! everywhere (`error.rs`), and so is the `error` event that ends a broken stream.

use crate::config::Surface;
use crate::error::{Error, Kind, Stage};
use crate::wire::json::put_string;
use crate::wire::openai::error_body;

/// The body of an error, as clients of this surface know it.
pub fn body(surface: Surface, error: &Error) -> Vec<u8> {
    let reason = error.to_string();
    match surface {
        Surface::Native | Surface::Multiturn => {
            error_body(&reason, error.kind.class(), error.kind.status())
        }
        Surface::Sidecar => sidecar(error, &reason),
        Surface::Epd => detail(epd(error).unwrap_or(&reason)),
        // Its own errors have no body that a client could read: where the path is right, ours.
        Surface::Lmcache => match error.kind {
            Kind::MethodNotAllowed => detail("Method Not Allowed"),
            kind => error_body(&reason, kind.class(), kind.status()),
        },
        Surface::Xpyd => match xpyd(error.kind) {
            Shape::Object(class) => object(&reason, class),
            Shape::Words(message, class) => object(message, class),
            Shape::Detail(text) => detail(text),
            Shape::Both(text, class) => {
                let mut out = detail(text);
                out.pop();
                out.push(b',');
                out.extend_from_slice(&object(&reason, class)[1..]);
                out
            }
        },
    }
}

/// What is said where there is no path of this name.
pub fn no_path(surface: Surface) -> Vec<u8> {
    let kind = Kind::NotFound;
    match surface {
        Surface::Native | Surface::Multiturn | Surface::Sidecar => {
            error_body(NO_PATH, kind.class(), kind.status())
        }
        Surface::Epd | Surface::Lmcache | Surface::Xpyd => detail("Not Found"),
    }
}

/// Beside an engine that is not there (yet).
fn not_ready(error: &Error) -> bool {
    error.kind == Kind::ConnectFailed && error.stage == Stage::DecodeHead
}

/// The status of an error, which one surface says otherwise.
pub fn status(surface: Surface, error: &Error) -> u16 {
    match surface {
        Surface::Sidecar if not_ready(error) => Kind::NoInstance.status(),
        _ => error.kind.status(),
    }
}

/// What its body is.
pub fn content_type(surface: Surface, error: &Error) -> &'static str {
    match (surface, error.kind) {
        (Surface::Sidecar, Kind::Forbidden) => "text/plain; charset=utf-8",
        _ => "application/json",
    }
}

/// As llm-d's sidecar says it, in the form of vLLM's older errors.
fn sidecar(error: &Error, reason: &str) -> Vec<u8> {
    if error.kind == Kind::Forbidden {
        return format!("{}\n", error.cause).into_bytes();
    }
    let status = status(Surface::Sidecar, error);
    let class = match status {
        400..=499 => "BadRequestError",
        502 => "BadGateway",
        503 => "ServiceUnavailable",
        504 => "GatewayTimeout",
        _ => "InternalServerError",
    };
    let mut out = br#"{"object":"error","message":"#.to_vec();
    match not_ready(error) {
        true => put_string(&mut out, &format!("The decode node is not ready. {reason}")),
        false => put_string(&mut out, reason),
    }
    out.extend_from_slice(br#","type":"#);
    put_string(&mut out, class);
    out.extend_from_slice(format!(r#","param":"","code":{status}}}"#).as_bytes());
    out
}

/// How an error ends that is about a role without any instance.
pub const NOT_CONFIGURED: &str = "instance is configured";

/// The words that clients of `disagg_epd_proxy.py` know, where it has any.
fn epd(error: &Error) -> Option<&'static str> {
    // There is none at all, rather than none that can be reached.
    let nobody = error.kind == Kind::NoInstance && error.cause.ends_with(NOT_CONFIGURED);
    Some(match (error.kind, error.stage) {
        (_, Stage::Encode) if nobody => "No encode instance is registered",
        (_, Stage::Prefill) if nobody => "No prefill instance is registered",
        (_, Stage::DecodeHead) if nobody => "No decode instance is registered",
        (Kind::MethodNotAllowed, _) => "Method Not Allowed",
        _ => return None,
    })
}

/// How xPyD-proxy 1.8 says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `{"error":{..}}` of this type, with our reason.
    Object(&'static str),
    /// The same, with the words that its clients look for.
    Words(&'static str, &'static str),
    /// `{"detail":".."}`.
    Detail(&'static str),
    /// Its `detail`, and beside it an `error` with our reason.
    Both(&'static str, &'static str),
}

pub const NO_PATH: &str = "there is nothing at this path";
pub const BAD: &str = "invalid_request_error";
pub const PROXY: &str = "proxy_error";
pub const SERVER: &str = "server_error";

const NO_INSTANCE: &str = "No available instance can handle the request";
const GATEWAY: &str = "Bad Gateway: Error communicating with upstream server.";
const MEDIA: &str = "Unsupported Media Type: Only 'application/json' is allowed";

/// One row per kind. (An unknown path is [`no_path`]; `NotFound` is left for an unknown model.)
const fn xpyd(kind: Kind) -> Shape {
    match kind {
        Kind::BadRequest
        | Kind::Forbidden
        | Kind::NotFound
        | Kind::ClientTimeout
        | Kind::BodyTooLarge
        | Kind::HeadTooLarge
        | Kind::ExpectationFailed
        | Kind::ClientGone => Shape::Object(BAD),
        Kind::Unauthorized => Shape::Object("authentication_error"),
        Kind::MethodNotAllowed => Shape::Detail("Method Not Allowed"),
        Kind::UnsupportedMediaType => Shape::Detail(MEDIA),
        Kind::NoInstance => Shape::Words(NO_INSTANCE, PROXY),
        Kind::Overloaded | Kind::BodyMemory | Kind::Draining | Kind::Timeout => {
            Shape::Object(PROXY)
        }
        Kind::ConnectFailed | Kind::Reset | Kind::BadResponse | Kind::AnswerTooLarge => {
            Shape::Both(GATEWAY, PROXY)
        }
        Kind::Internal => Shape::Both("Internal proxy error", PROXY),
    }
}

/// `{"error":{"message":..,"type":..,"code":null}}`
pub fn object(message: &str, class: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    out.extend_from_slice(br#"{"error":{"message":"#);
    put_string(&mut out, message);
    out.extend_from_slice(br#","type":"#);
    put_string(&mut out, class);
    out.extend_from_slice(br#","code":null}}"#);
    out
}

/// `{"detail":".."}`
pub fn detail(text: &str) -> Vec<u8> {
    let mut out = br#"{"detail":"#.to_vec();
    put_string(&mut out, text);
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(surface: Surface, kind: Kind) -> serde_json::Value {
        let error = Error::new(kind, Stage::Body, "it \"broke\"");
        serde_json::from_slice(&body(surface, &error)).unwrap()
    }

    #[test]
    fn every_kind_is_one_object_on_every_surface() {
        for kind in Kind::all() {
            let native = of(Surface::Native, kind);
            assert_eq!(native["error"]["message"], "it \"broke\"");
            assert_eq!(native["error"]["code"], kind.status());
            let xpyd = of(Surface::Xpyd, kind);
            let error = &xpyd["error"];
            assert!(error.is_object() || xpyd["detail"].is_string(), "{kind:?}");
            assert!(error.is_null() || error["message"].is_string(), "{kind:?}");
            assert!(
                error.is_null() || error.as_object().unwrap().contains_key("code"),
                "{kind:?}"
            );
            assert!(error["code"].is_null() && error.get("param").is_none());
        }
    }

    #[test]
    fn an_unknown_model_is_no_unknown_path() {
        let what = "The model 'x' does not exist";
        let error = Error::new(Kind::NotFound, Stage::Body, what);
        let said = String::from_utf8(body(Surface::Xpyd, &error)).unwrap();
        assert_eq!(
            said,
            r#"{"error":{"message":"The model 'x' does not exist","type":"invalid_request_error","code":null}}"#
        );
        assert_eq!(no_path(Surface::Xpyd), br#"{"detail":"Not Found"}"#);
    }

    #[test]
    fn a_bad_gateway_says_both_the_old_words_and_the_reason() {
        let text = body(Surface::Xpyd, &Error::new(Kind::Reset, Stage::Body, "gone"));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"detail":"Bad Gateway: Error communicating with upstream server.","error":{"message":"gone","type":"proxy_error","code":null}}"#
        );
    }
}
