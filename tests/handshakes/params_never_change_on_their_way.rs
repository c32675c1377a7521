//! P's params are opaque: D gets them byte for byte, whatever they are, in a body of any size.

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{completion, config, rig_with};
use pdrelay::config::Role;
use pdrelay::server::Server;

const PARAMS: &str = r#"{ "big":123456789012345678901234567890,"f":1.0,"e":-1E+05,"s":"\u00e9\/\ud83d\ude00é",
	"nested":[[1, [2,{}]],  null, {"kv_transfer_params":[]}],"dup":1,"dup":2 }"#;

fn pair(p: &Scripted, d: &Scripted) -> Server {
    let roles = [Role::Prefill, Role::Decode];
    let config = config("nixl", &roles, &[p.address, d.address]);
    Server::start(config).expect("the proxy starts")
}

fn post(server: &Server, body: &str) -> crate::support::Response {
    crate::support::Client::connect(server.address).post("/v1/completions", body)
}

#[test]
fn every_byte_of_the_params_reaches_decode() {
    for spelled in ["kv_transfer_params", "kv_transfer\\u005fparams"] {
        let p = Scripted::start(move |_, _| {
            let body = format!(r#"{{"id":"x", "{spelled}" : {PARAMS} ,"usage":null}}"#);
            Say::Bytes(answer("200 OK", &body))
        });
        let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"choices":[]}"#)));
        let server = pair(&p, &d);
        for text in ["short".to_owned(), "long ".repeat(20_000)] {
            let sent = completion(&text, "");
            assert_eq!(post(&server, &sent).status, 200);
            let open = sent.strip_suffix('}').unwrap();
            let wanted = format!(r#"{open},"kv_transfer_params":{PARAMS}}}"#);
            assert!(d.bodies().pop() == Some(wanted), "{:?}", d.bodies().pop());
        }
    }
}

/// However P's answer is framed.
#[test]
fn chunked_and_unframed_answers_are_read_whole() {
    let body = format!(r#"{{"kv_transfer_params":{PARAMS}}}"#);
    let mut chunked =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for piece in body.as_bytes().chunks(11) {
        chunked.extend(format!("{:X};ext=\"1\"\r\n", piece.len()).as_bytes());
        chunked.extend(piece);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\ntrailer: 1\r\n\r\n");
    let unframed = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{body}");
    let early = format!(
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{}",
        String::from_utf8(answer("200 OK", &body)).unwrap()
    );
    for (bytes, close) in [
        (chunked, false),
        (unframed.into_bytes(), true),
        (early.into_bytes(), false),
    ] {
        let p = Scripted::start(move |_, _| match close {
            true => Say::Close(bytes.clone()),
            false => Say::Bytes(bytes.clone()),
        });
        let d = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"choices":[]}"#)));
        let server = pair(&p, &d);
        for _ in 0..2 {
            {
                let r = post(&server, &completion("x", ""));
                assert_eq!(r.status, 200, "{}", r.text());
            }
        }
        assert_eq!(d.bodies().len(), 2);
        assert!(d.bodies().iter().all(|b| b.contains(PARAMS)));
    }
}

/// Every member of a real engine's request that is not ours to read arrives at both engines.
#[test]
fn what_the_engines_alone_understand_passes_through() {
    let rig = rig_with("nixl", crate::support::engines(1, 1), |_| {});
    let more = r#","logprobs":true,"top_logprobs":3,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto","response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"n":{"max_tokens":1}}}},"structured_outputs":{"regex":"a+"},"vllm_xargs":{"k":0.10},"logit_bias":{"1":-100}"#;
    let response = rig.post("/v1/chat/completions", &crate::support::chat("x", more));
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.json()["choices"][0]["logprobs"]["content"].is_array());
    for engine in [0, 1] {
        let leg = rig.posts(engine).pop().unwrap();
        assert!(super::body(&leg).contains(more), "{}", super::body(&leg));
    }
}
