//! Floor 4: one client request, and the tools to answer it: pick, call, open, reply.
//!
//! * **For:** everything a handshake needs, so that a handshake is a script that reads like its diagram.
//! * **Must never:** know the order of stages or what their parameters mean (that is `handshake/`); hand
//!   a byte of one request to another; retry anything after the first byte reached the client.
//! * **To extend:** a new verb takes `&Exchange`, waits only on operations that the request's slot can
//!   end, and returns `Err(Stop)` when the client is gone, so that scripts unwind by `?`.

pub mod budget;
pub mod call;
pub mod conversation;
pub mod first_token;
pub mod grant;
mod hold;
pub mod join;
pub mod notice;
pub mod overlay;
pub mod own_stream;
pub mod pick;
pub mod pinned;
pub mod relay;
pub mod release;
pub mod reply;
pub mod request;
pub mod rewrite;
pub mod send;
pub mod shape;
pub mod usage;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::load::LoadView;
use crate::cluster::models::{NoModel, Scope};
use crate::cluster::{Cluster, Instance};
use crate::config::{Config, Role};
use crate::error::{Error, Kind, Stage};
use crate::metrics::{Counter, ShardMetrics, Skip};
use crate::net::buffer::Buffers;
use crate::net::gate::{Gate, Passed};
use crate::net::pace::Pace;
use crate::net::pool::Pool;
use crate::net::runtime::Driver;
use crate::net::sweep::{Fired, SWEEP_EVERY, Slot, Sweep, Wait};
use crate::policy::Policy;
use crate::rng::Rng;
use crate::shared::{Reader, Snapshot};

pub use call::Answer;
pub use hold::Beginning;
pub use pick::Picked;
pub use reply::Reply;
pub use request::Request;
pub use send::{Leg, Opened};

/// What one shard owns and lends to its requests.
pub struct Tools {
    pub driver: Driver,
    pub settings: Reader<Config>,
    pub cluster: Reader<Cluster>,
    pub policies: Arc<Policies>,
    /// Instances that requests have named.
    pub hosts: Arc<pinned::Hosts>,
    pub buffers: Rc<Buffers>,
    pub pool: Rc<Pool>,
    pub view: Rc<LoadView>,
    pub sweep: Rc<Sweep>,
    pub pace: Pace,
    pub gate: Gate,
    pub metrics: Rc<ShardMetrics>,
    pub rng: Rng,
    /// To the Redis that proxies share, if there is one; made by the first who wants it.
    pub redis: OnceCell<crate::net::redis::Client>,
    pub releases: release::Releases,
    pub met: release::Met,
    pub budget: budget::Budget,
    /// Counts picks, per role: where ties begin. (One count for all would give each role of a script
    /// the same turn in every request.)
    pub rotation: [Cell<u64>; Role::ALL.len()],
    /// Reused by every pick.
    pub candidates: RefCell<Vec<crate::policy::Candidate>>,
    /// This shard's number, for what comes back from other threads.
    pub shard: usize,
    /// Who waits for notices.
    pub waiters: notice::Waiters,
    /// The process takes no new connections, and each one's next answer is its last.
    pub draining: Arc<AtomicBool>,
}

