//! Floor 0: bytes to values and back. Nothing here does I/O, reads a clock or knows an instance.
//!
//! * **For:** HTTP/1.1 heads and chunks, the JSON top-level index and splice, OpenAI bodies, SSE events,
//!   ZMTP and MessagePack.
//! * **Must never:** allocate per relayed chunk, parse a client's body into a tree, or guess: what is
//!   ambiguous between two HTTP implementations is an error here, because guessing is how requests are
//!   smuggled.
//! * **To extend:** a new format is one file, pure, with a proptest over every split of its bytes.

pub mod canonical;
pub mod cap;
pub mod chunk;
pub mod continued;
pub mod first_token;
pub mod head;
pub mod history;
pub mod json;
pub mod kv_tap;
pub mod lmcache;
pub mod media;
pub mod msgpack;
pub mod openai;
pub mod prompt;
pub mod resp;
pub mod spare;
pub mod sse;
pub mod transcode;
pub mod usage;
pub mod zmtp;
