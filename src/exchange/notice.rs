//! Notices: other processes say of a request that something of it is done (its KV has arrived). They come
//! to one socket of the process, on a thread of its own, and are waited for on the request's shard.
//!
//! ```text
//!  script (shard 3)                 Notices                    the socket's thread
//!    | issue -> Ticket "3-e-17" ------>|                              |
//!    | (the id travels with a leg)     |<--"3-e-17"--- notice --------|   counted, whoever waits
//!    | wait_notices ------------------>|                              |
//!    |<== Letter::Noticed(17) =========|<--"3-e-17"--- the last one --|   the shard named in the id is woken
//!    | drop(Ticket) ------------------>|
//!    |                                 |<--"3-e-17"--- a late one ----|   counted as unknown, nothing more
//! ```
//!
//! An id is known from when it is made, so a notice cannot come too early. It names the start of the
//! process (senders keep their notices while we are down), and no other start's id is ever taken for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::Stage;
use crate::log;
use crate::metrics::{self, Counter};
use crate::net::sweep::SWEEP_EVERY;
use crate::net::zmq::Pull;
use crate::shared::Striped;
use crate::wire::msgpack::{self, Unread};

use super::{Exchange, Stop};

/// Requests that are waited for at once; each is taken out when it ends.
const OPEN_MAX: usize = 1 << 20;

/// Tells a shard that the notices of this ticket are there.
pub type Bell = Box<dyn Fn(usize, u64) + Send + Sync>;

/// What came so far for one ticket.
struct Open {
    came: u32,
    failed: bool,
    /// So many, and then the shard is woken.
    wanted: u32,
    waiting: bool,
}

/// All messages that came, by what they were.
#[derive(Default)]
pub struct Seen {
    pub counted: AtomicU64,
    pub failed: AtomicU64,
    /// Of a request that is over, of another start of this process, or of nobody.
    pub unknown: AtomicU64,
    pub unreadable: AtomicU64,
}

pub struct Notices {
    epoch: String,
    next: AtomicU64,
    open: Striped<u64, Open>,
    bell: OnceLock<Bell>,
    pub seen: Seen,
}

impl Notices {
    /// `keep`: no request lasts longer.
    pub fn new(keep: Duration) -> Arc<Notices> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since.map_or(0, |d| d.as_nanos() as u64);
        Arc::new(Notices {
            // Two processes of one moment differ in their number.
            epoch: format!(
                "{:x}",
                nanos ^ u64::from(std::process::id()) << 40 ^ next_start() << 56
            ),
            next: AtomicU64::new(1),
            open: Striped::new(OPEN_MAX, keep),
            bell: OnceLock::new(),
            seen: Seen::default(),
        })
    }

    /// Who wakes the shards. Once.
    pub fn ring_with(&self, bell: Bell) {
        let _ = self.bell.set(bell);
    }

    /// A new id; its notices are counted from now on.
    pub fn issue(self: &Arc<Self>, shard: usize) -> Ticket {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open {
            came: 0,
            failed: false,
            wanted: u32::MAX,
            waiting: false,
        };
        self.open.put(number, open);
        Ticket {
            id: format!("{shard}-{}-{number}", self.epoch),
            number,
            notices: self.clone(),
        }
    }

    /// Requests whose notices are being counted.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Takes in one message, on whatever thread.
    pub fn take_in(&self, message: &[u8]) {
        let one = |cell: &AtomicU64| _ = cell.fetch_add(1, Ordering::Relaxed);
        let (id, failed) = match msgpack::notice(message) {
            Ok(msgpack::Notice::Arrived(id)) => (id, false),
            Ok(msgpack::Notice::Failed(id)) => (id, true),
            Err(why) => {
                one(&self.seen.unreadable);
                let what = match why {
                    Unread::Malformed => "it is no MessagePack map",
                    Unread::OtherType => "it is of another type",
                    Unread::NoId => "it names no request",
                };
                return log::limited("notice", log::Level::Warning, || {
                    format!("a notice of {} bytes is passed over: {what}", message.len())
                });
            }
        };
        let Some((shard, number)) = self.named(id) else {
            return one(&self.seen.unknown);
        };
        let ring = self.open.with(&number, |open| {
            open.came += u32::from(!failed);
            open.failed |= failed;
            open.waiting && (open.failed || open.came >= open.wanted)
        });
        match ring {
            None => one(&self.seen.unknown),
            Some(ring) => {
                one(if failed {
                    &self.seen.failed
                } else {
                    &self.seen.counted
                });
                if ring && let Some(bell) = self.bell.get() {
                    bell(shard, number);
                }
            }
        }
    }

    /// `<shard>-<epoch>-<number>`, if this start has issued it.
    fn named(&self, id: &str) -> Option<(usize, u64)> {
        let (shard, rest) = id.split_once('-')?;
        let (epoch, number) = rest.split_once('-')?;
        let ours = epoch == self.epoch;
        Some((shard.parse().ok()?, number.parse().ok()?)).filter(|_| ours)
    }
}

