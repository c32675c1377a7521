//! Encoder disaggregation: what the `epd` handshake is to do before another one.

use std::time::Duration;

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
