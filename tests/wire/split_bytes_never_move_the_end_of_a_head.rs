use super::support::{cut, cuts, fixed_splits};
use pdrelay::wire::head::{BadHead, HeadScan};
use proptest::prelude::*;
use proptest::sample::select;

/// Line by line over the whole buffer.
fn reference(bytes: &[u8]) -> Result<Option<usize>, BadHead> {
    let mut start = 0;
    while let Some(found) = bytes[start..].iter().position(|b| *b == b'\n') {
        let line = &bytes[start..start + found];
        start += found + 1;
        match line {
            b"\r" => return Ok(Some(start)),
            [.., b'\r'] => {}
            _ => return Err(BadHead::BareLf),
        }
    }
    Ok(None)
}

/// Grows the buffer piece by piece, as a connection does.
fn scan(pieces: &[&[u8]]) -> Result<Option<usize>, BadHead> {
    let mut scan = HeadScan::default();
    let mut buffer = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        match scan.advance(&buffer) {
            Ok(None) => {}
            end => return end,
        }
    }
    Ok(None)
}

#[test]
fn every_split_of_typical_heads() {
    for text in [
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r",
        "GET / HTTP/1.1\r\r\nHost: a\r\n\r\r\n\r\n",
        "GET / HTTP/1.1\n\nGET /evil HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\n",
        "\r\n",
        "",
    ] {
        let expected = reference(text.as_bytes());
        for pieces in fixed_splits(text.as_bytes()) {
            assert_eq!(scan(&pieces), expected, "{text:?} as {pieces:?}");
        }
    }
}

/// What was looked at is never looked at again, or a slow sender costs the square of its head.
#[test]
fn bytes_are_looked_at_once() {
    let mut scan = HeadScan::default();
    let mut buffer = Vec::new();
    for _ in 0..1000 {
        buffer.extend_from_slice(b"name: some value\r\n");
        assert_eq!(scan.advance(&buffer), Ok(None));
        buffer.fill(b'\n');
    }
    buffer.extend_from_slice(b"\r\n");
    assert_eq!(scan.advance(&buffer), Ok(Some(buffer.len())));
}

#[test]
fn a_bare_lf_stays_an_error() {
    let mut scan = HeadScan::default();
    assert_eq!(scan.advance(b"GET / HTTP/1.1\n"), Err(BadHead::BareLf));
    assert_eq!(
        scan.advance(b"GET / HTTP/1.1\n\r\n\r\n"),
        Err(BadHead::BareLf)
    );
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces(
        parts in prop::collection::vec(
            select(vec!["\r\n", "\r\n", "\r", "\n", "x", "h: v\r\n", "GET / HTTP/1.1\r\n", "\0"]), 0..12),
        cuts in cuts(),
    ) {
        let text = parts.concat();
        let pieces = cut(text.as_bytes(), &cuts);
        prop_assert_eq!(scan(&pieces), reference(text.as_bytes()));
    }
}
