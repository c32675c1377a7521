//! Encoders that a header names: one request per item, merged, and none without an item.

use super::{beside, fields, post, post_plain, says};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, engine, eventually, post_bytes};

const ITEMS: &str = r#"{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},{"type":"image_url","image_url":{"url":"data:image/png;base64,BBBB"}},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}"#;

fn chat() -> String {
    format!(
        r#"{{"model":"m","max_tokens":9,"max_completion_tokens":9,"stream":true,"stream_options":{{}},"seed":9007199254740993,"messages":[{{"role":"system","content":"s"}},{{"role":"user","content":[{ITEMS}]}}]}}"#
    )
}

fn encoder(name: &'static str) -> Scripted {
    Scripted::start(move |_, _| {
        let said = format!(
            r#"{{"ec_transfer_params":{{"{name}":{{"big":18446744073709551615}},"both":"{name}"}}}}"#
        );
        Say::Bytes(answer("200 OK", &said))
    })
}

fn named(encoders: &[&Scripted]) -> String {
    let places: Vec<String> = encoders.iter().map(|e| e.address.to_string()).collect();
    format!(
        "x-encoder-hosts-ports: {}\r\nx-request-id: r\r\n",
        places.join(", ")
    )
}

#[test]
fn each_item_goes_to_one_encoder_and_what_they_say_to_p_and_d() {
    for (connector, carried) in [("ec-nixl", true), ("ec-example", false)] {
        let (first, second) = (encoder("one"), encoder("two"));
        let p = Scripted::start(|_, _| {
            Say::Bytes(answer("200 OK", r#"{"kv_transfer_params":{"a":1}}"#))
        });
        let d = says("200 OK", r#"{"from":"d"}"#);
        let server = beside(
            "sidecar",
            d.address,
            &[&format!("--ec-connector={connector}")],
        );
        let response = post(
            &server,
            "/v1/chat/completions",
            &chat(),
            &p,
            &named(&[&first, &second]),
        );
        assert_eq!(response.text(), r#"{"from":"d"}"#);
        // The same URL again is no other item.
        let bodies = [first.bodies(), second.bodies()].concat();
        assert_eq!(bodies.len(), 2);
        for (body, data) in bodies.iter().zip(["AAAA", "BBBB"]) {
            let expected = format!(
                r#"{{"model":"m","max_tokens":1,"max_completion_tokens":1,"stream":false,"seed":9007199254740993,"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}]}}"#
            );
            assert_eq!(*body, expected);
        }
        assert_eq!(fields(&first.requests()[0], "x-request-id"), ["r-enc-0"]);
        assert_eq!(fields(&second.requests()[0], "x-request-id"), ["r-enc-1"]);
        assert!(fields(&first.requests()[0], "x-encoder-hosts-ports").is_empty());
        for body in [&p.bodies()[0], &d.bodies()[0]] {
            assert!(body.contains(r#""cache_hit_threshold":0"#), "{body}");
            let merged = r#""ec_transfer_params":{"one":{"big":18446744073709551615},"two":{"big":18446744073709551615},"both":"two"}"#;
            assert_eq!(body.contains(merged), carried, "{body}");
        }
        // Without a P the same goes to D alone.
        let response = post_plain(&server, "/v1/chat/completions", &chat(), &named(&[&first]));
        assert_eq!(response.text(), r#"{"from":"d"}"#);
        assert_eq!((first.bodies().len(), p.bodies().len()), (3, 1));
        assert_eq!(d.bodies()[1].contains(r#""both":"one""#), carried);
        // Nothing to encode: nobody is asked.
        let plain = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
        post_plain(&server, "/v1/chat/completions", plain, &named(&[&first]));
        assert_eq!((first.bodies().len(), d.bodies()[2].as_str()), (3, plain));
    }
}

#[test]
fn a_failed_encoder_is_a_bad_gateway_and_ends_the_others() {
    let bad = says("500 No", r#"{"why":"no GPU"}"#);
    let slow = Scripted::start(|_, _| {
        let pieces = vec![Vec::new(), answer("200 OK", "{}")];
        Say::Slowly(pieces, std::time::Duration::from_secs(8))
    });
    let d = says("200 OK", "{}");
    let server = beside("sidecar", d.address, &["--ec-connector=ec-nixl"]);
    let began = std::time::Instant::now();
    let response = post_plain(
        &server,
        "/v1/chat/completions",
        &chat(),
        &named(&[&slow, &bad]),
    );
    assert_eq!(
        (response.status, response.json()["type"].clone()),
        (502, "BadGateway".into())
    );
    assert!(response.text().contains("no GPU"), "{}", response.text());
    assert!(
        began.elapsed().as_secs() < 5,
        "the slow one is not waited for"
    );
    assert!(d.bodies().is_empty());
}

#[test]
fn encoders_that_must_not_be_named_are_passed_over() {
    use pdrelay::config::sidecar::{Allow, Target};
    let (good, bad) = (encoder("good"), encoder("bad"));
    let d = says("200 OK", "{}");
    let server = super::beside_with(
        "sidecar",
        d.address,
        &["--ec-connector=ec-nixl"],
        |config| {
            let only = Target::parse(&good.address.to_string()).unwrap();
            config.sidecar.as_mut().unwrap().allow = Some(Allow {
                targets: vec![only],
                pool: None,
            });
        },
    );
    for (encoders, asked) in [(vec![&bad, &good], 2), (vec![&bad], 2)] {
        let response = post_plain(&server, "/v1/chat/completions", &chat(), &named(&encoders));
        assert_eq!(response.status, 200);
        assert_eq!((good.bodies().len(), bad.bodies().len()), (asked, 0));
    }
}

/// Noticed at once: each encoder's connection ends, nobody behind them is asked, and nothing is left in the books.
#[test]
fn a_client_that_leaves_while_its_media_are_encoded_ends_it() {
    use pdsim::{Fault, Role};
    let options = pdsim::Options {
        engines: vec![engine(Role::Encode), engine(Role::Encode)],
        record: true,
        ..pdsim::Options::default()
    };
    let encoders = pdsim::Sim::start(options).unwrap();
    for at in [0, 1] {
        encoders.set_fault(at, Some(Fault::HangBeforeHead));
    }
    let (p, d) = (says("200 OK", "{}"), says("200 OK", r#"{"from":"d"}"#));
    let args = ["--ec-connector=ec-nixl"];
    let server = super::beside_with("sidecar", d.address, &args, |config| {
        config.sidecar.as_mut().unwrap().metrics_port = Some(0);
    });
    let (_, own) = server.addresses[1];
    // Of all instances, those that headers have named among them.
    let sum = |name: &str, labels: &str| -> f64 {
        let page = Client::connect(own).get("/metrics").text();
        let of = page
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(labels));
        of.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let places: Vec<String> = encoders
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let named = format!("x-encoder-hosts-ports: {}\r\n", places.join(","));
    // The page's own request is one, too.
    let idle = sum("pdrelay_requests_in_flight", "");
    for (left, prefill) in [(1.0, true), (2.0, false)] {
        let more = match prefill {
            true => format!("{named}x-prefiller-host-port: {}\r\n", p.address),
            false => named.clone(),
        };
        let mut client = Client::connect(server.address);
        client.send(post_bytes("/v1/chat/completions", &chat(), &more));
        eventually("both encoders are asked", || {
            encoders.open_requests(0) == 1 && encoders.open_requests(1) == 1
        });
        assert_eq!(sum("pdrelay_requests_in_flight", ""), idle + 1.0);
        drop(client);
        eventually("both encoders are told", || {
            encoders.open_requests(0) == 0 && encoders.open_requests(1) == 0
        });
        eventually("it is over", || {
            sum("pdrelay_requests_in_flight", "") == idle
                && sum("pdrelay_instance_in_flight", "") == 0.0
                && sum("pdrelay_body_memory_bytes", "") == 0.0
                && sum("pdrelay_client_gone_total", "encode") == left
        });
    }
    assert_eq!((p.requests().len(), d.requests().len()), (0, 0));
    let posts = |at: usize| {
        encoders
            .transcript(at)
            .iter()
            .filter(|r| r.method == "POST")
            .count()
    };
    assert_eq!(
        (posts(0), posts(1)),
        (2, 2),
        "each was asked once by each client"
    );
    // And the next one is served.
    let response = post_plain(
        &server,
        "/v1/chat/completions",
        r#"{"messages":[]}"#,
        &named,
    );
    assert_eq!(response.text(), r#"{"from":"d"}"#);
}
