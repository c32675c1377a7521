//! Encoder disaggregation (vLLM's EC connectors): what an encode engine makes of media, and how prefill
//! and decode engines find it again.
//!
//! An encoder names each item by its `uuid`, else by what it holds. Others are shown the item as it was, or
//! as `*_embeds` with that name: then it must have been encoded, with just this metadata, and reported to
//! them. With Mooncake the encoder pushes to a consumer: each transfer has an id, good for one use there.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use super::error::ApiError;
use crate::json::{Member, elements, is_string, members, string, unescape};
use crate::ledger::lock;
use crate::options::EcMode;
use crate::text::{hash, push_hex, push_number};

const MEDIA: u64 = 4;
/// Encodings that are remembered; a real cache is far smaller.
const REMEMBERED: usize = 1 << 16;

/// What a medium is to the text that a prompt with it gives.
pub(crate) fn content_hash(media: &[u8]) -> u64 {
    hash(MEDIA, media)
}

#[derive(Default)]
pub(crate) struct Encodings {
    by_name: Mutex<HashMap<Vec<u8>, Encoding>>,
    transfers: Mutex<HashMap<Vec<u8>, Transfer>>,
    pub encoded: AtomicU64,
    pub embedded: AtomicU64,
    pub transferred: AtomicU64,
}

#[derive(Clone)]
struct Encoding {
    content: u64,
    engine: usize,
    kind: &'static str,
}

struct Transfer {
    name: Vec<u8>,
    consumer: Vec<u8>,
    used: bool,
}

/// What a prompt needs to know to be read.
#[derive(Default)]
pub(crate) struct Lens {
    /// Names of embeddings, and what the media were that they stand for.
    pub embeds: Vec<(Vec<u8>, u64)>,
    /// `file://` is read (`--allowed-local-media-path`).
    pub local_media: bool,
}

/// One content part of a kind that is media, or embeddings of it.
struct Part<'a> {
    kind: &'static str,
    embeds: bool,
    media: &'a [u8],
    uuid: Option<Vec<u8>>,
}

const KINDS: [(&str, &str); 4] = [
    ("image_url", "image"),
    ("audio_url", "audio"),
    ("input_audio", "audio"),
    ("video_url", "video"),
];
const EMBEDS: [(&str, &str); 3] = [
    ("image_embeds", "image"),
    ("audio_embeds", "audio"),
    ("video_embeds", "video"),
];

fn member<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let named = members(object).filter(|(key, _)| *key == name);
    named.map(|(_, value)| value).last()
}

fn top<'a>(body: &'a [u8], all: &[Member], name: &[u8]) -> Option<&'a [u8]> {
    let key = |m: &Member| unescape(&body[m.key.0 as usize..m.key.1 as usize]);
    let found = all.iter().rev().find(|m| &*key(m) == name)?;
    let value = &body[found.value.0 as usize..found.value.1 as usize];
    (value != b"null").then_some(value)
}

fn text(value: Option<&[u8]>) -> Option<Vec<u8>> {
    let value = value.filter(|v| is_string(v));
    value.map(|v| string(v).into_owned())
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::value(Some("messages"), message)
}

