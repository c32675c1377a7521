//! The `multiturn` section: what is kept of conversations, where, and for how long.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Address, Secret};

/// Conversations, for the handshake `multiturn`.
#[derive(Debug, Clone, PartialEq)]
pub struct Multiturn {
    /// How long the KV of an answer may wait for the next turn. Default 450 s; the engines' own limit (vLLM:
    /// `decoder_kv_blocks_ttl`, 480 s) must be longer.
    pub ttl: Duration,
    /// Conversations kept in memory. Above: the oldest goes. Default 65536.
    pub entries_max: usize,
    /// Their bytes. Above: the oldest goes. Default 256 MiB.
    pub bytes_max: usize,
    /// The client sees D's `kv_transfer_params`. Default off: block ids are no business of its.
    pub expose_kv_params: bool,
    /// Default `dialled`.
    pub remote_host: RemoteHost,
    /// Where several proxies keep them together; `None`: each in its own memory.
    pub redis: Option<RedisAddress>,
    /// How long a turn waits for the Redis before it computes again. Default 50 ms.
    pub redis_timeout: Duration,
}

impl Default for Multiturn {
    fn default() -> Self {
        Multiturn {
            ttl: Duration::from_secs(450),
            entries_max: 65_536,
            bytes_max: 256 << 20,
            expose_kv_params: false,
            remote_host: RemoteHost::Dialled,
            redis: None,
            redis_timeout: Duration::from_millis(50),
        }
    }
}

/// Which `remote_host` engines are told of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteHost {
    /// The host under which we reach the engine: what it says of itself is `localhost` by default.
    Dialled,
    /// What the engine says.
    AsGiven,
}

impl RemoteHost {
    pub const fn name(self) -> &'static str {
        match self {
            RemoteHost::Dialled => "dialled",
            RemoteHost::AsGiven => "as_given",
        }
    }
}

/// `redis://[user:password@]host[:port][/db]`, or `unix:[//[user:password@]]/path[?db=N]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// `Tcp` or `Unix`.
    pub address: Address,
    /// Empty: the default user.
    pub user: String,
    pub password: Option<Secret>,
    pub db: u32,
}

const PORT: u16 = 6379;

impl RedisAddress {
    /// The error is the sentence to show; it never has the password.
    pub fn parse(text: &str) -> Result<RedisAddress, String> {
        let text = text.trim();
        let bad = |why: &str| Err(format!("Invalid Redis address: {why}"));
        if text.starts_with("rediss://") {
            return bad("TLS to a Redis is not supported: use redis:// or a unix socket");
        }
        if let Some(rest) = text.strip_prefix("redis://") {
            let (login, place) = split_login(rest)?;
            let (place, db) = place.split_once('/').unwrap_or((place, ""));
            let in_brackets = place.rfind(']').unwrap_or(0);
            let place = match place[in_brackets..].contains(':') {
                true => place.to_owned(),
                false => format!("{place}:{PORT}"),
            };
            let address = Address::parse(&place).map_err(|_| {
                "Invalid Redis address: write redis://host:port/db, for example redis://10.0.0.9:6379/0"
            })?;
            return RedisAddress::of(address, login, db);
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            let (login, path) = match rest.strip_prefix("//") {
                Some(rest) => split_login(rest)?,
                None => (None, rest),
            };
            let (path, db) = path.split_once("?db=").unwrap_or((path, ""));
            if !path.starts_with('/') || path.contains(char::is_control) {
                return bad("a unix socket is written unix:/absolute/path");
            }
            return RedisAddress::of(Address::Unix(PathBuf::from(path)), login, db);
        }
        bad("write redis://host:port/db, or unix:/path/of/redis.sock")
    }

    fn of(address: Address, login: Option<Login>, db: &str) -> Result<RedisAddress, String> {
        let number = match db {
            "" => Some(0),
            // `parse` alone would also read a sign.
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        let Some(db) = number else {
            return Err("Invalid Redis address: the database is a number, as in /0".into());
        };
        let (user, password) = login.unwrap_or_default();
        Ok(RedisAddress {
            address,
            user,
            password: (!password.is_empty()).then_some(Secret(password)),
            db,
        })
    }
}

/// User and password.
type Login = (String, String);

/// What is in front of the last `@`, if there is one.
fn split_login(text: &str) -> Result<(Option<Login>, &str), String> {
    let Some((login, rest)) = text.rsplit_once('@') else {
        return Ok((None, text));
    };
    let bad = || "Invalid Redis address: write user:password@, or :password@".to_owned();
    let (user, password) = login.split_once(':').ok_or_else(bad)?;
    let plain = |text: &str| unquote(text).ok_or_else(bad);
    Ok((Some((plain(user)?, plain(password)?)), rest))
}

/// `%40` and the like.
fn unquote(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok().filter(|t| !t.contains('\0'))
}

/// Without its password.
impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = match (&self.password, self.user.as_str()) {
            (None, _) => String::new(),
            (Some(_), user) => format!("{user}:(hidden)@"),
        };
        match &self.address {
            Address::Unix(path) => {
                let start = if login.is_empty() { "" } else { "//" };
                write!(f, "unix:{start}{login}{}", path.display())?;
                match self.db {
                    0 => Ok(()),
                    db => write!(f, "?db={db}"),
                }
            }
            address => write!(f, "redis://{login}{address}/{}", self.db),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_forms_are_read() {
        let read = |text: &str| RedisAddress::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(read("redis://h").to_string(), "redis://h:6379/0");
        assert_eq!(read("redis://[::1]/2").to_string(), "redis://[::1]:6379/2");
        assert_eq!(read("unix:/run/r.sock").to_string(), "unix:/run/r.sock");
        assert_eq!(
            read("unix:///run/r.sock?db=3").to_string(),
            "unix:/run/r.sock?db=3"
        );
        let full = read("redis://me:p%40s%3As@10.0.0.1:7000/4");
        assert_eq!((full.user.as_str(), full.db), ("me", 4));
        assert_eq!(full.password, Some(Secret("p@s:s".into())));
        assert_eq!(full.to_string(), "redis://me:(hidden)@10.0.0.1:7000/4");
        assert!(!format!("{full:?}").contains("p@s"));
        let socket = read("unix://:secret@/run/r.sock?db=1");
        assert_eq!(socket.address, Address::Unix("/run/r.sock".into()));
        assert_eq!(socket.to_string(), "unix://:(hidden)@/run/r.sock?db=1");
    }

    #[test]
    fn mistakes_are_told_without_the_password() {
        for text in [
            "",
            "h:6379",
            "rediss://h",
            "redis://u:hush@h:x",
            "redis://u:hush@h/zero",
            "redis://u:hush@h/-1",
            "redis://hush@h",
            "redis://u:hush%zz@h",
            "unix:relative",
            "redis://",
        ] {
            let why = RedisAddress::parse(text).expect_err(text);
            assert!(!why.contains("hush") && !why.is_empty(), "{why}");
        }
    }
}
