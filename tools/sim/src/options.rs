//! What a simulated cluster is made of. Every field has a default, so a test names only what it is about.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::fault::FaultPlan;

/// One simulator: some engines on some threads.
#[derive(Clone, Debug)]
pub struct Options {
    pub engines: Vec<EngineOptions>,
    /// Everything random (engine ids, planned faults) is a pure function of it.
    pub seed: u64,
    /// Simulator threads; each serves all engines. Rates and batch limits are divided among them.
    pub threads: usize,
    /// Thread `i` is pinned to `cpus[i % len]`.
    pub cpus: Option<Vec<usize>>,
    pub host: IpAddr,
    /// Keep a transcript of what was received (the last 100,000 requests, at most 64 MiB per
    /// engine). Off in benchmarks.
    pub record: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            engines: Vec::new(),
            seed: 1,
            threads: 1,
            cpus: None,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            record: true,
        }
    }
}

impl Options {
    /// `prefill` prefill engines followed by `decode` decode engines, instant and with KV.
    pub fn pair(prefill: usize, decode: usize) -> Options {
        let roles = std::iter::repeat_n(Role::Prefill, prefill)
            .chain(std::iter::repeat_n(Role::Decode, decode));
        Options {
            engines: roles.map(EngineOptions::new).collect(),
            ..Options::default()
        }
    }
}

/// What an engine is for. With KV transfer on, each still does what it is asked, as vLLM does; the
/// role tells which requests are *wrong* for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Encode,
    Prefill,
    Decode,
    /// A single aggregated server: the reference for greedy text.
    Both,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Encode => "encode",
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Both => "both",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvMode {
    /// Pull by NIXL: P answers with `kv_transfer_params` if asked with the template.
    Nixl,
    /// Push by LMCache: P is told D's ports, and sends notices.
    Lmcache,
    /// SGLang: both are asked at once, and meet in a room of P's bootstrap server.
    Sglang,
    /// MooncakeConnector: both are asked at once with one transfer id, and D with P's engine id.
    Mooncake,
    /// OffloadingConnector with its peer-to-peer tier: D pulls what P keeps under an id.
    Offloading,
    /// All find what any of them has computed (LMCache, SharedStorageConnector), and say if it is too little.
    SharedStorage,
    None,
}

/// How media get from an encode engine to the others (vLLM's EC connectors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcMode {
    None,
    /// By what the media hold: encoders are asked for one token, and report nothing.
    V1,
    /// Encoders report handles and metadata; others may be shown those in place of the media.
    V2,
    /// `ec-example` of llm-d's sidecar: by what the media hold; encoders get the client's request with one item.
    Example,
    /// Its `ec-nixl`: the same, and encoders report handles; without those the others cannot fetch.
    Nixl,
}

/// What D does when KV cannot be loaded (`kv_load_failure_policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFailure {
    Fail,
    Recompute,
}

#[derive(Clone, Debug)]
pub struct EngineOptions {
    pub role: Role,
    /// 0 = any free port.
    pub port: u16,
    pub model: String,
    pub max_model_len: u32,
    pub timing: Timing,
    pub kv: KvMode,
    pub ec: EcMode,
    /// Encode engines report metadata with their handles.
    pub ec_metadata: bool,
    /// Where encoders push to, by data-parallel rank. Empty: this engine is no such consumer.
    pub ec_addresses: Vec<String>,
    /// Images in one prompt at most; 0: any number.
    pub images_max: usize,
    /// `file://` media are read.
    pub local_media: bool,
    /// With `KvMode::Lmcache`.
    pub lmcache: LmcacheOptions,
    /// The port of its bootstrap server (P of SGLang and Mooncake) or of its peers (offloading). 0 = any free one.
    pub side_port: u16,
    /// Data-parallel ranks, each an engine of its own to Mooncake.
    pub ranks: u32,
    /// How long one side of a meeting waits for the other (SGLang: 300 s; Mooncake: 480 s).
    pub patience: Duration,
    /// Usage says how much of the prompt was cached (`--enable-prompt-tokens-details`); else always 0.
    pub cached_details: bool,
    /// Hand-overs are with simulators in other processes, whose grants cannot be looked up here: params
    /// of the right form are taken at their word.
    pub kv_elsewhere: bool,
    /// `Authorization: Bearer <key>` is needed under `/v1`.
    pub require_key: Option<String>,
    pub strict: Strict,
    pub load_failure: LoadFailure,
    /// P hands over what ended on EOS, too. (vLLM 0.32 does; older releases answer with null params.)
    pub kv_on_stop: bool,
    /// How long P (or, in bidirectional mode, D) holds KV that nobody fetches.
    pub lease: Duration,
    /// Idle keep-alive connections are closed after this (uvicorn: 5 s). `None` = never.
    pub keep_alive: Option<Duration>,
    /// From D's head to the read of P's KV, when the two have met before.
    pub fetch_delay: Duration,
    /// The same on first contact. A client that leaves before it is over strands P's KV.
    pub first_contact_delay: Duration,
    /// Where it says that its KV is (`VLLM_NIXL_SIDE_CHANNEL_HOST`). Nobody is reached by a name that is
    /// not this machine's.
    pub side_host: String,
    /// D's answers carry `kv_transfer_params` too, for the next turn.
    pub bidirectional: bool,
    /// A chat's answer begins without white space, as those of trained models do.
    pub trimmed: bool,
    /// Text hangs on `temperature` and `seed`, too, as a real engine's does: without either, two answers
    /// to one prompt differ.
    pub sampling: bool,
    pub faults: FaultPlan,
}

