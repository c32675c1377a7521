//! A stream of our own making, part by part: what the engines say comes in whole answers.

use std::io;

use crate::error::{Error, Kind, Stage};
use crate::metrics::{Broken, Counter};
use crate::wire::chunk;
use crate::wire::openai::error_body;
use crate::wire::sse;

use super::send::put_field;
use super::{Exchange, Reply, Stop};

impl Reply {
    pub async fn begin_stream(&mut self, x: &Exchange) -> io::Result<()> {
        self.status = 200;
        let mut out =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n".to_vec();
        if self.http11 {
            put_field(&mut out, b"transfer-encoding", b"chunked");
        }
        put_field(&mut out, b"x-request-id", x.request().id.as_bytes());
        x.trace.server_timing(&mut out);
        self.put_connection(&mut out, self.http11);
        out.extend_from_slice(b"\r\n");
        x.trace.ttft.set(Some(x.trace.started.elapsed()));
        x.trace.first_chunk.set(x.trace.ttft.get());
        self.write(out).await.0
    }

    /// Whole events.
    pub async fn stream_part(&mut self, events: Vec<u8>) -> io::Result<()> {
        self.chunks += 1;
        let out = match self.http11 {
            true => {
                let mut framed = Vec::with_capacity(events.len() + 16);
                chunk::put_chunk(&mut framed, &events);
                framed
            }
            false => events,
        };
        self.write(out).await.0
    }

    pub async fn end_stream(&mut self) -> io::Result<()> {
        match self.http11 {
            true => self.write(chunk::END.to_vec()).await.0,
            false => Ok(()),
        }
    }

    /// It cannot go on: the client is told, and must not take what it has for the whole.
    pub async fn broken_off(&mut self, x: &Exchange, stop: Stop) -> Stop {
        let error = match stop {
            Stop::Error(error) | Stop::Again(error) | Stop::Broken(error) => error,
            Stop::Said(said) => {
                let what = format!("an engine answered {} in the middle", said.0);
                Error::new(Kind::BadResponse, Stage::Stream, what)
            }
            Stop::Answer(answer) => {
                let what = format!("an engine answered {} in the middle", answer.head.status);
                Error::new(Kind::BadResponse, Stage::Stream, what).at(&answer.instance.name)
            }
        };
        x.tools.metrics.inc(Counter::broken_streams(Broken::Other));
        if self.http11 {
            let (class, status) = (error.kind.class(), error.kind.status());
            let body = error_body(&error.to_string(), class, status);
            _ = self.stream_part(sse::error_event(&body, false)).await;
        } else {
            self.reset = true;
        }
        self.broken = true;
        self.keep_alive = false;
        Stop::Broken(error)
    }
}
