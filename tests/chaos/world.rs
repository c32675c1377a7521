//! The cluster of one seed, what happens to it, and what must be true afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pdrelay::cluster::Instance;
use pdrelay::config::{Config, Secret};
use pdrelay::metrics::{Counter, Gauge, Grant, Retry};
use pdsim::{EngineOptions, Fault};

use super::client::{self, Asked, End};
use super::dice::Dice;
use crate::support::{Client, Rig, completion, engine, rig_with};

const KEY: &str = "chaos";
/// Short, so that what nobody released is gone before the last look.
const LEASE: Duration = Duration::from_millis(1200);

pub struct World {
    pub seed: u64,
    pub rig: Rig,
    /// Do clients leave? Without, each request is counted against what its client saw.
    pub departures: bool,
    handshake: &'static str,
    /// Times as long between two troubles.
    calm: u32,
    /// Engines by position: P first.
    prefills: usize,
}

/// What became of the requests of some seeds.
#[derive(Debug, Default)]
pub struct Totals {
    pub whole: usize,
    pub broken: usize,
    pub refused: usize,
    pub left: usize,
    pub retries: u64,
    pub released: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.whole += other.whole;
        self.broken += other.broken;
        self.refused += other.refused;
        self.left += other.left;
        self.retries += other.retries;
        self.released += other.released;
    }
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed, 0);
        let handshake = dice.one(&["nixl", "nixl", "nixl", "sequential", "aggregated"]);
        let (p, d) = match handshake {
            "aggregated" => (0, dice.within(2, 5) as usize),
            _ => (dice.within(1, 4) as usize, dice.within(2, 4) as usize),
        };
        let role = match handshake {
            "aggregated" => pdsim::Role::Both,
            _ => pdsim::Role::Decode,
        };
        let mut engines: Vec<EngineOptions> = Vec::new();
        engines.extend((0..p).map(|_| engine(pdsim::Role::Prefill)));
        engines.extend((0..d).map(|_| engine(role)));
        for one in &mut engines {
            one.lease = LEASE;
            // Below what the pool keeps: connections die while they are reached for.
            one.keep_alive = dice.percent(50).then(|| dice.ms(100, 400));
            one.timing.prefill_tokens_per_s = dice.one(&[0.0, 3_000.0, 20_000.0]);
            one.timing.decode_tick = dice.one(&[
                Duration::ZERO,
                Duration::from_millis(2),
                Duration::from_millis(6),
            ]);
            one.fetch_delay = dice.one(&[Duration::ZERO, Duration::from_millis(10)]);
            one.first_contact_delay = dice.one(&[Duration::ZERO, Duration::from_millis(30)]);
        }
        let shards = dice.within(2, 4) as usize;
        let rig = rig_with(handshake, engines, |config| settings(config, shards));
        let departures = dice.percent(60);
        let calm = dice.one(&[1, 3, 6]);
        World {
            seed,
            rig,
            departures,
            handshake,
            calm,
            prefills: p,
        }
    }

    pub fn path(&self) -> &'static str {
        "/v1/completions"
    }

    fn engines(&self) -> usize {
        self.rig.sim.addresses().len()
    }

    /// Everything at once, then calm; what did not hold.
    pub fn run(self) -> (Vec<String>, Totals) {
        let over = AtomicBool::new(false);
        let (mut seen, mut wrong) = (Vec::new(), Vec::new());
        let mut known: Vec<Arc<Instance>> = Vec::new();
        std::thread::scope(|scope| {
            let engines = scope.spawn(|| self.trouble(&over));
            let admin = scope.spawn(|| self.come_and_go(&over));
            let clients: Vec<_> = (0..5)
                .map(|number| {
                    let world = &self;
                    scope.spawn(move || client::live(world, number, 14))
                })
                .collect();
            for one in clients {
                match one.join() {
                    Ok((asked, bad)) => {
                        seen.extend(asked);
                        wrong.extend(bad);
                    }
                    Err(_) => wrong.push("a client panicked".into()),
                }
            }
            over.store(true, Ordering::Relaxed);
            let _ = engines.join();
            known = admin.join().unwrap_or_default();
        });
        wrong.extend(self.calm(&known));
        let totals = self.totals(&seen);
        wrong.extend(self.counts(&seen));
        wrong.extend(self.nothing_after_commit(&seen));
        wrong.extend(self.books());
        wrong.extend(self.serves_again());
        if !self.rig.server.drain(Duration::from_secs(10)) {
            wrong.push("a drain of an idle proxy had to cut something".into());
        }
        (wrong, totals)
    }

    /// Engines are killed, restarted, and get faults for a while.
    fn trouble(&self, over: &AtomicBool) {
        let mut dice = Dice::new(self.seed, 1);
        while !over.load(Ordering::Relaxed) {
            sleep(dice.ms(5, 50) * self.calm);
            let engine = dice.within(0, self.engines() as u64) as usize;
            let sim = &self.rig.sim;
            match dice.within(0, 10) {
                0 | 1 if sim.is_up(engine) => sim.kill(engine),
                0..=4 if !sim.is_up(engine) => sim.restart(engine),
                5 | 6 => {
                    let fault = dice.one(&[
                        Fault::AcceptThenClose,
                        Fault::Refuse,
                        Fault::SlowHead(Duration::from_millis(30)),
                        Fault::BadHead,
                        Fault::Status(503),
                        Fault::HalfHead,
                        Fault::HalfBody,
                        Fault::ResetMidStream { after_chunks: 1 },
                        Fault::HangBeforeHead,
                    ]);
                    sim.set_fault(engine, Some(fault));
                }
                _ => sim.set_fault(engine, None),
            }
        }
        for engine in 0..self.engines() {
            self.rig.sim.set_fault(engine, None);
            if !self.rig.sim.is_up(engine) {
                self.rig.sim.restart(engine);
            }
        }
    }

    /// Instances are drained, resumed, removed and added. All that ever were, with none missing at the end.
    fn come_and_go(&self, over: &AtomicBool) -> Vec<Arc<Instance>> {
        let mut dice = Dice::new(self.seed, 2);
        let mut known: Vec<Arc<Instance>> = Vec::new();
        let note = |known: &mut Vec<Arc<Instance>>| {
            for one in &self.rig.server.shared.cluster.get().instances {
                if !known.iter().any(|k| k.index == one.index) {
                    known.push(one.clone());
                }
            }
        };
        let mut client = self.rig.client();
        while !over.load(Ordering::Relaxed) {
            sleep(dice.ms(10, 60) * self.calm);
            let engine = dice.within(0, self.engines() as u64) as usize;
            note(&mut known);
            match dice.within(0, 6) {
                0 => self.admin(&mut client, "POST", "/admin/instances/drain", engine),
                1 | 2 => self.admin(&mut client, "POST", "/admin/instances/resume", engine),
                3 => self.admin(&mut client, "DELETE", "/admin/instances", engine),
                _ => self.admin(&mut client, "POST", "/admin/instances", engine),
            };
        }
        for engine in 0..self.engines() {
            self.admin(&mut client, "POST", "/admin/instances", engine);
            let status = self.admin(&mut client, "POST", "/admin/instances/resume", engine);
            assert_eq!(status, 200, "an instance that was added can be resumed");
        }
        note(&mut known);
        known
    }

    fn admin(&self, client: &mut Client, method: &str, path: &str, engine: usize) -> u16 {
        let role = match engine < self.prefills {
            true => "prefill",
            false if self.handshake == "aggregated" => "aggregated",
            false => "decode",
        };
        let address = self.rig.sim.addresses()[engine];
        let body = format!(r#"{{"role":"{role}","address":"{address}"}}"#);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: t\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let status = client.response().status;
        assert!(
            [200, 404, 409].contains(&status),
            "{method} {path}: {status}"
        );
        status
    }

    /// After the dust has settled everything is back at zero.
    fn calm(&self, known: &[Arc<Instance>]) -> Vec<String> {
        let began = Instant::now();
        loop {
            let wrong = self.unrest(known);
            if wrong.is_empty() || began.elapsed() > Duration::from_secs(20) {
                return wrong;
            }
            sleep(Duration::from_millis(10));
        }
    }

    fn unrest(&self, known: &[Arc<Instance>]) -> Vec<String> {
        let shared = &self.rig.server.shared;
        let mut levels = vec![
            (
                "in_flight".to_owned(),
                shared.in_flight.load(Ordering::Relaxed) as i64,
            ),
            (
                "connections".to_owned(),
                shared.connections.load(Ordering::Relaxed) as i64,
            ),
            ("KV held".to_owned(), self.rig.sim.ledger().held_now as i64),
        ];
        for (name, gauge) in [
            ("requests_in_flight", Gauge::requests_in_flight()),
            ("connections_open", Gauge::connections_open()),
            ("body_memory", Gauge::body_memory_bytes()),
            ("kv_releases_pending", Gauge::releases_pending()),
        ] {
            levels.push((name.to_owned(), shared.metrics.level(gauge)));
        }
        for instance in known {
            let load = instance.load.read();
            levels.push((format!("requests at {}", instance.name), load.requests));
            levels.push((format!("tokens at {}", instance.name), load.tokens));
        }
        for engine in 0..self.engines() {
            // None at all: a slow reader that was given up may be the one, and makes a grant when it has read the
            // bytes that it was sent long before. Health probes are over in no time; the next look finds none.
            let open = self.rig.sim.open_requests(engine) as i64;
            levels.push((format!("open requests of engine {engine}"), open));
        }
        let high = levels.into_iter().filter(|(_, n)| *n != 0);
        high.map(|(name, n)| format!("{name} = {n}")).collect()
    }

    fn totals(&self, seen: &[Asked]) -> Totals {
        let of = |f: fn(&End) -> bool| seen.iter().filter(|a| f(&a.end)).count();
        let metrics = &self.rig.server.shared.metrics;
        Totals {
            whole: of(|e| matches!(e, End::Whole(200))),
            broken: of(|e| matches!(e, End::Broken(_))),
            refused: of(|e| matches!(e, End::Whole(s) if *s != 200)),
            left: of(|e| matches!(e, End::Left)),
            retries: Retry::ALL
                .iter()
                .map(|r| metrics.total(Counter::retries(*r)))
                .sum(),
            released: metrics.total(Counter::kv_grants(Grant::Released)),
        }
    }

    /// Each request is counted once, under the status that its client saw.
    fn counts(&self, seen: &[Asked]) -> Vec<String> {
        let page = self.rig.server.shared.metrics.render();
        let counted = |more: &str| -> usize {
            let of = |l: &&str| {
                l.starts_with("pdrelay_requests_total{")
                    && l.contains("endpoint=\"completions\"")
                    && l.contains(more)
            };
            let value = |l: &str| l.rsplit(' ').next()?.parse::<usize>().ok();
            page.lines().filter(of).filter_map(value).sum()
        };
        let mut wrong = Vec::new();
        let answered = |s: Option<u16>| {
            let of = |a: &&Asked| match a.end {
                End::Whole(status) | End::Broken(status) => s.is_none_or(|s| s == status),
                _ => false,
            };
            seen.iter().filter(of).count()
        };
        if !self.departures {
            for status in [200, 422, 499, 500, 502, 503, 504] {
                let (ours, theirs) = (
                    counted(&format!("code=\"{status}\"")),
                    answered(Some(status)),
                );
                if ours != theirs {
                    wrong.push(format!("{theirs} clients saw {status}, {ours} are counted"));
                }
            }
        }
        // Of those whose client left, some were never read; those that reached an engine were.
        let engines: Vec<_> = (0..self.engines()).map(|e| self.rig.posts(e)).collect();
        let reached = |id: &str| {
            engines
                .iter()
                .flatten()
                .any(|r| r.header("x-request-id") == Some(id))
        };
        let left = seen.iter().filter(|a| a.end == End::Left);
        let (mut least, mut most) = (answered(None), answered(None));
        for one in left {
            most += 1;
            least += usize::from(reached(&one.id));
        }
        let all = counted("");
        if !(least..=most).contains(&all) {
            wrong.push(format!("{all} requests are counted, of {least} to {most}"));
        }
        if self.rig.server.shared.metrics.total(Counter::panics()) > 0 {
            wrong.push("something panicked".into());
        }
        wrong
    }

    /// Once a client has the head of its stream no engine is asked again on its behalf. (After an error one
    /// may be: to release the KV that was not used.)
    fn nothing_after_commit(&self, seen: &[Asked]) -> Vec<String> {
        let mut wrong = Vec::new();
        for engine in 0..self.engines() {
            for received in self.rig.posts(engine) {
                let Some(id) = received.header("x-request-id") else {
                    continue;
                };
                // A slow reader that was given up comes upon the bytes that it was sent long before.
                if ["x-sim-fault-decode", "x-sim-fault-prefill"]
                    .iter()
                    .any(|fault| received.header(fault) == Some("slow-reader"))
                {
                    continue;
                }
                let late = |a: &&Asked| {
                    let begun = matches!(a.end, End::Whole(200) | End::Broken(200));
                    a.id == id && begun && a.head_at.is_some_and(|at| received.at > at)
                };
                if seen.iter().any(|a| late(&a)) {
                    wrong.push(format!(
                        "{id}: engine {engine} was asked after the client had its head"
                    ));
                }
            }
        }
        wrong
    }

    /// Each grant of KV is fetched once, released, expired, or lost with its engine.
    fn books(&self) -> Vec<String> {
        let ledger = self.rig.sim.ledger();
        let mut wrong: Vec<String> = ledger
            .violations
            .iter()
            .map(|v| format!("violation: {v}"))
            .collect();
        let bad = ledger.reused + ledger.wrong_prompt + ledger.malformed + ledger.never_issued;
        let ends = ledger.fetched + ledger.released + ledger.expired + ledger.lost;
        if bad > 0 || ends != ledger.grants {
            wrong.push(format!("{ledger:?}"));
        }
        let metrics = &self.rig.server.shared.metrics;
        let of = |outcome| metrics.total(Counter::kv_grants(outcome));
        let known = of(Grant::Spent) + of(Grant::Released) + of(Grant::ExpiredUnreleased);
        if known > ledger.grants || ledger.fetched > known {
            wrong.push(format!("{known} grants are counted, of {ledger:?}"));
        }
        wrong
    }

    /// Trouble is over: within a few seconds everything is right again, and stays so.
    fn serves_again(&self) -> Vec<String> {
        let began = Instant::now();
        let mut good = 0;
        let mut last = String::new();
        while good < 6 && began.elapsed() < Duration::from_secs(20) {
            let prompt = format!("after {} {good}", self.seed);
            let more = r#","max_tokens":3,"stream":true"#;
            let response = self.rig.post(self.path(), &completion(&prompt, more));
            let right = pdsim::expected(pdsim::prompt_hash(&prompt), 0, 3);
            let fine = response.status == 200 && response.generated() == right;
            good = if fine { good + 1 } else { 0 };
            if !fine {
                last = format!("{} {}", response.status, response.text());
                sleep(Duration::from_millis(50));
            }
        }
        match good < 6 {
            true => vec![format!("it does not serve again: {last}")],
            false => vec![],
        }
    }
}

fn settings(config: &mut Config, shards: usize) {
    let ms = Duration::from_millis;
    config.cores.shards = Some(shards);
    config.admin_api_key = Some(Secret(KEY.into()));
    let limits = &mut config.timeouts;
    limits.connect = ms(500);
    limits.prefill = ms(700);
    limits.decode_head = ms(700);
    limits.between_chunks = ms(500);
    limits.client_write = ms(2000);
    limits.release = ms(1000);
    limits.request = ms(5000);
    config.retry.initial_backoff = ms(5);
    config.health_check.interval = ms(100);
    config.health_check.wedge_after = ms(2000);
    config.circuit_breaker.ejection_initial = ms(50);
    config.circuit_breaker.ejection_max = ms(400);
}
