//! What encoders say of the items that they were sent: read from their answers, and found for each item.

use crate::wire::json::{Object, elements, put_string};
use crate::wire::media::{Item, Kind};

/// One entry of an answer's `ec_transfer_params`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The encoder's name of the item, its `mm_hash`.
    pub name: String,
    /// All that it says of it, raw.
    pub value: Vec<u8>,
    /// The metadata with each of its lists flattened by one level, as raw JSON. `None`: there is none.
    pub metadata: Option<Vec<u8>>,
    /// Which items of the request it is about; `None`: it does not say.
    indices: Option<Vec<Option<usize>>>,
    /// Nothing but metadata and indices: no handle that anybody could fetch it by.
    bare: bool,
}

/// Reads the map. What is no object, or has no object in it, says nothing.
pub fn entries(params: &[u8]) -> Vec<Entry> {
    let Ok(map) = Object::scan(params, usize::MAX) else {
        return Vec::new();
    };
    let mut entries: Vec<Entry> = Vec::new();
    for member in map.members() {
        let entry = entry(&member.key(params), &params[member.value()]);
        entries.retain(|known| known.name != entry.name);
        entries.push(entry);
    }
    entries
}

fn entry(name: &[u8], value: &[u8]) -> Entry {
    let mut entry = Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        value: value.to_vec(),
        metadata: None,
        indices: None,
        bare: false,
    };
    if let Ok(object) = Object::scan(value, usize::MAX) {
        entry.metadata = object.get(value, "metadata").and_then(flattened);
        let indices = object.get(value, "item_indices");
        entry.indices = indices.filter(|v| v.first() == Some(&b'[')).map(|list| {
            let number = |v: &[u8]| std::str::from_utf8(v).ok()?.parse().ok();
            elements(list).map(number).collect()
        });
        let known = |m: &crate::wire::json::Member| {
            ["metadata", "item_indices"]
                .iter()
                .any(|key| m.is(value, key))
        };
        entry.bare = object.members().iter().all(known);
    }
    entry
}

/// `{"k":[[1,2],[3]]}` becomes `{"k":[1,2,3]}`. `None`: there is nothing in it.
fn flattened(metadata: &[u8]) -> Option<Vec<u8>> {
    let object = Object::scan(metadata, usize::MAX).ok()?;
    let mut out = Vec::with_capacity(metadata.len());
    for member in object.members() {
        out.push(if out.is_empty() { b'{' } else { b',' });
        put_string(&mut out, &String::from_utf8_lossy(&member.key(metadata)));
        out.push(b':');
        let value = &metadata[member.value()];
        if value.first() != Some(&b'[') {
            out.extend_from_slice(value);
            continue;
        }
        out.push(b'[');
        let mut first = true;
        let mut put = |out: &mut Vec<u8>, element: &[u8]| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            out.extend_from_slice(element);
        };
        for element in elements(value) {
            match element.first() {
                Some(b'[') => elements(element).for_each(|inner| put(&mut out, inner)),
                _ => put(&mut out, element),
            }
        }
        out.push(b']');
    }
    if out.is_empty() {
        return None;
    }
    out.push(b'}');
    Some(out)
}

/// One item of an encoder's request.
pub struct Sent<'a> {
    pub item: &'a Item,
    pub uuid: Option<&'a str>,
    /// A video whose sound was encoded with it.
    pub with_sound: bool,
}

