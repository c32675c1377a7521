//! The client's side: what it gets, and whether it has begun to get it.

use std::io;
use std::rc::Rc;

use crate::config::Config;
use crate::error::Error;
use crate::net::buffer::{LARGE, SMALL};
use crate::net::inbox::Inbox;
use crate::net::stream::{Stream, shutdown_now};
use crate::net::sweep::{Slot, Wait};
use crate::shared::Snapshot;
use crate::wire::head::{Field, Framing, Name, ResponseHead};
use crate::wire::json::{self, Edit, Piece, Pieces};

use super::call::Answer;
use super::send::put_field;
use super::{Exchange, Tools, shape};

/// The one reply to one request. Late: nothing is sent before an engine has answered.
pub struct Reply {
    pub client: Rc<Stream>,
    /// What the client sends meanwhile.
    pub inbox: Rc<Inbox>,
    pub slot: Rc<Slot>,
    pub tools: Rc<Tools>,
    config: Snapshot<Config>,
    pub http11: bool,
    pub to_head: bool,
    /// A browser asks from another origin, and this surface lets any origin read the answer.
    pub cors: bool,
    /// The connection will serve another request.
    pub keep_alive: bool,
    /// The connection must end in a reset: to this client a FIN would be a clean end of its body.
    pub reset: bool,
    /// What the client has is not the whole, and it must see that.
    pub broken: bool,
    /// The first byte is out: no other answer is possible.
    pub committed: bool,
    pub status: u16,
    pub bytes_out: u64,
    pub chunks: u64,
}

/// A reply of our own, made from parts.
pub struct Own<'a> {
    pub status: u16,
    /// Empty: none is said.
    pub content_type: &'a str,
    pub body: &'a [u8],
    pub extra: &'a [(&'a str, &'a str)],
}

impl Reply {
    pub fn new(client: Rc<Stream>, inbox: Rc<Inbox>, slot: Rc<Slot>, tools: Rc<Tools>) -> Reply {
        Reply {
            client,
            inbox,
            slot,
            config: tools.config(),
            tools,
            http11: true,
            to_head: false,
            cors: false,
            keep_alive: false,
            reset: false,
            broken: false,
            committed: false,
            status: 0,
            bytes_out: 0,
            chunks: 0,
        }
    }

    /// Writes to the client; a failure (it left, or takes nothing) is remembered in the slot or the error.
    // An async fn holds what it is given by value twice, and a stream rests in a future that has room for this.
    #[allow(clippy::manual_async_fn)]
    pub fn write(&mut self, bytes: Vec<u8>) -> impl Future<Output = (io::Result<()>, Vec<u8>)> {
        async move {
            self.committed = true;
            self.slot
                .arm(Wait::ClientWrite, self.config.timeouts.client_write);
            let length = bytes.len() as u64;
            let (result, back) = self.client.write_all(bytes).await;
            self.slot.disarm();
            self.tools.pace.stirred();
            if result.is_ok() {
                self.bytes_out += length;
            } else {
                self.keep_alive = false;
            }
            (result, back)
        }
    }

    /// Sends a whole reply of our own.
    pub async fn own(&mut self, id: Option<&str>, reply: Own<'_>) -> io::Result<()> {
        let mut out = self.tools.buffers.lend(SMALL);
        self.status = reply.status;
        put_status(&mut out, reply.status, reason(reply.status));
        if !reply.content_type.is_empty() {
            put_field(&mut out, b"content-type", reply.content_type.as_bytes());
        }
        for (name, value) in reply.extra {
            put_field(&mut out, name.as_bytes(), value.as_bytes());
        }
        if let Some(id) = id {
            put_field(&mut out, b"x-request-id", id.as_bytes());
        }
        self.put_origin(&mut out);
        put_length(&mut out, reply.body.len() as u64);
        self.put_connection(&mut out, true);
        out.extend_from_slice(b"\r\n");
        if !self.to_head {
            out.extend_from_slice(reply.body);
        }
        let (result, back) = self.write(out).await;
        self.tools.buffers.give(back);
        result
    }

    /// Sends an error body in the surface's shape.
    pub async fn error(&mut self, id: Option<&str>, error: &Error) -> io::Result<()> {
        let body = shape::body(self.config.surface, error);
        self.error_with(id, error, &body).await
    }

    /// Sends a status and a JSON body.
    pub async fn said(&mut self, id: &str, (status, body): &(u16, Vec<u8>)) -> io::Result<()> {
        let own = Own {
            status: *status,
            content_type: "application/json",
            body,
            extra: &[],
        };
        self.own(Some(id), own).await
    }

