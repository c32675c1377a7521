//! Response heads: as request heads, and the body's framing by the letter of the standard.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::head::{Framing, ResponseHead};
use pdrelay_fuzz::head::{Clear, clear, end_of, same_fields, written};

fuzz_target!(|data: &[u8]| {
    _ = ResponseHead::parse(data);
    let Ok(Some(end)) = end_of(data) else { return };
    let head = &data[..end];
    let clear = clear(head);
    match ResponseHead::parse(head) {
        Ok(parsed) => {
            let clear = clear.expect("an ambiguous head passed");
            agree(head, &parsed, &clear);
            again(head, &parsed);
        }
        Err(why) => {
            let good = clear.is_some_and(|c| c.plain() && must_pass(&c));
            assert!(!good, "a plain head was refused: {why:?}");
        }
    }
});

fn agree(head: &[u8], parsed: &ResponseHead, clear: &Clear) {
    same_fields(head, &parsed.fields, clear);
    let (version, rest) = clear.first.split_at(9);
    let expected: &[u8] = if parsed.http11 {
        b"HTTP/1.1 "
    } else {
        b"HTTP/1.0 "
    };
    assert_eq!(version, expected);
    let (code, reason) = rest.split_at(3);
    assert_eq!(code, parsed.status.to_string().as_bytes());
    assert!((100..=599).contains(&parsed.status));
    assert!(reason.is_empty() || reason[0] == b' ');
    let read = parsed.reason(head);
    assert!(read.is_empty() || read.as_bytes() == &reason[1..]);

    let stated = clear.framing();
    let bodiless = parsed.status < 200 || parsed.status == 204 || parsed.status == 304;
    assert!(parsed.http11 || stated != Some(Framing::Chunked));
    assert_eq!(parsed.framing(true), Framing::Length(0));
    let framing = parsed.framing(false);
    match bodiless {
        true => assert_eq!(framing, Framing::Length(0)),
        false => assert_eq!(framing, stated.unwrap_or(Framing::Close)),
    }
    let length = match stated {
        Some(Framing::Length(n)) => Some(n),
        _ => None,
    };
    assert_eq!(parsed.declared_length(), length);

    if parsed.reusable(framing) {
        assert!(framing != Framing::Close && parsed.status != 101 && !clear.lists("close"));
        assert!(parsed.http11 || clear.lists("keep-alive"));
        let announced = matches!(stated, Some(Framing::Chunked | Framing::Length(1..)));
        assert!(parsed.status != 204 || !announced);
    }
    if parsed.is_event_stream(head) {
        let kind = clear.named("content-type")[0].to_ascii_lowercase();
        assert!(kind.starts_with(b"text/event-stream"));
        let coding = clear.named("content-encoding");
        assert!(
            coding
                .first()
                .is_none_or(|v| v.eq_ignore_ascii_case(b"identity"))
        );
    }
}

fn again(head: &[u8], parsed: &ResponseHead) {
    let version = if parsed.http11 { "1.1" } else { "1.0" };
    let first = format!("HTTP/{version} {} {}", parsed.status, parsed.reason(head));
    let copy = written(&first, head, &parsed.fields);
    let reread = ResponseHead::parse(&copy).expect("our own writing");
    assert_eq!(reread.status, parsed.status);
    assert_eq!(reread.framing(false), parsed.framing(false));
    assert_eq!(reread.reason(&copy), parsed.reason(head));
    assert_eq!(reread.is_event_stream(&copy), parsed.is_event_stream(head));
}

fn must_pass(clear: &Clear) -> bool {
    let Some(rest) = clear.first.strip_prefix(b"HTTP/1.1 ") else {
        return false;
    };
    let Some((code, reason)) = rest.split_at_checked(3) else {
        return false;
    };
    matches!(code[0], b'1'..=b'5')
        && code.iter().all(u8::is_ascii_digit)
        && reason.first().is_none_or(|b| *b == b' ')
        && reason
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || *b == b' ')
}
