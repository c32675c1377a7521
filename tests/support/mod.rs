//! What the tests stand on: a proxy and simulated engines in this process, and a raw client.
//!
//! Everything is seen from outside, over real sockets on port 0. The client is written here, in terms of
//! bytes, so that it shares no code with what it judges.

pub mod lmcache;
pub mod scripted;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::server::Server;
use pdsim::{EngineOptions, Sim};

pub const MODEL: &str = "dummy";

/// A proxy in front of simulated engines. Dropped: both are gone.
pub struct Rig {
    pub server: Server,
    pub sim: Sim,
}

/// Engines by role, in order: `p` of prefill, then `d` of decode.
pub fn engines(p: usize, d: usize) -> Vec<EngineOptions> {
    let many = |role, n| std::iter::repeat_with(move || engine(role)).take(n);
    many(pdsim::Role::Prefill, p)
        .chain(many(pdsim::Role::Decode, d))
        .collect()
}

/// Engines of an older release: a P that stopped on its first token hands nothing over.
pub fn older_engines(p: usize, d: usize) -> Vec<EngineOptions> {
    let mut engines = engines(p, d);
    engines.iter_mut().for_each(|e| e.kv_on_stop = false);
    engines
}

pub fn engine(role: pdsim::Role) -> EngineOptions {
    let mut engine = EngineOptions::new(role);
    engine.model = MODEL.into();
    engine
}

/// The rig most tests want: `p`P + `d`D under this handshake, two shards.
pub fn rig(handshake: &str, p: usize, d: usize) -> Rig {
    rig_with(handshake, engines(p, d), |_| {})
}

pub fn aggregated(n: usize) -> Rig {
    let engines = std::iter::repeat_with(|| engine(pdsim::Role::Both))
        .take(n)
        .collect();
    rig_with("aggregated", engines, |_| {})
}

/// `change` may alter anything in the config before the start.
pub fn rig_with(
    handshake: &str,
    engines: Vec<EngineOptions>,
    change: impl FnOnce(&mut Config),
) -> Rig {
    let roles: Vec<Role> = engines.iter().map(|e| role(e.role)).collect();
    let options = pdsim::Options {
        engines,
        record: true,
        ..pdsim::Options::default()
    };
    let sim = Sim::start(options).expect("the simulator starts");
    let mut config = config(handshake, &roles, sim.addresses());
    change(&mut config);
    let server = Server::start(config).expect("the proxy starts");
    Rig { server, sim }
}

fn role(role: pdsim::Role) -> Role {
    match role {
        pdsim::Role::Encode => Role::Encode,
        pdsim::Role::Prefill => Role::Prefill,
        pdsim::Role::Decode => Role::Decode,
        pdsim::Role::Both => Role::Aggregated,
    }
}

/// A config for these addresses: any port, two shards.
pub fn config(handshake: &str, roles: &[Role], addresses: &[SocketAddr]) -> Config {
    // Hundreds of proxies in one process: what they say about engines that are meant to fail would bury
    // the one line that matters.
    if std::env::var_os("PDRELAY_TEST_LOG").is_none() {
        pdrelay::log::set_level(pdrelay::log::Level::Error);
    }
    let instances = roles.iter().zip(addresses).map(|(role, address)| {
        let address = Address::tcp(address.ip().to_string(), address.port());
        InstanceConfig::new(address, *role)
    });
    let mut config = Config {
        host: "127.0.0.1".into(),
        port: 0,
        handshake: handshake.into(),
        instances: instances.collect(),
        ..Config::default()
    };
    config.cores.shards = Some(2);
    config
}

impl Rig {
    pub fn client(&self) -> Client {
        Client::connect(self.server.address)
    }

    /// One request on a connection of its own.
    pub fn post(&self, path: &str, body: &str) -> Response {
        self.client().post(path, body)
    }

    pub fn get(&self, path: &str) -> Response {
        self.client().get(path)
    }

    /// What an engine was asked to generate (or to forward), oldest first: health probes left out.
    pub fn posts(&self, engine: usize) -> Vec<pdsim::Received> {
        let mut all = self.sim.transcript(engine);
        all.retain(|r| r.method == "POST");
        all
    }

    /// The sum of all samples of this name on `/metrics` that have these labels (`key="value"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.get("/metrics").text();
        let of = |line: &&str| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|l| line.contains(l))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        page.lines().filter(of).filter_map(value).sum()
    }

    /// The value of one sample on `/metrics`, by its exact name and labels; 0 if it is not there.
    pub fn metric(&self, sample: &str) -> f64 {
        let page = self.get("/metrics").text();
        let line = page
            .lines()
            .find(|l| l.strip_prefix(sample).is_some_and(|r| r.starts_with(' ')));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }
}

/// A chat body with this text.
pub fn chat(text: &str, more: &str) -> String {
    format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{text}"}}]{more}}}"#)
}

