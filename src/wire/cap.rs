//! Caps of a prefill leg beside an engine (llm-d's sidecar): each API has its own fields for "one token, please",
//! and they are set whether or not the client set them.

use std::borrow::Cow;

use super::json::{self, Edit, Object};

/// What a path of an engine speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`, `/v1/completions`, `/v1/messages`: limits at the top level.
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/inference/v1/generate`: limits in `sampling_params`.
    Generate,
}

impl Api {
    pub fn of(path: &str) -> Api {
        if path.ends_with("/responses") {
            Api::Responses
        } else if path.ends_with("/inference/v1/generate") {
            Api::Generate
        } else {
            Api::Completions
        }
    }
}

const ONE: Cow<'static, [u8]> = Cow::Borrowed(b"1");

/// One token, a whole answer. `min`: a least number of tokens is set as well, as the newest sidecar does (with
/// another one an engine refuses so few).
pub fn edits(api: Api, min: bool, body: &[u8], object: &Object) -> Vec<Edit> {
    let mut edits = vec![
        Edit::Set("stream", Cow::Borrowed(b"false")),
        Edit::Remove("stream_options"),
    ];
    match api {
        Api::Completions => {
            edits.push(Edit::Set("max_tokens", ONE));
            edits.push(Edit::Set("max_completion_tokens", ONE));
            edits.push(match min {
                true => Edit::Set("min_tokens", ONE),
                false => Edit::Remove("min_tokens"),
            });
            // With several choices P would hold KV for each, and one is fetched.
            edits.push(Edit::Replace("n", ONE));
            edits.push(Edit::Remove("best_of"));
        }
        Api::Responses => edits.push(Edit::Set("max_output_tokens", ONE)),
        Api::Generate => {
            let params = object.get(body, "sampling_params");
            let params = params.filter(|value| value.first() == Some(&b'{'));
            let own = [Edit::Set("max_tokens", ONE), Edit::Set("min_tokens", ONE)];
            let params = edited(params.unwrap_or(b"{}"), &own);
            edits.push(Edit::Set("sampling_params", Cow::Owned(params)));
        }
    }
    edits
}

/// One object of JSON, edited. What is no object is left as it is.
pub fn edited(value: &[u8], edits: &[Edit]) -> Vec<u8> {
    let Ok(object) = Object::scan(value, usize::MAX) else {
        return value.to_vec();
    };
    let pieces = json::splice(value, &object, edits);
    let mut out = Vec::with_capacity(json::pieces_len(&pieces));
    json::put_pieces(&mut out, value, &pieces);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capped(path: &str, min: bool, body: &str) -> String {
        let object = Object::scan(body.as_bytes(), 128).unwrap();
        let edits = edits(Api::of(path), min, body.as_bytes(), &object);
        String::from_utf8(edited(body.as_bytes(), &edits)).unwrap()
    }

    #[test]
    fn limits_are_set_where_each_api_has_them() {
        for (path, min, body, expected) in [
            (
                "/v1/chat/completions",
                true,
                r#"{"seed":12345678901234567890,"max_tokens":9,"stream":true,"stream_options":{}}"#,
                r#"{"seed":12345678901234567890,"max_tokens":1,"stream":false,"max_completion_tokens":1,"min_tokens":1}"#,
            ),
            (
                "/v1/completions",
                false,
                r#"{"min_tokens":5,"n":2}"#,
                r#"{"n":1,"stream":false,"max_tokens":1,"max_completion_tokens":1}"#,
            ),
            (
                "/v1/responses",
                true,
                r#"{"input":"x"}"#,
                r#"{"input":"x","stream":false,"max_output_tokens":1}"#,
            ),
            (
                "/inference/v1/generate",
                true,
                r#"{"sampling_params":{"max_tokens":7,"top_k":1}}"#,
                r#"{"sampling_params":{"max_tokens":1,"top_k":1,"min_tokens":1},"stream":false}"#,
            ),
            (
                "/inference/v1/generate",
                true,
                r#"{"token_ids":[1]}"#,
                r#"{"token_ids":[1],"stream":false,"sampling_params":{"max_tokens":1,"min_tokens":1}}"#,
            ),
        ] {
            assert_eq!(capped(path, min, body), expected, "{path}");
        }
    }
}
