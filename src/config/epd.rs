//! Encoder disaggregation: what the `epd` handshake is to do before another one.

use std::time::Duration;

use super::lmcache::Chat;
use super::reader::Report;
use super::{Config, Role};

/// Which of vLLM's `disagg_epd_proxy.py` the engines expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum Version {
    /// One encoder request per item, each for one token; media go to P and D as they came.
    V1,
    /// Images in batches, named by the hash of their url; references instead of media.
    V2,
    /// As V2, and a client's own names count; instances may register themselves.
    #[default]
    V3,
}

impl Version {
    pub const fn name(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
            Version::V3 => "v3",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Epd {
    pub version: Version,
    /// The handshake between P and D. `None`: nixl, or aggregated where there is no prefill instance.
    pub then: Option<String>,
    /// Prefill and decode are sent references in place of encoded media. Default on.
    pub rewrite: bool,
    /// Images in one encoder request at most. 0: any number. Env `ENCODER_MAX_BATCH_SIZE` wins under the
    /// old names.
    pub encoder_batch_max: usize,
    /// Media items in one request. Above: 400. Default 1024.
    pub media_max: usize,
    /// Instances come and go by `/instances`; there may be none at the start.
    pub dynamic_registration: bool,
    /// How long an instance that fails its probes is remembered. `None`: for ever. Default 900 s.
    pub evicted_ttl: Option<Duration>,
}

impl Default for Epd {
    fn default() -> Self {
        Epd {
            version: Version::default(),
            then: None,
            rewrite: true,
            encoder_batch_max: 0,
            media_max: 1024,
            dynamic_registration: false,
            evicted_ttl: Some(Duration::from_secs(900)),
        }
    }
}

/// How an instance takes part in encoder disaggregation as a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its data-parallel ranks: each request is for one of them, named in `X-data-parallel-rank`.
    pub dp_size: u32,
    /// Where encoders push to (Mooncake), by rank. Empty: they are fetched from.
    pub addresses: Vec<String>,
}

impl Default for Consumer {
    fn default() -> Self {
        Consumer {
            dp_size: 1,
            addresses: Vec::new(),
        }
    }
}

impl Consumer {
    /// Is there nothing to tell it or encoders?
    pub fn is_plain(&self) -> bool {
        self.dp_size == 1 && self.addresses.is_empty()
    }
}

/// Is this the handshake, or the one behind the encoders?
pub(super) fn runs(config: &Config, handshake: &str) -> bool {
    let then = config.epd.then.as_deref();
    config.handshake == handshake || config.handshake == "epd" && then == Some(handshake)
}

/// What a handshake behind the encoders cannot do with what they have made. `places`: of the instances.
pub(super) fn check_then(config: &Config, places: &[String], report: &mut Report) {
    let then = config.epd.then.as_deref().unwrap_or_default();
    match then {
        "sglang" => {
            let message = "SGLang engines know no ec_transfer_params: what vLLM's encoders make of media is lost on them";
            let fix = "use handshake: sglang without encoders, or a handshake of vLLM's";
            return report.problem("epd.then", message, fix);
        }
        "nixl_flat" => {
            let message = "engines that speak nixl_flat are older than encoders of their own: they read no ec_transfer_params";
            return report.problem("epd.then", message, "write then: nixl");
        }
        "lmcache" => {
            let chat = match config.lmcache.chat {
                Chat::Completions => "completions",
                Chat::Render => "render",
                Chat::Auto | Chat::Native => "",
            };
            if !chat.is_empty() {
                let message = format!(
                    "chat: {chat} gives prefill a chat as token ids by way of /v1/completions, where media have no place"
                );
                let fix = "write chat: native, or leave encoders out";
                report.problem("lmcache.chat", message, fix);
            }
        }
        _ => {}
    }
    for (instance, place) in config.instances.iter().zip(places) {
        let (role, consumer) = (instance.role, &instance.consumer);
        if role != Role::Prefill {
            continue;
        }
        if then == "mooncake" && consumer.dp_size > 1 {
            let message = "with then: mooncake the rank of prefill is the one that its bootstrap server names, not one of dp_size";
            report.problem(place, message, "remove dp_size");
        }
        if then == "shared_storage" && !consumer.addresses.is_empty() {
            let message = "with then: shared_storage decode may serve a request without prefill, but encodings would have been \
                           pushed to prefill";
            let fix = "remove ec_addresses, so that they are fetched, or choose another 'then'";
            report.problem(place, message, fix);
        }
    }
}