impl EngineOptions {
    pub fn new(role: Role) -> EngineOptions {
        EngineOptions {
            role,
            port: 0,
            model: "dummy".into(),
            max_model_len: 131_072,
            timing: Timing::default(),
            kv: if matches!(role, Role::Both | Role::Encode) {
                KvMode::None
            } else {
                KvMode::Nixl
            },
            ec: EcMode::None,
            ec_metadata: true,
            ec_addresses: Vec::new(),
            images_max: 0,
            local_media: false,
            lmcache: LmcacheOptions::default(),
            side_port: 0,
            ranks: 1,
            patience: Duration::from_secs(300),
            cached_details: false,
            kv_elsewhere: false,
            require_key: None,
            strict: Strict::default(),
            load_failure: LoadFailure::Fail,
            kv_on_stop: true,
            lease: Duration::from_secs(30),
            keep_alive: Some(Duration::from_secs(5)),
            fetch_delay: Duration::ZERO,
            first_contact_delay: Duration::ZERO,
            side_host: "127.0.0.1".into(),
            bidirectional: false,
            trimmed: false,
            sampling: false,
            faults: FaultPlan::default(),
        }
    }

    /// Is there another port by which it is named to others?
    pub(crate) fn has_side_port(&self) -> bool {
        match self.kv {
            KvMode::Sglang | KvMode::Mooncake => self.role == Role::Prefill,
            KvMode::Offloading => true,
            _ => false,
        }
    }

    /// Nothing in this engine ever waits: requests may be answered in the turn that read them.
    pub(crate) fn instant(&self) -> bool {
        let t = &self.timing;
        t.prefill_tokens_per_s == 0.0
            && t.decode_tick.is_zero()
            && t.tick_per_seq.is_zero()
            && self.fetch_delay.is_zero()
            && self.first_contact_delay.is_zero()
    }
}

/// LMCache in an engine.
#[derive(Clone, Debug)]
pub struct LmcacheOptions {
    /// P: a request without a `disagg_spec` ends the engine, as the adapter's assertion does.
    pub producer: bool,
    /// P: workers, each with its own socket for notices and its own port at D.
    pub ranks: u32,
    /// D: where its workers listen, one of each per rank.
    pub init_ports: Vec<u16>,
    pub alloc_ports: Vec<u16>,
    /// P: from its answer's making to the notices. Zero: they go out before the answer.
    pub delay: Duration,
    /// P: prompts of fewer tokens are not stored.
    pub block: u32,
    /// There is a path for chats.
    pub chat: bool,
}

impl Default for LmcacheOptions {
    fn default() -> Self {
        LmcacheOptions {
            producer: true,
            ranks: 1,
            init_ports: Vec::new(),
            alloc_ports: Vec::new(),
            delay: Duration::ZERO,
            block: 16,
            chat: true,
        }
    }
}

/// What becomes of a P's transfers and notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notices {
    #[default]
    Sent,
    /// Neither the KV nor a word of it.
    Lost,
    /// The KV comes, the notice does not.
    Silent,
    Late(Duration),
    Twice,
    /// Among those of other proxies and other times.
    Foreign,
    /// The transfer fails, and says so.
    Failed,
    /// MLA: the first rank has it all, and it alone sends.
    FirstRank,
    /// Behind messages that nobody can read, under the old name.
    Garbage,
}

/// Rules a real engine does not enforce but that a proxy should keep: broken ones become
/// violations in the ledger, the request is served all the same.
#[derive(Clone, Copy, Debug)]
pub struct Strict {
    /// Every generate call must carry `X-Request-Id`.
    pub request_id: bool,
    /// D's `X-Request-Id` must be the one P was asked with (NixlPushConnector needs it).
    pub same_request_id: bool,
    /// P's params must reach D with every key they were issued with.
    pub whole_params: bool,
}

impl Default for Strict {
    fn default() -> Self {
        Strict {
            request_id: false,
            same_request_id: false,
            whole_params: true,
        }
    }
}

/// How long things take. All zero (the default) = answers at once, without a single timer.
#[derive(Clone, Debug)]
pub struct Timing {
    /// 0 = instant.
    pub prefill_tokens_per_s: f64,
    /// Tokens that one prefill step takes from the queue; longer prompts are done in pieces.
    pub prefill_batch_tokens: u32,
    /// One token per running sequence and tick. 0 = flat out.
    pub decode_tick: Duration,
    /// Sequences that decode at the same time; more wait.
    pub decode_batch: u32,
    /// Added to the tick for each running sequence.
    pub tick_per_seq: Duration,
    /// Each sequence has its own phase instead of all in lockstep.
    pub stagger: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            prefill_tokens_per_s: 0.0,
            prefill_batch_tokens: 8192,
            decode_tick: Duration::ZERO,
            decode_batch: 256,
            tick_per_seq: Duration::ZERO,
            stagger: false,
        }
    }
}
