//! One load thread: its connections, the clock that says when requests are due, and the sweep that ends late ones.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::args::Args;
use crate::conn::{Conn, Cut, Job, Slot};
use crate::pace::Pacer;
use crate::request::Requests;
use crate::shared::{Phase, Shared};
use crate::stats::Stats;

/// How often deadlines are looked at: one coarse timer instead of one per request.
const SWEEP: Duration = Duration::from_millis(50);
/// A closed loop without a server must not spin.
const BACKOFF: Duration = Duration::from_millis(10);

pub struct Thread {
    pub index: usize,
    pub address: SocketAddr,
    pub args: Arc<Args>,
    pub requests: Arc<Requests>,
    pub shared: Arc<Shared>,
    pub stats: RefCell<Stats>,
    pub slots: RefCell<Vec<Rc<Slot>>>,
    pub in_flight: Cell<usize>,
    /// Connection tasks and pacer that have not ended.
    tasks: Cell<usize>,
    ids: Cell<u64>,
    queue: RefCell<Queue>,
    /// Connections that have made their last request. Open until all have: closing them is work for the server, and
    /// the requests that still run would be measured beside it.
    done: RefCell<Vec<Conn>>,
}

/// Requests that are due (open loop) and connections that wait for one.
#[derive(Default)]
struct Queue {
    jobs: std::collections::VecDeque<Job>,
    /// Last in, first out: few connections do the work and the others can be closed by the server in peace.
    idle: Vec<Waker>,
    closed: bool,
}

impl Thread {
    pub fn new(
        index: usize,
        address: SocketAddr,
        args: Arc<Args>,
        requests: Arc<Requests>,
        shared: Arc<Shared>,
    ) -> Rc<Self> {
        Rc::new(Self {
            index,
            address,
            args,
            requests,
            shared,
            stats: RefCell::default(),
            slots: RefCell::default(),
            in_flight: Cell::new(0),
            tasks: Cell::new(0),
            ids: Cell::new(0),
            queue: RefCell::default(),
            done: RefCell::default(),
        })
    }

    /// Runs the load to its end.
    pub async fn drive(self: &Rc<Self>) {
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        self.shared.live[self.index].tid.store(tid as u64, Relaxed);
        if let Some(rate) = self.args.rate {
            self.spawn(pace(self.clone(), rate));
        } else {
            for _ in 0..self.args.share(self.args.concurrency, self.index) {
                self.spawn(closed_loop(self.clone()));
            }
        }
        while self.tasks.get() > 0 {
            monoio::time::sleep(SWEEP).await;
            self.sweep();
        }
        self.done.take();
        self.publish();
        self.shared.wake_main();
    }

    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let thread = self.clone();
        thread.tasks.set(thread.tasks.get() + 1);
        monoio::spawn(async move {
            task.await;
            thread.tasks.set(thread.tasks.get() - 1);
        });
    }

    /// A number no other request of this run has.
    pub fn next_id(&self) -> u64 {
        self.ids.set(self.ids.get() + 1);
        ((self.index as u64) << 48) | self.ids.get()
    }

    fn sweep(&self) {
        let now = self.shared.now();
        let phase = self.shared.phase();
        let timeout = (self.args.timeout_s * 1e9) as u64;
        let (deadline, why) = match phase {
            Phase::Cut => (Some(now), Cut::Over),
            _ => (now.checked_sub(timeout), Cut::Timeout),
        };
        if let Some(deadline) = deadline {
            for slot in self.slots.borrow().iter() {
                slot.sweep(deadline, why);
            }
        }
        if phase == Phase::Cut {
            let left = std::mem::take(&mut self.queue.borrow_mut().jobs);
            for job in left {
                self.unfinished(&mut self.stats.borrow_mut(), job);
            }
        }
        self.publish();
    }

    /// A request without an answer at the very end. Its age goes into the histogram: leaving it out would hide
    /// exactly the slowest.
    pub fn unfinished(&self, stats: &mut Stats, job: Job) {
        if job.measured {
            stats.unfinished += 1;
            stats.e2e.record(self.shared.now().saturating_sub(job.due));
        }
    }

    fn publish(&self) {
        let stats = self.stats.borrow();
        let live = &self.shared.live[self.index];
        live.ok.store(stats.measured_ok + stats.warmup_ok, Relaxed);
        live.failed
            .store(stats.measured_failed + stats.warmup_failed, Relaxed);
        live.chunks.store(stats.window.chunks, Relaxed);
        live.in_flight.store(self.in_flight.get() as u64, Relaxed);
    }

    /// A request is due: an idle connection takes it, or a new one, or it waits.
    fn submit(self: &Rc<Self>, job: Job) {
        let mut queue = self.queue.borrow_mut();
        queue.jobs.push_back(job);
        if let Some(waker) = queue.idle.pop() {
            waker.wake();
            return;
        }
        let limit = self.args.share(self.args.max_in_flight, self.index);
        if self.slots.borrow().len() < limit {
            drop(queue);
            self.spawn(open_loop(self.clone(), Conn::new(self.clone())));
            return;
        }
        let waiting = queue.jobs.len();
        let mut stats = self.stats.borrow_mut();
        stats.backlog_max = stats.backlog_max.max(waiting);
    }

    async fn next_job(&self) -> Option<Job> {
        poll_fn(|context| {
            let mut queue = self.queue.borrow_mut();
            match queue.jobs.pop_front() {
                Some(job) => Poll::Ready(Some(job)),
                None if queue.closed => Poll::Ready(None),
                None => {
                    queue.idle.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

async fn closed_loop(thread: Rc<Thread>) {
    let mut conn = Conn::new(thread.clone());
    loop {
        let phase = thread.shared.phase();
        let measured = phase == Phase::Measure;
        if phase >= Phase::Drain || !thread.shared.claim(measured) {
            break;
        }
        // The next request is due when the last one ended: time spent in pdload itself counts.
        if !conn
            .run(Job {
                due: conn.last,
                measured,
            })
            .await
        {
            monoio::time::sleep(BACKOFF).await;
            conn.last = thread.shared.now();
        }
    }
    thread.done.borrow_mut().push(conn);
}

async fn open_loop(thread: Rc<Thread>, mut conn: Conn) {
    while let Some(job) = thread.next_job().await {
        conn.run(job).await;
    }
    thread.done.borrow_mut().push(conn);
}

/// Says when requests are due, until the window ends.
async fn pace(thread: Rc<Thread>, rate: f64) {
    let args = &thread.args;
    let start = thread.shared.now();
    match Pacer::new(
        rate,
        args.arrivals,
        args.threads,
        thread.index,
        args.seed,
        start,
    ) {
        Ok(mut pacer) => loop {
            let now = thread.shared.now();
            let phase = thread.shared.phase();
            let measured = phase == Phase::Measure;
            if phase >= Phase::Drain {
                break;
            }
            let mut over = false;
            while pacer.due() <= now && !over {
                over = !thread.shared.claim(measured);
                if !over {
                    thread.submit(Job {
                        due: pacer.due(),
                        measured,
                    });
                    pacer.advance();
                }
            }
            if over {
                break;
            }
            pacer.wait(&thread.shared).await;
        },
        Err(error) => {
            let mut stats = thread.stats.borrow_mut();
            stats.measured_failed += 1;
            stats.fail(crate::stats::Failure::Connect, || {
                format!("no timer: {error}")
            });
        }
    }
    let mut queue = thread.queue.borrow_mut();
    queue.closed = true;
    for waker in std::mem::take(&mut queue.idle) {
        waker.wake();
    }
}
