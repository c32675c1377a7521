//! A peer's bytes: the same under any split, and frames come out whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::zmtp::{GREETING, Peer};
use pdrelay_fuzz::{Dice, splits};

const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice::of(data);
    let good = [&GREETING[..], READY, data].concat();
    for said in [data.to_vec(), good] {
        let whole = run(&[&said]);
        for pieces in splits(&said, &mut dice) {
            assert_eq!(run(&pieces), whole);
        }
        if said.first().is_some_and(|b| *b != 0xff) {
            assert!(whole.0.is_err() && whole.1.is_empty(), "said something to no ZMTP");
        }
    }
    // As the body of a frame it is a message.
    let mut framed = [&GREETING[..], READY, &[2]].concat();
    framed.extend_from_slice(&(data.len() as u64).to_be_bytes());
    framed.extend_from_slice(data);
    let (end, _, messages) = run(&[&framed]);
    assert_eq!((end, messages), (Ok(()), vec![data.to_vec()]));
});

type Run = (Result<(), &'static str>, Vec<u8>, Vec<Vec<u8>>);

fn run(pieces: &[&[u8]]) -> Run {
    let (mut peer, mut out, mut messages) = (Peer::default(), Vec::new(), Vec::new());
    for piece in pieces {
        if let Err(bad) = peer.feed(piece, &mut out, |m| messages.push(m.to_vec())) {
            return (Err(bad.0), out, messages);
        }
    }
    (Ok(()), out, messages)
}
