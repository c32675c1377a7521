//! Without a P a request is the engine's as it came; everything that is not split is, too.

use super::{beside, beside_with, fields, post_plain, says};
use crate::support::{Client, post_bytes};

const ANSWER: &str = r#"{"id":"x","object":"chat.completion"}"#;

#[test]
fn bodies_without_a_prefill_instance_are_never_looked_at() {
    let d = says("200 OK", ANSWER);
    let server = beside("sidecar", d.address, &[]);
    for body in [
        r#"{"kv_transfer_params":{"do_remote_prefill":true,"x":12345678901234567890},"seed":9007199254740993}"#,
        "no JSON at all",
        "[[[[",
        "",
    ] {
        let named = "x-prefiller-host-port: \r\n";
        let response = post_plain(&server, "/v1/chat/completions?a=%20b", body, named);
        assert_eq!((response.status, response.text()), (200, ANSWER.to_owned()));
        let got = d.requests().pop().unwrap();
        assert!(got.ends_with(&format!("\r\n\r\n{body}")), "{got}");
        assert!(got.starts_with("POST /v1/chat/completions?a=%20b HTTP/1.1\r\n"));
        assert_eq!(fields(&got, "host"), ["t"], "the client's own is kept");
        assert_eq!(fields(&got, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(fields(&got, "x-request-id").len(), 1);
        assert!(fields(&got, "x-prefiller-host-port").is_empty());
    }
}

#[test]
fn every_other_path_and_method_is_the_engine_s() {
    let d = says("418 I'm a teapot", "{}");
    let server = beside("sidecar", d.address, &[]);
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("DELETE", "/anything/../at?all"),
        ("PURGE", "/x"),
        ("GET", "/v1/chat/completions"),
        ("PUT", "/health"),
    ] {
        let mut client = Client::connect(server.address);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: gateway\r\nx-forwarded-for: 10.0.0.9\r\nx-prefiller-host-port: p:1\r\n\
             x-encoder-hosts-ports: e:1\r\nx-kv-cache-source-host-port: c:1\r\nx-prefiller-url: http://p:1\r\n\r\n"
        ));
        assert_eq!(client.response_to(method).status, 418, "{method} {path}");
        let got = d.requests().pop().unwrap();
        assert!(
            got.starts_with(&format!("{method} {path} HTTP/1.1\r\n")),
            "{got}"
        );
        assert_eq!(fields(&got, "host"), ["gateway"]);
        assert_eq!(fields(&got, "x-forwarded-for"), ["10.0.0.9, 127.0.0.1"]);
        assert!(
            !got.contains("p:1") && !got.contains("e:1") && !got.contains("c:1"),
            "{got}"
        );
    }
}

#[test]
fn its_own_health_never_depends_on_the_engine() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let server = beside("sidecar", address, &[]);
    let health = Client::connect(server.address).get("/health");
    assert_eq!((health.status, health.text()), (200, String::new()));
    // An engine that is not there (yet).
    for path in ["/v1/models", "/v1/completions"] {
        let response = match path {
            "/v1/models" => Client::connect(server.address).get(path),
            _ => post_plain(
                &server,
                path,
                r#"{"prompt":"x"}"#,
                "x-prefiller-url: http://127.0.0.1:1\r\n",
            ),
        };
        let error = response.json();
        if path == "/v1/models" {
            assert_eq!(response.status, 503, "{error}");
            assert_eq!(error["object"], "error");
            assert_eq!(error["type"], "ServiceUnavailable");
            assert_eq!((&error["param"], &error["code"]), (&"".into(), &503.into()));
            let said = error["message"].as_str().unwrap();
            assert!(said.starts_with("The decode node is not ready."), "{said}");
        } else {
            // A P that is not there is a bad gateway.
            assert_eq!(
                (response.status, &error["type"]),
                (502, &"BadGateway".into())
            );
        }
    }
}

#[test]
fn each_rank_has_its_port_and_its_header() {
    let (d0, d1) = (
        says("200 OK", r#"{"rank":0}"#),
        says("200 OK", r#"{"rank":1}"#),
    );
    let server = beside_with("sidecar", d0.address, &[], |config| {
        let mut second = config.instances[0].clone();
        second.address = pdrelay::config::Address::tcp("127.0.0.1", d1.address.port());
        config.instances.push(second);
        let sidecar = config.sidecar.as_mut().unwrap();
        sidecar.pod_ip = Some("10.1.1.1".parse().unwrap());
        sidecar.metrics_port = Some(0);
    });
    let [main, other, own] = server.addresses[..] else {
        panic!("{:?}", server.addresses)
    };
    for (address, rank) in [(main.1, 0), (other.1, 1)] {
        for path in ["/v1/completions", "/elsewhere"] {
            let mut client = Client::connect(address);
            client.send(post_bytes(path, "{}", ""));
            assert_eq!(client.response().json()["rank"], rank, "{path}");
        }
    }
    // The proxy's own pages, and nothing else, on a port of their own.
    let page = Client::connect(own.1).get("/metrics");
    assert!(
        page.text().contains("pdrelay_requests_total"),
        "{}",
        page.text()
    );
    assert_eq!(Client::connect(own.1).get("/v1/models").status, 404);
    // The older way: a header, which must name a rank exactly. (The port is 0 in a test: any.)
    for (place, status) in [
        ("10.1.1.1:1", 200),
        ("10.1.1.1:9", 400),
        ("10.1.1.2:1", 400),
    ] {
        let more = format!(
            "x-data-parallel-host-port: {place}\r\nx-prefiller-host-port: {}\r\n",
            d0.address
        );
        let response = post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &more);
        assert_eq!(response.status, status, "{place}: {}", response.text());
        if status == 200 {
            assert_eq!(response.json()["rank"], 1);
        }
    }
}
