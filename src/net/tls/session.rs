//! One TLS session: rustls turns bytes into bytes, and the raw stream carries them.
//!
//! Two futures may use it at once, a reader and a writer, of one thread. What rustls wants to send because of
//! something it read (an alert, a key update) is sent by whoever writes at the time, or by the reader if
//! nobody does: there is never more than one write in flight.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::task::{Poll, Waker};

use rustls::{ClientConnection, Connection, ServerConnection};

use super::super::stream::Stream;

/// Never more than what rustls keeps of plaintext (16 KiB): it refuses to read on before that is taken.
const READ_MAX: usize = 16 << 10;
/// An idle connection waits with this much.
const READ_MIN: usize = 2 << 10;

pub struct Session {
    raw: Stream,
    rustls: RefCell<Connection>,
    /// Ciphertext that came before the session was made.
    early: RefCell<Vec<u8>>,
    /// The next read's room: more after one that was filled.
    room: Cell<usize>,
    writing: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
    /// The peer's bytes are no TLS, or it broke a rule: nothing more can be read.
    broken: Cell<bool>,
}

impl Session {
    /// `early`: what has been read from the client already.
    pub fn server(raw: Stream, rustls: ServerConnection, early: Vec<u8>) -> Session {
        Session::new(raw, rustls.into(), early)
    }

    pub fn client(raw: Stream, rustls: ClientConnection) -> Session {
        Session::new(raw, rustls.into(), Vec::new())
    }

    fn new(raw: Stream, rustls: Connection, early: Vec<u8>) -> Session {
        Session {
            raw,
            rustls: RefCell::new(rustls),
            early: RefCell::new(early),
            room: Cell::new(READ_MIN),
            writing: Cell::new(false),
            waiting: RefCell::new(None),
            broken: Cell::new(false),
        }
    }

    pub fn raw(&self) -> &Stream {
        &self.raw
    }

    /// Both sides know each other's keys when this is over.
    pub async fn handshake(&self) -> io::Result<()> {
        loop {
            self.flush(true).await?;
            if !self.rustls.borrow().is_handshaking() {
                return Ok(());
            }
            if !self.more().await? {
                let what = "the peer closed in the TLS handshake";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
        }
    }

    /// Reads once, appending to `buf` up to its capacity. 0: the peer said that it has finished; an end without
    /// that is an error, since anyone on the way could have cut it.
    pub async fn read(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            let start = buf.len();
            buf.resize(buf.capacity(), 0);
            let result = self.rustls.borrow_mut().reader().read(&mut buf[start..]);
            buf.truncate(start + result.as_ref().copied().unwrap_or(0));
            match result {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, buf),
            }
            if self.broken.get() {
                return (Err(io::ErrorKind::ConnectionAborted.into()), buf);
            }
            if let Err(why) = self.more().await {
                return (Err(why), buf);
            }
            if let Err(why) = self.flush(false).await {
                return (Err(why), buf);
            }
        }
    }

    /// Takes in one more read of ciphertext. False: the raw stream has ended.
    async fn more(&self) -> io::Result<bool> {
        let early = std::mem::take(&mut *self.early.borrow_mut());
        let bytes = if early.is_empty() {
            let room = self.room.get();
            let (result, bytes) = self.raw.read(Vec::with_capacity(room)).await;
            self.room.set(match result? {
                n if n >= room => (2 * room).min(READ_MAX),
                _ => READ_MIN,
            });
            bytes
        } else {
            early
        };
        if let Err(why) = self.take(&bytes) {
            self.broken.set(true);
            // The peer is told why, if it still listens.
            let _ = self.flush(false).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(!bytes.is_empty())
    }

    fn take(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        let mut rustls = self.rustls.borrow_mut();
        loop {
            // An empty slice tells it of the end.
            rustls.read_tls(&mut rest)?;
            rustls.process_new_packets().map_err(io::Error::other)?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    pub async fn write_all(&self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let result = self.write(&buf).await;
        (result, buf)
    }

    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.rustls.borrow_mut().writer().write(&bytes[at..])?;
            self.flush(true).await?;
        }
        Ok(())
    }

    /// Says that we have finished sending, and means it: what went before is whole.
    pub async fn finish(&self) -> io::Result<()> {
        self.rustls.borrow_mut().send_close_notify();
        self.flush(true).await
    }

    /// Sends what rustls has to send. `wait`: if somebody else is sending, until that is done; else they will send
    /// ours, too.
    async fn flush(&self, wait: bool) -> io::Result<()> {
        while self.writing.get() {
            if !wait {
                return Ok(());
            }
            poll_fn(|cx| match self.writing.get() {
                false => Poll::Ready(()),
                true => {
                    *self.waiting.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
            .await;
        }
        if !self.rustls.borrow().wants_write() {
            return Ok(());
        }
        self.writing.set(true);
        let _done = Done(self);
        let mut out = Vec::with_capacity(READ_MAX);
        loop {
            out.clear();
            {
                let mut rustls = self.rustls.borrow_mut();
                while rustls.wants_write() {
                    rustls.write_tls(&mut out)?;
                }
            }
            if out.is_empty() {
                return Ok(());
            }
            let (result, back) = self.raw.write_all(out).await;
            out = back;
            result?;
        }
    }

    /// Nothing has come that nobody asked for.
    pub fn looks_fresh(&self) -> bool {
        !self.broken.get() && self.raw.looks_fresh()
    }
}

/// The write in flight is over, however it ended.
struct Done<'a>(&'a Session);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.writing.set(false);
        if let Some(waker) = self.0.waiting.borrow_mut().take() {
            waker.wake();
        }
    }
}
