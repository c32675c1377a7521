//! A generate request that was accepted: what its KV turned out to be, and what it gives back.

use std::sync::atomic::Ordering;

use super::Engine;
use super::answer::push_text;
use super::ask::Ask;
use super::ec::Lens;
use super::error::ApiError;
use super::kv::{KvAsk, Source, push_params, push_request_id};
use super::lmcache::Lmcache;
use super::tie::{Kind, Tie};
use crate::cache::Blocks;
use crate::http::head::Head;
use crate::ledger::{Fetch, GrantName, Holds};
use crate::meeting::Decode;
use crate::options::{KvMode, LoadFailure, Role};
use crate::text::{detokenize, hash, mix, push_hex, stale, token_id};
use crate::world::add;

pub(crate) struct Job {
    pub ask: Ask,
    /// `cmpl-…` or `chatcmpl-…`.
    pub answer_id: Vec<u8>,
    /// Hash of `X-Request-Id`, 0 without one.
    pub request: u64,
    pub kv: KvAsk,
    pub created: u64,
    /// Prompts from this one on are decoded from the wrong KV.
    wrong_from: usize,
    /// Prompt tokens whose KV came from another engine.
    pub external: u64,
    /// `kv_transfer_params` of the answer, empty for null.
    pub params: Vec<u8>,
    /// `ec_transfer_params` of the answer, empty for null.
    pub ec: Vec<u8>,
    /// With `KvMode::Lmcache`.
    lmcache: Lmcache,
    /// With the dialects in which both engines are asked at once.
    pub tie: Tie,
    /// The whole blocks of its prompts; none where nothing is cached.
    blocks: Vec<Blocks>,
    /// From whose cache it may pull.
    source: Option<usize>,
    /// How much of the prompt must be in the store, and that it is not.
    threshold: f64,
    pub missed: bool,
    /// Prompt tokens that usage calls cached.
    pub cached: u64,
    /// What the tokens are drawn by besides the prompt; 0 for greedy ones.
    draw: u64,
    /// Its text begins without white space.
    pub trimmed: bool,
}

