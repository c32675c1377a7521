//! What the dummy nodes answer. One "token" is one character of a sentence about a fox.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Counts, DummyOptions};
use crate::http::head::Method;
use crate::http::wire::JSON;
use crate::json::{
    Member, elements, is_null, is_string, lax_boolean, lax_integer, members, object, push_string,
    string, unescape,
};
use crate::text::push_hex;

const SENTENCE: &str = "The quick brown fox jumps over the lazy dog. ";
const REPEATED: usize = 20;
const DEFAULT_TOKENS: i64 = 16;

pub(super) struct Whole {
    pub status: u16,
    pub kind: &'static str,
    pub extra: &'static str,
    pub body: Vec<u8>,
}

pub(super) enum Reply {
    Whole(Whole),
    Generate(Job),
}

fn whole(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply::Whole(Whole {
        status,
        kind: JSON,
        extra: "",
        body: body.into(),
    })
}

fn text(body: impl Into<Vec<u8>>) -> Reply {
    Reply::Whole(Whole {
        status: 200,
        kind: "text/plain; charset=utf-8",
        extra: "",
        body: body.into(),
    })
}

fn not_allowed(extra: &'static str) -> Reply {
    Reply::Whole(Whole {
        status: 405,
        kind: JSON,
        extra,
        body: b"{\"detail\":\"Method Not Allowed\"}".to_vec(),
    })
}

pub(super) fn of(
    options: &DummyOptions,
    counts: &Counts,
    method: Method,
    path: &[u8],
    body: &[u8],
) -> Reply {
    let role = if options.prefill { "prefill" } else { "decode" };
    match (path, method) {
        (b"/health", Method::Get) => whole(
            200,
            format!("{{\"status\":\"ok\",\"node_type\":\"{role}\"}}"),
        ),
        (b"/ping", Method::Get | Method::Post) => text("pong"),
        (b"/v1/models", Method::Get) => models(options),
        (b"/metrics", Method::Get) => Reply::Whole(Whole {
            status: 200,
            kind: "text/plain; version=0.0.4; charset=utf-8",
            extra: "",
            body: metrics(counts, role).into_bytes(),
        }),
        (b"/v1/completions", Method::Post) => generate(options, counts, body, false),
        (b"/v1/chat/completions", Method::Post) => generate(options, counts, body, true),
        (b"/health" | b"/v1/models" | b"/metrics", _) => not_allowed("allow: GET\r\n"),
        (b"/ping", _) => not_allowed("allow: GET, POST\r\n"),
        (b"/v1/completions" | b"/v1/chat/completions", _) => not_allowed("allow: POST\r\n"),
        _ => whole(404, "{\"detail\":\"Not Found\"}"),
    }
}

fn models(options: &DummyOptions) -> Reply {
    let mut out = b"{\"object\":\"list\",\"data\":[{\"id\":".to_vec();
    push_string(&mut out, &options.model);
    let rest = format!(
        ",\"object\":\"model\",\"created\":{},\"owned_by\":\"dummy\",\"max_model_len\":{}}}]}}",
        crate::clock::unix_seconds(),
        options.max_model_len
    );
    out.extend_from_slice(rest.as_bytes());
    whole(200, out)
}

fn metrics(counts: &Counts, role: &str) -> String {
    let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        page += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (more, value) in samples {
            page += &format!("{name}{{node_type=\"{role}\"{more}}} {value}\n");
        }
    };
    let endpoints = [
        (",endpoint=\"/v1/completions\"", read(&counts.requests[0])),
        (
            ",endpoint=\"/v1/chat/completions\"",
            read(&counts.requests[1]),
        ),
    ];
    family(
        "dummy_requests_total",
        "counter",
        "Requests to generate.",
        &endpoints,
    );
    let tokens = [("", read(&counts.prompt_tokens))];
    family(
        "dummy_prompt_tokens_total",
        "counter",
        "Prompt tokens taken.",
        &tokens,
    );
    let tokens = [("", read(&counts.generated))];
    family(
        "dummy_completion_tokens_total",
        "counter",
        "Tokens (characters) generated.",
        &tokens,
    );
    let running = [("", read(&counts.running))];
    family(
        "dummy_active_requests",
        "gauge",
        "Requests being answered now.",
        &running,
    );
    let open = [("", read(&counts.connections))];
    family("dummy_connections", "gauge", "Open connections.", &open);
    page
}

