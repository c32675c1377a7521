//! A change of an engine's payload on its way to the client: out of the engine's framing, through the
//! [`Rewrite`], into a framing of ours.
//!
//! Most answers pass as they are. Those that must not (P's token put in, an engine's private fields taken
//! out, one API spoken as another) are rewritten here, and only for as long as there is something to
//! change: when a rewrite is over, the rest passes verbatim again.

use std::borrow::Cow;

use crate::wire::chunk::{self, ChunkScan};
use crate::wire::head::Framing;

use super::{Exchange, Opened};

/// An answer that has begun, and what changes it on its way.
pub type Begun = (Opened, Option<Box<dyn Rewrite>>);

/// What changes a payload. Fed with body bytes cut anywhere; boxed, since few streams have one.
pub trait Rewrite {
    /// Takes the next bytes of the engine's payload, and appends what the client gets of them.
    fn feed(&mut self, payload: &[u8], out: &mut Vec<u8>);

    /// The payload is over: appends what was still held back.
    fn finish(&mut self, out: &mut Vec<u8>);

    /// Whatever comes now passes as it is.
    fn over(&self) -> bool {
        false
    }

    /// Nothing that the client counts as its first token has gone out yet.
    fn waiting(&self) -> bool {
        false
    }

    /// The answer has ended, whole or broken off: the place to count and to keep what was learned. Called
    /// once.
    fn ended(&mut self, _x: &Exchange) {}
}

/// Where the engine's body ends.
enum Source {
    /// Bytes still to come.
    Length(u64),
    Chunked(ChunkScan),
    Close,
    Over,
}

/// A body on its way through a rewrite: taken out of the engine's framing, put into one of ours.
pub(super) struct Edited {
    rewrite: Box<dyn Rewrite>,
    source: Source,
    /// To the client in chunks; else until close.
    pub chunks: bool,
}

/// What one read gives the client.
pub(super) struct Taken {
    /// With framing.
    pub out: Vec<u8>,
    /// Bytes of the read that belong to the engine's body.
    pub used: usize,
}

impl Edited {
    pub fn new(framing: Framing, chunks: bool, rewrite: Box<dyn Rewrite>) -> Edited {
        Edited {
            rewrite,
            source: match framing {
                Framing::Length(n) => Source::Length(n),
                Framing::Chunked => Source::Chunked(ChunkScan::default()),
                Framing::Close => Source::Close,
            },
            chunks,
        }
    }

    pub fn waiting(&self) -> bool {
        self.rewrite.waiting()
    }

    /// Takes the rewrite out, when nothing passes through it any more.
    pub fn into_rewrite(self) -> Box<dyn Rewrite> {
        self.rewrite
    }

    pub fn rewrite(&mut self) -> &mut dyn Rewrite {
        &mut *self.rewrite
    }

    pub fn done(&self) -> bool {
        match &self.source {
            Source::Length(left) => *left == 0,
            Source::Chunked(scan) => scan.done(),
            Source::Close => false,
            Source::Over => true,
        }
    }

    /// `sent`: is told the payload that the client gets.
    pub fn take(&mut self, bytes: &[u8], sent: impl FnOnce(&[u8])) -> Result<Taken, &'static str> {
        let mut payload = Cow::Borrowed(bytes);
        let used = match &mut self.source {
            Source::Length(left) => {
                let n = (bytes.len() as u64).min(*left) as usize;
                *left -= n as u64;
                payload = Cow::Borrowed(&bytes[..n]);
                n
            }
            Source::Chunked(scan) => {
                let mut data = Vec::with_capacity(bytes.len());
                let used = scan
                    .feed(bytes, |d| data.extend_from_slice(d))
                    .map_err(|bad| bad.0)?;
                payload = Cow::Owned(data);
                used
            }
            Source::Close => bytes.len(),
            Source::Over => 0,
        };
        let mut events = Vec::with_capacity(payload.len() + 512);
        self.rewrite.feed(&payload, &mut events);
        let out = self.framed(events, sent);
        Ok(Taken { out, used })
    }

    /// The engine closed, which only ends a body without any other end.
    pub fn close(&mut self, sent: impl FnOnce(&[u8])) -> Option<Vec<u8>> {
        if !matches!(self.source, Source::Close) {
            return None;
        }
        self.source = Source::Over;
        Some(self.framed(Vec::new(), sent))
    }

    fn framed(&mut self, mut events: Vec<u8>, sent: impl FnOnce(&[u8])) -> Vec<u8> {
        let done = self.done();
        if done {
            self.rewrite.finish(&mut events);
        }
        sent(&events);
        if !self.chunks {
            return events;
        }
        let mut out = Vec::with_capacity(events.len() + 32);
        chunk::put_chunk(&mut out, &events);
        if done {
            out.extend_from_slice(chunk::END);
        }
        out
    }

    /// The rewrite is over and the engine is between two of its chunks: the rest can pass as it is.
    pub fn verbatim(&self) -> Option<ChunkScan> {
        match &self.source {
            Source::Chunked(scan)
                if self.chunks && self.rewrite.over() && scan.at_boundary() && !scan.done() =>
            {
                Some(scan.clone())
            }
            _ => None,
        }
    }
}
