//! One GET of an instance whose whole answer is wanted, within a limit of time and of bytes. For the
//! control thread; a connection each.

use std::time::Duration;

use crate::net::runtime::Driver;
use crate::net::stream::{Stream, Target};
use crate::net::tls::Trust;
use crate::wire::chunk::ChunkScan;
use crate::wire::head::{Framing, HeadScan, Name, ResponseHead};

/// No page that is fetched here is larger.
const BYTES_MAX: usize = 4 << 20;
const PIECE: usize = 16 << 10;

/// An instance's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub status: u16,
    /// It calls itself JSON.
    pub json: bool,
    pub body: Vec<u8>,
}

/// What to ask of whom.
pub struct Ask<'a> {
    pub targets: &'a [Target],
    /// For the head's `Host`.
    pub host: &'a str,
    /// What stands in front of its paths.
    pub prefix: &'a str,
    pub path: &'a str,
    /// It is behind TLS, and believed by this.
    pub trust: Option<&'a Trust>,
    /// Sent as a bearer token.
    pub key: Option<&'a str>,
}

/// Asks the first of the targets that can be reached; or says why there is no answer.
pub async fn get(ask: &Ask<'_>, limit: Duration) -> Result<Fetched, String> {
    match monoio::time::timeout(limit, any(ask)).await {
        Ok(result) => result,
        Err(_) => Err("no answer in time".into()),
    }
}

async fn any(ask: &Ask<'_>) -> Result<Fetched, String> {
    let mut last = "its name has no address".to_owned();
    for target in ask.targets {
        match Stream::connect(target, Driver::Epoll, |_| {}).await {
            Ok(plain) => {
                let stream = match ask.trust {
                    // Without a port, and without the brackets of an IPv6 address.
                    Some(trust) => {
                        let host = ask.host.rsplit_once(':').map_or(ask.host, |(host, _)| host);
                        let host = host.trim_matches(['[', ']']);
                        let secret = trust.connect(plain, host).await;
                        secret.map_err(|error| error.to_string())?
                    }
                    None => plain,
                };
                return one(&stream, ask).await;
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

async fn one(stream: &Stream, ask: &Ask<'_>) -> Result<Fetched, String> {
    let key = match ask.key {
        Some(key) => format!("authorization: Bearer {key}\r\n"),
        None => String::new(),
    };
    let head = format!(
        "GET {}{} HTTP/1.1\r\nhost: {}\r\naccept: */*\r\nuser-agent: pdrelay\r\n{key}connection: close\r\n\r\n",
        ask.prefix, ask.path, ask.host
    );
    let (sent, _) = stream.write_all(head.into_bytes()).await;
    sent.map_err(|e| e.to_string())?;
    let mut bytes = Vec::with_capacity(PIECE);
    let mut scan = HeadScan::default();
    let end = loop {
        if let Some(end) = scan.advance(&bytes).map_err(|bad| bad.message())? {
            // 100 and 103 come before the answer.
            if ResponseHead::parse(&bytes[..end]).is_ok_and(|head| head.status >= 200) {
                break end;
            }
            bytes.drain(..end);
            scan = HeadScan::default();
            continue;
        }
        if !more(stream, &mut bytes).await? {
            return Err("no HTTP answer".into());
        }
    };
    let head = ResponseHead::parse(&bytes[..end]).map_err(|bad| bad.message())?;
    let json = head.fields.find(&bytes[..end], Name::ContentType);
    let json = json.is_some_and(|kind| {
        const JSON: &[u8] = b"application/json";
        kind.get(..JSON.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(JSON))
    });
    let framing = head.framing(false);
    let body = body(stream, framing, bytes.split_off(end)).await?;
    Ok(Fetched {
        status: head.status,
        json,
        body,
    })
}

/// The whole body; `bytes`: what came of it with the head.
async fn body(stream: &Stream, framing: Framing, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut scan = ChunkScan::default();
    let (mut scanned, mut decoded) = (0, Vec::new());
    loop {
        match framing {
            Framing::Length(n) if bytes.len() as u64 >= n => {
                bytes.truncate(n as usize);
                return Ok(bytes);
            }
            Framing::Chunked => {
                let part = &bytes[scanned..];
                let used = scan
                    .feed(part, |data| decoded.extend_from_slice(data))
                    .map_err(|bad| bad.0)?;
                scanned += used;
                if scan.done() {
                    return Ok(decoded);
                }
            }
            _ => {}
        }
        if !more(stream, &mut bytes).await? {
            return match framing {
                Framing::Close => Ok(bytes),
                _ => Err("its answer was cut short".into()),
            };
        }
    }
}

/// Reads once. False: the peer has ended.
async fn more(stream: &Stream, bytes: &mut Vec<u8>) -> Result<bool, String> {
    if bytes.len() > BYTES_MAX {
        return Err("its answer is too large".into());
    }
    bytes.reserve(PIECE);
    let (result, back) = stream.read(std::mem::take(bytes)).await;
    *bytes = back;
    result.map(|n| n > 0).map_err(|e| e.to_string())
}
