//! One connection: it sends a request, reads the response to its end, and settles the account.
//!
//! No operation on the socket is ever dropped while the kernel holds its buffer. To end one early the sweep
//! (thread.rs) shuts the socket down, which completes it, and leaves the reason in the [`Slot`].

use std::cell::Cell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;

use crate::http::{Parser, Progress};
use crate::observe::{Failed, Observer, Watch};
use crate::request::{ID_LEN, Template, write_id};
use crate::stats::Failure;
use crate::thread::Thread;

const READ_BUFFER: usize = 16 * 1024;
/// A kept-alive connection that rested longer than this is looked at before it is used.
const RESTED_NS: u64 = 5_000_000;

/// One request to make.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// When it should be sent; latency counts from here.
    pub due: u64,
    pub measured: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    No,
    Timeout,
    /// The drain time is over.
    Over,
}

/// What the sweep sees of a connection.
#[derive(Debug)]
pub struct Slot {
    fd: Cell<RawFd>,
    started: Cell<Option<u64>>,
    cut: Cell<Cut>,
}

impl Slot {
    /// Ends the request under way if it started before `deadline`.
    pub fn sweep(&self, deadline: u64, why: Cut) {
        let late = self
            .started
            .get()
            .is_some_and(|started| started <= deadline);
        if !late || self.fd.get() < 0 || self.cut.get() != Cut::No {
            return;
        }
        self.cut.set(why);
        // SAFETY: the descriptor is open: `Conn::close` clears it here before the stream is dropped, on this thread.
        unsafe { libc::shutdown(self.fd.get(), libc::SHUT_RDWR) };
    }
}

pub struct Conn {
    thread: Rc<Thread>,
    slot: Rc<Slot>,
    stream: Option<TcpStream>,
    out: Vec<u8>,
    inbound: Vec<u8>,
    parser: Parser,
    seen: Observer,
    /// Index of the template whose bytes are in `out`.
    loaded: Option<usize>,
    next_template: usize,
    /// The connection has carried a response.
    used: bool,
    /// The last connection was closed as announced.
    closed_orderly: bool,
    /// When the last response was complete.
    pub last: u64,
}

impl Conn {
    pub fn new(thread: Rc<Thread>) -> Self {
        let slot = Rc::new(Slot {
            fd: Cell::new(-1),
            started: Cell::new(None),
            cut: Cell::new(Cut::No),
        });
        thread.slots.borrow_mut().push(slot.clone());
        let seen = Observer::new(thread.requests.stream, thread.args.verify_stable);
        let last = thread.shared.now();
        // Connections start at different prompts.
        let next_template = thread.slots.borrow().len() + thread.index;
        Self {
            slot,
            stream: None,
            out: Vec::new(),
            inbound: Vec::with_capacity(READ_BUFFER),
            parser: Parser::default(),
            seen,
            loaded: None,
            next_template,
            used: false,
            closed_orderly: false,
            last,
            thread,
        }
    }

    /// Makes one request; false if there was no connection for it.
    pub async fn run(&mut self, job: Job) -> bool {
        let start = self.thread.shared.now();
        self.slot.cut.set(Cut::No);
        self.slot.started.set(Some(start));
        self.thread.in_flight.set(self.thread.in_flight.get() + 1);
        if job.measured && self.thread.args.rate.is_some() {
            self.thread
                .stats
                .borrow_mut()
                .delay
                .record(start.saturating_sub(job.due));
        }
        let result = self.attempt(job, start).await;
        self.thread.in_flight.set(self.thread.in_flight.get() - 1);
        self.slot.started.set(None);
        let connected = !matches!(result, Err((Failure::Connect, _)));
        self.settle(job, result);
        connected
    }

