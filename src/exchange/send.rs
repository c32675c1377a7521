//! One leg: a request to an instance, up to its response head.
//!
//! ```text
//! pick -> pooled connection, or connect -> head and body written -> response head read
//!          ^                  |                          |
//!          |   cannot connect |      died before a byte, |
//!          +-- next instance <+      once, on a          |
//!          +------------------------ fresh connection <--+   (only where nothing is spent by it)
//! ```

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::Instance;
use crate::cluster::guest::RESOLVE_WAIT;
use crate::config::{Role, Timeouts};
use crate::error::{Error, Kind, Stage};
use crate::metrics::{Counter, Failure, InstanceCounter, InstanceHistogram, Retry};
use crate::net::buffer::{Gather, LARGE, Pieces, SMALL};
use crate::net::pool::Lease;
use crate::net::stream::Stream;
use crate::net::sweep::{OnGone, Wait};
use crate::wire::head::{Framing, HeadScan, Name, ResponseHead};
use crate::wire::json::{self, Edit, Piece};
use crate::wire::spare::List;

use super::grant::Grant;
use super::{Exchange, Picked, Request, Stop, pinned};

/// Bodies up to this are copied behind the head and sent in one piece: cheaper than a gathered write.
const COPY_MAX: usize = 16 << 10;

/// What to send: the client's request, with these edits.
pub struct Leg {
    pub stage: Stage,
    pub edits: List<Edit>,
    /// The whole body, from pieces of the client's body and bytes of ours; instead of edits.
    pub pieces: Option<Vec<Piece<'static>>>,
    /// Asked for instead of what the client asked for, query included.
    pub path: Option<Cow<'static, str>>,
    /// Header fields that are sent instead of the client's of the same name (in lower case).
    pub fields: Vec<(Cow<'static, str>, Vec<u8>)>,
    /// It is a GET without a body.
    pub get: bool,
    /// Its own limit, instead of its stage's.
    pub limit: Option<Duration>,
    /// The client's header fields of these names (in lower case) are not sent.
    pub strip: &'static [&'static str],
    /// Its `x-request-id`, instead of the request's.
    pub id: Option<Box<str>>,
    /// Send the body as the client sent it, even if it is no JSON object.
    pub verbatim: bool,
    /// It brings what may no longer be true: a 5xx is then no fault of the instance.
    pub unsure: bool,
    /// It has been read as JSON, whatever the client called it (curl's `-d` says it is a form).
    pub json: bool,
    /// Nobody else may take it over: whoever sends it chooses again by itself.
    pub alone: bool,
    /// The answer will be read by us: it must not come compressed.
    pub plain_answer: bool,
    /// The answer brings a grant: when the client leaves, P is read on, and after a while half-closed.
    pub brings_grant: bool,
    /// Params that are spent by handing a byte to the instance.
    pub grant: Option<Grant>,
    /// It carries params without owning their grant (a release): a byte handed over spends them all the same.
    pub once: bool,
    /// Told when a byte is about to be handed to an instance.
    pub handed: Option<Rc<Cell<bool>>>,
}

/// How long a P whose client has left may go on before it is half-closed, and then take to answer after
/// all. Such a client's KV is to be free 2 s after it left, and the abort itself takes time, too.
const LET_FINISH_MAX: Duration = Duration::from_millis(1_500);

impl Leg {
    pub fn new(stage: Stage) -> Leg {
        Leg {
            stage,
            edits: List::lent(),
            pieces: None,
            path: None,
            fields: Vec::new(),
            get: false,
            limit: None,
            strip: &[],
            id: None,
            verbatim: false,
            unsure: false,
            json: false,
            alone: false,
            plain_answer: false,
            brings_grant: false,
            grant: None,
            once: false,
            handed: None,
        }
    }

    /// Is the client's field of this name left out?
    fn replaces(&self, name: &[u8]) -> bool {
        let is = |ours: &str| name.eq_ignore_ascii_case(ours.as_bytes());
        self.strip.iter().any(|ours| is(ours)) || self.fields.iter().any(|(ours, _)| is(ours))
    }