/// Starts within this process, which tests have many of.
fn next_start() -> u64 {
    static STARTS: AtomicU64 = AtomicU64::new(0);
    STARTS.fetch_add(1, Ordering::Relaxed)
}

/// One request's name among the notices. Dropped, nobody waits for them any more.
pub struct Ticket {
    pub id: String,
    number: u64,
    notices: Arc<Notices>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.notices.open.take(&self.number);
    }
}

/// The socket that notices come to.
pub struct NoticeSocket {
    pub notices: Arc<Notices>,
    pub pull: Pull,
}

impl NoticeSocket {
    /// `keep`: no request lasts longer. `handshake`: so long a sender may take to say what it is.
    pub fn bind(
        host: &str,
        port: u16,
        keep: Duration,
        handshake: Duration,
    ) -> io::Result<NoticeSocket> {
        let say = |error: io::Error| {
            let what = format!("cannot take notices on tcp://{host}:{port}: {error}");
            io::Error::new(error.kind(), what)
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = (bare, port).to_socket_addrs().map_err(say)?;
        // `localhost` may be an IPv6 address first, where senders that know names try IPv4.
        let mut addresses: Vec<SocketAddr> = addresses.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = addresses.first();
        let address =
            address.ok_or_else(|| io::Error::other(format!("host {host} has no address")))?;
        let notices = Notices::new(keep);
        let told = notices.clone();
        let pull = Pull::bind(*address, handshake, move |message| told.take_in(message));
        let pull = pull.map_err(say)?;
        Ok(NoticeSocket { notices, pull })
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    All,
    /// The sender said that it has failed.
    Failed,
    /// Only so many, within the limit.
    Late(u32),
}

/// Tasks of one shard that wait for notices.
#[derive(Default)]
pub struct Waiters(RefCell<HashMap<u64, Waker>>);

impl Waiters {
    pub fn wake(&self, ticket: u64) {
        if let Some(waker) = self.0.borrow_mut().remove(&ticket) {
            waker.wake();
        }
    }
}

impl Exchange {
    /// Waits until `wanted` notices of the ticket have come, for at most `limit`.
    pub async fn wait_notices(
        &self,
        ticket: &Ticket,
        wanted: usize,
        limit: Duration,
    ) -> Result<Came, Stop> {
        let began = Instant::now();
        let came = self
            .await_notices(ticket, wanted as u32, began, limit)
            .await;
        self.tools.waiters.0.borrow_mut().remove(&ticket.number);
        let came = came?;
        let span = metrics::Span::Notices;
        self.tools
            .metrics
            .observe(metrics::Histogram::stage(span), began.elapsed());
        self.tools.metrics.inc(Counter::notice_waits(match came {
            Came::All => metrics::NoticeWait::Arrived,
            Came::Failed => metrics::NoticeWait::Failed,
            Came::Late(_) => metrics::NoticeWait::TimedOut,
        }));
        Ok(came)
    }

    async fn await_notices(
        &self,
        ticket: &Ticket,
        wanted: u32,
        began: Instant,
        limit: Duration,
    ) -> Result<Came, Stop> {
        loop {
            self.still_wanted(Stage::Prefill)?;
            let left = limit.saturating_sub(began.elapsed());
            // Asked before the time is looked at: a limit of 0 still sees what is there.
            if let Some(came) = ticket.look(wanted) {
                return Ok(came);
            }
            if left.is_zero() {
                return Ok(Came::Late(ticket.came()));
            }
            // In slices, so that a client that leaves is noticed. Only timers and wakers: nothing is lost
            // with what is dropped here.
            let nap = monoio::time::sleep(left.min(SWEEP_EVERY));
            let mut nap = std::pin::pin!(nap);
            poll_fn(|cx| {
                let waker = cx.waker().clone();
                self.tools
                    .waiters
                    .0
                    .borrow_mut()
                    .insert(ticket.number, waker);
                // Now that the waker is there: what came before has rung for nobody.
                if ticket.look(wanted).is_some() {
                    return Poll::Ready(());
                }
                nap.as_mut().poll(cx)
            })
            .await;
        }
    }
}

impl Ticket {
    /// What has come; `None`: not all yet. From now on the shard is woken when it has.
    fn look(&self, wanted: u32) -> Option<Came> {
        let seen = self.notices.open.with(&self.number, |open| {
            open.wanted = wanted;
            open.waiting = true;
            match (open.failed, open.came >= wanted) {
                (true, _) => Some(Came::Failed),
                (false, true) => Some(Came::All),
                (false, false) => None,
            }
        });
        // Pushed out by others, it is counted no more.
        seen.unwrap_or(Some(Came::Failed))
    }

    fn came(&self) -> u32 {
        self.notices
            .open
            .with(&self.number, |open| open.came)
            .unwrap_or(0)
    }
}
