//! GETs of the Kubernetes API, whole or line by line, on the control thread: nothing here waits but on a socket.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::cluster::names::resolve_aside;
use crate::config::Address;
use crate::config::sidecar::Pool;
use crate::net::runtime::Driver;
use crate::net::stream::{Stream, Target};
use crate::net::tls::Trust;
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{Framing, HeadScan, ResponseHead};

const CONNECT: Duration = Duration::from_secs(5);
/// A watch says something at least this often, since it ends before.
const SILENCE: Duration = Duration::from_secs(60);
const BYTES_MAX: usize = 64 << 20;
const PIECE: usize = 16 << 10;

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

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let mut all = Vec::new();
        let mut keep = |piece: &[u8]| {
            all.extend_from_slice(piece);
            all.len() <= BYTES_MAX
        };
        let said = self.ask(path, &mut keep).await?;
        if said == Said::Gone {
            return Err(format!("{path} answered 410"));
        }
        serde_json::from_slice(&all).map_err(|why| format!("{path}: {why}"))
    }

    /// `line`: false ends it.
    pub async fn watch(
        &self,
        path: &str,
        line: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Said, String> {
        let mut held = Vec::new();
        let mut piece = |piece: &[u8]| {
            held.extend_from_slice(piece);
            while let Some(end) = memchr::memchr(b'\n', &held) {
                let one: Vec<u8> = held.drain(..=end).collect();
                if !one.trim_ascii().is_empty() && !line(&one) {
                    return false;
                }
            }
            held.len() <= BYTES_MAX
        };
        self.ask(path, &mut piece).await
    }

    async fn ask(&self, path: &str, piece: &mut dyn FnMut(&[u8]) -> bool) -> Result<Said, String> {
        let stream = self.connect().await?;
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
        let failed = |why: &str| format!("{path}: {why}");
        let (sent, _) = within(SILENCE, stream.write_all(head.into_bytes())).await?;
        sent.map_err(|why| failed(&why.to_string()))?;
        let mut bytes = Vec::new();
        let mut scan = HeadScan::default();
        let end = loop {
            if let Some(end) = scan.advance(&bytes).map_err(|bad| bad.message())? {
                break end;
            }
            if !more(&stream, &mut bytes)
                .await
                .map_err(|why| failed(&why))?
            {
                return Err(failed("no HTTP answer"));
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
            part.clear();
            if !more(&stream, &mut part).await.map_err(|why| failed(&why))? {
                return match framing {
                    Framing::Close => Ok(Said::All),
                    _ => Err(failed("the answer was cut short")),
                };
            }
        }
    }

    async fn connect(&self) -> Result<Stream, String> {
        let (host, _) = self.address.network().ok_or("the API has no address")?;
        let name = |why: &str| format!("{}: {why}", self.address);
        let mut last = name("no address");
        for target in resolve_aside(&self.address).await {
            match within(CONNECT, self.secured(&target, host)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(why)) => last = name(&why.to_string()),
                Err(why) => last = name(&why),
            }
        }
        Err(last)
    }

    async fn secured(&self, target: &Target, host: &str) -> io::Result<Stream> {
        let plain = Stream::connect(target, Driver::Epoll, |_| {}).await?;
        match &self.trust {
            Some(trust) => trust.connect(plain, host).await,
            None => Ok(plain),
        }
    }
}

/// Whatever does not end in time is dropped, and its connection with it.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    let timed = monoio::time::timeout(limit, work).await;
    timed.map_err(|_| format!("nothing within {} s", limit.as_secs()))
}

/// Reads once. False: the peer has ended.
async fn more(stream: &Stream, bytes: &mut Vec<u8>) -> Result<bool, String> {
    bytes.reserve(PIECE);
    let (result, back) = within(SILENCE, stream.read(std::mem::take(bytes))).await?;
    *bytes = back;
    result.map(|n| n > 0).map_err(|why| why.to_string())
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
