//! What a client sends: one reader per connection, always reading while a request is served.
//!
//! The reader and the code that serves are two futures of *one* task ([`Duet`]), sharing an [`Inbox`].
//! A read that completes during a request is either the client's next request (kept for later) or its
//! end (the slot is fired: the request stops at once, in whatever stage it is).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::buffer::{Buffers, LITTLE, SMALL};
use super::stream::Stream;
use super::sweep::{Fired, Slot};

/// A stream that takes less is not one of many that rest.
const BRISK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The serving side looks at the bytes; nobody reads.
    Idle,
    /// One read, then idle: the serving side waits for more.
    Fill,
    /// Read while a request is served, until something comes.
    Watch,
    /// Read and forget, until the client ends.
    Discard,
}

pub struct Inbox {
    mode: Cell<Mode>,
    /// Bytes received and not yet taken; away (empty) while a read is in flight.
    bytes: RefCell<Vec<u8>>,
    reading: Cell<bool>,
    closed: Cell<bool>,
    /// How much is read ahead while a request is served.
    ahead: Cell<usize>,
    /// The request that is being served is a stream; and one before it was, and was soon over.
    stream: Cell<bool>,
    brisk: Cell<bool>,
    /// The serving side changed something that the reader must see in this same turn.
    kick: Cell<bool>,
    buffers: Rc<Buffers>,
}

impl Inbox {
    pub fn new(buffers: Rc<Buffers>) -> Rc<Inbox> {
        Rc::new(Inbox {
            mode: Cell::new(Mode::Idle),
            bytes: RefCell::new(Vec::new()),
            reading: Cell::new(false),
            closed: Cell::new(false),
            ahead: Cell::new(SMALL),
            stream: Cell::new(false),
            brisk: Cell::new(false),
            kick: Cell::new(false),
            buffers,
        })
    }

    fn set(&self, mode: Mode) {
        self.mode.set(mode);
        self.kick.set(true);
    }

