//! Prompts: every form that the API allows becomes a hash and a token count. The hash is over the
//! *meaning* (escapes resolved, a lone text part equal to its string, token ids equal to the text
//! they stand for), so that re-serialising a body does not change the text, and changing it does.

use memchr::memmem;

use super::ec::{Lens, content_hash};
use super::error::ApiError;
use crate::json::{elements, integer, is_string, members, string};
use crate::text::{IMAGE_TOKENS, count, detokenize, hash, mix};

const COMPLETION: u64 = 1;
const CHAT: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompt {
    pub hash: u64,
    pub tokens: u32,
    /// From a marker `[[eos@K]]`: the K-th token ends the answer.
    pub eos_at: Option<u32>,
    /// Tokens of the answer that are in the prompt already.
    pub lead: u32,
    /// A hash of what is in it besides text; 0: nothing.
    pub media: u64,
}

/// The hash of a text prompt of `/v1/completions`, for tests to tell what text must come.
pub fn prompt_hash(text: &str) -> u64 {
    of_text(text.as_bytes()).hash
}

/// The same for the `messages` value (JSON text) of a chat request.
pub fn messages_hash(messages: &str) -> Option<u64> {
    let wrapped = format!("{{\"messages\":{messages}}}");
    let mut top = Vec::new();
    crate::json::object(wrapped.as_bytes(), &mut top).ok()?;
    of_messages(
        &wrapped.as_bytes()[top[0].value.0 as usize..top[0].value.1 as usize],
        None,
        &Lens::default(),
    )
    .ok()
    .map(|p| p.hash)
}

