//! TLS on both sides: one port for it and for plain HTTP, unless it is strict; ends that are what they seem.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pdrelay::config::sidecar::Tls;
use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::server::Server;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::{beside, beside_with, says};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, eventually, post_bytes};

/// Believes anyone, and remembers whom.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.lock().unwrap().push(shown.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = ring::default_provider().signature_verification_algorithms;
        known.supported_schemes()
    }
}

type Secret = StreamOwned<ClientConnection, TcpStream>;

fn connect(
    address: SocketAddr,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (Secret, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    (StreamOwned::new(session, stream), seen)
}

/// Everything, and whether the end was said.
fn to_end(stream: &mut Secret) -> (String, bool) {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (String::from_utf8_lossy(&all).into_owned(), true),
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(_) => return (String::from_utf8_lossy(&all).into_owned(), false),
        }
    }
}

const CLOSE: &str = "connection: close\r\n";

#[test]
fn one_port_answers_both_unless_it_is_strict() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let both = beside("sidecar", d.address, &[]);
    let strict = beside("sidecar", d.address, &["--secure-proxy"]);
    let plain = beside("sidecar", d.address, &["--secure-proxy=false"]);
    for (server, secret, clear) in [
        (&both, true, true),
        (&strict, true, false),
        (&plain, false, true),
    ] {
        let mut client = Client::connect(server.address);
        client.send(post_bytes("/v1/x", "{}", CLOSE));
        let said = String::from_utf8_lossy(&client.to_end()).into_owned();
        match clear {
            true => assert!(said.ends_with(r#"{"from":"d"}"#), "{said}"),
            false => assert!(
                said.contains("400 Bad Request") && said.contains("HTTPS server"),
                "{said}"
            ),
        }
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (mut stream, _) = connect(server.address, &[version]);
            let sent = stream.write_all(&post_bytes("/v1/x", "{}", CLOSE));
            let (said, whole) = to_end(&mut stream);
            assert_eq!(
                sent.is_ok() && whole && said.ends_with(r#"{"from":"d"}"#),
                secret,
                "{said}"
            );
        }
    }
}

#[test]
fn large_bodies_and_many_requests_go_through_one_session() {
    let d = Scripted::start(|_, request| {
        let body = request.split_once("\r\n\r\n").unwrap().1;
        Say::Bytes(answer("200 OK", &body.chars().rev().collect::<String>()))
    });
    let server = beside("sidecar", d.address, &[]);
    let (mut stream, _) = connect(server.address, rustls::ALL_VERSIONS);
    for size in [1usize, 5000, 300_000, 16_384, 2_000_000] {
        let body: String = (0..size)
            .map(|i| char::from(b'a' + (i % 23) as u8))
            .collect();
        stream.write_all(&post_bytes("/echo", &body, "")).unwrap();
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        let back = body.chars().rev().collect::<String>();
        while !all.ends_with(back.as_bytes()) {
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0);
            all.extend_from_slice(&piece[..n]);
        }
    }
}

