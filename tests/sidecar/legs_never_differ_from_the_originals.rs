//! What engines get in each generation, byte by byte, and what becomes of their answers.

use super::{T6, beside, fields, post, says};
use crate::support::scripted::{Say, Scripted, answer};

const CLIENT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"seed":9007199254740993,"max_tokens":8,"stream":true,"stream_options":{"include_usage":true},"kv_transfer_params":{"of":"the client"}}"#;
const PARAMS: &str = r#"{"remote_block_ids":[[1,2]],"remote_engine_id":"e","big":18446744073709551615,"unknown":null}"#;

fn prefill() -> Scripted {
    Scripted::start(|_, _| {
        let body = format!(
            r#"{{"id":"p","kv_transfer_params":{PARAMS},"usage":{{"prompt_tokens":9,"prompt_tokens_details":{{"cached_tokens":4}}}}}}"#
        );
        Say::Bytes(answer("200 OK", &body))
    })
}

#[test]
fn nixlv2_sends_what_each_generation_sent() {
    // Large numbers stay what they are: the original made floats of them.
    let base = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"seed":9007199254740993,"max_tokens":1,"stream":false"#;
    for (program, more, min) in [
        ("routing-sidecar", "", ""),
        ("sidecar", "--generation=g2", ""),
        ("sidecar", "", r#","min_tokens":1"#),
    ] {
        let (p, d) = (prefill(), says("200 OK", "{}"));
        let args: Vec<&str> = [more].into_iter().filter(|arg| !arg.is_empty()).collect();
        let server = beside(program, d.address, &args);
        let id = "x-request-id: the-gateway-s\r\naccept-encoding: gzip\r\n";
        assert_eq!(
            post(&server, "/v1/chat/completions", CLIENT, &p, id).status,
            200
        );
        let (at_p, at_d) = (p.requests().remove(0), d.requests().remove(0));
        let body = at_p.split_once("\r\n\r\n").unwrap().1;
        let expected =
            format!(r#"{base},"kv_transfer_params":{T6},"max_completion_tokens":1{min}}}"#);
        assert_eq!(body, expected, "{program} {more}");
        // D: as the client sent it, and P's params, whole.
        let body = at_d.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body, CLIENT.replace(r#"{"of":"the client"}"#, PARAMS));
        for leg in [&at_p, &at_d] {
            // One line, where the original added a second one.
            assert_eq!(fields(leg, "x-request-id"), ["the-gateway-s"]);
            assert!(fields(leg, "x-prefiller-host-port").is_empty());
            assert!(
                fields(leg, "accept-encoding").is_empty(),
                "its answer is read"
            );
            assert_eq!(fields(leg, "x-forwarded-for"), ["127.0.0.1"]);
            assert!(leg.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
        }
    }
}

#[test]
fn each_api_has_its_own_caps() {
    for (path, sent, at_p) in [
        (
            "/v1/responses",
            r#"{"input":"x","max_output_tokens":99}"#,
            r#"{"input":"x","max_output_tokens":1,"stream":false,"kv_transfer_params":T6}"#,
        ),
        (
            "/v1/messages",
            r#"{"messages":[],"max_tokens":99}"#,
            r#"{"messages":[],"max_tokens":1,"stream":false,"max_completion_tokens":1,"min_tokens":1,"kv_transfer_params":T6}"#,
        ),
        (
            "/inference/v1/generate",
            r#"{"token_ids":[1],"sampling_params":{"max_tokens":99,"seed":1}}"#,
            r#"{"token_ids":[1],"sampling_params":{"max_tokens":1,"seed":1,"min_tokens":1},"stream":false,"kv_transfer_params":T6}"#,
        ),
    ] {
        let (p, d) = (prefill(), says("200 OK", "{}"));
        let server = beside("sidecar", d.address, &[]);
        assert_eq!(post(&server, path, sent, &p, "").status, 200, "{path}");
        assert_eq!(p.bodies(), [at_p.replace("T6", T6)], "{path}");
        // An older one leaves the path to the engine alone.
        let old = beside("routing-sidecar", d.address, &[]);
        assert_eq!(post(&old, path, sent, &p, "").status, 200);
        assert_eq!((p.bodies().len(), d.bodies().len()), (1, 2), "{path}");
        assert_eq!(d.bodies()[1], sent);
    }
}

#[test]
fn params_that_p_does_not_give_are_null_at_d() {
    for said in [r#"{"id":"p"}"#, r#"{"kv_transfer_params":null}"#] {
        let p = Scripted::start(move |_, _| Say::Bytes(answer("200 OK", said)));
        let d = says("200 OK", "{}");
        let server = beside("sidecar", d.address, &[]);
        let sent = r#"{"prompt":"x"}"#;
        assert_eq!(post(&server, "/v1/completions", sent, &p, "").status, 200);
        assert_eq!(d.bodies(), [r#"{"prompt":"x","kv_transfer_params":null}"#]);
    }
}

#[test]
fn cached_tokens_are_p_s_in_answers_and_in_streams() {
    let d = says(
        "200 OK",
        r#"{"id":"x","usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":9}},"n":1.50}"#,
    );
    let server = beside("sidecar", d.address, &[]);
    let response = post(
        &server,
        "/v1/completions",
        r#"{"prompt":"x"}"#,
        &prefill(),
        "",
    );
    assert!(response.complete);
    assert_eq!(
        response.text(),
        r#"{"id":"x","usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}},"n":1.50}"#
    );
    // As a stream, cut in the middle of the number.
    let d = Scripted::start(|_, _| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |data: &str| format!("{:x}\r\n{data}\r\n", data.len()).into_bytes();
        let first = chunk(
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"usage\":{\"prompt_tokens\":9,\"prompt_tokens_deta",
        );
        let second = chunk("ils\":{\"cached_tokens\":9}}}\n\ndata: [DONE]\n\n");
        let pause = std::time::Duration::from_millis(20);
        Say::Slowly(
            vec![head.into(), first, second, b"0\r\n\r\n".to_vec()],
            pause,
        )
    });
    let server = beside("sidecar", d.address, &[]);
    let response = post(
        &server,
        "/v1/completions",
        r#"{"prompt":"x","stream":true}"#,
        &prefill(),
        "",
    );
    assert!(response.complete);
    assert_eq!(
        response.events(),
        [
            r#"{"choices":[{"text":"a"}]}"#,
            r#"{"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}}"#,
            "[DONE]"
        ]
    );
}

#[test]
fn every_way_of_naming_p_is_understood() {
    let (d, wrong) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let p = prefill();
    for program in ["routing-sidecar", "sidecar"] {
        let server = beside(program, d.address, &[]);
        let at = p.address;
        for named in [
            format!("x-prefiller-host-port: http://{at}\r\n"),
            format!("X-Prefiller-Host-Port:  {at} , {}\r\n", wrong.address),
            format!(
                "x-prefiller-host-port: {at}\r\nx-prefiller-host-port: {}\r\n",
                wrong.address
            ),
            format!("x-prefiller-url: http://{at}/\r\n"),
            format!(
                "x-prefiller-host-port: {at}\r\nx-prefiller-url: http://{}\r\n",
                wrong.address
            ),
            format!("x-prefiller-host-port: localhost:{}\r\n", at.port()),
        ] {
            let before = p.bodies().len();
            let response =
                super::post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &named);
            assert_eq!(response.status, 200, "{named}: {}", response.text());
            assert_eq!(p.bodies().len(), before + 1, "{program} {named}");
        }
        for named in ["nowhere", "p:port", "p:1/path", "unix:/x"] {
            let more = format!("x-prefiller-host-port: {named}\r\n");
            let response =
                super::post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &more);
            assert_eq!(response.status, 400, "{named}: {}", response.text());
            assert_eq!(response.json()["type"], "BadRequestError");
        }
    }
    assert!(wrong.bodies().is_empty());
    // With sampling, both of two are used.
    let server = beside("sidecar", d.address, &["--enable-prefiller-sampling"]);
    let other = prefill();
    let before = p.bodies().len();
    for _ in 0..64 {
        let named = format!("x-prefiller-host-port: {},{}\r\n", p.address, other.address);
        super::post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &named);
    }
    let (first, second) = (p.bodies().len() - before, other.bodies().len());
    assert_eq!(first + second, 64);
    assert!(first > 10 && second > 10, "{first} and {second}");
}
