//! Conversations in a Redis that several proxies share: `SET key value PX ttl`, and `GETDEL key`, which is
//! what makes an entry the taker's alone. A Redis before 6.2 has no GETDEL; a script does the same there.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Entry, Found, Key, Store, Taking, Tools, hex};
use crate::cluster::literal;
use crate::cluster::names::resolve;
use crate::config::RedisAddress;
use crate::log;
use crate::metrics::{Conversation, Counter};
use crate::net::redis::{Client, Settings};
use crate::net::stream::Target;
use crate::shared::Published;
use crate::wire::resp::Reply;

const PREFIX: &str = "pdrelay:conversation:";
const GET_AND_DELETE: &[u8] =
    b"local v=redis.call('GET',KEYS[1]) if v then redis.call('DEL',KEYS[1]) end return v";

pub struct Redis {
    place: Arc<Place>,
    ttl: Duration,
    timeout: Duration,
    /// It knows no GETDEL.
    old: AtomicBool,
}

/// Where it is, and whether somebody is looking that up.
struct Place {
    at: RedisAddress,
    targets: Published<Vec<Target>>,
    looking: AtomicBool,
}

impl Place {
    /// The name may have moved: looked up again by a thread of its own, since that may take its time.
    fn look_again(self: &Arc<Self>) {
        if self.at.address.network().is_none() || self.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let place = self.clone();
        let look = move || {
            let found = resolve(&place.at.address);
            if !found.is_empty() && *place.targets.get() != found {
                place.targets.publish(found);
            }
            place.looking.store(false, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new().name("redis-name".into());
        if thread.spawn(look).is_err() {
            self.looking.store(false, Ordering::Relaxed);
        }
    }
}

impl Redis {
    /// Waits for nothing: whether it is there shows later.
    pub fn new(at: RedisAddress, ttl: Duration, timeout: Duration) -> Redis {
        let place = Arc::new(Place {
            targets: Published::new(literal(&at.address)),
            at,
            looking: AtomicBool::new(false),
        });
        if place.targets.get().is_empty() {
            place.look_again();
        }
        Redis {
            place,
            ttl,
            timeout,
            old: AtomicBool::new(false),
        }
    }

    /// This shard's client.
    fn client<'a>(&self, tools: &'a Tools) -> &'a Client {
        tools.redis.get_or_init(|| {
            let (place, lost) = (self.place.clone(), self.place.clone());
            let settings = Settings {
                targets: Box::new(move || place.targets.get().to_vec()),
                greeting: greeting(&self.place.at),
                limit: self.timeout,
                lost: Box::new(move |why| {
                    lost.look_again();
                    let name = lost.at.to_string();
                    log::limited_for("redis", &name, log::Level::Warning, || {
                        format!("{name}: {why}; conversations are computed again meanwhile")
                    });
                }),
            };
            Client::new(settings, tools.sweep.clone(), tools.driver)
        })
    }

    async fn take_now(&self, tools: &Tools, key: &Key) -> Found {
        let found = self.fetch(tools, &name(key)).await;
        if matches!(found, Found::Failed) {
            fail(tools);
        }
        found
    }

    async fn fetch(&self, tools: &Tools, name: &[u8]) -> Found {
        let client = self.client(tools);
        if !self.old.load(Ordering::Relaxed) {
            let Some(pending) = client.ask(&[b"GETDEL", name]) else {
                return Found::Failed;
            };
            match pending.answer().await {
                Some(Reply::Error(what)) if unknown_command(&what) => {
                    self.old.store(true, Ordering::Relaxed);
                }
                reply => return found(reply),
            }
        }
        let Some(pending) = client.ask(&[b"EVAL", GET_AND_DELETE, b"1", name]) else {
            return Found::Failed;
        };
        found(pending.answer().await)
    }
}

/// `AUTH` and `SELECT`, as far as needed.
fn greeting(at: &RedisAddress) -> Vec<Vec<Vec<u8>>> {
    let mut greeting = Vec::new();
    if let Some(password) = &at.password {
        let mut words = vec![b"AUTH".to_vec()];
        if !at.user.is_empty() {
            words.push(at.user.clone().into_bytes());
        }
        words.push(password.0.clone().into_bytes());
        greeting.push(words);
    }
    if at.db != 0 {
        greeting.push(vec![b"SELECT".to_vec(), at.db.to_string().into_bytes()]);
    }
    greeting
}

fn name(key: &Key) -> Vec<u8> {
    format!("{PREFIX}{}", hex(key)).into_bytes()
}

fn unknown_command(what: &[u8]) -> bool {
    what.to_ascii_lowercase()
        .starts_with(b"err unknown command")
}

fn found(reply: Option<Reply>) -> Found {
    match reply {
        Some(Reply::Nil) => Found::Nothing,
        Some(Reply::Bulk(bytes)) => Entry::decode(&bytes).map_or(Found::Failed, Found::Entry),
        _ => Found::Failed,
    }
}

fn fail(tools: &Tools) {
    let outcome = Counter::conversations(Conversation::StoreFailed);
    tools.metrics.inc(outcome);
}

impl Store for Redis {
    fn take<'a>(&'a self, tools: &'a Rc<Tools>, key: &'a Key) -> Taking<'a> {
        Box::pin(self.take_now(tools, key))
    }

    fn put(&self, tools: &Rc<Tools>, key: Key, entry: Entry) {
        let ttl = self.ttl.as_millis().max(1).to_string();
        let value = entry.encode();
        let words: [&[u8]; 5] = [b"SET", &name(&key), &value, b"PX", ttl.as_bytes()];
        let Some(pending) = self.client(tools).ask(&words) else {
            return fail(tools);
        };
        let tools = tools.clone();
        monoio::spawn(async move {
            match pending.answer().await {
                Some(Reply::Status(_)) => {
                    let outcome = Counter::conversations(Conversation::Stored);
                    tools.metrics.inc(outcome);
                }
                _ => fail(&tools),
            }
        });
    }

    fn kept(&self, _: &Rc<Tools>) -> Option<usize> {
        None
    }

    fn expired(&self) -> usize {
        0
    }
}