    pub(super) fn wait(&self) -> Wait {
        match self.stage {
            Stage::Prefill | Stage::Encode => Wait::Prefill,
            _ => Wait::DecodeHead,
        }
    }

    pub(super) fn limit(&self, timeouts: &Timeouts) -> Duration {
        match self.wait() {
            _ if self.limit.is_some() => self.limit.unwrap_or_default(),
            Wait::Prefill => timeouts.prefill,
            _ => timeouts.decode_head,
        }
    }
}

/// An answer whose head has been read and whose body still flows.
pub struct Opened {
    pub lease: Lease,
    pub picked: Picked,
    pub head: ResponseHead,
    /// The head, and whatever of the body came with it.
    pub bytes: Vec<u8>,
    pub head_len: usize,
    pub framing: Framing,
    pub stage: Stage,
    /// When its head was here.
    pub at: Instant,
    /// Whose KV this D is fetching.
    pub handover: Option<Handover>,
}

/// A decode instance takes KV from a prefill instance.
pub struct Handover {
    pub prefill: Arc<Instance>,
    /// Of P when it granted, of D when it answered.
    pub starts: (u64, u64),
    /// The two have never met before, and there is no sign yet that they have now.
    pub first: bool,
}

impl Opened {
    pub fn head_bytes(&self) -> &[u8] {
        &self.bytes[..self.head_len]
    }

    pub fn failed(&self, kind: Kind, cause: impl Into<Cow<'static, str>>) -> Error {
        Error::new(kind, self.stage, cause).at(&self.picked.instance().name)
    }
}

/// How one try on one connection failed.
enum Failed {
    /// Before any response byte, in a way that a fresh connection may mend.
    Stale(io::Error),
    Stop(Stop),
}

impl Exchange {
    /// Sends the leg to the picked instance, or to the next one while none can be reached, and reads the
    /// head of its answer.
    pub async fn send(&self, picked: Picked, leg: &Leg) -> Result<Opened, Stop> {
        self.trace.stage.set(leg.stage);
        let role = picked.instance().role;
        let mut picked = picked;
        let mut tried: Vec<usize> = Vec::new();
        let mut fresh_only = false;
        loop {
            self.still_wanted(leg.stage)?;
            let lease = match self.lease(&picked, fresh_only).await {
                Ok(lease) => lease,
                Err(why) => {
                    picked = self.next_instance(picked, role, &mut tried, leg, why)?;
                    continue;
                }
            };
            self.note_instance(role, &picked);
            let reused = lease.reused;
            match self.try_once(lease, picked, leg).await {
                Ok(opened) => return Ok(opened),
                Err((back, Failed::Stale(_))) if reused && !spent(leg) => {
                    // Free: the engine closed an idle connection while we reached for it.
                    self.tools
                        .metrics
                        .inc(Counter::retries(Retry::StaleConnection));
                    self.trace.retried();
                    fresh_only = true;
                    picked = back;
                }
                Err((back, Failed::Stale(why))) => return Err(self.lost(&back, leg, &why)),
                Err((_, Failed::Stop(stop))) => return Err(stop),
            }
        }
    }

    /// A byte came from the instance.
    pub(super) fn touch(&self, picked: &Picked) {
        picked.instance().touch(self.tools.sweep.clock.coarse_ms());
    }

    fn note_instance(&self, role: Role, picked: &Picked) {
        *self.place(role).borrow_mut() = Some(picked.instance().name.clone());
        if picked.instance().load.read().requests <= 1 {
            // It was idle: its silence begins now.
            self.touch(picked);
        }
        picked
            .instance()
            .metrics
            .inc(&self.tools.metrics, InstanceCounter::requests());
    }

