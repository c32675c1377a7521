//! The wire floor by itself: nanoseconds and allocations per operation, beside what a JSON tree would cost.
//!
//! `cargo bench --bench wire`. Compare the columns with each other, not with another machine's.

#[path = "counting.rs"]
mod counting;

use std::hint::black_box;
use std::time::{Duration, Instant};

use pdrelay::wire::chunk::ChunkScan;
use pdrelay::wire::first_token::{FirstToken, Token};
use pdrelay::wire::head::RequestHead;
use pdrelay::wire::json::{self, Object};
use pdrelay::wire::openai::{self, Summary};
use pdrelay::wire::sse::{EventEdge, data_of, event_end};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn main() {
    // This thread's name is the program's.
    counting::watch("wire");
    let sizes = [
        ("1 KB chat", 1 << 10),
        ("100 KB chat", 100 << 10),
        ("4 MB chat", 4 << 20),
    ];
    println!(
        "{:<34} {:>12} {:>8} {:>16}",
        "", "ours ns/op", "allocs", "serde_json tree"
    );
    for (name, size) in sizes {
        bodies(name, &chat(size));
    }
    bodies("4 MB image", &image(4 << 20));
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy:8868\r\nuser-agent: bench\r\n\
        accept: */*\r\ncontent-type: application/json\r\nauthorization: Bearer abc\r\n\
        x-request-id: 0123456789\r\ncontent-length: 1024\r\n\r\n";
    show("request head", || _ = black_box(RequestHead::parse(head)));
    let mut chunk = Vec::new();
    pdrelay::wire::chunk::put_chunk(&mut chunk, &[b'x'; 200]);
    let mut scan = ChunkScan::default();
    show("one 200 B chunk, checked", || {
        _ = black_box(scan.feed(&chunk, |data| _ = black_box(data.len())));
    });
    let mut out = Vec::with_capacity(512);
    show("one 200 B chunk, framed", || {
        out.clear();
        pdrelay::wire::chunk::put_chunk(&mut out, &[b'x'; 200]);
        black_box(&out);
    });
    events();
}

fn bodies(name: &str, body: &[u8]) {
    let splice = || {
        let object = Object::scan(body, 128).unwrap();
        let edits = openai::prefill_edits();
        let pieces = json::splice(body, &object, &edits);
        black_box((Summary::of(body, &object), pieces));
    };
    let tree = per_op(|| {
        let mut value: serde_json::Value = serde_json::from_slice(body).unwrap();
        value["stream"] = false.into();
        value["max_tokens"] = 1.into();
        black_box(serde_json::to_vec(&value).unwrap());
    });
    let name = format!("{name}: index and splice");
    println!("{} {tree:>16.0}", line(&name, splice));
}

/// What is done with a stream's events: nothing but the edge in most, all of it until P's token is in its place.
fn events() {
    let event = br#"data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}"#;
    let event = [event, &b"\n\n"[..]].concat();
    let mut edge = EventEdge::default();
    show("edge of an event", || {
        edge.feed(&event);
        black_box(edge.clean());
    });
    let four = event.repeat(4);
    show("4 events, cut apart", || {
        let mut rest = &four[..];
        while let Some(end) = event_end(rest, 0) {
            black_box(data_of(&rest[..end]));
            rest = &rest[end..];
        }
    });
    let answer = br#"{"id":"cmpl-p","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" one","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;
    let object = Object::scan(answer, 128).unwrap();
    show("P's token put first", || {
        let token = Token::of(answer, &object, false).expect("a token");
        let (mut first, mut out) = (FirstToken::new(&token, false), Vec::new());
        first.feed(&event, &mut out);
        black_box(out);
    });
}

fn show(name: &str, f: impl FnMut()) {
    println!("{}", line(name, f));
}

fn line(name: &str, mut f: impl FnMut()) -> String {
    f();
    let before = counting::seen();
    f();
    let allocations = (counting::seen() - before).count;
    format!("{name:<34} {:>12.0} {allocations:>8}", per_op(f))
}

fn chat(size: usize) -> Vec<u8> {
    let text = "The quick brown fox \\\"jumps\\\" over the lazy dog. ".repeat(size / 48);
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":128,"stream":true,"stream_options":{{"include_usage":true}},"temperature":0.7}}"#
    )
    .into_bytes()
}

fn image(size: usize) -> Vec<u8> {
    let data = "iVBORw0KGgo".repeat(size / 11);
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"text","text":"What is this?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}],"max_tokens":128,"stream":true}}"#
    )
    .into_bytes()
}

/// The best of several short runs: noise only adds.
fn per_op(mut f: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let (began, mut n) = (Instant::now(), 0u32);
        while began.elapsed() < Duration::from_millis(60) {
            f();
            n += 1;
        }
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(n));
    }
    best
}
