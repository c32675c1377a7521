//! The access line: one per request, filled in on a shard and turned into text on the writer thread.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::id::Id;

use super::Level;
use super::line::{self, Json, cut_box};

/// What a client chose is cut to this, so that the ring's memory has a bound.
const PATH_BYTES_MAX: usize = 512;
const ID_BYTES_MAX: usize = 128;
const METHOD_BYTES_MAX: usize = 32;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Ok,
    ClientGone,
    /// After the reply had begun; says why.
    Broken(&'static str),
    /// Answered with an error of ours; says which kind.
    Error(&'static str),
}

impl End {
    fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            End::Ok => ("ok", None),
            End::ClientGone => ("client_gone", None),
            End::Broken(reason) => ("broken", Some(reason)),
            End::Error(reason) => ("error", Some(reason)),
        }
    }
}

/// One request. Text that is empty and spans that are `None` do not show.
#[derive(Debug, Clone)]
pub struct Access {
    pub time: SystemTime,
    pub id: Id,
    /// `None` on a unix socket.
    pub client: Option<IpAddr>,
    pub method: Cow<'static, str>,
    /// Path with query, as the client sent it.
    pub path: Box<str>,
    /// 0 if nothing was answered.
    pub status: u16,
    pub endpoint: &'static str,
    pub handshake: &'static str,
    /// The names of all encoders, with commas.
    pub encode: Option<Arc<str>>,
    pub prefill: Option<Arc<str>>,
    pub decode: Option<Arc<str>>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub chunks: u64,
    pub retries: u8,
    pub body: Option<Duration>,
    pub queue: Option<Duration>,
    pub encode_time: Option<Duration>,
    pub prefill_time: Option<Duration>,
    pub decode_head: Option<Duration>,
    pub ttft: Option<Duration>,
    pub stream: Option<Duration>,
    pub total: Duration,
    pub end: End,
}

impl Default for Access {
    /// A request of which nothing is known yet, at this moment.
    fn default() -> Access {
        Access {
            time: SystemTime::now(),
            id: Id::default(),
            client: None,
            method: Cow::Borrowed(""),
            path: Box::default(),
            status: 0,
            endpoint: "",
            handshake: "",
            encode: None,
            prefill: None,
            decode: None,
            bytes_in: 0,
            bytes_out: 0,
            chunks: 0,
            retries: 0,
            body: None,
            queue: None,
            encode_time: None,
            prefill_time: None,
            decode_head: None,
            ttft: None,
            stream: None,
            total: Duration::ZERO,
            end: End::Ok,
        }
    }
}

impl Access {
    pub(super) fn bounded(mut self) -> Access {
        self.path = cut_box(self.path, PATH_BYTES_MAX);
        if let Id::Given(id) = self.id {
            self.id = Id::Given(cut_box(id, ID_BYTES_MAX));
        }
        if self.method.len() > METHOD_BYTES_MAX {
            line::cut(self.method.to_mut(), METHOD_BYTES_MAX);
        }
        self
    }

    /// Who and where, in both formats.
    fn names(&self) -> [(&'static str, &str); 5] {
        [
            ("endpoint", self.endpoint),
            ("handshake", self.handshake),
            ("encode", self.encode.as_deref().unwrap_or_default()),
            ("prefill", self.prefill.as_deref().unwrap_or_default()),
            ("decode", self.decode.as_deref().unwrap_or_default()),
        ]
    }

    fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("in", self.bytes_in),
            ("out", self.bytes_out),
            ("chunks", self.chunks),
            ("retries", self.retries.into()),
        ]
    }

    fn spans(&self) -> [(&'static str, Option<Duration>); 8] {
        [
            ("body_ms", self.body),
            ("queue_ms", self.queue),
            ("encode_ms", self.encode_time),
            ("prefill_ms", self.prefill_time),
            ("decode_head_ms", self.decode_head),
            ("ttft_ms", self.ttft),
            ("stream_ms", self.stream),
            ("total_ms", Some(self.total)),
        ]
    }

    pub(super) fn format_text(&self, out: &mut String) {
        line::timestamp(self.time, out);
        out.extend([" ", Level::Info.name(), " access"]);
        text_value("id", &self.id, out);
        if let Some(client) = self.client {
            let _ = write!(out, " client={client}");
        }
        out.push_str(" \"");
        line::escape(&self.method, true, out);
        out.push(' ');
        line::escape(&self.path, true, out);
        let _ = write!(out, "\" {}", self.status);
        for (key, name) in self.names() {
            text_value(key, name, out);
        }
        for (key, count) in self.counts() {
            let _ = write!(out, " {key}={count}");
        }
        for (key, span) in self.spans() {
            if let Some(span) = span {
                out.extend([" ", key, "="]);
                line::millis(span, out);
            }
        }
        let (end, reason) = self.end.words();
        text_value("end", end, out);
        text_value("reason", reason.unwrap_or_default(), out);
    }

    pub(super) fn format_json(&self, out: &mut String) {
        let mut json = Json::object(self.time, Level::Info, out).text("message", "access");
        json = json_text(json, "id", &self.id);
        if let Some(client) = self.client {
            json = json.text("client", &client.to_string());
        }
        json = json.text("method", &self.method).text("path", &self.path);
        json = json.number("status", self.status.into());
        for (key, name) in self.names() {
            json = json_text(json, key, name);
        }
        for (key, count) in self.counts() {
            json = json.number(key, count);
        }
        for (key, span) in self.spans() {
            if let Some(span) = span {
                json = json.millis(key, span);
            }
        }
        let (end, reason) = self.end.words();
        json_text(json.text("end", end), "reason", reason.unwrap_or_default()).close();
    }
}

fn text_value(key: &str, text: &str, out: &mut String) {
    if !text.is_empty() {
        out.extend([" ", key, "="]);
        line::value(text, out);
    }
}

fn json_text<'a>(json: Json<'a>, key: &str, text: &str) -> Json<'a> {
    if text.is_empty() {
        json
    } else {
        json.text(key, text)
    }
}
