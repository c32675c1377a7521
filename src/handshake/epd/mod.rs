//! Encoder disaggregation (vLLM's `disagg_epd_proxy.py`, v1 to v3): media are encoded by engines of their own,
//! then another handshake goes on with what came of it.
//!
//! * **For:** finding media, sharing them out among the encoders, and putting what these say into the body
//!   that the inner handshake's legs are made of (`exchange/overlay.rs`).
//! * **Must never:** open what a media url names (a `file://` least of all), know the inner handshake, or copy
//!   a medium.
//! * **To extend:** a version is an arm in [`Rules`]; what a newer encoder reports is read in `report.rs`, and
//!   put into the body in `rewrite.rs`.
//!
//! ```text
//!  client      proxy          E[0]     E[1]        P            D
//!    |--req------>|--media 0--->|        |         |            |
//!    |            |--media 1------------>|         |            |
//!    |            |<--handle----|        |         |            |
//!    |            |<--handle-------------|         |            |
//!    |            |--req, references in place of media (then:)->|
//!    |            |             |        |<==fetch=|            |
//!    |<==tokens===|<============================================|
//! ```
//!
//! * Encoders take turns, in configured order; those that are down or have failed this request are left out.
//! * All encoders are awaited, and judged in the order of the media.
//! * A request without media, and every request that is no chat and no response, goes straight to the inner handshake.
//! * With several data-parallel ranks, or where encoders push (Mooncake), whoever takes the encodings is
//!   chosen first, and stays.

mod fan;
mod report;
mod responses;
mod rewrite;

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::config::epd::{Epd as Settings, Version};
use crate::config::{Config, Role, Surface};
use crate::error::{Error, Kind, Stage};
use crate::exchange::join;
use crate::exchange::notice::NoticeSocket;
use crate::exchange::overlay::Overlay;
use crate::exchange::shape;
use crate::exchange::{Exchange, Reply, Request, Stop, Tools};
use crate::wire::json::Object;
use crate::wire::media::{self, Item};

use super::{Conversations, Handshake, Running, Spec, find};
use fan::{Batch, Push};

pub const SPEC: Spec = Spec {
    name: "epd",
    about: "encoders for media first, then another handshake",
    needs: &[Role::Encode],
    build: |config| Ok(Box::new(Epd::new(config)?)),
};

/// What differs between the versions.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// Encoders are asked for one token.
    one_token: bool,
    /// Videos are media, too; images are encoded in batches; turns go on from one request to the next; what
    /// encoders report is read.
    newer: bool,
    /// A client's own name of an item counts.
    given_names: bool,
    /// Audio is rewritten only if all items can be.
    audio_whole: bool,
}

impl Rules {
    const fn of(version: Version) -> Rules {
        let newer = !matches!(version, Version::V1);
        let newest = matches!(version, Version::V3);
        Rules {
            one_token: !newer,
            newer,
            given_names: newest,
            audio_whole: newest,
        }
    }
}

struct Epd {
    settings: Settings,
    rules: Rules,
    /// The configured inner handshake. `None`: aggregated instances where there are any, else nixl.
    then: Option<Box<dyn Handshake>>,
    aggregated: Box<dyn Handshake>,
    nixl: Box<dyn Handshake>,
    needs: Vec<Role>,
    /// Whose turn it is, of all requests.
    turn: AtomicUsize,
}

impl Handshake for Epd {
    fn run<'a>(&'a self, x: &'a Exchange, reply: &'a mut Reply) -> Running<'a> {
        Box::pin(async move {
            x.request().lay(None);
            x.unpin_all();
            // Boxed: a stream rests in the inner script.
            Box::pin(self.encode(x)).await?;
            match responses::alone(&x.request()) {
                true => responses::to_decode(x, reply).await,
                false => self.inner(x).run(x, reply).await,
            }
        })
    }

    fn needs(&self) -> Option<Vec<Role>> {
        Some(self.needs.clone())
    }

    fn conversations(&self, tools: &Rc<Tools>) -> Option<Conversations> {
        self.then.as_ref()?.conversations(tools)
    }

    fn notices(&self) -> Option<&NoticeSocket> {
        self.then.as_ref()?.notices()
    }

    fn serves_aggregated(&self) -> bool {
        true
    }
}

impl Epd {
    fn new(config: &Config) -> io::Result<Epd> {
        let settings = config.epd.clone();
        let spec = |name: &str| {
            let known = find(name).filter(|spec| spec.name != SPEC.name);
            known.ok_or_else(|| io::Error::other(format!("unknown handshake {name} in epd.then")))
        };
        let build = |name: &str| (spec(name)?.build)(config);
        let there = |role| config.instances.iter().any(|one| one.role == role);
        let inner = match &settings.then {
            Some(name) => name.as_str(),
            None if there(Role::Aggregated) => "aggregated",
            None => "nixl",
        };
        let mut needs = spec(inner)?.needs.to_vec();
        if !settings.dynamic_registration {
            needs.push(Role::Encode);
        }
        Ok(Epd {
            then: settings.then.as_deref().map(build).transpose()?,
            aggregated: build("aggregated")?,
            nixl: build("nixl")?,
            rules: Rules::of(settings.version),
            settings,
            needs,
            turn: AtomicUsize::new(0),
        })
    }

