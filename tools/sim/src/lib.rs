//! LLM engines without a GPU: prefill and decode servers that speak vLLM's HTTP API and its NIXL
//! hand-over, and are *strict*. What a real engine rejects is rejected; what a real engine answers
//! with silently wrong text is answered with wrong text, and written down in a ledger.
//!
//! An independent witness for `pdrelay`: it shares no code with it.
//!
//! How KV gets from P to D is a dialect ([`KvMode`]): NIXL (`engine/kv`), LMCache (`engine/lmcache`), SGLang, Mooncake,
//! the offloading connector and a common store (the files of these names in `engine/`, each with its rules and
//! where they are from); media have theirs ([`EcMode`], `engine/ec`).
//!
//! ```text
//! sim          the handle: start, kill, restart, faults, transcript, ledger
//! thread       one runtime per thread: listeners, sweep          world   what threads share
//! connection   read a request, answer it, again                  link    the socket
//! http/        heads, bodies, responses (odd shapes and faults included)
//! engine/      route -> ask (validation) -> job (KV) -> answer | run (whatever takes time)
//! transfer     KV that LMCache pushes, and its notices        push    ZeroMQ's PUSH
//! meeting      two engines that are asked at once             cache   blocks of prompts
//! ledger       grants of KV and what became of them           text    tokens from hashes
//! dummy/       the dummy nodes of xPyD-proxy 1.0                  cli     the command line
//! ```
//!
//! Text is a pure function of the prompt, so a test can tell right from wrong: see [`prompt_hash`],
//! [`expected`] and [`mark`]. A prompt with `[[eos@K]]` in it ends at token `K`.
//!
//! A single request can ask for trouble: `x-sim-fault: <name>[:arg]` (also `-prefill`, `-decode`, for
//! engines of one role) and `x-sim-shape: <name>`; names are those of [`Fault::parse`] and
//! [`Shape::parse`].

mod cache;
pub mod cli;
mod clock;
mod connection;
mod dummy;
mod engine;
mod fault;
mod http;
mod json;
mod ledger;
mod link;
mod meeting;
mod options;
mod push;
mod sim;
mod text;
mod thread;
mod transcript;
mod transfer;
mod world;

pub use dummy::{Dummy, DummyOptions};
pub use engine::prompt::{messages_hash, prompt_hash};
pub use fault::{Fault, FaultPlan, Shape};
pub use ledger::LedgerReport;
pub use options::{
    EcMode, EngineOptions, KvMode, LmcacheOptions, LoadFailure, Notices, Options, Role, Strict,
    Timing,
};
pub use sim::Sim;
pub use text::{detokenize, expected, mark, tokenize};
pub use transcript::{Outcome, Received};
