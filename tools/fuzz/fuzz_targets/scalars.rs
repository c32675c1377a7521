//! Addresses and quantities as people write them: read as the standard library does, and back.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use pdrelay::config::Address;
use pdrelay::config::quantity::{parse_bytes, parse_cpus, parse_duration};

fuzz_target!(|text: &str| {
    address(text);
    quantities(text);
});

fn address(text: &str) {
    let parsed = Address::parse(text);
    if let Ok(socket) = text.trim().parse::<SocketAddr>() {
        let zoned = text.contains('%');
        if socket.port() > 0 && !zoned {
            assert_eq!(
                parsed,
                Ok(Address::tcp(socket.ip().to_string(), socket.port())).map(|expected| {
                    match (&parsed, expected) {
                        // One IPv6 address has many spellings; the user's is kept.
                        (Ok(Address::Tcp { host, port }), Address::Tcp { host: ip, .. })
                            if host.parse::<std::net::IpAddr>().ok() == ip.parse().ok() =>
                        {
                            Address::tcp(host.clone(), *port)
                        }
                        (_, expected) => expected,
                    }
                })
            );
        }
    }
    match parsed {
        Err(why) => assert!(!why.is_empty()),
        Ok(address) => {
            let shown = address.to_string();
            assert_eq!(
                Address::parse(&shown).as_ref(),
                Ok(&address),
                "not read as written"
            );
            // It stands in `Host:` lines, metrics and logs.
            assert!(!shown.contains(char::is_control), "{shown:?}");
            if let Address::Tcp { host, port } = &address {
                assert!(*port > 0 && !host.is_empty() && host.is_ascii());
                let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
                assert!(host.chars().all(allowed), "{host:?}");
                let digits = text.trim().rsplit(':').next().unwrap_or("");
                assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
            }
        }
    }
}

fn quantities(text: &str) {
    if let Ok(duration) = parse_duration(text) {
        assert!(duration.as_secs() <= 366 * 24 * 3600);
        let again = parse_duration(&format!("{}us", duration.as_nanos() as f64 / 1e3));
        let again = again.expect("our own writing");
        assert!(
            again.abs_diff(duration).as_nanos() <= 1000,
            "{duration:?} {again:?}"
        );
    }
    if let Ok(bytes) = parse_bytes(text) {
        assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
    }
    if let Ok(cpus) = parse_cpus(text) {
        assert!(!cpus.is_empty() && cpus.iter().all(|cpu| *cpu <= 65_535));
        let listed: Vec<String> = cpus.iter().map(usize::to_string).collect();
        assert_eq!(parse_cpus(&listed.join(",")), Ok(cpus));
    }
}
