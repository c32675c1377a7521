//! A generate request, read and judged the way vLLM does it: what it rejects is rejected here.

use super::ec::Lens;
use super::error::ApiError;
use super::prompt::{Prompt, of_messages, of_prompt};
use super::rules;
use crate::json::{
    self, Member, boolean, is_null, is_string, lax_boolean, lax_integer, lax_number, unescape,
};

/// Tokens generated when the request names no limit. (vLLM's chat default is the whole context;
/// a simulator that did that would only make every test slow.)
const DEFAULT_TOKENS: u32 = 16;

#[derive(Debug)]
pub(crate) struct Ask {
    pub chat: bool,
    /// A chat by way of `/v1/responses`, and answered as such.
    pub responses: bool,
    pub prompts: Vec<Prompt>,
    pub n: u32,
    pub max_tokens: u32,
    pub stream: bool,
    pub include_usage: bool,
    pub continuous_usage: bool,
    pub logprobs: bool,
    pub ignore_eos: bool,
    /// Texts of the prompts, kept only if the answer must show their ids.
    pub return_ids: Option<Vec<Vec<u8>>>,
    /// The prompts as text, kept only if a turn of a conversation or a cache may hang on them.
    pub texts: Option<Vec<Vec<u8>>>,
    /// Where `kv_transfer_params` is in the body, when it is there and not null.
    pub kv: Option<(usize, usize)>,
}

impl Ask {
    pub fn choices(&self) -> u32 {
        self.prompts.len() as u32 * self.n
    }

    pub fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|p| u64::from(p.tokens)).sum()
    }

    /// The first prompt as text, if it was kept.
    pub fn text(&self) -> Option<&[u8]> {
        self.texts.as_ref()?.first().map(Vec::as_slice)
    }

    /// Tokens that a prompt's answer has, and whether it ends on EOS.
    pub fn length(&self, prompt: &Prompt) -> (u32, bool) {
        match prompt.eos_at.map(|k| k.saturating_sub(prompt.lead)) {
            Some(k) if !self.ignore_eos && k <= self.max_tokens => (k.max(1), true),
            _ => (self.max_tokens, false),
        }
    }
}

/// The fields as sent; for duplicates the last stands, as in Python.
#[derive(Default)]
struct Raw<'a> {
    model: Option<&'a [u8]>,
    prompt: Option<&'a [u8]>,
    messages: Option<&'a [u8]>,
    max_tokens: Option<&'a [u8]>,
    max_completion_tokens: Option<&'a [u8]>,
    min_tokens: Option<&'a [u8]>,
    n: Option<&'a [u8]>,
    best_of: Option<&'a [u8]>,
    stream: Option<&'a [u8]>,
    stream_options: Option<&'a [u8]>,
    temperature: Option<&'a [u8]>,
    top_p: Option<&'a [u8]>,
    logprobs: Option<&'a [u8]>,
    top_logprobs: Option<&'a [u8]>,
    ignore_eos: Option<&'a [u8]>,
    return_token_ids: Option<&'a [u8]>,
    suffix: Option<&'a [u8]>,
    kv: Option<&'a [u8]>,
    /// Members that only have to obey a rule.
    rare: Vec<(&'static str, &'a [u8])>,
}