impl Tools {
    /// The configuration as it is now; a request keeps the one it began with.
    pub fn config(&self) -> Snapshot<Config> {
        self.settings.get()
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The policy of each role; one object for all shards.
pub struct Policies {
    /// Those of models that only aggregated instances serve, where they have their own.
    pub models: HashMap<String, Box<dyn Policy>>,
    pub prefill: Box<dyn Policy>,
    pub decode: Box<dyn Policy>,
    pub aggregated: Box<dyn Policy>,
    pub encode: Box<dyn Policy>,
}

/// Why a script ends early. `?` carries it up to the attempt, which answers the client.
pub enum Stop {
    /// An instance has answered in full, with a status that ends the request: the client gets it as is.
    Answer(Box<Answer>),
    /// The request ends with this status and JSON body, in words of a surface.
    Said(Box<(u16, Vec<u8>)>),
    /// Nothing has reached the client; it gets this as an error body.
    Error(Error),
    /// As `Error`, and a new attempt from the start may succeed.
    Again(Error),
    /// The reply had begun; the client's connection is broken off.
    Broken(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error)
    }
}

/// One request under way.
pub struct Exchange {
    pub tools: Rc<Tools>,
    /// See [`Exchange::request`].
    request: RefCell<Rc<Request>>,
    pub slot: Rc<Slot>,
    /// One snapshot for the whole request.
    pub cluster: Snapshot<Cluster>,
    pub config: Snapshot<Config>,
    /// Whose instances may serve it.
    pub scope: Cell<Scope>,
    /// What policies have asked for: the same in every pick.
    places: pick::Places,
    pub trace: Trace,
    /// Instances (by index) that failed this request: passed over while there are others.
    pub avoid: RefCell<Vec<usize>>,
    /// Where a header says who serves it.
    pub pins: Option<Rc<pinned::Pins>>,
    /// Every prefill failed and `prefill_failure: decode_only` says to go on without.
    pub without_prefill: Cell<bool>,
    /// Of these roles no other instance may take part.
    pinned: RefCell<Vec<Arc<Instance>>>,
}

/// Of the names of encoders in one access line: a request may have as many as it has media.
const ENCODERS_BYTES_MAX: usize = 256;

/// What happened to one request, for its access line, its metrics and `Server-Timing`.
pub struct Trace {
    /// When the first byte of the head was there.
    pub started: Instant,
    pub body: Cell<Option<Duration>>,
    /// In the gate, if it had to wait there.
    pub queue: Cell<Option<Duration>>,
    pub encode: Cell<Option<Duration>>,
    pub prefill: Cell<Option<Duration>>,
    pub decode_head: Cell<Option<Duration>>,
    pub stream: Cell<Option<Duration>>,
    pub ttft: Cell<Option<Duration>>,
    /// When the first bytes of the answer's body came, since `started`.
    pub first_chunk: Cell<Option<Duration>>,
    /// All of them, with commas.
    pub encode_at: RefCell<Option<Arc<str>>>,
    pub prefill_at: RefCell<Option<Arc<str>>>,
    pub decode_at: RefCell<Option<Arc<str>>>,
    pub retries: Cell<u8>,
    /// The model that the client named; noted only where a surface counts by it.
    pub model: RefCell<Option<Box<str>>>,
    /// The stage the request is in.
    pub stage: Cell<Stage>,
    /// Its handshake, if that is not the configured one.
    pub handshake: Cell<Option<&'static str>>,
}

impl Trace {
    pub fn new(started: Instant) -> Trace {
        Trace {
            started,
            body: Cell::default(),
            queue: Cell::default(),
            encode: Cell::default(),
            prefill: Cell::default(),
            decode_head: Cell::default(),
            stream: Cell::default(),
            ttft: Cell::default(),
            first_chunk: Cell::default(),
            encode_at: RefCell::default(),
            prefill_at: RefCell::default(),
            decode_at: RefCell::default(),
            retries: Cell::default(),
            model: RefCell::default(),
            stage: Cell::new(Stage::Body),
            handshake: Cell::default(),
        }
    }

    /// Of a request that has been received.
    pub fn of(request: &Request) -> Trace {
        let trace = Trace::new(request.started);
        trace.body.set(Some(request.received()));
        trace
    }

    pub fn retried(&self) {
        self.retries.set(self.retries.get().saturating_add(1));
    }

    /// Notes who was asked to encode, each once and in order; what does not fit is counted.
    pub fn note_encoders(&self, branches: &[Exchange]) {
        let mut shown: Vec<Arc<str>> = Vec::new();
        for branch in branches {
            let name = branch.trace.encode_at.borrow().clone();
            shown.extend(name.filter(|name| !shown.contains(name)));
        }
        let (mut text, mut more) = (String::new(), 0);
        for name in shown {
            if text.len() + name.len() >= ENCODERS_BYTES_MAX {
                more += 1;
                continue;
            }
            text.extend([if text.is_empty() { "" } else { "," }, &*name]);
        }
        if more > 0 {
            let comma = if text.is_empty() { "" } else { "," };
            text += &format!("{comma}+{more}");
        }
        *self.encode_at.borrow_mut() = (!text.is_empty()).then(|| text.into());
    }

