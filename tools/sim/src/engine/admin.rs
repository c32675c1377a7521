//! Everything that is not generation: health, models, metrics, the small endpoints, and paths of the
//! simulator's own.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use super::answer::text_of;
use super::ec::Lens;
use super::error::ApiError;
use super::prompt::{of_messages, of_prompt};
use super::route::{Request, error, json};
use super::run::Fixed;
use crate::http::head::Method;
use crate::json::{elements, integer, is_string, members, object, push_string};
use crate::text::tokenize;

pub(crate) fn answer(engine: &Engine, request: &Request, path: &[u8]) -> Fixed {
    let get = matches!(request.head.method, Method::Get | Method::Head);
    let post = request.head.method == Method::Post;
    match path {
        b"/health" | b"/ping" if get => Fixed {
            content_type: "",
            ..json(200, "")
        },
        b"/ping" if post => Fixed {
            content_type: "",
            ..json(200, "")
        },
        b"/v1/models" if get => models(engine),
        b"/version" if get => json(200, "{\"version\":\"0.32.0+pdsim\"}"),
        b"/metrics" if get => metrics(engine),
        b"/v1/sim/204" if get || post => json(204, ""),
        b"/v1/sim/304" if get => Fixed {
            extra: "etag: \"sim\"\r\n".into(),
            ..json(304, "")
        },
        b"/v1/sim/echo" if post => echo(request),
        b"/tokenize"
        | b"/detokenize"
        | b"/v1/chat/completions/render"
        | b"/v1/embeddings"
        | b"/pooling"
        | b"/score"
        | b"/v1/score"
        | b"/rerank"
        | b"/v1/rerank"
        | b"/v2/rerank"
        | b"/classify"
            if post =>
        {
            small(engine, request, path).unwrap_or_else(|e| error(&e))
        }
        b"/health" | b"/ping" | b"/v1/models" | b"/version" | b"/metrics" | b"/v1/sim/204"
        | b"/v1/sim/304" => not_allowed("GET"),
        b"/v1/completions"
        | b"/v1/chat/completions"
        | b"/tokenize"
        | b"/detokenize"
        | b"/v1/chat/completions/render"
        | b"/v1/embeddings"
        | b"/pooling"
        | b"/score"
        | b"/v1/score"
        | b"/rerank"
        | b"/v1/rerank"
        | b"/v2/rerank"
        | b"/classify"
        | b"/v1/sim/echo" => not_allowed("POST"),
        _ => json(404, "{\"detail\":\"Not Found\"}"),
    }
}

fn not_allowed(allow: &str) -> Fixed {
    let extra = format!("allow: {allow}\r\n");
    Fixed {
        extra,
        ..json(405, "{\"detail\":\"Method Not Allowed\"}")
    }
}

fn models(engine: &Engine) -> Fixed {
    let mut name = Vec::new();
    push_string(&mut name, &engine.options().model);
    let name = String::from_utf8_lossy(&name).into_owned();
    let length = engine.options().max_model_len;
    let created = crate::clock::unix_seconds();
    json(
        200,
        format!(
            "{{\"object\":\"list\",\"data\":[{{\"id\":{name},\"object\":\"model\",\"created\":\
             {created},\"owned_by\":\"vllm\",\"root\":{name},\"parent\":null,\"max_model_len\":\
             {length},\"permission\":[]}}]}}"
        ),
    )
}

fn metrics(engine: &Engine) -> Fixed {
    let counters = &engine.shared().counters;
    let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
    let (local, external) = (
        load(&counters.local_tokens),
        load(&counters.external_tokens),
    );
    let held = engine
        .world
        .ledger
        .held_tokens(engine.index, engine.world.now());
    let by_source = "vllm:prompt_tokens_by_source_total";
    let rows = [
        (
            "gauge",
            "vllm:num_requests_running",
            "",
            load(&counters.running),
        ),
        (
            "gauge",
            "vllm:num_requests_waiting",
            "",
            load(&counters.waiting),
        ),
        ("gauge", "pdsim:kv_tokens_held", "", held),
        ("counter", "vllm:prompt_tokens_total", "", local + external),
        (
            "counter",
            "vllm:generation_tokens_total",
            "",
            load(&counters.generated),
        ),
        ("counter", by_source, ",source=\"local_compute\"", local),
        ("", by_source, ",source=\"external_kv_transfer\"", external),
        (
            "counter",
            "vllm:nixl_num_transfers_total",
            "",
            load(&counters.transfers),
        ),
        (
            "counter",
            "vllm:nixl_num_failed_transfers_total",
            "",
            load(&counters.failed_transfers),
        ),
        // Half a MiB for each block of 128 tokens.
        (
            "counter",
            "vllm:nixl_bytes_transferred_total",
            "",
            external * 4096,
        ),
    ];
    let model = &engine.options().model;
    let mut text = String::new();
    for (kind, name, more, value) in rows {
        if !kind.is_empty() {
            let family = name.strip_suffix("_total").unwrap_or(name);
            text += &format!("# HELP {family} simulated\n# TYPE {family} {kind}\n");
        }
        text += &format!("{name}{{engine=\"0\",model_name=\"{model}\"{more}}} {value}.0\n");
    }
    Fixed {
        content_type: "text/plain; version=0.0.4; charset=utf-8",
        ..json(200, text)
    }
}

