//! Chunked bodies: the same payload and the same end however they arrive, and as a line reader sees it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::chunk::{BadChunk, ChunkScan, END, put_chunk};
use pdrelay_fuzz::{Dice, splits};

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice::of(data);
    let whole = scanned(&[data]);
    for pieces in splits(data, &mut dice) {
        assert_eq!(scanned(&pieces), whole, "the split changed the body");
    }
    match (&whole.end, read(data)) {
        (Ok(Some(end)), other) => {
            let Reading::Done(payload, at) = other else {
                panic!("a body that a line reader does not see ended: {other:?}")
            };
            assert_eq!((&payload, at), (&whole.payload, *end));
        }
        (_, Reading::Done(..)) => assert!(beyond_limits(data), "a good body was refused"),
        (Ok(None), Reading::Open) | (Err(_), _) => {}
        (Ok(None), Reading::Bad) => panic!("a malformed body is still read"),
    }
    with_a_chunk_of_our_own(data, &mut dice, &whole);
    written(data, &mut dice);
});

#[derive(Debug, PartialEq)]
struct Scanned {
    payload: Vec<u8>,
    /// How many bytes belong to the body, once it has ended.
    end: Result<Option<usize>, BadChunk>,
}

fn scanned(pieces: &[&[u8]]) -> Scanned {
    let mut scan = ChunkScan::default();
    let mut payload = Vec::new();
    let mut taken = 0;
    for piece in pieces {
        match scan.feed(piece, |data| payload.extend_from_slice(data)) {
            Ok(n) => {
                assert!(n == piece.len() || scan.done());
                taken += n;
            }
            Err(why) => {
                // It stays so.
                assert!(
                    scan.feed(b"0\r\n\r\n", |_| panic!("payload after an error"))
                        .is_err()
                );
                assert!(!scan.done() && !scan.at_boundary());
                return Scanned {
                    payload,
                    end: Err(why),
                };
            }
        }
    }
    Scanned {
        payload,
        end: Ok(scan.done().then_some(taken)),
    }
}

#[derive(Debug)]
enum Reading {
    Done(Vec<u8>, usize),
    Open,
    Bad,
}

/// Reads whole lines, and judges a body only by whole lines.
fn read(data: &[u8]) -> Reading {
    let mut at = 0;
    let mut payload = Vec::new();
    loop {
        let Some(line) = line(data, &mut at) else {
            return Reading::Open;
        };
        let Some(size) = line.and_then(size) else {
            return Reading::Bad;
        };
        if size == 0 {
            break;
        }
        let rest = (data.len() - at) as u64;
        if rest < size {
            return Reading::Open;
        }
        payload.extend_from_slice(&data[at..at + size as usize]);
        at += size as usize;
        match &data[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Reading::Open,
            _ => return Reading::Bad,
        }
    }
    loop {
        match line(data, &mut at) {
            None => return Reading::Open,
            Some(None) => return Reading::Bad,
            Some(Some([])) => return Reading::Done(payload, at),
            Some(Some(_)) => {}
        }
    }
}

/// The next line without its CR LF; `Some(None)` if it has a CR or an LF too many.
fn line<'a>(data: &'a [u8], at: &mut usize) -> Option<Option<&'a [u8]>> {
    let lf = data[*at..].iter().position(|b| *b == b'\n')?;
    let line = &data[*at..*at + lf];
    *at += lf + 1;
    Some(line.strip_suffix(b"\r").filter(|l| !l.contains(&b'\r')))
}

/// The size that a size line states.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let after = line[digits..].trim_ascii_start();
    let blank = line[digits..]
        .iter()
        .take_while(|b| matches!(b, b' ' | b'\t'))
        .count();
    let after_blank = &line[digits + blank..];
    // Only space and tab may come before an extension.
    if after.len() != after_blank.len() || !matches!(after_blank.first(), None | Some(b';')) {
        return None;
    }
    let text = std::str::from_utf8(&line[..digits]).ok()?;
    u64::from_str_radix(text, 16).ok().filter(|_| digits <= 15)
}

/// Long enough that a limit of ours may have ended it.
fn beyond_limits(data: &[u8]) -> bool {
    data.len() > 4096
}

/// At a boundary, a proxy may put a chunk in front of what comes.
fn with_a_chunk_of_our_own(data: &[u8], dice: &mut Dice, whole: &Scanned) {
    let at = dice.roll(data.len() + 1);
    let mut scan = ChunkScan::default();
    let mut before = 0;
    if scan.feed(&data[..at], |data| before += data.len()).is_err() || !scan.at_boundary() {
        return;
    }
    let mut longer = data[..at].to_vec();
    put_chunk(&mut longer, b"own\r\n0\r\n\r\n");
    let own = longer.len() - at;
    longer.extend_from_slice(&data[at..]);
    let with = scanned(&[&longer]);
    let mut payload = whole.payload.clone();
    payload.splice(before..before, *b"own\r\n0\r\n\r\n");
    assert_eq!(with.payload, payload);
    assert_eq!(with.end, whole.end.map(|end| end.map(|n| n + own)));
}

/// What we write, we read.
fn written(data: &[u8], dice: &mut Dice) {
    let mut body = Vec::new();
    for piece in &splits(data, dice)[4] {
        put_chunk(&mut body, piece);
    }
    body.extend_from_slice(END);
    let end = body.len();
    body.extend_from_slice(b"GET / HTTP/1.1\r\n");
    let back = scanned(&[&body]);
    assert_eq!(back.payload, data);
    assert_eq!(back.end, Ok(Some(end)));
}
