//! The response parser must not care how the bytes are cut.

use pdload::http::{Fault, Parser, Progress, Sink};
use proptest::prelude::*;

#[derive(Default, PartialEq, Debug, Clone)]
struct Seen {
    statuses: Vec<u16>,
    body: Vec<u8>,
}

impl Sink for Seen {
    fn head(&mut self, status: u16, _: &[httparse::Header<'_>]) {
        self.statuses.push(status);
    }
    fn body(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty());
        self.body.extend_from_slice(bytes);
    }
}

/// Feeds the parts: what was seen, whether it ended, and the bytes left over.
fn parse(parts: &[&[u8]]) -> (Seen, Result<Option<usize>, Fault>) {
    let (mut parser, mut seen) = (Parser::default(), Seen::default());
    for (at, part) in parts.iter().enumerate() {
        match parser.feed(part, &mut seen) {
            Err(fault) => return (seen, Err(fault)),
            Ok(Progress::More) => {}
            Ok(Progress::Done { rest }) => {
                let behind = parts[at + 1..].iter().map(|part| part.len()).sum::<usize>();
                return (seen, Ok(Some(rest + behind)));
            }
        }
    }
    (seen, Ok(None))
}

const GOOD: &[(&str, &str)] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"),
    ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
    ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", ""),
    (
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
        "ab",
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
      5;a=\"b\"\r\nhello\r\n00a ; x\r\n0123456789\r\n0\r\nT: v\r\nU: w\r\n\r\n",
        "hello0123456789",
    ),
    (
        "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "0123456789",
    ),
];

const BAD: &[&str] = &[
    "HTTP/1.1 200 OK\nContent-Length: 1\n\na",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\na",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nab",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1111111111111111\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: v\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
];

#[test]
fn every_split_in_three_gives_the_same() {
    for (text, body) in GOOD {
        let text = text.as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let parts = [&text[..first], &text[first..second], &text[second..]];
                let (seen, end) = parse(&parts);
                assert_eq!(end, Ok(Some(0)), "{parts:?}");
                assert_eq!(seen.body, body.as_bytes());
                assert_eq!(seen.statuses.len(), 1);
            }
        }
    }
}

#[test]
fn malformed_responses_are_faults_under_every_split() {
    for text in BAD {
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            assert!(parse(&[head, tail]).1.is_err(), "{text:?} cut at {cut}");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_reported() {
    for (text, _) in GOOD {
        let text = format!("{text}xyz");
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            assert_eq!(parse(&[head, tail]).1, Ok(Some(3)), "{text:?} cut at {cut}");
        }
    }
}

#[test]
fn an_early_end_is_told_from_a_legal_one() {
    let ends = |text: &str| {
        let mut parser = Parser::default();
        parser.feed(text.as_bytes(), &mut Seen::default()).unwrap();
        parser.eof().is_ok()
    };
    assert!(ends("HTTP/1.1 200 OK\r\n\r\nto the close"));
    assert!(ends("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"));
    assert!(!ends("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"));
    assert!(!ends(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
    ));
    assert!(!ends(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
    ));
    assert!(!ends("HTTP/1.1 200"));
}

#[test]
fn keep_alive_follows_version_and_header() {
    let keeps = |text: &str| {
        let mut parser = Parser::default();
        parser.feed(text.as_bytes(), &mut Seen::default()).unwrap();
        parser.keep_alive()
    };
    assert!(keeps("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    assert!(!keeps(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n"
    ));
    assert!(!keeps("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"));
    assert!(keeps(
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n"
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunked_bodies_survive_any_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            text.extend_from_slice(format!("{:X};n=1\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        let mut at = cuts.iter().map(|cut| cut.index(text.len())).collect::<Vec<_>>();
        at.extend([0, text.len()]);
        at.sort_unstable();
        let parts = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect::<Vec<_>>();
        let (seen, end) = parse(&parts);
        prop_assert_eq!(end, Ok(Some(0)));
        prop_assert_eq!(seen.body, chunks.concat());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        let heads: [&[u8]; 3] = [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"];
        for head in heads {
            let text = [head, &bytes].concat();
            let (first, second) = text.split_at(cut.index(text.len() + 1));
            prop_assert_eq!(parse(&[first, second]).1.is_err(), parse(&[&text]).1.is_err());
        }
    }
}
