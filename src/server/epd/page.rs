//! The pages, answered on a shard: from what it knows, or by asking the control thread.

use std::rc::Rc;

use super::{Ask, Said, profile, roster};
use crate::error::Error;
use crate::exchange::{Reply, Request, shape};
use crate::net::sweep::Slot;
use crate::server::control;
use crate::server::pages::{Page as Answer, json};
use crate::server::shard::Shard;
use crate::server::surface::epd::Page;
use crate::server::xpyd::page::ask;
use crate::wire::head::Method;

pub async fn answer(
    shard: &Rc<Shard>,
    request: &Request,
    slot: &Slot,
    page: Page,
) -> Result<Answer, Error> {
    let dynamic = shard.tools.config().epd.dynamic_registration;
    match page {
        Page::Health if dynamic => {
            let mut body = br#"{"proxy":"healthy","instances":"#.to_vec();
            body.extend_from_slice(&roster::list(&shard.tools.cluster.get()));
            body.push(b'}');
            Ok(json(200, body))
        }
        Page::Health => ask(shard, slot, control::Ask::Epd(Ask::Health)).await,
        Page::Instances if dynamic => match wish(shard, request) {
            Ok(None) => Ok(json(200, roster::list(&shard.tools.cluster.get()))),
            Ok(Some(wish)) => ask(shard, slot, control::Ask::Epd(wish)).await,
            Err((status, body)) => Ok(json(status, body)),
        },
        Page::Instances => Ok(json(404, shape::detail("Not Found"))),
        // Asks engines from the shard: it never comes here.
        Page::Profile => Ok(json(404, shape::detail("Not Found"))),
    }
}

/// What is to be changed; `None`: the list is asked for, which everybody may see.
fn wish(shard: &Rc<Shard>, request: &Request) -> Result<Option<Ask>, Said> {
    if matches!(request.head.method, Method::Get | Method::Head) {
        return Ok(None);
    }
    roster::authorize(request, &shard.tools.config())?;
    Ok(Some(match request.head.method {
        Method::Delete => Ask::Remove(roster::removal(request.target())?),
        _ => Ask::Add(Box::new(roster::addition(request.body())?)),
    }))
}

/// One engine of each role is asked to begin or end its profile.
pub async fn profiles(x: &crate::exchange::Exchange, reply: &mut Reply) -> std::io::Result<()> {
    let said = profile::ask(x).await;
    reply.said(&x.request().id, &said).await
}
