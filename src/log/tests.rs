//! What the log promises, each test on a ring of its own unless it says otherwise.

use std::io::{self, Write};
use std::thread;
use std::time::UNIX_EPOCH;

use super::repeat::Limiter;
use super::*;

fn memory(format: Format, capacity: usize) -> (Options, Arc<Mutex<Vec<u8>>>) {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::Memory(Arc::clone(&bytes));
    (
        Options {
            format,
            capacity,
            sink,
            ..Options::default()
        },
        bytes,
    )
}

fn text_of(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(bytes.lock().unwrap().clone()).unwrap()
}

fn line_of(entry: &Entry, format: Format) -> String {
    let mut out = String::new();
    entry.format(format, &mut out);
    out
}

fn message(text: &str) -> Entry {
    let time = UNIX_EPOCH + Duration::from_millis(1_795_226_584_123);
    Entry::Message {
        time,
        level: Level::Warning,
        text: text.into(),
    }
}

fn sample() -> Access {
    Access {
        time: UNIX_EPOCH + Duration::from_millis(1_795_226_584_123),
        id: "req-1".into(),
        client: Some("10.1.2.3".parse().unwrap()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        status: 200,
        endpoint: "chat",
        handshake: "nixl",
        prefill: Some("10.0.0.1:8100".into()),
        decode: Some("[::1]:8200".into()),
        bytes_in: 1034,
        bytes_out: 5120,
        chunks: 16,
        body: Some(Duration::from_micros(80)),
        prefill_time: Some(Duration::from_micros(12_345)),
        ttft: Some(Duration::from_millis(20)),
        total: Duration::from_micros(1_234_567),
        ..Access::default()
    }
}

#[test]
fn an_access_line_reads_as_promised() {
    let line = line_of(&Entry::Access(sample()), Format::Text);
    assert_eq!(
        line,
        "2026-11-21T02:03:04.123Z info access id=req-1 client=10.1.2.3 \
         \"POST /v1/chat/completions\" 200 endpoint=chat handshake=nixl prefill=10.0.0.1:8100 \
         decode=[::1]:8200 in=1034 out=5120 chunks=16 retries=0 body_ms=0.080 prefill_ms=12.345 \
         ttft_ms=20.000 total_ms=1234.567 end=ok\n"
    );
    let broken = Access {
        end: End::Broken("upstream_closed"),
        ..sample()
    };
    let line = line_of(&Entry::Access(broken), Format::Text);
    assert!(line.ends_with(" end=broken reason=upstream_closed\n"));
}

/// Whatever a client sends in its id or path stays inside its own value of its own line.
#[test]
fn a_client_cannot_forge_a_line() {
    let evil = "x\" 200 end=ok\r\n2026-11-21T02:03:04.123Z info access \\ \u{1b}[2J\u{85}\u{2028}\u{202e}\0\u{7f}é";
    let access = Access {
        id: evil.into(),
        path: evil.into(),
        method: evil.into(),
        ..sample()
    };
    let plain = "x\\\" 200 end=ok\\r\\n2026-11-21T02:03:04.123Z info access \\\\ \
                 \\u001b[2J\\u0085\\u2028\\u202e\\u0000\\u007fé";
    let line = line_of(&Entry::Access(access.clone()), Format::Text);
    assert!(
        line.contains(&format!("access id=\"{plain}\" client=")),
        "{line}"
    );
    assert!(
        line.contains(&format!("\"{plain} {plain}\" 200 endpoint=chat")),
        "{line}"
    );
    for entry in [Entry::Access(access), message(evil)] {
        for format in [Format::Text, Format::Json] {
            let line = line_of(&entry, format);
            let body = line.strip_suffix('\n').unwrap();
            assert!(
                !body
                    .chars()
                    .any(|c| c.is_control() || c == '\u{2028}' || c == '\u{202e}')
            );
        }
    }
}

#[test]
fn json_lines_are_json_and_give_back_what_was_put_in() {
    let evil = "q\" \\ \r\n\t\0 \u{1b} \u{9f} \u{2029} 𝄞";
    let access = Access {
        id: evil.into(),
        end: End::Error("no_instance"),
        ..sample()
    };
    let line = line_of(&Entry::Access(access), Format::Json);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["time"], "2026-11-21T02:03:04.123Z");
    assert_eq!(json["level"], "info");
    assert_eq!(json["message"], "access");
    assert_eq!(json["id"], evil);
    assert_eq!(json["status"], 200);
    assert_eq!(json["decode"], "[::1]:8200");
    assert_eq!(json["prefill_ms"], 12.345);
    assert_eq!(json["in"], 1034);
    assert_eq!(
        (&json["end"], &json["reason"]),
        (&"error".into(), &"no_instance".into())
    );
    assert!(json.get("stream_ms").is_none());
    let line = line_of(&message(evil), Format::Json);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&json["level"], &json["message"]),
        (&"warning".into(), &evil.into())
    );
}

/// Memory in the ring is bounded by what a client may put into one line.
#[test]
fn long_ids_and_paths_are_cut() {
    let long: Box<str> = "é".repeat(30_000).into();
    let access = Access {
        id: long.clone().into(),
        path: long.clone(),
        method: long.into_string().into(),
        ..sample()
    }
    .bounded();
    assert!(access.id.len() + access.path.len() + access.method.len() < 800);
    assert!(access.path.ends_with("..."));
}

