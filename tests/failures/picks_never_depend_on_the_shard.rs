//! A policy means the same on every shard: requests that come one at a time, each on a fresh connection and
//! so on any of the shards, go where the policy says.

use pdrelay::config::Config;

use super::ask;
use crate::support::{Response, Rig, chat, completion, engines, eventually, post_bytes, rig_with};

fn with(policy: &str, p: usize, d: usize, more: impl FnOnce(&mut Config)) -> Rig {
    rig_with("sequential", engines(p, d), |c| {
        c.scheduling.prefill = policy.into();
        c.scheduling.decode = policy.into();
        c.cores.shards = Some(3);
        more(c);
    })
}

/// The engines of this range in the order in which they got requests.
fn order(rig: &Rig, engines: std::ops::Range<usize>) -> Vec<usize> {
    let first = engines.start;
    let of = |engine: usize| {
        rig.posts(engine)
            .into_iter()
            .map(move |r| (r.at, engine - first))
    };
    let mut all: Vec<_> = engines.flat_map(of).collect();
    all.sort();
    all.into_iter().map(|(_, engine)| engine).collect()
}

/// The engines of this range that got a body with this text.
fn seen_at(rig: &Rig, engines: std::ops::Range<usize>, text: &str) -> Vec<usize> {
    let has = |engine: &usize| {
        let mut posts = rig.posts(*engine).into_iter();
        posts.any(|r| String::from_utf8_lossy(&r.body).contains(text))
    };
    engines.filter(has).collect()
}

fn post_as(rig: &Rig, field: &str, body: &str) -> Response {
    let mut client = rig.client();
    client.send(post_bytes("/v1/completions", body, field));
    client.response()
}

#[test]
fn round_robin_alternates_exactly() {
    let rig = with("round_robin", 3, 4, |_| {});
    for _ in 0..24 {
        assert_eq!(ask(&rig).status, 200);
    }
    let turns = |n: usize| (0..24).map(|i| i % n).collect::<Vec<_>>();
    assert_eq!(order(&rig, 0..3), turns(3));
    assert_eq!(order(&rig, 3..7), turns(4));
}

#[test]
fn load_balanced_sends_single_requests_to_the_first() {
    let rig = with("load_balanced", 3, 3, |_| {});
    for _ in 0..40 {
        assert_eq!(ask(&rig).status, 200);
        // Streams, too: their load is given back before the client sees their end.
        let body = completion("s", r#","stream":true,"max_tokens":3"#);
        assert_eq!(rig.post("/v1/completions", &body).status, 200);
    }
    let counts: Vec<_> = (0..6).map(|engine| rig.posts(engine).len()).collect();
    assert_eq!(counts, [80, 0, 0, 80, 0, 0]);
}

#[test]
fn load_balanced_takes_the_next_idle_one() {
    let mut slow = engines(1, 3);
    for engine in &mut slow[1..] {
        engine.timing.decode_tick = std::time::Duration::from_millis(50);
    }
    let rig = rig_with("sequential", slow, |c| {
        c.scheduling.prefill = "load_balanced".into();
        c.scheduling.decode = "load_balanced".into();
    });
    let body = completion("x", r#","stream":true,"max_tokens":1000"#);
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let mut client = rig.client();
            client.send(post_bytes("/v1/completions", &body, ""));
            client.head();
            client
        })
        .collect();
    assert_eq!(order(&rig, 1..4), [0, 1, 2, 0, 1, 2]);
    drop(clients);
}

