//! The bytes of the requests, built once before the run.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::args::{Args, Endpoint, Target};

/// Bodies up to this size are sent in one piece with their head; larger ones are shared between connections.
const JOIN_LIMIT: usize = 64 * 1024;
/// Length of the id that `--echo-id` patches into the head of each request.
pub const ID_LEN: usize = 32;

/// One prebuilt request.
#[derive(Debug)]
pub struct Template {
    /// The head, and the body too if that is small. Each connection sends its own copy of it.
    pub head: Vec<u8>,
    /// A large body, shared.
    pub body: Option<Arc<Vec<u8>>>,
    /// Where the request id lies in `head`.
    pub id_at: Option<usize>,
}

/// All requests of a run.
#[derive(Debug)]
pub struct Requests {
    pub templates: Vec<Template>,
    /// Do they ask for a stream?
    pub stream: bool,
    pub body_bytes: usize,
}

impl Requests {
    pub fn build(args: &Args, target: &Target) -> Result<Self, String> {
        let mut stream = !args.no_stream;
        let mut bodies = Vec::new();
        if let Some(path) = &args.body {
            let body =
                std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let value = serde_json::from_slice::<Value>(&body).ok();
            let field = value.as_ref().and_then(|value| value.get("stream"));
            stream = field.and_then(Value::as_bool).unwrap_or(false);
            bodies.push(body);
        } else {
            bodies.extend((0..args.prompts).map(|index| json_body(args, stream, index)));
        }
        let body_bytes = bodies[0].len();
        let templates = bodies
            .into_iter()
            .map(|body| Template::build(args, target, body))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            templates,
            stream,
            body_bytes,
        })
    }
}

impl Template {
    fn build(args: &Args, target: &Target, body: Vec<u8>) -> Result<Self, String> {
        let mut head = format!("POST {} HTTP/1.1\r\nHost: {}\r\n", target.path, target.host);
        let mut typed = false;
        for header in &args.headers {
            let (name, value) = header
                .split_once(':')
                .filter(|(name, value)| {
                    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                    !name.is_empty() && name.bytes().all(token) && !value.contains(['\r', '\n'])
                })
                .ok_or_else(|| format!("--header {header:?} is not 'name: value'"))?;
            typed |= name.eq_ignore_ascii_case("content-type");
            head += &format!("{name}: {}\r\n", value.trim());
        }
        if !typed {
            head += "Content-Type: application/json\r\n";
        }
        let mut id_at = None;
        if args.echo_id {
            head += "X-Request-Id: ";
            id_at = Some(head.len());
            head += &format!("{}\r\n", "0".repeat(ID_LEN));
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        let mut head = head.into_bytes();
        let body = if body.len() <= JOIN_LIMIT {
            head.extend_from_slice(&body);
            None
        } else {
            Some(Arc::new(body))
        };
        Ok(Self { head, body, id_at })
    }
}

fn json_body(args: &Args, stream: bool, index: usize) -> Vec<u8> {
    let image = (args.image_bytes > 0).then(|| image_url(args.image_bytes, index as u64));
    let overhead = with_prompt(args, stream, "", None).len();
    let room = args.prompt_bytes.saturating_sub(overhead);
    with_prompt(args, stream, &prompt(index, room), image.as_deref())
}

fn with_prompt(args: &Args, stream: bool, prompt: &str, image: Option<&str>) -> Vec<u8> {
    let mut body = json!({"model": args.model, "max_tokens": args.max_tokens, "stream": stream});
    match args.endpoint {
        Endpoint::Completions => body["prompt"] = json!(prompt),
        Endpoint::Chat => {
            let content = match image {
                None => json!(prompt),
                Some(url) => json!([
                    {"type": "text", "text": prompt},
                    {"type": "image_url", "image_url": {"url": url}},
                ]),
            };
            body["messages"] = json!([{"role": "user", "content": content}]);
        }
    }
    body.to_string().into_bytes()
}

/// Words rather than one repeated letter, so that a tokenizer or a prefix cache in the way sees something normal.
/// The index comes first: different prompts differ from their first block on.
fn prompt(index: usize, bytes: usize) -> String {
    const WORDS: [&str; 16] = [
        "the", "river", "runs", "under", "an", "old", "stone", "bridge", "while", "seven", "quiet",
        "birds", "watch", "from", "tall", "trees",
    ];
    let mut text = format!("{index:06} ");
    let mut state = index as u64 + 1;
    while text.len() < bytes {
        text += WORDS[(xorshift(&mut state) >> 32) as usize % WORDS.len()];
        text.push(' ');
    }
    text.truncate(bytes.max(1));
    text
}

fn image_url(bytes: usize, seed: u64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut url = String::from("data:image/png;base64,");
    let mut state = seed + 1;
    // Random bytes in base64 are random letters; only the padding depends on the length.
    let groups = bytes.div_ceil(3);
    for group in 0..groups {
        let left = (bytes - group * 3).min(3);
        let bits = xorshift(&mut state);
        for letter in 0..4 {
            let mut six = (bits >> (letter * 8)) & 63;
            // Bits behind the last byte must be zero, or strict decoders refuse the image.
            six &= if letter == left && left == 1 {
                0b11_0000
            } else {
                63
            };
            six &= if letter == left && left == 2 {
                0b11_1100
            } else {
                63
            };
            url.push(if letter <= left {
                ALPHABET[six as usize] as char
            } else {
                '='
            });
        }
    }
    url
}

/// Good enough for filler and arrival times, and reproducible.
pub fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Writes a request id of [`ID_LEN`] bytes: the run, then the number of the request.
pub fn write_id(into: &mut [u8], run: u64, number: u64) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let value = (u128::from(run) << 64) | u128::from(number);
    for (at, byte) in into.iter_mut().enumerate() {
        *byte = HEX[((value >> (124 - at * 4)) & 15) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn build(line: &str) -> Requests {
        let args = Args::parse_from(std::iter::once("pdload").chain(line.split_whitespace()));
        Requests::build(&args, &args.target().unwrap()).unwrap()
    }

    #[test]
    fn the_body_has_the_asked_for_size() {
        for bytes in [200, 1024, 40_000, 100_000] {
            for endpoint in ["chat", "completions"] {
                let requests = build(&format!("--prompt-bytes {bytes} --endpoint {endpoint}"));
                assert_eq!(requests.body_bytes, bytes);
            }
        }
        assert!(build("--prompt-bytes 100000").templates[0].body.is_some());
        assert!(build("--prompt-bytes 1000").templates[0].body.is_none());
    }

    #[test]
    fn an_image_is_valid_base64_of_its_size() {
        for bytes in 1..9 {
            let url = image_url(bytes, 7);
            let data = url.strip_prefix("data:image/png;base64,").unwrap();
            assert_eq!(data.len(), bytes.div_ceil(3) * 4);
            let pad = data.bytes().filter(|byte| *byte == b'=').count();
            assert_eq!(pad, (3 - bytes % 3) % 3);
        }
    }

    #[test]
    fn ids_are_unique_and_patched_in_place() {
        let requests = build("--echo-id --prompts 3 -H a:b");
        let template = &requests.templates[2];
        let at = template.id_at.unwrap();
        let mut head = template.head.clone();
        write_id(&mut head[at..at + ID_LEN], 0xabc, 0x12);
        let text = String::from_utf8(head).unwrap();
        assert!(
            text.contains("X-Request-Id: 0000000000000abc0000000000000012\r\n"),
            "{text}"
        );
        assert!(text.contains("a: b\r\n") && text.contains("000002 "));
    }
}
