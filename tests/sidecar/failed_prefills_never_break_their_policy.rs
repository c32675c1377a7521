//! What becomes of a request whose P failed is a policy; each generation has its own by default.

use super::{beside, post, says};
use crate::support::scripted::{Say, Scripted, answer};

const SENT: &str = r#"{"prompt":"x","kv_transfer_params":{"of":"the client"}}"#;
const WHY: &str = r#"{"error":{"message":"P says why","code":1}}"#;

fn fails(status: &'static str) -> Scripted {
    Scripted::start(move |_, _| {
        let text = format!(
            "HTTP/1.1 {status}\r\nx-why: because\r\ncontent-length: {}\r\n\r\n{WHY}",
            WHY.len()
        );
        Say::Bytes(text.into_bytes())
    })
}

#[test]
fn the_first_generation_gives_a_status_and_no_body() {
    let d = says("200 OK", "{}");
    let server = beside("routing-sidecar", d.address, &[]);
    for (status, number) in [("503 Service Unavailable", 503), ("422 No", 422)] {
        let response = post(&server, "/v1/completions", SENT, &fails(status), "");
        assert_eq!((response.status, response.text()), (number, String::new()));
    }
    assert!(d.bodies().is_empty());
}

#[test]
fn the_second_generation_falls_back_to_decode() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let server = beside("sidecar", d.address, &["--generation=g2"]);
    for status in ["500 No", "503 No", "429 No"] {
        let response = post(&server, "/v1/completions", SENT, &fails(status), "");
        let (number, _) = status.split_once(' ').unwrap();
        if number == "429" {
            // P's word on the request itself: as it is.
            assert_eq!((response.status, response.text()), (429, WHY.to_owned()));
            assert_eq!(response.header("x-why"), Some("because"));
        } else {
            assert_eq!(
                (response.status, response.text()),
                (200, r#"{"from":"d"}"#.into())
            );
        }
    }
    let gone = fails("200 OK");
    let address = gone.address;
    drop(gone);
    let named = format!("x-prefiller-host-port: {address}\r\n");
    let response = super::post_plain(&server, "/v1/completions", SENT, &named);
    assert_eq!(response.status, 200, "{}", response.text());
    // The original body, the client's own params included.
    assert_eq!(d.bodies(), [SENT, SENT, SENT]);
}

#[test]
fn the_third_generation_tries_the_same_p_again_and_then_says_what_it_said() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    for (retries, fails_first, tries, status) in [(0, 9, 1, 503), (2, 9, 3, 503), (2, 1, 2, 200)] {
        let p = Scripted::start(move |number, _| {
            Say::Bytes(match number < fails_first {
                true => answer("503 Busy", WHY),
                false => answer("200 OK", r#"{"kv_transfer_params":{"a":1}}"#),
            })
        });
        let args = [
            format!("--prefill-max-retries={retries}"),
            "--prefill-retry-backoff=10ms".into(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let server = beside("sidecar", d.address, &args);
        let before = d.bodies().len();
        let response = post(&server, "/v1/completions", SENT, &p, "");
        assert_eq!(response.status, status);
        assert_eq!(p.bodies().len(), tries, "{retries} retries");
        match status {
            200 => assert_eq!(d.bodies().len(), before + 1),
            _ => assert_eq!(
                (response.text(), d.bodies().len()),
                (WHY.to_owned(), before)
            ),
        }
    }
    // What is not a passing state is said at once.
    let server = beside("sidecar", d.address, &["--prefill-max-retries=3"]);
    let p = fails("500 Broken");
    let response = post(&server, "/v1/completions", SENT, &p, "");
    assert_eq!((response.status, response.text()), (500, WHY.to_owned()));
    assert_eq!(p.bodies().len(), 1);
}

/// The upstream dropped its fallback, and those who relied on it lost availability: here it is a flag.
#[test]
fn the_policy_is_nobody_s_but_the_user_s() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let args = ["--prefill-failure=decode_only"];
    let server = beside("sidecar", d.address, &args);
    let response = post(&server, "/v1/completions", SENT, &fails("500 No"), "");
    assert_eq!(
        (response.status, response.text()),
        (200, r#"{"from":"d"}"#.into())
    );
}
