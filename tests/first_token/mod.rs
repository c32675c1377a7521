//! `first_token_source: prefill`: what the client, P and D see of it.

mod failures_never_pass_as_tokens;
mod legs_never_draw_different_tokens;
mod text_never_differs_from_decode_first;
mod tokens_never_lose_their_stream;

use pdrelay::config::{FirstTokenSource, Role};
use pdrelay::server::Server;
use pdsim::EngineOptions;

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Response, Rig, config, rig_with};

/// A rig whose streams begin with P's token.
fn p_first(handshake: &str, engines: Vec<EngineOptions>) -> Rig {
    rig_with(handshake, engines, |c| {
        c.first_token_source = FirstTokenSource::Prefill
    })
}

/// How many requests ended so.
fn outcome(rig: &Rig, word: &str) -> f64 {
    rig.metric(&format!("pdrelay_first_tokens_total{{outcome=\"{word}\"}}"))
}

/// A proxy over two engines that say what the test wants, told apart by their tokens.
struct Stage {
    server: Server,
    p: Scripted,
    d: Scripted,
}

impl Stage {
    fn new(p: Vec<u8>, d: impl Fn(usize) -> Say + Send + Sync + 'static) -> Stage {
        let p = Scripted::start(move |_, _| Say::Bytes(p.clone()));
        let d = Scripted::start(move |number, _| d(number));
        let roles = [Role::Prefill, Role::Decode];
        let mut config = config("sequential", &roles, &[p.address, d.address]);
        config.first_token_source = FirstTokenSource::Prefill;
        config.health_check.enabled = false;
        let server = Server::start(config).expect("the proxy starts");
        Stage { server, p, d }
    }

    fn post(&self, path: &str, body: &str) -> Response {
        Client::connect(self.server.address).post(path, body)
    }
}

/// P's answer: one token of a completion.
fn p_says(text: &str, finish: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"id":"p-id","object":"text_completion","created":1,"model":"p-model","choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}],"usage":{{"prompt_tokens":3,"total_tokens":4,"completion_tokens":1}}}}"#
    );
    answer("200 OK", &body)
}

/// The same of a chat.
fn p_chats(text: &str, finish: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"id":"p-id","object":"chat.completion","created":1,"model":"p-model","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":{finish}}}],"usage":{{"prompt_tokens":3,"total_tokens":4,"completion_tokens":1}}}}"#
    );
    answer("200 OK", &body)
}

/// An event of D, with whatever stands before and behind its choice.
fn d_event(choice: &str) -> String {
    format!(
        "data: {{\"id\":\"d-id\",\"object\":\"text_completion\",\"created\":9,\"model\":\"d-model\",\"choices\":[{choice}]}}\n\n"
    )
}

fn d_text(text: &str) -> String {
    d_event(&format!(
        r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":null}}"#
    ))
}

fn d_delta(delta: &str) -> String {
    d_event(&format!(
        r#"{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":null}}"#
    ))
}

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-d: 1\r\n";

/// A stream as one chunk for each of its pieces.
fn chunked<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

fn d_chunked<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let head = format!("{SSE}transfer-encoding: chunked\r\n\r\n").into_bytes();
    [head, chunked(pieces)].concat()
}
