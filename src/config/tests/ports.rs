//! Nobody listens where we do.

use super::{read, refused};

fn beside(lines: &str) -> String {
    let text = format!("surface: sidecar\nhandshake: nixl\n{lines}");
    read(&text).map_or_else(|problems| problems.to_string(), |_| String::new())
}

#[test]
fn an_engine_is_never_the_proxy_itself() {
    assert_eq!(
        refused(
            "port: 28200\nprefill: ['10.0.0.1:8100']\ndecode: ['10.0.0.2:8200', '127.0.0.1:28200']"
        ),
        "x.yaml:3: decode[1]: decode 127.0.0.1:28200 is pdrelay itself, which listens there (port 28200): every \
         request would come back to it (give one of them another port)"
    );
    for (host, role, address) in [
        ("0.0.0.0", "prefill", "localhost:9"),
        ("'::'", "prefill", "'[::1]:9'"),
        ("0.0.0.0", "decode", "http://127.0.0.1:9/v2"),
        ("0.0.0.0", "decode", "https://localhost:9"),
        ("10.0.0.7", "decode", "10.0.0.7:9"),
    ] {
        let other = if role == "decode" {
            "prefill"
        } else {
            "decode"
        };
        let text = format!("host: {host}\nport: 9\n{other}: ['10.0.0.1:9']\n{role}: [{address}]");
        let said = refused(&text);
        assert!(
            said.contains("is pdrelay itself") && said.contains("(port 9)"),
            "{text}: {said}"
        );
    }
    assert!(refused("port: 9\naggregated: ['127.0.0.1:9']").contains("aggregated 127.0.0.1:9 is"));
    let epd = "handshake: epd\nport: 9\nencode: ['127.0.0.1:9']\naggregated: ['10.0.0.1:9']";
    assert!(refused(epd).contains("encode 127.0.0.1:9 is pdrelay itself"));
    // Another machine's, and the loopback beside an address of its own, are others.
    for (host, address) in [
        ("0.0.0.0", "10.0.0.7:9"),
        ("10.0.0.7", "127.0.0.1:9"),
        ("0.0.0.0", "127.0.0.1:10"),
    ] {
        let text = format!("host: {host}\nport: 9\nprefill: ['10.0.0.1:9']\ndecode: ['{address}']");
        assert!(read(&text).is_ok(), "{text}");
    }
}

#[test]
fn a_rank_s_engine_is_never_a_port_of_another_rank() {
    let said = beside("port: 28002\ndecode: ['localhost:28001', 'localhost:28002']\nsidecar: {}");
    assert!(
        said.starts_with("x.yaml:4: decode[1]: decode localhost:28002 is pdrelay itself")
            && said.contains("(port 28002)"),
        "{said}"
    );
    let said = beside("port: 28000\ndecode: ['localhost:28001', 'localhost:28002']\nsidecar: {}");
    assert!(
        said.starts_with("x.yaml:4: decode[0]: decode localhost:28001")
            && said.contains("(port 28001 of rank 1)"),
        "{said}"
    );
    let said = beside("port: 1\ndecode: ['localhost:8']\nsidecar: {metrics_port: 8}");
    assert!(said.contains("(sidecar.metrics_port 8)"), "{said}");
    let said = beside("port: 9\ndecode: ['10.0.0.7:9']\nsidecar: {pod_ip: 10.0.0.7}");
    assert!(
        said.contains("decode 10.0.0.7:9 is pdrelay itself"),
        "{said}"
    );
    let said = beside("port: 7\ndecode: ['localhost:8']\nsidecar: {metrics_port: 7}");
    assert!(
        said.contains("metrics_port is a port that a rank listens on"),
        "{said}"
    );
    assert_eq!(
        beside("port: 7\ndecode: ['localhost:9', 'localhost:10']\nsidecar: {metrics_port: 11}"),
        ""
    );
}

#[test]
fn notices_never_come_where_clients_do() {
    let with = |host: &str, lines: &str| {
        let receiver = "{host: d, init_ports: [1], alloc_ports: [2]}";
        let text = format!(
            "handshake: lmcache\nhost: {host}\nport: 8500\nprefill: ['10.0.0.1:1']\ndecode: ['10.0.0.2:1']\n\
             lmcache: {{receivers: {{'10.0.0.2:1': {receiver}}}, {lines}}}"
        );
        read(&text).map_or_else(|problems| problems.to_string(), |_| String::new())
    };
    assert_eq!(
        with("0.0.0.0", "port: 8500"),
        "x.yaml:6: lmcache.port: lmcache.port 8500 is where clients come (port 8500): notices need a port of their \
         own (choose another one of the two (--proxy-port, --port))"
    );
    // As it is by default, too.
    assert!(with("localhost", "").contains("lmcache.port 8500 is where clients come"));
    assert!(with("10.0.0.7", "host: 0.0.0.0").contains("lmcache.port 8500"));
    assert_eq!(with("10.0.0.7", ""), "");
    assert_eq!(with("0.0.0.0", "port: 8501"), "");
    assert_eq!(with("0.0.0.0", "variant: plain"), "");
    // An engine there is no better.
    let text = "handshake: lmcache\nprefill: ['127.0.0.1:8500']\ndecode: ['10.0.0.2:1']\n\
                lmcache: {receivers: {'10.0.0.2:1': {host: d, init_ports: [1], alloc_ports: [2]}}}";
    assert!(refused(text).contains("(lmcache.port 8500)"));
}
