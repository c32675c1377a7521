//! From a complete request to its answer: at once where nothing needs time, else as a `Slow`.

use std::sync::atomic::Ordering;

use super::Engine;
use super::answer::push_answer;
use super::error::ApiError;
use super::job::{Job, accept};
use super::kv::KvAsk;
use super::run::{Fixed, Slow, What};
use super::stream::{done, error_event, push_event, push_final_usage, push_role};
use crate::fault::{Fault, Shape};
use crate::http::head::{Head, Method};
use crate::http::wire::{JSON, SSE, Size, push_chunk, push_head};
use crate::options::KvMode;

pub(crate) enum Turn {
    /// The answer lies in `out`.
    Ready(u16),
    Slow(Box<Slow>),
}

/// A request with its whole body.
pub(crate) struct Request<'a> {
    pub head: &'a Head,
    /// The buffer that the head's spans point into.
    pub input: &'a [u8],
    pub body: &'a [u8],
    pub shape: Shape,
    pub fault: Option<Fault>,
}

impl Request<'_> {
    fn slow(&self, what: What) -> Turn {
        Turn::Slow(Box::new(Slow {
            what,
            shape: self.shape,
            fault: self.fault,
            head_only: self.head.method == Method::Head,
            keep: self.head.keep_alive,
        }))
    }
}

pub(crate) fn json(status: u16, body: impl Into<Vec<u8>>) -> Fixed {
    Fixed {
        status,
        content_type: JSON,
        extra: String::new(),
        body: body.into(),
    }
}

pub(crate) fn error(error: &ApiError) -> Fixed {
    let mut body = Vec::new();
    error.push_json(&mut body);
    json(error.status, body)
}

/// Answers `request`, in `out` if it can be done at once.
pub(crate) fn turn(engine: &Engine, request: &Request, out: &mut Vec<u8>) -> Turn {
    match request.fault {
        Some(Fault::Refuse | Fault::AcceptThenClose | Fault::HangBeforeHead) => {
            // These strike before the engine has seen anything.
            return request.slow(What::Fixed(json(500, "")));
        }
        Some(Fault::Status(status)) => {
            let error = ApiError {
                status,
                kind: "SimulatedFault",
                ..ApiError::body("a status on purpose")
            };
            return request.slow(What::Fixed(self::error(&error)));
        }
        _ => {}
    }
    let path = request.head.path(request.input);
    let fixed = match (allowed(engine, request, path), path) {
        (false, _) => json(401, "{\"error\":\"Unauthorized\"}"),
        (true, b"/v1/completions" | b"/v1/chat/completions")
            if request.head.method == Method::Post =>
        {
            let chat = path.len() > 15;
            if chat && !engine.options().lmcache.chat {
                let fixed = json(404, "{\"detail\":\"Not Found\"}");
                return request.slow(What::Fixed(fixed));
            }
            match accept(engine, request.head, request.input, request.body, chat) {
                Ok(job) => return generate(engine, request, job, out),
                Err(e) => error(&e),
            }
        }
        (true, b"/v1/responses") if request.head.method == Method::Post => {
            let chat = super::responses::as_chat(request.body);
            match chat.and_then(|chat| accept(engine, request.head, request.input, &chat, true)) {
                Ok(mut job) => {
                    job.ask.responses = true;
                    return generate(engine, request, job, out);
                }
                Err(e) => error(&e),
            }
        }
        (true, _) => super::admin::answer(engine, request, path),
    };
    if request.fault.is_some() || request.shape != Shape::Plain || fixed.body.len() > 1 << 20 {
        return request.slow(What::Fixed(fixed));
    }
    push_fixed(out, request, &fixed);
    Turn::Ready(fixed.status)
}

/// What P's bootstrap server answers: decode engines and proxies ask who is there.
pub(crate) fn bootstrap(engine: &Engine, request: &Request, out: &mut Vec<u8>) -> Turn {
    let get = matches!(request.head.method, Method::Get | Method::Head);
    let mooncake = engine.options().kv == KvMode::Mooncake;
    let fixed = match request.head.path(request.input) {
        b"/query" if get && mooncake => json(200, super::mooncake::query(engine)),
        b"/query" if mooncake => json(405, "{\"detail\":\"Method Not Allowed\"}"),
        _ => json(404, "{\"detail\":\"Not Found\"}"),
    };
    push_fixed(out, request, &fixed);
    Turn::Ready(fixed.status)
}

