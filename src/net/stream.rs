//! One byte stream, whatever carries it. Inherent methods, so nothing above is generic over sockets.
//!
//! This file holds the `unsafe` that lets a connection read and write at the same time.

use std::cell::UnsafeCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use monoio::buf::SliceMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::{TcpStream, UnixStream};

use super::buffer::Pieces;
use super::runtime::Driver;
use super::tls::Session;

/// Where an upstream connection goes, resolved: a shard never asks DNS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

enum Inner {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed, and its futures as well: a plain stream does not pay for it.
    Tls(Box<Session>),
}

/// A connected stream. One reader and one writer at a time (two waiters on one direction do not work in
/// epoll mode); the methods take `&self` so that the two may be different futures.
pub struct Stream {
    inner: UnsafeCell<Inner>,
    fd: RawFd,
}

impl Stream {
    /// Takes over a connected TCP descriptor and sets NODELAY and keep-alive probes on it.
    pub fn from_tcp(fd: OwnedFd, driver: Driver) -> io::Result<Stream> {
        let socket = socket2::Socket::from(fd);
        // monoio accepts without it on a ring.
        socket.set_cloexec(true)?;
        socket.set_tcp_nodelay(true)?;
        let probes = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15));
        socket.set_tcp_keepalive(&probes)?;
        socket.set_nonblocking(driver.nonblocking())?;
        let stream = TcpStream::from_std(socket.into())?;
        Ok(Stream {
            fd: stream.as_raw_fd(),
            inner: UnsafeCell::new(Inner::Tcp(stream)),
        })
    }

    pub fn from_unix(fd: OwnedFd, driver: Driver) -> io::Result<Stream> {
        // SAFETY: an owned descriptor, handed on whole.
        let std = unsafe { std::os::unix::net::UnixStream::from_raw_fd(fd.into_raw_fd()) };
        std.set_nonblocking(driver.nonblocking())?;
        let stream = UnixStream::from_std(std)?;
        Ok(Stream {
            fd: stream.as_raw_fd(),
            inner: UnsafeCell::new(Inner::Unix(stream)),
        })
    }

    /// What a TLS handshake has made of a plain stream.
    pub fn from_tls(session: Box<Session>) -> Stream {
        Stream {
            fd: session.raw().fd,
            inner: UnsafeCell::new(Inner::Tls(session)),
        }
    }

    /// Connects. `started` is told the descriptor before any wait, so that a deadline can end the wait by
    /// shutting it down.
    pub async fn connect(
        target: &Target,
        driver: Driver,
        started: impl FnOnce(RawFd),
    ) -> io::Result<Stream> {
        let (socket, address) = match target {
            Target::Tcp(address) => {
                let domain = socket2::Domain::for_address(*address);
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                (socket, socket2::SockAddr::from(*address))
            }
            Target::Unix(path) => {
                let socket =
                    socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
                (socket, unix_address(path)?)
            }
        };
        socket.set_nonblocking(true)?;
        let pending = match socket.connect(&address) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(e) => return Err(e),
        };
        let fd = OwnedFd::from(socket);
        started(fd.as_raw_fd());
        let stream = match target {
            Target::Tcp(_) => Stream::from_tcp(fd, driver)?,
            Target::Unix(_) => Stream::from_unix(fd, driver)?,
        };
        if pending {
            stream.writable().await?;
            stream.take_error()?;
        }
        Ok(stream)
    }

    #[allow(clippy::mut_from_ref)]
    fn inner(&self) -> &mut Inner {
        // SAFETY: single-threaded (the type is !Sync), and no caller keeps the reference over an await
        // other than inside monoio's own read, write and readiness futures, which use nothing of it but a
        // counted clone of the descriptor. The same reasoning as monoio's own `into_split`.
        unsafe { &mut *self.inner.get() }
    }

    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Reads once, appending to `buf` up to its capacity. 0 = the peer has finished sending.
    // An async fn holds what it is given by value twice, for as long as a stream rests.
    #[allow(clippy::manual_async_fn)]
    pub fn read(&self, buf: Vec<u8>) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> {
        async move {
            let (start, end) = (buf.len(), buf.capacity());
            debug_assert!(start < end, "no room to read into");
            if let Inner::Tls(session) = self.inner() {
                return Box::pin(session.read(buf)).await;
            }
            let tail = SliceMut::new(buf, start, end);
            let (result, tail) = match self.inner() {
                Inner::Tcp(s) => s.read(tail).await,
                Inner::Unix(s) => s.read(tail).await,
                Inner::Tls(_) => unreachable!("taken care of above"),
            };
            (result, tail.into_inner())
        }
    }

    /// Writes all of `buf` and hands it back.
    pub async fn write_all(&self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut buf = buf;
        let mut at = 0;
        if let Inner::Tls(session) = self.inner() {
            return Box::pin(session.write_all(buf)).await;
        }
        while at < buf.len() {
            let (result, back) = if at == 0 {
                self.write_once(buf).await
            } else {
                let part = monoio::buf::IoBuf::slice(buf, at..);
                let (result, part) = match self.inner() {
                    Inner::Tcp(s) => s.write(part).await,
                    Inner::Unix(s) => s.write(part).await,
                    Inner::Tls(_) => unreachable!("taken care of above"),
                };
                (result, part.into_inner())
            };
            buf = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(n) => at += n,
                Err(e) => return (Err(e), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn write_once(&self, buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self.inner() {
            Inner::Tcp(s) => s.write(buf).await,
            Inner::Unix(s) => s.write(buf).await,
            Inner::Tls(_) => unreachable!("write_all takes care of it"),
        }
    }

    /// Writes all pieces with writev, without copying them together.
    pub async fn write_pieces(&self, pieces: Pieces) -> io::Result<()> {
        let mut pieces = pieces;
        if let Inner::Tls(session) = self.inner() {
            return Box::pin(secret_pieces(session, &pieces)).await;
        }
        while !pieces.is_empty() {
            let (result, back) = match self.inner() {
                Inner::Tcp(s) => s.writev(pieces).await,
                Inner::Unix(s) => s.writev(pieces).await,
                Inner::Tls(_) => unreachable!("taken care of above"),
            };
            pieces = back;
            match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => pieces.advance(n),
            }
        }
        Ok(())
    }

    /// Waits until the connection attempt has ended, either way.
    async fn writable(&self) -> io::Result<()> {
        match self.inner() {
            Inner::Tcp(s) => s.writable(false).await,
            Inner::Unix(s) => s.writable(false).await,
            // It was connected before it became one.
            Inner::Tls(_) => Ok(()),
        }
    }

    fn take_error(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as `self` lives.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.fd) };
        match socket2::SockRef::from(&fd).take_error()? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Did the peer send anything (or close) since the last read? One syscall, no wait. Used before a
    /// pooled connection is trusted: an engine that is about to answer us has nothing to say yet.
    pub fn looks_fresh(&self) -> bool {
        if let Inner::Tls(session) = self.inner() {
            return session.looks_fresh();
        }
        let mut byte = 0u8;
        // SAFETY: one byte of room, and flags that neither block nor take the byte.
        let n = unsafe {
            libc::recv(
                self.fd,
                (&raw mut byte).cast(),
                1,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }
}

impl Stream {
    /// Says, where the protocol has words for it, that all we sent is whole. Before a clean end only: whoever is cut
    /// off must see that.
    pub async fn say_end(&self) {
        if let Inner::Tls(session) = self.inner() {
            // The peer may be gone already.
            let _ = Box::pin(session.finish()).await;
        }
    }
}

async fn secret_pieces(session: &Session, pieces: &Pieces) -> io::Result<()> {
    for part in pieces.parts() {
        session.write(part).await?;
    }
    Ok(())
}

/// Has the peer closed its side, or the connection broken? No wait, takes no data.
pub fn hung_up(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, no wait.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

fn unix_address(path: &Path) -> io::Result<socket2::SockAddr> {
    socket2::SockAddr::unix(path)
}

/// Ends every operation pending on `fd`, in all driver modes; the descriptor stays open.
pub fn shutdown_now(fd: RawFd) {
    // SAFETY: a plain syscall; on a descriptor without a connection it just fails.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Ends a pending read (it returns 0); writing goes on.
pub fn finish_reading(fd: RawFd) {
    // SAFETY: as above.
    unsafe { libc::shutdown(fd, libc::SHUT_RD) };
}

/// Says that we have finished sending; the peer may still send.
pub fn finish_writing(fd: RawFd) {
    // SAFETY: as above.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Resets the connection at once, whoever waits on it: for a peer to whom a clean end means success.
/// `connect` to "no address" is how TCP spells that; a close would come only after what is in flight.
pub fn reset_now(fd: RawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: a valid option and a valid address (all zero: AF_UNSPEC) of the sizes given.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
        let nowhere: libc::sockaddr = std::mem::zeroed();
        libc::connect(fd, &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t);
    }
}
