use super::support::{Chunked, chunked, cut, cuts, fixed_splits};
use pdrelay::wire::chunk::{self, ChunkScan};
use proptest::prelude::*;

/// Feeds the pieces of `body.bytes` plus a pipelined tail, checking every answer on the way.
fn check(body: &Chunked, pieces: &[&[u8]]) {
    let mut scan = ChunkScan::default();
    let mut payload = vec![];
    let mut offered = 0;
    let mut taken = 0;
    for piece in pieces {
        let n = scan
            .feed(piece, |data| payload.extend_from_slice(data))
            .expect("well-formed");
        offered += piece.len();
        let end = body.bytes.len();
        assert_eq!(
            n,
            piece.len().min(end - taken),
            "exactly the body's own bytes"
        );
        taken += n;
        assert_eq!(scan.done(), offered >= end);
        assert_eq!(
            scan.at_boundary(),
            body.boundaries.contains(&taken),
            "at {taken}"
        );
    }
    assert!(scan.done());
    assert_eq!(taken, body.bytes.len());
    assert_eq!(payload, body.payload);
    // Ended is ended.
    assert_eq!(
        scan.feed(b"5\r\nhello\r\n", |_| panic!("after the end")),
        Ok(0)
    );
    assert!(scan.done() && !scan.at_boundary());
}

#[test]
fn every_split_of_one_rich_body() {
    let bytes =
        b"5;x=\"y\"\r\nhello\r\n00A \t\r\n0\r\n\r\n12345\r\n1\r\n\n\r\n0;e\r\nA: b\r\nC:\r\n\r\n";
    let payload = b"hello0\r\n\r\n12345\n".to_vec();
    let body = Chunked {
        bytes: bytes.to_vec(),
        payload,
        boundaries: vec![0, 16, 35, 41],
    };
    let wire = [bytes, &b"GET / HTTP/1.1\r\n"[..]].concat();
    for pieces in fixed_splits(&wire) {
        check(&body, &pieces);
    }
    for a in 0..bytes.len() {
        for b in a..bytes.len() {
            check(&body, &[&bytes[..a], &bytes[a..b], &bytes[b..]]);
        }
    }
}

#[test]
fn sizes_as_we_write_them() {
    for size in [1, 9, 10, 15, 16, 255, 256, 4096, 0xfedc_ba98, usize::MAX] {
        let mut out = b"x".to_vec();
        chunk::put_size(&mut out, size);
        assert_eq!(out, format!("x{size:x}\r\n").into_bytes());
    }
    let mut out = vec![];
    chunk::put_chunk(&mut out, b"");
    assert!(out.is_empty(), "an empty chunk would end the body");
}

proptest! {
    #[test]
    fn any_body_in_any_pieces(
        body in chunked(false),
        tail in prop::collection::vec(any::<u8>(), 0..20),
        cuts in cuts(),
    ) {
        let wire = [&body.bytes[..], &tail].concat();
        check(&body, &cut(&wire, &cuts));
        check(&body, &wire.chunks(1).collect::<Vec<_>>());
    }

    /// What we write, we read.
    #[test]
    fn our_own_chunks(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6)) {
        let mut body = Chunked { bytes: vec![], payload: parts.concat(), boundaries: vec![0] };
        for part in &parts {
            chunk::put_chunk(&mut body.bytes, part);
            body.boundaries.push(body.bytes.len());
        }
        body.bytes.extend_from_slice(chunk::END);
        check(&body, &[&body.bytes]);
    }
}
