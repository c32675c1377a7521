//! Makes one cell of the matrix happen and says what was seen.

use std::thread::sleep;
use std::time::{Duration, Instant};

use pdrelay::config::Config;
use pdrelay::metrics::{Code, Counter, Endpoint, Gauge, Grant, Retry};
use pdsim::{EngineOptions, Fault};

use super::table::{Body, Expect, Stage, What};
use crate::support::{Client, Response, Rig, completion, engine, post_bytes, rig_with};

/// The limit that a silent engine or a client that does not read meets here. All other waits have a long
/// one, so that a busy machine changes nothing.
const SHORT: Duration = Duration::from_millis(500);
const PROMPT: &str = "the prompt of the request that fails";

/// A cluster in which one kind of fault will happen.
pub struct Scene {
    pub what: What,
    pub stage: Stage,
    rig: Rig,
    /// The engine that fails, and all engines of each role.
    faulty: usize,
    prefills: usize,
}

impl Scene {
    /// `spare`: there is a second, healthy instance of the faulty one's role.
    pub fn new(handshake: &'static str, what: What, stage: Stage, spare: bool) -> Scene {
        let second = usize::from(spare);
        let at_prefill = stage == Stage::Prefill;
        let (p, d) = match handshake {
            "aggregated" => (0, 1 + second),
            _ if at_prefill => (1 + second, 1),
            _ => (1, 1 + second),
        };
        let role = match handshake {
            "aggregated" => pdsim::Role::Both,
            _ => pdsim::Role::Decode,
        };
        let mut engines: Vec<EngineOptions> = Vec::new();
        engines.extend((0..p).map(|_| engine(pdsim::Role::Prefill)));
        engines.extend((0..d).map(|_| engine(role)));
        for one in &mut engines {
            one.keep_alive = None;
            one.lease = Duration::from_secs(600);
            pace(one, handshake, what, stage);
        }
        let rig = rig_with(handshake, engines, |config| limits(config, what, stage));
        let mut scene = Scene {
            what,
            stage,
            rig,
            faulty: 0,
            prefills: p,
        };
        if what != What::ClientGoneUnmet {
            scene.warm_up();
        }
        // Picks take turns, so the next one falls on whoever did not get the first.
        let mut of_role = if at_prefill { 0..p } else { p..p + d };
        let faulty = of_role.clone().find(|e| scene.rig.posts(*e).is_empty());
        scene.faulty = faulty
            .filter(|_| spare)
            .or(of_role.next())
            .expect("an engine");
        scene
    }

