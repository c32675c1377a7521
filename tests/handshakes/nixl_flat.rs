//! `nixl_flat`: P's four fields reach D at the top level, as P wrote them.

use crate::sidecar::{beside, post, says};
use crate::support::scripted::{Say, Scripted, answer};

#[test]
fn fields_travel_from_p_to_d() {
    let p = Scripted::start(|_, _| {
        let body = r#"{"id":"p","remote_block_ids":[1,2,3],"remote_engine_id":"e-1","remote_host":"10.0.0.1","remote_port":5557,"other":1}"#;
        Say::Bytes(answer("200 OK", body))
    });
    let d = says("200 OK", r#"{"from":"d"}"#);
    let server = beside("routing-sidecar", d.address, &["-connector=nixl"]);
    let sent = r#"{"prompt":"x","max_tokens":9,"seed":9007199254740993,"stream":true}"#;
    let response = post(&server, "/v1/completions", sent, &p, "");
    assert_eq!(response.text(), r#"{"from":"d"}"#);
    // No cap: such engines stop by themselves.
    let at_p = r#"{"prompt":"x","max_tokens":9,"seed":9007199254740993,"stream":false,"do_remote_decode":true}"#;
    assert_eq!(p.bodies(), [at_p]);
    let at_d = r#"{"prompt":"x","max_tokens":9,"seed":9007199254740993,"stream":true,"do_remote_prefill":true,"remote_block_ids":[1,2,3],"remote_engine_id":"e-1","remote_host":"10.0.0.1","remote_port":5557}"#;
    assert_eq!(d.bodies(), [at_d]);
}