#[test]
fn a_full_ring_drops_counts_and_says_so() {
    let (options, bytes) = memory(Format::Text, 4);
    let before = dropped();
    {
        // Holding the sink stalls the writer: nobody who logs waits for it.
        let stall = bytes.lock().unwrap();
        let guard = writer::start(options).unwrap();
        (0..1000).for_each(|i| guard.ring().push(message(&format!("line {i}"))));
        assert!(guard.ring().dropped.load(Relaxed) >= 1000 - 2 * 4);
        drop(stall);
    }
    let text = text_of(&bytes);
    assert!(text.contains("warning line 0\n"));
    let kept = text.lines().filter(|line| line.contains(" line ")).count();
    let told: usize = text
        .lines()
        .filter_map(|line| {
            line.split(" warning ")
                .nth(1)?
                .split_once(" log lines were dropped")
        })
        .map(|(n, _)| n.parse::<usize>().unwrap())
        .sum();
    assert_eq!(kept + told, 1000, "{text}");
    assert!(dropped() - before >= told as u64);
}

#[test]
fn the_end_writes_everything_and_in_order() {
    let (options, bytes) = memory(Format::Text, 100_000);
    let guard = writer::start(options).unwrap();
    let ring = guard.ring();
    thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                (0..10_000).for_each(|i| ring.push(message(&format!("t{thread} {i}"))));
            });
        }
    });
    drop(guard);
    let text = text_of(&bytes);
    for thread in 0..2 {
        let mark = format!(" t{thread} ");
        let numbers = text.lines().filter_map(|line| line.split_once(&mark));
        assert!(
            numbers
                .map(|(_, n)| n.parse::<u32>().unwrap())
                .eq(0..10_000)
        );
    }
}

/// The one test of the process-wide log: other tests may log into it meanwhile.
#[test]
fn the_global_log_starts_filters_flushes_and_stops() {
    let (options, bytes) = memory(Format::Text, 1000);
    access(Access {
        id: "too-early".into(),
        ..sample()
    });
    let guard = start(Options {
        level: Level::Info,
        ..options
    })
    .unwrap();
    assert!(enabled(Level::Error) && enabled(Level::Info) && !enabled(Level::Debug));
    crate::log_error!("an error {}", 1);
    crate::log_warning!("a {}", "warning");
    crate::log_info!("some info");
    debug(|| panic!("must not be formatted"));
    crate::log_debug!("{}", "hidden");
    access(Access {
        id: "one-request".into(),
        ..sample()
    });
    limited("test", Level::Warning, || "instance down".into());
    limited("test", Level::Warning, || panic!("must not be formatted"));
    flush(Duration::from_secs(5));
    let text = text_of(&bytes);
    let words = [
        " error an error 1\n",
        " warning a warning\n",
        " info some info\n",
        "one-request",
        " down\n",
    ];
    for word in words {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(!text.contains("too-early") && !text.contains("hidden"));
    error(|| "x".repeat(100_000));
    drop(guard);
    let text = text_of(&bytes);
    assert!(text.ends_with("xxx...\n") && text.len() < 12_000);
    info(|| "after the end: straight to stderr".into());
    access(sample());
    assert_eq!(text_of(&bytes), text);
}

#[test]
fn a_repeated_message_is_shown_once_a_second_per_subject() {
    let limiter = Limiter::new();
    assert_eq!(limiter.admit("down", "a:1", 0), Some(0));
    assert_eq!(limiter.admit("down", "a:1", 1), None);
    assert_eq!(limiter.admit("down", "a:1", 999), None);
    assert_eq!(limiter.admit("down", "b:1", 999), Some(0));
    assert_eq!(limiter.admit("up", "a:1", 999), Some(0));
    assert_eq!(limiter.admit("down", "a:1", 1000), Some(2));
    assert_eq!(limiter.admit("down", "a:1", 1001), None);
    // A table that is full limits all the more.
    for i in 0..10_000 {
        limiter.admit("down", &i.to_string(), 5000);
    }
    let shown = (0..10_000)
        .filter(|i| limiter.admit("x", &i.to_string(), 5500).is_some())
        .count();
    assert!(shown < 600, "{shown}");
}

#[test]
fn one_of_many_threads_shows_a_repeated_message() {
    let limiter = Limiter::new();
    let shown = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let admitted = (0..1000)
                    .filter(|_| limiter.admit("k", "", 7).is_some())
                    .count();
                shown.fetch_add(admitted as u64, Relaxed);
            });
        }
    });
    assert_eq!(shown.load(Relaxed), 1);
    assert_eq!(limiter.admit("k", "", 2000), Some(3999));
}

/// A non-blocking stderr that is full for a moment loses nothing; one that is gone is not waited for.
#[test]
fn a_sink_that_is_full_for_a_moment_loses_nothing() {
    struct Fitful(Vec<u8>, u32);
    impl Write for Fitful {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 3 {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                1 => Err(io::ErrorKind::Interrupted.into()),
                _ => self.0.write(&bytes[..bytes.len().min(5)]),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Fitful(Vec::new(), 0);
    writer::write_patiently(&mut sink, b"a line that is longer than five").unwrap();
    assert_eq!(sink.0, b"a line that is longer than five");
    assert!(writer::write_patiently(&mut &mut [0u8; 3][..], b"too long").is_err());
}
