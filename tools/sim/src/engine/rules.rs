//! Rules of vLLM for members that the simulator has no other use for: what a real engine rejects must
//! not pass here, least of all at D alone, with P's KV already held.

use super::ask::count;
use super::error::ApiError;
use crate::json::{elements, is_null, is_string, lax_integer, lax_number, members, string};

const NAMES: [&str; 10] = [
    "frequency_penalty",
    "min_p",
    "presence_penalty",
    "prompt_logprobs",
    "repetition_penalty",
    "response_format",
    "stop",
    "tool_choice",
    "tools",
    "top_k",
];

/// The name of a member that a rule is about.
pub(crate) fn named(key: &[u8]) -> Option<&'static str> {
    NAMES.into_iter().find(|name| name.as_bytes() == key)
}

type Given<'a> = [(&'static str, &'a [u8])];

fn given<'a>(rare: &Given<'a>, name: &str) -> Option<&'a [u8]> {
    let found = rare.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).filter(|v| !is_null(v))
}

/// What is judged before anything is used: a D that rejects here tells P nothing.
pub(crate) fn of_form(rare: &Given, chat: bool, stream: bool) -> Result<(), ApiError> {
    if rare.is_empty() {
        return Ok(());
    }
    let prompt_logprobs = count(given(rare, "prompt_logprobs"), "prompt_logprobs")?;
    if stream && prompt_logprobs.is_some_and(|k| k != 0) {
        return Err(ApiError::rule(
            "prompt_logprobs",
            "`prompt_logprobs` are not available when `stream=True`.",
        ));
    }
    if let Some(stop) = given(rare, "stop") {
        let texts = stop[0] == b'[' && elements(stop).all(is_string);
        if !texts && !is_string(stop) {
            return Err(ApiError::field("stop", "Input should be a valid string"));
        }
    }
    if let Some(format) = given(rare, "response_format") {
        of_format(format)?;
    }
    if chat { of_tools(rare) } else { Ok(()) }
}

fn of_format(format: &[u8]) -> Result<(), ApiError> {
    let member = |name: &[u8]| members(format).filter(|(k, _)| *k == name).last();
    let kind = match format[0] {
        b'{' => member(b"type").map(|(_, v)| v).filter(|v| is_string(v)),
        _ => None,
    };
    let kind = kind.map(string);
    match kind.as_deref() {
        Some(b"json_schema") if member(b"json_schema").is_none_or(|(_, v)| is_null(v)) => {
            Err(ApiError::rule(
                "response_format",
                "When response_format type is 'json_schema', the 'json_schema' field must be \
                 provided.",
            ))
        }
        Some(b"text" | b"json_object" | b"json_schema" | b"structural_tag") => Ok(()),
        _ => Err(ApiError::field(
            "response_format.type",
            "Input should be 'text', 'json_object' or 'json_schema'",
        )),
    }
}

fn of_tools(rare: &Given) -> Result<(), ApiError> {
    let tools = given(rare, "tools");
    if tools.is_some_and(|list| list[0] == b'[' && elements(list).next().is_none()) {
        return Err(ApiError::rule(
            "tools",
            "`tools` must not be an empty array. Either provide at least one tool or omit the \
             field entirely.",
        ));
    }
    let choice = given(rare, "tool_choice").filter(|v| *v != b"\"none\"");
    if choice.is_some() && tools.is_none() {
        return Err(ApiError::rule(
            "tool_choice",
            "When using `tool_choice`, `tools` must be set.",
        ));
    }
    Ok(())
}

/// What is judged with the sampling parameters: a D that rejects here has P free its blocks.
pub(crate) fn of_values(rare: &Given) -> Result<(), ApiError> {
    if rare.is_empty() {
        return Ok(());
    }
    for (name, low, high) in [
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("min_p", 0.0, 1.0),
    ] {
        if let Some(x) = number(rare, name)?.filter(|x| !(low..=high).contains(x)) {
            let message = format!("{name} must be in [{low}, {high}], got {x}.");
            return Err(ApiError::value(None, message));
        }
    }
    if let Some(x) = number(rare, "repetition_penalty")?.filter(|x| *x <= 0.0) {
        let message = format!("repetition_penalty must be greater than zero, got {x}.");
        return Err(ApiError::value(None, message));
    }
    if let Some(value) = given(rare, "top_k") {
        let wrong = || ApiError::field("top_k", "Input should be a valid integer");
        let k = lax_integer(value).ok_or_else(wrong)?;
        if k < -1 {
            let message = format!("top_k must be 0 (disable), or at least 1, got {k}.");
            return Err(ApiError::value(None, message));
        }
    }
    let empty = |text: &[u8]| text == b"\"\"";
    if given(rare, "stop").is_some_and(|s| empty(s) || s[0] == b'[' && elements(s).any(empty)) {
        let message = "stop cannot contain an empty string.";
        return Err(ApiError::value(None, message));
    }
    Ok(())
}

fn number(rare: &Given, name: &'static str) -> Result<Option<f64>, ApiError> {
    let wrong = || ApiError::field(name, "Input should be a valid number");
    let value = given(rare, name);
    value.map(|v| lax_number(v).ok_or_else(wrong)).transpose()
}