impl<'a> Raw<'a> {
    fn read(body: &'a [u8], top: &[Member], chat: bool) -> Raw<'a> {
        let mut raw = Raw::default();
        for member in top {
            let value = &body[member.value.0 as usize..member.value.1 as usize];
            let key = unescape(&body[member.key.0 as usize..member.key.1 as usize]);
            let place = match &*key {
                b"model" => &mut raw.model,
                b"prompt" => &mut raw.prompt,
                b"messages" => &mut raw.messages,
                b"max_tokens" => &mut raw.max_tokens,
                b"max_completion_tokens" => &mut raw.max_completion_tokens,
                b"min_tokens" => &mut raw.min_tokens,
                b"n" => &mut raw.n,
                b"best_of" => &mut raw.best_of,
                b"stream" => &mut raw.stream,
                b"stream_options" => &mut raw.stream_options,
                b"temperature" => &mut raw.temperature,
                b"top_p" => &mut raw.top_p,
                b"logprobs" => &mut raw.logprobs,
                b"top_logprobs" => &mut raw.top_logprobs,
                b"ignore_eos" => &mut raw.ignore_eos,
                b"return_token_ids" => &mut raw.return_token_ids,
                b"suffix" => &mut raw.suffix,
                b"kv_transfer_params" => &mut raw.kv,
                key => {
                    if let Some(name) = rules::named(key) {
                        raw.rare.retain(|(known, _)| *known != name);
                        raw.rare.push((name, value));
                    }
                    continue;
                }
            };
            // Null stands for "not given", except where the API takes nothing but a value.
            let strict = match &*key {
                b"min_tokens" | b"ignore_eos" => true,
                b"n" => !chat,
                _ => false,
            };
            *place = if is_null(value) && !strict {
                None
            } else {
                Some(value)
            };
        }
        raw
    }
}

fn int(value: Option<&[u8]>, name: &'static str) -> Result<Option<i64>, ApiError> {
    let wrong = || ApiError::field(name, "Input should be a valid integer");
    value.map(|v| lax_integer(v).ok_or_else(wrong)).transpose()
}

fn float(value: Option<&[u8]>, name: &'static str) -> Result<Option<f64>, ApiError> {
    let wrong = || ApiError::field(name, "Input should be a valid number");
    value.map(|v| lax_number(v).ok_or_else(wrong)).transpose()
}

fn flag(value: Option<&[u8]>, name: &'static str) -> Result<bool, ApiError> {
    let wrong = || ApiError::field(name, "Input should be a valid boolean");
    value.map_or(Ok(false), |v| lax_boolean(v).ok_or_else(wrong))
}

/// Checks `body`, whose top-level members are `top`.
pub(crate) fn read(
    body: &[u8],
    top: &[Member],
    chat: bool,
    (model, max_model_len): (&str, u32),
    lens: &Lens,
    keep_text: bool,
) -> Result<Ask, ApiError> {
    let raw = Raw::read(body, top, chat);
    let stream = flag(raw.stream, "stream")?;
    let (include_usage, continuous_usage) = stream_options(&raw, stream)?;
    let wants_ids = flag(raw.return_token_ids, "return_token_ids")?;
    let mut texts = (wants_ids || keep_text).then(Vec::new);
    let prompts = if chat {
        let Some(messages) = raw.messages else {
            return Err(ApiError::field("messages", "Field required"));
        };
        let rendered = texts.as_mut().map(|t| {
            t.push(Vec::new());
            &mut t[0]
        });
        vec![of_messages(messages, rendered, lens)?]
    } else {
        let Some(prompt) = raw.prompt.filter(|p| *p != b"\"\"") else {
            return Err(ApiError::rule(
                "prompt",
                "Either prompt or prompt_embeds must be provided and non-empty.",
            ));
        };
        of_prompt(prompt, texts.as_mut())?
    };
    let kv = match raw.kv {
        Some(value) if value[0] != b'{' => {
            return Err(ApiError::field(
                "kv_transfer_params",
                "Input should be a valid dictionary",
            ));
        }
        Some(value) => {
            let at = value.as_ptr() as usize - body.as_ptr() as usize;
            Some((at, at + value.len()))
        }
        None => None,
    };
    let logprobs = logprobs(&raw, chat)?;
    rules::of_form(&raw.rare, chat, stream)?;
    check_model(&raw, model)?;
    let max_tokens = max_tokens(&raw, &prompts, chat, max_model_len)?;
    let n = sampling(&raw, stream)?;
    rules::of_values(&raw.rare)?;
    Ok(Ask {
        chat,
        responses: false,
        prompts,
        n,
        max_tokens,
        stream,
        include_usage,
        continuous_usage,
        logprobs,
        ignore_eos: flag(raw.ignore_eos, "ignore_eos")?,
        texts: texts.clone().filter(|_| keep_text),
        return_ids: texts.filter(|_| wants_ids),
        kv,
    })
}

fn check_model(raw: &Raw, model: &str) -> Result<(), ApiError> {
    let Some(value) = raw.model else {
        return Ok(());
    };
    if !is_string(value) {
        return Err(ApiError::field("model", "Input should be a valid string"));
    }
    let name = json::string(value);
    // An empty name counts as none.
    if name.is_empty() || &*name == model.as_bytes() {
        return Ok(());
    }
    Err(ApiError::no_model(&String::from_utf8_lossy(&name)))
}

fn stream_options(raw: &Raw, stream: bool) -> Result<(bool, bool), ApiError> {
    let Some(options) = raw.stream_options else {
        return Ok((false, false));
    };
    if options[0] != b'{' {
        return Err(ApiError::field(
            "stream_options",
            "Input should be a valid dictionary",
        ));
    }
    if !stream && json::members(options).next().is_some() {
        return Err(ApiError::rule(
            "stream_options",
            "Stream options can only be defined when `stream=True`.",
        ));
    }
    let mut usage = (false, false);
    for (key, value) in json::members(options) {
        match key {
            b"include_usage" => usage.0 = boolean(value).unwrap_or(false),
            b"continuous_usage_stats" => usage.1 = boolean(value).unwrap_or(false),
            _ => {}
        }
    }
    Ok((usage.0, usage.0 && usage.1))
}

/// The tokens to generate: what was asked for, cut to what fits into the context behind the prompt.
fn max_tokens(
    raw: &Raw,
    prompts: &[Prompt],
    chat: bool,
    max_model_len: u32,
) -> Result<u32, ApiError> {
    let mut limit = int(raw.max_tokens, "max_tokens")?;
    let completion = int(raw.max_completion_tokens, "max_completion_tokens")?;
    if chat && completion.is_some() {
        limit = completion;
    }
    let min = int(raw.min_tokens, "min_tokens")?.unwrap_or(0);
    let context = i64::from(max_model_len);
    if let Some(limit) = limit.filter(|l| *l > context) {
        let message = format!(
            "max_tokens={limit} cannot be greater than max_model_len={context}. Please request \
             fewer output tokens."
        );
        return Err(ApiError::value(Some("max_tokens"), message));
    }
    let longest = prompts.iter().map(|p| i64::from(p.tokens)).max();
    let room = context - longest.unwrap_or(0);
    if room < 0 {
        let what = if chat { "messages" } else { "prompt" };
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your {what} \
             contains at least {} input tokens. Please reduce the length of the input.",
            context + 1
        );
        return Err(ApiError::value(Some("input_tokens"), message));
    }
    let wanted = limit.unwrap_or(i64::from(DEFAULT_TOKENS)).min(room);
    if wanted < 1 {
        let message = format!("max_tokens must be at least 1, got {wanted}.");
        return Err(ApiError::value(Some("max_tokens"), message));
    }
    if min < 0 {
        let message = format!("min_tokens must be greater than or equal to 0, got {min}.");
        return Err(ApiError::value(None, message));
    }
    // Without a limit, a chat may go on to the end of the context.
    let most = if chat && limit.is_none() {
        room
    } else {
        wanted
    };
    if min > most {
        let message =
            format!("min_tokens must be less than or equal to max_tokens={most}, got {min}.");
        return Err(ApiError::value(None, message));
    }
    Ok(wanted.max(min) as u32)
}

