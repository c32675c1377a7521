//! Intake: from a connection's bytes to one [`Request`](crate::exchange::Request), within limits, strictly.

use std::rc::Rc;
use std::time::Instant;

use crate::error::{Error, Kind, Stage};
use crate::exchange::request::Held;
use crate::net::buffer::{LARGE, SMALL};
use crate::net::inbox::Inbox;
use crate::net::sweep::{Slot, Wait};
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{BadHead, Framing, HeadScan, RequestHead};

use super::shard::Shard;

/// A head as received, still in the inbox.
pub struct Arrived {
    pub head: RequestHead,
    pub head_len: usize,
    /// When its first byte was there.
    pub started: Instant,
}

/// Why there is no request.
pub enum NoRequest {
    /// The client has ended between requests, or in the middle of a head: nobody to tell.
    Closed,
    /// Answered with this error, and the connection ends: what follows cannot be told apart.
    Refused(Error),
}

fn refused(kind: Kind, cause: impl Into<std::borrow::Cow<'static, str>>) -> NoRequest {
    NoRequest::Refused(Error::new(kind, Stage::Body, cause))
}

/// Waits for a head.
pub async fn head(shard: &Shard, inbox: &Inbox, slot: &Slot) -> Result<Arrived, NoRequest> {
    let config = shard.tools.config();
    let mut scan = HeadScan::default();
    let mut started = None;
    slot.arm(Wait::KeepAlive, shard.idle_limit());
    loop {
        // RFC 9112 2.2: an empty line before a request line is to be ignored.
        while started.is_none() && inbox.look(|b| b.starts_with(b"\r\n")) {
            inbox.cut(0, 2);
            scan = HeadScan::default();
        }
        let (found, length) = inbox.look(|bytes| (scan.advance(bytes), bytes.len()));
        let found = found.map_err(bad_head)?;
        if started.is_none() && inbox.look(|b| b.first().is_some_and(|first| never_http(*first))) {
            return Err(no_http(inbox));
        }
        // A read may end in the middle of the ignorable line: a lone CR starts no head.
        if started.is_none() && inbox.look(|b| !matches!(b, [] | [b'\r'])) {
            started = Some(Instant::now());
            // It came as its limit passed.
            slot.forgive();
            slot.arm(Wait::Head, config.timeouts.head);
        }
        let max = config.limits.head_bytes_max;
        if found.unwrap_or(length) > max {
            return Err(refused(
                Kind::HeadTooLarge,
                format!("the head is larger than limits.head_bytes_max ({max} bytes)"),
            ));
        }
        if let Some(head_len) = found {
            let head = inbox
                .look(|b| RequestHead::parse(&b[..head_len]))
                .map_err(bad_head)?;
            return Ok(Arrived {
                head,
                head_len,
                started: started.unwrap_or_else(Instant::now),
            });
        }
        let more = match started {
            None => inbox.first(slot).await,
            Some(_) => inbox.more().await,
        };
        if !more {
            return Err(match slot.fired() {
                Some(_) if started.is_some() => too_late(shard, "the head did not come in time"),
                _ => NoRequest::Closed,
            });
        }
    }
}

/// No request line begins so (nor the empty line before one): waiting for the end of the head would be
/// waiting for nothing. A TLS hello is the common case.
fn never_http(first: u8) -> bool {
    !first.is_ascii_graphic() && !matches!(first, b'\r' | b'\n' | b' ')
}

fn no_http(inbox: &Inbox) -> NoRequest {
    const TLS_HANDSHAKE: u8 = 0x16;
    refused(
        Kind::BadRequest,
        match inbox.look(|b| b.first() == Some(&TLS_HANDSHAKE)) {
            true => {
                "this port speaks plain HTTP and was greeted with TLS: use http://, or a TLS terminator in front"
            }
            false => "this is no HTTP request",
        },
    )
}

