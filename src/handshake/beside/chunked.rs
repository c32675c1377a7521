//! A chat's answer in parts: D is asked for so many tokens at a time, each time to go on from what it said.
//!
//! ```text
//!  client      proxy                                  D
//!    |--req------>|--req, N tokens, whole answer----->|
//!    |<==event====|<--text, "length"------------------|
//!    |            |--req + text so far, N tokens----->|     without KV params: they are spent
//!    |<==event====|<--text, "stop"--------------------|
//!    |<==usage, [DONE]                                |
//! ```
//!
//! Only the first choice and its text survive; tools do not. A request within one part goes to D as it is.

use std::borrow::Cow;

use crate::config::Role;
use crate::error::Stage;
use crate::exchange::grant::Grant;
use crate::exchange::reply::Own;
use crate::exchange::{Answer, Exchange, Leg, Reply, Stop, gone};
use crate::wire::cap::edited;
use crate::wire::json::{self, Edit, Object, put_string};
use crate::wire::openai::{KV_PARAMS, finish_reason};
use crate::wire::spare::List;

/// Is this request's answer to come in parts?
pub fn applies(x: &Exchange) -> bool {
    let Some(pins) = &x.pins else { return false };
    let size = u64::from(pins.sidecar().decode_chunk);
    let request = x.request();
    let within = |budget: Option<u64>| budget.is_some_and(|budget| budget <= size);
    size > 0 && request.path() == "/v1/chat/completions" && !within(request.summary.max_tokens)
}

/// What has been said so far.
#[derive(Default)]
struct Said {
    text: Vec<u8>,
    prompt_tokens: u64,
    completion_tokens: u64,
    finish: Vec<u8>,
}

/// `edits`: of D's leg; those about KV count for the first part only.
pub async fn decode(
    x: &Exchange,
    reply: &mut Reply,
    edits: &[Edit],
    mut grant: Option<Grant>,
) -> Result<(), Stop> {
    let Some(pins) = x.pins.clone() else {
        return Ok(());
    };
    let size = u64::from(pins.sidecar().decode_chunk);
    let request = x.request();
    let stream = request.summary.stream;
    let mut left = request.summary.max_tokens.unwrap_or(u64::MAX);
    let mut said = Said::default();
    let mut first = true;
    loop {
        let part = size.min(left);
        let mut leg = leg(x, edits, &said, part, first);
        leg.grant = grant.take();
        let answer = match Box::pin(x.call(x.pick(Role::Decode)?, leg)).await {
            Ok(answer) => answer,
            Err(stop) if reply.committed => return Err(reply.broken_off(x, stop).await),
            Err(stop) => return Err(stop),
        };
        let text = text(&answer);
        note(&mut said, &answer, &text);
        let length = said.finish == b"length";
        left = left.saturating_sub(part);
        let over = !length || left == 0 || text.is_empty();
        if stream {
            if first {
                reply.begin_stream(x).await.map_err(|_| lost(x))?;
            }
            let event = event(&answer, &text, over.then_some(&said.finish[..]), first);
            reply.stream_part(event).await.map_err(|_| lost(x))?;
        }
        first = false;
        if !over {
            continue;
        }
        return match stream {
            true => {
                let mut last = b"data: ".to_vec();
                last.extend_from_slice(&tail(&answer, &said));
                last.extend_from_slice(b"\n\ndata: [DONE]\n\n");
                reply.stream_part(last).await.map_err(|_| lost(x))?;
                reply.end_stream().await.map_err(|_| lost(x))
            }
            false => {
                let body = merged(&answer, &said);
                let own = Own {
                    status: 200,
                    content_type: "application/json",
                    body: &body,
                    extra: &[],
                };
                let id = request.id.clone();
                reply.own(Some(&id), own).await.map_err(|_| lost(x))
            }
        };
    }
}

fn lost(x: &Exchange) -> Stop {
    let error = x.ended(Stage::Stream);
    Stop::Broken(error.unwrap_or_else(|| gone(Stage::Stream)))
}

