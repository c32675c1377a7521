//! GETs of the Kubernetes API, whole or line by line, on a thread that may wait.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::config::Address;
use crate::config::sidecar::Pool;
use crate::net::tls::Trust;
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{Framing, HeadScan, ResponseHead};

const CONNECT: Duration = Duration::from_secs(5);
/// A watch says something at least this often, since it ends before.
const SILENCE: Duration = Duration::from_secs(60);
const BYTES_MAX: usize = 64 << 20;

pub struct Client {
    address: Address,
    trust: Option<Trust>,
    token_file: PathBuf,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    All,
    /// 410.
    Gone,
}

trait Pipe: Read + Write {}
impl<T: Read + Write> Pipe for T {}

impl Client {
    pub fn new(pool: &Pool) -> Result<Client, String> {
        let server = match &pool.api_server {
            Some(server) => server.clone(),
            None => in_cluster()?,
        };
        let address = Address::parse_url(&server)?;
        let trust = match address.tls() {
            true => Some(Trust::authorities(Some(&pool.ca_file)).map_err(|e| e.to_string())?),
            false => None,
        };
        Ok(Client {
            address,
            trust,
            token_file: pool.token_file.clone(),
        })
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let mut all = Vec::new();
        let said = self.ask(path, &mut |piece| {
            all.extend_from_slice(piece);
            all.len() <= BYTES_MAX
        })?;
        if said == Said::Gone {
            return Err(format!("{path} answered 410"));
        }
        serde_json::from_slice(&all).map_err(|why| format!("{path}: {why}"))
    }

    /// `line`: false ends it.
    pub fn watch(&self, path: &str, line: &mut dyn FnMut(&[u8]) -> bool) -> Result<Said, String> {
        let mut held = Vec::new();
        self.ask(path, &mut |piece| {
            held.extend_from_slice(piece);
            while let Some(end) = memchr::memchr(b'\n', &held) {
                let one: Vec<u8> = held.drain(..=end).collect();
                if !one.trim_ascii().is_empty() && !line(&one) {
                    return false;
                }
            }
            held.len() <= BYTES_MAX
        })
    }

    fn ask(&self, path: &str, piece: &mut dyn FnMut(&[u8]) -> bool) -> Result<Said, String> {
        let mut pipe = self.connect()?;
        // Read each time: it is replaced before it is too old.
        let token = std::fs::read_to_string(&self.token_file).unwrap_or_default();
        let token = match token.trim() {
            "" => String::new(),
            token => format!("authorization: Bearer {token}\r\n"),
        };
        let (host, prefix) = (self.address.host_port(), self.address.prefix());
        let head = format!(
            "GET {prefix}{path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n\
             user-agent: pdrelay\r\n{token}connection: close\r\n\r\n"
        );
        let failed = |why: std::io::Error| format!("{path}: {why}");
        pipe.write_all(head.as_bytes()).map_err(failed)?;
        let mut bytes = Vec::new();
        let mut room = [0; 16 << 10];
        let mut scan = HeadScan::default();
        let end = loop {
            if let Some(end) = scan.advance(&bytes).map_err(|bad| bad.message())? {
                break end;
            }
            match pipe.read(&mut room).map_err(failed)? {
                0 => return Err(format!("{path}: no HTTP answer")),
                n => bytes.extend_from_slice(&room[..n]),
            }
        };
        let head = ResponseHead::parse(&bytes[..end]).map_err(|bad| bad.message())?;
        match head.status {
            200 => {}
            410 => return Ok(Said::Gone),
            other => return Err(format!("{path} answered {other}")),
        }
        let mut part = bytes.split_off(end);
        let mut chunks = ChunkScan::default();
        let framing = head.framing(false);
        let mut left = match framing {
            Framing::Length(n) => n,
            _ => u64::MAX,
        };
        loop {
            let mut on = true;
            let over = match framing {
                Framing::Chunked => {
                    let fed = chunks.feed(&part, |data| on &= piece(data));
                    fed.map_err(|bad| bad.0)?;
                    chunks.done()
                }
                _ => {
                    left = left.saturating_sub(part.len() as u64);
                    on = part.is_empty() || piece(&part);
                    left == 0
                }
            };
            if over || !on {
                return Ok(Said::All);
            }
            match pipe.read(&mut room) {
                Ok(n) if n > 0 => part = room[..n].to_vec(),
                Ok(_) if framing == Framing::Close => return Ok(Said::All),
                Ok(_) => return Err(format!("{path}: the answer was cut short")),
                Err(why) => return Err(failed(why)),
            }
        }
    }

    fn connect(&self) -> Result<Box<dyn Pipe>, String> {
        let (host, port) = self.address.network().ok_or("the API has no address")?;
        let name = || self.address.to_string();
        let mut last = format!("{}: no address", name());
        let found = (host, port).to_socket_addrs();
        for address in found.map_err(|why| format!("{}: {why}", name()))? {
            let stream = match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => stream,
                Err(why) => {
                    last = format!("{}: {why}", name());
                    continue;
                }
            };
            let set = stream.set_read_timeout(Some(SILENCE));
            set.map_err(|why| why.to_string())?;
            return match &self.trust {
                None => Ok(Box::new(stream)),
                Some(trust) => trust
                    .blocking(stream, host)
                    .map(|secret| Box::new(secret) as Box<dyn Pipe>)
                    .map_err(|why| why.to_string()),
            };
        }
        Err(last)
    }
}

/// As every pod is told.
fn in_cluster() -> Result<String, String> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|_| format!("{name} is not set: this is no pod of a cluster"))
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    Ok(match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    })
}

/// For a query.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}
