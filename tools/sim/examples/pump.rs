//! A small closed loop against a P and a D, to measure the simulator itself: on each connection pair
//! a prefill call, then the decode call with the params that came back.
//!
//! `pump P D [connections] [seconds] [body bytes] [cpu]`, all with defaults after D.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;

struct Tally {
    calls: Cell<u64>,
    bad: Cell<u64>,
    end: Cell<Option<Instant>>,
}

struct Client {
    stream: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
}

const TEMPLATE: &str = "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\
    \"remote_engine_id\":null,\"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null}";

impl Client {
    async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_addr(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Client {
            stream,
            out: Vec::with_capacity(8192),
            input: Vec::with_capacity(16_384),
        }
    }

    /// One call; afterwards `input` holds head and body, and the body's place is given.
    async fn call(&mut self, prompt: &str, tokens: u32, kv: &[u8]) -> Option<usize> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let body = format!(
            "{{\"model\":\"dummy\",\"prompt\":\"{prompt}\",\"max_tokens\":{tokens},\
             \"temperature\":0.0,\"stream\":false,\"kv_transfer_params\":"
        );
        let length = body.len() + kv.len() + 1;
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\n\
             accept: */*\r\nuser-agent: pump\r\nx-request-id: 3e9f6a1c-8f0b-4b63\r\n\
             content-length: {length}\r\n\r\n"
        );
        for part in [head.as_bytes(), body.as_bytes(), kv, b"}"] {
            out.extend_from_slice(part);
        }
        let (sent, back) = self.stream.write_all(out).await;
        self.out = back;
        sent.ok()?;
        let mut input = std::mem::take(&mut self.input);
        input.clear();
        let (n, back) = self.stream.read(input).await;
        self.input = back;
        n.ok().filter(|n| *n > 0)?;
        let text = &self.input;
        let at = memchr::memmem::find(text, b"\r\n\r\n")? + 4;
        let declared = memchr::memmem::find(&text[..at], b"content-length: ")? + 16;
        let digits = text[declared..].iter().take_while(|b| b.is_ascii_digit());
        let length = digits.fold(0, |n, d| n * 10 + usize::from(d - b'0'));
        (text.starts_with(b"HTTP/1.1 200") && text.len() == at + length).then_some(at)
    }
}

async fn pair(p: SocketAddr, d: SocketAddr, prompt: String, tally: Rc<Tally>) {
    let (mut p, mut d) = (Client::connect(p).await, Client::connect(d).await);
    while tally.end.get().is_none_or(|end| Instant::now() < end) {
        let prefilled = p.call(&prompt, 1, TEMPLATE.as_bytes()).await;
        let params = prefilled.and_then(|at| {
            let from = memchr::memmem::find(&p.input[at..], b"\"kv_transfer_params\":{")? + at + 21;
            let to = memchr::memchr(b'}', &p.input[from..])? + from + 1;
            Some(p.input[from..to].to_vec())
        });
        let decoded = match params {
            Some(params) => d.call(&prompt, 16, &params).await,
            None => None,
        };
        if decoded.is_none() {
            tally.bad.set(tally.bad.get() + 1);
            return;
        }
        tally.calls.set(tally.calls.get() + 2);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| {
        args.get(i)
            .map_or(default, |a| a.parse().expect("a number"))
    };
    let p: SocketAddr = args[0].parse().expect("P's address");
    let d: SocketAddr = args[1].parse().expect("D's address");
    let (connections, seconds, bytes) = (number(2, 64), number(3, 5), number(4, 1000));
    let mut ring = io_uring::IoUring::builder();
    ring.setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(16_384);
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().uring_builder(ring);
    let mut runtime = builder.enable_timer().build().expect("a ring");
    runtime.block_on(async move {
        let tally = Rc::new(Tally {
            calls: Cell::new(0),
            bad: Cell::new(0),
            end: Cell::new(None),
        });
        for i in 0..connections / 2 {
            let prompt = format!("{i:08} ").repeat(bytes.div_ceil(9));
            monoio::spawn(pair(p, d, prompt, tally.clone()));
        }
        monoio::time::sleep(Duration::from_millis(500)).await;
        let (begun, before) = (Instant::now(), tally.calls.get());
        monoio::time::sleep(Duration::from_secs(seconds as u64)).await;
        let (calls, took) = (tally.calls.get() - before, begun.elapsed().as_secs_f64());
        tally.end.set(Some(Instant::now()));
        monoio::time::sleep(Duration::from_millis(100)).await;
        println!(
            "{:.0} calls/s, {} bad",
            calls as f64 / took,
            tally.bad.get()
        );
    });
}