    /// The client has ended its side, or the connection broke.
    pub fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Looks at the received bytes. Only while idle.
    pub fn look<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        f(&self.bytes.borrow())
    }

    /// What was read before there was an inbox.
    pub fn begin_with(&self, bytes: Vec<u8>) {
        *self.bytes.borrow_mut() = bytes;
    }

    /// Waits for more bytes after those already here. False: there will be none.
    pub async fn more(&self) -> bool {
        if self.closed.get() {
            return false;
        }
        self.set(Mode::Fill);
        poll_fn(
            |_| match self.mode.get() == Mode::Idle || self.closed.get() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            },
        )
        .await;
        self.mode.set(Mode::Idle);
        !self.closed.get()
    }

    /// The same before a request's first byte, where the slot's limit may pass. False then as well: whoever
    /// has not closed by then is to be hung up on.
    pub async fn first(&self, slot: &Slot) -> bool {
        if self.closed.get() {
            return false;
        }
        self.set(Mode::Fill);
        poll_fn(|cx| {
            let over = slot.fired().is_some();
            if self.mode.get() == Mode::Idle || self.closed.get() || over {
                return Poll::Ready(());
            }
            slot.sleep(cx);
            Poll::Pending
        })
        .await;
        let came = self.mode.get() == Mode::Idle;
        self.mode.set(Mode::Idle);
        came && !self.closed.get()
    }

    /// Makes room for `total` bytes in one piece, so that a body arrives without being moved.
    pub fn reserve(&self, total: usize) {
        let mut bytes = self.bytes.borrow_mut();
        let have = bytes.len();
        bytes.reserve_exact(total.saturating_sub(have));
    }

    /// Takes the first `n` bytes; what follows them stays, in a buffer of its own.
    pub fn take(&self, n: usize) -> Vec<u8> {
        let mut bytes = self.bytes.borrow_mut();
        let mut rest = Vec::new();
        if bytes.len() > n {
            rest = self.buffers.lend(bytes.len() - n);
            rest.extend_from_slice(&bytes[n..]);
            bytes.truncate(n);
        }
        std::mem::replace(&mut *bytes, rest)
    }

    /// Takes `n` bytes out from the middle: parts of a body that were decoded elsewhere.
    pub fn cut(&self, from: usize, n: usize) {
        self.bytes.borrow_mut().drain(from..from + n);
    }

    /// A request has been taken: watch the client from now on.
    pub fn watch(&self) {
        self.ahead.set(SMALL);
        self.set(Mode::Watch);
    }

    /// This request is a stream: the next one is far away, and there is no need to hold room for it. Unless the last
    /// one on this connection was a stream and soon over: then so will this one be, and the next one is better read
    /// at once than in two pieces. To be said before the first wait after [`Inbox::watch`].
    pub fn expect_little(&self) {
        self.stream.set(true);
        if !self.brisk.get() {
            self.ahead.set(LITTLE);
        }
    }

    /// A request has been answered, well or not, after so long.
    pub fn note_pace(&self, well: bool, total: Duration) {
        let stream = self.stream.take();
        self.brisk.set(stream && well && total < BRISK);
    }

    /// The request has been answered. A read still in flight becomes the next request's.
    pub fn unwatch(&self) {
        if self.closed.get() || self.mode.get() == Mode::Idle {
            return;
        }
        if !self.reading.get() {
            self.set(Mode::Idle);
        } else {
            self.set(Mode::Fill);
        }
    }

    /// Throws away what the client still sends, until it ends (or the slot's deadline ends it).
    pub async fn discard(&self) {
        self.set(Mode::Discard);
        poll_fn(|_| {
            if self.closed.get() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Gives the reader's bytes away while it reads; see [`read_client`].
    fn lend(&self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut *self.bytes.borrow_mut());
        if bytes.capacity() == 0 {
            let watching = self.mode.get() == Mode::Watch;
            bytes = self
                .buffers
                .lend(if watching { self.ahead.get() } else { SMALL });
        } else if bytes.capacity() - bytes.len() < (SMALL / 4).min(bytes.len()) {
            bytes.reserve(SMALL.max(bytes.len()));
        }
        bytes
    }
}

/// After so many reads of what is thrown away there is a pause.
const DISCARDS_IN_A_ROW: u32 = 64;
const DISCARD_PAUSE: Duration = Duration::from_millis(1);

/// The reader of one client connection; ends when the client does.
pub async fn read_client(stream: Rc<Stream>, inbox: Rc<Inbox>, slot: Rc<Slot>) {
    let mut discarded = 0u32;
    loop {
        poll_fn(|_| match inbox.mode.get() {
            Mode::Idle => Poll::Pending,
            // The next request (or a part of it) is here, and must stay where the serving side will look
            // for it; so no read, and the sweep asks the kernel now and then whether the client is there.
            Mode::Watch if !inbox.bytes.borrow().is_empty() => {
                slot.poll_hangup(true);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
        .await;
        let buf = inbox.lend();
        inbox.reading.set(true);
        let (result, buf) = stream.read(buf).await;
        inbox.reading.set(false);
        *inbox.bytes.borrow_mut() = buf;
        match result {
            Ok(n) if n > 0 => {}
            _ => return end(&inbox, &slot),
        }
        match inbox.mode.get() {
            Mode::Fill => inbox.mode.set(Mode::Idle),
            Mode::Discard => {
                inbox.bytes.borrow_mut().clear();
                // A client that never pauses always has more: what ends the wait must be asked for (a closed
                // reading half still gives what is queued).
                if slot.fired().is_some() {
                    return end(&inbox, &slot);
                }
                // On epoll a read that can be done at once is no wait, and the runtime looks at its timers
                // only when all tasks wait: without a pause nothing else would come to its turn.
                // (Rarely: whoever still uploads is to come to the end, and to the answer, in time.)
                discarded = discarded.wrapping_add(1);
                if discarded.is_multiple_of(DISCARDS_IN_A_ROW) {
                    // Boxed: a timer is three times as large as a reader at rest.
                    Box::pin(monoio::time::sleep(DISCARD_PAUSE)).await;
                }
            }
            Mode::Watch | Mode::Idle => {}
        }
    }
}

fn end(inbox: &Inbox, slot: &Slot) {
    inbox.closed.set(true);
    if inbox.mode.get() == Mode::Watch {
        slot.fire(Fired::ClientGone);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.buffers
            .give(std::mem::take(&mut *self.bytes.borrow_mut()));
    }
}

/// Polls the reader and the serving future as one; ends with the serving future.
pub struct Duet<R, S> {
    reader: Pin<Box<R>>,
    reader_done: bool,
    serve: Pin<Box<S>>,
    inbox: Rc<Inbox>,
}

impl<R, S> Duet<R, S> {
    pub fn new(reader: R, serve: S, inbox: Rc<Inbox>) -> Self {
        Duet {
            reader: Box::pin(reader),
            reader_done: false,
            serve: Box::pin(serve),
            inbox,
        }
    }
}

impl<R: Future<Output = ()>, S: Future> Future for Duet<R, S> {
    type Output = S::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<S::Output> {
        let this = &mut *self;
        loop {
            this.inbox.kick.set(false);
            if !this.reader_done {
                this.reader_done = this.reader.as_mut().poll(cx).is_ready();
            }
            if let Poll::Ready(out) = this.serve.as_mut().poll(cx) {
                return Poll::Ready(out);
            }
            // The serving side asked for bytes after the reader was polled: let it start at once.
            if this.reader_done || !this.inbox.kick.get() {
                return Poll::Pending;
            }
        }
    }
}
