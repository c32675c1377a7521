//! Notices: any order of keys, any other keys, any split of the bytes; what is no notice is told apart, and no
//! bytes do any harm.

use pdrelay::wire::msgpack::{Notice, Unread, notice};
use pdrelay::wire::zmtp::{GREETING, Peer};
use proptest::prelude::*;

use super::support::{cut, cuts, fixed_splits};

/// As msgspec writes a text.
fn text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        n @ 0..=31 => out.push(0xa0 | n as u8),
        n @ 32..=255 => out.extend_from_slice(&[0xd9, n as u8]),
        n => {
            out.push(0xda);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

fn message(kind: Option<&str>, id: &str) -> Vec<u8> {
    let mut out = vec![0x81 + u8::from(kind.is_some())];
    if let Some(kind) = kind {
        text(&mut out, "type");
        text(&mut out, kind);
    }
    text(&mut out, "req_id");
    text(&mut out, id);
    out
}

#[test]
fn the_measured_bytes_are_read() {
    let measured = b"\x82\xa4type\xaaProxyNotif\xa6req_id\xa11";
    assert_eq!(notice(measured), Ok(Notice::Arrived("1")));
    assert_eq!(
        notice(&message(Some("NixlProxyNotif"), "a-b-1")),
        Ok(Notice::Arrived("a-b-1"))
    );
    assert_eq!(notice(&message(None, "x")), Ok(Notice::Arrived("x")));
    assert_eq!(notice(&message(None, "x::error")), Ok(Notice::Failed("x")));
    assert_eq!(
        notice(&message(Some("AllocRequest"), "x")),
        Err(Unread::OtherType)
    );
    assert_eq!(notice(b"\x81\xa4type\xaaProxyNotif"), Err(Unread::NoId));
    // A number is no id, and a whole message more than one.
    assert_eq!(notice(b"\x81\xa6req_id\x07"), Err(Unread::NoId));
    assert_eq!(
        notice(&[measured, &b"\xc0"[..]].concat()),
        Err(Unread::Malformed)
    );
    for bad in [
        &b""[..],
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x81\xa6req_id\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ] {
        assert_eq!(notice(bad), Err(Unread::Malformed), "{bad:02x?}");
    }
    for end in 0..measured.len() {
        assert_eq!(notice(&measured[..end]), Err(Unread::Malformed));
    }
}

/// Any value, as MessagePack.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(vec![0xc0]),
        any::<bool>().prop_map(|b| vec![0xc2 + u8::from(b)]),
        any::<i64>().prop_map(|n| [&[0xd3][..], &n.to_be_bytes()].concat()),
        any::<u8>().prop_map(|n| vec![0xcc, n]),
        any::<f64>().prop_map(|n| [&[0xcb][..], &n.to_be_bytes()].concat()),
        "[a-z]{0,40}".prop_map(|t| {
            let mut out = Vec::new();
            text(&mut out, &t);
            out
        }),
        prop::collection::vec(any::<u8>(), 0..20)
            .prop_map(|b| [&[0xc4, b.len() as u8][..], &b].concat()),
        prop::collection::vec(any::<u8>(), 4).prop_map(|b| [&[0xd6, 5][..], &b].concat()),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|all| {
            let mut out = vec![0xdc, 0, all.len() as u8];
            all.iter().for_each(|v| out.extend_from_slice(v));
            out
        })
    })
}

proptest! {
    #[test]
    fn other_keys_and_their_order_change_nothing(
        others in prop::collection::vec(("x[a-z]{0,8}", value()), 0..6),
        id in "[a-zA-Z0-9-]{1,60}",
        at in any::<prop::sample::Index>(),
        wide in any::<bool>(),
    ) {
        let mut pairs: Vec<Vec<u8>> = others.iter().map(|(key, value)| {
            let mut pair = Vec::new();
            text(&mut pair, key);
            pair.extend_from_slice(value);
            pair
        }).collect();
        for (key, value) in [("type", "ProxyNotif"), ("req_id", id.as_str())] {
            let mut pair = Vec::new();
            text(&mut pair, key);
            text(&mut pair, value);
            pairs.insert(at.index(pairs.len() + 1), pair);
        }
        let mut out = match wide {
            true => vec![0xde, 0, pairs.len() as u8],
            false => vec![0x80 | pairs.len() as u8],
        };
        pairs.iter().for_each(|pair| out.extend_from_slice(pair));
        prop_assert_eq!(notice(&out), Ok(Notice::Arrived(&id)));
        // No prefix of it is a notice.
        for end in 0..out.len() {
            prop_assert!(notice(&out[..end]).is_err());
        }
    }

    #[test]
    fn no_bytes_are_harmful(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = notice(&bytes);
        let mut out = Vec::new();
        let _ = Peer::default().feed(&bytes, &mut out, |_| {});
    }
}

