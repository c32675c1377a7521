use super::support::{members, object_text};
use pdrelay::wire::json::{self, Edit, Object, Piece};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;
use std::borrow::Cow;

fn splice(text: &str, edits: &[Edit]) -> String {
    let object = Object::scan(text.as_bytes(), 128).expect("an object");
    let pieces = json::splice(text.as_bytes(), &object, edits);
    let mut at = 0;
    for piece in &pieces {
        assert!(!piece.is_empty(), "an empty piece in {pieces:?}");
        if let Piece::Source(range) = piece {
            assert!(at <= range.start && range.end <= text.len(), "{pieces:?}");
            at = range.end;
        }
    }
    let mut out = vec![];
    json::put_pieces(&mut out, text.as_bytes(), &pieces);
    assert_eq!(out.len(), json::pieces_len(&pieces));
    String::from_utf8(out).expect("UTF-8")
}

fn set(key: &'static str, value: &'static str) -> Edit {
    Edit::Set(key, Cow::Borrowed(value.as_bytes()))
}

fn replace(key: &'static str, value: &'static str) -> Edit {
    Edit::Replace(key, Cow::Borrowed(value.as_bytes()))
}

#[test]
fn by_hand() {
    use Edit::Remove;
    for (text, edits, expected) in [
        ("{}", vec![], "{}"),
        ("{}", vec![Remove("a")], "{}"),
        ("{}", vec![replace("a", "1")], "{}"),
        ("{}", vec![set("a", "1")], "{\"a\":1}"),
        (
            " { } ",
            vec![set("a", "1"), set("b", "2")],
            " { \"a\":1,\"b\":2} ",
        ),
        ("{\"a\":1}", vec![Remove("a")], "{}"),
        (
            "{ \"a\":1 }",
            vec![Remove("a"), set("b", "2")],
            "{  \"b\":2}",
        ),
        (
            "{\"a\":1,\"b\":2,\"c\":3}",
            vec![Remove("a"), Remove("b"), Remove("c")],
            "{}",
        ),
        (
            "{\"a\":1,\"b\":2,\"c\":3}",
            vec![Remove("b")],
            "{\"a\":1,\"c\":3}",
        ),
        (
            "{\"a\":1,\"b\":2,\"c\":3}",
            vec![Remove("a"), Remove("b")],
            "{\"c\":3}",
        ),
        (
            "{\"a\":1,\"b\":2,\"c\":3}",
            vec![Remove("b"), Remove("c")],
            "{\"a\":1}",
        ),
        (
            "{\"a\":1,\"b\":2,\"c\":3}",
            vec![Remove("a"), Remove("c")],
            "{\"b\":2}",
        ),
        (
            "{\"a\":1,\"a\":2,\"b\":3,\"a\":4}",
            vec![Remove("a")],
            "{\"b\":3}",
        ),
        (
            "{\"a\":1,\"a\":2,\"b\":3,\"a\":4}",
            vec![set("a", "9")],
            "{\"a\":9,\"b\":3}",
        ),
        (
            "{\"a\":1,\"\\u0061\":2}",
            vec![replace("a", "9")],
            "{\"a\":9}",
        ),
        (
            "{\"\\u0061\" : 1 , \"b\":2}",
            vec![replace("a", "9")],
            "{\"\\u0061\" : 9 , \"b\":2}",
        ),
        ("{\"a\":{\"a\":1}}", vec![replace("a", "9")], "{\"a\":9}"),
        (
            "{\"b\":{\"a\":1},\"c\":\"\\\"a\\\":1\"}",
            vec![Remove("a")],
            "{\"b\":{\"a\":1},\"c\":\"\\\"a\\\":1\"}",
        ),
        (
            "{\"a\":1, \"n\":1.50e0 ,\n\"x\":2}",
            vec![set("a", "7"), set("z", "8")],
            "{\"a\":7, \"n\":1.50e0 ,\n\"x\":2,\"z\":8}",
        ),
        (
            "{\"b\":1}",
            vec![set("a\"\n", "1")],
            "{\"b\":1,\"a\\\"\\n\":1}",
        ),
    ] {
        assert_eq!(splice(text, &edits), expected, "{text:?} {edits:?}");
    }
}

