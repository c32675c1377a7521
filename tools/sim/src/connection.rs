//! One client connection: read a request, answer it, and again.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use monoio::net::TcpStream;

use crate::engine::error::ApiError;
use crate::engine::route::{self, Request, Turn};
use crate::engine::run::run;
use crate::engine::{Door, Engine};
use crate::fault::{Fault, Shape};
use crate::http::body::{BODY_MAX, Chunked};
use crate::http::head::{Framing, Head, Refused, parse};
use crate::http::respond::End;
use crate::http::wire::{JSON, Size, push_head};
use crate::link::{Link, reset};
use crate::options::Role;
use crate::transcript::{Entry, Outcome, Received};

const OUT_KEEP: usize = 256 << 10;

/// One more while it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn new(cell: &'a AtomicUsize) -> Count<'a> {
        cell.fetch_add(1, Ordering::Relaxed);
        Count(cell)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes the door out of the engine's list, whatever ends the connection.
struct Listed<'a>(&'a Engine, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.doors.borrow_mut().remove(&self.1);
    }
}

/// By which port a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Engine,
    /// That of its bootstrap server.
    Bootstrap,
}

pub(crate) async fn serve(engine: Rc<Engine>, stream: TcpStream, number: u64, gate: Gate) {
    let _ = stream.set_nodelay(true);
    let link = Link::new(stream);
    let idle_since = engine.ticker.get().into();
    let door = Rc::new(Door {
        fd: link.fd,
        idle_since,
    });
    engine.doors.borrow_mut().insert(number, door.clone());
    let _listed = Listed(&engine, number);
    let _count = Count::new(&engine.shared().connections);
    let mut connection = Connection {
        engine: &engine,
        link,
        door,
        number,
        gate,
        chunked: Vec::new(),
        out: Vec::with_capacity(4096),
    };
    match connection.work().await {
        Ok(()) | Err(End::ClientLeft) => {}
        Err(End::Fin(_)) => connection.link.finish(),
        Err(End::Reset(_)) => reset(connection.link.fd),
    }
}

struct Connection<'a> {
    engine: &'a Rc<Engine>,
    link: Link,
    door: Rc<Door>,
    number: u64,
    gate: Gate,
    /// The last chunked body.
    chunked: Vec<u8>,
    out: Vec<u8>,
}

/// Where a body lies.
struct Body {
    /// Bytes of input that head and body took.
    taken: usize,
    chunked: bool,
}

enum Stop {
    End,
    Refused(Refused),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Stop {
        Stop::Refused(refused)
    }
}