/// The checks of vLLM's `SamplingParams`; gives `n`.
fn sampling(raw: &Raw, stream: bool) -> Result<u32, ApiError> {
    let n = int(raw.n, "n")?.unwrap_or(1);
    if n < 1 {
        return Err(ApiError::value(
            None,
            format!("n must be at least 1, got {n}."),
        ));
    }
    if n > 16_384 {
        return Err(ApiError::value(
            None,
            format!("n must be at most 16384, got {n}."),
        ));
    }
    // Known to older releases only; newer ones ignore it.
    if let Some(best_of) = int(raw.best_of, "best_of")? {
        if best_of < n {
            let message = format!(
                "best_of must be greater than or equal to n, got n={n} and best_of={best_of}."
            );
            return Err(ApiError::value(Some("best_of"), message));
        }
        if stream && best_of > n {
            return Err(ApiError::value(
                Some("best_of"),
                "best_of cannot be used with streaming",
            ));
        }
    }
    let temperature = float(raw.temperature, "temperature")?;
    if let Some(temperature) = temperature.filter(|t| *t < 0.0) {
        let message = format!("temperature must be non-negative, got {temperature}.");
        return Err(ApiError::value(Some("temperature"), message));
    }
    if let Some(temperature) = temperature.filter(|t| *t > 2.0) {
        let message = format!("temperature must be in [0, 2], got {temperature}.");
        return Err(ApiError::value(Some("temperature"), message));
    }
    // Anything above 0 is raised to 0.01 first.
    if n > 1 && temperature == Some(0.0) {
        let message = format!("n must be 1 when using greedy sampling, got {n}.");
        return Err(ApiError::value(None, message));
    }
    if let Some(top_p) = float(raw.top_p, "top_p")?.filter(|p| *p <= 0.0 || *p > 1.0) {
        let message = format!("top_p must be in (0, 1], got {top_p}.");
        return Err(ApiError::value(Some("top_p"), message));
    }
    if raw.suffix.is_some_and(|s| s != b"\"\"") {
        return Err(ApiError::value(
            Some("suffix"),
            "suffix is not currently supported",
        ));
    }
    Ok(n as u32)
}

fn logprobs(raw: &Raw, chat: bool) -> Result<bool, ApiError> {
    let top = count(raw.top_logprobs.filter(|_| chat), "top_logprobs")?;
    if !chat {
        let wanted = count(raw.logprobs, "logprobs")?;
        return at_most_20(wanted).map(|()| wanted.is_some());
    }
    let wanted = flag(raw.logprobs, "logprobs")?;
    if !wanted && top.is_some_and(|k| k != 0) {
        return Err(ApiError::rule(
            "top_logprobs",
            "when using `top_logprobs`, `logprobs` must be set to true.",
        ));
    }
    at_most_20(top.filter(|_| wanted)).map(|()| wanted)
}

/// How many logprobs: a number, or -1 for all.
pub(super) fn count(value: Option<&[u8]>, name: &'static str) -> Result<Option<i64>, ApiError> {
    if value.is_some_and(is_string) {
        return Err(ApiError::rule(
            name,
            format!("`{name}` must be an integer."),
        ));
    }
    let k = int(value, name)?;
    if k.is_some_and(|k| k < -1) {
        let message = format!("`{name}` must be a positive value or -1.");
        return Err(ApiError::rule(name, message));
    }
    Ok(k)
}

fn at_most_20(k: Option<i64>) -> Result<(), ApiError> {
    match k {
        Some(k) if !(0..=20).contains(&k) => Err(ApiError::value(
            Some("logprobs"),
            format!("Requested sample logprobs of {k}, which is greater than max allowed: 20"),
        )),
        _ => Ok(()),
    }
}