/// An accepted request.
pub(super) struct Job {
    chat: bool,
    pub stream: bool,
    id: String,
    /// As JSON.
    model: Vec<u8>,
    text: &'static str,
    pub prompt_tokens: u64,
    created: u64,
}

/// The way of FastAPI to say what is wrong with a body.
fn invalid(kind: &str, place: &str, message: &str) -> Reply {
    whole(
        422,
        format!(
            "{{\"detail\":[{{\"type\":\"{kind}\",\"loc\":[\"body\"{place}],\"msg\":\"{message}\",\"input\":{{}}}}]}}"
        ),
    )
}

fn generate(options: &DummyOptions, counts: &Counts, body: &[u8], chat: bool) -> Reply {
    let mut top = Vec::new();
    if object(body, &mut top).is_err() {
        return invalid("json_invalid", ",0", "JSON decode error");
    }
    let get = |name: &[u8]| value(body, &top, name);
    let key = if chat { "messages" } else { "prompt" };
    let Some(prompt) = get(key.as_bytes()) else {
        return invalid("missing", &format!(",\"{key}\""), "Field required");
    };
    if chat && prompt[0] != b'[' {
        let message = "Input should be a valid list";
        return invalid("list_type", ",\"messages\"", message);
    }
    let stream = match get(b"stream").map(lax_boolean) {
        None => false,
        Some(Some(stream)) => stream,
        Some(None) => {
            let message = "Input should be a valid boolean";
            return invalid("bool_parsing", ",\"stream\"", message);
        }
    };
    let names: &[&str] = if chat {
        &["max_completion_tokens", "max_tokens"]
    } else {
        &["max_tokens"]
    };
    let mut tokens = DEFAULT_TOKENS;
    if let Some((name, limit)) = names.iter().find_map(|n| Some((n, get(n.as_bytes())?))) {
        match lax_integer(limit) {
            Some(n) => tokens = n,
            None => {
                let message = "Input should be a valid integer";
                return invalid("int_parsing", &format!(",\"{name}\""), message);
            }
        }
    }
    let length = (tokens.max(0) as usize).min(SENTENCE.len() * REPEATED);
    let prompt_tokens = if chat {
        chat_tokens(prompt)
    } else {
        prompt_tokens(prompt)
    };
    counts.requests[usize::from(chat)].fetch_add(1, Ordering::Relaxed);
    counts
        .prompt_tokens
        .fetch_add(prompt_tokens, Ordering::Relaxed);
    counts.generated.fetch_add(length as u64, Ordering::Relaxed);
    let mut model = Vec::new();
    match get(b"model").filter(|m| is_string(m)) {
        Some(given) => model.extend_from_slice(given),
        None => push_string(&mut model, &options.model),
    }
    Reply::Generate(Job {
        chat,
        stream,
        id: id(chat),
        model,
        text: &text_of_all()[..length],
        prompt_tokens,
        created: crate::clock::unix_seconds(),
    })
}

fn text_of_all() -> &'static str {
    static ALL: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ALL.get_or_init(|| SENTENCE.repeat(REPEATED))
}

/// The last member of this name, if it is not null.
fn value<'a>(body: &'a [u8], top: &[Member], name: &[u8]) -> Option<&'a [u8]> {
    let at = |span: (u32, u32)| &body[span.0 as usize..span.1 as usize];
    let member = top.iter().rev().find(|m| *unescape(at(m.key)) == *name)?;
    Some(at(member.value)).filter(|v| !is_null(v))
}