impl Connection<'_> {
    async fn work(&mut self) -> Result<(), End> {
        loop {
            let head = match self.head().await {
                Ok(head) => head,
                Err(Stop::End) => return Ok(()),
                Err(Stop::Refused(refused)) => return self.refuse(refused).await,
            };
            let engine = self.engine;
            let _open = Count::new(&engine.shared().open);
            let fault = match self.gate {
                Gate::Engine => {
                    route::number(engine);
                    self.fault(&head)
                }
                Gate::Bootstrap => None,
            };
            let body = match self.body(&head, fault).await {
                Ok(body) => body,
                Err(Stop::End) => return Ok(()),
                Err(Stop::Refused(refused)) => return self.refuse(refused).await,
            };
            if !self.answer(&head, &body, fault).await? {
                self.link.finish();
                return Ok(());
            }
        }
    }

    async fn head(&mut self) -> Result<Head, Stop> {
        loop {
            let input = self.link.input();
            if !input.is_empty()
                && let Some(head) = parse(input)?
            {
                return Ok(head);
            }
            let idle = self.link.input().is_empty();
            if idle {
                self.door.idle_since.set(self.engine.ticker.get());
            }
            let received = self.link.fill(usize::MAX).await;
            self.door.idle_since.set(u64::MAX);
            match received {
                Ok(0) | Err(_) => return Err(Stop::End),
                Ok(_) => {}
            }
        }
    }

    /// The fault that this request gets, if any.
    fn fault(&self, head: &Head) -> Option<Fault> {
        let input = self.link.input();
        let role = self.engine.options().role;
        let mut asked = [head.fault, (0, 0), (0, 0)];
        if role != Role::Decode {
            asked[1] = head.fault_prefill;
        }
        if role != Role::Prefill {
            asked[2] = head.fault_decode;
        }
        for span in asked {
            if span.1 > 0 {
                let text = std::str::from_utf8(head.text(input, span)).ok()?;
                return Fault::parse(text);
            }
        }
        if !self.engine.shared().faulty.load(Ordering::Relaxed) {
            return None;
        }
        let id = head.text(input, head.request_id);
        self.engine.world.fault_for(self.engine.index, id)
    }

    async fn body(&mut self, head: &Head, fault: Option<Fault>) -> Result<Body, Stop> {
        let complete = match head.body {
            Framing::None => {
                return Ok(Body {
                    taken: head.length,
                    chunked: false,
                });
            }
            Framing::Length(n) if n > BODY_MAX as u64 => {
                return Err(Stop::Refused(Refused {
                    status: 413,
                    what: "a body too long",
                }));
            }
            Framing::Length(n) => Some(head.length + n as usize),
            Framing::Chunked => None,
        };
        let mut chunked = Chunked::new(std::mem::take(&mut self.chunked));
        chunked.body.clear();
        let mut taken = head.length;
        let mut invited = !head.expect;
        let limit = if fault == Some(Fault::SlowReader) {
            64
        } else {
            usize::MAX
        };
        loop {
            match complete {
                Some(total) if self.link.input().len() >= total => {
                    return Ok(Body {
                        taken: total,
                        chunked: false,
                    });
                }
                Some(total) => self.link.expect(total),
                None => {
                    let refuse = |what| Refused { status: 400, what };
                    taken += chunked.take(&self.link.input()[taken..]).map_err(refuse)?;
                    if chunked.done() {
                        self.chunked = chunked.body;
                        return Ok(Body {
                            taken,
                            chunked: true,
                        });
                    }
                }
            }
            if !std::mem::replace(&mut invited, true) {
                let invitation = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
                self.link.send(invitation).await.map_err(|_| Stop::End)?;
            }
            if limit < usize::MAX {
                monoio::time::sleep(Duration::from_millis(2)).await;
            }
            match self.link.fill(limit).await {
                Ok(0) | Err(_) => return Err(Stop::End),
                Ok(_) => {}
            }
        }
    }

    /// Answers what a proxy must never send, and notes it.
    async fn refuse(&mut self, refused: Refused) -> Result<(), End> {
        let Refused { status, what } = refused;
        let index = self.engine.index;
        self.engine
            .world
            .ledger
            .violation(|| format!("engine {index}: bad HTTP: {what}"));
        let error = ApiError {
            status,
            ..ApiError::body(format!("Invalid HTTP request received: {what}"))
        };
        let mut body = Vec::new();
        error.push_json(&mut body);
        let mut out = Vec::new();
        push_head(&mut out, status, JSON, Size::Length(body.len()), false, "");
        out.extend_from_slice(&body);
        self.link.send(out).await?;
        self.link.finish();
        // Read on for a moment: a close with bytes unread would be an RST that eats the answer.
        let patience = monoio::time::sleep(Duration::from_millis(200));
        let _ = self.link.unless_gone(patience).await;
        Ok(())
    }

    /// One answer; true if the connection goes on.
    async fn answer(
        &mut self,
        head: &Head,
        body: &Body,
        fault: Option<Fault>,
    ) -> Result<bool, End> {
        let input = self.link.input();
        let shape = shape(head, input);
        let bytes = if body.chunked {
            &self.chunked
        } else {
            &input[head.length..body.taken]
        };
        let engine = self.engine;
        let transcript = engine.shared().transcript.as_ref();
        let entry = transcript.map(|transcript| Entry {
            transcript,
            number: transcript.push(self.received(head, bytes)),
        });
        let mut out = std::mem::take(&mut self.out);
        let request = Request {
            head,
            input,
            body: bytes,
            shape,
            fault,
        };
        let turn = match self.gate {
            Gate::Engine => route::turn(engine, &request, &mut out),
            Gate::Bootstrap => route::bootstrap(engine, &request, &mut out),
        };
        self.link.consume(body.taken);
        let result = match turn {
            Turn::Ready(status) => {
                // Before the send, so that whoever has read the answer finds it noted.
                note(entry, Outcome::Answered(status));
                let sent = self.link.send(out).await;
                sent.map(|back| (back, status, head.keep_alive))
                    .map_err(End::from)
            }
            Turn::Slow(slow) => {
                let done = Box::pin(run(engine, &mut self.link, *slow, entry)).await;
                done.map(|(status, keep)| (out, status, keep))
            }
        };
        match result {
            Ok((back, status, keep)) => {
                if back.capacity() <= OUT_KEEP {
                    self.out = back;
                }
                note(entry, Outcome::Answered(status));
                Ok(keep)
            }
            Err(end) => {
                let at = engine.world.started.elapsed();
                let outcome = match end {
                    End::ClientLeft => Outcome::ClientLeft { at },
                    End::Fin(fault) | End::Reset(fault) => Outcome::Faulted(fault),
                };
                note(entry, outcome);
                Err(end)
            }
        }
    }

    fn received(&self, head: &Head, body: &[u8]) -> Received {
        let mut slots = [httparse::EMPTY_HEADER; 96];
        let mut request = httparse::Request::new(&mut slots);
        let _ = request.parse(&self.link.input()[..head.length]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = request
            .headers
            .iter()
            .map(|h| (h.name.to_owned(), text(h.value)));
        Received {
            at: self.engine.world.started.elapsed(),
            connection: self.number,
            method: request.method.unwrap_or("").to_owned(),
            path: request.path.unwrap_or("").to_owned(),
            headers: headers.collect(),
            body: body.to_vec(),
            outcome: Outcome::Open,
        }
    }
}

fn note(entry: Option<Entry>, outcome: Outcome) {
    if let Some(entry) = entry {
        entry.close(outcome);
    }
}

fn shape(head: &Head, input: &[u8]) -> Shape {
    if head.shape.1 == 0 {
        return Shape::Plain;
    }
    let text = std::str::from_utf8(head.text(input, head.shape)).unwrap_or("");
    Shape::parse(text).unwrap_or_default()
}