    fn inner(&self, x: &Exchange) -> &dyn Handshake {
        match &self.then {
            Some(then) => &**then,
            None if !x.members_now(Role::Aggregated).is_empty() => &*self.aggregated,
            None => &*self.nixl,
        }
    }

    async fn encode(&self, x: &Exchange) -> Result<(), Stop> {
        let request = x.request();
        let mut overlay = Overlay::default();
        let items = self.media(&request)?;
        if self.settings.dynamic_registration {
            staffed(x, !items.is_empty())?;
        }
        let push = consumer(x, &mut overlay)?;
        if !items.is_empty() {
            x.trace.stage.set(Stage::Encode);
            let began = Instant::now();
            self.fill(x, &request, &items, push, &mut overlay).await?;
            x.trace.encode.set(Some(began.elapsed()));
        }
        if !overlay.is_empty() {
            request.lay(Some(overlay));
        }
        Ok(())
    }

    fn media(&self, request: &Request) -> Result<Vec<Item>, Stop> {
        let body = request.body();
        let mut items = if request.path().ends_with("/chat/completions") {
            let messages = request.object.range(body, "messages");
            messages.map_or(Vec::new(), |messages| media::items(body, messages))
        } else if responses::is(request) {
            let input = request.object.range(body, "input");
            input.map_or(Vec::new(), |input| media::input_items(body, input))
        } else {
            // Other endpoints ignore messages.
            Vec::new()
        };
        if !self.rules.newer {
            items.retain(|item| item.kind != media::Kind::Video);
        }
        let most = self.settings.media_max;
        if items.len() > most {
            let n = items.len();
            let what = format!("the request has {n} media items; epd.media_max allows {most}");
            return Err(Error::new(Kind::BadRequest, Stage::Encode, what).into());
        }
        Ok(items)
    }

    /// Has the items encoded, and notes what is to change in the body.
    async fn fill(
        &self,
        x: &Exchange,
        request: &Request,
        items: &[Item],
        push: Option<Push>,
        overlay: &mut Overlay,
    ) -> Result<(), Stop> {
        let crew = x.crew(Role::Encode);
        if crew.is_empty() {
            return Err(x.nobody(Role::Encode).into());
        }
        let names = self.names(request, items).await;
        let base = match self.rules.newer {
            true => self.turn.fetch_add(items.len(), Ordering::Relaxed),
            false => 0,
        };
        let most = match self.rules.newer {
            true => self.settings.encoder_batch_max,
            false => 1,
        };
        let batches = fan::batches(items, base, crew.len(), most);
        let ids = push.as_ref().map(|_| fan::transfer_ids(x, items.len()));
        let branches: Vec<Exchange> = batches.iter().map(|_| x.branch()).collect();
        let sent = batches.iter().zip(&branches).map(|(batch, branch)| {
            let to = push.as_ref().zip(ids.as_deref());
            let leg = fan::leg(request, items, batch, &names, to, self.rules.one_token);
            let leg = fan::named(x, leg, batch);
            let picked = branch.pick_this(&crew[batch.encoder]);
            let work: Pin<Box<dyn Future<Output = _>>> = Box::pin(branch.call(picked, leg));
            work
        });
        let answers = join::all(sent.collect()).await;
        x.trace.note_encoders(&branches);
        let mut reported = Vec::new();
        for (branch, result) in branches.iter().zip(answers) {
            x.avoid.borrow_mut().extend(branch.avoid.take());
            reported.push(result.map_err(|stop| told(x, stop)));
        }
        let answers: Vec<_> = reported.into_iter().collect::<Result<_, _>>()?;
        if !self.rules.newer {
            return Ok(());
        }
        let found = self.read(request, items, &names, &batches, &answers, ids.is_some())?;
        let ids = ids.unwrap_or_default();
        let how = self.how(request);
        rewrite::put(request, items, &names, &found, &ids, &how, overlay);
        Ok(())
    }

    /// Are media replaced by references? Not where there are none (`responses.rs`).
    fn refers(&self, request: &Request) -> bool {
        self.settings.rewrite && !responses::is(request)
    }

    fn how(&self, request: &Request) -> rewrite::How {
        rewrite::How {
            references: self.refers(request),
            audio_whole: self.rules.audio_whole,
        }
    }