/// Twelve hex digits, as of a UUID's end.
fn id(chat: bool) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mixed = crate::text::mix(since.as_nanos() as u64, number);
    let mut id = if chat {
        b"chatcmpl-".to_vec()
    } else {
        b"cmpl-".to_vec()
    };
    push_hex(&mut id, mixed >> 16, 12);
    String::from_utf8(id).unwrap_or_default()
}

/// Characters of a JSON string.
fn characters(value: &[u8]) -> u64 {
    if !is_string(value) {
        return 0;
    }
    String::from_utf8_lossy(&string(value)).chars().count() as u64
}

fn prompt_tokens(prompt: &[u8]) -> u64 {
    if is_string(prompt) {
        return (characters(prompt) / 4).max(1);
    }
    if prompt[0] != b'[' {
        return 1;
    }
    match elements(prompt).next().map(|first| first[0]) {
        None => 0,
        Some(b'"') => elements(prompt).map(characters).sum::<u64>() / 4,
        Some(b'[') => elements(prompt)
            .map(|list| elements(list).count() as u64)
            .sum(),
        Some(_) => elements(prompt).count() as u64,
    }
}

fn chat_tokens(messages: &[u8]) -> u64 {
    let mut all = 0;
    for message in elements(messages).filter(|m| m[0] == b'{') {
        for (key, value) in members(message) {
            match (key, value[0]) {
                (b"role" | b"content", b'"') => all += characters(value),
                (b"content", b'[') => {
                    let parts = elements(value).filter(|part| part[0] == b'{');
                    let texts = parts.flat_map(members).filter(|(key, _)| *key == b"text");
                    all += texts.map(|(_, text)| characters(text)).sum::<u64>();
                }
                _ => {}
            }
        }
    }
    all / 4
}

impl Job {
    fn open(&self, object: &str) -> Vec<u8> {
        let (id, created) = (&self.id, self.created);
        let mut out =
            format!("{{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":{created},\"model\":")
                .into_bytes();
        out.extend_from_slice(&self.model);
        out
    }

    pub fn answer(&self) -> Vec<u8> {
        let object = if self.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut out = self.open(object);
        let text = self.text;
        let said = match self.chat {
            true => format!("\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}}"),
            false => format!("\"text\":\"{text}\",\"logprobs\":null"),
        };
        let (prompt, completion) = (self.prompt_tokens, text.len() as u64);
        let total = prompt + completion;
        out.extend_from_slice(
            format!(
                ",\"choices\":[{{\"index\":0,{said},\"finish_reason\":\"stop\"}}],\"usage\":\
                 {{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\
                 \"total_tokens\":{total}}}}}"
            )
            .as_bytes(),
        );
        out
    }

    fn event(&self, said: &str, finish: &str) -> Vec<u8> {
        let object = if self.chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let mut out = b"data: ".to_vec();
        out.extend_from_slice(&self.open(object));
        let choice =
            format!(",\"choices\":[{{\"index\":0,{said},\"finish_reason\":{finish}}}]}}\n\n");
        out.extend_from_slice(choice.as_bytes());
        out
    }

    /// The events of the stream, and whether each is a character of text.
    pub fn events(&self) -> impl Iterator<Item = (Vec<u8>, bool)> {
        let role = "\"delta\":{\"role\":\"assistant\",\"content\":null}";
        let role = self.chat.then(|| (self.event(role, "null"), false));
        let one = |at: usize| {
            let c = &self.text[at..at + 1];
            let said = match self.chat {
                true => format!("\"delta\":{{\"content\":\"{c}\"}}"),
                false => format!("\"text\":\"{c}\",\"logprobs\":null"),
            };
            (self.event(&said, "null"), true)
        };
        let last = match self.chat {
            true => "\"delta\":{\"content\":null}",
            false => "\"text\":\"\",\"logprobs\":null",
        };
        let ends = [
            (self.event(last, "\"stop\""), false),
            (b"data: [DONE]\n\n".to_vec(), false),
        ];
        role.into_iter()
            .chain((0..self.text.len()).map(one))
            .chain(ends)
    }
}
