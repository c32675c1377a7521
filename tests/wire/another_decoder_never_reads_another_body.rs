//! monoio-http's decoder as an oracle, on what it knows: bodies without extensions and trailers.

use super::support::{chunked, cut, cuts};
use monoio::BufResult;
use monoio::buf::{IoBufMut, IoVecBufMut};
use monoio::io::AsyncReadRent;
use monoio::io::stream::Stream;
use monoio_http::h1::codec::decoder::{FillPayload, RequestDecoder};
use monoio_http::h1::payload::Payload;
use pdrelay::wire::chunk::ChunkScan;
use pdrelay::wire::head::{Framing, HeadScan, RequestHead};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Gives one piece per read, then the end.
struct Arriving<'a>(VecDeque<&'a [u8]>);

impl AsyncReadRent for Arriving<'_> {
    async fn read<T: IoBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
        while self.0.front().is_some_and(|piece| piece.is_empty()) {
            self.0.pop_front();
        }
        match self.0.front_mut() {
            Some(piece) => piece.read(buf).await,
            None => (&mut &b""[..]).read(buf).await,
        }
    }

    async fn readv<T: IoVecBufMut>(&mut self, buf: T) -> BufResult<usize, T> {
        (&mut &b""[..]).readv(buf).await
    }
}

/// Nothing here ever waits, so there is no need for a runtime.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(out) => out,
        Poll::Pending => panic!("the oracle waits"),
    }
}

const HEAD: &[u8] = b"POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const NEXT: &[u8] = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n";

/// The payload and the path of the pipelined request after it; None where the body is refused.
fn theirs(pieces: &[&[u8]]) -> Option<(Vec<u8>, String)> {
    let mut decoder = RequestDecoder::new(Arriving(pieces.iter().copied().collect()));
    let first = now(decoder.next())?.ok()?;
    assert_eq!(first.uri().path(), "/first");
    now(decoder.fill_payload()).ok()?;
    let Payload::Stream(mut body) = first.into_body() else {
        panic!("a chunked body")
    };
    let mut payload = vec![];
    while let Some(data) = now(body.next()) {
        payload.extend_from_slice(&data.ok()?);
    }
    let second = now(decoder.next())?.ok()?;
    Some((payload, second.uri().path().to_owned()))
}

fn ours(bytes: &[u8]) -> Option<(Vec<u8>, String)> {
    let end = HeadScan::default().advance(bytes).ok()??;
    let head = RequestHead::parse(&bytes[..end]).ok()?;
    assert_eq!(head.framing, Framing::Chunked);
    let mut scan = ChunkScan::default();
    let mut payload = vec![];
    let taken = scan
        .feed(&bytes[end..], |data| payload.extend_from_slice(data))
        .ok()?;
    let rest = &bytes[end + taken..];
    let next = HeadScan::default().advance(rest).ok()??;
    let second = RequestHead::parse(&rest[..next]).ok()?;
    scan.done()
        .then(|| (payload, second.path(&rest[..next]).to_owned()))
}

proptest! {
    #[test]
    fn good_bodies(body in chunked(true), cuts in cuts()) {
        let wire = [HEAD, &body.bytes, NEXT].concat();
        let expected = Some((body.payload, "/second".to_owned()));
        prop_assert_eq!(&ours(&wire), &expected);
        prop_assert_eq!(&theirs(&cut(&wire, &cuts)), &expected);
    }

    /// It is the more lenient one, so only what passes here is compared.
    #[test]
    fn damaged_bodies(
        body in chunked(true),
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"\r\n0a5;x".to_vec()),
    ) {
        let mut bytes = body.bytes;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let wire = [HEAD, &bytes, NEXT].concat();
        let extended = wire.contains(&b';');
        if let (Some(ours), Some(theirs), false) = (ours(&wire), theirs(&[&wire]), extended) {
            prop_assert_eq!(ours, theirs);
        }
    }
}
