//! Two servers that speak RESP: one of ours, strict and breakable, and the real one where it is installed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::eventually;

/// Not where the engines of other tests are: a proxy that tries to reach a store that is gone must not find one
/// of those on its port.
const HOST: &str = "127.0.0.2";
/// Set: a machine without a Redis fails the tests that need it.
const REQUIRED: &str = "PDRELAY_TEST_REDIS";

/// How ours behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Good,
    /// Before 6.2: it knows no GETDEL.
    Old,
    /// It takes everything and says nothing.
    Silent,
    /// It says something that is no RESP.
    Nonsense,
    /// It says RESP that makes no sense here.
    Wrong,
    /// It keeps values, and gives back others.
    Garbled,
    Loading,
    /// It closes after each reply.
    Closes,
}

#[derive(Default)]
pub struct Kept {
    pub values: HashMap<Vec<u8>, (Vec<u8>, Instant)>,
    pub commands: Vec<Vec<Vec<u8>>>,
    /// What a client must never do.
    pub faults: Vec<String>,
}

pub struct Fake {
    pub address: SocketAddr,
    pub kept: Arc<Mutex<Kept>>,
    mood: Arc<Mutex<Mood>>,
    stop: Arc<AtomicBool>,
}

impl Fake {
    pub fn start(mood: Mood) -> Fake {
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let fake = Fake {
            address: listener.local_addr().unwrap(),
            kept: Arc::default(),
            mood: Arc::new(Mutex::new(mood)),
            stop: Arc::default(),
        };
        let (kept, mood, stop) = (fake.kept.clone(), fake.mood.clone(), fake.stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (kept, mood) = (kept.clone(), mood.clone());
                std::thread::spawn(move || serve(stream, &kept, &mood));
            }
        });
        fake
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub fn no_faults(&self) {
        assert_eq!(self.kept.lock().unwrap().faults, Vec::<String>::new());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, kept: &Mutex<Kept>, mood: &Mutex<Mood>) {
    let mut input = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        while let Some((words, used)) = command(&input) {
            input.drain(..used);
            let now = *mood.lock().unwrap();
            let answer = answer(&words, &mut kept.lock().unwrap(), now);
            if !answer.is_empty() && stream.write_all(&answer).is_err() {
                return;
            }
            if now == Mood::Closes {
                return;
            }
        }
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => input.extend_from_slice(&piece[..n]),
            _ => return,
        }
    }
}

/// One command, written as the protocol says and in no other way.
fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let mut line = |kind: u8| -> Option<usize> {
        let end = at + bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        assert_eq!(bytes[at], kind, "{:?}", String::from_utf8_lossy(bytes));
        let number = std::str::from_utf8(&bytes[at + 1..end])
            .unwrap()
            .parse()
            .unwrap();
        at = end + 2;
        Some(number)
    };
    let count = line(b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let end = at + bytes.get(at..)?.windows(2).position(|w| w == b"\r\n")?;
        assert_eq!(bytes[at], b'$');
        let length: usize = std::str::from_utf8(&bytes[at + 1..end])
            .unwrap()
            .parse()
            .unwrap();
        at = end + 2;
        words.push(bytes.get(at..at + length)?.to_vec());
        assert_eq!(bytes.get(at + length..at + length + 2)?, b"\r\n");
        at += length + 2;
    }
    Some((words, at))
}

fn answer(words: &[Vec<u8>], kept: &mut Kept, mood: Mood) -> Vec<u8> {
    kept.commands.push(words.to_vec());
    match mood {
        Mood::Silent => return Vec::new(),
        Mood::Nonsense => return b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        Mood::Wrong => return b"*2\r\n:1\r\n$-1\r\n".to_vec(),
        Mood::Loading => return b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(),
        _ => {}
    }
    let now = Instant::now();
    kept.values.retain(|_, (_, until)| *until > now);
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let bulk = |value: Option<(Vec<u8>, Instant)>| match value {
        None => b"$-1\r\n".to_vec(),
        Some((value, _)) => [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat(),
    };
    match words.as_slice() {
        [b"GETDEL", _] if mood == Mood::Old => {
            b"-ERR unknown command 'GETDEL', with args beginning with: 'x'\r\n".to_vec()
        }
        [b"GETDEL", key] => bulk(kept.values.remove(*key)),
        [b"EVAL", script, b"1", key] => {
            if !script.windows(3).any(|w| w == b"DEL") {
                kept.faults.push("a script that does not delete".into());
            }
            bulk(kept.values.remove(*key))
        }
        [b"SET", key, value, b"PX", ms] => {
            let ms: u64 = std::str::from_utf8(ms).unwrap().parse().unwrap();
            let value = match mood {
                Mood::Garbled => value[..value.len() / 2].to_vec(),
                _ => value.to_vec(),
            };
            let until = now + Duration::from_millis(ms);
            kept.values.insert(key.to_vec(), (value, until));
            b"+OK\r\n".to_vec()
        }
        [b"AUTH", ..] | [b"SELECT", _] => b"+OK\r\n".to_vec(),
        other => {
            let text: Vec<_> = other.iter().map(|w| String::from_utf8_lossy(w)).collect();
            kept.faults.push(format!("{text:?}"));
            b"-ERR syntax error\r\n".to_vec()
        }
    }
}

/// `redis-server` on a port or a socket of its own, in a folder of its own.
pub struct Real {
    child: Child,
    folder: PathBuf,
    port: u16,
    args: Vec<String>,
}

impl Real {
    /// `None`: it is not installed here (`tools/redis/install.sh` does that).
    pub fn start(args: &[&str]) -> Option<Real> {
        let number = TcpListener::bind((HOST, 0)).unwrap();
        let port = number.local_addr().unwrap().port();
        drop(number);
        let folder =
            std::env::temp_dir().join(format!("pdrelay-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let child = match launch(&folder, port, &args) {
            Ok(child) => child,
            Err(_) => {
                let _ = std::fs::remove_dir_all(&folder);
                not_here();
                return None;
            }
        };
        let real = Real {
            child,
            folder,
            port,
            args,
        };
        real.wait();
        Some(real)
    }

    fn wait(&self) {
        eventually("redis-server listens", || {
            TcpStream::connect((HOST, self.port)).is_ok()
        });
    }

    pub fn url(&self, login: &str) -> String {
        format!("redis://{login}{HOST}:{}/3", self.port)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// At once, as a machine that fails.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn again(&mut self) {
        self.child = launch(&self.folder, self.port, &self.args).unwrap();
        self.wait();
    }
}

/// Said past the harness, which keeps the words of a test that passes to itself.
fn not_here() {
    let what = "redis-server is not installed: a test that needs it was NOT done (tools/redis/prove.sh does it)";
    assert!(std::env::var_os(REQUIRED).is_none(), "{what}");
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn launch(folder: &Path, port: u16, args: &[String]) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", HOST])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder)
        .arg("--unixsocket")
        .arg(folder.join("redis.sock"))
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Drop for Real {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
