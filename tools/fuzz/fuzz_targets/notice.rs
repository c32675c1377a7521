//! Notices: what is read, is read the same however it is written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::wire::msgpack::{Notice, notice};

fuzz_target!(|data: &[u8]| {
    let Ok(read) = notice(data) else { return };
    let (id, failed) = match read {
        Notice::Arrived(id) => (id.to_owned(), false),
        Notice::Failed(id) => (format!("{id}::error"), true),
    };
    assert_eq!(failed, id.ends_with("::error"));
    // In other widths, and the other way round.
    let mut again = vec![0xdf, 0, 0, 0, 2];
    for text in ["req_id", &id, "type", "ProxyNotif"] {
        again.push(0xdb);
        again.extend_from_slice(&(text.len() as u32).to_be_bytes());
        again.extend_from_slice(text.as_bytes());
    }
    assert_eq!(notice(&again), Ok(read));
    for end in [0, 1, again.len() / 2, again.len() - 1] {
        assert!(notice(&again[..end]).is_err(), "a part is no notice");
    }
    assert!(notice(&data[..data.len() - 1]).is_err(), "a part is no notice");
});
