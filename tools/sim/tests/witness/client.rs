//! A blocking client that writes raw bytes and reads answers by their framing.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pdsim::{EngineOptions, Options, Role, Sim};
use serde_json::{Value, json};

#[derive(Debug, Default)]
pub struct Answer {
    pub interim: Vec<u16>,
    pub status: u16,
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// One entry per chunk, if it was chunked.
    pub chunks: usize,
    pub trailers: Vec<String>,
    /// The framing said that it was over.
    pub complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `data:` payloads of an event stream.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let events = text.split("\n\n").filter(|e| !e.is_empty());
        events
            .map(|e| e.strip_prefix("data: ").expect("a data line").to_owned())
            .collect()
    }
}

pub struct Client {
    pub stream: TcpStream,
    seen: Vec<u8>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Client {
            stream,
            seen: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// False at the end or at a reset.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 16_384];
        match self.stream.read(&mut bytes) {
            Ok(n) if n > 0 => {
                self.seen.extend_from_slice(&bytes[..n]);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => panic!("no answer within 20 s"),
            _ => false,
        }
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.seen, end) {
                let part = self.seen[..at].to_vec();
                self.seen.drain(..at + end.len());
                return Some(part);
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn exactly(&mut self, n: usize, into: &mut Vec<u8>) -> bool {
        while self.seen.len() < n {
            if !self.more() {
                into.append(&mut self.seen);
                return false;
            }
        }
        into.extend(self.seen.drain(..n));
        true
    }

    /// The next answer; `None` if the connection ends before a whole head.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let mut answer = Answer::default();
        loop {
            let head = String::from_utf8(self.until(b"\r\n\r\n")?).ok()?;
            let mut lines = head.split("\r\n");
            let mut status = lines.next()?.splitn(3, ' ');
            answer.version = status.next()?.to_owned();
            answer.status = status.next()?.parse().ok()?;
            let split = |l: &str| {
                let (n, v) = l.split_once(':').expect("a header");
                (n.to_owned(), v.trim().to_owned())
            };
            answer.headers = lines.map(split).collect();
            if answer.status >= 200 {
                break;
            }
            answer.interim.push(answer.status);
        }
        self.body(&mut answer, method);
        Some(answer)
    }

    fn body(&mut self, answer: &mut Answer, method: &str) {
        let mut body = Vec::new();
        answer.complete = if method == "HEAD" || matches!(answer.status, 204 | 304) {
            true
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.chunked(answer, &mut body).is_some()
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a length");
            self.exactly(length, &mut body)
        } else {
            while self.more() {}
            body.append(&mut self.seen);
            true
        };
        answer.body = body;
    }

    fn chunked(&mut self, answer: &mut Answer, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let line = String::from_utf8(self.until(b"\r\n")?).ok()?;
            let size = line.split(';').next().unwrap_or("");
            let size = usize::from_str_radix(size, 16).ok()?;
            if size == 0 {
                break;
            }
            let all = self.exactly(size, body);
            (all && self.until(b"\r\n")?.is_empty()).then_some(())?;
            answer.chunks += 1;
        }
        loop {
            let line = String::from_utf8(self.until(b"\r\n")?).ok()?;
            if line.is_empty() {
                return Some(());
            }
            answer.trailers.push(line);
        }
    }

    pub fn call(&mut self, path: &str, body: &Value, headers: &[&str]) -> Option<Answer> {
        self.send(post(path, &body.to_string(), headers));
        self.answer()
    }

    /// Has the other side gone?
    pub fn is_closed(&mut self) -> bool {
        !self.more()
    }
}

pub fn post(path: &str, body: &str, headers: &[&str]) -> Vec<u8> {
    let more: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n{more}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub const COMPLETIONS: &str = "/v1/completions";
pub const CHAT: &str = "/v1/chat/completions";

/// A call on a connection of its own.
pub fn call(address: SocketAddr, path: &str, body: &Value) -> Answer {
    Client::new(address)
        .call(path, body, &[])
        .expect("an answer")
}

/// `body` as a proxy sends it to P.
pub fn for_prefill(body: &Value) -> Value {
    let mut body = body.clone();
    body["max_tokens"] = json!(1);
    body["stream"] = json!(false);
    body["kv_transfer_params"] = json!({
        "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null
    });
    body
}

pub fn with_params(body: &Value, params: &Value) -> Value {
    let mut body = body.clone();
    body["kv_transfer_params"] = params.clone();
    body
}

/// Prefills `body` at `p` and gives its params.
pub fn params(p: SocketAddr, path: &str, body: &Value) -> Value {
    let answer = call(p, path, &for_prefill(body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let params = answer.json()["kv_transfer_params"].clone();
    assert!(params.is_object(), "{}", answer.text());
    params
}

/// P, D and an aggregated server for reference, after `change`.
pub fn trio(change: impl Fn(&mut EngineOptions)) -> (Sim, SocketAddr, SocketAddr, SocketAddr) {
    let mut options = Options::pair(1, 1);
    options.engines.push(EngineOptions::new(Role::Both));
    options.engines.iter_mut().for_each(change);
    let sim = Sim::start(options).expect("start");
    let [p, d, both] = sim.addresses() else {
        panic!("three engines")
    };
    let (p, d, both) = (*p, *d, *both);
    (sim, p, d, both)
}

/// Waits until `done`, for at most ten seconds.
pub fn soon(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn prompt(tag: &str) -> Value {
    json!({"model": "dummy", "prompt": format!("the prompt of {tag} and no other"), "max_tokens": 8})
}

pub fn choice_text(answer: &Value, choice: usize) -> String {
    let choice = &answer["choices"][choice];
    let text = choice
        .get("text")
        .or_else(|| choice["message"].get("content"));
    text.and_then(Value::as_str).expect("a text").to_owned()
}
