//! Floor 1: sockets, and nothing about what is said over them beyond framing.
//!
//! * **For:** the runtime ladder, listeners, streams, the per-connection inbox, upstream connections and
//!   their pool, deadlines, the shard's pace and its gate. Built on raw monoio streams.
//! * **Must never:** drop an operation in flight and go on using its socket (monoio 0.2.4 loses the data
//!   or the descriptor); block (no DNS, no files; [`pace`] alone rests, if told to); use
//!   `write_vectored_all` (use-after-free when dropped); know what an instance, a policy or a handshake is.
//! * **To extend:** another carrier is one more variant of `stream::Inner`, with boxed futures so that plain
//!   streams stay small, as those of [`tls`] are.
//!
//! Two patterns carry everything here, both tried on ring, plain ring and epoll:
//!
//! * *Cancel = `shutdown(2)`, then await.* A [`sweep::Slot`] knows the descriptors a request waits on;
//!   [`sweep::Slot::fire`] shuts them down, the pending operation completes by itself and hands its
//!   buffer back, and the code that awaited it reads in the slot why.
//! * *One reader per client connection.* [`inbox::Inbox`] always has a read pending on the client while a
//!   request is served: it is both the watch for a client that leaves and the read of its next request,
//!   so noticing costs no operation of its own.

pub mod buffer;
pub mod gate;
pub mod inbox;
pub mod limit;
pub mod listen;
pub mod pace;
pub mod pool;
pub mod redis;
pub mod runtime;
pub mod stream;
pub mod sweep;
pub mod tls;
pub mod zmq;
