use super::support::{members, object_text};
use pdrelay::wire::json::{self, Object};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

const DEPTH: usize = 128;

fn scans(text: impl AsRef<[u8]>) -> bool {
    Object::scan(text.as_ref(), DEPTH).is_ok()
}

#[test]
fn refused() {
    for text in [
        "",
        " ",
        "null",
        "1",
        "\"a\"",
        "[]",
        "[{}]",
        "{",
        "}",
        "{{}}",
        "{]",
        "{}}",
        "{} {}",
        "{}x",
        "{},",
        "x{}",
        "\u{feff}{}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1",
        "{\"a\":1,}",
        "{,}",
        "{,\"a\":1}",
        "{\"a\" 1}",
        "{\"a\"::1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":1,,\"b\":2}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "{\"a\":\"b}",
        "{\"a\":\"b\\\"}",
        "{\"a",
        "{\"a\\",
        "{\"a\\\"",
        "{\"a\":[}",
        "{\"a\":[1}]",
        "{\"a\":{]}",
        "{\"a\":[\"]}",
        "{\"a\":[\"\\\"]}",
        "{\"a\":[",
        "{\"a\":tru}",
        "{\"a\":truefalse}",
        "{\"a\":undefined}",
        "{\"a\":'b'}",
        "{\"a\":1 2}",
        "{\"a\":true\"b\":1}",
        "{\"a\":\"b\"\"c\":1}",
        "{\"a\":1}\0",
        "\0{}",
        "{\0}",
        "{\"a\":\0}",
        "{\"a\":1}//c",
        "{/**/}",
        "{\u{a0}}",
        "{\x0c}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":infinity}",
    ] {
        assert!(!scans(text), "{text:?}");
    }
}

#[test]
fn accepted() {
    for text in [
        "{}",
        " {} ",
        "\r\n\t{\n}\n",
        "{\"\":\"\"}",
        "{\"a\":\"\\\"\"}",
        "{\"a\":\"\\\\\"}",
        "{\"a\\\"}\":1}",
        "{\"a\":[]}",
        "{\"a\":{}}",
        "{\"a\":[[],{}]}",
        "{\"a\":\"}\"}",
        "{\"a\":[\"]\"]}",
        "{\"a\":-0}",
        "{\"a\":NaN,\"b\":Infinity,\"c\":-Infinity}",
        "{\"a\":1e+5,\"b\":1E-5}",
        "{ \"a\" : 1 , \"b\" : 2 }",
    ] {
        assert!(scans(text), "{text:?}");
    }
}

/// Python's json would guess these encodings from the first bytes; we read only UTF-8.
#[test]
fn other_encodings() {
    let text = " {\"stream\":true}";
    for start in [0, 1] {
        let units: Vec<u16> = text[start..].encode_utf16().collect();
        assert!(!scans(
            units
                .iter()
                .flat_map(|u| u.to_le_bytes())
                .collect::<Vec<_>>()
        ));
        assert!(!scans(
            units
                .iter()
                .flat_map(|u| u.to_be_bytes())
                .collect::<Vec<_>>()
        ));
        let wide = text[start..].chars().flat_map(|c| (c as u32).to_le_bytes());
        assert!(!scans(wide.collect::<Vec<_>>()));
    }
}

/// A long body is looked at in pieces: where one ends must not matter, neither to a character that is cut nor to a byte
/// that is none.
#[test]
fn long_bodies_that_are_no_text() {
    const PIECE: usize = 16 << 10;
    for filler in ["z", "é", "€", "😀", "\\\"é", "\\n😀"] {
        for shift in 0..5 {
            let fill = filler.repeat((3 * PIECE + 64).div_ceil(filler.len()));
            let text = format!("{{\"a\":\"{}{fill}\",\"b\":1}}", "x".repeat(shift));
            assert_eq!(
                Object::scan_text(text.as_bytes(), DEPTH),
                Object::scan(text.as_bytes(), DEPTH)
            );
            assert!(scans(&text));
            let around = |piece: usize| piece * PIECE - 9..piece * PIECE + 16;
            for at in around(1).chain(around(2)).chain(around(3)) {
                let mut broken = text.clone().into_bytes();
                broken[at] = 0xff;
                let good = std::str::from_utf8(&broken).unwrap_err().valid_up_to();
                let bad = Object::scan_text(&broken, DEPTH).unwrap_err();
                assert_eq!(
                    (bad.at, bad.what),
                    (good, "it is not UTF-8"),
                    "{filler:?} {shift} {at}"
                );
            }
        }
    }
    let outside = b"{\"a\":[1,\xff]}";
    assert!(Object::scan_text(outside, DEPTH).is_err());
    assert!(Object::scan_text(b"{\"a\":1}\xff", DEPTH).is_err());
}