    /// The picked instance cannot be reached: ejects it and picks another.
    fn next_instance(
        &self,
        picked: Picked,
        role: Role,
        tried: &mut Vec<usize>,
        leg: &Leg,
        why: io::Error,
    ) -> Result<Picked, Stop> {
        if let Some(error) = self.connect_ended(leg.stage) {
            return Err(Stop::Error(error));
        }
        if ours(&why) {
            let cause = format!("no connection to an engine can be made ({why})");
            return Err(Error::new(Kind::Overloaded, leg.stage, cause).into());
        }
        self.unreachable(&picked, &why);
        tried.push(picked.instance().index);
        // Should nobody be left, the access line names the last one that was tried.
        *self.place(role).borrow_mut() = Some(picked.instance().name.clone());
        if leg.alone || self.pins.is_some() || self.is_pinned(role) {
            let error = Error::new(Kind::ConnectFailed, leg.stage, "it cannot be reached");
            return Err(error.at(&picked.instance().name).into());
        }
        drop(picked);
        let next = self.pick_except(role, tried).map_err(|stop| match stop {
            Stop::Error(error) => Stop::Error(Error {
                stage: leg.stage,
                ..error
            }),
            other => other,
        })?;
        self.tools.metrics.inc(Counter::retries(Retry::Connect));
        self.trace.retried();
        Ok(next)
    }

    /// Where the trace notes who served this role.
    fn place(&self, role: Role) -> &RefCell<Option<Arc<str>>> {
        match role {
            Role::Encode => &self.trace.encode_at,
            Role::Prefill => &self.trace.prefill_at,
            Role::Decode | Role::Aggregated => &self.trace.decode_at,
        }
    }

    /// As [`Exchange::ended`], except that a connect deadline only ends the connect.
    fn connect_ended(&self, stage: Stage) -> Option<Error> {
        use crate::net::sweep::Fired;
        if self.slot.fired() == Some(Fired::Deadline(Wait::Connect)) {
            self.slot.forgive();
            return None;
        }
        self.ended(stage)
    }

