//! What ties a request to one at another engine, where both are asked side by side: P gives, D takes, and each may
//! have to wait for the other. How they are named is each dialect's own: `sglang`, `mooncake`, `offloading`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Engine;
use super::error::ApiError;
use super::job::Job;
use crate::http::respond::{End, Responder};
use crate::ledger::{Fetch, GrantName};
use crate::meeting::{Decode, Name, Prefill, Seat};
use crate::options::LoadFailure;
use crate::world::{World, add};

/// How often one who waits looks again.
const LOOK: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sglang,
    Mooncake,
    Offloading,
}

#[derive(Default)]
pub(crate) enum Tie {
    #[default]
    None,
    /// P: D comes for what it computes. One seat for each prompt.
    Give(Kind, Vec<Seat>),
    /// D: it comes for what P computes.
    Take(Kind, Vec<Seat>),
    /// D: what it was told leads nowhere, and it finds out at once or when its patience ends.
    Lost(Kind, Lost),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    AtOnce,
    InTheEnd,
}

/// What one who waits for P sees.
enum Came {
    Ready(GrantName),
    Failed,
    Dead,
    Late,
}

impl Tie {
    /// Does its request have to wait for another engine's?
    pub fn waits(&self) -> bool {
        !matches!(
            self,
            Tie::None | Tie::Give(Kind::Mooncake | Kind::Offloading, _)
        )
    }

    pub fn gives(&self) -> bool {
        matches!(self, Tie::Give(..))
    }
}

/// The engine whose bootstrap server or peer is at this place.
pub(crate) fn whose(world: &World, me: usize, host: &str, port: u16) -> Option<usize> {
    let kind = world.engines[me].options.kv;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    world.engines.iter().position(|engine| {
        engine.side.is_some_and(|side| {
            let here = side.ip().is_loopback() && host == "localhost";
            engine.options.kv == kind
                && side.port() == port
                && (here || side.ip().to_string() == host)
        })
    })
}

/// The name of a meeting at this P as it is now.
pub(crate) fn name(world: &World, prefill: usize, text: Vec<u8>) -> Name {
    let incarnation = &world.engines[prefill].incarnation;
    Name {
        prefill,
        incarnation: incarnation.load(std::sync::atomic::Ordering::Acquire),
        text,
    }
}

/// Waits for P. Not every D learns of it when P fails, or dies.
async fn prefill(seat: &Seat, until: Instant, kind: Kind) -> Came {
    loop {
        match seat.look().prefill {
            Prefill::Ready(grant) => return Came::Ready(grant),
            Prefill::Failed if kind == Kind::Sglang => return Came::Failed,
            _ => {}
        }
        if kind != Kind::Mooncake && seat.dead() {
            return Came::Dead;
        }
        if Instant::now() >= until {
            return Came::Late;
        }
        monoio::time::sleep(LOOK).await;
    }
}

/// Waits until D is no longer in state `from`, or the time is over.
async fn decode(seat: &Seat, from: Decode, until: Instant) -> Decode {
    loop {
        let now = seat.look().decode;
        if now != from || Instant::now() >= until {
            return now;
        }
        monoio::time::sleep(LOOK).await;
    }
}

/// D: comes for what P has. `Err` within: what the client is told.
pub(crate) async fn take(
    engine: &Rc<Engine>,
    to: &mut Responder<'_>,
    job: &mut Job,
) -> Result<Result<(), ApiError>, End> {
    let until = Instant::now() + engine.options().patience;
    let (kind, mut seats) = match std::mem::take(&mut job.tie) {
        Tie::Take(kind, seats) => (kind, seats),
        Tie::Lost(kind, lost) => {
            if lost == Lost::InTheEnd {
                let wait = monoio::time::sleep_until(until.into());
                to.link.unless_gone(wait).await?;
            }
            return Ok(failed(engine, job, kind, Came::Failed, None));
        }
        other => {
            job.tie = other;
            return Ok(Ok(()));
        }
    };
    for index in 0..seats.len() {
        let came = prefill(&seats[index], until, kind);
        let came = match to.link.unless_gone(came).await {
            Ok(came) => came,
            Err(gone) => {
                if kind != Kind::Sglang {
                    goes_on(engine, job, kind, seats.swap_remove(index), until);
                }
                return Err(gone.into());
            }
        };
        let Came::Ready(grant) = came else {
            if matches!(came, Came::Late) {
                engine.world.meetings.missed();
            }
            return Ok(failed(engine, job, kind, came, seats.get(index)));
        };
        let found = job.fetch(engine, index, grant);
        seats[index].took();
        match found {
            Fetch::Loaded { right } if right || kind != Kind::Offloading => {
                job.loaded(engine, index, right);
            }
            _ => return Ok(failed(engine, job, kind, Came::Dead, seats.get(index))),
        }
    }
    Ok(Ok(()))
}