/// Reads and checks a generate request.
pub(crate) fn accept(
    engine: &Engine,
    head: &Head,
    input: &[u8],
    body: &[u8],
    chat: bool,
) -> Result<Job, ApiError> {
    let (world, options) = (&engine.world, engine.options());
    if let Some(what) = head.stray {
        // A real one serves it; that it came at all is a proxy's mistake.
        let ledger = &world.ledger;
        ledger.violation(|| format!("engine {}: it was sent {what}", engine.index));
    }
    if !head.json {
        return Err(ApiError {
            kind: "Bad Request",
            ..ApiError::body(
                "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            )
        });
    }
    let mut scratch = engine.scratch.borrow_mut();
    if let Err(invalid) = crate::json::object(body, &mut scratch.members) {
        let message = format!("JSON decode error: expected {}", invalid.what);
        return Err(ApiError::field(&invalid.at.to_string(), message));
    }
    let members = &scratch.members;
    let encoder = options.role == Role::Encode;
    if encoder && !chat {
        return Err(ApiError::body("an encoder takes chat requests only"));
    }
    let lens = match encoder {
        true => Lens {
            local_media: options.local_media,
            ..Lens::default()
        },
        // Elsewhere messages mean nothing.
        false if !chat => Lens::default(),
        false => super::ec::look(engine, head.text(input, head.rank), body, members)?,
    };
    let limits = (&*options.model, options.max_model_len);
    let caches =
        options.cached_details || matches!(options.kv, KvMode::Offloading | KvMode::SharedStorage);
    let keep_text = options.bidirectional || caches;
    let asked = super::ask::read(body, members, chat, limits, &lens, keep_text);
    let request_id = head.text(input, head.request_id);
    let mut ask = asked.map_err(|e| forgive(engine, e, body, members))?;
    let mut ec = Vec::new();
    if encoder {
        ec = super::ec::encode(engine, body, members)?;
        ask.max_tokens = 1;
    }
    let lmcache = match options.kv {
        KvMode::Lmcache => super::lmcache::read(engine, body, members, chat, &mut ask)?,
        _ => Lmcache::default(),
    };
    let blocks = match &ask.texts {
        Some(texts) if caches => {
            let all = ask.prompts.iter().zip(texts);
            all.map(|(prompt, text)| Blocks::of(text, prompt.media))
                .collect()
        }
        _ => Vec::new(),
    };
    let draw = match options.sampling {
        true => draw(engine, body, members),
        false => 0,
    };
    let params = ask.kv.map(|(from, to)| &body[from..to]);
    let (mut source, mut threshold) = (None, 0.0);
    let (tie, kv) = match (options.kv, params) {
        (KvMode::Nixl, Some(params)) => (Tie::None, super::kv::read(world, engine.index, params)?),
        (KvMode::Sglang, _) => super::sglang::read(engine, body, members, &mut ask)?,
        (KvMode::Mooncake, _) => {
            super::mooncake::read(engine, head.text(input, head.rank), params, &ask)?
        }
        (KvMode::Offloading, _) => {
            let none = Blocks::default();
            let first = blocks.first().unwrap_or(&none);
            let (tie, kv, from) = super::offloading::read(engine, params, &ask, first);
            source = from;
            (tie, kv)
        }
        (KvMode::SharedStorage, _) => {
            threshold = super::store::threshold(body, members)?;
            (Tie::None, KvAsk::Nothing)
        }
        _ => (Tie::None, KvAsk::Nothing),
    };
    if request_id.is_empty() && options.strict.request_id {
        world
            .ledger
            .violation(|| format!("engine {}: no X-Request-Id", engine.index));
    }
    Ok(Job {
        answer_id: answer_id(engine, request_id, chat),
        request: if request_id.is_empty() {
            0
        } else {
            hash(3, request_id)
        },
        kv,
        created: crate::clock::unix_seconds(),
        wrong_from: ask.prompts.len(),
        external: 0,
        params: Vec::new(),
        ec,
        lmcache,
        tie,
        blocks,
        source,
        threshold,
        missed: false,
        cached: 0,
        draw,
        trimmed: options.trimmed && ask.chat,
        ask,
    })
}

/// Greedy, by the request's seed, or by chance: then each engine and each request draws for itself.
fn draw(engine: &Engine, body: &[u8], members: &[crate::json::Member]) -> u64 {
    let given = |name: &[u8]| {
        let named = |m: &&crate::json::Member| &body[m.key.0 as usize..m.key.1 as usize] == name;
        let member = members.iter().rev().find(named)?;
        let value = &body[member.value.0 as usize..member.value.1 as usize];
        (value != b"null").then_some(value)
    };
    let number = |name| crate::json::lax_number(given(name)?);
    if number(b"temperature").is_some_and(|t| t < 1e-5) || number(b"top_k") == Some(1.0) {
        return 0;
    }
    let chance = || {
        let number = engine.shared().requests.load(Ordering::Relaxed);
        mix(engine.world.seed ^ (engine.index as u64) << 32, number)
    };
    given(b"seed")
        .map_or_else(chance, |seed| hash(5, seed))
        .max(1)
}

fn answer_id(engine: &Engine, request_id: &[u8], chat: bool) -> Vec<u8> {
    let mut id = Vec::with_capacity(48);
    id.extend_from_slice(if chat { b"chatcmpl-" } else { b"cmpl-" });
    // An id that could not stand in a JSON string as it is would have to be escaped everywhere.
    if request_id.is_empty()
        || request_id
            .iter()
            .any(|b| !b.is_ascii() || b"\"\\\t".contains(b))
    {
        let number = engine.shared().requests.load(Ordering::Relaxed);
        push_hex(
            &mut id,
            mix(engine.world.seed ^ engine.index as u64, number),
            16,
        );
    } else {
        id.extend_from_slice(request_id);
    }
    id
}

/// A request rejected by the engine proper (not for its form) has had its params seen: P is told.
fn forgive(
    engine: &Engine,
    error: ApiError,
    body: &[u8],
    members: &[crate::json::Member],
) -> ApiError {
    let kv = engine.options().kv;
    if error.before_engine || !matches!(kv, KvMode::Nixl | KvMode::Mooncake) {
        return error;
    }
    let named = members.iter().rev().find(|m| {
        &body[m.key.0 as usize..m.key.1 as usize] == b"kv_transfer_params"
            && body[m.value.0 as usize] == b'{'
    });
    if let Some(member) = named {
        let object = &body[member.value.0 as usize..member.value.1 as usize];
        if kv == KvMode::Mooncake {
            super::mooncake::reject(engine, object);
        } else if let Ok(KvAsk::Load(Source::Grant(grant))) =
            super::kv::read(&engine.world, engine.index, object)
        {
            abandon(engine, grant);
        }
    }
    error
}

/// D drops a request before it read P's KV. P hears of it only if the two have met.
pub(crate) fn abandon(engine: &Engine, grant: GrantName) {
    let ledger = &engine.world.ledger;
    if ledger.met(engine.index, engine.incarnation.get(), grant.engine) {
        ledger.release(grant);
    }
}

impl Job {
    /// The hash that the tokens of `choice` show, and the choice's number within its prompt.
    pub fn voice(&self, choice: u32) -> (u64, u32) {
        let prompt = (choice / self.ask.n) as usize;
        let hash = self.ask.prompts[prompt].hash;
        let hash = if prompt >= self.wrong_from {
            stale(hash)
        } else {
            hash
        };
        let hash = match self.draw {
            0 => hash,
            draw => mix(hash, draw),
        };
        (hash, choice % self.ask.n)
    }

    /// Tokens of `choice`, and whether it ends on EOS.
    pub fn length(&self, choice: u32) -> (u32, bool) {
        if self.missed {
            return (0, false);
        }
        self.ask
            .length(&self.ask.prompts[(choice / self.ask.n) as usize])
    }

    /// Tokens of `choice` that its prompt has already.
    pub fn lead(&self, choice: u32) -> u32 {
        self.ask.prompts[(choice / self.ask.n) as usize].lead
    }

    /// LMCache, caches, a store: looks for the prompt's KV before anything is computed.
    pub fn look(&mut self, engine: &Engine) {
        self.look_in_caches(engine);
        let Some(key) = self.lmcache.look.take() else {
            return;
        };
        if engine.shared().options.role == Role::Decode
            && engine
                .world
                .transfers
                .load(&engine.world, engine.index, key)
        {
            self.external = self.ask.prompt_tokens();
        }
    }

    /// Turns of a stream: one for each token of the longest choice; and one to say that there are none.
    pub fn rounds(&self) -> u32 {
        self.longest().max(u32::from(self.missed))
    }

    pub fn has_event(&self, choice: u32, index: u32) -> bool {
        self.missed || index < self.length(choice).0
    }

    pub fn finish_reason(&self, stopped: bool) -> &'static [u8] {
        match (self.missed, stopped) {
            (true, _) => b"\"cache_threshold\"",
            (_, true) => b"\"stop\"",
            _ => b"\"length\"",
        }
    }

    pub fn longest(&self) -> u32 {
        (0..self.ask.choices())
            .map(|c| self.length(c).0)
            .max()
            .unwrap_or(0)
    }

    /// Reads the KV that the params name.
    pub fn load(&mut self, engine: &Engine, source: Source, whole: bool) -> Result<(), ApiError> {
        let shared = engine.shared();
        let found = match source {
            Source::Unusable => Fetch::Dead,
            Source::Elsewhere => Fetch::Loaded { right: true },
            Source::Grant(grant) => {
                let request = shared
                    .options
                    .strict
                    .same_request_id
                    .then_some(self.request);
                let holds = match whole {
                    true => Holds::Prompt(self.ask.prompts[0].hash),
                    false => Holds::StartOf(self.ask.text().unwrap_or_default()),
                };
                let me = (engine.index, engine.incarnation.get());
                engine
                    .world
                    .ledger
                    .fetch(me, grant, holds, request, engine.world.now())
            }
        };
        let Fetch::Loaded { right } = found else {
            add(&shared.counters.failed_transfers, 1);
            if shared.options.load_failure == LoadFailure::Recompute {
                return Ok(());
            }
            return Err(load_failure());
        };
        add(&shared.counters.transfers, 1);
        self.external = self.ask.prompt_tokens();
        self.cached = self.external;
        if !right {
            self.wrong_from = 0;
        } else if self.ask.prompts.len() > 1 {
            // One grant holds one prompt's KV; the engine lets every prompt read it.
            self.wrong_from = 1;
            let index = engine.index;
            engine
                .world
                .ledger
                .violation(|| format!("engine {index}: a batch of prompts with one grant"));
        }
        Ok(())
    }

    /// The prompt is in this engine's KV: hold it for another if asked to.
    pub fn produce(&mut self, engine: &Engine) {
        if self.missed {
            return;
        }
        self.keep(engine);
        if self.tie.gives() {
            return self.give(engine);
        }
        let (shared, ledger) = (engine.shared(), &engine.world.ledger);
        if shared.options.kv == KvMode::Lmcache {
            let prompt = self.ask.prompts[0].hash;
            return self.lmcache.produce(engine, prompt, &mut self.params);
        }
        let asked = matches!(self.kv, KvAsk::Produce { .. });
        if !asked && !shared.options.bidirectional {
            return;
        }
        if asked && shared.options.role == Role::Decode {
            let index = engine.index;
            ledger.violation(|| format!("decode engine {index} was asked to hold KV for another"));
        }
        if asked && self.ask.stream {
            let index = engine.index;
            ledger.violation(|| format!("engine {index}: prefill asked with stream: no params"));
        }
        for choice in 0..self.ask.choices() {
            let (tokens, stopped) = self.length(choice);
            if !stopped || shared.options.kv_on_stop {
                self.grant(engine, choice, if asked { 0 } else { tokens });
            }
        }
        if asked && self.ask.stream {
            self.params.clear();
        }
    }

    fn grant(&mut self, engine: &Engine, choice: u32, more_tokens: u32) {
        let world = &engine.world;
        let now = world.now();
        let lease = engine.options().lease.as_nanos() as u64;
        let prompt = self.ask.prompts[(choice / self.ask.n) as usize];
        let tokens = prompt.tokens + more_tokens;
        let told = self.told(choice, more_tokens);
        let (params, answer_id) = (&mut self.params, &self.answer_id);
        let first = params.is_empty();
        let mut name = Vec::with_capacity(80);
        let opening = crate::ledger::Opening {
            // What was made of the wrong KV is wrong as well.
            prompt: match self.wrong_from {
                0 => stale(prompt.hash),
                _ => prompt.hash,
            },
            told,
            tokens,
            request: self.request,
            deadline: now + lease,
        };
        let number = world.ledger.open(engine.index, opening, now, |number| {
            push_request_id(&mut name, world, engine.index, answer_id, choice, number);
            hash(0, &name)
        });
        if first {
            params.reserve(512);
            push_params(
                params,
                world,
                engine.index,
                &engine.id.get(),
                &name,
                number,
                tokens,
            );
        }
    }

    /// The texts that a prompt may begin with for the KV of this answer to be its own: told on in text, or in
    /// token ids.
    fn told(&self, choice: u32, tokens: u32) -> Vec<Vec<u8>> {
        let Some(text) = self.ask.text().filter(|_| tokens > 0) else {
            return Vec::new();
        };
        let mut start = text.to_vec();
        if self.ask.chat {
            start.extend_from_slice(b"<|assistant|>");
        }
        let (hash, within) = self.voice(choice);
        let ids: Vec<u32> = (0..tokens).map(|i| token_id(hash, within, i)).collect();
        let mut in_ids = start.clone();
        in_ids.extend(detokenize(&ids).unwrap_or_default());
        push_text(&mut start, self, choice, 0, tokens);
        vec![start, in_ids]
    }

    /// Adds what was done to the engine's counters.
    pub fn count(&self, engine: &Engine) {
        let counters = &engine.shared().counters;
        add(&counters.external_tokens, self.external);
        add(
            &counters.local_tokens,
            self.ask.prompt_tokens() - self.external,
        );
        let tokens = (0..self.ask.choices())
            .map(|c| u64::from(self.length(c).0))
            .sum();
        add(&counters.generated, tokens);
    }
}

