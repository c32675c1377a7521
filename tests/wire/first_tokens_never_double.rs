//! P's token in D's stream: whatever D's events and however they are cut, no text comes twice or gets lost,
//! and every other byte is D's.

use super::support::{cut, cuts, fixed_splits};
use pdrelay::wire::first_token::{Ask, End, FirstToken, Token, whole_stream};
use pdrelay::wire::json::Object;
use pdrelay::wire::sse::{data_of, event_end};
use proptest::prelude::*;
use proptest::sample::select;

/// P's answer with this text, as JSON without quotes.
fn answer(text: &str, chat: bool, more: &str) -> String {
    let choice = match chat {
        true => {
            format!(r#"{{"index":0,"message":{{"role":"assistant","content":"{text}"}}{more}}}"#)
        }
        false => format!(r#"{{"index":0,"text":"{text}"{more}}}"#),
    };
    format!(
        r#"{{"id":"p","created":1,"model":"pm","choices":[{choice}],"usage":{{"prompt_tokens":3}}}}"#
    )
}

fn token<T>(answer: &str, chat: bool, then: impl FnOnce(Option<Token>, &Object) -> T) -> T {
    let object = Object::scan(answer.as_bytes(), 64).unwrap();
    then(Token::of(answer.as_bytes(), &object, chat), &object)
}

/// What the client gets of D's payload, fed in these pieces.
fn client(p: &str, chat: bool, pieces: &[&[u8]]) -> (String, Option<End>) {
    let length = r#","finish_reason":"length""#;
    let mut surgery = token(&answer(p, chat, length), chat, |token, _| {
        FirstToken::new(&token.unwrap(), chat)
    });
    let mut out = Vec::new();
    for piece in pieces {
        surgery.feed(piece, &mut out);
    }
    surgery.finish(&mut out);
    (String::from_utf8(out).unwrap(), surgery.end())
}

const OPEN: &str = r#"{"id":"d-1","object":"o","created":77,"model":"m\u00e9","choices":["#;

/// An event of D with this choice.
fn event(choice: &str) -> String {
    format!("data: {OPEN}{choice}],\"x\":[1.0]}}\n\n")
}

fn delta(text: &str) -> String {
    event(&format!(
        r#"{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}"#
    ))
}

fn piece(text: &str) -> String {
    event(&format!(
        r#"{{"index":0,"text":"{text}","finish_reason":null}}"#
    ))
}

fn role() -> String {
    event(r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}"#)
}

/// P's token as it must look.
fn from_p(text: &str, chat: bool) -> String {
    event(&match chat {
        true => format!(
            r#"{{"index":0,"delta":{{"content":"{text}"}},"logprobs":null,"finish_reason":null}}"#
        ),
        false => format!(r#"{{"index":0,"text":"{text}","logprobs":null,"finish_reason":null}}"#),
    })
}

const DONE: &str = "data: [DONE]\n\n";

fn all(parts: &[&str]) -> String {
    parts.concat()
}

#[test]
fn by_hand() {
    let one = || piece(" one");
    let two = || piece(" two");
    let finish = |text: &str| {
        event(&format!(
            r#"{{"index":0,"text":"{text}","finish_reason":"length"}}"#
        ))
    };
    let chat_finish = |text: &str| {
        event(&format!(
            r#"{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":"stop"}}"#
        ))
    };
    let usage = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n";
    let error = "data: {\"error\":{\"message\":\"no KV\"}}\n\n";
    let thought = event(r#"{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}"#);
    let (p, c) = (from_p(" one", false), from_p(" one", true));
    use End::*;
    for (chat, d, expected, end) in [
        // The plain cases: the same token, another token.
        (
            false,
            all(&[&one(), &two(), DONE]),
            all(&[&p, &two(), DONE]),
            Same,
        ),
        (
            false,
            all(&[&piece(" uno"), &two(), DONE]),
            all(&[&p, &two(), DONE]),
            Differed,
        ),
        (
            true,
            all(&[&role(), &delta(" one"), &delta(" two"), DONE]),
            all(&[&role(), &c, &delta(" two"), DONE]),
            Same,
        ),
        (
            true,
            all(&[&role(), &delta(" uno"), &delta(" two"), DONE]),
            all(&[&role(), &c, &delta(" two"), DONE]),
            Differed,
        ),
        // Written otherwise, the same.
        (
            false,
            all(&[&piece("\\u0020on\\u0065"), &two()]),
            all(&[&p, &two()]),
            Same,
        ),
        // Two tokens in one event, one token in two, and both.
        (
            false,
            all(&[&piece(" one two"), &two()]),
            all(&[&p, &piece(" two"), &two()]),
            Same,
        ),
        (
            false,
            all(&[&piece(" o"), &piece("ne"), &two()]),
            all(&[&p, &two()]),
            Same,
        ),
        (
            false,
            all(&[&piece(" o"), &piece("ne two"), DONE]),
            all(&[&p, &piece(" two"), DONE]),
            Same,
        ),
        // It began alike and went on otherwise.
        (
            false,
            all(&[&piece(" o"), &piece("x"), DONE]),
            all(&[&p, &piece("x"), DONE]),
            Differed,
        ),
        // An end that comes with the token.
        (
            false,
            all(&[&finish(" one"), usage, DONE]),
            all(&[&p, &finish(""), usage, DONE]),
            Same,
        ),
        (
            false,
            all(&[&finish(" uno"), DONE]),
            all(&[&p, &finish(""), DONE]),
            Differed,
        ),
        (
            true,
            all(&[&role(), &chat_finish(" one"), DONE]),
            all(&[&role(), &c, &chat_finish(""), DONE]),
            Same,
        ),
        // Nothing but an end: D had no token.
        (
            false,
            all(&[&finish(""), DONE]),
            all(&[&finish(""), DONE]),
            Unused,
        ),
        (
            true,
            all(&[&role(), &chat_finish(""), DONE]),
            all(&[&role(), &c, &chat_finish(""), DONE]),
            Differed,
        ),
        (false, all(&[DONE]), all(&[DONE]), Unused),
        (false, String::new(), String::new(), Unused),
        // Comments and usage pass, wherever they are.
        (
            false,
            all(&[": hi\n\n", usage, &one(), ": hi\n\n", &two()]),
            all(&[": hi\n\n", usage, &p, ": hi\n\n", &two()]),
            Same,
        ),
        (
            true,
            all(&["\n", &role(), ": hi\n\n", &delta(" one")]),
            all(&["\n", &role(), &c, ": hi\n\n"]),
            Same,
        ),
        // What is no text is D's alone.
        (false, all(&[error, DONE]), all(&[error, DONE]), Unused),
        (
            true,
            all(&[&thought, &delta(" one")]),
            all(&[&thought, &delta(" one")]),
            Unused,
        ),
        (
            true,
            all(&[&role(), &thought, &delta(" one")]),
            all(&[&role(), &c, &thought, &delta(" one")]),
            Differed,
        ),
        (
            false,
            all(&["data: what\n\n", &one()]),
            all(&["data: what\n\n", &one()]),
            Unused,
        ),
        (
            false,
            all(&["data: {\ndata: }\n\n", &one()]),
            all(&["data: {\ndata: }\n\n", &p]),
            Same,
        ),
        // Role and token at once.
        (
            true,
            all(&[
                &event(r#"{"index":0,"delta":{"role":"assistant","content":" one"}}"#),
                &delta(" two"),
            ]),
            all(&[
                &event(r#"{"index":0,"delta":{"role":"assistant","content":" one"}}"#),
                &delta(" two"),
            ]),
            Unused,
        ),
        // Two choices after all.
        (
            false,
            event(r#"{"index":0,"text":"a"},{"index":1,"text":"b"}"#),
            event(r#"{"index":0,"text":"a"},{"index":1,"text":"b"}"#),
            Unused,
        ),
        // The last event has no end, or half of one.
        (
            false,
            all(&[&one(), "data: {\"id"]),
            all(&[&p, "data: {\"id"]),
            Same,
        ),
        (false, "data: {\"id".into(), "data: {\"id".into(), Unused),
    ] {
        for pieces in fixed_splits(d.as_bytes()) {
            let (got, ended) = client(" one", chat, &pieces);
            assert_eq!(got, expected, "of {d}");
            assert_eq!(ended, Some(end), "of {d}");
        }
    }
}

/// The usage of D's own token is not said twice, and not missing: D's own events have it.
#[test]
fn usage_in_each_event_is_not_given_to_the_token() {
    let d = r#"data: {"id":"d","choices":[{"text":"a"}],"usage":{"completion_tokens":1}}"#;
    let (got, _) = client("a", false, &[d.as_bytes(), b"\r\n\r\n"]);
    let wanted = r#"data: {"id":"d","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}],"usage":null}"#;
    assert_eq!(got, format!("{wanted}\r\n\r\n"));
}

#[test]
fn a_huge_event_is_not_waited_for() {
    let huge = format!("data: {}", "x".repeat(2 << 20));
    let (got, end) = client("a", false, &[huge.as_bytes(), b"yz"]);
    assert_eq!((got.len(), end), (huge.len() + 2, Some(End::Unused)));
}

#[test]
fn ends_and_data_of_events() {
    for (text, end) in [
        ("", None),
        ("data: a", None),
        ("data: a\n", None),
        ("data: a\n\n", Some(9)),
        ("data: a\r\n\r\n", Some(11)),
        ("data: a\n\r\n", Some(10)),
        ("\ndata: a\n\n", Some(1)),
        ("\r\nx", Some(2)),
        ("a\n \n", None),
    ] {
        assert_eq!(event_end(text.as_bytes(), 0), end, "{text:?}");
        for searched in 0..end.unwrap_or(text.len() + 1) {
            assert_eq!(event_end(text.as_bytes(), searched), end, "{text:?}");
        }
    }
    for (text, data) in [
        ("data: a\n\n", Some("a")),
        ("data:a\r\n\r\n", Some("a")),
        ("data:\n\n", Some("")),
        ("data: \n\n", Some("")),
        ("id: 7\ndata:  a\n\n", Some(" a")),
        (": data: a\n\n", None),
        ("data: a\ndata: b\n\n", None),
        ("\n", None),
    ] {
        let found = data_of(text.as_bytes()).map(|r| &text[r]);
        assert_eq!(found, data, "{text:?}");
    }
}

#[test]
fn what_p_says_decides() {
    // Text, more members, ended, whole (without stop strings).
    for (text, more, ended, whole) in [
        (
            "a",
            r#","finish_reason":"length","stop_reason":null"#,
            false,
            true,
        ),
        ("a", r#","finish_reason":"length""#, false, true),
        ("a", "", false, true),
        ("a", r#","finish_reason":null"#, false, true),
        (
            "",
            r#","finish_reason":"stop","stop_reason":null"#,
            true,
            false,
        ),
        ("", r#","finish_reason":"stop""#, true, false),
        (
            "</s>",
            r#","finish_reason":"stop","stop_reason":2"#,
            true,
            true,
        ),
        // It says "stop" to everything, and has no word for why.
        ("T", r#","finish_reason":"stop""#, false, true),
        (
            "T",
            r#","finish_reason":"stop","stop_reason":null"#,
            false,
            true,
        ),
        // Half a character.
        ("", r#","finish_reason":"length""#, false, false),
        ("\u{fffd}", r#","finish_reason":"length""#, false, false),
        ("\\ufffd", r#","finish_reason":"length""#, false, false),
        ("\\ud83d", r#","finish_reason":"length""#, false, false),
    ] {
        for chat in [false, true] {
            let text = answer(text, chat, more);
            token(&text, chat, |token, _| {
                let token = token.unwrap();
                assert_eq!((token.ended(), token.whole(None)), (ended, whole), "{text}");
            });
        }
    }
    for (text, stop, whole) in [
        ("a", "null", true),
        ("a", "[]", true),
        ("a", r#""b""#, true),
        ("a", r#""ab""#, false),
        ("xa", r#"["c", "ab"]"#, false),
        ("xa", r#"["c" ,"xx"]"#, true),
        ("\\n", r#""\n\n""#, false),
        ("ab", r#""a""#, false),
        ("a", r#"[7]"#, false),
        ("a", "7", false),
        ("a", r#"["\"a","]"]"#, true),
    ] {
        token(&answer(text, false, ""), false, |token, _| {
            let got = token.unwrap().whole(Some(stop.as_bytes()));
            assert_eq!(got, whole, "{text} {stop}");
        });
    }
    for odd in [
        r#"{"choices":[]}"#,
        r#"{"choices":[{"index":0},{"index":1}]}"#,
        r#"{"choices":[{"message":{"content":null,"tool_calls":[{"id":"x"}]}}]}"#,
        r#"{"choices":[{"message":{"content":"a","reasoning":"b"}}]}"#,
        r#"{"choices":[{"message":{"content":["a"]}}]}"#,
        r#"{"choices":[{"text":"a"}]}"#,
        r#"{"object":"x"}"#,
    ] {
        token(odd, true, |token, _| assert_eq!(token, None, "{odd}"));
    }
}

#[test]
fn only_plain_streams_of_one_choice_begin_at_p() {
    let ask = |more: &str, prompts| {
        let body = format!(r#"{{"prompt":"x"{more}}}"#);
        let object = Object::scan(body.as_bytes(), 64).unwrap();
        Ask::of(body.as_bytes(), &object, prompts, false)
    };
    let streamed = |more: &str| ask(&format!(r#","stream":true{more}"#), 1);
    for more in [
        r#","n":2"#,
        r#","n":1.5"#,
        r#","best_of":2"#,
        r#","tools":[{"type":"function"}]"#,
        r#","functions":[{}]"#,
        r#","logprobs":true"#,
        r#","logprobs":0"#,
        r#","logprobs":3"#,
        r#","top_logprobs":2"#,
        r#","prompt_logprobs":1"#,
        r#","echo":true"#,
        r#","min_tokens":1"#,
        r#","suffix":"x""#,
        r#","use_beam_search":true"#,
        r#","return_token_ids":true"#,
        r#","reasoning_effort":"low""#,
        r#","stream_options":{"continuous_usage_stats":true}"#,
        r#","n":1,"n":2"#,
        r#","\u006e":2"#,
    ] {
        assert_eq!(streamed(more), None, "{more}");
    }
    assert_eq!(streamed("").map(|_| ask("", 1)), Some(None), "not streamed");
    assert_eq!(ask(r#","stream":true"#, 2), None, "a batch");
    for (more, usage, unseeded) in [
        ("", false, true),
        (
            r#","n":1,"best_of":null,"tools":[],"logprobs":null,"echo":false,"min_tokens":0"#,
            false,
            true,
        ),
        (r#","stream_options":{"include_usage":true}"#, true, true),
        (
            r#","stream_options":{"include_usage":false,"continuous_usage_stats":false}"#,
            false,
            true,
        ),
        (r#","temperature":0"#, false, false),
        (r#","temperature":0.0"#, false, false),
        (r#","temperature":-0"#, false, false),
        (r#","temperature":1e-9"#, false, false),
        (r#","temperature":0.5"#, false, true),
        (r#","temperature":null"#, false, true),
        (r#","temperature":1,"top_k":1"#, false, false),
        (r#","temperature":1,"seed":7"#, false, false),
        (r#","seed":null"#, false, true),
        (
            r#","response_format":{"type":"json_object"},"stop":["x"],"logit_bias":{"1":2}"#,
            false,
            true,
        ),
    ] {
        let expected = Ask {
            chat: false,
            usage,
            unseeded,
        };
        assert_eq!(streamed(more), Some(expected), "{more}");
    }
}

#[test]
fn an_answer_that_ended_at_p_is_a_whole_stream() {
    let more = r#","finish_reason":"stop","stop_reason":2"#;
    for (chat, text, usage, events) in [
        (false, "a", false, 3),
        (false, "", true, 3),
        (true, "a", true, 5),
        (true, "", false, 3),
    ] {
        let body = answer(text, chat, more);
        let stream = token(&body, chat, |token, object| {
            let ask = Ask {
                chat,
                usage,
                unseeded: false,
            };
            String::from_utf8(whole_stream(body.as_bytes(), object, &token.unwrap(), &ask)).unwrap()
        });
        let events_of: Vec<&str> = stream.split_terminator("\n\n").collect();
        assert_eq!(events_of.len(), events, "{stream}");
        assert_eq!(events_of[events - 1], "data: [DONE]");
        let json =
            |e: &&str| serde_json::from_str::<serde_json::Value>(&e["data: ".len()..]).unwrap();
        let values: Vec<_> = events_of[..events - 1].iter().map(json).collect();
        let said = |v: &serde_json::Value| {
            let choice = &v["choices"][0];
            let text = choice["text"]
                .as_str()
                .or(choice["delta"]["content"].as_str());
            text.unwrap_or("").to_owned()
        };
        assert_eq!(values.iter().map(said).collect::<String>(), text);
        for value in &values {
            assert_eq!(
                (&value["id"], &value["created"], &value["model"]),
                (&"p".into(), &1.into(), &"pm".into())
            );
        }
        if chat {
            assert_eq!(values[0]["choices"][0]["delta"]["role"], "assistant");
            assert_eq!(values[0]["object"], "chat.completion.chunk");
        }
        let ends: Vec<_> = values
            .iter()
            .filter(|v| v["choices"][0]["finish_reason"] == "stop")
            .collect();
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0]["choices"][0]["stop_reason"], 2);
        let last = values.last().unwrap();
        assert_eq!(last["usage"]["prompt_tokens"] == 3, usage, "{last}");
        assert_eq!(last["choices"].as_array().unwrap().is_empty(), usage);
    }
}

/// Tokens of a text, and how D's events carry them.
fn stream() -> impl Strategy<Value = (Vec<&'static str>, Vec<usize>, Vec<u8>, &'static str)> {
    let token = select(vec![
        " one",
        "two",
        "\u{e9}",
        "\u{1f600}!",
        " ",
        "a",
        "aa",
        "\\\"",
        "\\n",
    ]);
    (
        prop::collection::vec(token, 1..6),
        prop::collection::vec(1usize..4, 8),
        prop::collection::vec(0u8..6, 12),
        select(vec!["\n\n", "\r\n\r\n"]),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A D that makes P's token: the text is D's, however its events join tokens and reads cut events.
    #[test]
    fn the_text_is_that_of_d(
        (tokens, joins, noise, end) in stream(), chat in any::<bool>(), cuts in cuts(),
    ) {
        let mut d = String::new();
        let mut noises = noise.iter();
        let mut noisy = |d: &mut String| match noises.next() {
            Some(0) => { d.push_str(": ping"); d.push_str(end) }
            Some(1) => { d.push_str("data: {\"choices\":[],\"usage\":null}"); d.push_str(end) }
            _ => {}
        };
        let put = |d: &mut String, event: String| {
            d.push_str(event.trim_end());
            d.push_str(end);
        };
        noisy(&mut d);
        if chat {
            put(&mut d, role());
        }
        let (mut rest, mut joins) = (&tokens[..], joins.iter());
        while !rest.is_empty() {
            noisy(&mut d);
            let (now, later) = rest.split_at(joins.next().map_or(1, |n| *n).min(rest.len()));
            put(&mut d, if chat { delta(&now.concat()) } else { piece(&now.concat()) });
            rest = later;
        }
        put(&mut d, DONE.into());
        let (whole, ended) = client(tokens[0], chat, &[d.as_bytes()]);
        prop_assert_eq!(ended, Some(End::Same));
        prop_assert_eq!(said(&whole), said(&d));
        prop_assert_eq!(&client(tokens[0], chat, &cut(d.as_bytes(), &cuts)).0, &whole);
        // Every event but the first token's is D's own.
        let news: Vec<&str> = whole.split_inclusive(end).filter(|e| !d.contains(e)).collect();
        prop_assert!(news.len() <= 2, "{:?}", news);
    }

    /// Whatever D sends, a cut changes nothing, and nothing panics.
    #[test]
    fn cuts_change_nothing(
        parts in prop::collection::vec(select(vec![
            "data: ", "\n", "\r\n", "\n\n", "{", "}", "[DONE]", "\"choices\":[", "]", "\"text\":\"a\"",
            "data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "data: {\"choices\":[{\"text\":\"ab\"}]}\n\n",
            "data: {\"choices\":[{\"text\":null,\"finish_reason\":\"x\"}]}\n\n", ":\n\n", "\u{e9}",
        ]), 0..12),
        cuts in cuts(),
    ) {
        let d = parts.concat();
        let whole = client("a", false, &[d.as_bytes()]);
        prop_assert_eq!(client("a", false, &cut(d.as_bytes(), &cuts)), whole);
    }
}

/// All text of a stream, as a client puts it together.
fn said(stream: &str) -> String {
    let data = stream.lines().filter_map(|l| l.strip_prefix("data: "));
    let values = data.filter_map(|d| serde_json::from_str::<serde_json::Value>(d).ok());
    values
        .map(|v| {
            let choice = &v["choices"][0];
            let text = choice["text"]
                .as_str()
                .or(choice["delta"]["content"].as_str());
            text.unwrap_or("").to_owned()
        })
        .collect()
}
