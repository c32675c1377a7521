//! Whom a header may name: by address, network or name, and by port, which the original never looked at.

use pdrelay::config::sidecar::{Allow, Target};

use super::{beside_with, post_plain, says};

const FORBIDDEN: &str = "Forbidden: prefill target not allowed by SSRF protection\n";

#[test]
fn only_listed_targets_are_asked() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let other = says("200 OK", "{}");
    let port = p.address.port();
    for (allowed, named, status) in [
        (format!("127.0.0.1:{port}"), p.address.to_string(), 200),
        ("127.0.0.0/8".into(), p.address.to_string(), 200),
        (format!("localhost:{port}"), format!("localhost:{port}"), 200),
        // An allowed host is no allowance for all that listens there.
        (format!("127.0.0.1:{port}"), other.address.to_string(), 403),
        ("10.0.0.0/8".into(), p.address.to_string(), 403),
        // A name that happens to lead to an allowed address is not that address.
        (format!("127.0.0.1:{port}"), format!("localhost:{port}"), 403),
        // Nobody is allowed by an empty list.
        (String::new(), p.address.to_string(), 403),
    ] {
        let server = beside_with("sidecar", d.address, &[], |config| {
            let targets = allowed.split_whitespace();
            config.sidecar.as_mut().unwrap().allow = Some(Allow {
                targets: targets.map(|text| Target::parse(text).unwrap()).collect(),
                pool: None,
            });
        });
        let before = (p.bodies().len(), d.bodies().len(), other.bodies().len());
        let more = format!("x-prefiller-host-port: {named}\r\n");
        let response = post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &more);
        assert_eq!(response.status, status, "{allowed}: {named}");
        if status == 403 {
            assert_eq!(response.text(), FORBIDDEN);
            let after = (p.bodies().len(), d.bodies().len(), other.bodies().len());
            assert_eq!(before, after, "nobody was asked");
        }
    }
}
