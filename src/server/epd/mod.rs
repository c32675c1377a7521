//! What the face of vLLM's EPD proxy shows: whose engines are well, profiles, and instances that come and go.
//!
//! * **For:** answering what `surface/epd.rs` says a path is, in the bytes that its clients know.
//! * **Must never:** ask engines for their health from a shard: that is for the control thread, in a task.
//! * **To extend:** a page is an arm of [`page::answer`]; what needs the control thread is an [`Ask`].

pub mod page;
pub mod profile;
pub mod roster;

use std::sync::Arc;

use super::Shared;
use super::xpyd::{Asker, fan};
use crate::cluster::Instance;
use crate::config::{Address, InstanceConfig, Role};

/// What a shard asks of the control thread.
#[derive(Debug, Clone)]
pub enum Ask {
    Health,
    Add(Box<InstanceConfig>),
    Remove(Address),
}

/// A status and a body.
pub type Said = (u16, Vec<u8>);

/// On the control thread.
pub fn take(shared: &Arc<Shared>, asker: Asker, ask: Ask) {
    match ask {
        // May wait for DNS.
        Ask::Add(one) => {
            let shared = shared.clone();
            monoio::spawn(async move { asker.answer(&shared, roster::add(&shared, *one).await) });
        }
        Ask::Remove(address) => asker.answer(shared, roster::remove(shared, &address)),
        Ask::Health => {
            let shared = shared.clone();
            monoio::spawn(async move { asker.answer(&shared, health(&shared).await) });
        }
    }
}

/// Asks every engine. One that does not answer well makes its whole cluster unhealthy.
async fn health(shared: &Shared) -> Said {
    let cluster = shared.cluster.get();
    let mut out = br#"{"proxy":"healthy""#.to_vec();
    let mut status = 200;
    let groups: [(&str, &[Role]); 3] = [
        ("encode", &[Role::Encode]),
        ("prefill", &[Role::Prefill]),
        ("decode", &[Role::Decode, Role::Aggregated]),
    ];
    let of = |roles: &[Role]| -> Vec<Arc<Instance>> {
        roles
            .iter()
            .flat_map(|role| cluster.role(*role))
            .cloned()
            .collect()
    };
    let all: Vec<_> = groups.iter().flat_map(|(_, roles)| of(roles)).collect();
    let mut answers = fan::ask_all(&all, "/health").await.into_iter();
    for (name, roles) in groups {
        let count = of(roles).len();
        let answers: Vec<_> = answers.by_ref().take(count).collect();
        let well = answers
            .iter()
            .all(|a| a.as_ref().is_some_and(|a| a.status == 200));
        let word = match (count, well) {
            (0, _) => "empty",
            (_, true) => "healthy",
            (_, false) => "unhealthy",
        };
        if count > 0 && !well {
            status = 503;
        }
        out.extend_from_slice(format!(r#","{name}_cluster":"{word}""#).as_bytes());
    }
    out.push(b'}');
    (status, out)
}
