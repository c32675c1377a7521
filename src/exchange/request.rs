//! A client's request as received: bytes, and ranges into them. Shared by all its legs, copied by none.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::id::Id;
use crate::wire::head::RequestHead;
use crate::wire::json::{Object, string_value};
use crate::wire::openai::Summary;

use super::overlay::Overlay;

pub struct Request {
    pub head: RequestHead,
    /// The head, and behind it the body if that came with a length. `None`: they have been let go of.
    bytes: Option<Rc<Vec<u8>>>,
    head_len: u32,
    /// The body, if it came chunked.
    decoded: Option<Rc<Vec<u8>>>,
    /// The client's `X-Request-Id`, or ours: the same on every leg and in the reply.
    pub id: Id,
    pub peer: Option<IpAddr>,
    /// Which of the proxy's ports it came in on: the main one is 0.
    pub door: u16,
    /// When the first byte of its head was there.
    pub started: Instant,
    /// How long it was on its way from then on, in ns.
    received_ns: u64,
    /// For generate requests: the index of the body.
    pub object: Object,
    pub summary: Summary,
    /// What an outer handshake has changed.
    overlay: Cell<Option<Rc<Overlay>>>,
    /// Given back to the shard's limit with the bytes.
    _held: Option<Held>,
}

/// Whose request it is, and since when.
pub struct Origin {
    pub id: Id,
    pub peer: Option<IpAddr>,
    pub door: u16,
    pub started: Instant,
}

/// A part of the memory that a shard allows for request bodies.
pub struct Held {
    total: Rc<Cell<usize>>,
    bytes: usize,
}

impl Held {
    pub fn none(total: &Rc<Cell<usize>>) -> Held {
        Held {
            total: total.clone(),
            bytes: 0,
        }
    }

    /// Takes more, unless that is above `max`.
    pub fn grow(&mut self, by: usize, max: usize) -> bool {
        let fits = self.total.get() + by <= max;
        if fits {
            self.total.set(self.total.get() + by);
            self.bytes += by;
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

impl Request {
    /// `bytes[..head_len]` is the head. `decoded`: the body, if it was chunked; else it follows the head.
    pub fn new(
        head: RequestHead,
        bytes: Vec<u8>,
        head_len: usize,
        decoded: Option<Vec<u8>>,
        origin: Origin,
        held: Held,
    ) -> Request {
        Request {
            head,
            bytes: Some(Rc::new(bytes)),
            head_len: head_len as u32,
            decoded: decoded.map(Rc::new),
            id: origin.id,
            peer: origin.peer,
            door: origin.door,
            started: origin.started,
            received_ns: origin.started.elapsed().as_nanos() as u64,
            object: Object::default(),
            summary: Summary::default(),
            overlay: Cell::default(),
            _held: Some(held),
        }
    }

    /// While nobody else has it: to be indexed.
    pub fn unshared(this: &mut Rc<Request>) -> &mut Request {
        match Rc::get_mut(this) {
            Some(request) => request,
            None => unreachable!("a request is indexed before it is shared"),
        }
    }

    /// Keeps what is still needed once the reply has begun. Gives the buffer, for the shard to reuse, if nothing
    /// else holds it any more.
    pub fn forget_bytes(&mut self) -> Option<Vec<u8>> {
        self.head.forget_fields();
        self.head_len = 0;
        self.decoded = None;
        self.object = Object::default();
        self.overlay.take();
        self._held = None;
        Rc::into_inner(self.bytes.take()?)
    }

    /// What [`Request::forget_bytes`] keeps, of a request that others go on to need.
    pub fn without_bytes(&self) -> Request {
        Request {
            head: self.head.without_fields(),
            bytes: None,
            head_len: 0,
            decoded: None,
            id: self.id.clone(),
            peer: self.peer,
            door: self.door,
            started: self.started,
            received_ns: self.received_ns,
            object: Object::default(),
            summary: self.summary.clone(),
            overlay: Cell::default(),
            _held: None,
        }
    }

    pub fn head_bytes(&self) -> &[u8] {
        let bytes = self.bytes.as_ref().map_or(&[][..], |bytes| bytes);
        &bytes[..self.head_len as usize]
    }

    pub fn body(&self) -> &[u8] {
        match (&self.decoded, &self.bytes) {
            (Some(body), _) => body,
            (None, Some(bytes)) => &bytes[self.head_len as usize..],
            (None, None) => &[],
        }
    }

    /// The body's bytes for a write that outlives this borrow, and where in them the body begins.
    pub fn shared_body(&self) -> (Rc<Vec<u8>>, usize) {
        match (&self.decoded, &self.bytes) {
            (Some(body), _) => (body.clone(), 0),
            (None, Some(bytes)) => (bytes.clone(), self.head_len as usize),
            (None, None) => Default::default(),
        }
    }

    /// The model that is asked for, if one is. Gone with the bytes.
    pub fn model(&self) -> Option<Cow<'_, [u8]>> {
        let (start, end) = self.summary.model?;
        let value = self.body().get(start as usize..end as usize)?;
        string_value(value).filter(|name| !name.is_empty())
    }

    /// From now on legs carry these changes, instead of any before.
    pub fn lay(&self, overlay: Option<Overlay>) {
        self.overlay.set(overlay.map(Rc::new));
    }

    pub fn overlay(&self) -> Option<Rc<Overlay>> {
        let overlay = self.overlay.take();
        self.overlay.set(overlay.clone());
        overlay
    }

    /// How long it took from the first byte of its head to its last.
    pub fn received(&self) -> Duration {
        Duration::from_nanos(self.received_ns)
    }

    /// Path and query in origin form.
    pub fn target(&self) -> &str {
        self.head.origin_form(self.head_bytes())
    }

    pub fn path(&self) -> &str {
        self.head.path(self.head_bytes())
    }
}
