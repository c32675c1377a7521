//! Engines of raw bytes, for answers that no sound engine gives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::server::Server;

/// What an engine does next on a connection; after the last act it waits for another request there.
#[derive(Clone)]
pub enum Act {
    Send(Vec<u8>),
    Pause(u64),
    /// Until the test says [`Fake::go`].
    Gate,
    /// Nothing, until the proxy ends the connection.
    Hang,
    /// FIN, after all that was sent.
    Close,
    /// RST.
    Reset,
}

pub fn send(bytes: impl AsRef<[u8]>) -> Act {
    Act::Send(bytes.as_ref().to_vec())
}

/// One request as it came, head and body.
#[derive(Clone)]
pub struct Seen {
    /// Numbers the connections, from 0.
    pub connection: usize,
    pub bytes: Vec<u8>,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn body(&self) -> &[u8] {
        let end = head_end(&self.bytes).expect("a head");
        &self.bytes[end..]
    }

    /// The values of all fields of this name.
    pub fn header(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next().unwrap_or("");
        head.lines()
            .skip(1)
            .filter_map(|l| l.split_once(": "))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_owned())
            .collect()
    }
}

type Script = dyn Fn(usize, &Seen) -> Vec<Act> + Send + Sync;

struct Inner {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    /// Acts that are done.
    acts: AtomicUsize,
    go: (Mutex<bool>, Condvar),
    stop: AtomicBool,
}

pub struct Fake {
    pub address: Address,
    inner: Arc<Inner>,
}

impl Fake {
    /// The script gets the number of the request, from 0, and the request.
    pub fn new(script: impl Fn(usize, &Seen) -> Vec<Act> + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let inner = Inner::new(Box::new(script));
        let shared = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let _ = stream.set_nodelay(true);
                shared.clone().serve(stream);
            }
        });
        Fake {
            address: Address::tcp(address.ip().to_string(), address.port()),
            inner,
        }
    }

    /// The same answer to every request.
    pub fn always(acts: Vec<Act>) -> Fake {
        Fake::new(move |_, _| acts.clone())
    }

    pub fn on_unix(
        path: &Path,
        script: impl Fn(usize, &Seen) -> Vec<Act> + Send + Sync + 'static,
    ) -> Fake {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("a socket file");
        let inner = Inner::new(Box::new(script));
        let shared = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                shared.clone().serve(stream);
            }
        });
        Fake {
            address: Address::Unix(PathBuf::from(path)),
            inner,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// Connections that were ever accepted.
    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// Acts that are done: what was sent is in the proxy's socket.
    pub fn acts(&self) -> usize {
        self.inner.acts.load(Ordering::SeqCst)
    }

    /// Opens the gate, for good.
    pub fn go(&self) {
        *self.inner.go.0.lock().unwrap() = true;
        self.inner.go.1.notify_all();
    }

    /// Connections on which the proxy has not ended.
    pub fn open(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        match &self.address {
            Address::Unix(path) => {
                let _ = std::os::unix::net::UnixStream::connect(path);
                let _ = std::fs::remove_file(path);
            }
            tcp => {
                let _ = TcpStream::connect(tcp.to_string());
            }
        }
    }
}

impl Inner {
    fn new(script: Box<Script>) -> Arc<Inner> {
        Arc::new(Inner {
            script,
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            acts: AtomicUsize::new(0),
            go: Default::default(),
            stop: AtomicBool::new(false),
        })
    }

    fn serve(self: Arc<Inner>, stream: impl Read + Write + AsRawFd + Send + 'static) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            self.talk(stream, number);
            self.open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn talk(&self, mut stream: impl Read + Write + AsRawFd, connection: usize) {
        let mut input = Vec::new();
        while let Some(bytes) = request(&mut stream, &mut input) {
            let seen = Seen { connection, bytes };
            let number = {
                let mut all = self.seen.lock().unwrap();
                all.push(seen.clone());
                all.len() - 1
            };
            for act in (self.script)(number, &seen) {
                match act {
                    Act::Send(bytes) => {
                        if stream.write_all(&bytes).is_err() {
                            return;
                        }
                    }
                    Act::Pause(ms) => std::thread::sleep(Duration::from_millis(ms)),
                    Act::Gate => {
                        let gate = self.go.0.lock().unwrap();
                        drop(self.go.1.wait_while(gate, |open| !*open).unwrap());
                    }
                    Act::Hang => return read_out(&mut stream),
                    Act::Close => {
                        // SAFETY: a plain call on a descriptor that `stream` owns.
                        unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) };
                        self.acts.fetch_add(1, Ordering::SeqCst);
                        return read_out(&mut stream);
                    }
                    Act::Reset => {
                        let socket = socket2::SockRef::from(&stream.as_raw_fd().borrowed())
                            .set_linger(Some(Duration::ZERO));
                        return drop(socket);
                    }
                }
                self.acts.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn read_out(stream: &mut impl Read) {
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest), Ok(n) if n > 0) {}
}

trait Borrowed {
    fn borrowed(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl Borrowed for std::os::fd::RawFd {
    fn borrowed(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the stream that owns it outlives the borrow.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(*self) }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// The next request with its body; the proxy always sends a length.
fn request(stream: &mut impl Read, input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut piece = vec![0; 64 << 10];
    loop {
        if let Some(end) = head_end(input) {
            let head = String::from_utf8_lossy(&input[..end]).to_ascii_lowercase();
            assert!(!head.contains("transfer-encoding"), "{head}");
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            let total = end + length.map_or(0, |n| n.parse().expect("a length"));
            if input.len() >= total {
                return Some(input.drain(..total).collect());
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(n) => input.extend_from_slice(&piece[..n]),
        }
    }
}

/// A proxy with one shard in front of raw engines.
pub fn proxy(fakes: &[&Fake], change: impl FnOnce(&mut Config)) -> Server {
    let instances = fakes
        .iter()
        .map(|fake| InstanceConfig::new(fake.address.clone(), Role::Aggregated));
    let mut config = crate::support::config("aggregated", &[], &[]);
    config.instances = instances.collect();
    config.cores.shards = Some(1);
    config.health_check.enabled = false;
    change(&mut config);
    Server::start(config).expect("the proxy starts")
}

/// A whole answer with a length.
pub fn answer(body: &str) -> Act {
    send(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

pub fn at(server: &Server) -> crate::support::Client {
    crate::support::Client::connect(server.address)
}
