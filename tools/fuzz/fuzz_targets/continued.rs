//! D's stream behind P's token: the same answer under any split, with one id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::continued::{Continued, Opening};
use pdrelay::wire::first_token::Token;
use pdrelay::wire::json::Object;
use pdrelay_fuzz::{Dice, splits};

const PREFILL: &[u8] = br#"{"id":"cmpl-p","created":1,"model":"m","choices":[{"index":0,"text":" one","finish_reason":"length"}]}"#;

fuzz_target!(|data: &[u8]| {
    let mut dice = Dice::of(data);
    let object = Object::scan(PREFILL, 64).unwrap();
    let token = Token::of(PREFILL, &object, false).unwrap();
    for chat in [false, true] {
        let opening = Opening::of(PREFILL, &object, chat, Some(&token), 1);
        let continued = Continued::new(opening, dice.roll(2) == 1);
        let whole = told(&continued, &[data]);
        for pieces in splits(data, &mut dice) {
            assert_eq!(told(&continued, &pieces), whole);
        }
        // (A name can be written with escapes.)
        if !data.windows(6).any(|w| w == b"choice") && !data.contains(&b'\\') {
            assert!(whole.ends_with(data), "what is no completion passes");
        }
        let Ok(text) = std::str::from_utf8(&whole) else { continue };
        let own = if chat { "chatcmpl-p" } else { "cmpl-p" };
        let first = text.split("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
        let first: serde_json::Value = serde_json::from_str(first).unwrap();
        assert_eq!(first["id"], own);
    }
});

fn told(continued: &Continued, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut one, mut out) = (continued.clone(), Vec::new());
    one.feed(b"", &mut out);
    for piece in pieces {
        one.feed(piece, &mut out);
    }
    one.finish(&mut out);
    out
}