impl<'a> Part<'a> {
    fn read(part: &'a [u8]) -> Option<Part<'a>> {
        if part[0] != b'{' {
            return None;
        }
        let name = text(member(part, b"type"))?;
        let of = |known: &[(&str, &'static str)]| {
            let row = known.iter().find(|(kind, _)| kind.as_bytes() == name);
            row.map(|(_, kind)| *kind)
        };
        let (kind, embeds) = match (of(&KINDS), of(&EMBEDS)) {
            (Some(kind), _) => (kind, false),
            (_, Some(kind)) => (kind, true),
            _ => return None,
        };
        Some(Part {
            kind,
            embeds,
            media: member(part, &name)?,
            uuid: text(member(part, b"uuid")),
        })
    }

    /// The url, or whatever else the media is.
    fn content(&self) -> u64 {
        let url = match self.media[0] {
            b'{' => text(member(self.media, b"url")),
            b'"' => text(Some(self.media)),
            _ => None,
        };
        match url {
            Some(url) => content_hash(&url),
            None => content_hash(self.media),
        }
    }

    fn name(&self) -> Vec<u8> {
        self.uuid.clone().unwrap_or_else(|| {
            let mut name = Vec::new();
            push_hex(&mut name, self.content(), 16);
            name
        })
    }
}

fn parts(messages: &[u8]) -> Vec<Part<'_>> {
    let list = |value: Option<&'_ [u8]>| value.is_some_and(|v| v[0] == b'[');
    let mut all = Vec::new();
    if !list(Some(messages)) {
        return all;
    }
    for message in elements(messages).filter(|m| m[0] == b'{') {
        let content = member(message, b"content");
        if list(content) {
            all.extend(elements(content.unwrap_or_default()).filter_map(Part::read));
        }
    }
    all
}

/// The metadata of an encoding, as a connector reports it: lists of lists.
fn push_metadata(out: &mut Vec<u8>, encoding: &Encoding, nested: bool) {
    let name = match encoding.kind {
        "image" => "image_grid_thw",
        "audio" => "audio_feature_lengths",
        _ => "video_grid_thw",
    };
    out.extend_from_slice(format!("{{\"{name}\":").as_bytes());
    out.extend_from_slice(if nested { b"[[1," } else { b"[1," });
    push_number(out, encoding.content % 97 + 2);
    out.push(b',');
    push_number(out, encoding.content % 89 + 2);
    out.extend_from_slice(if nested { b"]]}" } else { b"]}" });
}

/// An encoder's request: checks it, and gives the `ec_transfer_params` of the answer (empty: none).
pub(crate) fn encode(engine: &Engine, body: &[u8], all: &[Member]) -> Result<Vec<u8>, ApiError> {
    let (world, options) = (&engine.world, engine.options());
    let asked = |name: &str| top(body, all, name.as_bytes());
    // A sidecar sends the client's whole request with one item in it.
    let whole = matches!(options.ec, EcMode::Example | EcMode::Nixl);
    for m in all.iter().filter(|_| !whole) {
        let key = unescape(&body[m.key.0 as usize..m.key.1 as usize]);
        let known: &[&[u8]] = &[
            b"model",
            b"messages",
            b"stream",
            b"max_tokens",
            b"mm_processor_kwargs",
            b"media_io_kwargs",
            b"priority",
            b"session_id",
            b"ec_transfer_params",
        ];
        if !known.contains(&&*key) {
            let (index, key) = (engine.index, String::from_utf8_lossy(&key).into_owned());
            world
                .ledger
                .violation(|| format!("encoder {index} was sent {key}"));
        }
    }
    if asked("stream").is_some_and(|v| v != b"false") {
        return Err(ApiError::value(
            Some("stream"),
            "an encoder does not stream",
        ));
    }
    match (options.ec, asked("max_tokens")) {
        (EcMode::V1 | EcMode::Example | EcMode::Nixl, Some(b"1")) | (EcMode::V2, None) => {}
        (EcMode::V1 | EcMode::Example | EcMode::Nixl, _) => {
            let what = "max_tokens must be 1: this encoder would decode";
            return Err(ApiError::value(Some("max_tokens"), what));
        }
        _ => {
            let what = "max_tokens is not known to an encoder-only engine";
            return Err(ApiError::value(Some("max_tokens"), what));
        }
    }
    let messages = asked("messages").unwrap_or(b"[]");
    let parts = parts(messages);
    let count = match messages[0] {
        b'[' => elements(messages).count(),
        _ => 0,
    };
    if parts.is_empty() || count != 1 || parts.iter().any(|part| part.embeds) {
        return Err(bad("an encoder takes one message, and in it media"));
    }
    if parts.len() > 1 && parts.iter().any(|part| part.kind != "image") {
        return Err(bad("only images are encoded together"));
    }
    if whole && parts.len() > 1 {
        return Err(bad("a sidecar's encoder takes one item"));
    }
    if whole && asked("kv_transfer_params").is_some() {
        return Err(ApiError::value(
            Some("kv_transfer_params"),
            "an encoder transfers no KV",
        ));
    }
    if options.images_max > 0 && parts.len() > options.images_max {
        let most = options.images_max;
        return Err(bad(format!(
            "At most {most} image(s) may be provided in one prompt."
        )));
    }
    let encodings = &world.encodings;
    if let Some(push) = asked("ec_transfer_params") {
        begin_transfers(encodings, push, &parts)?;
    }
    let mut made: Vec<(Vec<u8>, Encoding, Vec<usize>)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let (name, content) = (part.name(), part.content());
        match made.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, _, indices)) => indices.push(index),
            None => {
                let (engine, kind) = (engine.index, part.kind);
                let encoding = Encoding {
                    content,
                    engine,
                    kind,
                };
                made.push((name, encoding, vec![index]));
            }
        }
    }
    encodings
        .encoded
        .fetch_add(parts.len() as u64, Ordering::Relaxed);
    let mut by_name = lock(&encodings.by_name);
    if by_name.len() > REMEMBERED {
        by_name.clear();
    }
    for (name, encoding, _) in &made {
        by_name.insert(name.clone(), encoding.clone());
    }
    drop(by_name);
    if matches!(options.ec, EcMode::V1 | EcMode::Example) {
        return Ok(Vec::new());
    }
    Ok(report(engine, &made))
}

