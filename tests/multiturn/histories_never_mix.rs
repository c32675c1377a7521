//! What was kept is used by the one whose it is, once, in time, and only for the history that it is of.

use std::time::Duration;

use serde_json::json;

use super::{
    COMPLETIONS, Talk, alone, clean, conversations, counted, engines, reused, right, talk_rig,
};
use crate::support::{completion, rig_with};

/// The original reuses whatever has the same id.
#[test]
fn an_edited_history_is_computed_again() {
    type Edit = fn(&mut Talk);
    let edits: [Edit; 6] = [
        |talk| talk.messages[0]["content"] = json!("another question"),
        |talk| talk.messages[1]["content"] = json!("another answer"),
        |talk| talk.messages.truncate(1),
        |talk| talk.messages[1]["role"] = json!("user"),
        |talk| {
            talk.messages
                .insert(0, json!({"role": "system", "content": "be brief"}))
        },
        |talk| talk.more["tools"] = json!([{"type": "function", "function": {"name": "f"}}]),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let rig = talk_rig(|_| {});
        let mut talk = Talk::new("c");
        talk.say(rig.server.address, "a question");
        edit(&mut talk);
        talk.say(rig.server.address, "and another");
        assert!(!reused(&rig), "edit {number}");
        right(&talk);
        assert_eq!(conversations(&rig, "mismatch"), 1.0, "edit {number}");
        // From here on it is a history like any other.
        talk.say(rig.server.address, "a third");
        assert!(reused(&rig), "edit {number}");
        right(&talk);
        clean(&rig);
    }
}

#[test]
fn completions_go_on_with_their_own_text_alone() {
    let rig = talk_rig(|_| {});
    let more = r#","conversation_id":"c","max_tokens":5"#;
    let first = rig
        .post(COMPLETIONS, &completion("once upon", more))
        .generated();
    let second = format!("once upon{first} a time");
    let text = rig
        .post(COMPLETIONS, &completion(&second, more))
        .generated();
    assert!(reused(&rig));
    rig.post(COMPLETIONS, &completion(&format!("{second}{text}!"), more));
    assert!(reused(&rig));
    rig.post(
        COMPLETIONS,
        &completion(&format!("Once upon{first} a time"), more),
    );
    assert!(!reused(&rig));
    clean(&rig);
}

/// Token ids say exactly what was computed.
#[test]
fn token_ids_go_on_with_the_ids_that_were_answered() {
    let rig = talk_rig(|_| {});
    let ask = |prompt: &[u64]| {
        let body = json!({"model": "dummy", "prompt": prompt, "max_tokens": 4,
            "return_token_ids": true, "conversation_id": "c"});
        let json = rig.post(COMPLETIONS, &body.to_string()).json();
        let ids = json["choices"][0]["token_ids"].as_array().unwrap().clone();
        ids.iter()
            .map(|id| id.as_u64().unwrap())
            .collect::<Vec<u64>>()
    };
    let mut prompt: Vec<u64> = pdsim::tokenize(b"once upon a")
        .iter()
        .map(|id| (*id).into())
        .collect();
    for turn in 0..3 {
        let said = ask(&prompt);
        assert_eq!(reused(&rig), turn > 0);
        prompt.extend(said);
        prompt.extend(pdsim::tokenize(b" more").iter().map(|id| u64::from(*id)));
    }
    prompt[1] += 1;
    ask(&prompt);
    assert!(!reused(&rig));
    clean(&rig);
}

#[test]
fn an_id_of_another_client_is_another_conversation() {
    for field in ["Authorization: Bearer ", "X-Api-Key: ", "api-key: "] {
        let rig = talk_rig(|_| {});
        let mut one = Talk::new("c");
        one.fields = format!("{field}one\r\n");
        one.say(rig.server.address, "a secret");
        // The same id and the same history, said by somebody else.
        let mut two = Talk::new("c");
        two.fields = format!("{field}two\r\n");
        two.messages.clone_from(&one.messages);
        two.say(rig.server.address, "what was it?");
        assert!(!reused(&rig), "{field}");
        let mut nobody = Talk::new("c");
        nobody.messages.clone_from(&one.messages);
        nobody.say(rig.server.address, "what was it?");
        assert!(!reused(&rig), "{field}");
        one.say(rig.server.address, "what was it?");
        assert!(reused(&rig), "{field}");
        clean(&rig);
    }
}

