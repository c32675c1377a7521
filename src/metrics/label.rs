//! The words that a label can be, as enums: a shard observes with a variant, never with a string.
//!
//! **To extend:** a new word is one variant; its place in the list is its index in the cells.

/// A label with a fixed set of values.
pub(super) trait Label: Copy {
    const NAMES: &'static [&'static str];
    /// Cells kept for this label. More than `NAMES` only where the words are known at run time.
    const COUNT: usize = Self::NAMES.len();
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),* }

        impl Label for $name {
            const NAMES: &'static [&'static str] = &[$($word),*];
            #[inline]
            fn index(self) -> usize {
                self as usize
            }
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The word in `/metrics` and in the access line.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $word),* }
            }
        }
    )*};
}

labels! {
    /// What kind of endpoint the client asked.
    Endpoint {
        Chat = "chat",
        Completions = "completions",
        Responses = "responses",
        Messages = "messages",
        Generate = "generate",
        Forward = "forward",
        Other = "other",
    }

    /// Where a request is, for departures and errors.
    Stage {
        Head = "head",
        Body = "body",
        Encode = "encode",
        Prefill = "prefill",
        DecodeHead = "decode_head",
        Stream = "stream",
    }

    /// What is being waited for; each wait has its own limit, error and counter. The word is also that of
    /// the config (`timeouts.<word>`) and of messages.
    Wait {
        // The next request on a kept-alive connection.
        KeepAlive = "keep_alive",
        Head = "head",
        Body = "body",
        Connect = "connect",
        Prefill = "prefill",
        DecodeHead = "decode_head",
        BetweenChunks = "between_chunks",
        ClientWrite = "client_write",
        // After an early answer, for the client to have read it.
        Linger = "linger",
        // The request's deadline as a whole.
        Request = "request",
        // What goes on upstream after the client has left, so that no KV is stranded.
        Release = "release",
        // The end of the process, for what still runs.
        Drain = "drain",
        // The store that several proxies share (`multiturn.redis_timeout`).
        Redis = "redis",
    }

    /// A measured part of a request's life. `Ttft` and `Total` count from the request's first byte.
    Span {
        Body = "body",
        // Behind others that the same shard has yet to begin; only requests that had to wait are counted.
        Queue = "queue",
        Encode = "encode",
        Prefill = "prefill",
        // From P's answer until its KV had arrived at D.
        Notices = "notices",
        DecodeHead = "decode_head",
        Ttft = "ttft",
        Stream = "stream",
        Total = "total",
    }

    /// Why a reply that had begun could not be finished.
    Broken {
        UpstreamClosed = "upstream_closed",
        UpstreamReset = "upstream_reset",
        BadFraming = "bad_framing",
        Timeout = "timeout",
        Panic = "panic",
        Shutdown = "shutdown",
        Other = "other",
    }

    /// Why a call was made again.
    Retry {
        StaleConnection = "stale_connection",
        Connect = "connect",
        Reset = "reset",
        Timeout = "timeout",
        Status = "status",
        BadResponse = "bad_response",
    }

    /// Why a request went to decode without a prefill.
    Skip {
        Batch = "batch",
        Short = "short",
        NoPrefill = "no_prefill",
        Other = "other",
    }

    /// What became of the KV blocks that a prefill instance held for us.
    Grant {
        Spent = "spent",
        Released = "released",
        ExpiredUnreleased = "expired_unreleased",
        None = "none",
    }

    /// What became of a conversation at one of its turns.
    Conversation {
        // The KV of an answer is there for the next turn.
        Stored = "stored",
        // A turn was given the KV of the last one.
        Reused = "reused",
        // There was nothing to reuse.
        New = "new",
        // What there was had been kept for longer than `multiturn.ttl`.
        Expired = "expired",
        // The request does not go on from where the last turn ended.
        Mismatch = "mismatch",
        // Dropped for newer ones: `multiturn.entries_max` or `multiturn.bytes_max`.
        Evicted = "evicted",
        // An answer that no next request can be held to: it is not kept.
        Unrepeatable = "unrepeatable",
        // The shared store did not answer, or said nonsense.
        StoreFailed = "store_failed",
        // The answer is at its end, and D has not said where its KV is (vLLM 0.32 does so in whole answers only).
        NoParams = "no_params",
    }

    /// How a wait for notices that KV has arrived at D ended.
    NoticeWait {
        Arrived = "arrived",
        Failed = "failed",
        TimedOut = "timed_out",
        // So short a prompt is not transferred.
        Short = "short",
    }

    /// What became of P's token where `first_token_source` is `prefill`.
    FirstTokens {
        // It was the client's first, and D's.
        Sent = "sent",
        // It was the client's first, and D had made another.
        Differed = "differed",
        // P ended on it: D was not asked.
        Ended = "ended",
        // The request, or the token, is not of the kind that P can begin: D's was sent.
        Fallback = "fallback",
        // D's answer had no place for it.
        Unused = "unused",
    }

    /// Seen from the client.
    Direction {
        In = "in",
        Out = "out",
    }

    /// How an instance failed us.
    Failure {
        Connect = "connect",
        Reset = "reset",
        Timeout = "timeout",
        BadResponse = "bad_response",
        Status5xx = "status_5xx",
    }
}

/// The status that was sent to the client: one of a fixed list, else `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u8);

const CODES: [u16; 18] = [
    200, 307, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 499, 500, 502, 503, 504,
];

impl Code {
    #[inline]
    pub fn of(status: u16) -> Code {
        // Nearly every request ends in the first comparison.
        Code(
            CODES
                .iter()
                .position(|&code| code == status)
                .unwrap_or(CODES.len()) as u8,
        )
    }
}

impl Label for Code {
    const NAMES: &'static [&'static str] = &[
        "200", "307", "400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431",
        "499", "500", "502", "503", "504", "other",
    ];
    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A row of the error table, by position. The words live in `error.rs` and are handed to
/// [`Metrics::with_error_kinds`](super::Metrics::with_error_kinds).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorKind(pub usize);

impl Label for ErrorKind {
    const NAMES: &'static [&'static str] = &[];
    const COUNT: usize = 64;
    #[inline]
    fn index(self) -> usize {
        // Too large an index may be miscounted, but must not reach another family's cells.
        self.0.min(Self::COUNT - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_their_names_are_one_list() {
        assert_eq!(Code::COUNT, CODES.len() + 1);
        for status in 100..600 {
            let name = Code::NAMES[Code::of(status).index()];
            let expected = if CODES.contains(&status) {
                status.to_string()
            } else {
                "other".into()
            };
            assert_eq!(name, expected);
        }
    }
}
