//! One shard's client of a Redis: a queue of commands, one connection, one task that speaks on it.
//!
//! ```text
//!   ask, tell            task                       Redis
//!     |--command-->|       |                          |
//!     |            |------>|--all that is queued----->|
//!     |<--reply, or nothing|<--one reply each---------|
//! ```
//!
//! A shard never waits for a Redis that does not answer: a question has a limit of its own, after which it
//! goes on without, and a connection that has failed is tried again only after a pause, in which every
//! question is answered with nothing at once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::runtime::Driver;
use super::stream::{Stream, Target};
use super::sweep::{Sweep, Wait};
use crate::wire::resp::{self, Reply};

/// Commands written at once.
const BATCH_MAX: usize = 64;
/// What may wait for the task; beyond it a command is refused.
const QUEUE_MAX: usize = 1024;
const QUEUE_BYTES_MAX: usize = 16 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Whom to ask, and who asks.
pub struct Settings {
    /// Where it is; asked for at every connect, since names move.
    pub targets: Box<dyn Fn() -> Vec<Target>>,
    /// `AUTH` and `SELECT`, as far as they are needed, each as its words.
    pub greeting: Vec<Vec<Vec<u8>>>,
    /// How long a question may take.
    pub limit: Duration,
    /// Is told why a connection could not be made, or has ended.
    pub lost: Box<dyn Fn(&str)>,
}

pub struct Client(Rc<Inner>);

struct Inner {
    settings: Settings,
    sweep: Rc<Sweep>,
    driver: Driver,
    queue: RefCell<VecDeque<Job>>,
    queued_bytes: Cell<usize>,
    waker: RefCell<Option<Waker>>,
    /// After a failure: nothing is tried for a while.
    pausing: Cell<bool>,
}

struct Job {
    command: Vec<u8>,
    ticket: Rc<Ticket>,
}

/// Where an answer is left.
#[derive(Default)]
struct Ticket {
    /// The outer: it is there. The inner: it is an answer, and no failure.
    reply: RefCell<Option<Option<Reply>>>,
    waker: RefCell<Option<Waker>>,
}