/// For each item the place of its entry; the error is what a client is told.
pub fn matched(sent: &[Sent], entries: &[Entry]) -> Result<Vec<Option<usize>>, &'static str> {
    let mut found = vec![None; sent.len()];
    if entries.is_empty() {
        return Ok(found);
    }
    if let ([_], [_]) = (sent, entries) {
        return Ok(vec![Some(0)]);
    }
    for (at, entry) in entries.iter().enumerate() {
        for index in entry.indices.iter().flatten() {
            let place = index.and_then(|index| found.get_mut(index));
            match place.ok_or("Invalid encoder item index")? {
                Some(_) => return Err("Duplicate encoder item index"),
                place => *place = Some(at),
            }
        }
    }
    for (place, sent) in found.iter_mut().zip(sent) {
        if place.is_none() {
            let named = |entry: &Entry| sent.uuid == Some(&*entry.name);
            *place = entries.iter().position(named);
        }
        let pair = entries.len() == 2 && entries.iter().all(|entry| entry.bare);
        if sent.with_sound && sent.item.kind == Kind::Video && pair {
            // Picture and sound, and neither to be fetched: the item goes on as it came.
            *place = None;
        } else if place.is_none() {
            return Err("Encoder metadata cannot be matched");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: Item = Item {
        kind: Kind::Image,
        form: crate::wire::media::Form::Chat,
        whole: 0..0,
        uuid: None,
        url: None,
    };
    const VIDEO: Item = Item {
        kind: Kind::Video,
        ..ITEM
    };

    fn sent<'a>(uuids: &[&'a str]) -> Vec<Sent<'a>> {
        let one = |uuid: &&'a str| Sent {
            item: &ITEM,
            uuid: Some(uuid),
            with_sound: false,
        };
        uuids.iter().map(one).collect()
    }

    fn places(uuids: &[&str], params: &str) -> Result<Vec<Option<usize>>, &'static str> {
        matched(&sent(uuids), &entries(params.as_bytes()))
    }

    #[test]
    fn entries_find_their_items() {
        // One of one, whatever it is called.
        assert_eq!(
            places(&["a"], r#"{"x":{"metadata":{"k":[[1]]}}}"#),
            Ok(vec![Some(0)])
        );
        assert_eq!(places(&["a", "b"], "{}"), Ok(vec![None, None]));
        assert_eq!(places(&["a", "b"], "null"), Ok(vec![None, None]));
        let by_index = r#"{"x":{"item_indices":[1]},"y":{"item_indices":[0]}}"#;
        assert_eq!(places(&["a", "b"], by_index), Ok(vec![Some(1), Some(0)]));
        // One image twice.
        assert_eq!(
            places(&["a", "a"], r#"{"a":{"item_indices":[0,1]}}"#),
            Ok(vec![Some(0), Some(0)])
        );
        assert_eq!(
            places(&["a", "a"], r#"{"a":{}}"#),
            Ok(vec![Some(0), Some(0)])
        );
        assert_eq!(
            places(&["a", "b"], r#"{"b":{},"a":{"item_indices":[0]}}"#),
            Ok(vec![Some(1), Some(0)])
        );
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let two = ["a", "b"];
        for bad in ["[2]", "[-1]", "[\"0\"]", "[0.5]", "[true]"] {
            let params = format!(r#"{{"a":{{"item_indices":{bad}}}}}"#);
            assert_eq!(
                places(&two, &params),
                Err("Invalid encoder item index"),
                "{bad}"
            );
        }
        for params in [
            r#"{"a":{"item_indices":[0]},"b":{"item_indices":[0]}}"#,
            r#"{"a":{"item_indices":[1,1]}}"#,
        ] {
            assert_eq!(places(&two, params), Err("Duplicate encoder item index"));
        }
        for params in [r#"{"a":{}}"#, r#"{"x":{},"y":{}}"#] {
            assert_eq!(
                places(&two, params),
                Err("Encoder metadata cannot be matched")
            );
        }
        assert_eq!(
            places(&["a"], r#"{"x":{},"y":{}}"#),
            Err("Encoder metadata cannot be matched")
        );
    }

    #[test]
    fn a_video_with_its_sound_goes_on_as_it_came() {
        let one = [Sent {
            item: &VIDEO,
            uuid: Some("v"),
            with_sound: true,
        }];
        let bare = r#"{"x":{"metadata":{"k":[[1]]}},"y":{"item_indices":[]}}"#;
        assert_eq!(matched(&one, &entries(bare.as_bytes())), Ok(vec![None]));
        let handle = r#"{"x":{"metadata":{"k":[[1]]},"peer_port":1},"y":{}}"#;
        assert!(matched(&one, &entries(handle.as_bytes())).is_err());
        let silent = [Sent {
            item: &VIDEO,
            uuid: Some("v"),
            with_sound: false,
        }];
        assert!(matched(&silent, &entries(bare.as_bytes())).is_err());
    }

    #[test]
    fn metadata_is_flattened_by_one_level() {
        let of = |text: &str| flattened(text.as_bytes()).map(|v| String::from_utf8(v).unwrap());
        assert_eq!(of("{}"), None);
        assert_eq!(of("[1]"), None);
        assert_eq!(
            of(r#"{"grid":[[1, 4,4],[ 2 ]],"n":[7,[8,[9]]],"s":"x","\u0061":[]}"#).unwrap(),
            r#"{"grid":[1,4,4,2],"n":[7,8,[9]],"s":"x","a":[]}"#
        );
    }
}
