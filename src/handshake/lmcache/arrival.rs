//! Whether P's KV is at D: what P is told of it, the wait for its notices, and what is learned from them.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::config::lmcache::OnTimeout;
use crate::error::{Error, Kind, Stage};
use crate::exchange::notice::{Came, Ticket};
use crate::exchange::{Answer, Exchange, Leg, Picked, Stop};
use crate::log;
use crate::metrics::{Counter, NoticeWait};
use crate::wire::json::Edit;
use crate::wire::lmcache::{self as wire, Receiver};
use crate::wire::openai::{self, KV_PARAMS};

use super::Lmcache;

/// What P is told, and what comes of it.
pub(super) struct Transfer {
    pub ticket: Ticket,
    pub receiver: Receiver,
}

impl Lmcache {
    /// The inner `None`: this variant has no receivers. The outer one: this D has none.
    pub(super) fn transfer(&self, x: &Exchange, decode: &Picked) -> Option<Option<Transfer>> {
        let Some(socket) = &self.socket else {
            return Some(None);
        };
        let instance = decode.instance();
        let Some(receiver) = self.section.receivers.get(&instance.address) else {
            log::limited_for("no_receiver", &instance.name, log::Level::Warning, || {
                format!(
                    "decode {} is not in lmcache.receivers: it computes by itself",
                    instance.name
                )
            });
            return None;
        };
        Some(Some(Transfer {
            ticket: socket.notices.issue(x.tools.shard),
            receiver: receiver.clone(),
        }))
    }

    /// Waits until P's KV is at D.
    pub(super) async fn arrived(
        &self,
        x: &Exchange,
        transfer: &Option<Transfer>,
        answer: &Answer,
    ) -> Result<(), Stop> {
        let Some(Transfer { ticket, receiver }) = transfer else {
            return Ok(());
        };
        let tokens = openai::prompt_tokens(answer.body(), answer.object());
        if tokens.is_some_and(|n| n < self.section.short_prompt.into()) {
            x.tools
                .metrics
                .inc(Counter::notice_waits(NoticeWait::Short));
            return Ok(());
        }
        let wanted = receiver.ranks();
        let name = &answer.instance.name;
        match x
            .wait_notices(ticket, wanted, self.section.notice_timeout)
            .await?
        {
            Came::All => self.ranks.all(),
            Came::Failed => log::limited_for("transfer", name, log::Level::Warning, || {
                format!("prefill {name} could not transfer its KV: decode computes by itself")
            }),
            Came::Late(came) => {
                self.ranks.late(came, wanted);
                log::limited_for("no_notice", name, log::Level::Warning, || {
                    format!(
                        "{came} of {wanted} notices of prefill {name} came within lmcache.notice_timeout"
                    )
                });
                if self.section.on_timeout == OnTimeout::Error {
                    let what = format!("Timed out waiting for ZMQ notification {}", ticket.id);
                    return Err(Error::new(Kind::Timeout, Stage::Prefill, what).into());
                }
            }
        }
        Ok(())
    }
}

/// Tells P that its first token is wanted, and where its KV is.
pub(super) fn set_params(leg: &mut Leg, transfer: &Option<Transfer>, first_token: bool) {
    let to = transfer
        .as_ref()
        .map(|t| (t.ticket.id.as_str(), &t.receiver));
    if first_token || to.is_some() {
        leg.edits
            .retain(|edit| !matches!(edit, Edit::Remove(KV_PARAMS)));
        let params = wire::params(first_token, to);
        leg.edits.push(Edit::Set(KV_PARAMS, Cow::Owned(params)));
    }
}

/// What is learned of how many ranks send notices.
#[derive(Default)]
pub(super) struct Ranks {
    all: AtomicU64,
    only_one: AtomicU64,
    told: AtomicBool,
}

impl Ranks {
    fn all(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// Once, when it is no chance any more.
    fn late(&self, came: u32, wanted: usize) {
        const SURE: u64 = 3;
        if came != 1 || wanted < 2 || self.all.load(Ordering::Relaxed) > 0 {
            return;
        }
        let seen = self.only_one.fetch_add(1, Ordering::Relaxed) + 1;
        if seen >= SURE && !self.told.swap(true, Ordering::Relaxed) {
            log::warning(|| {
                format!(
                    "only 1 of {wanted} ranks ever sends a notice, and every request waits for the \
                     others until lmcache.notice_timeout: with MLA (or if only the first rank \
                     saves) list one port in init_ports and alloc_ports"
                )
            });
        }
    }
}
