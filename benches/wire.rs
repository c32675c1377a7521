//! The wire floor by itself: nanoseconds per operation, beside what a JSON tree would cost.
//!
//! `cargo bench --bench wire`. Compare the columns with each other, not with another machine's.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pdrelay::wire::chunk::ChunkScan;
use pdrelay::wire::head::RequestHead;
use pdrelay::wire::json::{self, Object};
use pdrelay::wire::openai::{self, Summary};

fn main() {
    let sizes = [
        ("1 KB chat", 1 << 10),
        ("100 KB chat", 100 << 10),
        ("4 MB chat", 4 << 20),
    ];
    println!("{:<28} {:>14} {:>14}", "", "ours ns/op", "serde_json tree");
    for (name, size) in sizes {
        let body = chat(size);
        let splice = per_op(|| {
            let object = Object::scan(&body, 128).unwrap();
            let pieces = json::splice(&body, &object, &openai::prefill_edits());
            black_box((Summary::of(&body, &object), pieces));
        });
        let tree = per_op(|| {
            let mut value: serde_json::Value = serde_json::from_slice(&body).unwrap();
            value["stream"] = false.into();
            value["max_tokens"] = 1.into();
            black_box(serde_json::to_vec(&value).unwrap());
        });
        println!(
            "{:<28} {splice:>14.0} {tree:>14.0}",
            format!("{name}: index and splice")
        );
    }
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy:8868\r\nuser-agent: bench\r\n\
        accept: */*\r\ncontent-type: application/json\r\nauthorization: Bearer abc\r\n\
        x-request-id: 0123456789\r\ncontent-length: 1024\r\n\r\n";
    println!(
        "{:<28} {:>14.0}",
        "request head",
        per_op(|| _ = black_box(RequestHead::parse(head)))
    );
    let mut chunk = Vec::new();
    pdrelay::wire::chunk::put_chunk(&mut chunk, &[b'x'; 200]);
    let mut scan = ChunkScan::default();
    let one = per_op(|| {
        _ = black_box(scan.feed(&chunk, |data| _ = black_box(data.len())));
    });
    println!("{:<28} {one:>14.0}", "one 200 B chunk, checked");
}

fn chat(size: usize) -> Vec<u8> {
    let text = "The quick brown fox \\\"jumps\\\" over the lazy dog. ".repeat(size / 48);
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":128,"stream":true,"stream_options":{{"include_usage":true}},"temperature":0.7}}"#
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