/// A completions body with this text.
pub fn completion(text: &str, more: &str) -> String {
    format!(r#"{{"model":"{MODEL}","prompt":"{text}"{more}}}"#)
}

/// A raw HTTP/1.1 client on one connection.
pub struct Client {
    pub stream: TcpStream,
    /// Received and not yet taken.
    pub rest: Vec<u8>,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub head: String,
    /// De-chunked.
    pub body: Vec<u8>,
    /// As on the wire, framing included.
    pub raw_body: Vec<u8>,
    /// The body ended as its framing says (a final chunk, or all of its length).
    pub complete: bool,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    /// The text of all choices' deltas, of a stream or of a whole answer.
    pub fn generated(&self) -> String {
        let of = |value: &serde_json::Value| {
            let choice = &value["choices"][0];
            [
                &choice["text"],
                &choice["delta"]["content"],
                &choice["message"]["content"],
            ]
            .iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect::<String>()
        };
        if !self.body.starts_with(b"data:") {
            return of(&self.json());
        }
        self.events()
            .iter()
            .filter_map(|e| serde_json::from_str(e).ok())
            .map(|v| of(&v))
            .collect()
    }

    /// The `data:` of each event.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        text.split("\n\n")
            .filter_map(|e| e.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the proxy accepts");
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client {
            stream,
            rest: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the proxy takes the request");
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n"));
        self.response()
    }

    pub fn post(&mut self, path: &str, body: &str) -> Response {
        self.send(post_bytes(path, body, ""));
        self.response()
    }

    /// Reads on. False: the connection has ended.
    pub fn fill(&mut self) -> bool {
        let mut piece = [0u8; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.rest.extend_from_slice(&piece[..n]);
                true
            }
        }
    }

    /// Everything until the proxy closes.
    #[allow(clippy::wrong_self_convention)]
    pub fn to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.rest)
    }

    /// The head of the next response, its body left on the connection.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.rest, b"\r\n\r\n") {
                let head: Vec<u8> = self.rest.drain(..end + 4).collect();
                return String::from_utf8_lossy(&head).into_owned();
            }
            if !self.fill() {
                let rest = String::from_utf8_lossy(&self.rest);
                panic!("the connection ended in the head: {rest:?}");
            }
        }
    }

    /// The next response (100 Continue skipped).
    pub fn response(&mut self) -> Response {
        self.response_to("POST")
    }

    pub fn response_to(&mut self, method: &str) -> Response {
        let mut head = self.head();
        while head.starts_with("HTTP/1.1 1") {
            head = self.head();
        }
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .expect("a status");
        let mut response = Response {
            status,
            head,
            body: vec![],
            raw_body: vec![],
            complete: false,
        };
        let bodyless = method == "HEAD" || status == 204 || status == 304;
        if bodyless {
            response.complete = true;
        } else if response.header("transfer-encoding").is_some() {
            self.chunked(&mut response);
        } else if let Some(length) = response.header("content-length") {
            let length: usize = length.parse().expect("a length");
            while self.rest.len() < length && self.fill() {}
            response.complete = self.rest.len() >= length;
            response.body = self.rest.drain(..length.min(self.rest.len())).collect();
            response.raw_body = response.body.clone();
        } else {
            response.body = self.to_end();
            response.raw_body = response.body.clone();
            response.complete = true;
        }
        response
    }

    fn chunked(&mut self, response: &mut Response) {
        loop {
            let Some(line) = self.until(b"\r\n") else {
                return;
            };
            response.raw_body.extend_from_slice(&line);
            let text = String::from_utf8_lossy(&line);
            let digits = text
                .trim()
                .split(';')
                .next()
                .unwrap_or("")
                .trim()
                .to_owned();
            let size = usize::from_str_radix(&digits, 16)
                .unwrap_or_else(|_| panic!("{text:?} is no chunk size"));
            if size == 0 {
                while let Some(line) = self.until(b"\r\n") {
                    response.raw_body.extend_from_slice(&line);
                    if line == b"\r\n" {
                        response.complete = true;
                        return;
                    }
                }
                return;
            }
            while self.rest.len() < size + 2 {
                if !self.fill() {
                    return;
                }
            }
            let chunk: Vec<u8> = self.rest.drain(..size + 2).collect();
            assert!(chunk.ends_with(b"\r\n"), "a chunk ends in CRLF");
            response.raw_body.extend_from_slice(&chunk);
            response.body.extend_from_slice(&chunk[..size]);
        }
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.rest, end) {
                return Some(self.rest.drain(..at + end.len()).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Did the proxy close (or reset) the connection?
    pub fn closed(&mut self) -> bool {
        !self.fill()
    }
}

/// A POST with a length; `more`: further header lines, each with its CRLF.
pub fn post_bytes(path: &str, body: &str, more: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

/// Waits until `ready` says so; panics with `what` after ten seconds.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
