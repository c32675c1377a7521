//! Requests that cannot be answered in the turn that read them: they wait, stream, have an odd
//! shape, or fail on purpose.

use std::rc::Rc;

use super::Engine;
use super::answer::push_answer;
use super::error::ApiError;
use super::job::{Job, abandon};
use super::kv::{KvAsk, Source};
use super::stream::{done, error_event, push_event, push_final_usage, push_role};
use super::tie;
use crate::fault::{Fault, Shape};
use crate::http::respond::{End, Responder};
use crate::http::wire::{JSON, SSE};
use crate::link::Link;
use crate::options::KvMode;
use crate::transcript::Entry;
use crate::world::Counters;

/// An answer that is known already.
pub(crate) struct Fixed {
    pub status: u16,
    pub content_type: &'static str,
    /// Whole header lines.
    pub extra: String,
    pub body: Vec<u8>,
}

pub(crate) enum What {
    Fixed(Fixed),
    Generate(Box<Job>),
}

pub(crate) struct Slow {
    pub what: What,
    pub shape: Shape,
    pub fault: Option<Fault>,
    pub head_only: bool,
    pub keep: bool,
}

/// Answers; gives the status and whether the connection can go on.
pub(crate) async fn run(
    engine: &Rc<Engine>,
    link: &mut Link,
    slow: Slow,
    entry: Option<Entry<'_>>,
) -> Result<(u16, bool), End> {
    let mut to = Responder::new(link, slow.shape, slow.fault);
    to.head_only = slow.head_only;
    to.keep = slow.keep;
    to.entry = entry;
    match slow.fault {
        Some(fault @ Fault::Refuse) => return Err(End::Reset(fault.name())),
        Some(fault @ Fault::AcceptThenClose) => return Err(End::Fin(fault.name())),
        Some(Fault::HangBeforeHead) => {
            to.link.until_gone().await;
            return Err(End::ClientLeft);
        }
        _ => {}
    }
    match slow.what {
        What::Fixed(fixed) => {
            to.answer(fixed.status, fixed.content_type, &fixed.extra, &fixed.body)
                .await?;
            Ok((fixed.status, to.keep))
        }
        What::Generate(job) => generate(engine, &mut to, job).await.map(|s| (s, to.keep)),
    }
}

/// A counter that is one higher while this lives.
struct Gauge<'a>(&'a std::sync::atomic::AtomicU64);