/// Method and target of a head that could not be read, if it begins with something like them. (It may as
/// well begin with the rest of a body that was longer than it said: that is not for the log.)
pub fn named(bytes: &[u8]) -> Option<(String, String)> {
    let line = bytes.split(|b| matches!(b, b'\r' | b'\n')).next()?;
    let mut words = line.split(|b| *b == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let told = (1..=16).contains(&method.len())
        && method.iter().all(u8::is_ascii_uppercase)
        && target.first() == Some(&b'/');
    told.then(|| {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (text(method), text(target))
    })
}

fn bad_head(bad: BadHead) -> NoRequest {
    match bad {
        BadHead::TooManyHeaders => refused(Kind::HeadTooLarge, bad.message()),
        _ => refused(Kind::BadRequest, bad.message()),
    }
}

/// May a body of this size come? Asked before 100-continue.
pub fn admit(shard: &Rc<Shard>, framing: Framing) -> Result<Held, Error> {
    let config = shard.tools.config();
    let limits = &config.limits;
    let bytes = match framing {
        Framing::Length(n) if n > limits.body_bytes_max as u64 => {
            return Err(too_large(limits.body_bytes_max));
        }
        Framing::Length(n) => n as usize,
        // Its length is not known yet: charged as it comes.
        Framing::Chunked | Framing::Close => 0,
    };
    let mut held = Held::none(&shard.body_memory);
    grow(&mut held, bytes, limits.body_memory_max)?;
    Ok(held)
}

fn grow(held: &mut Held, by: usize, max: usize) -> Result<(), Error> {
    match held.grow(by, max) {
        true => Ok(()),
        false => {
            let what = "request bodies hold limits.body_memory_max on this shard; try again";
            Err(Error::new(Kind::BodyMemory, Stage::Body, what))
        }
    }
}

fn too_large(max: usize) -> Error {
    let what = format!("the body is larger than limits.body_bytes_max ({max} bytes)");
    Error::new(Kind::BodyTooLarge, Stage::Body, what)
}

/// Waits for the body. `Some`: it came chunked, and this is it; `None`: it follows the head in the inbox.
pub async fn body(
    shard: &Shard,
    inbox: &Inbox,
    slot: &Slot,
    arrived: &Arrived,
    memory: &mut Held,
) -> Result<Option<Vec<u8>>, NoRequest> {
    match arrived.head.framing {
        Framing::Length(n) => {
            let total = arrived.head_len + n as usize;
            if inbox.look(<[u8]>::len) < total {
                inbox.reserve(total);
            }
            while inbox.look(<[u8]>::len) < total {
                more(shard, inbox, slot).await?;
            }
            Ok(None)
        }
        Framing::Chunked => chunked(shard, inbox, slot, arrived.head_len, memory)
            .await
            .map(Some),
        Framing::Close => Ok(None),
    }
}

async fn chunked(
    shard: &Shard,
    inbox: &Inbox,
    slot: &Slot,
    head_len: usize,
    memory: &mut Held,
) -> Result<Vec<u8>, NoRequest> {
    let max = shard.tools.config().limits.body_bytes_max;
    let mut scan = ChunkScan::default();
    let mut body = Vec::new();
    loop {
        let before = body.len();
        let used = inbox
            .look(|bytes| scan.feed(&bytes[head_len..], |data| body.extend_from_slice(data)))
            .map_err(|bad| refused(Kind::BadRequest, bad.0))?;
        inbox.cut(head_len, used);
        if body.len() > max {
            return Err(NoRequest::Refused(too_large(max)));
        }
        grow(
            memory,
            body.len() - before,
            shard.tools.config().limits.body_memory_max,
        )
        .map_err(NoRequest::Refused)?;
        if scan.done() {
            return Ok(body);
        }
        // However little the head has left of its buffer; more for a body that has shown to be long.
        inbox.reserve(head_len + body.len().clamp(SMALL, LARGE));
        more(shard, inbox, slot).await?;
    }
}

fn too_late(shard: &Shard, what: &'static str) -> NoRequest {
    match shard.cut_off.get() {
        true => NoRequest::Refused(drain_is_over()),
        false => refused(Kind::ClientTimeout, what),
    }
}

/// What comes, or came half, when nothing is begun any more.
pub fn drain_is_over() -> Error {
    let what = "the proxy ends, and timeouts.drain is over";
    Error::new(Kind::Draining, Stage::Body, what)
}

async fn more(shard: &Shard, inbox: &Inbox, slot: &Slot) -> Result<(), NoRequest> {
    slot.arm(Wait::Body, shard.tools.config().timeouts.body);
    if inbox.more().await {
        return Ok(());
    }
    Err(match slot.fired() {
        Some(_) => too_late(shard, "the body did not come in time"),
        None => NoRequest::Closed,
    })
}
