//! Every way in which a request can fail is found, and named rightly.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use pdload::stats::Failure;

use crate::server::*;

/// The only failure of ten requests to a server that answers like this.
fn only_failure(line: &str, answer: fn(&mut TcpStream, &Asked) -> bool) -> Failure {
    let report = load(&serve(answer), &format!("-n 10 -c 2 {line}"));
    assert!(!report.clean());
    assert_eq!(report.requests.ok + report.requests.failed, 10, "{report}");
    assert_eq!(report.errors.by_kind.len(), 1, "{report}");
    *report.errors.by_kind.first_key_value().unwrap().0
}

#[test]
fn broken_streams() {
    let missing = only_failure("", |stream, _| {
        send(stream, STREAM_HEAD) && token(stream, "a") && send(stream, "0\r\n\r\n")
    });
    assert_eq!(missing, Failure::MissingDone);
    let truncated = only_failure("", |stream, _| {
        (send(stream, STREAM_HEAD) && token(stream, "a")).then(|| chunk(stream, "[DONE]"));
        false
    });
    assert_eq!(truncated, Failure::Truncated);
    let error = only_failure("", |stream, _| {
        (send(stream, STREAM_HEAD) && token(stream, "a")).then(|| chunk(stream, "{\"error\":{}}"));
        false
    });
    assert_eq!(error, Failure::SseError);
    let late = only_failure("", |stream, _| {
        send(stream, STREAM_HEAD) && chunk(stream, "[DONE]") && token(stream, "a") && finish(stream)
    });
    assert_eq!(late, Failure::Protocol);
    let json = only_failure("", |stream, _| json_answer(stream, "a"));
    assert_eq!(json, Failure::WrongType);
}

#[test]
fn broken_answers() {
    let short = only_failure("--no-stream", |stream, _| {
        send(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        false
    });
    assert_eq!(short, Failure::Truncated);
    let status = only_failure("--no-stream", |stream, _| {
        send(stream, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
    });
    assert_eq!(status, Failure::Status);
    let extra = only_failure("--no-stream", |stream, _| {
        send(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc");
        false
    });
    assert_eq!(extra, Failure::Protocol);
    let id = only_failure("--no-stream --echo-id", |stream, _| {
        json_answer(stream, "a")
    });
    assert_eq!(id, Failure::IdMismatch);
    let slow = only_failure("--no-stream --timeout-s 0.2", |stream, _| {
        std::thread::sleep(Duration::from_millis(600));
        json_answer(stream, "a")
    });
    assert_eq!(slow, Failure::Timeout);
}

#[test]
fn broken_connections() {
    let closed = only_failure("--no-stream", |_, _| false);
    assert_eq!(closed, Failure::Reset);
    let stale = only_failure("--no-stream", |stream, asked| {
        asked.number == 0 && json_answer(stream, "a")
    });
    assert_eq!(stale, Failure::Stale);
    let reset = only_failure("--no-stream", |stream, _| {
        send(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: the option value is a live struct of the size given.
        unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        };
        false
    });
    assert_eq!(reset, Failure::Reset);
    let report = load("http://127.0.0.1:9", "-n 5 -c 1");
    assert_eq!(
        report.errors.by_kind.get(&Failure::Connect),
        Some(&5),
        "{report}"
    );
}

#[test]
fn another_text_for_the_same_prompt() {
    let count = AtomicUsize::new(0);
    let url = serve(move |stream, _| {
        json_answer(
            stream,
            if count.fetch_add(1, Relaxed) == 7 {
                "b"
            } else {
                "a"
            },
        )
    });
    let report = load(&url, "-n 20 -c 1 --no-stream --verify-stable");
    assert_eq!(
        report.errors.by_kind.get(&Failure::TextMismatch),
        Some(&1),
        "{report}"
    );
    assert_eq!(report.requests.ok, 19);
}

#[test]
fn an_answer_before_the_body_was_read_is_still_an_answer() {
    // A server that refuses a large body by its head, and closes. The request is 4 MB: more than socket buffers take.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                send(
                    &mut stream,
                    "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n",
                );
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                // Lingers, as a proxy should: a close with unread bytes would reset the connection.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    let report = load(&url, "-n 4 -c 2 --no-stream --prompt-bytes 4000000");
    assert_eq!(report.errors.statuses.get(&413), Some(&4), "{report}");
    assert_eq!(
        report.errors.by_kind.get(&Failure::Status),
        Some(&4),
        "{report}"
    );
}
