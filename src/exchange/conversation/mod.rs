//! Conversations: what is kept of a turn for the next one.
//!
//! * **For:** where D keeps the KV of an answer (params, opaque), and where the turn ended, so that the next
//!   request can be held to it. Taken once: a second use of the same params gives wrong text on a real engine.
//! * **Must never:** fail or delay a request beyond `multiturn.redis_timeout`: what cannot be had is computed
//!   again. Keep anything beyond its bounds or its time.
//! * **To extend:** another place to keep them is a [`Store`] in a file here.
//!
//! A kept entry pins blocks in a D until that D's own limit (vLLM: `decoder_kv_blocks_ttl`, 480 s), unless a
//! P reads them before. Dropping it frees nothing: only a P that reads them can tell D so. For this reason the
//! bounds here are about our memory, and the time is below the engine's.

pub mod memory;
pub mod redis;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::{Request, Tools};
use crate::wire::head::Name;
use crate::wire::history::{Form, Past};
use crate::wire::json::{Object, string_value};
use crate::wire::kv_tap::DEPTH_MAX;

/// A conversation of one client: a hash of its id and of whoever may use it.
pub type Key = [u8; 32];

/// What a turn leaves to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub past: Past,
    /// As the next P gets them.
    pub params: Vec<u8>,
    /// The D that holds the blocks, by index, and its starts; unknown if another process has kept it.
    pub origin: Option<(usize, u64)>,
}

pub enum Found {
    Entry(Entry),
    Nothing,
    /// It was there, for too long.
    Expired,
    /// Nobody knows: the store did not answer, or not with an entry.
    Failed,
}

pub type Taking<'a> = Pin<Box<dyn Future<Output = Found> + 'a>>;

pub trait Store: Send + Sync {
    /// Takes it out: whoever has it is the only one.
    fn take<'a>(&'a self, tools: &'a Rc<Tools>, key: &'a Key) -> Taking<'a>;

    /// Keeps it, instead of what was there. Counts what becomes of it.
    fn put(&self, tools: &Rc<Tools>, key: Key, entry: Entry);

    /// How many are kept; `None`: only the store that is shared knows.
    fn kept(&self, tools: &Rc<Tools>) -> Option<usize>;

    /// How many were dropped since the last call because their time was over.
    fn expired(&self) -> usize;
}

/// Fields that say who a client is.
const CREDENTIALS: [&str; 2] = ["x-api-key", "api-key"];

/// The key of this id: of two clients with different credentials, neither can come upon the other's.
pub fn key(request: &Request, id: &[u8]) -> Key {
    let mut hash = Sha256::new();
    let mut put = |text: &[u8]| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    put(b"pdrelay conversation");
    let head = request.head_bytes();
    let fields = &request.head.fields;
    put(fields.find(head, Name::Authorization).unwrap_or_default());
    for name in CREDENTIALS {
        put(fields.get(head, name).unwrap_or_default());
    }
    put(id);
    hash.finalize().into()
}

/// Written and read by whatever process shares the store, maybe of another release.
const VERSION: &str = "1";

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let Past {
            form,
            count,
            digest,
        } = &self.past;
        let mut out = Vec::with_capacity(self.params.len() + 160);
        out.extend_from_slice(br#"{"version":"#);
        out.extend_from_slice(VERSION.as_bytes());
        out.extend_from_slice(br#","form":""#);
        out.extend_from_slice(form.name().as_bytes());
        out.extend_from_slice(br#"","count":"#);
        out.extend_from_slice(itoa::Buffer::new().format(*count).as_bytes());
        out.extend_from_slice(br#","digest":""#);
        out.extend_from_slice(hex(digest).as_bytes());
        out.extend_from_slice(br#"","params":"#);
        out.extend_from_slice(&self.params);
        out.push(b'}');
        out
    }

    /// `None`: it is nothing that we have written.
    pub fn decode(bytes: &[u8]) -> Option<Entry> {
        // It becomes a part of a request.
        simdutf8::basic::from_utf8(bytes).ok()?;
        let object = Object::scan(bytes, DEPTH_MAX).ok()?;
        let get = |key| object.get(bytes, key);
        if get("version")? != VERSION.as_bytes() {
            return None;
        }
        let form = string_value(get("form")?)?;
        let form = Form::ALL
            .into_iter()
            .find(|f| f.name().as_bytes() == &*form)?;
        let count = std::str::from_utf8(get("count")?).ok()?.parse().ok()?;
        let digest = unhex(&string_value(get("digest")?)?)?;
        let params = get("params")?;
        // To the last byte: the scan follows only brackets and strings.
        serde_json::from_slice::<&serde_json::value::RawValue>(params).ok()?;
        if !params.starts_with(b"{") {
            return None;
        }
        Some(Entry {
            past: Past {
                form,
                count,
                digest,
            },
            params: params.to_vec(),
            origin: None,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 2 * out.len() || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            past: Past {
                form: Form::Ids,
                count: 77,
                digest: [0xa5; 32],
            },
            params: br#"{"remote_block_ids":[[1,18446744073709551615]],"x":null}"#.to_vec(),
            origin: None,
        }
    }

    #[test]
    fn entries_come_back_as_they_were() {
        assert_eq!(Entry::decode(&entry().encode()), Some(entry()));
    }

    #[test]
    fn nonsense_is_no_entry() {
        let good = entry().encode();
        for end in 0..good.len() {
            assert_eq!(Entry::decode(&good[..end]), None, "{end}");
        }
        let text = String::from_utf8(good).unwrap();
        for (from, to) in [
            (r#""version":1"#, r#""version":2"#),
            ("ids", "idx"),
            ("a5a5", "a5"),
            ("a5a5", "+5+5"),
            ("77", "-7"),
            (r#""params":{"#, r#""params":[{"#),
            (r#""params""#, r#""other""#),
            // Brackets and quotes match, and it is no JSON all the same.
            (r#""params":{"#, r#""params":{"a":,"#),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text);
            assert_eq!(Entry::decode(bad.as_bytes()), None, "{bad}");
        }
        let mut broken = text.into_bytes();
        broken[20] = 0xff;
        assert_eq!(Entry::decode(&broken), None);
    }
}