    /// `Server-Timing` (W3C): milliseconds per stage, as far as known when the head is sent.
    pub fn server_timing(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"server-timing: ");
        let spans = [
            ("body", self.body.get()),
            ("queue", self.queue.get()),
            ("encode", self.encode.get()),
            ("prefill", self.prefill.get()),
            ("decode_head", self.decode_head.get()),
            ("total", Some(self.started.elapsed())),
        ];
        let mut first = true;
        for (name, span) in spans {
            let Some(span) = span else { continue };
            if !first {
                out.extend_from_slice(b", ");
            }
            first = false;
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b";dur=");
            let us = span.as_micros() as u64;
            out.extend_from_slice(itoa::Buffer::new().format(us / 1000).as_bytes());
            out.push(b'.');
            let rest = us % 1000;
            out.extend_from_slice(&[
                b'0' + (rest / 100) as u8,
                b'0' + (rest / 10 % 10) as u8,
                b'0' + (rest % 10) as u8,
            ]);
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl Exchange {
    pub fn new(tools: &Rc<Tools>, request: Rc<Request>, slot: Rc<Slot>, trace: Trace) -> Exchange {
        let (cluster, config) = (tools.cluster.get(), tools.config());
        Exchange {
            pins: pinned::Pins::of(&config, &cluster, &request),
            cluster,
            config,
            scope: Cell::new(Scope::All),
            places: pick::Places::default(),
            tools: tools.clone(),
            request: RefCell::new(request),
            slot,
            trace,
            avoid: RefCell::default(),
            without_prefill: Cell::new(false),
            pinned: RefCell::default(),
        }
    }

    /// The same request, with a slot and a trace of its own: for a leg that runs while another one does.
    /// What ends the request ends it, too; whoever branches off awaits the branch, and never drops it in
    /// flight.
    pub fn branch(&self) -> Exchange {
        let branch = self.detached();
        self.slot.branch_off(&branch.slot);
        branch
    }

    /// As a branch that goes on when the client leaves, for `timeouts.request` at most. (Nothing that is
    /// sent to a client can come of it.)
    pub fn detached(&self) -> Exchange {
        let slot = self.tools.sweep.orphan();
        slot.begin_request(self.config.timeouts.request);
        let detached = Exchange {
            tools: self.tools.clone(),
            request: RefCell::new(self.request()),
            slot,
            cluster: self.cluster.clone(),
            config: self.config.clone(),
            scope: self.scope.clone(),
            places: pick::Places::default(),
            trace: Trace::new(self.trace.started),
            avoid: self.avoid.clone(),
            pins: self.pins.clone(),
            without_prefill: self.without_prefill.clone(),
            pinned: self.pinned.clone(),
        };
        detached.trace.stage.set(self.trace.stage.get());
        detached
    }

    /// Whose instances may serve the model that the request names? Any, if it names none.
    pub fn find_model(&self) -> Result<(), Error> {
        if !self.cluster.models.matter() {
            return Ok(());
        }
        let request = self.request();
        let Some(name) = request.model() else {
            return Ok(());
        };
        let shown = || String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
        match self.cluster.scope_of(&name) {
            Ok(scope) => {
                self.scope.set(scope);
                Ok(())
            }
            Err(NoModel::Unknown) => {
                let what = format!("The model '{}' does not exist", shown());
                Err(Error::new(Kind::NotFound, Stage::Body, what))
            }
            Err(NoModel::NotYet) => {
                let what = "is not known yet: some instances have not said what they serve";
                let what = format!("The model '{}' {what}", shown());
                Err(Error::new(Kind::NoInstance, Stage::Body, what))
            }
        }
    }

    /// An instance has taken part in a request that named no model: the others must serve the same one.
    pub fn bind(&self, instance: &Instance) {
        if self.scope.get() == Scope::All
            && self.cluster.models.matter()
            && let Some(name) = instance.model()
            && let Some(at) = self.cluster.models.find(name.as_bytes())
        {
            self.scope.set(Scope::One(at));
        }
    }

    /// Where the request's model is in another snapshot; `None`: nobody serves it there.
    pub fn scope_in(&self, cluster: &Cluster) -> Option<Scope> {
        match self.cluster.models.in_scope(self.scope.get()) {
            None => Some(Scope::All),
            Some(served) => cluster.models.find(served.name.as_bytes()).map(Scope::One),
        }
    }

    /// Those that may serve it as the list is now; [`Exchange::members`] is as it was when it began.
    pub fn members_now(&self, role: Role) -> Vec<Arc<Instance>> {
        let cluster = self.tools.cluster.get();
        let scope = self.scope_in(&cluster);
        scope.map_or(Vec::new(), |scope| cluster.members(scope, role).to_vec())
    }

    /// The instances of this role that may serve it.
    pub fn members(&self, role: Role) -> &[Arc<Instance>] {
        self.cluster.members(self.scope.get(), role)
    }

    /// The client's request. Its bytes are there until the reply has begun.
    pub fn request(&self) -> Rc<Request> {
        self.request.borrow().clone()
    }

    /// The reply has begun, so there will be no other leg: a stream must not hold a prompt for as long as
    /// it runs. (A grant that is still to be released keeps its own count.)
    pub fn let_go(&self) {
        let mut request = self.request.borrow_mut();
        match Rc::get_mut(&mut request) {
            Some(request) => {
                if let Some(buffer) = request.forget_bytes() {
                    self.tools.buffers.give(buffer);
                }
            }
            None => *request = Rc::new(request.without_bytes()),
        }
    }

    /// Is D to be asked without a prefill? Counted when it is.
    pub fn skip_prefill(&self) -> bool {
        if self.without_prefill.get() {
            self.tools
                .metrics
                .inc(Counter::prefill_skipped(Skip::NoPrefill));
        }
        self.without_prefill.get()
    }

    /// What ended the operation that just failed, if it was us: the client's leaving, or a deadline.
    pub fn ended(&self, stage: Stage) -> Option<Error> {
        match self.slot.fired()? {
            Fired::ClientGone => Some(gone(stage)),
            Fired::Deadline(wait) => Some(timed_out(stage, wait)),
        }
    }

    /// Waits before another try. In slices, so that a client that leaves is noticed.
    pub async fn pause(&self, wait: Duration) {
        let mut left = wait;
        while !left.is_zero() && self.slot.fired().is_none() {
            let slice = left.min(SWEEP_EVERY);
            monoio::time::sleep(slice).await;
            left -= slice;
        }
    }

    /// Waits until its shard begins with it; what this gives is to be held while it is under way.
    ///
    /// # Errors
    /// The client left meanwhile, or the request's deadline passed.
    pub async fn begin(&self) -> Result<Passed<'_>, Error> {
        // The wait for its last byte is over.
        self.slot.disarm();
        let over = || self.slot.fired().is_some();
        let passed = self.tools.gate.pass(over).await;
        self.trace.queue.set(passed.waited);
        self.ended(Stage::Body).map_or(Ok(passed), Err)
    }

    /// To be asked before an operation is begun: after the client left, nothing new is.
    pub fn still_wanted(&self, stage: Stage) -> Result<(), Stop> {
        match self.ended(stage) {
            Some(error) => Err(Stop::Error(error)),
            None => Ok(()),
        }
    }
}

pub fn gone(stage: Stage) -> Error {
    Error::new(Kind::ClientGone, stage, "the client left")
}

fn timed_out(stage: Stage, wait: Wait) -> Error {
    let kind = match wait {
        Wait::Head | Wait::Body | Wait::KeepAlive | Wait::ClientWrite | Wait::Linger => {
            Kind::ClientTimeout
        }
        Wait::Drain => Kind::Draining,
        _ => Kind::Timeout,
    };
    Error::new(
        kind,
        stage,
        format!("the wait ended after timeouts.{}", wait.name()),
    )
}