/// The body and headers that came, as JSON.
fn echo(request: &Request) -> Fixed {
    let mut slots = [httparse::EMPTY_HEADER; 96];
    let mut parsed = httparse::Request::new(&mut slots);
    let _ = parsed.parse(request.input);
    let mut out = b"{\"headers\":[".to_vec();
    for (i, header) in parsed.headers.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'[');
        push_string(&mut out, header.name);
        out.push(b',');
        push_string(&mut out, &String::from_utf8_lossy(header.value));
        out.push(b']');
    }
    out.extend_from_slice(b"],\"body\":");
    push_string(&mut out, &String::from_utf8_lossy(request.body));
    out.push(b'}');
    json(200, out)
}

/// `/tokenize` and the pooling endpoints.
fn small(engine: &Engine, request: &Request, path: &[u8]) -> Result<Fixed, ApiError> {
    let body = request.body;
    if !request.head.json {
        return Err(ApiError::body(
            "Unsupported Media Type: Only 'application/json' is allowed",
        ));
    }
    let mut top = Vec::new();
    object(body, &mut top).map_err(|e| ApiError::body(format!("JSON decode error: {}", e.what)))?;
    let field = |name: &[u8]| members(body.trim_ascii()).filter(|m| m.0 == name).last();
    let need = |name: &'static str| {
        let found = field(name.as_bytes()).map(|m| m.1);
        found.ok_or_else(|| ApiError::body(format!("{name}: Field required")))
    };
    if let Some((_, model)) = field(b"model")
        && is_string(model)
        && *crate::json::string(model) != *engine.options().model.as_bytes()
    {
        return Err(ApiError::no_model(&String::from_utf8_lossy(
            &crate::json::string(model),
        )));
    }
    let text = match path {
        b"/tokenize" => {
            let messages = field(b"messages").map(|m| m.1);
            tokenized(
                engine,
                messages.map_or_else(|| need("prompt"), Ok)?,
                messages.is_some(),
            )?
        }
        b"/v1/chat/completions/render" => rendered(engine, need("messages")?)?,
        b"/detokenize" => {
            let ids: Option<Vec<u32>> = elements(need("tokens")?)
                .map(|v| integer(v)?.try_into().ok())
                .collect();
            let ids = ids.ok_or_else(|| ApiError::body("tokens: not a list of ids"))?;
            let mut text = Vec::new();
            push_string(&mut text, &text_of(&ids));
            format!("{{\"prompt\":{}}}", String::from_utf8_lossy(&text))
        }
        b"/v1/embeddings" | b"/pooling" => pooled(need("input")?, "embedding")?,
        b"/classify" => pooled(need("input")?, "probs")?,
        _ => ranked(
            need(if path.ends_with(b"score") {
                "text_2"
            } else {
                "documents"
            })?,
            path,
        ),
    };
    Ok(json(200, text))
}

fn tokenized(engine: &Engine, value: &[u8], chat: bool) -> Result<String, ApiError> {
    let mut texts = vec![Vec::new()];
    if chat {
        of_messages(value, Some(&mut texts[0]), &Lens::default())?;
    } else {
        of_prompt(value, Some(&mut texts))?;
    }
    let ids = tokenize(&texts[0]);
    let (count, most) = (ids.len(), engine.options().max_model_len);
    Ok(format!(
        "{{\"count\":{count},\"max_model_len\":{most},\"tokens\":{ids:?},\"token_strs\":null}}"
    ))
}

/// The request that an engine without a front end would get for this chat.
fn rendered(engine: &Engine, messages: &[u8]) -> Result<String, ApiError> {
    let mut text = Vec::new();
    of_messages(messages, Some(&mut text), &super::ec::Lens::default())?;
    let mut model = Vec::new();
    push_string(&mut model, &engine.options().model);
    let (ids, model) = (
        tokenize(&text),
        String::from_utf8_lossy(&model).into_owned(),
    );
    Ok(format!(
        "{{\"request_id\":\"chatcmpl-render\",\"token_ids\":{ids:?},\"features\":null,\
         \"sampling_params\":{{\"max_tokens\":16}},\"model\":{model},\"stream\":false}}"
    ))
}

/// One small vector per input.
fn pooled(input: &[u8], name: &str) -> Result<String, ApiError> {
    let prompts = of_prompt(input, None)?;
    let rows: Vec<String> = (prompts.iter().enumerate())
        .map(|(i, p)| {
            let [a, b] = [p.hash >> 56, p.hash >> 48 & 0xff].map(|n| n as f64 / 256.0);
            format!("{{\"index\":{i},\"object\":\"{name}\",\"{name}\":[{a},{b}]}}")
        })
        .collect();
    let tokens: u64 = prompts.iter().map(|p| u64::from(p.tokens)).sum();
    Ok(format!(
        "{{\"object\":\"list\",\"data\":[{}],\"usage\":{{\"prompt_tokens\":{tokens},\
         \"total_tokens\":{tokens}}}}}",
        rows.join(",")
    ))
}

fn ranked(documents: &[u8], path: &[u8]) -> String {
    let count = if documents[0] == b'[' {
        elements(documents).count()
    } else {
        1
    };
    let score = path.ends_with(b"score");
    let rows: Vec<String> = (0..count)
        .map(|i| {
            let value = 1.0 / (i + 1) as f64;
            let name = if score { "score" } else { "relevance_score" };
            format!("{{\"index\":{i},\"{name}\":{value}}}")
        })
        .collect();
    let list = if score { "data" } else { "results" };
    format!(
        "{{\"{list}\":[{}],\"usage\":{{\"total_tokens\":{count}}}}}",
        rows.join(",")
    )
}
