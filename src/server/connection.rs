//! One client connection: request after request, each answered before the next is begun.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::exchange::request::{Held, Origin};
use crate::exchange::{Reply, Request, Trace};
use crate::id::{self, Id};
use crate::log;
use crate::metrics::{
    Code, Counter, Direction, Endpoint, ErrorKind, Gauge, Histogram, ShardMetrics, Span,
};
use crate::net::buffer::SMALL;
use crate::net::inbox::{Duet, Inbox, read_client};
use crate::net::stream::{Stream, finish_writing, reset_now, shutdown_now};
use crate::net::sweep::{Fired, Slot, Wait};
use crate::net::tls::{Acceptor, accept};
use crate::wire::head::{Framing, Method, Name, RequestHead};

use super::intake::{self, Arrived, NoRequest};
use super::shard::Shard;
use super::surface::xpyd::Page;
use super::surface::{self, Route};
use super::{attempt, forward, pages};

/// The handshake that has encoders before another one.
const EPD: &str = "epd";
/// How long a client that was answered early may take to read the answer before its bytes are cut off.
const LINGER: Duration = Duration::from_secs(2);

/// Serves the connection to its end. A panic ends this connection and nothing else.
pub async fn serve(shard: &Rc<Shard>, fd: OwnedFd, peer: Option<IpAddr>, door: u16) {
    let Ok(stream) = Stream::from_tcp(fd, shard.tools.driver) else {
        return;
    };
    let slot = shard.tools.sweep.slot(stream.fd());
    let inbox = Inbox::new(shard.tools.buffers.clone());
    let stream = match &shard.shared.acceptor {
        Some(acceptor) if door != OWN_PAGES => {
            let greeted = Box::pin(greet(shard, acceptor, stream, &slot)).await;
            slot.end_request();
            let Some((greeted, first)) = greeted else {
                return slot.forget_client();
            };
            inbox.begin_with(first);
            greeted
        }
        _ => Rc::new(stream),
    };
    let fd = stream.fd();
    let mut both = Client::duet(shard, stream, peer, door, &slot, inbox);
    let caught = poll_fn(|cx| {
        let both = Pin::new(&mut both);
        match catch_unwind(AssertUnwindSafe(|| both.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    if let Err(panic) = caught {
        shard.tools.metrics.inc(Counter::panics());
        log::error(|| format!("a connection ended in a panic: {}", message(&*panic)));
        shutdown_now(fd);
    }
    slot.forget_client();
}

/// The port of our own pages, where all paths are an engine's.
pub const OWN_PAGES: u16 = u16::MAX;

/// What Go's server says to a client that speaks plainly where it should not.
const PLAIN_REFUSED: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// TLS or not? The first byte tells. Gives the stream to serve, and what was read of a plain one.
async fn greet(
    shard: &Rc<Shard>,
    acceptor: &Acceptor,
    stream: Stream,
    slot: &Slot,
) -> Option<(Rc<Stream>, Vec<u8>)> {
    let config = shard.tools.config();
    slot.arm(Wait::KeepAlive, shard.idle_limit());
    let (result, bytes) = stream.read(shard.tools.buffers.lend(SMALL)).await;
    if result.ok()? == 0 {
        return None;
    }
    if bytes[0] != accept::FIRST_BYTE {
        if acceptor.strict {
            slot.arm(Wait::ClientWrite, config.timeouts.client_write);
            _ = stream.write_all(PLAIN_REFUSED.to_vec()).await;
            finish_writing(stream.fd());
            return None;
        }
        return Some((Rc::new(stream), bytes));
    }
    slot.arm(Wait::Head, config.timeouts.head);
    match acceptor.accept(stream, bytes).await {
        Ok(secret) => Some((Rc::new(secret), Vec::new())),
        Err(why) => {
            log::limited("tls", log::Level::Debug, || {
                format!("a TLS handshake with a client failed: {why}")
            });
            None
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

struct Client {
    shard: Rc<Shard>,
    stream: Rc<Stream>,
    slot: Rc<Slot>,
    inbox: Rc<Inbox>,
    peer: Option<IpAddr>,
    door: u16,
}

/// How one request ended, for its access line.
pub struct Outcome {
    pub endpoint: Endpoint,
    pub trace: Trace,
    pub end: log::End,
}

/// What came of waiting for a request.
enum Next {
    Request(Rc<Request>, Route),
    /// The client has ended between two requests, or in the middle of a head.
    Ended,
    /// What came was refused, or broke off: the connection serves no other.
    Over,
}

impl Client {
    /// The two futures of a connection: its reader, and who serves it.
    fn duet(
        shard: &Rc<Shard>,
        stream: Rc<Stream>,
        peer: Option<IpAddr>,
        door: u16,
        slot: &Rc<Slot>,
        inbox: Rc<Inbox>,
    ) -> Duet<impl Future<Output = ()>, impl Future<Output = ()>> {
        let reader = read_client(stream.clone(), inbox.clone(), slot.clone());
        let client = Client {
            shard: shard.clone(),
            stream,
            slot: slot.clone(),
            inbox: inbox.clone(),
            // On an address of both families an IPv4 client would be called `::ffff:10.0.0.1`.
            peer: peer.map(|ip| ip.to_canonical()),
            door,
        };
        Duet::new(reader, client.converse(), inbox)
    }

    async fn converse(self) {
        let mut whole = true;
        loop {
            let mut reply = Reply::new(
                self.stream.clone(),
                self.inbox.clone(),
                self.slot.clone(),
                self.shard.tools.clone(),
            );
            self.slot.end_request();
            // Boxed: a stream that rests should not be as large as what came before it.
            match Box::pin(self.receive(&mut reply)).await {
                Next::Request(request, route) => {
                    self.inbox.watch();
                    self.answer(request, route, &mut reply).await;
                    self.inbox.unwatch();
                    if !reply.keep_alive || self.slot.fired() == Some(Fired::ClientGone) {
                        if reply.reset {
                            return self.reset().await;
                        }
                        whole = !reply.broken;
                        break;
                    }
                }
                Next::Ended => {
                    if !self.inbox.closed() {
                        Box::pin(self.say_end(LINGER)).await;
                        self.hang_up().await;
                    }
                    return;
                }
                Next::Over => break,
            }
        }
        if whole && !self.inbox.closed() {
            let limit = self.shard.tools.config().timeouts.client_write;
            Box::pin(self.say_end(limit)).await;
        }
        self.linger().await;
    }

    /// To a client that speaks TLS: all it has is whole.
    async fn say_end(&self, limit: Duration) {
        if self.shard.shared.acceptor.is_some() {
            self.slot.end_request();
            self.slot.arm(Wait::ClientWrite, limit);
            self.stream.say_end().await;
            self.slot.disarm();
        }
    }

    /// Waits for the next request, up to its last byte.
    async fn receive(&self, reply: &mut Reply) -> Next {
        let arrived = match intake::head(&self.shard, &self.inbox, &self.slot).await {
            Ok(arrived) => arrived,
            Err(NoRequest::Closed) => return Next::Ended,
            Err(NoRequest::Refused(error)) => {
                return self.refuse_boxed(reply, error, Endpoint::Other, None).await;
            }
        };
        let head = &arrived.head;
        reply.http11 = head.http11;
        reply.to_head = head.method == Method::Head;
        reply.keep_alive = head.keep_alive;
        let route = self.route(&arrived, reply);
        if route.needs_no_body() {
            reply.keep_alive &= head.framing == Framing::Length(0);
        }
        let mut memory = match intake::admit(&self.shard, head.framing) {
            Ok(memory) => memory,
            Err(error) => {
                let arrived = Some(&arrived);
                return self
                    .refuse_boxed(reply, error, endpoint(route), arrived)
                    .await;
            }
        };
        let early = !reply.keep_alive && route.needs_no_body();
        let mut decoded = None;
        if !early {
            if self.expects(&arrived) && !Box::pin(self.say_continue(reply)).await {
                return Next::Over;
            }
            match intake::body(&self.shard, &self.inbox, &self.slot, &arrived, &mut memory).await {
                Ok(body) => decoded = body,
                Err(NoRequest::Closed) => return Next::Over,
                Err(NoRequest::Refused(error)) => {
                    let arrived = Some(&arrived);
                    return self
                        .refuse_boxed(reply, error, endpoint(route), arrived)
                        .await;
                }
            }
        }
        // (Its client may have been told of no end: it came to a drain so short that there was no answer in it.)
        if self.shard.cut_off.get() {
            let (error, arrived) = (intake::drain_is_over(), Some(&arrived));
            return self
                .refuse_boxed(reply, error, endpoint(route), arrived)
                .await;
        }
        self.slot
            .begin_request(self.shard.tools.config().timeouts.request);
        Next::Request(self.take(arrived, decoded, early, memory), route)
    }

    fn route(&self, arrived: &Arrived, reply: &mut Reply) -> Route {
        let head = &arrived.head;
        let config = self.shard.tools.config();
        self.inbox.look(|b| {
            let (bytes, forward) = (&b[..arrived.head_len], &config.forward);
            let complete = || self.shard.tools.cluster.get().complete();
            let route = match (&config.sidecar, self.door) {
                (Some(_), OWN_PAGES) => surface::sidecar::own(head, bytes),
                (Some(sidecar), _) => surface::sidecar::route(sidecar, head, bytes),
                _ => surface::route(config.surface, head, bytes, forward, complete),
            };
            let route = match self.shard.shared.handshake_name {
                EPD => surface::behind_encoders(route, head, bytes),
                _ => route,
            };
            reply.cors = surface::cors(config.surface, head, bytes, route);
            route
        })
    }

    /// Is 100 Continue asked for, and the body not here already?
    fn expects(&self, arrived: &Arrived) -> bool {
        let here = self.inbox.look(<[u8]>::len) > arrived.head_len;
        arrived.head.expects_continue && !here && arrived.head.framing != Framing::Length(0)
    }

    async fn say_continue(&self, reply: &mut Reply) -> bool {
        let (result, _) = reply.write(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()).await;
        reply.committed = false;
        reply.bytes_out = 0;
        result.is_ok()
    }

    fn take(
        &self,
        arrived: Arrived,
        decoded: Option<Vec<u8>>,
        early: bool,
        held: Held,
    ) -> Rc<Request> {
        let Arrived {
            head,
            head_len,
            started,
        } = arrived;
        let body = match head.framing {
            Framing::Length(n) if !early => n as usize,
            _ => 0,
        };
        let bytes = self.inbox.take(head_len + body);
        let origin = Origin {
            id: self.id(&head, &bytes[..head_len]),
            peer: self.peer,
            door: self.door,
            started,
        };
        Rc::new(Request::new(head, bytes, head_len, decoded, origin, held))
    }

    /// The client's own, or a new one.
    fn id(&self, head: &RequestHead, bytes: &[u8]) -> Id {
        match head.fields.find(bytes, Name::RequestId) {
            Some(id) if id::usable(id) => Id::from(&*String::from_utf8_lossy(id)),
            _ => id::fresh(&self.shard.tools.rng),
        }
    }

    async fn answer(&self, request: Rc<Request>, route: Route, reply: &mut Reply) {
        let metrics = &self.shard.tools.metrics;
        metrics.add(Counter::bytes(Direction::In), request.body().len() as u64);
        let asked = log::access_enabled().then(|| Asked::of(&request));
        let _in_flight = metrics.hold(Gauge::requests_in_flight(), 1);
        let shard = &self.shard;
        // Boxed: an idle connection should not be as large as a request.
        let outcome = match route {
            Route::Generate(endpoint) => {
                Box::pin(attempt::generate(shard, request, reply, endpoint)).await
            }
            Route::Decode => Box::pin(forward::decode(shard, request, reply)).await,
            Route::Epd(surface::epd::Page::Profile) => {
                Box::pin(forward::profile(shard, request, reply)).await
            }
            Route::Forward => Box::pin(forward::forward(shard, request, reply)).await,
            Route::Xpyd(Page::Engine(members)) => {
                Box::pin(forward::checked(shard, request, reply, members)).await
            }
            own => Box::pin(own_page(shard, request, own, reply)).await,
        };
        let total = outcome.trace.started.elapsed();
        let status = self.account(&outcome, total, reply);
        self.inbox.note_pace(status == 200, total);
        if let Some(asked) = asked {
            log::access(self.line(asked, status, total, &outcome, reply));
        }
    }

    async fn refuse_boxed(
        &self,
        reply: &mut Reply,
        error: Error,
        endpoint: Endpoint,
        arrived: Option<&Arrived>,
    ) -> Next {
        Box::pin(self.refuse(reply, &error, endpoint, arrived)).await;
        Next::Over
    }

    /// A request that never was: answered, and the connection ends.
    async fn refuse(
        &self,
        reply: &mut Reply,
        error: &Error,
        endpoint: Endpoint,
        arrived: Option<&Arrived>,
    ) {
        let mut line = log::Access::default();
        self.inbox.look(|bytes| match arrived {
            Some(Arrived { head, head_len, .. }) => {
                let bytes = &bytes[..*head_len];
                line.id = self.id(head, bytes);
                line.method = head.method_name(bytes);
                line.path = head.target(bytes).into();
            }
            None => {
                let (method, path) = intake::named(bytes).unwrap_or(("-".into(), "-".into()));
                (line.method, line.path) = (method.into(), path.into());
            }
        });
        let metrics = &self.shard.tools.metrics;
        reply.keep_alive = false;
        metrics.inc(Counter::request_errors(ErrorKind(error.kind.index())));
        metrics.inc(Counter::requests(endpoint, Code::of(error.kind.status())));
        let id = Some(&*line.id).filter(|id| !id.is_empty());
        let _ = reply.error(id, error).await;
        if log::access_enabled() {
            log::access(log::Access {
                client: self.peer,
                status: error.kind.status(),
                bytes_out: reply.bytes_out,
                end: log::End::Error(error.kind.name()),
                ..line
            });
        }
    }

    /// After the last answer: the client may still be sending, and a close now would reset the connection
    /// and take the answer from under it.
    async fn linger(&self) {
        if self.inbox.closed() {
            return;
        }
        self.slot.end_request();
        finish_writing(self.stream.fd());
        self.slot.arm(Wait::Linger, LINGER);
        self.inbox.discard().await;
        self.slot.disarm();
    }

    /// On a client that had nothing to say for too long. (One that has just sent something finds out as
    /// anybody does whose connection was closed while it was idle.)
    async fn hang_up(&self) {
        self.slot.end_request();
        shutdown_now(self.stream.fd());
        // The pending read has ended by that.
        self.inbox.discard().await;
    }

    async fn reset(&self) {
        self.slot.end_request();
        reset_now(self.stream.fd());
        // The pending read has failed by that.
        self.inbox.discard().await;
    }

    /// Counts a request that is over. Gives its status for the log.
    fn account(&self, outcome: &Outcome, total: Duration, reply: &Reply) -> u16 {
        let metrics = &self.shard.tools.metrics;
        let trace = &outcome.trace;
        let status = match outcome.end {
            log::End::ClientGone if !reply.committed => 499,
            _ => reply.status,
        };
        metrics.inc(Counter::requests(outcome.endpoint, Code::of(status)));
        metrics.add(Counter::bytes(Direction::Out), reply.bytes_out);
        metrics.add(Counter::chunks(), reply.chunks);
        if outcome.end == log::End::ClientGone {
            metrics.inc(Counter::client_gone(trace.stage.get()));
        }
        if outcome.endpoint != Endpoint::Other {
            observe(metrics, trace, total);
        }
        status
    }

    fn line(
        &self,
        asked: Asked,
        status: u16,
        total: Duration,
        outcome: &Outcome,
        reply: &Reply,
    ) -> log::Access {
        let trace = &outcome.trace;
        let handshake = self.shard.shared.handshake_name;
        log::Access {
            time: asked.time,
            id: asked.id,
            client: self.peer,
            method: asked.method,
            path: asked.path,
            status,
            endpoint: outcome.endpoint.name(),
            handshake: trace.handshake.get().unwrap_or(handshake),
            encode: trace.encode_at.borrow().clone(),
            prefill: trace.prefill_at.borrow().clone(),
            decode: trace.decode_at.borrow().clone(),
            bytes_in: asked.bytes,
            bytes_out: reply.bytes_out,
            chunks: reply.chunks,
            retries: trace.retries.get(),
            body: trace.body.get(),
            queue: trace.queue.get(),
            encode_time: trace.encode.get(),
            prefill_time: trace.prefill.get(),
            decode_head: trace.decode_head.get(),
            ttft: trace.ttft.get(),
            stream: trace.stream.get(),
            total,
            end: outcome.end,
        }
    }
}

/// What the access line says of a request's bytes, which are gone by then.
struct Asked {
    time: SystemTime,
    id: Id,
    method: Cow<'static, str>,
    path: Box<str>,
    bytes: u64,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        let head = request.head_bytes();
        Asked {
            time: SystemTime::now(),
            id: request.id.clone(),
            method: request.head.method_name(head),
            path: request.head.target(head).into(),
            bytes: request.body().len() as u64,
        }
    }
}

async fn own_page(
    shard: &Rc<Shard>,
    request: Rc<Request>,
    page: Route,
    reply: &mut Reply,
) -> Outcome {
    let end = pages::answer(shard, &request, page, reply).await;
    Outcome {
        endpoint: Endpoint::Other,
        trace: Trace::of(&request),
        end,
    }
}

fn observe(metrics: &ShardMetrics, trace: &Trace, total: Duration) {
    let spans = [
        (Span::Body, trace.body.get()),
        (Span::Queue, trace.queue.get()),
        (Span::Encode, trace.encode.get()),
        (Span::Prefill, trace.prefill.get()),
        (Span::DecodeHead, trace.decode_head.get()),
        (Span::Ttft, trace.ttft.get()),
        (Span::Stream, trace.stream.get()),
        (Span::Total, Some(total)),
    ];
    for (span, duration) in spans {
        if let Some(duration) = duration {
            metrics.observe(Histogram::stage(span), duration);
        }
    }
}

fn endpoint(route: Route) -> Endpoint {
    match route {
        Route::Generate(endpoint) => endpoint,
        Route::Forward | Route::Decode | Route::Xpyd(Page::Engine(_)) => Endpoint::Forward,
        _ => Endpoint::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what `f` returns, without calling it.
    fn returned<A, R>(_: impl Fn(A) -> R) -> usize {
        size_of::<R>()
    }

    #[test]
    fn a_connection_never_holds_what_came_before_its_stream() {
        let size = returned(Client::converse);
        assert!(size <= 512, "{size} bytes");
    }
}
