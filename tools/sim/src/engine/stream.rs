//! Streamed answers: the events of vLLM's SSE streams.

use super::Engine;
use super::answer::{push_ids, push_logprobs, push_opening, push_text, push_usage, put};
use super::job::Job;
use crate::text::push_number;

const DONE: &[u8] = b"data: [DONE]\n\n";

fn opening(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    put(out, b"data: ");
    let chat = job.ask.chat;
    let object: &[u8] = if chat {
        b"chat.completion.chunk"
    } else {
        b"text_completion"
    };
    push_opening(out, engine, job, object);
}

fn usage(out: &mut Vec<u8>, engine: &Engine, job: &Job, tokens: u64) {
    if job.ask.continuous_usage {
        put(out, b",\"usage\":");
        push_usage(out, engine, job, tokens);
    }
}

/// The chunk that opens a choice of a chat: the role, and no text.
pub(crate) fn push_role(out: &mut Vec<u8>, engine: &Engine, job: &Job, choice: u32) {
    if job.ask.responses {
        return super::responses::push_created(out, engine, job);
    }
    opening(out, engine, job);
    put(out, b"{\"index\":");
    push_number(out, choice.into());
    put(
        out,
        b",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\
          \"finish_reason\":null}]",
    );
    put(out, b",\"prompt_token_ids\":null");
    usage(out, engine, job, 0);
    put(out, b"}\n\n");
}

/// The event of token `index` of a choice; or, where the prompt was not computed, the one that says so.
pub(crate) fn push_event(out: &mut Vec<u8>, engine: &Engine, job: &Job, choice: u32, index: u32) {
    if job.ask.responses {
        return super::responses::push_delta(out, job, index);
    }
    let (length, stopped) = job.length(choice);
    let to = index + u32::from(!job.missed);
    let last = to == length;
    opening(out, engine, job);
    put(out, b"{\"index\":");
    push_number(out, choice.into());
    put(
        out,
        if job.ask.chat {
            b",\"delta\":{\"content\":\""
        } else {
            b",\"text\":\""
        },
    );
    push_text(out, job, choice, index, to);
    put(
        out,
        if job.ask.chat {
            b"\"},\"logprobs\":"
        } else {
            b"\",\"logprobs\":"
        },
    );
    push_logprobs(out, job, choice, index, to);
    put(out, b",\"finish_reason\":");
    put(
        out,
        match last {
            false => b"null",
            true => job.finish_reason(stopped),
        },
    );
    put(out, b",\"stop_reason\":null,\"token_ids\":");
    match job.ask.return_ids {
        Some(_) => push_ids(out, job, choice, index, to),
        None => put(out, b"null"),
    }
    put(out, b"}]");
    usage(out, engine, job, to.into());
    if last && !job.params.is_empty() {
        put(out, b",\"kv_transfer_params\":");
        put(out, &job.params);
    }
    put(out, b"}\n\n");
}

/// The chunk with the usage alone, if it was asked for.
pub(crate) fn push_final_usage(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    if job.ask.responses {
        return super::responses::push_completed(out, engine, job);
    }
    if !job.ask.include_usage {
        return;
    }
    opening(out, engine, job);
    put(out, b"],\"usage\":");
    let tokens = (0..job.ask.choices())
        .map(|c| u64::from(job.length(c).0))
        .sum();
    push_usage(out, engine, job, tokens);
    put(out, b"}\n\n");
}

/// What ends a stream that was not cut off.
pub(crate) fn done(job: &Job) -> &'static [u8] {
    match job.ask.responses {
        true => b"",
        false => DONE,
    }
}

/// How a failure shows once the head is out.
pub(crate) fn error_event(error: &super::error::ApiError) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    error.push_json(&mut event);
    event.extend_from_slice(b"\n\n");
    event
}
