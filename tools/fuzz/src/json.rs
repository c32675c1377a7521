//! serde_json as the other reader of objects, and splices that are checked piece by piece.

use std::borrow::Cow;
use std::fmt;

use pdrelay::wire::json::{self, Edit, Object, Piece};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Dice;

/// Members in order, names unescaped, values as written, duplicates kept.
#[derive(Debug)]
pub struct Pairs<'a>(pub Vec<(String, &'a str)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    pairs.push((key, value.get()));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// `None` where serde_json does not take it for an object.
pub fn pairs(text: &[u8]) -> Option<Vec<(String, &str)>> {
    serde_json::from_slice::<Pairs>(text).ok().map(|p| p.0)
}

/// The tree; `None` also for numbers and surrogates that serde_json cannot represent.
pub fn tree(text: &[u8]) -> Option<Value> {
    serde_json::from_slice(text).ok()
}

/// How deep brackets nest in a well-formed text.
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (true, _) => {}
            (false, b'"') => in_string = true,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth -= 1,
            _ => {}
        }
    }
    deepest
}

const KEYS: [&str; 9] = [
    "stream",
    "n",
    "max_tokens",
    "model",
    "prompt",
    "kv_transfer_params",
    "absent",
    "",
    "\"stream",
];

const VALUES: [&[u8]; 6] = [
    b"true",
    b"1",
    b"null",
    b"\"\\u0065\"",
    b"{\"x\": [1, 2]}",
    b"-1.50",
];

/// Each of a few names once, with any edit or none, in any order.
pub fn edits(dice: &mut Dice) -> Vec<Edit> {
    let mut edits = Vec::new();
    for key in KEYS {
        let value = Cow::Borrowed(*dice.choose(&VALUES));
        let edit = match dice.roll(6) {
            0 | 1 => Edit::Remove(key),
            2 => Edit::Set(key, value),
            3 => Edit::Replace(key, value),
            _ => continue,
        };
        edits.insert(dice.roll(edits.len() + 1), edit);
    }
    edits
}

pub fn key_of(edit: &Edit) -> &'static str {
    match edit {
        Edit::Remove(key) | Edit::Set(key, _) | Edit::Replace(key, _) => key,
    }
}

/// The splice, after checks that hold for every object that the scan takes, JSON or not: what is not
/// edited keeps its bytes and its order, and what is edited reads as it should.
pub fn spliced(source: &[u8], object: &Object, edits: &[Edit]) -> Vec<u8> {
    let pieces = json::splice(source, object, edits);
    let mut kept = Vec::new();
    let mut at = 0;
    for piece in &pieces {
        assert!(!piece.is_empty(), "an empty piece");
        if let Piece::Source(range) = piece {
            assert!(at <= range.start && range.end <= source.len());
            at = range.end;
            kept.push(range.clone());
        }
    }
    let mut out = Vec::new();
    json::put_pieces(&mut out, source, &pieces);
    assert_eq!(out.len(), json::pieces_len(&pieces));

    let is_edited = |bytes: &[u8], m: &json::Member| edits.iter().any(|e| m.is(bytes, key_of(e)));
    for member in object.members().iter().filter(|m| !is_edited(source, m)) {
        let value = member.value();
        let whole = |r: &std::ops::Range<usize>| r.start <= value.start && value.end <= r.end;
        assert!(kept.iter().any(whole), "a value was touched");
    }
    // The space around the object is nobody's to change.
    let open = source.iter().position(|b| *b == b'{').expect("scanned");
    let close = source.iter().rposition(|b| *b == b'}').expect("scanned");
    assert!(out.starts_with(&source[..=open]) && out.ends_with(&source[close..]));

    if object.members().len() + edits.len() > 1024 {
        return out;
    }
    let again = Object::scan(&out, usize::MAX).expect("still an object");
    let others = |bytes: &[u8], object: &Object| -> Vec<Vec<u8>> {
        let all = object.members().iter().filter(|m| !is_edited(bytes, m));
        all.map(|m| bytes[m.value()].to_vec()).collect()
    };
    assert_eq!(others(&out, &again), others(source, object));
    for edit in edits {
        let key = key_of(edit);
        let had = object.has(source, key);
        let times = again.members().iter().filter(|m| m.is(&out, key)).count();
        match edit {
            Edit::Set(_, value) | Edit::Replace(_, value)
                if had || matches!(edit, Edit::Set(..)) =>
            {
                assert_eq!(again.get(&out, key), Some(&value[..]));
                assert_eq!(times, 1);
            }
            _ => assert_eq!(times, 0, "{key} is still there"),
        }
    }
    let pieces = json::splice(&out, &again, edits);
    let mut twice = Vec::new();
    json::put_pieces(&mut twice, &out, &pieces);
    assert_eq!(twice, out, "the same edits again changed something");
    out
}

/// The same edits on a tree.
pub fn edited(mut tree: Value, edits: &[Edit]) -> Value {
    let map = tree.as_object_mut().expect("an object");
    for edit in edits {
        match edit {
            Edit::Remove(key) => drop(map.remove(*key)),
            Edit::Replace(key, _) if !map.contains_key(*key) => {}
            Edit::Set(key, value) | Edit::Replace(key, value) => {
                let value = serde_json::from_slice(value).expect("edits are JSON");
                map.insert((*key).to_owned(), value);
            }
        }
    }
    tree
}
