//! API keys go to the engines and nowhere else.

use super::{File, Serving, command, finish};
use crate::support::{completion, engines, post_bytes};

const IN_FILE: &str = "sk-in-the-file-1234567890";
const IN_ENV: &str = "sk-in-the-environment-1234567890";
const ADMIN: &str = "admin-key-1234567890";

fn clean(text: &str, where_from: &str) {
    for secret in [IN_FILE, IN_ENV, ADMIN, "1234567890"] {
        assert!(
            !text.contains(secret),
            "{secret} is in {where_from}:\n{text}"
        );
    }
}

fn good() -> File {
    let text = format!("openai_api_key: {IN_FILE}\nadmin_api_key: {ADMIN}\n");
    File::new("secrets.yaml", &text)
}

#[test]
fn check_says_only_that_they_are_set() {
    let file = good();
    let args = ["check", "-c", file.path(), "-p", "a:1", "-d", "b:1"];
    for env in [None, Some(IN_ENV), Some("")] {
        let mut command = command(&args);
        env.map(|key| command.env("OPENAI_API_KEY", key));
        let ran = finish(command);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let set = if env == Some("") {
            "(not set)"
        } else {
            "(set)"
        };
        let line = ran.out.lines().find(|l| l.starts_with("openai_api_key"));
        assert!(line.unwrap().ends_with(set), "{line:?}");
        clean(&(ran.out + &ran.err), "check");
    }
}

#[test]
fn mistakes_in_them_are_not_quoted() {
    for text in [
        format!("openai_api_key: [{IN_FILE}]\n"),
        format!("openai_api_key: {{{IN_FILE}: 1}}\n"),
        format!("openai_api_key: \"{IN_FILE}\\r\\nx: y\"\n"),
        format!("openai_api_key: \"{IN_FILE} \\u00e9\"\n"),
        format!("admin_api_key: [{ADMIN}]\n"),
        "admin_api_key: 1234567890\nopenai_api_key: 1234567890.5\n".to_owned(),
    ] {
        let file = File::new(
            "bad-secrets.yaml",
            &format!("prefill: [a:1]\ndecode: [b:1]\n{text}"),
        );
        let ran = finish(command(&["check", "-c", file.path()]));
        clean(&(ran.out + &ran.err), &text);
    }
    // One that would smuggle a header line to the engines is refused.
    for key in ["sk-1234567890\r\nx-evil: 1", "sk-1234567890\u{e9}"] {
        let mut command = command(&["check", "-p", "a:1", "-d", "b:1"]);
        command.env("OPENAI_API_KEY", key);
        let ran = finish(command);
        assert_eq!(ran.code, Some(1), "{key:?}: {}", ran.out);
        assert!(ran.err.contains("OPENAI_API_KEY"), "{}", ran.err);
        clean(&ran.err, "the error");
    }
}

#[test]
fn a_server_gives_its_key_to_engines_only() {
    let file = good();
    let more = ["--config", file.path(), "--log-level", "debug"];
    let serving = Serving::with("nixl", engines(1, 1), &more, |command| {
        command.env("OPENAI_API_KEY", IN_ENV);
    });
    let mut client = serving.client();
    let mut seen = String::new();
    let headers = [
        "authorization: Bearer of-the-client\r\n",
        "authorization: Bearer of-the-client\r\nx-sim-fault-decode: half-head\r\n",
        "x-sim-fault-prefill: status:401\r\n",
    ];
    for header in headers {
        client.send(post_bytes("/v1/completions", &completion("x", ""), header));
        let response = client.response();
        seen += &(response.head.clone() + &response.text());
    }
    for page in ["/status", "/metrics", "/ready", "/v1/models", "/nope"] {
        let response = client.get(page);
        seen += &(response.head.clone() + &response.text());
    }
    clean(&seen, "an answer");
    for engine in [0, 1] {
        let all = serving.sim.transcript(engine);
        let posts: Vec<_> = all.iter().filter(|r| r.method == "POST").collect();
        assert!(!posts.is_empty());
        for leg in posts {
            assert_eq!(
                leg.header("authorization"),
                Some(&*format!("Bearer {IN_ENV}"))
            );
            let keys = leg
                .headers
                .iter()
                .filter(|h| h.0.eq_ignore_ascii_case("authorization"));
            assert_eq!(keys.count(), 1);
        }
    }
    drop(client);
    let said = serving.end();
    assert!(said.contains("access"), "{said}");
    clean(&said, "the log");
    assert!(!said.contains("of-the-client"), "{said}");
}
