//! Answers in the JSON of vLLM 0.32, written straight into a buffer.

use super::Engine;
use super::job::Job;
use crate::text::{detokenize, push_number, push_token, token_id, tokenize};

pub(crate) fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
}

/// The text of tokens `from..to` of a choice. The one that is EOS has none.
pub(crate) fn push_text(out: &mut Vec<u8>, job: &Job, choice: u32, from: u32, to: u32) {
    let (hash, within) = job.voice(choice);
    let (length, stopped) = job.length(choice);
    let start = out.len();
    let lead = job.lead(choice);
    for index in from..to.min(if stopped { length - 1 } else { length }) {
        push_token(out, hash, within, lead + index);
    }
    if job.trimmed && from == 0 && out.get(start) == Some(&b' ') {
        out.remove(start);
    }
}

pub(crate) fn push_ids(out: &mut Vec<u8>, job: &Job, choice: u32, from: u32, to: u32) {
    let (hash, within) = job.voice(choice);
    let lead = job.lead(choice);
    push_list(
        out,
        (from..to).map(|index| token_id(hash, within, lead + index)),
    );
}

fn push_list(out: &mut Vec<u8>, ids: impl Iterator<Item = u32>) {
    out.push(b'[');
    for (i, id) in ids.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        push_number(out, id.into());
    }
    out.push(b']');
}

fn push_prompt_ids(out: &mut Vec<u8>, job: &Job, choice: u32) {
    match &job.ask.return_ids {
        Some(texts) => {
            let text = &texts[(choice / job.ask.n) as usize];
            push_list(out, tokenize(text).into_iter());
        }
        None => put(out, b"null"),
    }
}

pub(crate) fn push_usage(out: &mut Vec<u8>, engine: &Engine, job: &Job, completion: u64) {
    let prompt = job.ask.prompt_tokens();
    let cached = match engine.options().cached_details {
        true => job.cached,
        false => 0,
    };
    put(out, b"{\"prompt_tokens\":");
    push_number(out, prompt);
    put(out, b",\"total_tokens\":");
    push_number(out, prompt + completion);
    put(out, b",\"completion_tokens\":");
    push_number(out, completion);
    put(out, b",\"prompt_tokens_details\":{\"cached_tokens\":");
    push_number(out, cached);
    put(
        out,
        b",\"created_cache_tokens\":null,\"multimodal_tokens\":null},\
          \"completion_tokens_details\":null}",
    );
}

/// `{"id":…,"object":…,"created":…,"model":…,"choices":[`
pub(crate) fn push_opening(out: &mut Vec<u8>, engine: &Engine, job: &Job, object: &[u8]) {
    put(out, b"{\"id\":\"");
    put(out, &job.answer_id);
    put(out, b"\",\"object\":\"");
    put(out, object);
    put(out, b"\",\"created\":");
    push_number(out, job.created);
    put(out, b",\"model\":");
    crate::json::push_string(out, &engine.options().model);
    put(out, b",\"choices\":[");
}

/// The logprobs of tokens `from..to`: always the same probability, as nobody judges them.
pub(crate) fn push_logprobs(out: &mut Vec<u8>, job: &Job, choice: u32, from: u32, to: u32) {
    if !job.ask.logprobs {
        put(out, b"null");
        return;
    }
    let token = |out: &mut Vec<u8>, index| {
        out.push(b'"');
        push_text(out, job, choice, index, index + 1);
        out.push(b'"');
    };
    let comma = |out: &mut Vec<u8>, index| {
        if index > from {
            out.push(b',');
        }
    };
    if job.ask.chat {
        put(out, b"{\"content\":[");
        for index in from..to {
            comma(out, index);
            put(out, b"{\"token\":");
            token(out, index);
            put(
                out,
                b",\"logprob\":-0.25,\"bytes\":null,\"top_logprobs\":[]}",
            );
        }
        put(out, b"]}");
        return;
    }
    put(out, b"{\"text_offset\":[");
    for index in from..to {
        comma(out, index);
        push_number(out, u64::from(index) * crate::text::TOKEN_BYTES as u64);
    }
    put(out, b"],\"token_logprobs\":[");
    for index in from..to {
        comma(out, index);
        put(out, b"-0.25");
    }
    put(out, b"],\"tokens\":[");
    for index in from..to {
        comma(out, index);
        token(out, index);
    }
    put(out, b"],\"top_logprobs\":null}");
}

/// The whole answer of a request that does not stream.
pub(crate) fn push_answer(out: &mut Vec<u8>, engine: &Engine, job: &Job) {
    if job.ask.responses {
        return super::responses::push_answer(out, engine, job);
    }
    let chat = job.ask.chat;
    let object: &[u8] = if chat {
        b"chat.completion"
    } else {
        b"text_completion"
    };
    push_opening(out, engine, job, object);
    let mut tokens = 0;
    for choice in 0..job.ask.choices() {
        if choice > 0 {
            out.push(b',');
        }
        tokens += u64::from(job.length(choice).0);
        push_choice(out, job, choice);
    }
    put(
        out,
        b"],\"service_tier\":null,\"system_fingerprint\":\"vllm-0.32.0-pdsim\",\"usage\":",
    );
    push_usage(out, engine, job, tokens);
    if chat {
        put(out, b",\"prompt_logprobs\":null,\"prompt_token_ids\":");
        push_prompt_ids(out, job, 0);
    }
    put(out, b",\"kv_transfer_params\":");
    put(
        out,
        if job.params.is_empty() {
            b"null"
        } else {
            &job.params
        },
    );
    put(out, b",\"ec_transfer_params\":");
    let reported: &[u8] = if job.ec.is_empty() { b"null" } else { &job.ec };
    put(out, reported);
    put(out, b",\"metrics\":null}");
}

fn push_choice(out: &mut Vec<u8>, job: &Job, choice: u32) {
    let (length, stopped) = job.length(choice);
    put(out, b"{\"index\":");
    push_number(out, choice.into());
    if job.ask.chat {
        put(out, b",\"message\":{\"role\":\"assistant\",\"content\":\"");
        push_text(out, job, choice, 0, length);
        put(
            out,
            b"\",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\
              \"tool_calls\":[],\"reasoning\":null},\"logprobs\":",
        );
    } else {
        put(out, b",\"text\":\"");
        push_text(out, job, choice, 0, length);
        put(out, b"\",\"logprobs\":");
    }
    push_logprobs(out, job, choice, 0, length);
    put(out, b",\"finish_reason\":");
    put(out, job.finish_reason(stopped));
    put(out, b",\"stop_reason\":null,\"token_ids\":");
    match job.ask.return_ids {
        Some(_) => push_ids(out, job, choice, 0, length),
        None => put(out, b"null"),
    }
    if !job.ask.chat {
        put(out, b",\"prompt_logprobs\":null,\"prompt_token_ids\":");
        push_prompt_ids(out, job, choice);
    }
    put(out, b",\"routed_experts\":null}");
}

/// `/detokenize`: the ids' text, with marks for those that are not of our making.
pub(crate) fn text_of(ids: &[u32]) -> String {
    match detokenize(ids) {
        Some(text) => String::from_utf8_lossy(&text).into_owned(),
        None => "\u{fffd}".repeat(ids.len()),
    }
}
