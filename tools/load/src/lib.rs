//! pdload measures OpenAI-compatible servers: latency percentiles without coordinated omission, and the CPU time
//! that a server uses per request and per SSE chunk.
//!
//! The life of a request, from top to bottom:
//!
//! ```text
//! main      args · run      starts the threads           window  opens and closes the measurement · cpu  reads /proc
//! thread    thread · pace   which connection, and when   shared  phase, limits
//! socket    conn            connect, send, receive       ring    io_uring or epoll
//! bytes     request         prebuilt                     http · chunked · sse · observe  judge the response
//! numbers   stats · report
//! ```
//!
//! It shares no code with pdrelay: a bug in one cannot hide a bug in the other.

pub mod args;
pub mod chunked;
pub mod conn;
pub mod cpu;
pub mod http;
pub mod observe;
pub mod pace;
pub mod report;
pub mod request;
pub mod ring;
pub mod run;
pub mod shared;
pub mod sse;
pub mod stats;
pub mod thread;
pub mod window;
