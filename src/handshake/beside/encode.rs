//! Encoders that a request names: each gets its share of the media, one request per item, before P and D.
//!
//! What one says of it (`ec-nixl`) is put into every later body; `ec-example` engines share by themselves. Both have
//! the caps of a chat, whatever the API: that is where media is.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;

use crate::config::sidecar::{Encode, Generation};
use crate::error::{Error, Kind, Stage};
use crate::exchange::pinned::Pins;
use crate::exchange::{Answer, Exchange, Leg, Stop};
use crate::log;
use crate::net::sweep::Fired;
use crate::wire::json::{self, Edit, Object, put_string};
use crate::wire::openai::{KV_PARAMS, whole_answer_edits};

const PATH: &str = "/v1/chat/completions";
const EC_PARAMS: &str = "ec_transfer_params";

/// The items that an encoder is for, and where their URL is.
const MEDIA: [&str; 4] = ["image_url", "audio_url", "video_url", "input_audio"];

/// Has the named encoders encode; what they said is in the pins from then on.
pub async fn stage(x: &Exchange, pins: &Pins) -> Result<(), Stop> {
    let encoders = pins.encoders.borrow().clone();
    if encoders.is_empty() || pins.sidecar().encode == Encode::None {
        return Ok(());
    }
    let request = x.request();
    let items = items(request.body(), &request.object);
    if items.is_empty() {
        return Ok(());
    }
    x.trace.stage.set(Stage::Encode);
    let mut branches: Vec<Exchange> = Vec::new();
    for _ in &items {
        branches.push(x.branch());
    }
    let legs = items.iter().zip(&branches).enumerate();
    let asked: Vec<Asked> = legs
        .map(|(i, (item, branch))| -> Asked {
            let leg = leg(x, pins, item, i);
            let picked = x.pick_this(&encoders[i % encoders.len()]);
            Box::pin(branch.call(picked, leg))
        })
        .collect();
    let began = Instant::now();
    let answers = join(asked, &branches).await;
    x.trace.encode.set(Some(began.elapsed()));
    x.trace.note_encoders(&branches);
    x.still_wanted(Stage::Encode)?;
    let answers = answers.map_err(failed)?;
    let mut edits = vec![Edit::Set("cache_hit_threshold", Cow::Borrowed(b"0"))];
    if pins.sidecar().encode == Encode::Nixl {
        let own = request.object.get(request.body(), EC_PARAMS);
        let merged = merge(own, &answers);
        edits.push(Edit::Set(EC_PARAMS, Cow::Owned(merged)));
    }
    pins.edits.borrow_mut().extend(edits);
    Ok(())
}

type Asked<'a> = Pin<Box<dyn Future<Output = Result<Answer, Stop>> + 'a>>;

