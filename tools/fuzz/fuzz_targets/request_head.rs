//! Request heads: the same verdict however they arrive, and nothing passes that can be read twice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::head::{Framing, Method, RequestHead};
use pdrelay_fuzz::head::{Clear, clear, end_of, same_fields, written};

fuzz_target!(|data: &[u8]| {
    _ = RequestHead::parse(data);
    let Ok(Some(end)) = end_of(data) else { return };
    let head = &data[..end];
    let clear = clear(head);
    match RequestHead::parse(head) {
        Ok(parsed) => {
            let clear = clear.expect("an ambiguous head passed");
            agree(head, &parsed, &clear);
            again(head, &parsed);
        }
        Err(why) => {
            let good = clear.is_some_and(|c| c.plain() && must_pass(&c));
            assert!(!good, "a plain head was refused: {why:?}");
        }
    }
});

fn agree(head: &[u8], parsed: &RequestHead, clear: &Clear) {
    same_fields(head, &parsed.fields, clear);
    let words: Vec<&[u8]> = clear.first.split(|b| *b == b' ').collect();
    let [method, target, version] = words[..] else {
        panic!("a request line of {} words", words.len())
    };
    assert_eq!(parsed.method_text(head).as_bytes(), method);
    assert_eq!(parsed.target(head).as_bytes(), target);
    let expected: &[u8] = if parsed.http11 {
        b"HTTP/1.1"
    } else {
        b"HTTP/1.0"
    };
    assert_eq!(version, expected);
    assert_eq!(parsed.method == Method::Post, method == b"POST");
    assert_eq!(parsed.method == Method::Head, method == b"HEAD");

    let hosts = clear.named("host").len();
    assert!(hosts == 1 || (hosts == 0 && !parsed.http11));
    let framing = clear.framing().unwrap_or(Framing::Length(0));
    assert_eq!(parsed.framing, framing);
    assert!(parsed.http11 || framing != Framing::Chunked);
    let stays = match parsed.http11 {
        true => !clear.lists("close"),
        false => clear.lists("keep-alive") && !clear.lists("close"),
    };
    assert_eq!(parsed.keep_alive, stays);
    let expect = clear.named("expect");
    let first = expect
        .first()
        .is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
    assert_eq!(parsed.expects_continue, first && parsed.http11);

    // What routes is what is sent on, less the query.
    let (sent, path) = (parsed.origin_form(head), parsed.path(head));
    assert!(!path.contains('?'));
    let query = sent.strip_prefix(path).expect("the path comes first");
    assert!(query.is_empty() || query.starts_with('?'));
    assert!(sent == "/" || parsed.target(head).ends_with(sent));
    if target.starts_with(b"/") {
        assert_eq!(sent.as_bytes(), target);
    }
}

/// What we would write from it is read as the same.
fn again(head: &[u8], parsed: &RequestHead) {
    let version = if parsed.http11 { "1.1" } else { "1.0" };
    let first = format!(
        "{} {} HTTP/{version}",
        parsed.method_text(head),
        parsed.target(head)
    );
    let copy = written(&first, head, &parsed.fields);
    let reread = RequestHead::parse(&copy).expect("our own writing");
    assert_eq!(reread.framing, parsed.framing);
    assert_eq!(reread.path(&copy), parsed.path(head));
    let fields = |head: &[u8], parsed: &RequestHead| -> Vec<(Vec<u8>, Vec<u8>)> {
        let both = parsed
            .fields
            .iter()
            .map(|f| (f.name(head).to_vec(), f.value(head).to_vec()));
        both.collect()
    };
    assert_eq!(fields(&copy, &reread), fields(head, parsed));
}

fn must_pass(clear: &Clear) -> bool {
    let words: Vec<&[u8]> = clear.first.split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else {
        return false;
    };
    [
        &b"GET"[..],
        b"POST",
        b"DELETE",
        b"OPTIONS",
        b"HEAD",
        b"PUT",
        b"PATCH",
    ]
    .contains(&method)
        && target.starts_with(b"/")
        && target
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"/-._~?=&%".contains(b))
        && clear.named("host").len() == 1
}