    /// What each item is called. None in the first version, and where media go on as they came.
    async fn names(&self, request: &Request, items: &[Item]) -> Vec<Option<String>> {
        let mut names = vec![None; items.len()];
        if !self.rules.newer || !self.refers(request) {
            return names;
        }
        for (name, item) in names.iter_mut().zip(items) {
            let given = item
                .given(request.body())
                .filter(|_| self.rules.given_names);
            *name = Some(match given {
                Some(given) => String::from_utf8_lossy(&given).into_owned(),
                None => fan::digest(request.body(), item).await,
            });
        }
        names
    }

    /// What the encoders have said, and which of it is about which item.
    fn read(
        &self,
        request: &Request,
        items: &[Item],
        names: &[Option<String>],
        batches: &[Batch],
        answers: &[crate::exchange::Answer],
        pushed: bool,
    ) -> Result<rewrite::Found, Stop> {
        let mut found = rewrite::Found {
            entries: Vec::new(),
            of_item: vec![None; items.len()],
        };
        let sound = with_sound(request);
        for (batch, answer) in batches.iter().zip(answers) {
            let params = answer.field("ec_transfer_params").unwrap_or_default();
            let entries = report::entries(params);
            let sent: Vec<report::Sent> = (batch.items.iter())
                .map(|i| report::Sent {
                    item: &items[*i],
                    uuid: names[*i].as_deref(),
                    with_sound: sound && self.rules.audio_whole,
                })
                .collect();
            let first = found.entries.len();
            if self.refers(request) || pushed {
                let places = report::matched(&sent, &entries)
                    .map_err(|what| Error::new(Kind::BadResponse, Stage::Encode, what))?;
                for (i, place) in batch.items.iter().zip(places) {
                    found.of_item[*i] = place.map(|place| first + place);
                }
            }
            found.entries.extend(entries);
        }
        Ok(found)
    }
}

/// Does the client want the sound of its videos?
fn with_sound(request: &Request) -> bool {
    let kwargs = request.object.get(request.body(), "mm_processor_kwargs");
    kwargs.is_some_and(|kwargs| {
        let object = Object::scan(kwargs, usize::MAX).ok();
        object.and_then(|object| object.get(kwargs, "use_audio_in_video")) == Some(b"true")
    })
}

/// Is there somebody for each stage? Asked before anybody has worked for nothing.
fn staffed(x: &Exchange, media: bool) -> Result<(), Stop> {
    let whole = !x.members_now(Role::Aggregated).is_empty();
    let needed: &[Role] = match whole {
        true => &[Role::Aggregated],
        false => &[Role::Decode, Role::Prefill],
    };
    let encode = media.then_some(Role::Encode);
    let empty = |role: &Role| x.members_now(*role).is_empty();
    match needed.iter().copied().chain(encode).find(empty) {
        Some(role) => Err(x.nobody(role).into()),
        None => Ok(()),
    }
}

/// Chooses who takes the encodings, where that must be known before: P, or who does both.
fn consumer(x: &Exchange, overlay: &mut Overlay) -> Result<Option<Push>, Stop> {
    let there = |role| {
        x.members_now(role)
            .iter()
            .any(|one| !one.consumer.is_plain())
    };
    let Some(role) = [Role::Prefill, Role::Aggregated]
        .into_iter()
        .find(|role| there(*role))
    else {
        return Ok(None);
    };
    let picked = x.pick(role)?;
    let instance = picked.instance();
    x.pin(instance);
    let consumer = &instance.consumer;
    let rank = instance.rank_turn.fetch_add(1, Ordering::Relaxed) % consumer.dp_size.max(1);
    if consumer.dp_size > 1 {
        let value = rank.to_string().into_bytes();
        overlay.fields.push((role, "x-data-parallel-rank", value));
    }
    let address = consumer.addresses.get(rank as usize);
    Ok(address.map(|address| Push {
        address: address.clone(),
    }))
}

/// An encoder's failure in the words of the surface; its status stays, if it is one.
fn told(x: &Exchange, stop: Stop) -> Stop {
    let words = |what: &str| format!("Encoder request failed: {what}");
    let reword = |error: Error| match error.kind {
        Kind::ClientGone | Kind::NoInstance | Kind::Draining => error,
        _ => Error {
            cause: words(&error.to_string()).into(),
            instance: None,
            ..error
        },
    };
    match stop {
        Stop::Answer(answer) if x.config.surface == Surface::Epd => {
            let text = String::from_utf8_lossy(answer.body());
            // Where an encoder would send us is not where the client should go.
            let status = match answer.head.status {
                300..400 => 502,
                status => status,
            };
            Stop::Said(Box::new((status, shape::detail(&words(&text)))))
        }
        Stop::Error(error) => Stop::Error(reword(error)),
        Stop::Again(error) => Stop::Again(reword(error)),
        other => other,
    }
}
