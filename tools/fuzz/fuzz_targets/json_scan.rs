//! Scan and splice: serde_json sees the same members, and every untouched byte stays.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::json::{Object, put_string, string_value, unescape};
use pdrelay_fuzz::Dice;
use pdrelay_fuzz::json::{depth, edited, edits, pairs, spliced, tree};

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice::of(data);
    strings(data);
    let depth_max = *dice.choose(&[128, 128, 128, 1, 2, 4, 16]);
    let scanned = Object::scan(data, depth_max);
    let theirs = pairs(data);
    if let Some(theirs) = &theirs {
        let fits = depth(data) <= depth_max && theirs.len() <= 1024;
        assert_eq!(scanned.is_ok(), fits, "at depth {depth_max}");
    }
    let object = match scanned {
        Ok(object) => object,
        Err(bad) => {
            assert!(bad.at <= data.len() && !bad.what.is_empty());
            return;
        }
    };
    assert!(Object::scan(data, depth_max + 1).is_ok());
    for member in object.members() {
        assert!(!data[member.value()].is_empty());
    }
    if let Some(theirs) = &theirs {
        assert_eq!(object.members().len(), theirs.len());
        for (member, (name, value)) in object.members().iter().zip(theirs) {
            assert_eq!(&data[member.value()], value.as_bytes());
            assert!(member.is(data, name));
            assert!(!member.is(data, &format!("{name}x")));
            let last = theirs
                .iter()
                .rfind(|(n, _)| n == name)
                .map(|(_, v)| v.as_bytes());
            assert_eq!(
                object.get(data, name),
                last,
                "of duplicates the last counts"
            );
            if let Ok(text) = serde_json::from_str::<String>(value) {
                assert_eq!(
                    string_value(value.as_bytes()).as_deref(),
                    Some(text.as_bytes())
                );
            }
        }
    }
    let edits = edits(&mut dice);
    let out = spliced(data, &object, &edits);
    if theirs.is_some() {
        assert!(
            pairs(&out).is_some(),
            "JSON went in, something else came out"
        );
    }
    if let Some(before) = tree(data) {
        assert_eq!(tree(&out).expect("still JSON"), edited(before, &edits));
    }
});

/// Any bytes as the inside of a string, and any text written as one.
fn strings(data: &[u8]) {
    _ = unescape(data);
    _ = string_value(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let mut quoted = Vec::new();
        put_string(&mut quoted, text);
        let theirs: String = serde_json::from_slice(&quoted).expect("a string");
        assert_eq!(theirs, text);
        assert_eq!(string_value(&quoted).as_deref(), Some(data));
    }
}
