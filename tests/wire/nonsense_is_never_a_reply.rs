//! RESP: what is said comes back as it was, under every split; nonsense is told as such, and nothing panics.

use pdrelay::wire::resp::{Reply, put_command, take};
use proptest::prelude::*;

fn put(out: &mut Vec<u8>, reply: &Reply) {
    let line = |out: &mut Vec<u8>, kind: char, rest: &[u8]| {
        out.push(kind as u8);
        out.extend_from_slice(rest);
        out.extend_from_slice(b"\r\n");
    };
    match reply {
        Reply::Status(text) => line(out, '+', text),
        Reply::Error(text) => line(out, '-', text),
        Reply::Integer(n) => line(out, ':', n.to_string().as_bytes()),
        Reply::Nil => line(out, '$', b"-1"),
        Reply::Bulk(text) => {
            line(out, '$', text.len().to_string().as_bytes());
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        "[ -~]{0,20}".prop_map(|t| Reply::Status(t.into_bytes())),
        "[ -~]{0,20}".prop_map(|t| Reply::Error(t.into_bytes())),
        any::<i64>().prop_map(Reply::Integer),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Reply::Bulk),
        Just(Reply::Nil),
    ]
}

proptest! {
    #[test]
    fn replies_come_back_whole_or_not_at_all(first in reply(), second in reply()) {
        let mut bytes = Vec::new();
        put(&mut bytes, &first);
        let length = bytes.len();
        put(&mut bytes, &second);
        for end in 0..length {
            prop_assert_eq!(take(&bytes[..end]), Ok(None));
        }
        for end in length..=bytes.len() {
            prop_assert_eq!(take(&bytes[..end]), Ok(Some((first.clone(), length))));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![
        Just(b'\r'), Just(b'\n'), Just(b'$'), Just(b'*'), Just(b'-'), Just(b'1'), Just(b'9'), any::<u8>()
    ], 0..60)) {
        let _ = take(&bytes);
    }
}

#[test]
fn nonsense_is_told() {
    for bad in [
        &b"HTTP/1.1 400 Bad Request\r\n"[..],
        b"\r\n",
        b"$5\r\nabcdefgh",
        b"$-2\r\n",
        b"$99999999999\r\n",
        b"*99999999\r\n",
        b":12x\r\n",
        b"+OK\n",
        // Each look at a reply begins at its start: arrays in arrays would keep a shard busy.
        b"*0\r\n",
        b"*-1\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
    ] {
        assert!(take(bad).is_err(), "{bad:?}");
    }
    assert!(take(&[b'+'; 10_000]).is_err());
}

#[test]
fn commands_are_written_as_servers_read_them() {
    let mut out = Vec::new();
    put_command(&mut out, &[b"SET", b"a\r\nb", b""]);
    assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$4\r\na\r\nb\r\n$0\r\n\r\n");
}