fn leg(x: &Exchange, edits: &[Edit], said: &Said, part: u64, first: bool) -> Leg {
    let mut leg = Leg::new(Stage::DecodeHead);
    leg.plain_answer = true;
    leg.alone = true;
    let number = || Cow::Owned(part.to_string().into_bytes());
    leg.edits = List::from([
        Edit::Set("max_tokens", number()),
        Edit::Set("max_completion_tokens", number()),
        Edit::Set("stream", Cow::Borrowed(b"false")),
        Edit::Remove("stream_options"),
        // A least number for the whole says nothing of its parts.
        Edit::Remove("min_tokens"),
    ]);
    let mut own: Vec<Edit> = edits.to_vec();
    if !first {
        own.retain(|edit| edit.key() != KV_PARAMS);
        leg.edits.push(Edit::Remove(KV_PARAMS));
        let on = [
            ("continue_final_message", &b"true"[..]),
            ("add_generation_prompt", &b"false"[..]),
        ];
        for (key, value) in on {
            leg.edits.push(Edit::Set(key, Cow::Borrowed(value)));
        }
        let request = x.request();
        let messages = request.object.get(request.body(), "messages");
        let mut longer = messages.unwrap_or(b"[]").to_vec();
        longer.pop();
        if longer.len() > 1 {
            longer.push(b',');
        }
        longer.extend_from_slice(br#"{"role":"assistant","content":"#);
        put_string(&mut longer, &String::from_utf8_lossy(&said.text));
        longer.extend_from_slice(b"}]");
        leg.edits.push(Edit::Set("messages", Cow::Owned(longer)));
    }
    own.retain(|edit| !leg.edits.iter().any(|ours| ours.key() == edit.key()));
    leg.edits.extend(own);
    leg
}

fn member(value: &[u8], key: &str) -> Option<Vec<u8>> {
    let object = Object::scan(value, 128).ok()?;
    object.get(value, key).map(<[u8]>::to_vec)
}

/// The text of the first choice's message.
fn text(answer: &Answer) -> Vec<u8> {
    let choices = answer.field("choices").unwrap_or(b"[]");
    let choice = json::elements(choices).next().map(<[u8]>::to_vec);
    let message = choice.and_then(|choice| member(&choice, "message"));
    let content = message.and_then(|message| member(&message, "content"));
    let text = content.as_deref().and_then(json::string_value);
    text.map(Cow::into_owned).unwrap_or_default()
}

fn note(said: &mut Said, answer: &Answer, text: &[u8]) {
    said.text.extend_from_slice(text);
    said.finish = finish_reason(answer.body()).unwrap_or_default();
    let usage = answer.field("usage").map(<[u8]>::to_vec);
    let count = |key| {
        let number = usage.as_deref().and_then(|usage| member(usage, key));
        number.and_then(|n| String::from_utf8(n).ok()?.parse::<u64>().ok())
    };
    if said.prompt_tokens == 0 {
        said.prompt_tokens = count("prompt_tokens").unwrap_or(0);
    }
    said.completion_tokens += count("completion_tokens").unwrap_or(0);
}

fn usage(said: &Said) -> Vec<u8> {
    format!(
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}}"#,
        said.prompt_tokens,
        said.completion_tokens,
        said.prompt_tokens + said.completion_tokens
    )
    .into_bytes()
}

const CHUNK: Cow<'static, [u8]> = Cow::Borrowed(br#""chat.completion.chunk""#);

/// An answer as an event: its own members, with a delta in place of the message.
fn event(answer: &Answer, text: &[u8], finish: Option<&[u8]>, first: bool) -> Vec<u8> {
    let mut choices = br#"[{"index":0,"delta":{"#.to_vec();
    if first {
        choices.extend_from_slice(br#""role":"assistant","#);
    }
    choices.extend_from_slice(br#""content":"#);
    put_string(&mut choices, &String::from_utf8_lossy(text));
    choices.extend_from_slice(br#"},"finish_reason":"#);
    match finish {
        Some(reason) if !reason.is_empty() => {
            put_string(&mut choices, &String::from_utf8_lossy(reason));
        }
        _ => choices.extend_from_slice(b"null"),
    }
    choices.extend_from_slice(b"}]");
    let body = edited(
        answer.body(),
        &[
            Edit::Set("object", CHUNK),
            Edit::Set("choices", Cow::Owned(choices)),
            Edit::Remove("usage"),
            Edit::Remove(KV_PARAMS),
        ],
    );
    let mut out = b"data: ".to_vec();
    out.extend_from_slice(&body);
    out.extend_from_slice(b"\n\n");
    out
}

fn tail(answer: &Answer, said: &Said) -> Vec<u8> {
    edited(
        answer.body(),
        &[
            Edit::Set("object", CHUNK),
            Edit::Set("choices", Cow::Borrowed(b"[]")),
            Edit::Set("usage", Cow::Owned(usage(said))),
            Edit::Remove(KV_PARAMS),
        ],
    )
}

fn merged(answer: &Answer, said: &Said) -> Vec<u8> {
    let mut choices = br#"[{"index":0,"message":{"role":"assistant","content":"#.to_vec();
    put_string(&mut choices, &String::from_utf8_lossy(&said.text));
    choices.extend_from_slice(br#"},"finish_reason":"#);
    put_string(&mut choices, &String::from_utf8_lossy(&said.finish));
    choices.extend_from_slice(b"}]");
    edited(
        answer.body(),
        &[
            Edit::Set("choices", Cow::Owned(choices)),
            Edit::Set("usage", Cow::Owned(usage(said))),
            Edit::Remove(KV_PARAMS),
        ],
    )
}
