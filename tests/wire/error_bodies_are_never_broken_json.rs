use pdrelay::wire::{json, openai, sse};
use proptest::prelude::*;
use serde_json::{Value, json};

proptest! {
    #[test]
    fn any_message(message in any::<String>(), kind in any::<String>(), code in any::<u16>()) {
        let body = openai::error_body(&message, &kind, code);
        let read: Value = serde_json::from_slice(&body).expect("JSON");
        prop_assert_eq!(
            read,
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        );
        // As an event it stays on its line.
        for mid_event in [false, true] {
            let event = sse::error_event(&body, mid_event);
            let text = String::from_utf8(event).expect("UTF-8");
            let rest = text.strip_prefix(if mid_event { "\n\n" } else { "" }).unwrap();
            let line = rest.strip_prefix("data: ").and_then(|r| r.strip_suffix("\n\n")).unwrap();
            prop_assert!(!line.contains(['\r', '\n']));
            prop_assert_eq!(line.as_bytes(), &body[..]);
        }
    }

    #[test]
    fn any_string(text in any::<String>()) {
        let mut out = vec![];
        json::put_string(&mut out, &text);
        let read: String = serde_json::from_slice(&out).expect("a string");
        prop_assert_eq!(&read, &text);
        let inner = json::string_value(&out);
        prop_assert_eq!(inner.as_deref(), Some(text.as_bytes()));
    }
}

#[test]
fn every_control_character() {
    let message: String = (0..=0x9fu8).map(char::from).collect();
    let body = openai::error_body(&message, "x", 400);
    let read: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(read["error"]["message"], message);
}
