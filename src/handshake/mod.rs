//! Floor 5: the protocols between stages. Door 1: a handshake is one file and its row in [`HANDSHAKES`].
//!
//! * **For:** the order of legs, and what travels from one to the next.
//! * **Must never:** touch a socket, a connection or a counter: a script uses the verbs of `exchange/`
//!   (`pick`, `call`, `open`, `relay`) and unwinds by `?`.
//! * **To extend:** write `src/handshake/foo.rs` with its arrow diagram, `SPEC` and `run`; add `mod foo;`
//!   and `foo::SPEC`. The same word is the YAML name, the test, the config and the metric label.

mod aggregated;
mod aside;
mod beside;
mod epd;
mod lmcache;
mod mooncake;
mod multiturn;
mod nixl;
mod nixl_flat;
mod offloading;
mod sequential;
mod sglang;
mod shared_storage;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use crate::cluster::Instance;
use crate::config::sidecar::Sidecar;
use crate::config::{Config, Role};
use crate::exchange::notice::NoticeSocket;
use crate::exchange::{Exchange, Reply, Stop, Tools};
use crate::metrics::{Counter, Skip};

pub use beside::beside;

/// A script in progress, on one shard.
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Stop>> + 'a>>;

pub trait Handshake: Send + Sync {
    /// Answers one generate request.
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a>;

    /// The roles that it needs as it is configured; `None`: those of its row.
    fn needs(&self) -> Option<Vec<Role>> {
        None
    }

    /// It knows by itself what to do where there are only aggregated instances.
    fn serves_aggregated(&self) -> bool {
        false
    }

    /// What it keeps between requests, if it does: for a page that says so.
    fn conversations(&self, _tools: &Rc<Tools>) -> Option<Conversations> {
        None
    }

    /// Where other processes tell it of their work, if they do.
    fn notices(&self) -> Option<&NoticeSocket> {
        None
    }
}

/// How many conversations are kept; what only a shared store could say is not known.
pub struct Conversations {
    pub kept: Option<usize>,
    /// Dropped since the last time that somebody asked, because their time was over.
    pub expired: usize,
}

/// A handshake's row.
pub struct Spec {
    pub name: &'static str,
    /// One line for `--help` and error messages.
    pub about: &'static str,
    /// Roles of which at least one instance is needed.
    pub needs: &'static [Role],
    /// Reads its section; may open what it needs besides HTTP.
    pub build: fn(&Config) -> io::Result<Box<dyn Handshake>>,
}

pub const HANDSHAKES: &[Spec] = &[
    sequential::SPEC,
    nixl::SPEC,
    lmcache::SPEC,
    aggregated::SPEC,
    epd::SPEC,
    multiturn::SPEC,
    mooncake::SPEC,
    nixl_flat::SPEC,
    offloading::SPEC,
    sglang::SPEC,
    shared_storage::SPEC,
];

/// Several prompts: one grant or id carries the KV of one, so D is to compute them all. Counted.
fn skips_batch(x: &Exchange) -> bool {
    let batch = x.request().summary.prompts > 1;
    if batch {
        x.tools.metrics.inc(Counter::prefill_skipped(Skip::Batch));
    }
    batch
}

/// The port of a prefill instance's bootstrap server or of its peers: as it is listed, else as a sidecar is told,
/// else the usual one.
fn side_port(x: &Exchange, prefill: &Instance, of: fn(&Sidecar) -> u16, usual: u16) -> u16 {
    let sidecar = x.config.sidecar.as_ref();
    let told = || sidecar.map_or(usual, of);
    prefill.side_port.unwrap_or_else(told)
}

/// The names, for the config to check against.
pub fn names() -> Vec<&'static str> {
    HANDSHAKES.iter().map(|h| h.name).collect()
}

pub fn find(name: &str) -> Option<&'static Spec> {
    HANDSHAKES.iter().find(|h| h.name == name)
}