impl<'a> Gauge<'a> {
    fn new(cell: &'a std::sync::atomic::AtomicU64) -> Gauge<'a> {
        cell.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Gauge(cell)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

async fn generate(
    engine: &Rc<Engine>,
    to: &mut Responder<'_>,
    mut job: Box<Job>,
) -> Result<u16, End> {
    let counters: &Counters = &engine.shared().counters;
    let running = Gauge::new(&counters.running);
    if matches!(job.kv, KvAsk::HangAndDie) {
        to.link.until_gone().await;
        engine.die();
        return Err(End::ClientLeft);
    }
    // As with any ASGI server the head goes out before the engine has done a thing; but SGLang's waits for the
    // first chunk.
    let begins_late = engine.options().kv == KvMode::Sglang;
    let mut begun = job.ask.stream && !begins_late;
    if begun {
        to.begin(SSE).await?;
    }
    job.look(engine);
    let mut loaded = match job.kv {
        KvAsk::Load(source) => load(engine, to, &mut job, source, true).await?,
        KvAsk::Produce { load: Some(source) } => load(engine, to, &mut job, source, false).await?,
        _ => tie::take(engine, to, &mut job).await?,
    };
    if loaded.is_ok() {
        loaded = tie::joined(engine, to, &job).await?;
    }
    if let Err(error) = loaded {
        return fail(to, &job, begun, &error).await;
    }
    let mut job = prefill(engine, to, job).await?;
    job.count(engine);
    if let Err(error) = tie::handed(engine, to, &mut job).await? {
        return fail(to, &job, begun, &error).await;
    }
    if job.ask.stream && !std::mem::replace(&mut begun, true) {
        to.begin(SSE).await?;
    }
    drop(running);
    let _running = Gauge::new(&counters.running);
    if job.ask.stream {
        stream(engine, to, &mut job).await?;
    } else {
        decode(engine, to, &mut job).await?;
    }
    Ok(200)
}

/// The read of another engine's KV, after the time it takes. A client that leaves before gives the
/// KV back, if the two engines know each other.
async fn load(
    engine: &Rc<Engine>,
    to: &mut Responder<'_>,
    job: &mut Job,
    source: Source,
    whole: bool,
) -> Result<Result<(), ApiError>, End> {
    if let Source::Grant(grant) = source {
        let options = engine.options();
        let ledger = &engine.world.ledger;
        let met = ledger.met(engine.index, engine.incarnation.get(), grant.engine);
        let first = if met {
            std::time::Duration::ZERO
        } else {
            options.first_contact_delay
        };
        let delay = options.fetch_delay + first;
        if !delay.is_zero()
            && to
                .link
                .unless_gone(monoio::time::sleep(delay))
                .await
                .is_err()
        {
            abandon(engine, grant);
            return Err(End::ClientLeft);
        }
    }
    Ok(job.load(engine, source, whole))
}

/// `begun`: the head of a stream is out.
async fn fail(
    to: &mut Responder<'_>,
    job: &Job,
    begun: bool,
    error: &ApiError,
) -> Result<u16, End> {
    if !begun {
        let mut body = Vec::new();
        error.push_json(&mut body);
        to.answer(error.status, JSON, "", &body).await?;
        return Ok(error.status);
    }
    to.piece(&error_event(error)).await?;
    end(to, job).await?;
    to.finish().await?;
    Ok(200)
}

/// Prefills what was not loaded. Near its end a prefill can no longer be called off: it completes,
/// and what it was to hand over is held with nobody to come for it.
async fn prefill(
    engine: &Rc<Engine>,
    to: &mut Responder<'_>,
    mut job: Box<Job>,
) -> Result<Box<Job>, End> {
    let tokens = match job.missed {
        true => 0,
        false => job.ask.prompt_tokens() - job.external,
    };
    let Some(place) = engine.prefill.enter(tokens) else {
        return Ok(job);
    };
    let waiting = Gauge::new(&engine.shared().counters.waiting);
    if to.link.unless_gone(place.done()).await.is_err() {
        let gives = matches!(job.kv, KvAsk::Produce { .. }) || job.tie.gives();
        if !place.abortable() && gives {
            let (engine, incarnation) = (engine.clone(), engine.incarnation.get());
            monoio::spawn(async move {
                place.done().await;
                if engine.incarnation.get() == incarnation {
                    job.produce(&engine);
                }
            });
        }
        return Err(End::ClientLeft);
    }
    drop(waiting);
    Ok(job)
}

/// Takes the job's seat among the running sequences, if decoding takes time and ticks are needed.
async fn sit(
    engine: &Rc<Engine>,
    to: &mut Responder<'_>,
    job: &Job,
) -> Result<Option<super::schedule::Seat>, End> {
    if job.longest() <= free_tokens(job) {
        return Ok(None);
    }
    let Some(mut seat) = engine.decode.enter(job.ask.choices()) else {
        return Ok(None);
    };
    let phase = (job.voice(0).0 >> 40) as f64 / f64::from(1 << 24);
    to.link.unless_gone(seat.sit(phase)).await?;
    Ok(Some(seat))
}

/// Tokens that need no tick: prefill gives the first one.
fn free_tokens(job: &Job) -> u32 {
    u32::from(job.external == 0)
}

async fn decode(engine: &Rc<Engine>, to: &mut Responder<'_>, job: &mut Job) -> Result<(), End> {
    if let Some(seat) = sit(engine, to, job).await? {
        for _ in free_tokens(job)..job.longest() {
            to.link.unless_gone(seat.tick()).await?;
        }
    }
    job.produce(engine);
    let mut body = Vec::with_capacity(1024);
    push_answer(&mut body, engine, job);
    to.answer(200, JSON, "", &body).await
}

async fn stream(engine: &Rc<Engine>, to: &mut Responder<'_>, job: &mut Job) -> Result<(), End> {
    let seat = sit(engine, to, job).await?;
    let mut event = Vec::with_capacity(512);
    let rounds = job.rounds();
    for index in 0..rounds {
        if let Some(seat) = &seat
            && index >= free_tokens(job)
        {
            to.link.unless_gone(seat.tick()).await?;
        }
        if index + 1 == rounds {
            job.produce(engine);
        }
        for choice in 0..job.ask.choices() {
            if index == 0 && job.ask.chat {
                event.clear();
                push_role(&mut event, engine, job, choice);
                to.piece(&event).await?;
            }
            if job.has_event(choice, index) {
                event.clear();
                push_event(&mut event, engine, job, choice, index);
                to.piece(&event).await?;
            }
        }
        to.flush().await?;
    }
    drop(seat);
    event.clear();
    push_final_usage(&mut event, engine, job);
    if !event.is_empty() {
        to.piece(&event).await?;
    }
    end(to, job).await?;
    to.finish().await
}

async fn end(to: &mut Responder<'_>, job: &Job) -> Result<(), End> {
    match done(job) {
        [] => Ok(()),
        done => to.piece(done).await,
    }
}
