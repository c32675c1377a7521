//! Exact transcripts of each handshake, as the engines see it.

mod same_text;