    async fn attempt(&mut self, job: Job, start: u64) -> Result<(), Failed> {
        if start.saturating_sub(self.last) > RESTED_NS && self.is_dead() {
            self.close(true);
        }
        if self.stream.is_none() {
            self.connect(job).await?;
        }
        self.parser.reset();
        let template = self.load();
        // A server may answer and close before it has read everything: the answer is worth more than the error.
        let sent = self.send(template).await;
        self.receive(job)
            .await
            .map_err(|failed| match self.seen.told_failure() {
                Err(told) => told,
                Ok(()) => failed,
            })?;
        let expected = &self.thread.shared.texts[template];
        self.seen.verdict(
            |hash| match expected.compare_exchange(0, hash, Relaxed, Relaxed) {
                Ok(_) => true,
                Err(first) => first == hash,
            },
        )?;
        if sent.is_err() {
            self.close(true);
        }
        Ok(())
    }

    async fn connect(&mut self, job: Job) -> Result<(), Failed> {
        let begin = self.thread.shared.now();
        let limit = Duration::from_secs_f64(self.thread.args.connect_timeout_s);
        // The one operation that a timer may drop: its socket goes with it.
        let connected =
            monoio::time::timeout(limit, TcpStream::connect_addr(self.thread.address)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err((Failure::Connect, error.to_string())),
            Err(_) => return Err((Failure::Connect, "timed out".into())),
        };
        stream
            .set_nodelay(true)
            .map_err(|error| (Failure::Connect, error.to_string()))?;
        self.slot.fd.set(stream.as_raw_fd());
        self.stream = Some(stream);
        self.used = false;
        let mut stats = self.thread.stats.borrow_mut();
        stats.connects += 1;
        stats.reconnects += u64::from(std::mem::take(&mut self.closed_orderly));
        if job.measured {
            stats.connect.record(self.thread.shared.now() - begin);
        }
        Ok(())
    }

    /// Puts the bytes of the next request into `out`; says which it is.
    fn load(&mut self) -> usize {
        let templates = &self.thread.requests.templates;
        let index = self.next_template % templates.len();
        self.next_template = index + 1;
        let template = &templates[index];
        if self.loaded != Some(index) {
            self.out.clear();
            self.out.extend_from_slice(&template.head);
            self.loaded = Some(index);
        }
        let id = template.id_at.map(|at| {
            let id = &mut self.out[at..at + ID_LEN];
            write_id(id, self.thread.shared.run_id, self.thread.next_id());
            <[u8; ID_LEN]>::try_from(&*id).expect("the slice has this length")
        });
        self.seen.reset(id);
        index
    }