    /// As [`Reply::error`], in these words.
    pub async fn error_with(
        &mut self,
        id: Option<&str>,
        error: &Error,
        body: &[u8],
    ) -> io::Result<()> {
        let status = shape::status(self.config.surface, error);
        let retry = error.kind.retry_after_s().map(|s| s.to_string());
        let extra: &[(&str, &str)] = match &retry {
            Some(seconds) => &[("retry-after", seconds)],
            None => &[],
        };
        let own = Own {
            status,
            content_type: shape::content_type(self.config.surface, error),
            body,
            extra,
        };
        self.own(id, own).await
    }

    /// Sends an instance's whole answer as the reply, with its own status and type.
    pub async fn answer(&mut self, x: &Exchange, answer: &Answer) -> io::Result<()> {
        self.answer_edited(x, answer, &[]).await
    }

    /// The same, with some of its top-level fields changed; every other byte is as the instance sent it.
    pub async fn answer_edited(
        &mut self,
        x: &Exchange,
        answer: &Answer,
        edits: &[Edit],
    ) -> io::Result<()> {
        let body = answer.body();
        let pieces = match edits {
            [] => Pieces::from_iter([Piece::Source(0..body.len())]),
            edits => json::splice(body, answer.object(), edits),
        };
        let length = json::pieces_len(&pieces);
        let mut out = self.tools.buffers.lend((length + SMALL).min(LARGE));
        let framing = match answer.head.status {
            204 | 304 => None,
            _ => Some(Framing::Length(length as u64)),
        };
        self.put_head(&mut out, x, &answer.head, answer.head_bytes(), framing);
        json::put_pieces(&mut out, body, &pieces);
        let (result, back) = self.write(out).await;
        self.tools.buffers.give(back);
        result
    }

    /// The reply's head, from an instance's: its end-to-end fields in their order; framing, id, timing
    /// and connection are ours. `framing`: what follows; `None` for no body and no length.
    pub fn put_head(
        &mut self,
        out: &mut Vec<u8>,
        x: &Exchange,
        head: &ResponseHead,
        bytes: &[u8],
        framing: Option<Framing>,
    ) {
        self.status = head.status;
        let text = head.reason(bytes);
        put_status(
            out,
            head.status,
            if text.is_empty() {
                reason(head.status)
            } else {
                text
            },
        );
        for field in head.fields.iter() {
            let ours = matches!(field.kind, Name::ContentLength | Name::RequestId);
            if !ours
                && head.fields.end_to_end(bytes, field)
                && !self.speaks_of_origins(field, bytes)
            {
                put_field(out, field.name(bytes), field.value(bytes));
            }
        }
        self.put_origin(out);
        match framing {
            Some(Framing::Length(n)) => put_length(out, n),
            Some(Framing::Chunked) => put_field(out, b"transfer-encoding", b"chunked"),
            Some(Framing::Close) => self.keep_alive = false,
            None => {}
        }
        put_field(out, b"x-request-id", x.request().id.as_bytes());
        x.trace.server_timing(out);
        self.put_connection(out, framing != Some(Framing::Close));
        out.extend_from_slice(b"\r\n");
    }

    /// An engine that does CORS itself would say it a second time; browsers refuse a doubled field.
    fn speaks_of_origins(&self, field: &Field, bytes: &[u8]) -> bool {
        const PREFIX: &[u8] = b"access-control-allow-";
        self.cors
            && field
                .name(bytes)
                .get(..PREFIX.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    fn put_origin(&self, out: &mut Vec<u8>) {
        if self.cors {
            put_field(out, b"access-control-allow-origin", b"*");
        }
    }

    /// Decided here, as late as can be: a proxy that has begun to drain since the request came takes no other
    /// on this connection, and whoever is not told so sends it into the void. (Whoever has sent it already learns
    /// from the same word that it was not begun; RFC 9112 9.3.2.)
    pub fn put_connection(&mut self, out: &mut Vec<u8>, framed: bool) {
        self.keep_alive &= framed && !self.tools.draining();
        if !self.keep_alive {
            put_field(out, b"connection", b"close");
        } else if !self.http11 {
            put_field(out, b"connection", b"keep-alive");
        }
    }

    /// Breaks the connection off, so that the client cannot take what it has for the whole.
    pub fn break_off(&mut self) {
        self.keep_alive = false;
        self.broken = true;
        shutdown_now(self.client.fd());
    }
}

fn put_status(out: &mut Vec<u8>, status: u16, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_length(out: &mut Vec<u8>, length: u64) {
    put_field(
        out,
        b"content-length",
        itoa::Buffer::new().format(length).as_bytes(),
    );
}

/// The words for statuses that pdrelay sends itself.
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Unknown")
}