fn eos_in(text: &[u8]) -> Option<u32> {
    thread_local! {
        static MARKER: memmem::Finder<'static> = memmem::Finder::new(b"[[eos@");
    }
    let at = MARKER.with(|marker| marker.find(text))? + 6;
    let rest = &text[at..];
    let digits = &rest[..memmem::find(rest, b"]]")?];
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn of_text(text: &[u8]) -> Prompt {
    Prompt {
        hash: hash(COMPLETION, text),
        tokens: count(text),
        eos_at: eos_in(text),
        lead: 0,
        media: 0,
    }
}

pub(super) fn of_ids(ids: &[u32]) -> Prompt {
    let length = ids.len() as u32;
    match detokenize(ids) {
        Some(text) => Prompt {
            tokens: length,
            ..of_text(&text)
        },
        None => {
            let hash = ids
                .iter()
                .fold(COMPLETION, |h, id| mix(h, u64::from(*id) + 1));
            Prompt {
                hash,
                tokens: length,
                eos_at: None,
                lead: 0,
                media: 0,
            }
        }
    }
}

fn ids_of(list: &[u8]) -> Result<Vec<u32>, ApiError> {
    let wrong = || ApiError::field("prompt.0", "Input should be a valid integer");
    elements(list)
        .map(|v| {
            integer(v)
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(wrong)
        })
        .collect()
}

/// The prompts of a completions request. `texts`, if wanted, gets the bytes of each.
pub(crate) fn of_prompt(
    value: &[u8],
    texts: Option<&mut Vec<Vec<u8>>>,
) -> Result<Vec<Prompt>, ApiError> {
    let mut kept = Vec::new();
    let prompts = match value[0] {
        b'"' => {
            let text = string(value);
            if texts.is_some() {
                kept.push(text.to_vec());
            }
            vec![of_text(&text)]
        }
        b'[' => match elements(value).next().map(|first| first[0]) {
            None => return Err(ApiError::body("prompt must not be empty")),
            Some(b'"' | b'[') => batch(value, &mut kept)?,
            Some(_) => {
                let ids = ids_of(value)?;
                kept.push(detokenize(&ids).unwrap_or_default());
                vec![of_ids(&ids)]
            }
        },
        _ => {
            return Err(ApiError::field("prompt", "Input should be a valid list"));
        }
    };
    if prompts.iter().any(|p| p.tokens == 0) {
        return Err(ApiError::value(None, "The decoder prompt cannot be empty"));
    }
    if let Some(texts) = texts {
        *texts = kept;
    }
    Ok(prompts)
}

fn batch(value: &[u8], kept: &mut Vec<Vec<u8>>) -> Result<Vec<Prompt>, ApiError> {
    let mut prompts = Vec::new();
    let first = elements(value).next().map(|v| v[0]);
    for item in elements(value) {
        if Some(item[0]) != first {
            return Err(ApiError::field("prompt.0", "Input should be of one kind"));
        }
        if is_string(item) {
            let text = string(item);
            prompts.push(of_text(&text));
            kept.push(text.into_owned());
        } else {
            let ids = ids_of(item)?;
            prompts.push(of_ids(&ids));
            kept.push(detokenize(&ids).unwrap_or_default());
        }
    }
    Ok(prompts)
}

/// What messages add up to.
struct Chat {
    hash: u64,
    tokens: u32,
    eos_at: Option<u32>,
    media: u64,
}

impl Chat {
    fn text(&mut self, text: &[u8]) {
        self.hash = hash(self.hash, text);
        self.tokens += count(text);
        self.eos_at = eos_in(text).or(self.eos_at);
    }
}

/// The prompt of a chat request. `rendered`, if wanted, gets the text the template makes of it.
pub(crate) fn of_messages(
    value: &[u8],
    mut rendered: Option<&mut Vec<u8>>,
    lens: &Lens,
) -> Result<Prompt, ApiError> {
    if value[0] != b'[' {
        return Err(ApiError::field("messages", "Input should be a valid list"));
    }
    let mut chat = Chat {
        hash: CHAT,
        tokens: 0,
        eos_at: None,
        media: 0,
    };
    for message in elements(value) {
        if message[0] != b'{' {
            return Err(ApiError::field(
                "messages.0",
                "Input should be a valid dictionary",
            ));
        }
        let mut role = false;
        // Content may be left out, but only an assistant's may be null.
        let (mut assistant, mut null) = (false, false);
        if let Some(out) = rendered.as_deref_mut() {
            // A template has the role first, wherever it stands.
            let named = members(message)
                .filter(|(k, v)| *k == b"role" && is_string(v))
                .last();
            let name = named.map(|(_, v)| string(v)).unwrap_or_default();
            out.extend_from_slice(&[b"<|", &*name, b"|>"].concat());
        }
        for (key, value) in members(message) {
            match key {
                b"role" if is_string(value) => {
                    role = true;
                    let name = string(value);
                    assistant = &*name == b"assistant";
                    chat.hash = mix(hash(chat.hash, &name), 7);
                    chat.tokens += 4;
                }
                b"content" => {
                    null = value[0] == b'n';
                    of_content(value, &mut chat, rendered.as_deref_mut(), lens)?;
                }
                b"tool_calls" | b"tool_call_id" | b"name" => chat.text(value),
                _ => {}
            }
        }
        if !role {
            return Err(ApiError::field("messages.0.role", "Field required"));
        }
        if null && !assistant {
            return Err(ApiError::field(
                "messages.0.content",
                "Input should be a valid string",
            ));
        }
    }
    if chat.tokens == 0 {
        return Err(ApiError::body("messages: must not be empty"));
    }
    Ok(Prompt {
        hash: chat.hash,
        tokens: chat.tokens,
        eos_at: chat.eos_at,
        lead: 0,
        media: chat.media,
    })
}

fn of_content(
    value: &[u8],
    chat: &mut Chat,
    mut rendered: Option<&mut Vec<u8>>,
    lens: &Lens,
) -> Result<(), ApiError> {
    match value[0] {
        b'"' => {
            let text = string(value);
            chat.text(&text);
            if let Some(out) = rendered {
                out.extend_from_slice(&text);
            }
        }
        b'n' => {}
        b'[' => {
            for part in elements(value) {
                of_part(part, chat, rendered.as_deref_mut(), lens)?;
            }
        }
        _ => {
            return Err(ApiError::field(
                "messages.0.content",
                "Input should be a valid string",
            ));
        }
    }
    Ok(())
}

fn of_part(
    part: &[u8],
    chat: &mut Chat,
    rendered: Option<&mut Vec<u8>>,
    lens: &Lens,
) -> Result<(), ApiError> {
    if is_string(part) {
        return of_content(part, chat, rendered, lens);
    }
    if part[0] != b'{' {
        return Err(ApiError::body("messages: a content part must be an object"));
    }
    let field = |name: &[u8]| {
        members(part)
            .filter(|(k, _)| *k == name)
            .map(|(_, v)| v)
            .last()
    };
    let kind = field(b"type").filter(|v| is_string(v)).map(string);
    let Some(kind) = kind else {
        return Err(ApiError::body("messages: a content part needs a type"));
    };
    match (&*kind, field(&kind)) {
        (b"text", Some(text)) if is_string(text) => of_content(text, chat, rendered, lens),
        (b"image_url" | b"audio_url" | b"video_url", Some(media)) => of_media(media, chat, lens),
        (b"input_audio" | b"image_embeds" | b"audio_embeds" | b"video_embeds", Some(value)) => {
            let uuid = field(b"uuid").filter(|v| is_string(v)).map(string);
            let known = lens
                .embeds
                .iter()
                .find(|(name, _)| uuid.as_deref() == Some(name));
            let content = known.map_or_else(|| content_hash(value), |(_, content)| *content);
            chat.hash = mix(chat.hash, content);
            chat.media = mix(chat.media, content);
            chat.tokens += IMAGE_TOKENS;
            Ok(())
        }
        _ => Err(ApiError::body(format!(
            "messages: bad content part of type {}",
            String::from_utf8_lossy(&kind)
        ))),
    }
}

fn of_media(media: &[u8], chat: &mut Chat, lens: &Lens) -> Result<(), ApiError> {
    let url = match media[0] {
        b'"' => Some(media),
        b'{' => members(media)
            .filter(|(k, _)| *k == b"url")
            .map(|(_, v)| v)
            .last(),
        _ => None,
    };
    let Some(url) = url.filter(|v| is_string(v)).map(string) else {
        return Err(ApiError::body("messages: media needs a url"));
    };
    let known: [&[u8]; 3] = [b"http://", b"https://", b"data:"];
    let local = lens.local_media && url.starts_with(b"file://");
    if !local && !known.iter().any(|scheme| url.starts_with(scheme)) {
        return Err(ApiError::value(
            None,
            "The URL must be either a HTTP, data or file URL.",
        ));
    }
    let content = content_hash(&url);
    chat.hash = mix(chat.hash, content);
    chat.media = mix(chat.media, content);
    chat.tokens += IMAGE_TOKENS;
    Ok(())
}
