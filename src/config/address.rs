//! Where an instance listens: `host:port`, `[v6]:port`, `unix:/path`, or a URL with a prefix or with TLS.

use std::fmt;
use std::path::PathBuf;

/// Never a bare `SocketAddr`: unix-socket upstreams and DNS names then need no rewrite.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// `host` is an IP literal (v6 without brackets), `localhost`, or a DNS name.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// `https://host:port`, or `http(s)://host:port/prefix`. One without either is a `Tcp`.
    Url(Url),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Url {
    pub tls: bool,
    /// As in [`Address::Tcp`].
    pub host: String,
    pub port: u16,
    /// In front of every path: empty, or `/some/path` without a slash at its end.
    pub prefix: String,
}

impl Address {
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Address::Tcp {
            host: host.into(),
            port,
        }
    }

    /// Parses one address or `http://` or `https://` URL, whose port may be left out; the error is the
    /// sentence to show (without place). Slashes at the end of a URL mean nothing.
    pub fn parse_url(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bad = |why: &str| Err(format!("Invalid instance format: {text}; {why}"));
        let (tls, rest) = match text.split_once("://") {
            None => return Address::parse(text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return bad("a URL begins with http:// or https://"),
        };
        let (place, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let prefix = path.trim_end_matches('/');
        let odd = |b: u8| !b.is_ascii_graphic() || matches!(b, b'?' | b'#' | b'"' | b'\\');
        if prefix.bytes().any(odd) {
            return bad("after the port only a path may follow, without '?', '#' and spaces");
        }
        if place.contains('@') {
            return bad("a user in a URL is not sent: use openai_api_key");
        }
        let in_brackets = place.rfind(']').unwrap_or(0);
        let place = match place[in_brackets..].contains(':') {
            true => place.to_owned(),
            false => format!("{place}:{}", if tls { 443 } else { 80 }),
        };
        match Address::parse(&place)? {
            Address::Tcp { host, port } if tls || !prefix.is_empty() => Ok(Address::Url(Url {
                tls,
                host,
                port,
                prefix: prefix.to_owned(),
            })),
            plain @ Address::Tcp { .. } => Ok(plain),
            _ => bad("a unix socket has no URL: write unix:/path"),
        }
    }

    /// Host and port, as a `Host` field has them. A unix socket has none; engines only need the field.
    pub fn host_port(&self) -> String {
        match self {
            Address::Unix(_) => "localhost".into(),
            Address::Tcp { host, port } | Address::Url(Url { host, port, .. }) => show(host, *port),
        }
    }

    /// What stands in front of every path: empty, or `/some/path`.
    pub fn prefix(&self) -> &str {
        match self {
            Address::Url(url) => &url.prefix,
            _ => "",
        }
    }

    pub fn tls(&self) -> bool {
        matches!(self, Address::Url(url) if url.tls)
    }

    /// Host and port of all but unix sockets.
    pub fn network(&self) -> Option<(&str, u16)> {
        match self {
            Address::Unix(_) => None,
            Address::Tcp { host, port } | Address::Url(Url { host, port, .. }) => {
                Some((host, *port))
            }
        }
    }

    /// Parses one address, no URL; the error is the sentence to show (without place).
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let is_unix = |word: &str| word.eq_ignore_ascii_case("unix");
        let no_socket = || {
            format!("Invalid instance format: {text}; a unix socket is written unix:/absolute/path")
        };
        if let Some((_, path)) = text.split_once(':').filter(|(word, _)| is_unix(word)) {
            // It stands in log lines and metrics: nothing in it may end a line.
            return if path.starts_with('/') && !path.contains(char::is_control) {
                Ok(Address::Unix(PathBuf::from(path)))
            } else {
                Err(no_socket())
            };
        }
        let (host, port) = split(text)?;
        // `parse` alone would also read a sign.
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let number = port.parse::<u32>().ok().filter(|_| digits);
        let number = number
            .ok_or_else(|| format!("Invalid port in instance {text}: '{port}' is not a number"))?;
        if !(1..=65_535).contains(&number) {
            return Err(format!(
                "Port out of range in instance {text}: use 1 to 65535"
            ));
        }
        if !host_ok(host) {
            return Err(format!(
                "Invalid host in instance {text}: '{host}' does not appear to be an IPv4 or IPv6 \
                 address, nor a host name"
            ));
        }
        // In brackets it gets this far; shown without them, it would be read as a socket.
        if is_unix(host) {
            return Err(no_socket());
        }
        Ok(Address::tcp(one_spelling(host), number as u16))
    }
}

fn split(text: &str) -> Result<(&str, &str), String> {
    let bad = |why: &str| format!("Invalid instance format: {text}; {why}");
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest
            .split_once(']')
            .ok_or_else(|| bad("the ']' is missing"))?;
        let port = after
            .strip_prefix(':')
            .ok_or_else(|| bad("write [address]:port"))?;
        return Ok((host, port));
    }
    if text.contains("://") {
        return Err(bad("write host:port, without a scheme"));
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err(bad("an IPv6 address needs brackets: [address]:port"))
        }
        Some((host, port)) if !host.is_empty() => Ok((host, port)),
        _ => Err(bad("write host:port, for example 10.0.0.1:8100")),
    }
}

fn host_ok(host: &str) -> bool {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    // Four dotted numbers that are no IP are a typo, not a name.
    if host.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return false;
    }
    host.len() <= 253
        && host.split('.').filter(|l| !l.is_empty()).count() > 0
        && host.trim_end_matches('.').split('.').all(label_ok)
}

/// The same engine written in two ways would be two.
fn one_spelling(host: &str) -> String {
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

fn label_ok(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// An IPv6 address stands in brackets.
fn show(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } => f.write_str(&show(host, *port)),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Url(url) => {
                let scheme = if url.tls { "https" } else { "http" };
                write!(f, "{scheme}://{}{}", show(&url.host, url.port), url.prefix)
            }
        }
    }
}
