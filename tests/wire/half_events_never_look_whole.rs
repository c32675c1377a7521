use super::support::{cut, cuts, fixed_splits};
use pdrelay::wire::sse::EventEdge;
use proptest::prelude::*;
use proptest::sample::select;

fn clean(pieces: &[&[u8]]) -> bool {
    let mut edge = EventEdge::default();
    pieces.iter().for_each(|p| edge.feed(p));
    edge.clean()
}

/// Nothing yet, or a blank line at the end; CR LF counts as LF.
fn ends_blank(bytes: &[u8]) -> bool {
    let plain: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\r').collect();
    bytes.is_empty() || plain.ends_with(b"\n\n")
}

/// The standard's reading, in which CR alone also ends a line: no line and no event is open.
fn dispatched(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    text.is_empty() || text == "\n" || text.ends_with("\n\n")
}

#[test]
fn by_hand() {
    for (text, expected) in [
        ("", true),
        ("data: a\n\n", true),
        ("data: a\r\n\r\n", true),
        ("data: a\n\ndata: [DONE]\n\n", true),
        (": ping\n\n", true),
        ("data: a", false),
        ("data: a\n", false),
        ("data: a\r\n", false),
        ("data: a\n\nd", false),
        ("data: a\n\ndata: b\n", false),
        ("data: a\n\n:", false),
        ("\n", false),
        ("a\n\n\n", true),
        ("data: a\n \n", false),
        ("data: a\n\0\n", false),
    ] {
        for pieces in fixed_splits(text.as_bytes()) {
            assert_eq!(clean(&pieces), expected, "{pieces:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Streams whose lines end in LF or CR LF: exactly the definition, however they are split.
    #[test]
    fn as_defined(
        parts in prop::collection::vec(
            select(vec!["\n", "\r\n", "data: x", "a", "\n\n", "\r\n\r\n", "data: {}\n\n", " "]), 0..10),
        cuts in cuts(),
    ) {
        let text = parts.concat();
        prop_assert_eq!(clean(&cut(text.as_bytes(), &cuts)), ends_blank(text.as_bytes()));
    }

    /// Any mix of CR and LF: never whole where the standard sees an open event.
    #[test]
    fn never_too_early(
        parts in prop::collection::vec(select(vec!["\r", "\n", "\r\r", "a", "data: x"]), 0..12),
        cuts in cuts(),
    ) {
        let text = parts.concat();
        if clean(&cut(text.as_bytes(), &cuts)) {
            prop_assert!(dispatched(text.as_bytes()));
        }
    }
}
