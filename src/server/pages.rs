//! The proxy's own pages: answered here, or by the control thread.

use std::rc::Rc;

use crate::config::Surface;
use crate::error::{Error, Kind, Stage};
use crate::exchange::reply::Own;
use crate::exchange::{Reply, Request, shape};
use crate::log;
use crate::metrics::{self, Counter, ErrorKind};
use crate::net::sweep::Slot;

use super::shard::Shard;
use super::surface::{self, Route};
use super::{admin, control, epd, xpyd};

const JSON: &str = "application/json";
const READY: &[u8] = br#"{"status":"ready"}"#;

/// Answers a request for one of our own pages (or for none).
pub async fn answer(
    shard: &Rc<Shard>,
    request: &Request,
    route: Route,
    reply: &mut Reply,
) -> log::End {
    let id = &*request.id;
    match page(shard, request, route, &reply.slot).await {
        Ok(page) => {
            let extra: Vec<_> = page.extra.iter().map(|(k, v)| (*k, v.as_str())).collect();
            let own = Own {
                status: page.status,
                content_type: page.content_type,
                body: &page.body,
                extra: &extra,
            };
            match reply.own(Some(id), own).await {
                Ok(()) => log::End::Ok,
                Err(_) => log::End::ClientGone,
            }
        }
        Err(error) if error.kind == Kind::ClientGone => {
            reply.break_off();
            log::End::ClientGone
        }
        Err(error) => {
            shard
                .tools
                .metrics
                .inc(Counter::request_errors(ErrorKind(error.kind.index())));
            let surface = shard.tools.config().surface;
            let body = match error.kind {
                Kind::NotFound => shape::no_path(surface),
                _ => shape::body(surface, &error),
            };
            match reply.error_with(Some(id), &error, &body).await {
                Ok(()) => log::End::Error(error.kind.name()),
                Err(_) => log::End::ClientGone,
            }
        }
    }
}

/// A whole answer of our own.
pub struct Page {
    pub status: u16,
    /// Empty: there is none.
    pub content_type: &'static str,
    pub body: Vec<u8>,
    /// Further fields of its head.
    pub extra: Vec<(&'static str, String)>,
}

impl Page {
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Page {
        self.extra.push((name, value.into()));
        self
    }
}

pub fn json(status: u16, body: Vec<u8>) -> Page {
    Page {
        status,
        content_type: JSON,
        body,
        extra: Vec::new(),
    }
}

async fn page(
    shard: &Rc<Shard>,
    request: &Request,
    route: Route,
    slot: &Slot,
) -> Result<Page, Error> {
    let fail = |kind, what: &'static str| Err(Error::new(kind, Stage::Body, what));
    let face = shard.tools.config().surface;
    match route {
        Route::Health if face == Surface::Sidecar => Ok(Page {
            content_type: "",
            ..json(200, Vec::new())
        }),
        Route::Health => Ok(json(200, br#"{"status":"ok"}"#.to_vec())),
        Route::Conversations => {
            let all = shard.shared.handshake.conversations(&shard.tools);
            Ok(json(200, surface::multiturn::health(all)))
        }
        Route::Ready if shard.shared.ready() => Ok(json(200, READY.to_vec())),
        Route::Ready if shard.draining() => fail(Kind::Draining, "the proxy is draining"),
        Route::Ready => match shard.shared.missing() {
            // It has come back since the line above.
            nothing if nothing.is_empty() => Ok(json(200, READY.to_vec())),
            what => Err(Error::new(Kind::NoInstance, Stage::Body, what)),
        },
        Route::Metrics => {
            let (status, body) = shard.ask(control::Ask::Metrics).await;
            Ok(Page {
                content_type: match face {
                    Surface::Xpyd => metrics::xpyd::CONTENT_TYPE,
                    _ => metrics::CONTENT_TYPE,
                },
                ..json(status, body)
            })
        }
        Route::Status => {
            let (status, body) = shard.ask(control::Ask::Status).await;
            Ok(json(status, body))
        }
        Route::Admin(path) => {
            let key = &shard.tools.config().admin_api_key;
            let ask = admin::read(request, path, key.as_ref())?;
            let (status, body) = shard.ask(control::Ask::Admin(ask)).await;
            Ok(json(status, body))
        }
        Route::MethodNotAllowed(allow) => {
            let kind = Kind::MethodNotAllowed;
            let error = Error::new(kind, Stage::Body, format!("this path takes {allow}"));
            Ok(json(kind.status(), shape::body(face, &error)).with("allow", allow))
        }
        Route::NotFound | Route::Generate(_) | Route::Forward | Route::Decode => {
            fail(Kind::NotFound, shape::NO_PATH)
        }
        Route::Epd(page) => epd::page::answer(shard, request, slot, page).await,
        Route::Xpyd(page) => xpyd::page::answer(shard, request, slot, page).await,
    }
}