#[test]
fn broken_answers_never_end_as_whole_ones_do() {
    // D breaks off in the middle of a stream.
    let d = Scripted::start(|_, _| {
        Say::Close(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n8\r\ndata: a\n\r\n".to_vec())
    });
    let server = beside("sidecar", d.address, &[]);
    let (mut stream, _) = connect(server.address, rustls::ALL_VERSIONS);
    stream.write_all(&post_bytes("/v1/x", "{}", "")).unwrap();
    let (said, whole) = to_end(&mut stream);
    assert!(
        said.contains("data: a") && !said.ends_with("0\r\n\r\n"),
        "{said}"
    );
    assert!(!whole, "no close_notify after what is not whole");
    // Until close, from an upstream that speaks TLS: cut off without a word it is not whole either.
    let cut = Scripted::start(|_, _| Say::Close(b"HTTP/1.0 200 OK\r\n\r\nhalf".to_vec()));
    let inner = beside("sidecar", cut.address, &[]);
    let outer = in_front_of(&inner, &["--tls-insecure-skip-verify=decoder"]);
    let mut client = Client::connect(outer.address);
    client.send(post_bytes("/v1/x", "{}", ""));
    // The inner one relays a clean end in chunks of its own.
    let response = client.response();
    assert!(response.complete && response.text() == "half");
}

/// A sidecar whose engine is `inner`, over TLS.
fn in_front_of(inner: &Server, args: &[&str]) -> Server {
    let mut all = vec!["--enable-tls=decoder,prefiller"];
    all.extend(args);
    beside("sidecar", inner.address, &all)
}

#[test]
fn engines_behind_tls_are_believed_only_as_configured() {
    let d = says("200 OK", r#"{"from":"d","kv_transfer_params":{"a":1}}"#);
    let folder = Folder::new("upstream");
    folder.certificate("localhost");
    let inner = beside(
        "sidecar",
        d.address,
        &[&format!("--cert-path={}", folder.0.display())],
    );
    let body = r#"{"prompt":"x"}"#;
    let ask = |outer: &Server| {
        let named = format!(
            "x-prefiller-host-port: localhost:{}\r\n",
            inner.address.port()
        );
        super::post_plain(outer, "/v1/completions", body, &named)
    };
    let trusting = in_front_of(&inner, &["--tls-insecure-skip-verify=decoder,prefiller"]);
    assert_eq!(ask(&trusting).status, 200);
    let strict = in_front_of(&inner, &[]);
    let response = ask(&strict);
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(
        response.text().contains("cannot be reached"),
        "{}",
        response.text()
    );
    // By the authority that signed it: here, itself.
    let port = format!("--vllm-port={}", inner.address.port());
    let mut config =
        super::started("sidecar", &[&port, "--enable-tls=decoder,prefiller"], &[]).unwrap();
    config.host = "127.0.0.1".into();
    config.port = 0;
    config.upstream_tls.ca_file = Some(folder.0.join("tls.crt"));
    let believing = Server::start(config).unwrap();
    let response = ask(&believing);
    assert_eq!(response.status, 200, "{}", response.text());
    // A session is used again, as plain connections are.
    let before = d.requests().len();
    for _ in 0..5 {
        assert_eq!(ask(&believing).status, 200);
    }
    assert_eq!(d.requests().len(), before + 10);
}

#[test]
fn probes_reach_engines_behind_tls() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let inner = beside("sidecar", d.address, &[]);
    for (skip_verify, health) in [(vec![Role::Aggregated], "healthy"), (vec![], "unhealthy")] {
        let place = format!("https://127.0.0.1:{}", inner.address.port());
        let address = Address::parse_url(&place).unwrap();
        let mut config = Config {
            host: "127.0.0.1".into(),
            port: 0,
            handshake: "aggregated".into(),
            instances: vec![InstanceConfig::new(address, Role::Aggregated)],
            ..Config::default()
        };
        config.upstream_tls.skip_verify = skip_verify;
        config.health_check.interval = Duration::from_millis(100);
        config.cores.shards = Some(1);
        let server = Server::start(config).unwrap();
        let said = format!("\"{health}\"");
        eventually(health, || {
            Client::connect(server.address)
                .get("/status")
                .text()
                .contains(&said)
        });
        if health == "healthy" {
            let mut client = Client::connect(server.address);
            let response = client.post("/v1/completions", r#"{"prompt":"x"}"#);
            assert_eq!(response.text(), r#"{"from":"d"}"#);
        }
    }
}

/// A folder of a certificate, gone with this.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let unique = format!("pdrelay-tls-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn certificate(&self, name: &str) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let replace = |file: &str, text: String| {
            let fresh = self.0.join(format!("{file}.new"));
            std::fs::write(&fresh, text).unwrap();
            std::fs::rename(&fresh, self.0.join(file)).unwrap();
        };
        replace("tls.key", made.signing_key.serialize_pem());
        replace("tls.crt", made.cert.pem());
        made.cert.der().to_vec()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_certificate_that_changes_is_shown_without_a_restart() {
    let d = says("200 OK", "{}");
    let folder = Folder::new("reload");
    let path = folder.0.clone();
    let shown = |server: &Server| {
        let (mut stream, seen) = connect(server.address, rustls::ALL_VERSIONS);
        stream.write_all(&post_bytes("/v1/x", "{}", CLOSE)).unwrap();
        assert!(to_end(&mut stream).1);
        let seen = seen.0.lock().unwrap();
        seen.last().cloned().unwrap()
    };
    let start = |path: &Path| {
        beside_with("sidecar", d.address, &[], |config| {
            config.tls = Some(Tls {
                cert_path: Some(path.to_owned()),
                strict: false,
            });
        })
    };
    let first = folder.certificate("localhost");
    let server = start(&path);
    assert_eq!(shown(&server), first);
    // A half-written one changes nothing.
    std::fs::write(path.join("tls.crt"), "junk").unwrap();
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(shown(&server), first);
    let second = folder.certificate("localhost");
    let began = Instant::now();
    while shown(&server) != second {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it is never read again"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // At the start there is nothing to fall back on.
    std::fs::write(path.join("tls.key"), "junk").unwrap();
    let mut config = super::started("sidecar", &[], &[]).unwrap();
    config.port = 0;
    config.tls.as_mut().unwrap().cert_path = Some(path.clone());
    let error = Server::start(config)
        .err()
        .expect("no certificate")
        .to_string();
    assert!(error.contains("tls.key"), "{error}");
}

/// With programs that were not written here, where they are installed.
#[test]
fn other_programs_understand_it() {
    let d = says("200 OK", r#"{"from":"d"}"#);
    let server = beside("sidecar", d.address, &[]);
    let port = server.address.port();
    let installed = |name: &str| {
        let found = Command::new(name)
            .arg("version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.is_ok()
    };
    if installed("curl") {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://127.0.0.1:{port}/v1/completions");
            let said = Command::new("curl")
                .args(["-sk", "-d", "{}", &url])
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&said.stdout),
                r#"{"from":"d"}"#,
                "{scheme}"
            );
        }
    }
    if installed("openssl") {
        for (version, good) in [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
            let mut child = Command::new("openssl")
                .args([
                    "s_client",
                    "-quiet",
                    version,
                    "-connect",
                    &format!("127.0.0.1:{port}"),
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let _ =
                stdin.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let said = child.wait_with_output().unwrap();
            drop(stdin);
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            assert_eq!(said.ends_with(r#"{"from":"d"}"#), good, "{version}: {said}");
        }
    }
}
