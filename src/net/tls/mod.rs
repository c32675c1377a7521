//! TLS over a [`Stream`](super::stream::Stream), both ways: rustls does the cryptography without any I/O of its own.
//!
//! * **For:** sessions ([`session`]), who we are to clients ([`accept`]), whom we believe upstream ([`connect`]).
//! * **Must never:** make a plain connection larger or slower (a session is boxed, and so are its futures); send
//!   close_notify on a connection whose answer broke; take a peer's end without close_notify for a clean one.
//! * **To extend:** what certificates come from is `accept`; whose are believed is `connect`.

pub mod accept;
pub mod connect;
pub mod session;

pub use accept::Acceptor;
pub use connect::Trust;
pub use session::Session;
