//! pdrelay: one thread-per-core HTTP proxy for disaggregated LLM serving.
//!
//! Clients speak the OpenAI HTTP API to it. It runs each request through *stages* (encode, prefill,
//! decode) on different engine instances and relays the decode stream back. This page is the map.
//!
//! # Floors
//!
//! A floor names only floors below it (or its own); `tests/structure` checks that.
//!
//! ```text
//!  7  main.rs  demo  doctor  cli  signal  terminal
//!  6  server/      threads: shards serve clients, control watches the cluster
//!  5  handshake/   one file per protocol between stages                 <- door 1: HANDSHAKES
//!  4  exchange/    one client request and the tools to answer it: pick, call, open, reply
//!  3  policy/      choose one of the candidates                         <- door 2: POLICIES
//!  2  cluster/     what we know of the instances: load, standing, addresses
//!  1  net/         sockets: listen, read, lease, sweep      config/  plain data from YAML and flags
//!  0  wire/        bytes <-> values, no I/O      error  id  rng  metrics  log  shared
//! ```
//!
//! # The life of a request
//!
//! One direction, one snapshot of the cluster, no lock, no task of its own. (Legs that run at the same time are
//! branches of the exchange: `exchange::Exchange::branch`.)
//!
//! ```text
//!  net::listen -> server::shard -> server::connection
//!                                      |  net::inbox: one reader per connection, which is also the
//!                                      |  watch for a client that leaves
//!                                      v
//!                   server::intake      bytes become a Request: one pass, no tree, every limit
//!                                      v
//!                   server::surface     Generate?  Forward?  our own page?
//!                                      v
//!                   server::attempt     body indexed, in-flight limit, tries before the first byte
//!                                      v
//!                   handshake::*        the script:
//!                     exchange::pick      snapshot -> candidates -> policy -> load charged
//!                     exchange::call      a whole answer (prefill)
//!                     exchange::send      open: pool or connect, write, response head
//!                     exchange::relay     one read, one write, to the end
//!                                      v
//!                   server::connection  metrics, access line; the next request
//! ```
//!
//! Knowledge flows the other way once per request: control thread -> [`shared::Published`] -> shards.
//!
//! # Ending things
//!
//! Everything that waits, waits on a descriptor, and one [`net::sweep::Slot`] per client connection knows
//! which. A deadline, or the client's leaving, shuts the descriptor down; the operation completes by
//! itself; the code that awaited it asks the slot why, and unwinds by `?`. No I/O future is ever dropped
//! while its socket lives on.
//!
//! # Words
//!
//! *instance*: one engine at one address. *role*: encode, prefill, decode, aggregated. *stage*: what a
//! request is doing. *handshake*: the protocol between stages. *leg*: one request to one instance.
//! *lease*: exclusive use of one upstream connection. *grant*: KV blocks that P holds for one request.
//! *client* and *upstream* are the two directions.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod exchange;
pub mod handshake;
pub mod id;
pub mod log;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod rng;
pub mod server;
pub mod shared;
pub mod signal;
pub mod terminal;
pub mod wire;
