//! `usage.prompt_tokens_details.cached_tokens`: a D that fetched its KV says that all of the prompt was cached. What
//! the client wants to know is how much of it P had.

use std::borrow::Cow;

use super::cap::edited;
use super::json::{Edit, Object};

/// The number in an answer; 0 where it says none.
pub fn cached_tokens(answer: &[u8], object: &Object) -> u64 {
    let inner = |value: &[u8], key: &str| {
        let object = Object::scan(value, 64).ok()?;
        object.get(value, key).map(<[u8]>::to_vec)
    };
    let usage = object.get(answer, "usage");
    let details = usage.and_then(|usage| inner(usage, "prompt_tokens_details"));
    let number = details.and_then(|details| inner(&details, "cached_tokens"));
    let number = number.and_then(|n| String::from_utf8(n).ok()?.parse().ok());
    number.unwrap_or(0)
}

/// The same JSON with that number; `None`: it has no usage.
pub fn with_cached_tokens(json: &[u8], cached: u64) -> Option<Vec<u8>> {
    let object = Object::scan(json, 1000).ok()?;
    let usage = object.get(json, "usage")?;
    if usage.first() != Some(&b'{') {
        return None;
    }
    let inner = Object::scan(usage, 1000).ok()?;
    let details = inner.get(usage, "prompt_tokens_details");
    let details = details.filter(|value| value.first() == Some(&b'{'));
    let number = cached.to_string().into_bytes();
    let details = edited(
        details.unwrap_or(b"{}"),
        &[Edit::Set("cached_tokens", Cow::Owned(number))],
    );
    let usage = edited(
        usage,
        &[Edit::Set("prompt_tokens_details", Cow::Owned(details))],
    );
    Some(edited(json, &[Edit::Set("usage", Cow::Owned(usage))]))
}

/// A line longer than this is no event with usage in it.
const LINE_MAX: usize = 4 << 20;

/// Corrects every event of a stream, or one whole answer. Fed with bytes cut anywhere.
#[derive(Debug)]
pub struct Corrected {
    cached: u64,
    events: bool,
    /// Of an unfinished line, or of the whole answer.
    held: Vec<u8>,
    /// The line is too long to be held: the rest of it passes.
    passing: bool,
}

impl Corrected {
    pub fn new(cached: u64, events: bool) -> Corrected {
        Corrected {
            cached,
            events,
            held: Vec::new(),
            passing: false,
        }
    }

    pub fn feed(&mut self, mut payload: &[u8], out: &mut Vec<u8>) {
        while !payload.is_empty() {
            let end = match self.events {
                true => memchr::memchr(b'\n', payload).map(|at| at + 1),
                false => None,
            };
            let (line, rest) = payload.split_at(end.unwrap_or(payload.len()));
            payload = rest;
            if self.passing {
                out.extend_from_slice(line);
                self.passing = end.is_none();
            } else if end.is_some() && self.held.is_empty() {
                self.line(line, out);
            } else {
                self.held.extend_from_slice(line);
                if end.is_some() {
                    let held = std::mem::take(&mut self.held);
                    self.line(&held, out);
                } else if self.held.len() > LINE_MAX && self.events {
                    out.append(&mut self.held);
                    self.passing = true;
                }
            }
        }
    }

    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        if self.events {
            return self.line(&held, out);
        }
        match with_cached_tokens(&held, self.cached) {
            Some(changed) => out.extend_from_slice(&changed),
            None => out.extend_from_slice(&held),
        }
    }

    fn line(&self, line: &[u8], out: &mut Vec<u8>) {
        if let Some(data) = line.strip_prefix(b"data:")
            && memchr::memmem::find(data, b"\"usage\"").is_some()
        {
            let json = data.trim_ascii();
            if let Some(changed) = with_cached_tokens(json, self.cached) {
                let start = data.len() - data.trim_ascii_start().len();
                out.extend_from_slice(b"data:");
                out.extend_from_slice(&data[..start]);
                out.extend_from_slice(&changed);
                out.extend_from_slice(&data[start + json.len()..]);
                return;
            }
        }
        out.extend_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\"\"}}],\"usage\":null}\n\n\
        : a comment\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":7,\"x\":1}}}\r\n\r\n\
        data: {\"usage\":{\"prompt_tokens\":7,\"prompt_tokens_details\":null}}\n\ndata: [DONE]\n\n";
    const WANTED: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\"\"}}],\"usage\":null}\n\n\
        : a comment\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":3,\"x\":1}}}\r\n\r\n\
        data: {\"usage\":{\"prompt_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\ndata: [DONE]\n\n";

    proptest! {
        #[test]
        fn streams_are_corrected_however_they_are_cut(
            cuts in proptest::collection::vec(0usize..400, 0..12),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(STREAM.len())).collect();
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut corrected = Corrected::new(3, true);
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                corrected.feed(&STREAM.as_bytes()[pair[0]..pair[1]], &mut out);
            }
            corrected.finish(&mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), WANTED);
        }
    }

    #[test]
    fn answers_are_corrected_whole_and_others_left_alone() {
        for (answer, wanted) in [
            (
                r#"{"id":"x","usage":{"prompt_tokens":2},"z":1.0}"#,
                r#"{"id":"x","usage":{"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":3}},"z":1.0}"#,
            ),
            (r#"{"usage":null}"#, r#"{"usage":null}"#),
            (r#"{"usage":[]}"#, r#"{"usage":[]}"#),
            ("no json", "no json"),
        ] {
            let (mut corrected, mut out) = (Corrected::new(3, false), Vec::new());
            for byte in answer.as_bytes() {
                corrected.feed(&[*byte], &mut out);
            }
            corrected.finish(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        }
        let answer = br#"{"usage":{"prompt_tokens_details":{"cached_tokens":12}}}"#;
        assert_eq!(cached_tokens(answer, &Object::scan(answer, 9).unwrap()), 12);
        assert_eq!(cached_tokens(b"{}", &Object::scan(b"{}", 9).unwrap()), 0);
    }
}