fn begin_transfers(encodings: &Encodings, push: &[u8], parts: &[Part]) -> Result<(), ApiError> {
    let wrong = |what: &str| ApiError::value(Some("ec_transfer_params"), what);
    if push[0] != b'{' {
        return Err(wrong("Input should be a valid dictionary"));
    }
    let consumer = text(member(push, b"consumer_zmq")).ok_or_else(|| wrong("no consumer_zmq"))?;
    let items = member(push, b"ec_items").filter(|v| v[0] == b'[');
    let items: Vec<&[u8]> = items.map_or(Vec::new(), |list| elements(list).collect());
    if items.len() != parts.len() {
        return Err(wrong("ec_items does not match the media"));
    }
    let mut transfers = lock(&encodings.transfers);
    for (item, part) in items.iter().zip(parts) {
        let id = Some(*item).filter(|v| v[0] == b'{');
        let id = id.and_then(|item| text(member(item, b"transfer_id")));
        let id = id.ok_or_else(|| wrong("an item has no transfer_id"))?;
        if id.len() != 32 || !id.iter().all(u8::is_ascii_hexdigit) || transfers.contains_key(&id) {
            return Err(wrong("a transfer_id is 32 hexadecimal digits, used once"));
        }
        let (name, consumer) = (part.name(), consumer.clone());
        transfers.insert(
            id,
            Transfer {
                name,
                consumer,
                used: false,
            },
        );
    }
    Ok(())
}

/// `{"<name>":{"metadata":{..},"item_indices":[..],"peer_host":..,"peer_port":..,"size_bytes":..}}`
fn report(engine: &Engine, made: &[(Vec<u8>, Encoding, Vec<usize>)]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (name, encoding, indices) in made {
        if out.len() > 1 {
            out.push(b',');
        }
        crate::json::push_string(&mut out, &String::from_utf8_lossy(name));
        out.extend_from_slice(b":{");
        if engine.options().ec_metadata {
            out.extend_from_slice(b"\"metadata\":");
            push_metadata(&mut out, encoding, true);
            out.push(b',');
        }
        out.extend_from_slice(format!("\"item_indices\":{indices:?},").as_bytes());
        out.extend_from_slice(&handle(encoding));
        out.push(b'}');
    }
    out.push(b'}');
    out
}

/// How a connector finds the encoding.
fn handle(encoding: &Encoding) -> Vec<u8> {
    let size = encoding.content % 4096 + 1024;
    let port = 26_500 + encoding.engine;
    format!("\"peer_host\":\"127.0.0.1\",\"peer_port\":{port},\"size_bytes\":{size}").into_bytes()
}

/// Do the params say where the encoding of this name is?
fn told(params: Option<&[u8]>, name: &[u8], encoding: &Encoding) -> bool {
    let mut all = params.into_iter().flat_map(members);
    let reported = all.find(|(key, _)| *unescape(key) == *name);
    reported.is_some_and(|(_, value)| memchr::memmem::find(value, &handle(encoding)).is_some())
}