/// What a D says that got no KV and may not compute it.
pub(super) fn load_failure() -> ApiError {
    ApiError::internal(
        "Request failed due to KV load failure: the remote blocks could not be read.",
    )
}

impl Engine {
    /// Reads what a P holds, as that of this prompt.
    pub fn fetch(&self, grant: GrantName, prompt: u64, request: Option<u64>) -> Fetch {
        let me = (self.index, self.incarnation.get());
        let (ledger, now) = (&self.world.ledger, self.world.now());
        ledger.fetch(me, grant, Holds::Prompt(prompt), request, now)
    }
}

/// Caches, and hand-overs between two that are asked at once.
impl Job {
    /// What of the prompt is there already: in this engine, in the common store, at another engine.
    fn look_in_caches(&mut self, engine: &Engine) {
        let (world, options) = (&engine.world, engine.options());
        let own = &world.caches[engine.index];
        let (mut here, mut away, mut blocks) = (0, 0, 0);
        for of_prompt in &self.blocks {
            let local = own.hit(of_prompt);
            let stored = match (options.kv, self.source) {
                (KvMode::SharedStorage, _) => world.store.hit(of_prompt),
                (KvMode::Offloading, Some(peer)) => world.caches[peer].hit(of_prompt),
                _ => 0,
            };
            here += local;
            away += stored.saturating_sub(local);
            blocks += of_prompt.tokens();
        }
        let tokens = self.ask.prompt_tokens();
        self.cached = (here + away).min(tokens);
        if options.kv == KvMode::SharedStorage {
            let rate = self.cached as f64 / tokens.max(1) as f64;
            self.missed = self.threshold > 0.0 && rate < self.threshold;
        }
        if self.missed || blocks == 0 {
            return;
        }
        if away > 0 {
            self.external = away.min(tokens);
            add(&world.transfers.loaded, 1);
        }
        if options.kv == KvMode::SharedStorage
            && options.role == Role::Decode
            && here + away < blocks
        {
            add(&world.transfers.recomputed, 1);
        }
    }

