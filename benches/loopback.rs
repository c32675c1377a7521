//! The whole way over loopback in one process: CPU time and allocations of one shard, per request and per chunk.
//!
//! `cargo bench --bench loopback`. The simulator and the clients run beside the shard, so only the shard's own clock
//! and its own allocations count. Compare the rows with each other; `tools/compare/peers.py` compares proxies.

#[path = "counting.rs"]
mod counting;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use counting::Seen;
use pdrelay::config::{Address, Config, InstanceConfig, Role};
use pdrelay::server::Server;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const MODEL: &str = "dummy";

/// One load.
struct Load {
    name: &'static str,
    clients: usize,
    body_bytes: usize,
    /// Tokens of each answer; streamed if there is a time per token.
    tokens: usize,
    tick: Option<Duration>,
}

const LOADS: &[Load] = &[
    Load {
        name: "JSON, 1 KB, 1 client",
        clients: 1,
        body_bytes: 1 << 10,
        tokens: 16,
        tick: None,
    },
    Load {
        name: "JSON, 1 KB, 32 clients",
        clients: 32,
        body_bytes: 1 << 10,
        tokens: 16,
        tick: None,
    },
    Load {
        name: "JSON, 100 KB, 8 clients",
        clients: 8,
        body_bytes: 100 << 10,
        tokens: 16,
        tick: None,
    },
    Load {
        name: "streams of 200 at 5 ms, 32",
        clients: 32,
        body_bytes: 1 << 10,
        tokens: 200,
        tick: Some(Duration::from_millis(5)),
    },
];

fn main() {
    // `cargo bench --bench loopback rest`: only the last table.
    if std::env::args().any(|arg| arg == "rest") {
        return rest();
    }
    println!(
        "{:<28} {:>9} {:>10} {:>12} {:>12} {:>12} {:>12}",
        "", "per s", "us/request", "allocs/req.", "KiB/request", "us/chunk", "allocs/chunk"
    );
    for load in LOADS {
        run(load);
    }
    rest();
}

/// Streams of the second count at rest, measured as more than the first.
const AT_REST: [usize; 2] = [100, 600];

/// What a stream holds that has had its first token and waits for the next.
fn rest() {
    let mut engines = [pdsim::Role::Prefill, pdsim::Role::Decode].map(pdsim::EngineOptions::new);
    engines.iter_mut().for_each(|e| e.model = MODEL.into());
    let sim = pdsim::Sim::start(pdsim::Options {
        engines: engines.to_vec(),
        ..pdsim::Options::default()
    })
    .expect("the simulator starts");
    let server = Server::start(config(sim.addresses())).expect("the proxy starts");
    counting::watch("shard-");
    let request = request(&Load {
        name: "",
        clients: 1,
        body_bytes: 1 << 10,
        tokens: 16,
        tick: Some(Duration::ZERO),
    });
    let request = String::from_utf8(request).expect("text");
    // The engine falls silent after the first token.
    let request = request.replacen("host:", "x-sim-fault-decode: stall:1\r\nhost:", 1);
    let mut streams = Vec::new();
    let [few, many] = AT_REST.map(|count| {
        while streams.len() < count {
            streams.push(first_token(server.address, request.as_bytes()));
        }
        std::thread::sleep(Duration::from_millis(300));
        counting::held()
    });
    let each = (AT_REST[1] - AT_REST[0]) as f64;
    println!(
        "\nA stream at rest holds (bytes are what an allocator with size classes gives for it):"
    );
    println!("{:>10} {:>10} {:>10}", "size", "pieces", "bytes");
    let mut total = 0.0;
    for (&(size, before), &(_, after)) in few.iter().zip(&many) {
        let pieces = (after - before) as f64 / each;
        if pieces.abs() < 0.01 {
            continue;
        }
        let bytes = pieces * given(size) as f64;
        total += bytes;
        println!("{size:>10} {pieces:>10.2} {bytes:>10.0}");
    }
    println!("{:>10} {:>10} {total:>10.0}", "", "");
}

/// What mimalloc takes for a piece of this size: four classes per doubling.
fn given(size: usize) -> usize {
    if size <= 128 {
        return size.next_multiple_of(16);
    }
    let quarter = (size.next_power_of_two() / 8).max(16);
    size.next_multiple_of(quarter)
}

