//! The proxy's own pages: answered here, or by the control thread.

use std::rc::Rc;

use crate::error::{Error, Kind, Stage};
use crate::exchange::reply::Own;
use crate::exchange::{Reply, Request};
use crate::log;
use crate::metrics::{self, Counter, ErrorKind};
use crate::wire::openai::error_body;

use super::shard::Shard;
use super::surface::Route;
use super::{admin, control};

const JSON: &str = "application/json";

/// Answers a request for one of our own pages (or for none).
pub async fn answer(
    shard: &Rc<Shard>,
    request: &Request,
    route: Route,
    reply: &mut Reply,
) -> log::End {
    let id = &*request.id;
    match page(shard, request, route).await {
        Ok(page) => {
            let own = Own {
                status: page.status,
                content_type: page.content_type,
                body: &page.body,
                extra: page.allow.as_slice(),
            };
            match reply.own(Some(id), own).await {
                Ok(()) => log::End::Ok,
                Err(_) => log::End::ClientGone,
            }
        }
        Err(error) => {
            shard
                .tools
                .metrics
                .inc(Counter::request_errors(ErrorKind(error.kind.index())));
            match reply.error(Some(id), &error).await {
                Ok(()) => log::End::Error(error.kind.name()),
                Err(_) => log::End::ClientGone,
            }
        }
    }
}

struct Page {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
    /// The `Allow` header of a 405.
    allow: Option<(&'static str, &'static str)>,
}

fn json(status: u16, body: Vec<u8>) -> Page {
    Page {
        status,
        content_type: JSON,
        body,
        allow: None,
    }
}

async fn page(shard: &Rc<Shard>, request: &Request, route: Route) -> Result<Page, Error> {
    let fail = |kind, what: &'static str| Err(Error::new(kind, Stage::Body, what));
    match route {
        Route::Health => Ok(json(200, br#"{"status":"ok"}"#.to_vec())),
        Route::Ready if shard.shared.ready() => Ok(json(200, br#"{"status":"ready"}"#.to_vec())),
        Route::Ready if shard.draining() => fail(Kind::Draining, "the proxy is draining"),
        Route::Ready => fail(
            Kind::NoInstance,
            "not every role that the handshake needs has an available instance",
        ),
        Route::Metrics => {
            let (status, body) = shard.ask(control::Ask::Metrics).await;
            Ok(Page {
                content_type: metrics::CONTENT_TYPE,
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
            let body = error_body(
                &format!("this path takes {allow}"),
                kind.class(),
                kind.status(),
            );
            Ok(Page {
                allow: Some(("allow", allow)),
                ..json(kind.status(), body)
            })
        }
        Route::NotFound | Route::Generate(_) | Route::Forward => {
            fail(Kind::NotFound, "there is nothing at this path")
        }
    }
}
