//! Exact transcripts of each handshake, as the engines see it.

mod aggregated;
mod batches_never_share_a_grant;
mod client_params_never_reach_an_engine;
mod departed_clients_never_strand_kv;
pub mod epd;
mod lmcache;
mod mooncake;
mod multiturn;
mod nixl;
mod nixl_flat;
mod offloading;
mod params_never_change_on_their_way;
mod same_text;
mod sequential;
mod sglang;
mod shared_storage;
mod spent_params_never_travel_again;

use pdsim::Received;

/// What the client sends in most transcripts: everything that an edit could trip over.
const CHAT: &str = r#"{"model":"dummy", "messages":[{"role":"user","content":"Grüße, \"stream\":true \\"}], "stream" : true,"stream_options":{"include_usage":true},
 "max_tokens":7,"min_tokens":3,"n":1,"best_of":1,"seed":18446744073709551615,"temperature":1.50,"stop":[],
 "tools":[{"type":"function","function":{"name":"f","parameters":{"max_tokens":5,"n":[3,[4,{"stream":true}]]}}}],
 "response_format":{"type":"text"},"logprobs":true,"x_unknown":{"a":[1.0,1e2,[null]]} }"#;

/// The same as P must get it, but for the KV parameters: `"KV"` stands where they are added.
const CHAT_AT_P: &str = r#"{"model":"dummy", "messages":[{"role":"user","content":"Grüße, \"stream\":true \\"}], "stream" : false,
 "max_tokens":1,"n":1,"seed":18446744073709551615,"temperature":1.50,"stop":[],
 "tools":[{"type":"function","function":{"name":"f","parameters":{"max_tokens":5,"n":[3,[4,{"stream":true}]]}}}],
 "response_format":{"type":"text"},"logprobs":true,"x_unknown":{"a":[1.0,1e2,[null]]} KV}"#;

const COMPLETION: &str =
    r#"{"model":"dummy","prompt":"once upon","max_tokens":5,"logprobs":2,"return_token_ids":true}"#;

const COMPLETION_AT_P: &str = r#"{"model":"dummy","prompt":"once upon","max_tokens":1,"logprobs":2,"return_token_ids":true,"stream":falseKV}"#;

const TEMPLATE: &str = r#","kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

fn body(leg: &Received) -> &str {
    std::str::from_utf8(&leg.body).expect("UTF-8")
}

/// The head fields that a leg carries, sorted, without their values.
fn names(leg: &Received) -> Vec<String> {
    let mut names: Vec<String> = leg.headers.iter().map(|(n, _)| n.to_lowercase()).collect();
    names.sort();
    names
}