/// Each of a few names once, with any edit or none.
fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let value = select(vec!["true", "1", "{\"x\": [1, 2]}", "\"\\u0065\"", "null"]);
    let keys = vec![
        "stream",
        "n",
        "max_tokens",
        "model",
        "absent",
        "",
        "\"stream",
    ];
    let each: Vec<_> = keys
        .into_iter()
        .map(|key| {
            (0..5u8, value.clone()).prop_map(move |(kind, value)| match kind {
                0 => Some(Edit::Remove(key)),
                1 => Some(set(key, value)),
                2 => Some(replace(key, value)),
                _ => None,
            })
        })
        .collect();
    each.prop_map(|all| all.into_iter().flatten().collect::<Vec<_>>())
        .prop_shuffle()
}

fn name_of(edit: &Edit) -> &'static str {
    match edit {
        Edit::Remove(key) | Edit::Set(key, _) | Edit::Replace(key, _) => key,
    }
}

/// The same edit on a tree, with Python's reading of duplicates (the last one).
fn on_tree(text: &str, edits: &[Edit]) -> Value {
    let mut tree: Value = serde_json::from_str(text).expect("JSON");
    let map = tree.as_object_mut().expect("an object");
    for edit in edits {
        match edit {
            Edit::Remove(key) => drop(map.remove(*key)),
            Edit::Replace(key, _) if !map.contains_key(*key) => {}
            Edit::Set(key, value) | Edit::Replace(key, value) => {
                map.insert(
                    key.to_string(),
                    serde_json::from_slice(value).expect("JSON"),
                );
            }
        }
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_tree_is_the_edited_one(text in object_text(), edits in edits()) {
        let out = splice(&text, &edits);
        let tree: Value = serde_json::from_str(&out).expect("still JSON");
        prop_assert_eq!(tree, on_tree(&text, &edits), "{:?} -> {:?}", text, out);
        // One reading only of what was edited, also for those who take the first of its name.
        for edit in &edits {
            let same = members(&out).iter().filter(|m| m.name() == name_of(edit)).count();
            prop_assert!(same <= 1, "{:?}", out);
        }
    }

    #[test]
    fn every_other_member_keeps_its_bytes(text in object_text(), edits in edits()) {
        let out = splice(&text, &edits);
        let kept = |text: &str| -> Vec<String> {
            let edited = |name: String| edits.iter().any(|e| name_of(e) == name);
            members(text).into_iter().filter(|m| !edited(m.name())).map(|m| m.whole).collect()
        };
        prop_assert_eq!(kept(&out), kept(&text));
        let (open, close) = (text.find('{').unwrap(), text.rfind('}').unwrap());
        prop_assert!(out.starts_with(&text[..=open]));
        prop_assert!(out.ends_with(&text[close..]));
    }

    /// Where members neither come nor go, everything but the values is the source, whitespace included.
    #[test]
    fn replaced_values_change_nothing_around_them(text in object_text(), edits in edits()) {
        let all = members(&text);
        let times = |key: &str| all.iter().filter(|m| m.name() == key).count();
        let edits: Vec<Edit> = edits
            .into_iter()
            .filter(|e| match e {
                Edit::Remove(key) => times(key) == 0,
                Edit::Set(key, _) => times(key) == 1,
                Edit::Replace(key, _) => times(key) <= 1,
            })
            .collect();
        let mut expected = String::new();
        let mut rest = text.as_str();
        for member in &all {
            let at = rest.find(&member.whole).expect("in order");
            let value = at + member.whole.len() - member.value.len();
            expected.push_str(&rest[..value]);
            let edit = edits.iter().find(|e| name_of(e) == member.name());
            match edit {
                Some(Edit::Set(_, v) | Edit::Replace(_, v)) => {
                    expected.push_str(std::str::from_utf8(v).unwrap());
                }
                _ => expected.push_str(&member.value),
            }
            rest = &rest[at + member.whole.len()..];
        }
        expected.push_str(rest);
        prop_assert_eq!(splice(&text, &edits), expected);
    }

    #[test]
    fn no_edit_no_change(text in object_text()) {
        let object = Object::scan(text.as_bytes(), 128).expect("an object");
        let whole = [Piece::Source(0..text.len())];
        prop_assert_eq!(&json::splice(text.as_bytes(), &object, &[])[..], &whole[..]);
        let missing = [Edit::Remove("absent"), replace("gone", "1")];
        prop_assert_eq!(&json::splice(text.as_bytes(), &object, &missing)[..], &whole[..]);
    }

    #[test]
    fn twice_is_once(text in object_text(), edits in edits()) {
        let once = splice(&text, &edits);
        prop_assert_eq!(splice(&once, &edits), once);
    }
}
