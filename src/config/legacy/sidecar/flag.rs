//! Every flag of the three generations: who has it, and what it is here.

use super::super::goflag::Takes;
use crate::config::sidecar::Generation;

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It does what it did.
    Done,
    /// Taken, and without effect: why.
    Ignored(&'static str),
    /// Refused: why.
    Later(&'static str),
}

pub struct Flag {
    pub name: &'static str,
    pub takes: Takes,
    /// First and last generation that had it.
    pub since: Generation,
    pub until: Generation,
    pub does: Use,
    pub about: &'static str,
}

const LOG: Use = Use::Ignored("logs have one form here; -v 4 and above log more");
const MORIIO: Use = Use::Later("MoRI-IO comes later: use nixlv2 without write mode");

const fn flag(
    name: &'static str,
    takes: Takes,
    generations: (Generation, Generation),
    does: Use,
    about: &'static str,
) -> Flag {
    Flag {
        name,
        takes,
        since: generations.0,
        until: generations.1,
        does,
        about,
    }
}

use Generation::{G1, G2, G3};
use Takes::{List, One, Switch};
use Use::Done;

const ALL: (Generation, Generation) = (G1, G3);
const OLD: (Generation, Generation) = (G1, G2);
const NEW: (Generation, Generation) = (G2, G3);
const ONLY_G3: (Generation, Generation) = (G3, G3);

/// Of ours, to be told apart from theirs.
pub const GENERATION: &str = "generation";
pub const PREFILL_FAILURE: &str = "prefill-failure";

#[rustfmt::skip]
pub static FLAGS: &[Flag] = &[
    flag("port", One, ALL, Done, "port to listen on (8000)"),
    flag("model-server-port", One, ONLY_G3, Done, "port of the decode engine (8200)"),
    flag("vllm-port", One, ALL, Done, "the same, as it was called (8001; g3: 8200)"),
    flag("data-parallel-size", One, NEW, Done, "ranks: each listens on port+rank (1)"),
    flag("connector", One, ALL, Done, "how KV gets from prefill to decode (nixlv2)"),
    flag("kv-connector", One, NEW, Done, "the same, as it is called now"),
    flag("ec-connector", One, NEW, Done, "how encoders hand over: ec-example, ec-nixl (none)"),
    flag("mooncake-bootstrap-port", One, ONLY_G3, Done, "where prefill engines are asked for their ids (8998)"),
    flag("p2p-connector-port", One, ONLY_G3, Done, "of the offloading connector's peers (7777)"),
    flag("enable-p2p-pull", Switch, ONLY_G3, Done, "cached prefixes may be pulled with nixlv2"),
    flag("secure-proxy", Switch, ALL, Done, "TLS; given as true: nothing but TLS"),
    flag("secure-serving", Switch, ONLY_G3, Done, "the same, as it is called now"),
    flag("cert-path", One, ALL, Done, "folder of tls.crt and tls.key"),
    flag("prefiller-use-tls", Switch, OLD, Done, "prefill engines speak TLS"),
    flag("decoder-use-tls", Switch, OLD, Done, "the decode engine speaks TLS"),
    flag("encoder-use-tls", Switch, (G2, G2), Done, "encoders speak TLS"),
    flag("prefiller-tls-insecure-skip-verify", Switch, OLD, Done, "any certificate will do"),
    flag("decoder-tls-insecure-skip-verify", Switch, OLD, Done, "any certificate will do"),
    flag("encoder-tls-insecure-skip-verify", Switch, (G2, G2), Done, "any certificate will do"),
    flag("enable-tls", List, NEW, Done, "who speaks TLS: prefiller, decoder, encoder"),
    flag("tls-insecure-skip-verify", List, NEW, Done, "whose certificates are not looked at"),
    flag("tls-min-version", One, ONLY_G3, Use::Ignored("TLS 1.2 is the least, 1.3 is preferred"), "least TLS version"),
    flag("tls-cipher-suites", List, ONLY_G3, Use::Ignored("the suites are rustls's: AEAD with forward secrecy"), "TLS cipher suites"),
    flag("enable-ssrf-protection", Switch, ALL, Done, "headers may name only pods of the InferencePool"),
    flag("inference-pool-namespace", One, OLD, Done, "its namespace"),
    flag("inference-pool-name", One, OLD, Done, "its name"),
    flag("inference-pool", One, NEW, Done, "NAMESPACE/NAME, or NAME (in default)"),
    flag("pool-group", One, NEW, Done, "its API group"),
    flag("enable-prefiller-sampling", Switch, NEW, Done, "one of several named prefill engines at random"),
    flag("max-idle-conns-per-host", One, ONLY_G3, Done, "idle connections kept per engine (1024)"),
    flag("prefill-max-retries", One, ONLY_G3, Done, "further tries of the same prefill engine (0)"),
    flag("prefill-retry-backoff", One, ONLY_G3, Done, "pause before each (200ms)"),
    flag("decode-chunk-size", One, ONLY_G3, Done, "tokens per decode request of a chat; 0: all in one"),
    flag("configuration", One, NEW, Done, "YAML with these flags as keys"),
    flag("configuration-file", One, NEW, Done, "the same, in a file"),
    flag("metrics-port", One, ONLY_G3, Done, "our own /metrics and /status; 0: nowhere"),
    flag("metrics-cert-dir", One, ONLY_G3, Use::Ignored("our own pages are plain HTTP"), "TLS for the metrics port"),
    flag("tracing", Switch, NEW, Use::Ignored("time per stage is in metrics and Server-Timing"), "OpenTelemetry"),
    flag("enable-speculative-prefill", Switch, ONLY_G3, Use::Later("speculative prefill is not there"), "warms the next turn"),
    flag("moriio-write-mode", Switch, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-local-pod-ip", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-decode-notify-port", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-decode-handshake-port", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-parallel-dispatch", Switch, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-parallel-decode-wait-timeout", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-prefill-handshake-port", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-prefill-notify-port", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-tp-size", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-dp-size", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-dp-size-local", One, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-remote-hosts", List, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("moriio-decode-hosts", List, ONLY_G3, MORIIO, "MoRI-IO"),
    flag("v", One, ALL, Done, "how much is logged"),
    flag("vmodule", One, ALL, LOG, "klog"),
    flag("logtostderr", Switch, ALL, LOG, "klog"),
    flag("alsologtostderr", Switch, ALL, LOG, "klog"),
    flag("stderrthreshold", One, ALL, LOG, "klog"),
    flag("log_dir", One, ALL, LOG, "klog"),
    flag("log_file", One, ALL, LOG, "klog"),
    flag("log_file_max_size", One, ALL, LOG, "klog"),
    flag("log_backtrace_at", One, ALL, LOG, "klog"),
    flag("add_dir_header", Switch, ALL, LOG, "klog"),
    flag("skip_headers", Switch, ALL, LOG, "klog"),
    flag("skip_log_headers", Switch, ALL, LOG, "klog"),
    flag("one_output", Switch, ALL, LOG, "klog"),
    flag("zap-devel", Switch, NEW, LOG, "zap"),
    flag("zap-encoder", One, NEW, LOG, "zap"),
    flag("zap-log-level", One, NEW, Done, "how much is logged: error, info, debug, or a number"),
    flag("zap-stacktrace-level", One, NEW, LOG, "zap"),
    flag("zap-time-encoding", One, NEW, LOG, "zap"),
    flag(GENERATION, One, ALL, Done, "g1, g2 or g3: whose habits count where they differ (pdrelay's own)"),
    flag(PREFILL_FAILURE, One, ALL, Done, "status, decode_only or retry_then_verbatim (pdrelay's own)"),
];

pub fn known(name: &str) -> Option<(&'static str, Takes)> {
    let found = FLAGS.iter().find(|flag| flag.name == name);
    found.map(|flag| (flag.name, flag.takes))
}

/// The page that `-h` shows.
pub fn help(program: &str) -> String {
    let mut text = format!("Usage of {program} (llm-d's sidecar, on pdrelay); one dash or two:\n");
    for flag in FLAGS {
        let value = match flag.takes {
            Takes::Switch => "",
            Takes::One => " VALUE",
            Takes::List => " A,B",
        };
        let more = match flag.does {
            Use::Done => String::new(),
            Use::Ignored(why) => format!(" [no effect: {why}]"),
            Use::Later(why) => format!(" [refused: {why}]"),
        };
        text += &format!("  --{}{value}\n        {}{more}\n", flag.name, flag.about);
    }
    text
}