fn push_fixed(out: &mut Vec<u8>, request: &Request, fixed: &Fixed) {
    let nothing = matches!(fixed.status, 204 | 304);
    let size = if nothing {
        Size::Nothing
    } else {
        Size::Length(fixed.body.len())
    };
    let keep = request.head.keep_alive;
    push_head(
        out,
        fixed.status,
        fixed.content_type,
        size,
        keep,
        &fixed.extra,
    );
    if request.head.method != Method::Head && !nothing {
        out.extend_from_slice(&fixed.body);
    }
}

fn allowed(engine: &Engine, request: &Request, path: &[u8]) -> bool {
    let Some(key) = &engine.options().require_key else {
        return true;
    };
    if !path.starts_with(b"/v1") {
        return true;
    }
    let given = request.head.text(request.input, request.head.authorization);
    given.strip_prefix(b"Bearer ") == Some(key.as_bytes())
}

fn generate(engine: &Engine, request: &Request, mut job: Job, out: &mut Vec<u8>) -> Turn {
    let options = engine.options();
    let plain = request.fault.is_none() && request.shape == Shape::Plain && request.head.http11;
    let waits = matches!(job.kv, KvAsk::HangAndDie) || job.tie.waits();
    if !plain || !options.instant() || waits {
        let mut turn = request.slow(What::Generate(Box::new(job)));
        if let Turn::Slow(slow) = &mut turn
            && !request.head.http11
            && slow.shape == Shape::Plain
        {
            slow.shape = Shape::CloseDelimited;
        }
        return turn;
    }
    job.look(engine);
    let loaded = match job.kv {
        KvAsk::Load(source) => job.load(engine, source, true),
        KvAsk::Produce { load: Some(source) } => job.load(engine, source, false),
        _ => Ok(()),
    };
    if let Err(e) = loaded {
        if !job.ask.stream {
            push_fixed(out, request, &error(&e));
            return Turn::Ready(e.status);
        }
        let event = error_event(&e);
        push_head(out, 200, SSE, Size::Chunked, request.head.keep_alive, "");
        push_chunk(out, &event);
        push_done(out, &job);
        out.extend_from_slice(b"0\r\n\r\n");
        return Turn::Ready(200);
    }
    job.produce(engine);
    job.count(engine);
    if job.ask.stream {
        push_stream(engine, request, &job, out);
    } else {
        let mut scratch = engine.scratch.borrow_mut();
        let body = &mut scratch.body;
        body.clear();
        push_answer(body, engine, &job);
        push_head(
            out,
            200,
            JSON,
            Size::Length(body.len()),
            request.head.keep_alive,
            "",
        );
        out.extend_from_slice(body);
    }
    Turn::Ready(200)
}

/// A whole stream at once: what an infinitely fast engine would have sent by now.
fn push_stream(engine: &Engine, request: &Request, job: &Job, out: &mut Vec<u8>) {
    push_head(out, 200, SSE, Size::Chunked, request.head.keep_alive, "");
    let mut scratch = engine.scratch.borrow_mut();
    let event = &mut scratch.event;
    for index in 0..job.rounds() {
        for choice in 0..job.ask.choices() {
            if index == 0 && job.ask.chat {
                event.clear();
                push_role(event, engine, job, choice);
                push_chunk(out, event);
            }
            if job.has_event(choice, index) {
                event.clear();
                push_event(event, engine, job, choice, index);
                push_chunk(out, event);
            }
        }
    }
    event.clear();
    push_final_usage(event, engine, job);
    if !event.is_empty() {
        push_chunk(out, event);
    }
    push_done(out, job);
    out.extend_from_slice(b"0\r\n\r\n");
}

fn push_done(out: &mut Vec<u8>, job: &Job) {
    // An empty chunk would be the last.
    if !done(job).is_empty() {
        push_chunk(out, done(job));
    }
}

/// Numbers a request; the number names it where it has no id of its own.
pub(crate) fn number(engine: &Engine) -> u64 {
    engine.shared().requests.fetch_add(1, Ordering::Relaxed)
}