#[test]
fn nesting() {
    let nested = |open: &str, close: &str, depth: usize| {
        format!("{{\"a\":{}{}}}", open.repeat(depth), close.repeat(depth))
    };
    // The object itself is one level.
    assert!(scans(nested("[", "]", DEPTH - 1)));
    assert!(!scans(nested("[", "]", DEPTH)));
    assert!(scans(
        nested("{\"a\":", "}", 0).replace("{\"a\":}", "{\"a\":{}}")
    ));
    // Side by side is not deep.
    assert!(scans(format!("{{\"a\":[{}[]]}}", "[],".repeat(1000))));
    let bomb = "[".repeat(64 << 10);
    for text in [
        bomb.clone(),
        format!("{{\"a\":{bomb}"),
        format!("{{\"a\":{}", "{\"a\":".repeat(64 << 10)),
    ] {
        assert!(!scans(&text));
        assert!(Object::scan(text.as_bytes(), usize::MAX).is_err());
    }
    // Even without a cap there is no recursion to overflow.
    let deep = nested("[", "]", 1 << 20);
    let object = Object::scan(deep.as_bytes(), usize::MAX).expect("well nested");
    assert_eq!(
        object.get(deep.as_bytes(), "a").map(<[u8]>::len),
        Some(2 << 20)
    );
}

#[test]
fn too_many_members() {
    let object = |n: usize| format!("{{{}}}", vec!["\"a\":1"; n].join(","));
    assert!(scans(object(1024)));
    assert!(!scans(object(1025)));
}

/// A key of megabytes with one escape in it costs nothing to compare.
#[test]
fn huge_escaped_keys() {
    let text = format!(
        "{{\"{}\\u0065\":1,\"str\\u0065am\":2}}",
        "x".repeat(8 << 20)
    );
    let object = Object::scan(text.as_bytes(), DEPTH).expect("an object");
    for _ in 0..1000 {
        assert_eq!(object.get(text.as_bytes(), "stream"), Some(&b"2"[..]));
    }
}

proptest! {
    #[test]
    fn every_object_is_read_as_it_is(text in object_text()) {
        let value: Value = serde_json::from_str(&text).expect("the generator writes JSON");
        let object = Object::scan(text.as_bytes(), DEPTH).expect("an object");
        let expected = members(&text);
        let values: Vec<&str> = object.members().iter().map(|m| &text[m.value()]).collect();
        prop_assert_eq!(values, expected.iter().map(|m| m.value.as_str()).collect::<Vec<_>>());
        for (member, raw) in object.members().iter().zip(&expected) {
            let name = raw.name();
            prop_assert!(member.is(text.as_bytes(), &name));
            let longer = name.clone() + "x";
            prop_assert!(!member.is(text.as_bytes(), &longer));
            prop_assert!(object.has(text.as_bytes(), &name));
            // The last one counts.
            let seen = object.get(text.as_bytes(), &name).expect("there");
            let seen: Value = serde_json::from_slice(seen).expect("JSON");
            prop_assert_eq!(&seen, &value[&name]);
        }
    }

    #[test]
    fn cut_short_or_followed(text in object_text(), at in any::<Index>(), after in "[^ \t\r\n]") {
        let whole = text.trim_end();
        prop_assert!(!scans(&whole.as_bytes()[..at.index(whole.len())]));
        let followed = [text.as_str(), &after].concat();
        let led = [&after, text.as_str()].concat();
        prop_assert!(!scans(followed) && !scans(led));
    }

    /// Whatever serde_json takes for an object passes, and nothing panics.
    #[test]
    fn soup(
        parts in prop::collection::vec(
            select(vec!["{", "}", "[", "]", "\"", "\"a\"", ":", ",", "\\", "\\u", "1", "true", " ", "\"b\":0", "\0"]),
            0..14),
    ) {
        let text = parts.concat();
        let theirs = serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object());
        let ours = scans(&text);
        prop_assert!(ours || !theirs, "{:?}", text);
        let _ = json::unescape(text.as_bytes());
        let _ = json::string_value(text.as_bytes());
    }

    #[test]
    fn soup_in_braces(
        parts in prop::collection::vec(
            select(vec!["{", "}", "[", "]", "\"a\"", "\"a\":", ":", ",", "1", "null", " ", "\"b\":0", "\"\\u0061\""]),
            0..8),
    ) {
        let text = format!("{{{}}}", parts.concat());
        if serde_json::from_str::<Value>(&text).is_ok() {
            prop_assert!(scans(&text), "{:?}", text);
        }
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let text = std::str::from_utf8(&bytes).is_ok();
        prop_assert_eq!(Object::scan_text(&bytes, DEPTH).is_ok(), text && scans(&bytes));
        let _ = json::unescape(&bytes);
    }

    #[test]
    fn strings(text in super::support::string_text()) {
        let quoted = format!("\"{text}\"");
        let expected: String = serde_json::from_str(&quoted).expect("a string");
        let read = json::string_value(quoted.as_bytes());
        prop_assert_eq!(read.as_deref(), Some(expected.as_bytes()));
    }
}

#[test]
fn lone_surrogates() {
    for raw in [
        "\\ud800",
        "\\udc00",
        "\\ud800\\u0041",
        "\\ud800x",
        "\\ud800\\ud800",
    ] {
        let plain = json::unescape(raw.as_bytes());
        assert!(
            std::str::from_utf8(&plain).is_ok_and(|s| s.starts_with('\u{fffd}')),
            "{raw}"
        );
    }
    assert_eq!(json::string_value(b"1"), None);
    assert_eq!(json::string_value(b"\""), None);
}
