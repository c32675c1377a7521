//! What prefill and decode are told: references in place of media, and where to fetch what they refer to.

use crate::exchange::Request;
use crate::exchange::overlay::Overlay;
use crate::wire::json::{Edit, Object, Patch, put_string};
use crate::wire::media::{Item, Kind};

use super::report::Entry;

const PARAMS: &str = "ec_transfer_params";

/// All that the encoders have said.
pub struct Found {
    pub entries: Vec<Entry>,
    /// For each item the place of its entry.
    pub of_item: Vec<Option<usize>>,
}

impl Found {
    fn entry(&self, item: usize) -> Option<&Entry> {
        self.entries.get(self.of_item[item]?)
    }
}

pub struct How {
    /// Items are replaced at all.
    pub references: bool,
    /// With audio among them, all items are replaced or none.
    pub audio_whole: bool,
}

/// `ids`: of the transfers, one for each item; empty where nothing is pushed.
pub fn put(
    request: &Request,
    items: &[Item],
    names: &[Option<String>],
    found: &Found,
    ids: &[String],
    how: &How,
    overlay: &mut Overlay,
) {
    if how.references {
        overlay.patches = patches(items, names, found, how);
    }
    let client = request.object.get(request.body(), PARAMS);
    if let Some(params) = params(client, found, ids) {
        overlay.edits.push(Edit::Set(PARAMS, params.into()));
    }
}

fn patches(items: &[Item], names: &[Option<String>], found: &Found, how: &How) -> Vec<Patch> {
    let metadata = |i: usize| found.entry(i).and_then(|entry| entry.metadata.as_deref());
    let audio = items.iter().any(|item| item.kind.is_audio());
    let raw = how.audio_whole && audio && (0..items.len()).any(|i| metadata(i).is_none());
    let one = |(i, item): (usize, &Item)| {
        let name = names[i].as_deref().unwrap_or_default();
        match metadata(i).filter(|_| !raw) {
            Some(metadata) => Patch {
                at: item.whole.clone(),
                with: reference(item.kind, metadata, name),
            },
            // By its name it is found all the same.
            None => item.named(name),
        }
    };
    items.iter().enumerate().map(one).collect()
}

/// `{"type":"image_embeds","image_embeds":{..},"uuid":".."}`
fn reference(kind: Kind, metadata: &[u8], name: &str) -> Vec<u8> {
    let word = kind.embeds();
    let mut out = format!(r#"{{"type":"{word}","{word}":"#).into_bytes();
    out.extend_from_slice(metadata);
    out.extend_from_slice(br#","uuid":"#);
    put_string(&mut out, name);
    out.push(b'}');
    out
}

/// The client's map, if it sent one, with what the encoders have said. `None`: there is nothing to add.
fn params(client: Option<&[u8]>, found: &Found, ids: &[String]) -> Option<Vec<u8>> {
    if found.entries.is_empty() && ids.is_empty() {
        return None;
    }
    let mut map: Vec<(String, Vec<u8>)> = Vec::new();
    let mut set = |name: String, value: &[u8]| match map.iter_mut().find(|(key, _)| *key == name) {
        Some((_, known)) => *known = value.to_vec(),
        None => map.push((name, value.to_vec())),
    };
    if let Some((client, object)) =
        client.and_then(|v| Some((v, Object::scan(v, usize::MAX).ok()?)))
    {
        for member in object.members() {
            let name = String::from_utf8_lossy(&member.key(client)).into_owned();
            set(name, &client[member.value()]);
        }
    }
    for entry in &found.entries {
        set(entry.name.clone(), &entry.value);
    }
    let transfers = transfers(found, ids);
    if !ids.is_empty() {
        set("ec_items".into(), &transfers);
    }
    let mut out = vec![b'{'];
    for (name, value) in &map {
        if out.len() > 1 {
            out.push(b',');
        }
        put_string(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
    Some(out)
}

/// `[{"mm_hash":"..","transfer_id":".."},..]`
fn transfers(found: &Found, ids: &[String]) -> Vec<u8> {
    let mut out = vec![b'['];
    for (i, id) in ids.iter().enumerate() {
        let Some(entry) = found.entry(i) else {
            continue;
        };
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(br#"{"mm_hash":"#);
        put_string(&mut out, &entry.name);
        out.extend_from_slice(format!(r#","transfer_id":"{id}"}}"#).as_bytes());
    }
    out.push(b']');
    out
}