#[test]
fn sessions_stay_where_they_are() {
    let rig = with("consistent_hash", 4, 4, |_| {});
    for session in 0..12 {
        let text = format!("of session {session}.");
        for _ in 0..4 {
            let user = completion(&text, r#","user":"somebody else","max_tokens":2"#);
            let field = format!("X-Session-Id: session-{session}\r\n");
            assert_eq!(post_as(&rig, &field, &user).status, 200);
        }
        assert_eq!(seen_at(&rig, 0..4, &text).len(), 1, "{text}");
        assert_eq!(seen_at(&rig, 4..8, &text).len(), 1, "{text}");
    }
    let used = (0..8).filter(|engine| !rig.posts(*engine).is_empty());
    assert!(used.count() > 4, "all sessions are at the same engines");
}

/// The field, else the user, else the client's address.
#[test]
fn the_first_key_of_three_decides() {
    let rig = with("consistent_hash", 8, 1, |_| {});
    let at = |text: &str, field: &str, user: &str| {
        let more = format!(r#"{user},"max_tokens":2"#);
        assert_eq!(post_as(&rig, field, &completion(text, &more)).status, 200);
        seen_at(&rig, 0..8, text)
    };
    let by_field = at("one.", "x-session-id: k\r\n", r#","user":"u""#);
    let by_user = at("two.", "", r#","user":"k""#);
    assert_eq!(by_field, by_user, "the same key, wherever it stands");
    let by_address = at("three.", "", "");
    let named = at("four.", "", r#","user":"127.0.0.1""#);
    let empty = at("five.", "x-session-id: \r\n", r#","user":"""#);
    assert_eq!([&by_address, &by_address], [&named, &empty]);
    let odd = at("six.", "", r#","user":17"#);
    assert_eq!(odd, by_address, "a user that is no text is none");
}

#[test]
fn prompts_that_begin_alike_share_an_engine() {
    let rig = with("cache_aware", 4, 4, |c| c.scheduling.prefix_length = 8);
    for topic in 0..12 {
        let start = format!("topic {topic} a b c d e f");
        for tail in ["end", "other \\u00e9nd", "and more\\nof it"] {
            let spaced = start.replace(' ', "  \\t");
            for text in [&start, &spaced] {
                let body = completion(&format!("{text} {tail}"), r#","max_tokens":2"#);
                assert_eq!(rig.post("/v1/completions", &body).status, 200);
            }
            let body = chat(&format!("{start} {tail}"), r#","max_tokens":2"#);
            assert_eq!(rig.post("/v1/chat/completions", &body).status, 200);
        }
        for pair in [0..4, 4..8] {
            let plain = seen_at(&rig, pair.clone(), &format!("{start} "));
            let spaced = seen_at(&rig, pair, &start.replace(' ', "  \\t"));
            assert_eq!((plain.len(), &plain), (1, &spaced), "{start}");
        }
    }
    let used = (0..8).filter(|engine| !rig.posts(*engine).is_empty());
    assert!(used.count() > 4, "all prompts are at the same engines");
}

#[test]
fn power_of_two_spreads_what_ties() {
    let rig = with("power_of_two", 2, 3, |_| {});
    for _ in 0..60 {
        assert_eq!(ask(&rig).status, 200);
    }
    let counts: Vec<_> = (0..5).map(|engine| rig.posts(engine).len()).collect();
    assert!(counts.iter().all(|n| *n >= 5), "{counts:?}");
}

/// What engines say of their context ranks them; nothing is turned away for it.
#[test]
fn context_lengths_rank_and_never_reject() {
    let mut sizes = engines(2, 2);
    sizes[0].max_model_len = 100;
    sizes[2].max_model_len = 100;
    let rig = rig_with("sequential", sizes, |c| {
        c.scheduling.prefill = "load_balanced".into();
        c.scheduling.decode = "load_balanced".into();
        // Even where nothing else is asked of them.
        c.health_check.enabled = false;
    });
    eventually("all have said how much they take", || {
        let status = rig.get("/status").json();
        let all = status["instances"].as_array().unwrap().clone();
        let lengths: Vec<_> = all.iter().map(|i| i["max_model_len"].as_u64()).collect();
        let models = all.iter().all(|i| i["model"] == "dummy");
        models && lengths == [Some(100), Some(131_072), Some(100), Some(131_072)]
    });
    let counts = || (0..4).map(|e| rig.posts(e).len()).collect::<Vec<_>>();
    assert_eq!(
        rig.post(
            "/v1/completions",
            &completion("short", r#","max_tokens":5"#)
        )
        .status,
        200
    );
    assert_eq!(counts(), [1, 0, 1, 0]);
    let long = completion(&"word ".repeat(200), r#","max_tokens":5"#);
    assert_eq!(rig.post("/v1/completions", &long).status, 200);
    assert_eq!(counts(), [1, 1, 1, 1]);
    // Only the answer is long: a matter of decode alone.
    let answer = completion("short", r#","max_tokens":5000"#);
    assert_eq!(rig.post("/v1/completions", &answer).status, 200);
    assert_eq!(counts(), [2, 1, 1, 2]);
    // It fits nobody by our count: the engine has the last word.
    let huge = completion("short", r#","max_tokens":200000"#);
    let response = rig.post("/v1/completions", &huge);
    assert_eq!(response.status, 400, "{}", response.text());
    assert!(
        response.text().contains("max_model_len=100"),
        "{}",
        response.text()
    );
    assert_eq!(counts(), [3, 1, 2, 2]);
}

/// Requests that come in the same moment on several shards: each finds an idle instance of its own.
#[test]
fn load_balanced_never_gives_one_idle_instance_to_two() {
    const D: usize = 4;
    let mut list = engines(1, D);
    for engine in &mut list[1..] {
        engine.timing.decode_tick = std::time::Duration::from_millis(5);
    }
    let rig = rig_with("sequential", list, |c| {
        c.scheduling.prefill = "load_balanced".into();
        c.scheduling.decode = "load_balanced".into();
        c.cores.shards = Some(4);
    });
    let body = completion("x", r#","stream":true,"max_tokens":1000"#);
    for round in 1..=25 {
        let mut clients: Vec<_> = (0..D).map(|_| rig.client()).collect();
        for client in &mut clients {
            client.send(post_bytes("/v1/completions", &body, ""));
        }
        clients.iter_mut().for_each(|client| drop(client.head()));
        let counts: Vec<_> = (1..=D).map(|engine| rig.posts(engine).len()).collect();
        assert_eq!(counts, [round; D], "round {round}");
        drop(clients);
        eventually("all are idle again", || {
            rig.sum("pdrelay_instance_in_flight", &[]) == 0.0
        });
    }
}