#[test]
fn ids_are_what_they_are_written_as() {
    let rig = talk_rig(|_| {});
    let mut talk = Talk::new("");
    talk.id = json!(17);
    talk.say(rig.server.address, "one");
    talk.say(rig.server.address, "two");
    assert!(reused(&rig));
    talk.id = json!("18");
    talk.say(rig.server.address, "three");
    assert!(!reused(&rig));
    clean(&rig);
}

/// Two requests at once with one id: one has it.
#[test]
fn nobody_takes_what_another_has_taken() {
    let rig = rig_with("multiturn", engines(1, 1), |config| {
        config.cores.shards = Some(2)
    });
    for round in 0..10 {
        let mut talk = Talk::new(&format!("c-{round}"));
        talk.say(rig.server.address, "first");
        let address = rig.server.address;
        let threads: Vec<_> = (0..6)
            .map(|i| {
                let mut own = Talk::new(&format!("c-{round}"));
                own.messages.clone_from(&talk.messages);
                std::thread::spawn(move || {
                    own.say(address, &format!("branch {i}"));
                    own
                })
            })
            .collect();
        for thread in threads {
            let branch = thread.join().unwrap();
            let said = branch.messages.last().unwrap()["content"].clone();
            if round == 0 {
                assert_eq!(said, alone(&branch));
            }
        }
        assert_eq!(conversations(&rig, "reused"), f64::from(round + 1));
    }
    clean(&rig);
}

#[test]
fn what_is_over_its_time_is_not_used() {
    let rig = talk_rig(|config| config.multiturn.ttl = Duration::from_millis(150));
    let mut talk = Talk::new("c");
    talk.say(rig.server.address, "one");
    std::thread::sleep(Duration::from_millis(200));
    talk.say(rig.server.address, "two");
    assert!(!reused(&rig));
    right(&talk);
    counted(&rig, "expired", 1.0);
    clean(&rig);
}

#[test]
fn the_oldest_goes_for_the_newest() {
    let rig = talk_rig(|config| config.multiturn.entries_max = 3);
    let mut talks: Vec<Talk> = (0..5).map(|i| Talk::new(&i.to_string())).collect();
    for talk in &mut talks {
        talk.say(rig.server.address, "hello");
    }
    assert_eq!(conversations(&rig, "evicted"), 2.0);
    // The newest first: each turn takes one out and puts it back.
    for (number, talk) in talks.iter_mut().enumerate().rev() {
        talk.say(rig.server.address, "again");
        assert_eq!(reused(&rig), number >= 2, "{number}");
    }
    clean(&rig);
}

#[test]
fn bytes_have_a_bound_of_their_own() {
    let rig = talk_rig(|config| config.multiturn.bytes_max = 2000);
    for i in 0..8 {
        Talk::new(&i.to_string()).say(rig.server.address, "hello");
    }
    let (stored, evicted) = (
        conversations(&rig, "stored"),
        conversations(&rig, "evicted"),
    );
    assert_eq!(stored, 8.0);
    assert!((5.0..8.0).contains(&evicted), "{evicted}");
}

/// The page of the original, which also says what went.
#[test]
fn health_says_how_many_are_kept() {
    use pdrelay::config::Surface;
    let rig = talk_rig(|config| {
        config.surface = Surface::Multiturn;
        config.multiturn.ttl = Duration::from_millis(400);
    });
    let health = || rig.get("/health").json();
    let page = |n, m| json!({"status": "ok", "cached_conversations": n, "evicted_stale": m});
    assert_eq!(health(), page(0, 0));
    Talk::new("a").say(rig.server.address, "x");
    Talk::new("b").say(rig.server.address, "x");
    assert_eq!(health(), page(2, 0));
    std::thread::sleep(Duration::from_millis(450));
    assert_eq!(health(), page(0, 2));
    assert_eq!(health(), page(0, 0));
}