/// A D whose client has left lets a transfer that was begun come to its end, and so frees P's KV.
fn goes_on(engine: &Rc<Engine>, job: &Job, kind: Kind, mut seat: Seat, until: Instant) {
    let (engine, incarnation) = (engine.clone(), engine.incarnation.get());
    let prompt = job.ask.prompts[0].hash;
    monoio::spawn(async move {
        let came = prefill(&seat, until, kind).await;
        if let Came::Ready(grant) = came
            && engine.incarnation.get() == incarnation
        {
            engine.fetch(grant, prompt, None);
            seat.took();
        }
    });
}

/// D got nothing: an error, or it computes the prompt itself.
fn failed(
    engine: &Engine,
    job: &Job,
    kind: Kind,
    came: Came,
    seat: Option<&Seat>,
) -> Result<(), ApiError> {
    let shared = engine.shared();
    add(&shared.counters.failed_transfers, 1);
    let recompute = match kind {
        // A failed pull is a miss to its cache.
        Kind::Offloading => true,
        Kind::Mooncake => shared.options.load_failure == LoadFailure::Recompute,
        Kind::Sglang => false,
    };
    if recompute {
        add(&engine.world.transfers.recomputed, 1);
        return Ok(());
    }
    if kind == Kind::Mooncake {
        return Err(super::job::load_failure());
    }
    let rid = String::from_utf8_lossy(&job.answer_id).into_owned();
    let Some(seat) = seat else {
        return Err(ApiError::sglang(format!(
            "Decode handshake failed for request rank=0 decode_req.req.rid='{rid}' with exception \
             Could not fetch prefill parallel info from its bootstrap_addr"
        )));
    };
    let room = String::from_utf8_lossy(&seat.name.text).into_owned();
    let why = match came {
        Came::Late => {
            let s = shared.options.patience.as_secs_f64();
            format!("Request {room} timed out after {s:.1}s in KVPoll.WaitingForInput")
        }
        Came::Dead => "Lost connection with prefill instance".into(),
        _ => "Aborted by AbortReq.".into(),
    };
    Err(ApiError::sglang(format!(
        "Decode transfer failed for request rank=0 decode_req.req.rid='{rid}' with exception \
         KVTransferError(bootstrap_room={room}): {why}"
    )))
}

/// P of SGLang's begins when D has said where it wants the KV.
pub(crate) async fn joined(
    engine: &Engine,
    to: &mut Responder<'_>,
    job: &Job,
) -> Result<Result<(), ApiError>, End> {
    let Tie::Give(Kind::Sglang, seats) = &job.tie else {
        return Ok(Ok(()));
    };
    let until = Instant::now() + engine.options().patience;
    for seat in seats {
        let now = to.link.unless_gone(decode(seat, Decode::Away, until));
        match now.await? {
            Decode::Waiting => {}
            Decode::Away => {
                engine.world.meetings.missed();
                let s = engine.options().patience.as_secs_f64();
                let why = format!("timed out after {s:.1}s in KVPoll.Bootstrapping");
                return Ok(Err(unsent(job, seat, &why)));
            }
            _ => return Ok(Err(unsent(job, seat, "was aborted by decode"))),
        }
    }
    Ok(Ok(()))
}

/// P of SGLang's answers when D has the KV.
pub(crate) async fn handed(
    engine: &Engine,
    to: &mut Responder<'_>,
    job: &mut Job,
) -> Result<Result<(), ApiError>, End> {
    if !matches!(job.tie, Tie::Give(Kind::Sglang, _)) {
        return Ok(Ok(()));
    }
    job.produce(engine);
    let Tie::Give(_, seats) = &job.tie else {
        return Ok(Ok(()));
    };
    let until = Instant::now() + engine.options().patience;
    for seat in seats {
        let now = to.link.unless_gone(decode(seat, Decode::Waiting, until));
        if now.await? != Decode::Took {
            return Ok(Err(unsent(job, seat, "was aborted by decode")));
        }
    }
    Ok(Ok(()))
}

fn unsent(job: &Job, seat: &Seat, why: &str) -> ApiError {
    let rid = String::from_utf8_lossy(&job.answer_id).into_owned();
    let room = String::from_utf8_lossy(&seat.name.text).into_owned();
    ApiError::sglang(format!(
        "Prefill bootstrap failed for request rank=0 req.rid='{rid}' req.bootstrap_room={room} with exception \
         KVTransferError(bootstrap_room={room}): Request {room} {why}"
    ))
}
