//! Ways in which an engine misbehaves, and how a request gets one: set from outside for all
//! requests, planned by rate (a pure function of seed, engine and request), or asked for in a header.

use std::time::Duration;

use crate::text::mix;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// From outside: the listener is closed. On one request: RST without an answer.
    Refuse,
    /// FIN without an answer.
    AcceptThenClose,
    HangBeforeHead,
    SlowHead(Duration),
    /// Bytes that are no HTTP head.
    BadHead,
    Status(u16),
    /// FIN in the middle of the head.
    HalfHead,
    /// FIN in the middle of the body.
    HalfBody,
    /// RST after so many chunks.
    ResetMidStream {
        after_chunks: u32,
    },
    /// A well-formed end of the body before the answer is complete: no finish reason, no `[DONE]`.
    CleanEarlyEnd {
        after_chunks: u32,
    },
    /// The body turns into noise: broken chunk framing in streams, no JSON otherwise.
    Garbage,
    /// Silence after so many chunks.
    Stall {
        after_chunks: u32,
    },
    /// The request body is read a few bytes at a time.
    SlowReader,
}

impl Fault {
    /// `name` or `name:arg`; the argument is milliseconds, a status or a number of chunks.
    pub fn parse(text: &str) -> Option<Fault> {
        let (name, arg) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let number = |default: u32| {
            if arg.is_empty() {
                Some(default)
            } else {
                arg.trim().parse::<u32>().ok()
            }
        };
        Some(match name {
            "refuse" => Fault::Refuse,
            "accept-then-close" => Fault::AcceptThenClose,
            "hang-before-head" => Fault::HangBeforeHead,
            "slow-head" => Fault::SlowHead(Duration::from_millis(number(200)?.into())),
            "bad-head" => Fault::BadHead,
            "status" => Fault::Status(u16::try_from(number(503)?).ok()?),
            "half-head" => Fault::HalfHead,
            "half-body" => Fault::HalfBody,
            "reset-mid-stream" => Fault::ResetMidStream {
                after_chunks: number(2)?,
            },
            "clean-early-end" => Fault::CleanEarlyEnd {
                after_chunks: number(2)?,
            },
            "garbage" => Fault::Garbage,
            "stall" => Fault::Stall {
                after_chunks: number(2)?,
            },
            "slow-reader" => Fault::SlowReader,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Fault::Refuse => "refuse",
            Fault::AcceptThenClose => "accept-then-close",
            Fault::HangBeforeHead => "hang-before-head",
            Fault::SlowHead(_) => "slow-head",
            Fault::BadHead => "bad-head",
            Fault::Status(_) => "status",
            Fault::HalfHead => "half-head",
            Fault::HalfBody => "half-body",
            Fault::ResetMidStream { .. } => "reset-mid-stream",
            Fault::CleanEarlyEnd { .. } => "clean-early-end",
            Fault::Garbage => "garbage",
            Fault::Stall { .. } => "stall",
            Fault::SlowReader => "slow-reader",
        }
    }
}

/// Planned faults: each with the probability that a request gets it.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    pub rates: Vec<(Fault, f64)>,
}

impl FaultPlan {
    /// The same small rate for each kind that ends quickly; `rate` is their sum.
    pub fn mixed(rate: f64) -> FaultPlan {
        let kinds = [
            Fault::AcceptThenClose,
            Fault::Refuse,
            Fault::SlowHead(Duration::from_millis(50)),
            Fault::BadHead,
            Fault::Status(503),
            Fault::HalfHead,
            Fault::HalfBody,
            Fault::ResetMidStream { after_chunks: 2 },
        ];
        let each = rate / kinds.len() as f64;
        FaultPlan {
            rates: kinds.into_iter().map(|k| (k, each)).collect(),
        }
    }

    pub(crate) fn pick(&self, seed: u64, engine: usize, request: u64) -> Option<Fault> {
        if self.rates.is_empty() {
            return None;
        }
        let draw = mix(mix(seed, engine as u64), request) >> 11;
        let mut point = draw as f64 / (1u64 << 53) as f64;
        for (fault, rate) in &self.rates {
            if point < *rate {
                return Some(*fault);
            }
            point -= rate;
        }
        None
    }
}

/// Odd but legal ways to put an answer on the wire (`x-sim-shape`), to exercise the proxy's parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    #[default]
    Plain,
    ChunkExt,
    Trailers,
    CloseDelimited,
    /// A stream with a Content-Length.
    Length,
    Http10,
    ContinueFirst,
    EarlyHintsFirst,
    ByteByByte,
    Gzip,
    /// Each piece is cut into chunks that respect no event boundary.
    SplitChunks,
    /// A JSON answer sent chunked.
    Chunked,
}

impl Shape {
    pub fn parse(text: &str) -> Option<Shape> {
        Some(match text.trim() {
            "plain" => Shape::Plain,
            "chunk-ext" => Shape::ChunkExt,
            "trailers" => Shape::Trailers,
            "close-delimited" => Shape::CloseDelimited,
            "length" => Shape::Length,
            "http10" => Shape::Http10,
            "100-continue-first" => Shape::ContinueFirst,
            "103-first" => Shape::EarlyHintsFirst,
            "byte-by-byte" => Shape::ByteByByte,
            "gzip" => Shape::Gzip,
            "split-chunks" => Shape::SplitChunks,
            "chunked" => Shape::Chunked,
            _ => return None,
        })
    }
}