    async fn send(&mut self, template: usize) -> std::io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let (result, out) = write_all(stream, std::mem::take(&mut self.out)).await;
        self.out = out;
        let mut sent = result?;
        let Template { body, .. } = &self.thread.requests.templates[template];
        if let Some(body) = body {
            sent += write_all(stream, body.clone()).await.0?;
        }
        if self.thread.shared.measuring() {
            self.thread.stats.borrow_mut().window.bytes_sent += sent as u64;
        }
        Ok(())
    }

    /// Reads until the response is complete.
    async fn receive(&mut self, job: Job) -> Result<(), Failed> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Ok(());
            };
            let (result, buffer) = stream.read(std::mem::take(&mut self.inbound)).await;
            self.inbound = buffer;
            let count = match result {
                Ok(count) => count,
                Err(error) => return Err(self.broken(&error.to_string())),
            };
            self.last = self.thread.shared.now();
            if count == 0 {
                if !self.parser.started() {
                    return Err(self.broken("closed before any byte of the response"));
                }
                self.parser
                    .eof()
                    .map_err(|fault| (Failure::Truncated, fault.0.to_owned()))?;
                self.close(true);
                return Ok(());
            }
            if let Some(rest) = self.take(count, job)? {
                if rest > 0 {
                    return Err((
                        Failure::Protocol,
                        "bytes behind the end of the response".into(),
                    ));
                }
                self.used = true;
                if !self.parser.keep_alive() {
                    self.close(true);
                }
                return Ok(());
            }
        }
    }

    /// Feeds what was read. `Some(rest)` at the end of the response.
    fn take(&mut self, count: usize, job: Job) -> Result<Option<usize>, Failed> {
        let mut stats = self.thread.stats.borrow_mut();
        let in_window = self.thread.shared.measuring();
        if in_window {
            stats.window.reads += 1;
            stats.window.bytes_received += count as u64;
        }
        let mut watch = Watch {
            seen: &mut self.seen,
            stats: &mut stats,
            now: self.last,
            measured: job.measured,
            in_window,
        };
        match self.parser.feed(&self.inbound[..count], &mut watch) {
            Ok(Progress::More) => Ok(None),
            Ok(Progress::Done { rest }) => Ok(Some(rest)),
            Err(fault) => Err((Failure::Protocol, fault.0.to_owned())),
        }
    }

    fn broken(&self, words: &str) -> Failed {
        let stale = self.used && !self.parser.started();
        (
            if stale {
                Failure::Stale
            } else {
                Failure::Reset
            },
            words.to_owned(),
        )
    }

    /// Books how the request ended.
    fn settle(&mut self, job: Job, result: Result<(), Failed>) {
        let cut = self.slot.cut.get();
        let result = match cut {
            Cut::No => result,
            Cut::Timeout | Cut::Over => Err((Failure::Timeout, "no complete response".into())),
        };
        if result.is_err() {
            self.close(false);
        }
        self.book(job, cut, result);
        self.thread.shared.finish(job.measured);
    }

    fn book(&self, job: Job, cut: Cut, result: Result<(), Failed>) {
        let mut stats = self.thread.stats.borrow_mut();
        let stats = &mut *stats;
        let in_window = self.thread.shared.measuring();
        if cut == Cut::Over {
            self.thread.unfinished(stats, job);
            return;
        }
        if self.seen.status() != 0 && job.measured {
            *stats.statuses.entry(self.seen.status()).or_default() += 1;
        }
        match result {
            Ok(()) if job.measured => {
                stats.measured_ok += 1;
                stats.e2e.record(self.last.saturating_sub(job.due));
                if let Some(first) = self.seen.first_token() {
                    stats.ttft.record(first.saturating_sub(job.due));
                }
            }
            Ok(()) => stats.warmup_ok += 1,
            Err((failure, words)) => {
                if job.measured {
                    stats.measured_failed += 1;
                } else {
                    stats.warmup_failed += 1;
                }
                stats.window.failed += u64::from(in_window);
                stats.fail(failure, || words);
                return;
            }
        }
        stats.window.requests += u64::from(in_window);
    }

    /// Has the server closed the resting connection, or sent what nobody asked for?
    fn is_dead(&self) -> bool {
        let Some(stream) = &self.stream else {
            return false;
        };
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the descriptor is open and the buffer is one byte long.
        let count = unsafe { libc::recv(stream.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
        let waits = std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock;
        !(count < 0 && waits)
    }

    fn close(&mut self, orderly: bool) {
        self.slot.fd.set(-1);
        self.closed_orderly = orderly && self.stream.is_some();
        self.stream = None;
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.close(false);
    }
}

/// Writes all of `buffer` and gives it back.
async fn write_all<T: IoBuf>(stream: &mut TcpStream, buffer: T) -> (std::io::Result<usize>, T) {
    let total = buffer.bytes_init();
    let (result, mut buffer) = stream.write(buffer).await;
    let mut sent = match result {
        Ok(sent) => sent,
        Err(error) => return (Err(error), buffer),
    };
    while sent < total {
        let (result, slice) = stream.write(buffer.slice(sent..)).await;
        buffer = slice.into_inner();
        match result {
            Ok(0) => return (Err(std::io::ErrorKind::WriteZero.into()), buffer),
            Ok(count) => sent += count,
            Err(error) => return (Err(error), buffer),
        }
    }
    (Ok(sent), buffer)
}