impl Ticket {
    fn leave(&self, reply: Option<Reply>) {
        *self.reply.borrow_mut() = Some(reply);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// An answer on its way.
pub struct Pending {
    ticket: Rc<Ticket>,
    limit: Duration,
}

impl Pending {
    /// Nothing, if it does not come in time, or never will.
    pub async fn answer(self) -> Option<Reply> {
        let mut timer = pin!(monoio::time::sleep(self.limit));
        poll_fn(|cx| {
            if let Some(reply) = self.ticket.reply.borrow_mut().take() {
                return Poll::Ready(reply);
            }
            *self.ticket.waker.borrow_mut() = Some(cx.waker().clone());
            timer.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

impl Client {
    /// To be called on the shard that will use it.
    pub fn new(settings: Settings, sweep: Rc<Sweep>, driver: Driver) -> Client {
        let inner = Rc::new(Inner {
            settings,
            sweep,
            driver,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            waker: RefCell::default(),
            pausing: Cell::new(false),
        });
        monoio::spawn(run(inner.clone()));
        Client(inner)
    }

    /// Queues a command; `None`: there is nobody to take it now.
    pub fn ask(&self, words: &[&[u8]]) -> Option<Pending> {
        let inner = &self.0;
        let full =
            inner.queue.borrow().len() >= QUEUE_MAX || inner.queued_bytes.get() >= QUEUE_BYTES_MAX;
        if inner.pausing.get() || full {
            return None;
        }
        let mut command = Vec::with_capacity(256);
        resp::put_command(&mut command, words);
        inner
            .queued_bytes
            .set(inner.queued_bytes.get() + command.len());
        let ticket = Rc::new(Ticket::default());
        inner.queue.borrow_mut().push_back(Job {
            command,
            ticket: ticket.clone(),
        });
        if let Some(waker) = inner.waker.borrow_mut().take() {
            waker.wake();
        }
        Some(Pending {
            ticket,
            limit: inner.settings.limit,
        })
    }
}

impl Inner {
    /// Waits until there is something to say.
    async fn wanted(&self) {
        poll_fn(|cx| {
            if !self.queue.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn batch(&self) -> Vec<Job> {
        let mut queue = self.queue.borrow_mut();
        let count = queue.len().min(BATCH_MAX);
        let batch: Vec<Job> = queue.drain(..count).collect();
        let bytes: usize = batch.iter().map(|job| job.command.len()).sum();
        self.queued_bytes.set(self.queued_bytes.get() - bytes);
        batch
    }

    fn give_up_all(&self) {
        self.queued_bytes.set(0);
        for job in self.queue.borrow_mut().drain(..) {
            job.ticket.leave(None);
        }
    }
}

async fn run(inner: Rc<Inner>) {
    let mut pause = PAUSE_MIN;
    loop {
        inner.wanted().await;
        let why = match Link::open(&inner).await {
            Ok(mut link) => {
                let mut spoke = false;
                let end = link.serve(&inner, &mut spoke).await;
                if spoke {
                    pause = PAUSE_MIN;
                }
                match end {
                    // It was closed while nobody wanted anything: that is no failure.
                    Ok(()) => continue,
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        (inner.settings.lost)(&why.to_string());
        inner.pausing.set(true);
        inner.give_up_all();
        monoio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        inner.pausing.set(false);
    }
}

/// A connection, and what has been read of it.
struct Link {
    stream: Stream,
    read: Vec<u8>,
    slot: Rc<super::sweep::Slot>,
    _watch: super::sweep::Upstream,
    limit: Duration,
}

impl Link {
    async fn open(inner: &Inner) -> io::Result<Link> {
        let mut last = io::Error::other("its name has no address (yet)");
        for target in (inner.settings.targets)() {
            // One slot per connection: a deadline that has passed ends it for good.
            let slot = inner.sweep.orphan();
            slot.arm(Wait::Redis, inner.settings.limit);
            let mut watch = None;
            let opened = Stream::connect(&target, inner.driver, |fd| {
                watch = Some(slot.watch_upstream(fd));
            })
            .await;
            slot.disarm();
            match (opened, watch) {
                (Ok(stream), Some(watch)) if slot.fired().is_none() => {
                    let mut link = Link {
                        stream,
                        read: Vec::with_capacity(4 << 10),
                        slot,
                        _watch: watch,
                        limit: inner.settings.limit,
                    };
                    link.greet(&inner.settings.greeting).await?;
                    return Ok(link);
                }
                (Err(why), _) => last = why,
                _ => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn greet(&mut self, greeting: &[Vec<Vec<u8>>]) -> io::Result<()> {
        for words in greeting {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let mut command = Vec::new();
            resp::put_command(&mut command, &words);
            self.slot.arm(Wait::Redis, self.limit);
            self.stream.write_all(command).await.0?;
            let reply = self.reply().await?;
            self.slot.disarm();
            if let Reply::Error(what) = reply {
                // Its text names no password.
                let what = String::from_utf8_lossy(&what).into_owned();
                return Err(io::Error::other(what));
            }
        }
        Ok(())
    }

    /// Says what is queued, until the connection ends.
    async fn serve(&mut self, inner: &Inner, spoke: &mut bool) -> io::Result<()> {
        loop {
            inner.wanted().await;
            if !self.stream.looks_fresh() {
                return Ok(());
            }
            let batch = inner.batch();
            let result = self.converse(&batch).await;
            for job in &batch {
                // Those that have their reply keep it.
                if job.ticket.reply.borrow().is_none() && result.is_err() {
                    job.ticket.leave(None);
                }
            }
            result?;
            *spoke = true;
        }
    }

    async fn converse(&mut self, batch: &[Job]) -> io::Result<()> {
        let mut out = Vec::with_capacity(batch.iter().map(|job| job.command.len()).sum());
        for job in batch {
            out.extend_from_slice(&job.command);
        }
        self.slot.arm(Wait::Redis, self.limit);
        self.stream.write_all(out).await.0?;
        for job in batch {
            let reply = self.reply().await?;
            job.ticket.leave(Some(reply));
        }
        self.slot.disarm();
        if !self.read.is_empty() {
            return Err(io::Error::other("it says more than it was asked"));
        }
        Ok(())
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            let taken = resp::take(&self.read);
            if let Some((reply, used)) = taken.map_err(|bad| io::Error::other(bad.0))? {
                self.read.drain(..used);
                return Ok(reply);
            }
            let mut read = std::mem::take(&mut self.read);
            read.reserve(4 << 10);
            let (result, back) = self.stream.read(read).await;
            self.read = back;
            match result? {
                _ if self.slot.fired().is_some() => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "it did not answer in time",
                    ));
                }
                0 => return Err(io::Error::other("it closed the connection")),
                _ => {}
            }
        }
    }
}
