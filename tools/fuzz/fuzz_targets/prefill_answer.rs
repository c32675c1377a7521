//! P's whole answer off the wire, and its `kv_transfer_params` put into D's request: once, and whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::chunk::ChunkScan;
use pdrelay::wire::head::{Framing, ResponseHead};
use pdrelay::wire::json::{Edit, Object};
use pdrelay::wire::openai::KV_PARAMS;
use pdrelay_fuzz::Dice;
use pdrelay_fuzz::head::end_of;
use pdrelay_fuzz::json::{pairs, spliced};

/// What clients may send, some of them with params of their own.
const CLIENTS: [&str; 7] = [
    r#"{"model":"m","prompt":"a","stream":true}"#,
    r#"{}"#,
    r#" { "kv_transfer_params" : {"a":[1,"}"]} } "#,
    r#"{"kv_transfer_params":null,"prompt":"a","kv_transfer_params":{"do_remote_prefill":true}}"#,
    r#"{"\u006bv_transfer_params":1,"prompt":["a","b"]}"#,
    "{\r\n\t\"messages\": [{\"role\":\"user\",\"content\":\"kv_transfer_params\"}],\n\"n\": 1.50 }\n",
    r#"{"prompt":{"kv_transfer_params":1},"kv_transfer_params ":2}"#,
];

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice::of(data);
    let client = dice.choose(&CLIENTS).as_bytes();
    // As it came, and, so that most inputs get this far, the body alone.
    let body = match answer(data) {
        Some(body) => body,
        None => data.to_vec(),
    };
    let Ok(answer) = Object::scan(&body, 128) else {
        return;
    };
    let Some(params) = answer.get(&body, KV_PARAMS) else {
        return;
    };
    if let Some(theirs) = pairs(&body) {
        let last = theirs.iter().rfind(|(name, _)| name == KV_PARAMS);
        assert_eq!(last.map(|(_, v)| v.as_bytes()), Some(params));
    }

    let request = Object::scan(client, 128).expect("clients send objects");
    let edits = [Edit::Set(KV_PARAMS, params.to_vec().into())];
    let out = spliced(client, &request, &edits);
    if let Some(leg) = pairs(&out) {
        let given: Vec<_> = leg.iter().filter(|(name, _)| name == KV_PARAMS).collect();
        assert_eq!(given.len(), 1);
        assert_eq!(
            given[0].1.as_bytes(),
            params,
            "the params changed on their way"
        );
        let own = |(name, _): &&(String, &str)| name != KV_PARAMS;
        let before = pairs(client).expect("JSON");
        assert!(leg.iter().filter(own).eq(before.iter().filter(own)));
    } else {
        // Only params that are no JSON themselves make D's body none.
        assert!(serde_json::from_slice::<&serde_json::value::RawValue>(params).is_err());
    }
});

/// The answer's body, if the bytes are a head and a whole body.
fn answer(data: &[u8]) -> Option<Vec<u8>> {
    let end = end_of(data).ok()??;
    let head = ResponseHead::parse(&data[..end]).ok()?;
    let rest = &data[end..];
    match head.framing(false) {
        Framing::Length(n) => Some(rest.get(..usize::try_from(n).ok()?)?.to_vec()),
        Framing::Close => Some(rest.to_vec()),
        Framing::Chunked => {
            let mut scan = ChunkScan::default();
            let mut body = Vec::new();
            scan.feed(rest, |data| body.extend_from_slice(data)).ok()?;
            scan.done().then_some(body)
        }
    }
}
