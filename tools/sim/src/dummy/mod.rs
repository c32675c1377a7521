//! The dummy nodes of xPyD-proxy 1.0: the stand-ins that its quick start and its compose file run as
//! `uvicorn dummy_nodes.prefill_node:app`. Same environment, same answers; and the `/metrics` that its
//! documents promise. A thread per connection: they are for trying things out, not for measuring.
//!
//! * **For:** old quick starts, with `pdsim` in place of `uvicorn`.
//! * **Must never:** be strict or clever: whoever wants an engine's rules takes the other engines here.
//! * **To extend:** arguments are in `args.rs`, answers in `answer.rs`.

mod answer;
pub(crate) mod args;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::http::body::{BODY_MAX, Chunked};
use crate::http::head::{Framing, Head, parse};
use crate::http::wire::{JSON, Size, push_chunk, push_head};
use answer::Reply;

/// One dummy node. The environment's names stand at each field.
#[derive(Clone, Debug, PartialEq)]
pub struct DummyOptions {
    /// Else it calls itself a decode node. That is all the difference.
    pub prefill: bool,
    pub host: IpAddr,
    /// 0 = any free port.
    pub port: u16,
    /// `DUMMY_MODEL_ID`
    pub model: String,
    /// `DUMMY_MAX_MODEL_LEN`
    pub max_model_len: u64,
    /// `PREFILL_DELAY_PER_TOKEN` (seconds): before an answer, for each token of the prompt.
    pub prefill_delay: Duration,
    /// `DECODE_DELAY_PER_TOKEN` (seconds): before each character of a stream.
    pub decode_delay: Duration,
}

impl DummyOptions {
    pub fn new(prefill: bool) -> DummyOptions {
        DummyOptions {
            prefill,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            model: "dummy".into(),
            max_model_len: 131_072,
            prefill_delay: Duration::from_millis(1),
            decode_delay: Duration::from_millis(10),
        }
    }
}

/// What a node counts.
#[derive(Default)]
struct Counts {
    /// Completions, chat completions.
    requests: [AtomicU64; 2],
    prompt_tokens: AtomicU64,
    generated: AtomicU64,
    running: AtomicU64,
    connections: AtomicU64,
}

/// A running node. Dropped, it accepts nothing more.
pub struct Dummy {
    pub address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dummy {
    pub fn start(options: DummyOptions) -> io::Result<Dummy> {
        let asked = SocketAddr::new(options.host, options.port);
        let taken = |e: io::Error| io::Error::new(e.kind(), format!("{asked}: {e}"));
        let listener = TcpListener::bind(asked).map_err(taken)?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let node = Arc::new((options, Counts::default()));
        let accept = move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                match stream {
                    Ok(stream) => {
                        let node = node.clone();
                        // One thread too many: the client sees its connection closed.
                        let _ = std::thread::Builder::new()
                            .name("dummy".into())
                            .spawn(move || serve(stream, &node.0, &node.1));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("dummy-accept".into())
            .spawn(accept)?;
        Ok(Dummy {
            address,
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // The accept has to return once more to see it.
        let mut here = self.address;
        if here.ip().is_unspecified() {
            here.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        if TcpStream::connect_timeout(&here, Duration::from_secs(1)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// One more while it lives.
struct Running<'a>(&'a AtomicU64);

impl<'a> Running<'a> {
    fn new(cell: &'a AtomicU64) -> Running<'a> {
        cell.fetch_add(1, Ordering::Relaxed);
        Running(cell)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream, options: &DummyOptions, counts: &Counts) {
    let _ = stream.set_nodelay(true);
    let _open = Running::new(&counts.connections);
    let mut input = Vec::new();
    while let Ok(Some((head, body))) = receive(&mut stream, &mut input) {
        crate::clock::refresh();
        let rest = input.split_off(head.length);
        let keep = head.keep_alive;
        let answered = respond(&mut stream, options, counts, &head, &input, &body);
        input = rest;
        if answered.is_err() || !keep {
            return;
        }
    }
}

/// The next request, its body taken out of `input`. `None` if there is none any more.
fn receive(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<(Head, Vec<u8>)>> {
    let head = loop {
        match parse(input) {
            Ok(Some(head)) if !input.is_empty() => break head,
            Ok(_) => {}
            Err(refused) => {
                let mut out = Vec::new();
                let text = b"Invalid HTTP request received.";
                let size = Size::Length(text.len());
                let kind = "text/plain; charset=utf-8";
                push_head(&mut out, refused.status, kind, size, false, "");
                out.extend_from_slice(text);
                stream.write_all(&out)?;
                return Ok(None);
            }
        }
        if !more(stream, input)? {
            return Ok(None);
        }
    };
    if head.expect {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    match head.body {
        Framing::None => {}
        Framing::Length(n) if n > BODY_MAX as u64 => return Ok(None),
        Framing::Length(n) => {
            let end = head.length + n as usize;
            while input.len() < end {
                if !more(stream, input)? {
                    return Ok(None);
                }
            }
            body = input.drain(head.length..end).collect();
        }
        Framing::Chunked => {
            let mut chunked = Chunked::new(body);
            loop {
                let Ok(used) = chunked.take(&input[head.length..]) else {
                    return Ok(None);
                };
                input.drain(head.length..head.length + used);
                if chunked.done() {
                    break;
                }
                if !more(stream, input)? {
                    return Ok(None);
                }
            }
            body = chunked.body;
        }
    }
    Ok(Some((head, body)))
}

fn more(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 16 << 10];
    let n = stream.read(&mut piece)?;
    input.extend_from_slice(&piece[..n]);
    Ok(n > 0)
}

fn respond(
    stream: &mut TcpStream,
    options: &DummyOptions,
    counts: &Counts,
    head: &Head,
    input: &[u8],
    body: &[u8],
) -> io::Result<()> {
    let keep = head.keep_alive;
    let mut out = Vec::new();
    let job = match answer::of(options, counts, head.method, head.path(input), body) {
        Reply::Whole(whole) => {
            let size = Size::Length(whole.body.len());
            push_head(&mut out, whole.status, whole.kind, size, keep, whole.extra);
            out.extend_from_slice(&whole.body);
            return stream.write_all(&out);
        }
        Reply::Generate(job) => job,
    };
    let _running = Running::new(&counts.running);
    std::thread::sleep(
        options
            .prefill_delay
            .saturating_mul(job.prompt_tokens as u32),
    );
    if !job.stream {
        let body = job.answer();
        push_head(&mut out, 200, JSON, Size::Length(body.len()), keep, "");
        out.extend_from_slice(&body);
        return stream.write_all(&out);
    }
    let chunks = head.http11;
    let size = if chunks { Size::Chunked } else { Size::Close };
    let kind = "text/event-stream; charset=utf-8";
    push_head(&mut out, 200, kind, size, keep && chunks, "");
    stream.write_all(&out)?;
    for (event, is_text) in job.events() {
        if is_text {
            std::thread::sleep(options.decode_delay);
        }
        out.clear();
        match chunks {
            true => push_chunk(&mut out, &event),
            false => out = event,
        }
        stream.write_all(&out)?;
    }
    if !chunks {
        return stream.shutdown(std::net::Shutdown::Write);
    }
    stream.write_all(b"0\r\n\r\n")
}