    /// D meets P. It leaves no idle connection behind: a reused one has a free retry, which is not what
    /// these numbers are about.
    fn warm_up(&self) {
        let before = self.counts();
        let body = completion("warm-up", r#","max_tokens":1"#);
        let mut client = self.rig.client();
        let header = "x-sim-shape: close-delimited\r\n";
        client.send(post_bytes("/v1/completions", &body, header));
        let response = client.response();
        assert_eq!(response.status, 200, "warm-up: {}", response.text());
        drop(client);
        let wrong = self.settled(&before, "the warm-up");
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    fn engines(&self) -> std::ops::Range<usize> {
        0..self.rig.sim.addresses().len()
    }

    fn tokens(&self) -> u32 {
        match (self.what, self.stage) {
            (What::SlowClient, _) => 60_000,
            (What::ClientGone | What::ClientGoneUnmet, Stage::Stream) => 200,
            _ => 6,
        }
    }

    /// One request meets the fault. What all could see of it, and what is wrong besides.
    pub fn play(&mut self) -> (Expect, Vec<String>) {
        let before = self.counts();
        self.rig
            .sim
            .set_fault(self.faulty, fault(self.what, self.stage));
        let said = self.request();
        let mut wrong = self.settled(&before, "the request");
        let after = self.counts();
        let mut seen = self.seen(&before, &after, said);
        wrong.extend(self.innocents(&before, &after));
        self.rig.sim.set_fault(self.faulty, None);
        wrong.extend(self.afterwards());
        seen.saved = None;
        (seen, wrong)
    }

    /// Sends the request and reads as much as this client would.
    fn request(&self) -> (u16, Body) {
        let stream = self.stage == Stage::Stream;
        let tokens = self.tokens();
        let more = format!(r#","max_tokens":{tokens},"stream":{stream}"#);
        let bytes = post_bytes("/v1/completions", &completion(PROMPT, &more), "");
        let busy = || self.rig.sim.open_requests(self.faulty) > 0;
        match self.what {
            What::SlowClient => {
                let mut client = small_window(&self.rig);
                client.send(bytes);
                wait("the stream begins", busy);
                wait("a reader that does not read is cut", || !busy());
                self.judge(&client.response())
            }
            What::ClientGone | What::ClientGoneUnmet => {
                let mut client = self.rig.client();
                client.send(bytes);
                let status = if stream {
                    assert!(client.head().starts_with("HTTP/1.1 200"));
                    200
                } else {
                    wait("the engine has the request", busy);
                    499
                };
                drop(client);
                wait("the engine is told that the client left", || !busy());
                (status, Body::Nobody)
            }
            _ => {
                let mut client = self.rig.client();
                client.send(bytes);
                let response = client.response();
                if !response.complete {
                    assert!(client.closed(), "a cut answer ends its connection");
                }
                self.judge(&response)
            }
        }
    }

    fn judge(&self, response: &Response) -> (u16, Body) {
        let text = response.text();
        let body = if !response.complete {
            assert!(!text.contains("[DONE]"), "{text}");
            let last = text.trim_end().rsplit("\n\n").next().unwrap_or("");
            match last.starts_with("data: {\"error\"") {
                true => Body::Event,
                false => Body::Cut,
            }
        } else if response.status == 200 {
            let whole = text.contains("[DONE]") || text.ends_with('}');
            match whole && response.generated() == right(PROMPT, self.tokens()) {
                true => Body::Whole,
                false => Body::Engines,
            }
        } else if text.contains("SimulatedFault") {
            Body::Engines
        } else {
            let error = &response.json()["error"];
            assert!(
                error["message"].is_string() && error["code"] == response.status,
                "{text}"
            );
            Body::Error
        };
        (response.status, body)
    }

    fn seen(&self, before: &Counts, after: &Counts, said: (u16, Body)) -> Expect {
        let (status, body) = said;
        let asked = |engines: std::ops::Range<usize>| {
            engines
                .map(|e| after.posts[e] - before.posts[e])
                .sum::<u64>()
        };
        Expect {
            status,
            body,
            p: asked(0..self.prefills),
            d: asked(self.prefills..self.engines().end),
            retries: after.retries - before.retries,
            blame: self.blame(before, after, self.faulty).leak(),
            kv: std::array::from_fn(|i| after.kv[i] - before.kv[i]),
            grants: std::array::from_fn(|i| after.grants[i] - before.grants[i]),
            saved: None,
        }
    }

    fn blame(&self, before: &Counts, after: &Counts, engine: usize) -> Vec<(&'static str, u64)> {
        let instance = format!("instance=\"{}\"", self.rig.sim.addresses()[engine]);
        let sum = |counts: &Counts, kind: &str| {
            let kind = format!("kind=\"{kind}\"");
            let of = |line: &&String| line.contains(&instance) && line.contains(&kind);
            let value = |line: &String| line.rsplit(' ').next()?.parse::<u64>().ok();
            counts
                .failures
                .iter()
                .filter(of)
                .filter_map(value)
                .sum::<u64>()
        };
        let of = |kind: &'static str| (kind, sum(after, kind) - sum(before, kind));
        let kinds = ["connect", "reset", "timeout", "bad_response", "status_5xx"];
        kinds.map(of).into_iter().filter(|(_, n)| *n > 0).collect()
    }

    /// Whoever is not the culprit must not be blamed; and each request is counted once.
    fn innocents(&self, before: &Counts, after: &Counts) -> Vec<String> {
        let mut wrong = Vec::new();
        for engine in self.engines().filter(|e| *e != self.faulty) {
            let blame = self.blame(before, after, engine);
            if !blame.is_empty() {
                wrong.push(format!("engine {engine} is blamed: {blame:?}"));
            }
        }
        if self.what == What::SlowClient || self.what == What::ClientGone {
            let blame = self.blame(before, after, self.faulty);
            if !blame.is_empty() {
                wrong.push(format!("an engine is blamed for its client: {blame:?}"));
            }
        }
        wrong
    }

    /// Waits until everything has come to rest after one request; what has not.
    fn settled(&self, before: &Counts, of: &str) -> Vec<String> {
        let began = Instant::now();
        loop {
            let mut wrong = self.unrest();
            let counted = self.counted() - before.requests;
            if counted != 1 {
                wrong.push(format!("{of} was counted {counted} times"));
            }
            if wrong.is_empty() || began.elapsed() > Duration::from_secs(15) {
                return wrong;
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Everything that must be zero when nothing is going on.
    fn unrest(&self) -> Vec<String> {
        use std::sync::atomic::Ordering::Relaxed;
        let shared = &self.rig.server.shared;
        let mut levels = vec![
            (
                "in_flight".to_owned(),
                shared.in_flight.load(Relaxed) as i64,
            ),
            (
                "connections".to_owned(),
                shared.connections.load(Relaxed) as i64,
            ),
        ];
        for (name, gauge) in [
            ("requests_in_flight", Gauge::requests_in_flight()),
            ("connections_open", Gauge::connections_open()),
            ("body_memory", Gauge::body_memory_bytes()),
            ("kv_releases_pending", Gauge::releases_pending()),
        ] {
            levels.push((name.to_owned(), shared.metrics.level(gauge)));
        }
        for instance in &shared.cluster.get().instances {
            let load = instance.load.read();
            levels.push((format!("requests at {}", instance.name), load.requests));
            levels.push((format!("tokens at {}", instance.name), load.tokens));
        }
        for engine in self.engines() {
            let open = self.rig.sim.open_requests(engine) as i64;
            levels.push((format!("open requests of engine {engine}"), open));
        }
        let high = levels.into_iter().filter(|(_, n)| *n != 0);
        high.map(|(name, n)| format!("{name} = {n}")).collect()
    }

    /// The fault is over: a clean request is served, the books are right, a drain finds nothing to wait for.
    fn afterwards(&self) -> Vec<String> {
        let before = self.counts();
        let mut wrong = Vec::new();
        let mut client = self.rig.client();
        let body = completion("a clean one", r#","max_tokens":3,"stream":true"#);
        let response = client.post("/v1/completions", &body);
        if response.status != 200 || response.generated() != right("a clean one", 3) {
            wrong.push(format!(
                "afterwards: {} {}",
                response.status,
                response.text()
            ));
        }
        drop(client);
        wrong.extend(self.settled(&before, "the clean request"));
        let ledger = self.rig.sim.ledger();
        wrong.extend(ledger.violations.iter().map(|v| format!("violation: {v}")));
        if ledger.reused + ledger.wrong_prompt + ledger.malformed + ledger.lost > 0 {
            wrong.push(format!("{ledger:?}"));
        }
        let panics = self.rig.server.shared.metrics.total(Counter::panics());
        if panics > 0 {
            wrong.push(format!("{panics} panics"));
        }
        wrong
    }

    /// Requests answered so far, as pdrelay counts them.
    fn counted(&self) -> u64 {
        let metrics = &self.rig.server.shared.metrics;
        let of = |status| Counter::requests(Endpoint::Completions, Code::of(status));
        // One of each status that the table has.
        [200, 422, 499, 502, 503, 504]
            .map(|status| metrics.total(of(status)))
            .iter()
            .sum()
    }

    fn counts(&self) -> Counts {
        let metrics = &self.rig.server.shared.metrics;
        let ledger = self.rig.sim.ledger();
        let page = metrics.render();
        let failures = page
            .lines()
            .filter(|l| l.starts_with("pdrelay_upstream_failures_total{"));
        let outcomes = [Grant::Spent, Grant::Released, Grant::ExpiredUnreleased];
        Counts {
            failures: failures.map(str::to_owned).collect(),
            requests: self.counted(),
            retries: Retry::ALL
                .iter()
                .map(|r| metrics.total(Counter::retries(*r)))
                .sum(),
            grants: outcomes.map(|outcome| metrics.total(Counter::kv_grants(outcome))),
            posts: self
                .engines()
                .map(|e| self.rig.posts(e).len() as u64)
                .collect(),
            kv: [
                ledger.fetched,
                ledger.released,
                ledger.held_now + ledger.expired,
            ],
        }
    }
}

/// Everything that only grows, at one moment.
struct Counts {
    /// Samples of `pdrelay_upstream_failures_total`.
    failures: Vec<String>,
    requests: u64,
    retries: u64,
    grants: [u64; 3],
    posts: Vec<u64>,
    kv: [u64; 3],
}

fn right(prompt: &str, tokens: u32) -> String {
    pdsim::expected(pdsim::prompt_hash(prompt), 0, tokens)
}

/// Up to twenty seconds.
fn wait(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        sleep(Duration::from_millis(2));
    }
}

fn small_window(rig: &Rig) -> Client {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(8 << 10)
        .expect("a small window");
    socket
        .connect(&rig.server.address.into())
        .expect("the proxy accepts");
    let patience = Some(Duration::from_secs(20));
    socket.set_read_timeout(patience).expect("a limit");
    Client {
        stream: socket.into(),
        rest: Vec::new(),
    }
}

/// What the simulator is told to do. A client's faults are the test's own.
fn fault(what: What, stage: Stage) -> Option<Fault> {
    // After this much of a stream, so that it has begun.
    let after_chunks = if stage == Stage::Stream { 2 } else { 0 };
    Some(match what {
        What::Refuse => Fault::Refuse,
        What::AcceptThenClose => Fault::AcceptThenClose,
        What::Hang => Fault::HangBeforeHead,
        What::SlowHead => Fault::SlowHead(Duration::from_millis(150)),
        What::BadHead => Fault::BadHead,
        What::Status4xx => Fault::Status(422),
        What::Status5xx => Fault::Status(503),
        What::HalfHead => Fault::HalfHead,
        What::HalfBody => Fault::HalfBody,
        What::Rst => Fault::ResetMidStream { after_chunks },
        What::CleanEarlyEnd => Fault::CleanEarlyEnd { after_chunks },
        What::Garbage => Fault::Garbage,
        What::Stall => Fault::Stall { after_chunks },
        What::SlowClient | What::ClientGone | What::ClientGoneUnmet => return None,
    })
}

/// How long things take in the engines, where it matters.
fn pace(engine: &mut EngineOptions, handshake: &str, what: What, stage: Stage) {
    let prefills = engine.role == pdsim::Role::Prefill;
    let ms = Duration::from_millis;
    match (what, stage) {
        // 12 tokens, 4 s: a prefill that ends within 1.5 s is let finish.
        (What::ClientGone, Stage::Prefill) if prefills => {
            engine.timing.prefill_tokens_per_s = 3.0;
        }
        (What::ClientGone, Stage::DecodeHead) if handshake == "nixl" && !prefills => {
            engine.fetch_delay = ms(400);
        }
        (What::ClientGoneUnmet, _) if !prefills => {
            engine.first_contact_delay = ms(300);
            engine.timing.decode_tick = ms(30);
        }
        (What::ClientGone, _) if !prefills => engine.timing.decode_tick = ms(60),
        // Its chunks must come one by one: garbage that comes with the head is an honest 502.
        (What::Garbage, Stage::Stream) if !prefills => engine.timing.decode_tick = ms(150),
        _ => {}
    }
}

fn limits(config: &mut Config, what: What, stage: Stage) {
    config.cores.shards = Some(1);
    config.health_check.enabled = false;
    config.retry.initial_backoff = Duration::from_millis(5);
    let limits = &mut config.timeouts;
    limits.connect = Duration::from_secs(20);
    let limit = match (what, stage) {
        (What::Hang | What::Stall, Stage::Prefill) => &mut limits.prefill,
        (What::Hang, Stage::DecodeHead) => &mut limits.decode_head,
        (What::Stall, _) => &mut limits.between_chunks,
        (What::SlowClient, _) => &mut limits.client_write,
        _ => return,
    };
    *limit = SHORT;
}