    /// A connection to the picked instance: the warmest idle one, or a new one.
    async fn lease(&self, picked: &Picked, fresh: bool) -> io::Result<Lease> {
        let tools = &self.tools;
        let instance = picked.instance();
        let now = tools.sweep.clock.coarse_ms();
        let pooled = || {
            if fresh {
                None
            } else {
                tools.pool.take(instance.index, now)
            }
        };
        while let Some(lease) = pooled() {
            // An engine has nothing to say between two requests. If it did, its words would be taken for
            // the answer to this one; and if it closed, params would be spent on nothing.
            if lease.stream.looks_fresh() {
                instance
                    .metrics
                    .inc(&tools.metrics, InstanceCounter::reused());
                return Ok(lease);
            }
        }
        if self.pins.is_some() {
            Box::pin(self.resolved(instance)).await;
        }
        let targets = instance.targets.get();
        let mut last = io::Error::other("its name has no address (yet)");
        for target in targets.iter() {
            self.slot.arm(Wait::Connect, self.config.timeouts.connect);
            let mut guard = None;
            let result = Stream::connect(target, tools.driver, |fd| {
                guard = Some(self.slot.watch_upstream(fd));
            })
            .await;
            let result = match result {
                Ok(plain) if instance.address.tls() => {
                    Box::pin(tools.hosts.secure(plain, instance)).await
                }
                result => result,
            };
            drop(guard);
            self.slot.disarm();
            match result {
                Ok(stream) if self.slot.fired().is_none() => {
                    instance
                        .metrics
                        .inc(&tools.metrics, InstanceCounter::connects());
                    return Ok(tools.pool.adopt(instance.index, stream));
                }
                Ok(_) => return Err(io::ErrorKind::TimedOut.into()),
                Err(why) => last = why,
            }
            if self.slot.fired().is_some() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Err(last)
    }

    /// A name that came in a header may be on its way to an address.
    async fn resolved(&self, instance: &Instance) {
        let began = Instant::now();
        while instance.targets.get().is_empty()
            && began.elapsed() < RESOLVE_WAIT.min(self.config.timeouts.connect)
            && self.slot.fired().is_none()
        {
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One try on one connection. Gives the pick back when it fails.
    async fn try_once(
        &self,
        lease: Lease,
        picked: Picked,
        leg: &Leg,
    ) -> Result<Opened, (Picked, Failed)> {
        let guard = self.slot.watch_upstream(lease.stream.fd());
        let limit = leg.limit(&self.config.timeouts);
        self.slot.arm(leg.wait(), limit);
        self.slot.when_gone(self.on_gone(leg, &picked));
        if let Some(grant) = &leg.grant {
            grant.spend();
        }
        if let Some(handed) = &leg.handed {
            handed.set(true);
        }
        let sent = self.write_leg(&lease, &picked, leg).await;
        self.tools.pace.stirred();
        let began = Instant::now();
        // An engine may refuse a body before it has read it all: then the answer is still there to read.
        let read = self.read_head(&lease, leg).await;
        self.slot.disarm();
        drop(guard);
        match read {
            Ok(Some((head, bytes, head_len))) => {
                self.opened(lease, picked, leg, head, bytes, head_len, began)
            }
            Ok(None) => {
                let why = sent
                    .err()
                    .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                Err(self.no_answer(picked, leg, why))
            }
            Err(ReadFailed::Io(why)) => Err(self.no_answer(picked, leg, why)),
            Err(ReadFailed::Bad(what)) => {
                let error = self.blame(&picked, leg, Kind::BadResponse, Failure::BadResponse, what);
                Err((picked, Failed::Stop(Stop::Again(error))))
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn opened(
        &self,
        lease: Lease,
        picked: Picked,
        leg: &Leg,
        head: ResponseHead,
        bytes: Vec<u8>,
        head_len: usize,
        began: Instant,
    ) -> Result<Opened, (Picked, Failed)> {
        self.touch(&picked);
        if head.status >= 500 && !leg.unsure {
            // A P that dies under load would else take the Ds with it that were fetching from it.
            match leg.grant.as_ref().is_some_and(Grant::prefill_is_gone) {
                true => self.count_failure(picked.instance(), Failure::Status5xx),
                false => self.charge_failure(&picked, Failure::Status5xx),
            }
        } else {
            self.reached(&picked);
            if self.listed(head.status) {
                // "Not now" (429, 408) is no failure, and nothing that the breaker counts; but whoever tries
                // again asks somebody else.
                self.avoid.borrow_mut().push(picked.instance().index);
            }
        }
        let instance = picked.instance();
        let metrics = &self.tools.metrics;
        let at = Instant::now();
        instance
            .metrics
            .observe(metrics, InstanceHistogram::head(), at - began);
        let to_head = self.request().head.method == crate::wire::head::Method::Head;
        let framing = head.framing(to_head);
        Ok(Opened {
            lease,
            picked,
            head,
            bytes,
            head_len,
            framing,
            stage: leg.stage,
            at,
            handover: None,
        })
    }

    /// Is this a status for which another instance is asked?
    pub fn listed(&self, status: u16) -> bool {
        status >= 400 && self.config.retry.retryable_status_codes.contains(&status)
    }

    /// What a client's leaving does to this leg; see `release.rs` for why it is not always the end.
    pub(super) fn on_gone(&self, leg: &Leg, picked: &Picked) -> OnGone {
        let release = self.config.timeouts.release;
        match &leg.grant {
            Some(grant) if !self.tools.met.warm(&grant.prefill, picked.instance()) => {
                OnGone::Finish(release)
            }
            None if leg.brings_grant => OnGone::LetFinish(release.min(LET_FINISH_MAX)),
            _ => OnGone::Cut,
        }
    }

    /// No response byte came. Was it us who ended it?
    fn no_answer(&self, picked: Picked, leg: &Leg, why: io::Error) -> (Picked, Failed) {
        match self.ended_at(&picked, leg.stage) {
            Some(error) => (picked, Failed::Stop(Stop::Error(error))),
            None => (picked, Failed::Stale(why)),
        }
    }

    fn lost(&self, picked: &Picked, leg: &Leg, why: &io::Error) -> Stop {
        let cause = format!("the connection ended before an answer ({why})");
        let mut error = self.blame(picked, leg, Kind::Reset, Failure::Reset, "");
        error.cause = cause.into();
        Stop::Again(error)
    }

    fn blame(
        &self,
        picked: &Picked,
        leg: &Leg,
        kind: Kind,
        failure: Failure,
        cause: &'static str,
    ) -> Error {
        self.charge_failure(picked, failure);
        Error::new(kind, leg.stage, cause).at(&picked.instance().name)
    }

    async fn write_leg(&self, lease: &Lease, picked: &Picked, leg: &Leg) -> io::Result<()> {
        match self.message(picked, leg) {
            Message::Whole(bytes) => {
                let (result, back) = lease.stream.write_all(bytes).await;
                self.tools.buffers.give(back);
                result
            }
            Message::Parts(parts) => lease.stream.write_pieces(parts).await,
        }
    }

    /// The leg's head and body, for this instance.
    fn message(&self, picked: &Picked, leg: &Leg) -> Message {
        let request = self.request();
        let made;
        let pieces: &[Piece] = match &leg.pieces {
            Some(pieces) => pieces,
            None => {
                made = body_pieces(&request, leg);
                &made
            }
        };
        let length = json::pieces_len(pieces);
        let mut out = self.tools.buffers.lend(SMALL);
        self.put_head(&mut out, picked, leg, length);
        if length <= COPY_MAX {
            json::put_pieces(&mut out, request.body(), pieces);
            return Message::Whole(out);
        }
        let (shared, base) = request.shared_body();
        let mut parts = Vec::with_capacity(pieces.len() + 1);
        for piece in pieces {
            match piece {
                // What is ours goes together, as far as nothing is between.
                Piece::Own(bytes) => out.extend_from_slice(bytes),
                Piece::Source(r) => {
                    if !out.is_empty() {
                        parts.push(Gather::Own(std::mem::take(&mut out)));
                    }
                    let range = base + r.start..base + r.end;
                    parts.push(Gather::Shared(Rc::clone(&shared), range));
                }
            }
        }
        parts.push(Gather::Own(out));
        Message::Parts(Pieces::new(parts))
    }

    /// The upstream head: the client's end-to-end fields in their order, with our framing and id.
    fn put_head(&self, out: &mut Vec<u8>, picked: &Picked, leg: &Leg, length: usize) {
        let request = self.request();
        let head = request.head_bytes();
        let method = request.head.method_text(head);
        out.extend_from_slice(if leg.get { "GET" } else { method }.as_bytes());
        out.push(b' ');
        let target = leg.path.as_deref().unwrap_or_else(|| request.target());
        out.extend_from_slice(picked.instance().prefix.as_bytes());
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        let beside = self.pins.is_some();
        let asked = || request.head.fields.find(head, Name::Host);
        match beside.then(asked).flatten() {
            Some(host) => out.extend_from_slice(host),
            None => out.extend_from_slice(picked.instance().host.as_bytes()),
        }
        out.extend_from_slice(b"\r\n");
        let laid = request.overlay().filter(|_| leg.pieces.is_none());
        let role = picked.instance().role;
        let laid_over = |name: &[u8]| {
            laid.as_ref().is_some_and(|laid| {
                laid.fields(role)
                    .any(|(ours, _)| name.eq_ignore_ascii_case(ours.as_bytes()))
            })
        };
        let key = self.config.openai_api_key.as_ref();
        let mut typed = false;
        for field in request.head.fields.iter() {
            let skip = match field.kind {
                Name::Host | Name::ContentLength | Name::Expect | Name::RequestId => true,
                Name::Authorization => key.is_some(),
                Name::AcceptEncoding => leg.plain_answer,
                Name::ContentType => {
                    typed = !leg.json;
                    leg.json || leg.get
                }
                _ => false,
            };
            let skip = skip || leg.replaces(field.name(head)) || laid_over(field.name(head));
            let skip = skip || (beside && pinned::hidden(field.name(head)));
            if !skip && request.head.fields.end_to_end(head, field) {
                put_field(out, field.name(head), field.value(head));
            }
        }
        if let Some(key) = key {
            out.extend_from_slice(b"authorization: Bearer ");
            out.extend_from_slice(key.0.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        let typed = typed || leg.replaces(b"content-type");
        if length > 0 && !typed {
            out.extend_from_slice(b"content-type: application/json\r\n");
        }
        for (name, value) in &leg.fields {
            put_field(out, name.as_bytes(), value);
        }
        for (name, value) in laid.iter().flat_map(|laid| laid.fields(role)) {
            put_field(out, name.as_bytes(), value);
        }
        if beside {
            pinned::put_forwarded(out, &request);
        }
        let id = leg.id.as_deref().unwrap_or(&request.id);
        put_field(out, b"x-request-id", id.as_bytes());
        use crate::wire::head::Method;
        let bare = leg.get || matches!(request.head.method, Method::Get | Method::Head);
        if length > 0 || !bare {
            let mut digits = itoa::Buffer::new();
            put_field(out, b"content-length", digits.format(length).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Reads up to the end of the final (not 1xx) head. `None`: the peer ended before a single byte.
    async fn read_head(&self, lease: &Lease, leg: &Leg) -> Result<Option<Head>, ReadFailed> {
        let max = self.config.limits.head_bytes_max;
        let mut buf = self.tools.buffers.lend(SMALL);
        let mut scan = HeadScan::default();
        loop {
            let found = scan
                .advance(&buf)
                .map_err(|bad| ReadFailed::Bad(bad.message()))?;
            if found.unwrap_or(buf.len()) > max {
                return Err(ReadFailed::Bad(
                    "its head is larger than limits.head_bytes_max",
                ));
            }
            if let Some(len) = found {
                let head = ResponseHead::parse(&buf[..len])
                    .map_err(|bad| ReadFailed::Bad(bad.message()))?;
                if head.status == 101 {
                    return Err(ReadFailed::Bad("it switched protocols unasked"));
                }
                if head.status >= 200 {
                    return Ok(Some((head, buf, len)));
                }
                // 100 Continue, 103 Early Hints: not the answer yet.
                buf.drain(..len);
                scan = HeadScan::default();
                continue;
            }
            if buf.len() == buf.capacity() {
                buf.reserve(buf.len().min(LARGE));
            }
            let empty = buf.is_empty();
            let (result, back) = lease.stream.read(buf).await;
            buf = back;
            match result {
                Ok(0) if empty => return Ok(None),
                Ok(0) => return Err(self.cut_short(leg)),
                Ok(_) => {}
                Err(why) if empty => return Err(ReadFailed::Io(why)),
                Err(_) => return Err(self.cut_short(leg)),
            }
        }
    }

    /// The head ended in the middle: the engine's doing, unless we ended it.
    fn cut_short(&self, _leg: &Leg) -> ReadFailed {
        match self.slot.fired() {
            Some(_) => ReadFailed::Io(io::ErrorKind::ConnectionAborted.into()),
            None => ReadFailed::Bad("its head was cut short"),
        }
    }
}

/// Is this machine out of descriptors or memory? No instance is to blame, and no other one will do.
fn ours(why: &io::Error) -> bool {
    use libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let code = why.raw_os_error();
    code.is_some_and(|code| [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(&code))
}

type Head = (ResponseHead, Vec<u8>, usize);

/// What is written.
enum Message {
    Whole(Vec<u8>),
    /// Without copying the client's body.
    Parts(Pieces),
}

fn body_pieces<'a>(request: &Request, leg: &'a Leg) -> json::Pieces<'a> {
    let body = request.body();
    match request.overlay() {
        // Verbatim is what the client sent as far as this handshake goes; an outer one has changed it.
        Some(overlay) => overlay.pieces(body, &request.object, leg),
        None if leg.verbatim || leg.edits.is_empty() => {
            json::Pieces::from_iter([Piece::Source(0..body.len())])
        }
        None => json::splice(body, &request.object, &leg.edits),
    }
}

enum ReadFailed {
    Io(io::Error),
    Bad(&'static str),
}

/// May the instance have read params that must not be read twice? To be asked after a try.
fn spent(leg: &Leg) -> bool {
    leg.once || leg.grant.as_ref().is_some_and(Grant::spent)
}

pub fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
