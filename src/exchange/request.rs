//! A client's request as received: bytes, and ranges into them. Shared by all its legs, copied by none.

use std::net::IpAddr;
use std::ops::Range;
use std::rc::Rc;

use crate::wire::head::RequestHead;
use crate::wire::json::Object;
use crate::wire::openai::Summary;

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
    /// For generate requests: the index of the body.
    pub object: Object,
    pub summary: Summary,
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
            object: Object::default(),
            summary: Summary::default(),
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
