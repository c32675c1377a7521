//! HTTP/1.1 as a strict server sees it: heads, framing, bodies.

pub(crate) mod body;
pub(crate) mod gzip;
pub(crate) mod head;
pub(crate) mod respond;
pub(crate) mod wire;