    /// It has the KV of its prompts now, however it came by it.
    fn keep(&self, engine: &Engine) {
        let (world, options) = (&engine.world, engine.options());
        for blocks in &self.blocks {
            world.caches[engine.index].put(blocks);
            if options.kv == KvMode::SharedStorage {
                world.store.put(blocks);
            }
        }
        let stores = options.kv == KvMode::SharedStorage && options.role == Role::Prefill;
        if stores && self.blocks.iter().any(|blocks| !blocks.0.is_empty()) {
            add(&world.transfers.pushes, 1);
        }
    }

    /// Prompt `index` is to be read from this grant.
    pub fn fetch(&self, engine: &Engine, index: usize, grant: GrantName) -> Fetch {
        let strict = engine.options().strict.same_request_id;
        let request = strict.then_some(self.request);
        engine.fetch(grant, self.ask.prompts[index].hash, request)
    }

    /// It was, rightly or wrongly.
    pub fn loaded(&mut self, engine: &Engine, index: usize, right: bool) {
        add(&engine.shared().counters.transfers, 1);
        let whole = u64::from(self.ask.prompts[index].tokens);
        self.external += match self.blocks.get(index) {
            // Only whole blocks travel.
            Some(blocks) if engine.options().kv == KvMode::Offloading => blocks.tokens(),
            _ => whole,
        };
        self.external = self.external.min(self.ask.prompt_tokens());
        self.cached = self.cached.max(self.external);
        if engine.options().kv == KvMode::Offloading {
            add(&engine.world.transfers.loaded, 1);
        }
        if !right {
            self.wrong_from = self.wrong_from.min(index);
        } else if engine.options().kv == KvMode::Mooncake && self.ask.prompts.len() > 1 {
            // What the others read is the first one's.
            self.wrong_from = self.wrong_from.min(1);
        }
    }