/// Awaits all; the first failure ends the others.
async fn join(mut asked: Vec<Asked<'_>>, branches: &[Exchange]) -> Result<Vec<Answer>, Stop> {
    let mut done: Vec<Option<Answer>> = asked.iter().map(|_| None).collect();
    let mut open: Vec<bool> = vec![true; asked.len()];
    let mut failed = None;
    poll_fn(|cx| {
        for i in 0..asked.len() {
            if !open[i] {
                continue;
            }
            let Poll::Ready(result) = asked[i].as_mut().poll(cx) else {
                continue;
            };
            open[i] = false;
            match result {
                Ok(answer) => done[i] = Some(answer),
                Err(stop) if failed.is_none() => {
                    failed = Some(stop);
                    for (other, branch) in branches.iter().enumerate() {
                        if open[other] {
                            branch.slot.fire(Fired::ClientGone);
                        }
                    }
                }
                Err(_) => {}
            }
        }
        match open.contains(&true) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
    match failed {
        Some(stop) => Err(stop),
        None => Ok(done.into_iter().flatten().collect()),
    }
}

/// Whatever it is, to the client it is a gateway that is bad.
fn failed(stop: Stop) -> Stop {
    let bad = |what: String| Error::new(Kind::BadResponse, Stage::Encode, what);
    match stop {
        Stop::Answer(answer) => {
            let said = String::from_utf8_lossy(answer.body());
            let said: String = said.chars().take(500).collect();
            let error = bad(format!(
                "an encoder answered {}: {said}",
                answer.head.status
            ));
            Stop::Error(error.at(&answer.instance.name))
        }
        Stop::Error(error) | Stop::Again(error) if error.kind != Kind::ClientGone => {
            let kind = match error.kind.status() {
                504 => error.kind,
                _ => Kind::BadResponse,
            };
            Stop::Error(Error {
                kind,
                stage: Stage::Encode,
                ..error
            })
        }
        other => other,
    }
}

fn leg(x: &Exchange, pins: &Pins, item: &[u8], number: usize) -> Leg {
    let mut leg = Leg::new(Stage::Encode);
    leg.path = Some(Cow::Borrowed(PATH));
    leg.plain_answer = true;
    leg.alone = true;
    leg.id = Some(format!("{}-enc-{number}", x.request().id).into());
    let mut messages = br#"[{"role":"user","content":["#.to_vec();
    messages.extend_from_slice(item);
    messages.extend_from_slice(b"]}]");
    leg.edits = whole_answer_edits();
    if pins.sidecar().generation < Generation::G3 {
        // It let the other limit stand.
        leg.edits
            .retain(|edit| edit.key() != "max_completion_tokens");
    }
    leg.edits.push(Edit::Set("messages", Cow::Owned(messages)));
    leg.edits.push(Edit::Remove(KV_PARAMS));
    leg
}

/// The media of all messages, in their order; one URL counts once.
fn items<'a>(body: &'a [u8], object: &Object) -> Vec<&'a [u8]> {
    let mut found: Vec<&[u8]> = Vec::new();
    let mut urls: Vec<Vec<u8>> = Vec::new();
    let messages = object.get(body, "messages").unwrap_or_default();
    for message in json::elements(messages) {
        let Ok(inner) = Object::scan(message, usize::MAX) else {
            continue;
        };
        let content = inner.range(message, "content").map(|range| &message[range]);
        let content = content.filter(|value| value.first() == Some(&b'['));
        for item in json::elements(content.unwrap_or_default()) {
            let Some(url) = media(item) else { continue };
            if let Some(url) = url {
                if urls.contains(&url) {
                    continue;
                }
                urls.push(url);
            }
            found.push(item);
        }
    }
    found
}

/// Is it media, and at which URL?
fn media(item: &[u8]) -> Option<Option<Vec<u8>>> {
    let object = Object::scan(item, usize::MAX).ok()?;
    let kind = json::string_value(object.get(item, "type")?)?;
    let kind = MEDIA.into_iter().find(|known| known.as_bytes() == &*kind)?;
    let inner = object.get(item, kind);
    let url = inner.and_then(|inner| {
        let object = Object::scan(inner, usize::MAX).ok()?;
        object.get(inner, "url").map(<[u8]>::to_vec)
    });
    Some(url)
}

/// All `ec_transfer_params` as one object; of two members of one name the later counts.
fn merge(own: Option<&[u8]>, answers: &[Answer]) -> Vec<u8> {
    let mut members: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut add = |value: &[u8]| {
        let Ok(object) = Object::scan(value, usize::MAX) else {
            return;
        };
        for member in object.members() {
            let key = member.key(value);
            members.retain(|(known, _)| known[..] != key[..]);
            members.push((key.into_owned(), value[member.value()].to_vec()));
        }
    };
    own.into_iter().for_each(&mut add);
    for answer in answers {
        match answer.field(EC_PARAMS).filter(|v| v.first() == Some(&b'{')) {
            Some(value) => add(value),
            None => log::limited_for(
                "encoder",
                &answer.instance.name,
                log::Level::Warning,
                || {
                    let name = &answer.instance.name;
                    format!("encoder {name} says nothing of what it encoded: is its connector on?")
                },
            ),
        }
    }
    let mut out = b"{".to_vec();
    for (i, (key, value)) in members.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put_string(&mut out, &String::from_utf8_lossy(key));
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_is_found_once_per_url_and_in_order() {
        let body = br#"{"messages":[{"role":"system","content":"image_url"},{"role":"user","content":[
            {"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"http://a"}},
            {"type":"input_audio","input_audio":{"data":"AA"}},{"type":"image_url","image_url":{"url":"http://a"}},
            {"type":"video_url","video_url":{"url":"http://b"}},{"type":"input_audio","input_audio":{"data":"AA"}}]}]}"#;
        let object = Object::scan(body, 128).unwrap();
        let kinds: Vec<_> = items(body, &object)
            .iter()
            .map(|item| String::from_utf8_lossy(&item[9..14]).into_owned())
            .collect();
        assert_eq!(kinds, ["image", "input", "video", "input"]);
        for none in [&b"{}"[..], br#"{"messages":[]}"#, br#"{"messages":"x"}"#] {
            assert!(items(none, &Object::scan(none, 9).unwrap()).is_empty());
        }
    }
}
