//! The ledger of KV: every grant that a prefill engine hands out, and what became of it. Shared by
//! all threads; one short lock per engine. A grant's number is its place in a ring, so that opening
//! and fetching are a few loads, and a number seen twice is recognised long after.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Closed grants that are remembered, per engine.
const REMEMBERED: usize = 1 << 16;
/// Violations kept as text; more are only counted.
const TEXTS: usize = 1000;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has happened to the KV of all engines so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerReport {
    pub grants: u64,
    /// Read by a D, and so freed.
    pub fetched: u64,
    /// Freed early, because D aborted or rejected a request that named them.
    pub released: u64,
    /// Nobody came within the lease.
    pub expired: u64,
    pub held_now: u64,
    /// Gone with the engine that held them.
    pub lost: u64,
    /// Spent params sent again (answered with wrong text, as the real engine does).
    pub reused: u64,
    /// Params that cannot be used: keys missing, wrong blocks, wrong types.
    pub malformed: u64,
    /// Params of no grant that was ever made.
    pub never_issued: u64,
    /// KV of another prompt was loaded (answered with wrong text).
    pub wrong_prompt: u64,
    /// Media items that encoders have encoded.
    pub encoded: u64,
    /// References to encodings that prefill and decode engines have accepted.
    pub embedded: u64,
    /// Pushed encodings that their consumers have taken.
    pub transferred: u64,
    /// Requests that waited in vain for the one at another engine.
    pub unmet: u64,
    /// LMCache, a store, offloading: prompts whose KV was pushed, was found by a D, and had to be computed by one.
    pub pushes: u64,
    pub loaded: u64,
    pub recomputed: u64,
    /// Everything that a proxy must never do, in words (the first thousand).
    pub violations: Vec<String>,
    pub violation_count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    Fetched,
    Released,
    Expired,
}

/// What is known of a grant when it is made.
pub(crate) struct Opening {
    pub prompt: u64,
    /// Of an answer that a later turn may begin with: any of these.
    pub told: Vec<Vec<u8>>,
    pub tokens: u32,
    /// Hash of P's `X-Request-Id`, 0 without one.
    pub request: u64,
    pub deadline: u64,
}

struct Grant {
    opening: Opening,
    /// Hash of `remote_request_id`: a number alone could be met by a stale one.
    name: u64,
    state: State,
}

#[derive(Default)]
struct Book {
    /// Number of the grant in front of the ring.
    base: u32,
    grants: VecDeque<Grant>,
    /// All before it are closed or past their deadline: deadlines rise with the number.
    swept: usize,
    incarnation: u32,
    alive: bool,
    opened: u64,
    fetched: u64,
    released: u64,
    expired: u64,
    lost: u64,
}

impl Book {
    /// With room for all that is ever remembered: growing by copying would stop the engine's thread for up to 30 ms,
    /// and whoever measures a proxy would take that for the proxy's. (What is not used is not touched.)
    fn new() -> Book {
        Book {
            grants: VecDeque::with_capacity(REMEMBERED + 1),
            ..Book::default()
        }
    }

    /// Frees what is past its lease.
    fn sweep(&mut self, now: u64) {
        while let Some(grant) = self.grants.get_mut(self.swept) {
            if grant.state == State::Held {
                if grant.opening.deadline > now {
                    break;
                }
                grant.state = State::Expired;
                self.expired += 1;
            }
            self.swept += 1;
        }
        while self.grants.len() > REMEMBERED && self.swept > 0 {
            self.grants.pop_front();
            self.base = self.base.wrapping_add(1);
            self.swept -= 1;
        }
    }

    fn held(&self) -> u64 {
        self.opened - self.fetched - self.released - self.expired - self.lost
    }
}

/// What D finds when it comes for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// Right or wrong KV: a real engine cannot tell, its text can.
    Loaded {
        right: bool,
    },
    Expired,
    Unknown,
    /// The engine is not there any more.
    Dead,
}

/// What the one who reads KV takes it for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holds<'a> {
    /// That of the prompt with this hash.
    Prompt(u64),
    /// That of what this prompt begins with.
    StartOf(&'a [u8]),
}

/// How a grant is named in `kv_transfer_params`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantName {
    pub engine: usize,
    pub incarnation: u32,
    pub number: u32,
    pub name: u64,
}

#[derive(Default)]
struct Notes {
    texts: Vec<String>,
    count: u64,
}

pub(crate) struct Ledger {
    books: Vec<Mutex<Book>>,
    /// `met[d * engines + p]`: incarnations of both at their last hand-over, 0 = never.
    met: Vec<AtomicU64>,
    notes: Mutex<Notes>,
    reused: AtomicU64,
    malformed: AtomicU64,
    never_issued: AtomicU64,
    wrong_prompt: AtomicU64,
}

impl Ledger {
    pub fn new(engines: usize) -> Ledger {
        Ledger {
            books: (0..engines).map(|_| Mutex::new(Book::new())).collect(),
            met: (0..engines * engines).map(|_| AtomicU64::new(0)).collect(),
            notes: Mutex::default(),
            reused: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            never_issued: AtomicU64::new(0),
            wrong_prompt: AtomicU64::new(0),
        }
    }

    pub fn violation(&self, text: impl FnOnce() -> String) {
        let mut notes = lock(&self.notes);
        notes.count += 1;
        if notes.texts.len() < TEXTS {
            notes.texts.push(text());
        }
    }

