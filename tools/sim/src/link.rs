//! One connection's socket: owned buffers in and out, a watch for clients that leave, FIN and RST on
//! purpose. No operation is ever dropped in flight, except the poll of the watch, which holds no data.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;

const READ: usize = 8 << 10;
/// Buffers above this are given back once a request is done.
const KEEP: usize = 256 << 10;
/// What a client may pipeline while it waits; beyond it the watch is blind.
const AHEAD_MAX: usize = 1 << 20;

/// The client is not there any more.
#[derive(Debug)]
pub(crate) struct Gone;

type Poller = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// Polls a duplicate of the descriptor, so that the poll can stay armed while the stream is written.
struct Watch {
    twin: Rc<TcpStream>,
    armed: Option<Poller>,
}

pub(crate) struct Link {
    stream: TcpStream,
    pub fd: RawFd,
    input: Vec<u8>,
    /// Bytes of `input` that are done with.
    at: usize,
    watch: Option<Watch>,
}

impl Link {
    pub fn new(stream: TcpStream) -> Link {
        let fd = stream.as_raw_fd();
        Link {
            stream,
            fd,
            input: Vec::with_capacity(READ),
            at: 0,
            watch: None,
        }
    }

    /// What was received and not yet consumed.
    pub fn input(&self) -> &[u8] {
        &self.input[self.at..]
    }

    pub fn consume(&mut self, n: usize) {
        self.at += n;
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
            if self.input.capacity() > KEEP {
                self.input = Vec::with_capacity(READ);
            }
        }
    }

    /// Makes room so that `total` unconsumed bytes will fit without moving again.
    pub fn expect(&mut self, total: usize) {
        if self.at > 0 {
            self.input.drain(..self.at);
            self.at = 0;
        }
        self.input.reserve(total.saturating_sub(self.input.len()));
    }

    /// Receives more, at most `limit` bytes. `Ok(0)` is the end.
    pub async fn fill(&mut self, limit: usize) -> io::Result<usize> {
        if self.input.capacity() - self.input.len() < READ / 4 {
            let more = self.input().len() + READ;
            self.expect(more);
        }
        let buffer = std::mem::take(&mut self.input);
        let from = buffer.len();
        let to = buffer.capacity().min(from.saturating_add(limit));
        let (result, slice) = self.stream.read(buffer.slice_mut(from..to)).await;
        self.input = slice.into_inner();
        if result.is_err() {
            self.input.truncate(from);
        }
        result
    }

    /// Sends all of `out` and gives the buffer back empty.
    pub async fn send(&mut self, out: Vec<u8>) -> Result<Vec<u8>, Gone> {
        let mut out = out;
        let mut done = 0;
        while done < out.len() {
            let (result, slice) = self.stream.write(out.slice(done..)).await;
            out = slice.into_inner();
            match result {
                Ok(0) | Err(_) => return Err(Gone),
                Ok(n) => done += n,
            }
        }
        out.clear();
        Ok(out)
    }

    /// Runs `work` unless the client leaves first; `work` is dropped then, so it must hold no I/O.
    pub async fn unless_gone<F: Future>(&mut self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            self.poll_gone(cx).map(|()| Err(Gone))
        })
        .await
    }

    pub async fn until_gone(&mut self) {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await;
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.watch.is_none() {
            match twin(self.fd) {
                Ok(twin) => {
                    self.watch = Some(Watch {
                        twin: Rc::new(twin),
                        armed: None,
                    })
                }
                Err(_) => return Poll::Ready(()),
            }
        }
        let Some(watch) = &mut self.watch else {
            return Poll::Ready(());
        };
        loop {
            if self.input.len() > AHEAD_MAX {
                return Poll::Pending;
            }
            let poller = watch.armed.get_or_insert_with(|| {
                let twin = watch.twin.clone();
                Box::pin(async move { twin.readable(false).await })
            });
            if poller.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            watch.armed = None;
            match receive_now(self.fd, &mut self.input) {
                Ok(0) => return Poll::Ready(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// No more from us; what was sent arrives.
    pub fn finish(&self) {
        // SAFETY: a plain system call on a descriptor that `self` owns.
        unsafe { libc::shutdown(self.fd, libc::SHUT_WR) };
    }
}

fn twin(fd: RawFd) -> io::Result<TcpStream> {
    // SAFETY: `fd` is open, owned by the caller.
    let copy = unsafe { libc::dup(fd) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `copy` is new and nobody else's.
    TcpStream::from_std(unsafe { std::net::TcpStream::from_raw_fd(copy) })
}

/// Appends what is there without waiting.
fn receive_now(fd: RawFd, input: &mut Vec<u8>) -> io::Result<usize> {
    let mut bytes = [0u8; 4096];
    // SAFETY: the buffer is as long as said and outlives the call.
    let n = unsafe {
        libc::recv(
            fd,
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
        )
    };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    input.extend_from_slice(&bytes[..n as usize]);
    Ok(n as usize)
}

/// Breaks the connection with an RST at once, whoever is waiting on it: `connect` to "no address"
/// is how TCP spells that. A close would come only after the last operation in flight.
pub(crate) fn reset(fd: RawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: plain system calls; `fd` is open, the structures live through the calls, and an
    // all-zero sockaddr is one of family AF_UNSPEC.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        );
        let nowhere: libc::sockaddr = std::mem::zeroed();
        libc::connect(fd, &nowhere, size_of::<libc::sockaddr>() as u32);
    }
}
