use super::support::{chunked, cut, cuts, fixed_splits};
use pdrelay::wire::chunk::ChunkScan;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// How a body ends, as far as it was received.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Payload and bytes taken.
    Done(Vec<u8>, usize),
    More,
    Bad,
}

/// The whole buffer at once, line by line.
fn reference(bytes: &[u8]) -> Verdict {
    /// The line at `at` without its CRLF. A CR or LF of any other kind is an error.
    fn line(bytes: &[u8], at: usize) -> Result<&[u8], Verdict> {
        let rest = &bytes[at..];
        match rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
            None => Err(Verdict::More),
            Some(end) => match &rest[end..] {
                [b'\r', b'\n', ..] => Ok(&rest[..end]),
                [b'\r'] => Err(Verdict::More),
                _ => Err(Verdict::Bad),
            },
        }
    }
    fn read(bytes: &[u8]) -> Result<(Vec<u8>, usize), Verdict> {
        let mut payload = vec![];
        let mut at = 0;
        loop {
            let size = line(bytes, at)?;
            at += size.len() + 2;
            let digits = size.iter().take_while(|b| b.is_ascii_hexdigit()).count();
            let after = size[digits..].trim_ascii_start();
            if digits == 0 || digits > 15 || !(after.is_empty() || after[0] == b';') {
                return Err(Verdict::Bad);
            }
            let digits = std::str::from_utf8(&size[..digits]).unwrap();
            let size = usize::from_str_radix(digits, 16).unwrap();
            if size == 0 {
                break;
            }
            let rest = bytes.get(at..).unwrap_or(b"");
            match rest.get(size..).unwrap_or(b"") {
                [] | [b'\r'] => return Err(Verdict::More),
                [b'\r', b'\n', ..] => {}
                _ => return Err(Verdict::Bad),
            }
            payload.extend_from_slice(&rest[..size]);
            at += size + 2;
        }
        loop {
            let trailer = line(bytes, at)?;
            at += trailer.len() + 2;
            if trailer.is_empty() {
                return Ok((payload, at));
            }
        }
    }
    match read(bytes) {
        Ok((payload, taken)) => Verdict::Done(payload, taken),
        // A bad first byte of a line that has no end yet is told at once or later.
        Err(verdict) => verdict,
    }
}

fn scan(pieces: &[&[u8]]) -> Verdict {
    let mut scan = ChunkScan::default();
    let mut payload = vec![];
    let mut taken = 0;
    for piece in pieces {
        match scan.feed(piece, |data| payload.extend_from_slice(data)) {
            Ok(n) => taken += n,
            Err(_) => {
                assert!(!scan.done());
                assert!(
                    !scan.at_boundary(),
                    "after an error there is no place for a chunk of ours"
                );
                assert!(
                    scan.feed(b"0\r\n\r\n", |_| ()).is_err(),
                    "an error is for good"
                );
                assert!(!scan.done());
                return Verdict::Bad;
            }
        }
    }
    if scan.done() {
        Verdict::Done(payload, taken)
    } else {
        Verdict::More
    }
}

#[test]
fn malformed_under_every_split() {
    for text in [
        "\r\n\r\n",
        ";a\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5 a=b\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\nxyz",
        "0\n\n",
        "0\r\n\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA: b\rC: d\r\n\r\n",
        "0\r\n\r\r\n",
        "0000000000000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
    ] {
        for pieces in fixed_splits(text.as_bytes()) {
            assert_eq!(scan(&pieces), Verdict::Bad, "{text:?} as {pieces:?}");
        }
    }
}

/// Cut short anywhere, a body is unfinished: never ended and never wrong.
#[test]
fn cut_short() {
    let whole = b"5;x\r\nhello\r\n10 \r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n";
    for end in 0..whole.len() {
        assert_eq!(scan(&[&whole[..end]]), Verdict::More, "{end}");
    }
}

/// The error may not look like a boundary: what came with it was not forwarded.
#[test]
fn no_boundary_beside_an_error() {
    let mut scan = ChunkScan::default();
    scan.feed(b"5\r\nhe", |_| ()).unwrap();
    assert!(scan.feed(b"llo\r\nXX", |_| ()).is_err());
    assert!(!scan.at_boundary());
}

#[test]
fn endless_lines() {
    let endless = |start: &str, fill: &str, limit: usize| {
        let mut scan = ChunkScan::default();
        scan.feed(start.as_bytes(), |_| ()).unwrap();
        let mut sent = 0;
        while scan.feed(fill.as_bytes(), |_| ()).is_ok() {
            sent += fill.len();
            assert!(sent <= limit, "{start:?} {fill:?}");
        }
    };
    endless("5;", "x", 4096);
    endless("5", " ", 4097);
    endless("0\r\n", "x", 16 << 10);
    endless("0\r\n", "a:b\r\n", 32 << 10);
    endless("0", "0", 15);
}

/// The limit is on a line: a long stream of short extensions stays good.
#[test]
fn many_extensions() {
    let mut scan = ChunkScan::default();
    for _ in 0..1000 {
        scan.feed(b"1;signature=0123456789abcdef\r\nx\r\n", |_| ())
            .expect("short lines");
    }
    assert!(scan.at_boundary());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Damaged at random, a body is read as the reference reads it, however it arrives.
    #[test]
    fn damaged_bodies(
        body in chunked(false),
        damage in prop::collection::vec(
            (any::<Index>(), select(b"\r\n0a5; \t\0xg:".to_vec()), 0..3u8), 1..4),
        cuts in cuts(),
    ) {
        let mut bytes = body.bytes;
        for (at, byte, how) in damage {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {}
            }
        }
        let expected = reference(&bytes);
        let whole = scan(&[&bytes]);
        prop_assert_eq!(&scan(&cut(&bytes, &cuts)), &whole, "splits matter");
        if expected == Verdict::More {
            // The reference waits for the end of a line, the scan does not.
            prop_assert!(!matches!(whole, Verdict::Done(..)), "{:?}", whole);
        } else {
            prop_assert_eq!(whole, expected);
        }
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(select(b"\r\n0125; aF:".to_vec()), 0..40)) {
        let whole = scan(&[&bytes]);
        prop_assert_eq!(&scan(&bytes.chunks(1).collect::<Vec<_>>()), &whole);
        if let Verdict::Done(..) = whole {
            prop_assert_eq!(whole, reference(&bytes));
        }
    }
}
