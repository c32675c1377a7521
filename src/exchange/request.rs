//! A client's request as received: bytes, and ranges into them. Shared by all its legs, copied by none.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;

use crate::wire::head::RequestHead;
use crate::wire::json::{Object, string_value};
use crate::wire::openai::Summary;

use super::overlay::Overlay;

pub struct Request {
    pub head: RequestHead,
    /// The head, and behind it the body if that came with a length.
    head_bytes: Rc<Vec<u8>>,
    head_len: usize,
    /// The buffer that holds the body (the same one, or a decoded one if it came chunked).
    body_bytes: Rc<Vec<u8>>,
    body: Range<usize>,
    /// The client's `X-Request-Id`, or ours: the same on every leg and in the reply.
    pub id: Box<str>,
    pub peer: Option<IpAddr>,
    /// Which of the proxy's ports it came in on: the main one is 0.
    pub door: u16,
    /// For generate requests: the index of the body.
    pub object: Object,
    pub summary: Summary,
    /// What an outer handshake has changed.
    overlay: RefCell<Option<Rc<Overlay>>>,
    /// Given back to the shard's limit with the bytes.
    _held: Option<Held>,
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
        id: Box<str>,
        peer: Option<IpAddr>,
        held: Held,
    ) -> Request {
        let head_bytes = Rc::new(bytes);
        let (body_bytes, body) = match decoded {
            Some(body) => {
                let range = 0..body.len();
                (Rc::new(body), range)
            }
            None => (head_bytes.clone(), head_len..head_bytes.len()),
        };
        Request {
            head,
            head_bytes,
            head_len,
            body_bytes,
            body,
            id,
            peer,
            door: 0,
            object: Object::default(),
            summary: Summary::default(),
            overlay: RefCell::default(),
            _held: Some(held),
        }
    }

    /// What is still needed once the reply has begun.
    pub fn without_bytes(&self) -> Request {
        let none = Rc::new(Vec::new());
        Request {
            head: self.head.without_fields(),
            head_bytes: none.clone(),
            head_len: 0,
            body_bytes: none,
            body: 0..0,
            id: self.id.clone(),
            peer: self.peer,
            door: self.door,
            object: Object::default(),
            summary: self.summary.clone(),
            overlay: RefCell::default(),
            _held: None,
        }
    }

    pub fn head_bytes(&self) -> &[u8] {
        &self.head_bytes[..self.head_len]
    }

    pub fn body(&self) -> &[u8] {
        &self.body_bytes[self.body.clone()]
    }

    /// The body's bytes for a write that outlives this borrow, and where in them the body begins.
    pub fn shared_body(&self) -> (Rc<Vec<u8>>, usize) {
        (self.body_bytes.clone(), self.body.start)
    }

    /// The model that is asked for, if one is. Gone with the bytes.
    pub fn model(&self) -> Option<Cow<'_, [u8]>> {
        let (start, end) = self.summary.model?;
        let value = self.body().get(start as usize..end as usize)?;
        string_value(value).filter(|name| !name.is_empty())
    }

    /// From now on legs carry these changes, instead of any before.
    pub fn lay(&self, overlay: Option<Overlay>) {
        *self.overlay.borrow_mut() = overlay.map(Rc::new);
    }

    pub fn overlay(&self) -> Option<Rc<Overlay>> {
        self.overlay.borrow().clone()
    }

    /// Path and query in origin form.
    pub fn target(&self) -> &str {
        self.head.origin_form(self.head_bytes())
    }

    pub fn path(&self) -> &str {
        self.head.path(self.head_bytes())
    }

    /// The buffer of the request, for the shard to reuse, if nothing else holds it any more.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        drop(self.body_bytes);
        Rc::try_unwrap(self.head_bytes).ok()
    }
}
