//! The command line: of `pdsim`, and of `pdrelay sim`.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::dummy::{Dummy, args};
use crate::{
    EcMode, EngineOptions, Fault, FaultPlan, KvMode, LmcacheOptions, Options, Role, Sim, Timing,
};

#[derive(Clone, Copy, ValueEnum)]
enum Ec {
    None,
    V1,
    V2,
    /// llm-d's sidecar: encoders get the client's request with one item, and report nothing
    Example,
    /// The same, and their answers say where what they encoded is
    Nixl,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kv {
    Nixl,
    Lmcache,
    /// P and D at once, in a room of P's bootstrap server
    Sglang,
    /// P and D at once, with a transfer id and the engine id that P's bootstrap server tells
    Mooncake,
    /// D pulls what P keeps under an id
    Offloading,
    /// All find what any has computed, and say so if it is less than cache_hit_threshold
    SharedStorage,
    None,
}

/// LLM engines without a GPU: strict, deterministic encode, prefill and decode servers.
///
/// `dummy --role prefill --port 8100`, or `dummy_nodes.prefill_node:app --port 8100`, runs a dummy node of
/// xPyD-proxy 1.0 instead.
#[derive(Parser)]
#[command(name = "pdsim", version)]
struct Cli {
    /// Encode engines
    #[arg(long, default_value_t = 0)]
    encode: usize,
    /// Prefill engines
    #[arg(long, default_value_t = 0)]
    prefill: usize,
    /// Decode engines
    #[arg(long, default_value_t = 0)]
    decode: usize,
    /// Aggregated engines: prefill and decode in one, without KV transfer
    #[arg(long, default_value_t = 0)]
    both: usize,
    /// First port; engines take it and the following ones in the order encode, prefill, decode, both (0: any)
    #[arg(long, default_value_t = 9100)]
    port_base: u16,
    /// The engines' ports, comma-separated, in the same order: in place of --port-base
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    #[arg(long, default_value = "dummy")]
    model: String,
    #[arg(long, default_value_t = 131_072)]
    max_model_len: u32,
    /// 0: instant
    #[arg(long, default_value_t = 0.0)]
    prefill_tokens_per_s: f64,
    #[arg(long, default_value_t = 8192)]
    prefill_batch_tokens: u32,
    /// 0: flat out
    #[arg(long, default_value_t = 0.0)]
    decode_tick_ms: f64,
    #[arg(long, default_value_t = 256)]
    decode_batch: u32,
    /// Added to the tick for each running sequence
    #[arg(long, default_value_t = 0.0)]
    tick_per_seq_us: f64,
    /// Sequences tick in their own phase instead of lockstep
    #[arg(long)]
    stagger: bool,
    /// Decode engines fall silent after so many pieces of each stream; a whole answer is one; 0 is before the head
    #[arg(long, value_name = "PIECES")]
    stall_after: Option<u32>,
    /// How KV gets from prefill to decode engines
    #[arg(long, value_enum, default_value = "nixl")]
    kv: Kv,
    /// With --kv sglang or mooncake: the first prefill engine's bootstrap port (8998); with offloading: the first
    /// engine's peer port (7777); the others have the following ones (0: any)
    #[arg(long)]
    side_port: Option<u16>,
    /// With --kv sglang, mooncake or offloading: how long one engine waits for the other
    #[arg(long, default_value_t = 300.0)]
    patience_s: f64,
    /// Usage says how much of the prompt was cached
    #[arg(long)]
    cached_details: bool,
    /// How media get from encode engines to the others
    #[arg(long, value_enum, default_value = "v2")]
    ec: Ec,
    /// file:// media are taken
    #[arg(long)]
    local_media: bool,
    /// With --kv lmcache: workers of each engine; with mooncake: data-parallel ranks
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// With --kv lmcache: the init port of the first decode engine's first worker; the next ones follow, and
    /// alloc ports are 10 above
    #[arg(long, default_value_t = 8300)]
    init_port: u16,
    /// With --kv lmcache: where prefill workers send their notices
    #[arg(long)]
    notices: Option<SocketAddr>,
    /// KV is handed over between several pdsim: believe params that name engines of other processes
    #[arg(long)]
    kv_elsewhere: bool,
    /// How long KV that nobody fetches is held
    #[arg(long, default_value_t = 30.0)]
    lease_s: f64,
    /// From D's head to its read of P's KV
    #[arg(long, default_value_t = 0.0)]
    fetch_ms: f64,
    /// What is added to it on the first contact of a D with a P
    #[arg(long, default_value_t = 0.0)]
    first_contact_ms: f64,
    /// Answers of decode engines carry kv_transfer_params too
    #[arg(long)]
    bidirectional: bool,
    /// Bearer key needed under /v1
    #[arg(long)]
    api_key: Option<String>,
    /// Idle keep-alive connections are closed after this (0: never)
    #[arg(long, default_value_t = 5.0)]
    keep_alive_s: f64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Cores to pin the threads to, comma-separated
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Share of requests that get some fault
    #[arg(long, default_value_t = 0.0)]
    fault_rate: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds
    #[arg(long)]
    for_s: Option<f64>,
}

impl Cli {
    fn engine(&self, role: Role, index: usize) -> EngineOptions {
        let port = match (self.ports.get(index), self.port_base) {
            (Some(port), _) => *port,
            (None, 0) => 0,
            (None, base) => base + index as u16,
        };
        let both = matches!(role, Role::Both | Role::Encode);
        EngineOptions {
            port,
            model: self.model.clone(),
            max_model_len: self.max_model_len,
            timing: Timing {
                prefill_tokens_per_s: self.prefill_tokens_per_s,
                prefill_batch_tokens: self.prefill_batch_tokens,
                decode_tick: Duration::from_secs_f64(self.decode_tick_ms / 1e3),
                decode_batch: self.decode_batch,
                tick_per_seq: Duration::from_secs_f64(self.tick_per_seq_us / 1e6),
                stagger: self.stagger,
            },
            kv: match self.kv {
                _ if both => KvMode::None,
                Kv::None => KvMode::None,
                Kv::Nixl => KvMode::Nixl,
                Kv::Lmcache => KvMode::Lmcache,
                Kv::Sglang => KvMode::Sglang,
                Kv::Mooncake => KvMode::Mooncake,
                Kv::Offloading => KvMode::Offloading,
                Kv::SharedStorage => KvMode::SharedStorage,
            },
            side_port: self.side_port(index.saturating_sub(self.encode) as u16),
            ranks: self.ranks.clamp(1, 16),
            patience: Duration::from_secs_f64(self.patience_s),
            cached_details: self.cached_details,
            ec: match self.ec {
                // Without encoders there is nothing to be found again.
                _ if self.encode == 0 => EcMode::None,
                Ec::None => EcMode::None,
                Ec::V1 => EcMode::V1,
                Ec::V2 => EcMode::V2,
                Ec::Example => EcMode::Example,
                Ec::Nixl => EcMode::Nixl,
            },
            local_media: self.local_media,
            lmcache: self.lmcache(index.saturating_sub(self.prefill) as u16),
            kv_elsewhere: self.kv_elsewhere,
            require_key: self.api_key.clone(),
            lease: Duration::from_secs_f64(self.lease_s),
            keep_alive: (self.keep_alive_s > 0.0)
                .then(|| Duration::from_secs_f64(self.keep_alive_s)),
            fetch_delay: Duration::from_secs_f64(self.fetch_ms / 1e3),
            first_contact_delay: Duration::from_secs_f64(self.first_contact_ms / 1e3),
            bidirectional: self.bidirectional,
            faults: match (self.stall_after, self.fault_rate) {
                (Some(after_chunks), _) if role == Role::Decode => FaultPlan {
                    rates: vec![(Fault::Stall { after_chunks }, 1.0)],
                },
                (_, rate) if rate > 0.0 => FaultPlan::mixed(rate),
                _ => FaultPlan::default(),
            },
            ..EngineOptions::new(role)
        }
    }