    pub fn malformed(&self, text: impl FnOnce() -> String) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        self.violation(text);
    }

    /// The engine starts (again) and owns no KV.
    pub fn begin(&self, engine: usize, incarnation: u32) {
        let mut book = lock(&self.books[engine]);
        book.incarnation = incarnation;
        book.alive = true;
    }

    /// The engine dies, its KV with it.
    pub fn end(&self, engine: usize) {
        let mut book = lock(&self.books[engine]);
        book.lost += book.held();
        book.base = book.base.wrapping_add(book.grants.len() as u32);
        book.grants.clear();
        book.swept = 0;
        book.alive = false;
    }

    /// A new grant. `name` is told its number and gives the hash of the full request id.
    pub fn open(
        &self,
        engine: usize,
        opening: Opening,
        now: u64,
        name: impl FnOnce(u32) -> u64,
    ) -> u32 {
        let mut book = lock(&self.books[engine]);
        book.sweep(now);
        let number = book.base.wrapping_add(book.grants.len() as u32);
        book.opened += 1;
        book.grants.push_back(Grant {
            opening,
            name: name(number),
            state: State::Held,
        });
        number
    }

    /// Engine and incarnation `d` reads the KV of `grant`; `prompt` and `request`, where given,
    /// must be what it was made for.
    pub fn fetch(
        &self,
        (d, d_incarnation): (usize, u32),
        grant: GrantName,
        holds: Holds,
        request: Option<u64>,
        now: u64,
    ) -> Fetch {
        let found = self.look(grant, holds, request, now);
        match found {
            Fetch::Loaded { .. } => {
                let pair = u64::from(d_incarnation) << 32 | u64::from(grant.incarnation);
                self.met[d * self.books.len() + grant.engine].store(pair, Ordering::Relaxed);
            }
            Fetch::Unknown => {
                self.never_issued.fetch_add(1, Ordering::Relaxed);
                self.violation(|| format!("params of no grant: {grant:?}"));
            }
            Fetch::Dead | Fetch::Expired => {}
        }
        found
    }

    fn look(&self, name: GrantName, holds: Holds, request: Option<u64>, now: u64) -> Fetch {
        let mut book = lock(&self.books[name.engine]);
        if !book.alive || book.incarnation != name.incarnation {
            return Fetch::Dead;
        }
        book.sweep(now);
        let place = name.number.wrapping_sub(book.base) as usize;
        if name.number.wrapping_sub(book.base) > u32::MAX / 2 {
            drop(book);
            return self.reused(name);
        }
        let Some(grant) = book.grants.get_mut(place).filter(|g| g.name == name.name) else {
            return Fetch::Unknown;
        };
        let same = match holds {
            Holds::Prompt(prompt) => prompt == grant.opening.prompt,
            Holds::StartOf(text) => grant.opening.told.iter().any(|t| text.starts_with(t)),
        };
        // A later turn is another request.
        let request = request.filter(|_| matches!(holds, Holds::Prompt(_)));
        let other_request = request.is_some_and(|r| r != grant.opening.request);
        match grant.state {
            State::Held => grant.state = State::Fetched,
            State::Expired => return Fetch::Expired,
            State::Fetched | State::Released => {
                drop(book);
                return self.reused(name);
            }
        }
        book.fetched += 1;
        drop(book);
        if other_request {
            self.violation(|| format!("D has another X-Request-Id than P had: {name:?}"));
        }
        if !same {
            self.wrong_prompt.fetch_add(1, Ordering::Relaxed);
            self.violation(|| format!("KV of another prompt was loaded: {name:?}"));
        }
        Fetch::Loaded { right: same }
    }

    /// A name for which KV was fetched before, or is just being.
    pub fn reused_id(&self, engine: usize, id: &str) {
        self.reused.fetch_add(1, Ordering::Relaxed);
        self.violation(|| format!("engine {engine}: {id} names KV that was fetched before"));
    }

    fn reused(&self, name: GrantName) -> Fetch {
        self.reused.fetch_add(1, Ordering::Relaxed);
        self.violation(|| format!("spent params were used again: {name:?}"));
        Fetch::Loaded { right: false }
    }

    /// Have this D and P handed over since both were last started?
    pub fn met(&self, d: usize, d_incarnation: u32, p: usize) -> bool {
        let pair = self.met[d * self.books.len() + p].load(Ordering::Relaxed);
        let incarnation = lock(&self.books[p]).incarnation;
        pair == u64::from(d_incarnation) << 32 | u64::from(incarnation)
    }

    /// D tells P that it will not come.
    pub fn release(&self, name: GrantName) {
        let mut book = lock(&self.books[name.engine]);
        let place = name.number.wrapping_sub(book.base) as usize;
        if !book.alive || book.incarnation != name.incarnation {
            return;
        }
        if let Some(grant) = book.grants.get_mut(place)
            && grant.name == name.name
            && grant.state == State::Held
        {
            grant.state = State::Released;
            book.released += 1;
        }
    }

    /// Tokens whose KV the engine holds.
    pub fn held_tokens(&self, engine: usize, now: u64) -> u64 {
        let mut book = lock(&self.books[engine]);
        book.sweep(now);
        let held = book
            .grants
            .range(book.swept..)
            .filter(|g| g.state == State::Held);
        held.map(|g| u64::from(g.opening.tokens)).sum()
    }

    pub fn report(&self, now: u64) -> LedgerReport {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let mut report = LedgerReport {
            reused: load(&self.reused),
            malformed: load(&self.malformed),
            never_issued: load(&self.never_issued),
            wrong_prompt: load(&self.wrong_prompt),
            ..LedgerReport::default()
        };
        for book in &self.books {
            let mut book = lock(book);
            book.sweep(now);
            report.grants += book.opened;
            report.fetched += book.fetched;
            report.released += book.released;
            report.expired += book.expired;
            report.lost += book.lost;
            report.held_now += book.held();
        }
        let notes = lock(&self.notes);
        report.violations = notes.texts.clone();
        report.violation_count = notes.count;
        report
    }
}