    /// P has what D comes for.
    fn give(&mut self, engine: &Engine) {
        let Tie::Give(kind, seats) = &mut self.tie else {
            return;
        };
        // Mooncake keeps nothing of an answer that did not end at its limit.
        let stopped = {
            let (prompts, ask) = (&self.ask.prompts, &self.ask);
            prompts.iter().any(|prompt| ask.length(prompt).1)
        };
        if *kind == Kind::Mooncake && stopped {
            seats.clear();
            return;
        }
        let (world, now) = (&engine.world, engine.world.now());
        let lease = engine.options().lease.as_nanos() as u64;
        for (seat, prompt) in seats.iter_mut().zip(&self.ask.prompts) {
            if seat.given() {
                continue;
            }
            let opening = crate::ledger::Opening {
                prompt: prompt.hash,
                told: Vec::new(),
                tokens: prompt.tokens,
                request: self.request,
                deadline: now.saturating_add(lease),
            };
            let name = hash(0, &seat.name.text);
            let number = world.ledger.open(engine.index, opening, now, |_| name);
            let grant = GrantName {
                engine: engine.index,
                incarnation: engine.incarnation.get(),
                number,
                name,
            };
            if seat.ready(grant) == Decode::Left {
                // D has said that it does not come.
                world.ledger.release(grant);
            }
        }
    }
}
