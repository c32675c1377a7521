//! Streams: the shape of the events, the pace, and clients that leave.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::*;

fn values(answer: &Answer) -> Vec<Value> {
    let events = answer.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let parse = |e: &String| serde_json::from_str(e).unwrap();
    events[..events.len() - 1].iter().map(parse).collect()
}

fn text_of(events: &[Value], choice: u64) -> String {
    let of = |e: &Value| {
        let c = e["choices"]
            .as_array()?
            .iter()
            .find(|c| c["index"] == choice)?
            .clone();
        Some(
            c["text"]
                .as_str()
                .or(c["delta"]["content"].as_str())?
                .to_owned(),
        )
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn a_stream_never_differs_from_the_whole_answer() {
    for tick in [0, 2] {
        let (_sim, _, d, _) = trio(|e| e.timing.decode_tick = Duration::from_millis(tick));
        let messages = json!([{"role": "user", "content": "x"}]);
        for (path, mut body) in [
            (
                COMPLETIONS,
                json!({"prompt": "a", "max_tokens": 5, "n": 2, "logprobs": 1}),
            ),
            (
                CHAT,
                json!({"messages": messages, "max_tokens": 5, "logprobs": true}),
            ),
            (
                COMPLETIONS,
                json!({"prompt": "a [[eos@3]]", "max_tokens": 9, "return_token_ids": true}),
            ),
            (
                COMPLETIONS,
                json!({"prompt": "a [[eos@3]]", "max_tokens": 5, "ignore_eos": true}),
            ),
        ] {
            let whole = call(d, path, &body).json();
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
            let answer = call(d, path, &body);
            assert_eq!(
                answer.header("content-type"),
                Some("text/event-stream; charset=utf-8")
            );
            assert!(answer.complete);
            let events = values(&answer);
            for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
                assert_eq!(text_of(&events, i as u64), choice_text(&whole, i));
                let finish = |e: &Value| e["choices"][0]["finish_reason"].clone();
                assert!(events.iter().any(|e| finish(e) == choice["finish_reason"]));
            }
            let last = events.last().unwrap();
            assert_eq!(
                (&last["choices"], &last["usage"]),
                (&json!([]), &whole["usage"])
            );
            if path == CHAT {
                assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
                assert_eq!(events[0]["object"], "chat.completion.chunk");
            }
        }
    }
}

#[test]
fn tokens_never_come_faster_than_the_ticks() {
    for stagger in [false, true] {
        let (_sim, _, d, _) = trio(|e| {
            e.timing.decode_tick = Duration::from_millis(10);
            e.timing.stagger = stagger;
            e.timing.decode_batch = 2;
        });
        let mut body = json!({"prompt": "a", "max_tokens": 11, "stream": true});
        let begun = Instant::now();
        // Four requests in a batch of two: two rounds of ten ticks.
        let threads: Vec<_> = (0..4)
            .map(|i| {
                body["prompt"] = json!(format!("prompt {i}"));
                let body = body.clone();
                std::thread::spawn(move || call(d, COMPLETIONS, &body).chunks)
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 12);
        }
        let took = begun.elapsed().as_millis();
        assert!(took >= 180, "{took} ms, stagger {stagger}");
    }
}

#[test]
fn prefill_never_takes_less_than_its_tokens() {
    let (_sim, p, _, _) = trio(|e| e.timing.prefill_tokens_per_s = 10_000.0);
    let body = json!({"prompt": "x".repeat(3000), "max_tokens": 1});
    let begun = Instant::now();
    call(p, COMPLETIONS, &body);
    let took = begun.elapsed().as_millis();
    assert!(took >= 95, "{took} ms");
}

#[test]
fn a_client_that_left_never_keeps_its_seat() {
    for stream in [false, true] {
        let (sim, _, d, _) = trio(|e| {
            e.timing.decode_tick = Duration::from_millis(20);
            e.timing.decode_batch = 1;
        });
        let long = json!({"prompt": "a", "max_tokens": 10_000, "stream": stream});
        let mut first = Client::new(d);
        first.send(post(COMPLETIONS, &long.to_string(), &[]));
        let mut waiting = Client::new(d);
        waiting.send(post(COMPLETIONS, &long.to_string(), &[]));
        soon("both are open", || sim.open_requests(1) == 2);
        drop(waiting);
        soon("the waiting one left", || sim.open_requests(1) == 1);
        drop(first);
        soon("the running one left", || sim.open_requests(1) == 0);
        let begun = Instant::now();
        call(d, COMPLETIONS, &json!({"prompt": "b", "max_tokens": 2}));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_half_closed_client_is_never_served_on() {
    let (sim, _, d, _) = trio(|e| e.timing.decode_tick = Duration::from_millis(20));
    let long = json!({"prompt": "a", "max_tokens": 10_000, "stream": true});
    let mut client = Client::new(d);
    client.send(post(COMPLETIONS, &long.to_string(), &[]));
    soon("it runs", || sim.open_requests(1) == 1);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    soon("it was noticed", || sim.open_requests(1) == 0);
}
