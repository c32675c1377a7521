//! A store that all engines share (LMCache, SharedStorageConnector): each puts there what it has computed, and finds
//! what another has. A request may say how much of its prompt must be there (`cache_hit_threshold`, 0 to 1); an engine
//! that finds less computes nothing and says so: 200, no token, `finish_reason: cache_threshold` (llm-d's vLLM;
//! vllm-project/vllm#24520). That goes for prefill engines, too: a P that is asked with the client's threshold may
//! prefill nothing.

use super::error::ApiError;
use crate::json::{Member, is_null, lax_number};

/// What the request asks for; 0: whatever there is.
pub(crate) fn threshold(body: &[u8], top: &[Member]) -> Result<f64, ApiError> {
    let name = "cache_hit_threshold";
    let named = |m: &&Member| &body[m.key.0 as usize..m.key.1 as usize] == name.as_bytes();
    let Some(member) = top.iter().rev().find(named) else {
        return Ok(0.0);
    };
    let value = &body[member.value.0 as usize..member.value.1 as usize];
    if is_null(value) {
        return Ok(0.0);
    }
    let wrong = || ApiError::field(name, "Input should be a valid number");
    let threshold = lax_number(value).ok_or_else(wrong)?;
    match (0.0..=1.0).contains(&threshold) {
        true => Ok(threshold),
        false => Err(ApiError::value(
            Some("cache_hit_threshold"),
            format!("cache_hit_threshold must be between 0.0 and 1.0, got {threshold}."),
        )),
    }
}