/// What a prefill or decode engine is shown of encodings: checked, and what they stand for.
pub(crate) fn look(
    engine: &Engine,
    rank: &[u8],
    body: &[u8],
    all: &[Member],
) -> Result<Lens, ApiError> {
    let (world, options) = (&engine.world, engine.options());
    let mut lens = Lens {
        embeds: Vec::new(),
        local_media: options.local_media,
    };
    if options.ec == EcMode::None {
        return Ok(lens);
    }
    let messages = top(body, all, b"messages").unwrap_or(b"[]");
    let params = top(body, all, b"ec_transfer_params");
    if params.is_some_and(|v| v[0] != b'{') {
        let what = "Input should be a valid dictionary";
        return Err(ApiError::field("ec_transfer_params", what));
    }
    let by_name = lock(&world.encodings.by_name);
    for part in parts(messages) {
        let name = part.name();
        let known = by_name.get(&name);
        if !part.embeds {
            let index = engine.index;
            let note = |what| {
                world.ledger.violation(|| format!("engine {index}: {what}"));
            };
            let Some(encoding) = known else {
                note("media that nobody encoded");
                continue;
            };
            if options.ec == EcMode::Nixl {
                // Without a handle it encodes by itself: the same text, and the encoder's work for nothing.
                match told(params, &name, encoding) {
                    true => _ = world.encodings.embedded.fetch_add(1, Ordering::Relaxed),
                    false => note("ec_transfer_params does not say where its media are encoded"),
                }
            }
            continue;
        }
        if options.ec != EcMode::V2 {
            return Err(bad("You must set `--enable-mm-embeds` to input embeddings"));
        }
        if part.uuid.is_none() {
            return Err(bad("embeddings need a uuid"));
        }
        let shown = String::from_utf8_lossy(&name).into_owned();
        let Some(encoding) = known.filter(|e| e.kind == part.kind) else {
            return Err(bad(format!("no encoding is known as {shown}")));
        };
        let mut wanted = Vec::new();
        push_metadata(&mut wanted, encoding, false);
        let mut given = part.media.to_vec();
        given.retain(|b| !b.is_ascii_whitespace());
        if given != wanted {
            return Err(bad(format!("{shown} has other metadata")));
        }
        if !told(params, &name, encoding) {
            return Err(bad(format!(
                "ec_transfer_params does not say where {shown} is"
            )));
        }
        world.encodings.embedded.fetch_add(1, Ordering::Relaxed);
        lens.embeds.push((name, encoding.content));
    }
    drop(by_name);
    if !options.ec_addresses.is_empty() {
        take_transfers(engine, rank, params, &parts(messages))?;
    }
    Ok(lens)
}

/// The pushed encodings of this request are taken from where the encoder has put them.
fn take_transfers(
    engine: &Engine,
    rank: &[u8],
    params: Option<&[u8]>,
    parts: &[Part],
) -> Result<(), ApiError> {
    let wrong = |what: String| ApiError::value(Some("ec_transfer_params"), what);
    let addresses = &engine.options().ec_addresses;
    let rank: usize = match std::str::from_utf8(rank).unwrap_or_default() {
        "" if addresses.len() == 1 => 0,
        text => text
            .parse()
            .map_err(|_| wrong("no X-data-parallel-rank".into()))?,
    };
    let Some(here) = addresses.get(rank) else {
        return Err(wrong(format!("there is no rank {rank}")));
    };
    let items = params.and_then(|params| member(params, b"ec_items"));
    let items: Vec<&[u8]> = match items {
        Some(list) if list[0] == b'[' => elements(list).collect(),
        _ => Vec::new(),
    };
    let mut transfers = lock(&engine.world.encodings.transfers);
    let mut names = Vec::new();
    for item in items {
        let field = |name: &[u8]| {
            Some(item)
                .filter(|v| v[0] == b'{')
                .and_then(|v| text(member(v, name)))
        };
        let (name, id) = (field(b"mm_hash"), field(b"transfer_id"));
        let (Some(name), Some(id)) = (name, id) else {
            return Err(wrong("an item lacks mm_hash or transfer_id".into()));
        };
        let shown = String::from_utf8_lossy(&id).into_owned();
        let Some(transfer) = transfers.get_mut(&id) else {
            return Err(wrong(format!("no transfer {shown} was begun")));
        };
        if transfer.name != name || transfer.consumer != here.as_bytes() {
            return Err(wrong(format!(
                "transfer {shown} is of another item or for another consumer"
            )));
        }
        if std::mem::replace(&mut transfer.used, true) {
            return Err(wrong(format!("transfer {shown} was used before")));
        }
        engine
            .world
            .encodings
            .transferred
            .fetch_add(1, Ordering::Relaxed);
        names.push(name);
    }
    match parts
        .iter()
        .find(|part| part.embeds && !names.contains(&part.name()))
    {
        Some(_) => Err(wrong("embeddings without a transfer".into())),
        None => Ok(()),
    }
}
