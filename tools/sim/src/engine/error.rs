//! Errors in the words and shape of vLLM's API server.

use std::borrow::Cow;

use crate::json::push_string;
use crate::text::push_number;

#[derive(Debug)]
pub(crate) struct ApiError {
    pub status: u16,
    pub kind: &'static str,
    pub message: String,
    pub param: Option<Cow<'static, str>>,
    /// Found while the body was still being read as a request: the scheduler never saw its
    /// `kv_transfer_params`, so P is not told to free anything.
    pub before_engine: bool,
    /// In the shape of SGLang's server.
    pub flat: bool,
}

impl ApiError {
    /// The body is not a request at all.
    pub fn body(message: impl Into<String>) -> ApiError {
        ApiError {
            before_engine: true,
            ..ApiError::value(None, message)
        }
    }

    /// A member that is not of the form that the API asks for (found by pydantic, with its words around).
    pub fn field(name: &str, message: impl std::fmt::Display) -> ApiError {
        let place = if name.is_empty() {
            "body".to_owned()
        } else {
            format!("body.{name}")
        };
        ApiError {
            kind: "Bad Request",
            message: format!(
                "1 validation error:\n  {{'type': 'simulated', 'loc': '{place}', 'msg': '{message}'}}"
            ),
            param: Some(place.into()),
            ..ApiError::body("")
        }
    }

    /// A rule that the body as a whole breaks, found before any of it is used.
    pub fn rule(param: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            before_engine: true,
            ..ApiError::value(Some(param), message)
        }
    }

    /// A well-formed request with a value that is not accepted.
    pub fn value(param: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError {
            status: 400,
            kind: "BadRequestError",
            message: message.into(),
            param: param.map(Cow::Borrowed),
            before_engine: false,
            flat: false,
        }
    }

    pub fn no_model(name: &str) -> ApiError {
        ApiError {
            status: 404,
            kind: "NotFoundError",
            message: format!("The model `{name}` does not exist."),
            param: Some("model".into()),
            before_engine: false,
            flat: false,
        }
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError {
            status: 500,
            kind: "InternalServerError",
            ..ApiError::value(None, message)
        }
    }

    /// A failure as SGLang tells it.
    pub fn sglang(message: impl Into<String>) -> ApiError {
        ApiError {
            kind: "500",
            flat: true,
            ..ApiError::internal(message)
        }
    }

    pub fn push_json(&self, out: &mut Vec<u8>) {
        if self.flat {
            out.extend_from_slice(b"{\"object\":\"error\",\"message\":");
            push_string(out, &self.message);
            out.extend_from_slice(b",\"type\":");
            push_string(out, self.kind);
            out.extend_from_slice(b",\"param\":null,\"code\":");
            push_number(out, self.status.into());
            out.push(b'}');
            return;
        }
        out.extend_from_slice(b"{\"error\":{\"message\":");
        push_string(out, &self.message);
        out.extend_from_slice(b",\"type\":");
        push_string(out, self.kind);
        out.extend_from_slice(b",\"param\":");
        match &self.param {
            Some(param) => push_string(out, param),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"code\":");
        push_number(out, self.status.into());
        out.extend_from_slice(b"}}");
    }
}
