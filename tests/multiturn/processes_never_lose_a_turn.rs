//! Proxies that share a Redis are processes of their own: a conversation goes on at any of them. A Redis that is
//! killed costs the reuse for as long as it is away, and nothing else; no proxy has to be started again for it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pdsim::Sim;

use super::redis::{Fake, Mood, Real};
use super::{Talk, engines, right};
use crate::support::{Client, eventually};

/// `pdrelay serve`. Dropped: killed.
struct Proxy {
    child: Child,
    address: SocketAddr,
    file: PathBuf,
}

impl Proxy {
    fn start(sim: &Sim, redis: &str) -> Proxy {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let [p, d] = [0, 1].map(|engine| sim.addresses()[engine]);
        let text = format!(
            "handshake: multiturn\nhost: 127.0.0.1\nport: {}\nshards: 1\nlog_level: error\nprefill: [\"{p}\"]\n\
             decode: [\"{d}\"]\nmultiturn: {{redis: \"{redis}\", redis_timeout: 2s}}\n",
            address.port()
        );
        let name = format!("pdrelay-process-{}-{}", std::process::id(), address.port());
        let file = std::env::temp_dir().join(name + ".yaml");
        std::fs::write(&file, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pdrelay"))
            .args(["serve", "--config"])
            .arg(&file)
            .env_remove("OPENAI_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut proxy = Proxy {
            child,
            address,
            file,
        };
        eventually("a proxy is ready", || {
            assert_eq!(proxy.child.try_wait().unwrap(), None, "it has ended");
            std::net::TcpStream::connect(address).is_ok()
                && Client::connect(address).get("/ready").status == 200
        });
        proxy
    }

    /// Its own count of this outcome.
    fn counted(&self, outcome: &str) -> f64 {
        let sample = format!("pdrelay_conversations_total{{outcome=\"{outcome}\"}} ");
        let page = Client::connect(self.address).get("/metrics").text();
        let value = |line: &str| line.strip_prefix(&sample)?.parse().ok();
        page.lines().find_map(value).unwrap_or(0.0)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Three proxies in front of the same two engines.
struct Lab {
    sim: Sim,
    proxies: Vec<Proxy>,
}

/// Where the KV of a turn's prompt came from.
#[derive(Debug, PartialEq, Eq)]
enum Kv {
    Reused,
    Computed,
}

impl Lab {
    fn start(redis: &str) -> Lab {
        let options = pdsim::Options {
            engines: engines(1, 1),
            ..pdsim::Options::default()
        };
        let sim = Sim::start(options).expect("the simulator starts");
        let proxies = (0..3).map(|_| Proxy::start(&sim, redis)).collect();
        Lab { sim, proxies }
    }

    /// Tokens that P did not compute, since it had their KV from D; as it says itself.
    fn external(&self) -> f64 {
        let page = Client::connect(self.sim.addresses()[0])
            .get("/metrics")
            .text();
        let source = |line: &&str| line.contains("source=\"external_kv_transfer\"");
        let line = page.lines().find(source).expect("a line of that source");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// A turn at this proxy; its text is that of a single server.
    fn turn(&self, proxy: usize, talk: &mut Talk) -> Kv {
        let (external, fetched) = (self.external(), self.sim.ledger().fetched);
        talk.say(self.proxies[proxy].address, "hello");
        right(talk);
        let fetched = self.sim.ledger().fetched - fetched;
        // D fetches from P in every turn; P from D where it goes on from there.
        match (self.external() > external, fetched) {
            (true, 2) => Kv::Reused,
            (false, 1) => Kv::Computed,
            other => panic!("by P's word and by the ledger: {other:?}"),
        }
    }

    /// The same, and what D keeps of it is in the Redis when this returns.
    fn stored_turn(&self, proxy: usize, talk: &mut Talk) -> Kv {
        let before = self.proxies[proxy].counted("stored");
        let kv = self.turn(proxy, talk);
        eventually("the turn is stored", || {
            self.proxies[proxy].counted("stored") > before
        });
        kv
    }

    fn clean(&self) {
        let ledger = self.sim.ledger();
        assert_eq!(ledger.violations, Vec::<String>::new());
        assert_eq!((ledger.reused, ledger.wrong_prompt), (0, 0));
    }

    fn goes_on_anywhere(&self, talk: &mut Talk) {
        assert_eq!(self.stored_turn(0, talk), Kv::Computed);
        for proxy in [1, 0, 2] {
            let before = self.proxies[proxy].counted("reused");
            assert_eq!(self.stored_turn(proxy, talk), Kv::Reused);
            assert_eq!(self.proxies[proxy].counted("reused"), before + 1.0);
        }
    }
}

#[test]
fn three_processes_are_as_one() {
    let fake = Fake::start(Mood::Good);
    let lab = Lab::start(&fake.url());
    lab.goes_on_anywhere(&mut Talk::new("one"));
    lab.clean();
    fake.no_faults();
}

#[test]
fn a_redis_that_is_killed_costs_only_the_reuse() {
    let Some(mut redis) = Real::start(&[]) else {
        return;
    };
    let lab = Lab::start(&redis.url(""));
    lab.goes_on_anywhere(&mut Talk::new("one"));

    let mut talk = Talk::new("two");
    assert_eq!(lab.stored_turn(0, &mut talk), Kv::Computed);
    redis.kill();
    for proxy in [1, 0, 2] {
        let failed = lab.proxies[proxy].counted("store_failed");
        assert_eq!(lab.turn(proxy, &mut talk), Kv::Computed);
        eventually("it is counted", || {
            lab.proxies[proxy].counted("store_failed") > failed
        });
        assert_eq!(
            Client::connect(lab.proxies[proxy].address)
                .get("/ready")
                .status,
            200
        );
    }

    redis.again();
    for proxy in 0..3 {
        // After a failure a proxy leaves the Redis alone for a moment.
        let mut probe = Talk::new(&format!("probe-{proxy}"));
        eventually("it is asked again", || {
            std::thread::sleep(Duration::from_millis(50));
            let before = lab.proxies[proxy].counted("reused");
            probe.say(lab.proxies[proxy].address, "hello");
            lab.proxies[proxy].counted("reused") > before
        });
        right(&probe);
    }
    lab.goes_on_anywhere(&mut Talk::new("three"));
    lab.clean();
}
