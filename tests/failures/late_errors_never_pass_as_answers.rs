//! vLLM sends the head of a stream before it has P's KV. What comes instead of tokens, if it cannot get it, is no
//! answer: nothing has reached the client, so others are asked, or it hears the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pdrelay::config::{Config, Role};
use pdrelay::server::Server;

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Response, completion, config};

const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const LOST: &str = r#"data: {"error": {"message": "KV load failure", "type": "InternalServerError", "code": 500}}"#;
const WELL: &str = r#"data: {"id":"d","object":"text_completion","choices":[{"index":0,"text":"well","finish_reason":"stop"}]}"#;

/// A stream of one event, its head first and the rest in small pieces.
fn stream(event: &str) -> Say {
    stream_cut(event, 11)
}

/// The same, its body cut here.
fn stream_cut(event: &str, at: usize) -> Say {
    let payload = format!("{event}\n\ndata: [DONE]\n\n");
    let body = format!("{:x}\r\n{payload}\r\n0\r\n\r\n", payload.len());
    let (begin, rest) = body.as_bytes().split_at(body.len().min(at));
    let pieces = vec![HEAD.into(), begin.to_vec(), rest.to_vec()];
    Say::Slowly(pieces, Duration::from_millis(10))
}

struct Stage {
    server: Server,
    p: Scripted,
    d: [Scripted; 2],
}

impl Stage {
    /// `first`: what the first of all requests to a D gets; the others get a good stream.
    fn new(first: impl Fn() -> Say + Send + Sync + 'static) -> Stage {
        Stage::failing(1, first)
    }

    fn failing(times: usize, bad: impl Fn() -> Say + Send + Sync + 'static) -> Stage {
        Stage::with(times, bad, |_| {})
    }

    fn with(
        times: usize,
        bad: impl Fn() -> Say + Send + Sync + 'static,
        change: impl FnOnce(&mut Config),
    ) -> Stage {
        let granted = r#"{"id":"p","choices":[{"index":0,"text":"w","finish_reason":"length"}],"kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e","remote_block_ids":[1],"remote_host":"h","remote_port":1}}"#;
        let p = Scripted::start(move |_, _| Say::Bytes(answer("200 OK", granted)));
        let (bad, asked) = (Arc::new(bad), Arc::new(AtomicUsize::new(0)));
        let d = [(); 2].map(|()| {
            let (bad, asked) = (bad.clone(), asked.clone());
            Scripted::start(
                move |_, _| match asked.fetch_add(1, Ordering::SeqCst) < times {
                    true => bad(),
                    false => stream(WELL),
                },
            )
        });
        let roles = [Role::Prefill, Role::Decode, Role::Decode];
        let addresses = [p.address, d[0].address, d[1].address];
        let mut config = config("nixl", &roles, &addresses);
        config.health_check.enabled = false;
        change(&mut config);
        let server = Server::start(config).expect("the proxy starts");
        Stage { server, p, d }
    }

    /// The sum of this metric's samples that have this in them.
    fn sum(&self, metric: &str, with: &str) -> f64 {
        let page = Client::connect(self.server.address).get("/metrics").text();
        let lines = page
            .lines()
            .filter(|l| l.starts_with(metric) && l.contains(with));
        lines
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn ask(&self) -> Response {
        let body = completion("x", r#","stream":true,"max_tokens":4"#);
        Client::connect(self.server.address).post("/v1/completions", &body)
    }

    fn asked(&self) -> [usize; 3] {
        [&self.p, &self.d[0], &self.d[1]].map(|engine| engine.requests().len())
    }
}

#[test]
fn another_pair_serves_what_one_could_not() {
    let bad: [fn() -> Say; 6] = [
        || stream(LOST),
        || stream(&format!(": ping\n\n{LOST}")),
        || stream(&format!("\n: ping\n\n: ping\n\n{LOST}")),
        // The size of the chunk, all of the comment, half of the error.
        || stream_cut(&format!(": ping\n\n{LOST}"), 4 + 8 + 20),
        || Say::Close(HEAD.into()),
        || Say::Reset(HEAD.into()),
    ];
    for bad in bad {
        let stage = Stage::new(bad);
        let response = stage.ask();
        assert_eq!((response.status, response.complete), (200, true));
        assert_eq!(response.events(), [&WELL["data: ".len()..], "[DONE]"]);
        // A new prefill, since the params are spent; and the other D.
        assert_eq!(stage.asked(), [2, 1, 1]);
    }
}

#[test]
fn with_nobody_left_it_is_an_error_with_its_own_status() {
    let stage = Stage::failing(usize::MAX, || stream(LOST));
    let response = stage.ask();
    assert_eq!(response.status, 502, "{}", response.text());
    let text = response.text();
    assert!(
        text.contains("its stream began with an error: KV load failure"),
        "{text}"
    );
}

/// The client's own mistake, noticed late.
#[test]
fn a_4xx_in_a_stream_stays_the_answer() {
    let refused = r#"data: {"error":{"message":"no such token","code":400}}"#;
    let stage = Stage::new(move || stream(refused));
    let response = stage.ask();
    assert_eq!((response.status, response.complete), (200, true));
    assert_eq!(response.events(), [&refused["data: ".len()..], "[DONE]"]);
    assert_eq!(stage.asked().iter().sum::<usize>(), 2);
}

/// What would be too large from another D as well is held against none.
#[test]
fn a_first_event_above_the_limit_ejects_nobody() {
    let large = || stream(&format!("data: {}", "x".repeat(1_000_000)));
    let stage = Stage::with(usize::MAX, large, |config| {
        config.limits.answer_bytes_max = 16 << 10;
        config.retry.max_retries = 0;
    });
    for _ in 0..12 {
        let response = stage.ask();
        assert_eq!(response.status, 502);
        let text = response.text();
        assert!(text.contains("too large"), "{text}");
    }
    let failures = stage.sum("pdrelay_upstream_failures_total", "bad_response");
    assert_eq!(failures, 12.0);
    assert_eq!(stage.sum("pdrelay_ejections_total", ""), 0.0);
}

/// A stream that ends with its connection, and does not begin: our own end of the wait is not its end.
#[test]
fn a_stream_that_never_begins_is_its_engines_failure() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let stage = Stage::with(
        usize::MAX,
        || Say::Bytes(head.into()),
        |config| {
            config.timeouts.between_chunks = Duration::from_millis(200);
        },
    );
    let response = stage.ask();
    assert_eq!(response.status, 504, "{}", response.text());
    let named = |d: &Scripted| response.text().contains(&d.address.to_string());
    assert!(stage.d.iter().any(named), "{}", response.text());
    assert_eq!(stage.sum("pdrelay_upstream_failures_total", "timeout"), 1.0);
}