fn first_token(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut link = TcpStream::connect(address).expect("the proxy accepts");
    link.write_all(request).expect("the proxy reads");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.windows(6).any(|w| w == b"data: ") {
        let read = link.read(&mut piece).expect("the proxy answers");
        assert!(read > 0, "cut: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..read]);
    }
    link
}

fn run(load: &Load) {
    let tick = load.tick.unwrap_or_default();
    let mut engines = [pdsim::Role::Prefill, pdsim::Role::Decode].map(pdsim::EngineOptions::new);
    engines[1].timing.decode_tick = tick;
    engines.iter_mut().for_each(|e| e.model = MODEL.into());
    let sim = pdsim::Sim::start(pdsim::Options {
        engines: engines.to_vec(),
        ..pdsim::Options::default()
    })
    .expect("the simulator starts");
    let server = Server::start(config(sim.addresses())).expect("the proxy starts");
    let shard = Thread::named("shard-0");
    let work = Work::start(server.address, load);
    std::thread::sleep(Duration::from_millis(700));
    counting::watch("shard-");
    let (seen, cpu, done, chunks) = (counting::seen(), shard.cpu(), work.done(), work.chunks());
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    let spent = Spent {
        seconds: began.elapsed().as_secs_f64(),
        cpu: shard.cpu() - cpu,
        seen: counting::seen() - seen,
        requests: (work.done() - done).max(1) as f64,
        chunks: (work.chunks() - chunks) as f64,
    };
    work.stop();
    spent.print(load);
}

struct Spent {
    seconds: f64,
    cpu: Duration,
    seen: Seen,
    requests: f64,
    chunks: f64,
}

impl Spent {
    fn print(&self, load: &Load) {
        let us = self.cpu.as_secs_f64() * 1e6;
        let (count, bytes) = (self.seen.count as f64, self.seen.bytes as f64);
        print!(
            "{:<28} {:>9.0} {:>10.1} {:>12.1} {:>12.1}",
            load.name,
            self.requests / self.seconds,
            us / self.requests,
            count / self.requests,
            bytes / self.requests / 1024.0
        );
        match load.tick {
            Some(_) => println!(" {:>12.2} {:>12.3}", us / self.chunks, count / self.chunks),
            None => println!(),
        }
    }
}

fn config(addresses: &[SocketAddr]) -> Config {
    pdrelay::log::set_level(pdrelay::log::Level::Error);
    let roles = [Role::Prefill, Role::Decode];
    let one = |(role, address): (&Role, &SocketAddr)| {
        InstanceConfig::new(
            Address::tcp(address.ip().to_string(), address.port()),
            *role,
        )
    };
    let mut config = Config {
        host: "127.0.0.1".into(),
        port: 0,
        handshake: "nixl".into(),
        instances: roles.iter().zip(addresses).map(one).collect(),
        ..Config::default()
    };
    config.cores.shards = Some(1);
    config.health_check.enabled = false;
    config
}

/// A thread of this process, whose clock can be read.
struct Thread(String);

impl Thread {
    fn named(name: &str) -> Thread {
        let folder = std::fs::read_dir("/proc/self/task").unwrap();
        let all = folder.map(|entry| entry.unwrap().path());
        let found: Vec<_> = all
            .filter(|path| {
                std::fs::read_to_string(path.join("comm")).is_ok_and(|text| text.trim() == name)
            })
            .collect();
        // Servers of earlier loads are gone, but their threads may take a moment.
        let last = found.iter().max_by_key(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .parse::<u32>()
                .unwrap()
        });
        let path = last.unwrap_or_else(|| panic!("no thread {name}"));
        Thread(path.join("schedstat").to_str().unwrap().into())
    }

    fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(&self.0).expect("the thread lives");
        let ns = text.split(' ').next().unwrap().parse().unwrap();
        Duration::from_nanos(ns)
    }
}

static STOP: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU64 = AtomicU64::new(0);
static CHUNKS: AtomicU64 = AtomicU64::new(0);

/// Clients that ask again as soon as they are answered.
struct Work(Vec<JoinHandle<()>>);

impl Work {
    fn start(address: SocketAddr, load: &Load) -> Work {
        STOP.store(false, Ordering::Relaxed);
        let request = request(load);
        let stream = load.tick.is_some();
        let client = |_| {
            let request = request.clone();
            std::thread::spawn(move || ask(address, &request, stream))
        };
        Work((0..load.clients).map(client).collect())
    }

    fn done(&self) -> u64 {
        DONE.load(Ordering::Relaxed)
    }

    fn chunks(&self) -> u64 {
        CHUNKS.load(Ordering::Relaxed)
    }

    fn stop(self) {
        STOP.store(true, Ordering::Relaxed);
        for thread in self.0 {
            thread.join().expect("no client fails");
        }
    }
}

fn request(load: &Load) -> Vec<u8> {
    let more = format!(
        r#""max_tokens":{},"ignore_eos":true,"stream":{}}}"#,
        load.tokens,
        load.tick.is_some()
    );
    let prompt = "x ".repeat(load.body_bytes.saturating_sub(more.len() + 40) / 2);
    let body = format!(r#"{{"model":"{MODEL}","prompt":"{prompt}",{more}"#);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

fn ask(address: SocketAddr, request: &[u8], stream: bool) {
    let mut link = TcpStream::connect(address).expect("the proxy accepts");
    link.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 << 10];
    while !STOP.load(Ordering::Relaxed) {
        link.write_all(request).expect("the proxy reads");
        let mut answer: Vec<u8> = Vec::new();
        loop {
            let read = link.read(&mut buffer).expect("the proxy answers");
            assert!(read > 0, "cut: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..read]);
            if stream {
                let new = buffer[..read]
                    .windows(6)
                    .filter(|w| *w == b"data: ")
                    .count();
                CHUNKS.fetch_add(new as u64, Ordering::Relaxed);
            }
            let over = match stream {
                true => answer.ends_with(b"\r\n0\r\n\r\n"),
                false => whole(&answer),
            };
            if over {
                break;
            }
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        DONE.fetch_add(1, Ordering::Relaxed);
    }
}

/// Is all of the answer here, as its length says?
fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some(head) = text.find("\r\n\r\n") else {
        return false;
    };
    let length = text[..head]
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.expect("a length").trim().parse().expect("a number");
    answer.len() >= head + 4 + length
}