const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";

/// All that a peer says, and what is to be told and taken.
fn run(pieces: &[&[u8]]) -> (Result<(), &'static str>, Vec<u8>, Vec<Vec<u8>>) {
    let (mut peer, mut out, mut messages) = (Peer::default(), Vec::new(), Vec::new());
    for piece in pieces {
        if let Err(bad) = peer.feed(piece, &mut out, |m| messages.push(m.to_vec())) {
            return (Err(bad.0), out, messages);
        }
    }
    (Ok(()), out, messages)
}

fn frame(body: &[u8], flags: u8) -> Vec<u8> {
    if body.len() < 256 && flags & 2 == 0 {
        return [&[flags, body.len() as u8][..], body].concat();
    }
    [&[flags | 2][..], &(body.len() as u64).to_be_bytes(), body].concat()
}

#[test]
fn every_split_of_one_rich_conversation() {
    let mut said = GREETING.to_vec();
    said.extend_from_slice(READY);
    said.extend_from_slice(&frame(b"one", 0));
    said.extend_from_slice(&frame(b"\x04PING\x00\x10context", 4));
    said.extend_from_slice(&frame(&[b'x'; 300], 0));
    // Parts of one message are messages of their own.
    said.extend_from_slice(&frame(b"two", 1));
    said.extend_from_slice(&frame(b"three", 2));
    said.extend_from_slice(&frame(b"\x0bSOMETHINGNEW", 4));
    said.extend_from_slice(&frame(b"", 0));
    let told = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL\x04\x0c\x04PONGcontext";
    let messages: Vec<Vec<u8>> = [&b"one"[..], &[b'x'; 300], b"two", b"three", b""]
        .iter()
        .map(|m| m.to_vec())
        .collect();
    for pieces in fixed_splits(&said) {
        assert_eq!(run(&pieces), (Ok(()), told.to_vec(), messages.clone()));
    }
}

#[test]
fn peers_that_cannot_be_understood_are_told_apart() {
    let version = |major, minor| {
        let mut greeting = GREETING;
        (greeting[10], greeting[11]) = (major, minor);
        [&greeting[..], READY].concat()
    };
    assert_eq!(run(&[&version(3, 0)]).0, Ok(()), "ZMTP 3.0");
    assert!(run(&[&version(1, 0)]).0.unwrap_err().contains("before 3.0"));
    let mut curve = GREETING;
    curve[12..17].copy_from_slice(b"CURVE");
    assert!(run(&[&curve]).0.unwrap_err().contains("mechanism"));
    assert!(
        run(&[b"GET / HTTP/1.1\r\n"])
            .0
            .unwrap_err()
            .contains("no ZMTP")
    );
    let early = [&GREETING[..], &frame(b"m", 0)].concat();
    assert!(run(&[&early]).0.unwrap_err().contains("before READY"));
    let pull = [
        &GREETING[..],
        b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL",
    ]
    .concat();
    assert!(run(&[&pull]).0.unwrap_err().contains("no PUSH"));
    let huge = [&GREETING[..], READY, &[2, 0, 0, 0, 0, 0, 1, 0, 1]].concat();
    assert!(run(&[&huge]).0.unwrap_err().contains("larger"));
}

proptest! {
    #[test]
    fn splits_never_change_what_is_said(
        bodies in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), any::<bool>()), 0..8),
        cuts in cuts(),
    ) {
        let mut said = [&GREETING[..], READY].concat();
        for (body, long) in &bodies {
            said.extend_from_slice(&frame(body, if *long { 2 } else { 0 }));
        }
        let (end, _, messages) = run(&cut(&said, &cuts));
        prop_assert_eq!(end, Ok(()));
        let bodies: Vec<Vec<u8>> = bodies.into_iter().map(|(body, _)| body).collect();
        prop_assert_eq!(messages, bodies);
    }
}
