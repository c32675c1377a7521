//! A ZeroMQ PULL socket, bound: many PUSH peers connect, and connect again. On a thread of its own with a
//! small epoll runtime, so that no shard ever waits for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::log;
use crate::wire::zmtp::{GREETING, Peer};

use super::limit;
use super::runtime::{self, Driver};
use super::stream::{Stream, shutdown_now};

/// Peers beyond this are closed at once: one for each worker of each prefill instance is all there should be.
const PEERS_MAX: usize = 16_384;
/// Nor may they take more than this part of the open files: clients need theirs.
const OPEN_FILES_SHARE: usize = 4;
const READ: usize = 16 << 10;

/// What its owner may look at.
#[derive(Default)]
pub struct Peers {
    pub connected: AtomicU64,
    /// Those that were sent away: what they spoke was not understood.
    pub refused: AtomicU64,
}

/// The socket. Closed or dropped, its thread has ended.
pub struct Pull {
    pub address: SocketAddr,
    pub peers: Arc<Peers>,
    stopping: Arc<AtomicBool>,
    open: Mutex<Option<Open>>,
}

/// Until it is closed.
struct Open {
    /// A twin of the thread's: shutting it down ends the accept, and its number is ours alone.
    listener: TcpListener,
    thread: JoinHandle<()>,
}

impl Pull {
    /// Binds, and gives each message to `message` from now on. Who has not said what it is after `handshake`, never
    /// will, and is sent away.
    pub fn bind(
        address: SocketAddr,
        handshake: Duration,
        message: impl Fn(&[u8]) + Send + 'static,
    ) -> io::Result<Pull> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        let listener: TcpListener = socket.into();
        let address = listener.local_addr()?;
        let peers = Arc::<Peers>::default();
        let stopping = Arc::<AtomicBool>::default();
        let twin = listener.try_clone()?;
        let (theirs, seen) = (stopping.clone(), peers.clone());
        let run = move || match runtime::control() {
            Ok(mut runtime) => {
                let message = Rc::new(message);
                runtime.block_on(accept(listener, handshake, theirs, seen, message));
            }
            Err(error) => log::error(|| format!("no notices are taken: {error}")),
        };
        let thread = std::thread::Builder::new().name("zmq".into()).spawn(run)?;
        Ok(Pull {
            address,
            peers,
            stopping,
            open: Mutex::new(Some(Open {
                listener: twin,
                thread,
            })),
        })
    }

    /// Takes nothing more; when it returns, the address is free.
    pub fn close(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let open = self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Open { listener, thread }) = open {
            shutdown_now(listener.as_raw_fd());
            let _ = thread.join();
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.close();
    }
}

/// Descriptors of the connected peers, to be shut down at the end.
type Descriptors = Rc<RefCell<Vec<RawFd>>>;

async fn accept<M: Fn(&[u8]) + 'static>(
    listener: TcpListener,
    handshake: Duration,
    stopping: Arc<AtomicBool>,
    peers: Arc<Peers>,
    message: Rc<M>,
) {
    let open = Descriptors::default();
    let most = PEERS_MAX.min(limit::raise_nofile() as usize / OPEN_FILES_SHARE);
    let listener = match monoio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error(|| format!("no notices are taken: {error}")),
    };
    while !stopping.load(Ordering::SeqCst) {
        match listener.accept().await {
            Ok((stream, _)) => {
                // SAFETY: the number was just given up by its owner.
                let fd = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
                if open.borrow().len() >= most {
                    peers.refused.fetch_add(1, Ordering::Relaxed);
                    log::limited("zmq_peers", log::Level::Warning, || {
                        format!("senders of notices are sent away: {most} are connected")
                    });
                    continue;
                }
                let (open, peers, message) = (open.clone(), peers.clone(), message.clone());
                monoio::spawn(serve(fd, handshake, open, peers, message));
            }
            Err(_) if stopping.load(Ordering::SeqCst) => break,
            Err(error) => {
                log::limited("zmq_accept", log::Level::Error, || {
                    format!("cannot accept a sender of notices: {error}")
                });
                monoio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Each read ends by itself, and with it its task.
    for fd in open.borrow().iter() {
        shutdown_now(*fd);
    }
    while !open.borrow().is_empty() {
        monoio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn serve<M: Fn(&[u8]) + 'static>(
    fd: OwnedFd,
    handshake: Duration,
    open: Descriptors,
    peers: Arc<Peers>,
    message: Rc<M>,
) {
    let Ok(stream) = Stream::from_tcp(fd, Driver::Epoll) else {
        return;
    };
    open.borrow_mut().push(stream.fd());
    peers.connected.fetch_add(1, Ordering::Relaxed);
    let stage = Rc::new(Cell::new(Handshake::Waiting));
    monoio::spawn(end_unless_ready(stream.fd(), handshake, stage.clone()));
    let ended = listen(&stream, &*message, &stage).await;
    let ended = match stage.replace(Handshake::Over) {
        Handshake::Late => Err("it has not finished its ZeroMQ handshake in time"),
        _ => ended,
    };
    if let Err(why) = ended {
        peers.refused.fetch_add(1, Ordering::Relaxed);
        log::limited("zmq_peer", log::Level::Warning, || {
            format!("a sender of notices is sent away: {why}")
        });
    }
    peers.connected.fetch_sub(1, Ordering::Relaxed);
    let fd = stream.fd();
    open.borrow_mut().retain(|other| *other != fd);
}

#[derive(Clone, Copy, PartialEq)]
enum Handshake {
    Waiting,
    /// Its wait was ended by us.
    Late,
    /// Or the connection is.
    Over,
}

/// A peer that never says what it is would keep its place for ever.
async fn end_unless_ready(fd: RawFd, limit: Duration, stage: Rc<Cell<Handshake>>) {
    monoio::time::sleep(limit).await;
    // While it waits, the number is still its own.
    if stage.get() == Handshake::Waiting {
        stage.set(Handshake::Late);
        shutdown_now(fd);
    }
}

/// Reads one peer to its end. The error: why it could not be understood.
async fn listen(
    stream: &Stream,
    message: &impl Fn(&[u8]),
    stage: &Cell<Handshake>,
) -> Result<(), &'static str> {
    // libzmq sends the rest of its greeting only after it has seen ours.
    if stream.write_all(GREETING.to_vec()).await.0.is_err() {
        return Ok(());
    }
    let mut peer = Peer::default();
    let mut buf = Vec::with_capacity(READ);
    loop {
        buf.clear();
        let (result, back) = stream.read(buf).await;
        buf = back;
        if !matches!(result, Ok(n) if n > 0) {
            return Ok(());
        }
        let mut out = Vec::new();
        peer.feed(&buf, &mut out, message).map_err(|bad| bad.0)?;
        if peer.ready() && stage.get() == Handshake::Waiting {
            stage.set(Handshake::Over);
        }
        if !out.is_empty() && stream.write_all(out).await.0.is_err() {
            return Ok(());
        }
    }
}