    /// That of the prefill or decode engine of this number.
    fn side_port(&self, number: u16) -> u16 {
        let usual = match self.kv {
            Kv::Offloading => 7777,
            _ => 8998,
        };
        match self.side_port.unwrap_or(usual) {
            0 => 0,
            first => first.saturating_add(number),
        }
    }

    /// Ports of the decode engine of this number.
    fn lmcache(&self, decode: u16) -> LmcacheOptions {
        let ranks = self.ranks.clamp(1, 10) as u16;
        let first = self.init_port.saturating_add(decode * ranks);
        let from = |port: u16| (port..port.saturating_add(ranks)).collect();
        LmcacheOptions {
            ranks: ranks.into(),
            init_ports: from(first),
            alloc_ports: from(first.saturating_add(10)),
            ..LmcacheOptions::default()
        }
    }

    fn options(&self) -> Options {
        let roles = std::iter::repeat_n(Role::Encode, self.encode)
            .chain(std::iter::repeat_n(Role::Prefill, self.prefill))
            .chain(std::iter::repeat_n(Role::Decode, self.decode))
            .chain(std::iter::repeat_n(Role::Both, self.both));
        Options {
            engines: roles
                .enumerate()
                .map(|(i, role)| self.engine(role, i))
                .collect(),
            seed: self.seed,
            threads: self.threads,
            cpus: (!self.cpus.is_empty()).then(|| self.cpus.clone()),
            host: self.host,
            record: false,
        }
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Runs until a signal, with these arguments (the first is the program's name).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(line) = args::dummy_line(&args) {
        return dummy(line);
    }
    match Cli::try_parse_from(args) {
        Ok(cli) => engines(&cli),
        Err(why) => unread(&why),
    }
}

/// Help, the version, or a mistake.
fn unread(why: &clap::Error) -> ExitCode {
    let _ = why.print();
    ExitCode::from(why.exit_code() as u8)
}

fn dummy(line: Vec<OsString>) -> ExitCode {
    let options = match args::read(line) {
        Ok(options) => options,
        Err(why) => return unread(&why),
    };
    let role = if options.prefill { "prefill" } else { "decode" };
    match Dummy::start(options) {
        Ok(node) => {
            println!("{role} {}", node.address);
            wait(None);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("pdsim: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Until a signal comes, or the time is over.
fn wait(seconds: Option<f64>) {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = on_signal as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let begun = Instant::now();
    let over = |limit: f64| begun.elapsed().as_secs_f64() >= limit;
    while !STOP.load(Ordering::Relaxed) && !seconds.is_some_and(over) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn engines(cli: &Cli) -> ExitCode {
    let options = cli.options();
    if options.engines.is_empty() {
        eprintln!("pdsim: no engines: give --encode, --prefill, --decode or --both");
        return ExitCode::from(2);
    }
    let roles: Vec<Role> = options.engines.iter().map(|e| e.role).collect();
    let sim = match Sim::start(options) {
        Ok(sim) => sim,
        Err(e) => {
            eprintln!("pdsim: {e}");
            return ExitCode::FAILURE;
        }
    };
    for (role, address) in roles.iter().zip(sim.addresses()) {
        println!("{} {address}", role.name());
    }
    for (index, role) in roles.iter().enumerate() {
        if let Some(side) = sim.side(index) {
            println!("side port of {} {}: {side}", role.name(), index);
        }
    }
    if let Some(address) = cli.notices {
        sim.notices_to(address);
    }
    wait(cli.for_s);
    summary(&sim, &roles, cli.kv);
    ExitCode::SUCCESS
}

fn summary(sim: &Sim, roles: &[Role], kv: Kv) {
    for (index, (role, address)) in roles.iter().zip(sim.addresses()).enumerate() {
        println!(
            "{} {address}: {} requests",
            role.name(),
            sim.requests(index)
        );
    }
    let l = sim.ledger();
    println!(
        "ledger: grants {} fetched {} released {} expired {} held {} lost {} | reused {} \
         malformed {} never-issued {} wrong-prompt {} violations {} | encoded {} embedded {}",
        l.grants,
        l.fetched,
        l.released,
        l.expired,
        l.held_now,
        l.lost,
        l.reused,
        l.malformed,
        l.never_issued,
        l.wrong_prompt,
        l.violation_count,
        l.encoded,
        l.embedded
    );
    if l.pushes + l.loaded + l.recomputed + l.unmet > 0 {
        let what = kv.to_possible_value();
        let what = what.map_or_else(String::new, |value| value.get_name().to_owned());
        println!(
            "{what}: pushed {} loaded {} recomputed {} unmet {}",
            l.pushes, l.loaded, l.recomputed, l.unmet
        );
    }
    for text in l.violations.iter().take(20) {
        println!("violation: {text}");
    }
}
