//! Questions to all engines at once: `/health`, `/ping`, `/version`.
//!
//! One round per question at a time, whoever asks meanwhile gets the same answer: a hundred monitors cost
//! the engines no more than one. At most `AT_ONCE` engines are asked at the same time, each for at most
//! `EACH`, and a round ends after `ALL`.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::cluster::fetch::{self, Fetched};
use crate::cluster::{Cluster, Health, Instance};
use crate::config::Role;
use crate::exchange::shape::{self, SERVER};
use crate::wire::json::put_string;

use super::Asker;
use crate::server::Shared;
use crate::server::surface::xpyd::Fan;

const AT_ONCE: usize = 64;
const EACH: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(10);

/// In the order in which its pages list them.
const ROLES: [Role; 3] = [Role::Prefill, Role::Decode, Role::Aggregated];

/// The rounds under way, and who waits for each.
#[derive(Default)]
pub struct Fans {
    waiting: RefCell<Vec<(Fan, Vec<Asker>)>>,
}

impl Fans {
    pub fn ask(self: Rc<Self>, shared: Arc<Shared>, fan: Fan, asker: Asker) {
        let mut waiting = self.waiting.borrow_mut();
        if let Some((_, askers)) = waiting.iter_mut().find(|(one, _)| *one == fan) {
            return askers.push(asker);
        }
        waiting.push((fan, vec![asker]));
        drop(waiting);
        monoio::spawn(async move {
            let answer = round(&shared, fan).await;
            let mut waiting = self.waiting.borrow_mut();
            let at = waiting.iter().position(|(one, _)| *one == fan);
            let askers = at.map(|at| waiting.swap_remove(at).1);
            for asker in askers.unwrap_or_default() {
                asker.answer(&shared, answer.clone());
            }
        });
    }
}

async fn round(shared: &Arc<Shared>, fan: Fan) -> (u16, Vec<u8>) {
    let cluster = shared.cluster.get();
    let mut asked = listed(&cluster);
    if fan == Fan::Version {
        asked = first_healthy(&asked).into_iter().collect();
    }
    if asked.is_empty() {
        return (500, shape::object("No instances available", SERVER));
    }
    let answers = ask_all(&asked, fan.path()).await;
    let good = |a: &Option<Fetched>| a.as_ref().is_some_and(|a| a.status < 500);
    let status = if answers.iter().any(good) { 200 } else { 503 };
    (status, page(&asked, &answers))
}

/// Each address once, by role.
pub fn listed(cluster: &Cluster) -> Vec<Arc<Instance>> {
    let mut seen = HashSet::new();
    let all = ROLES.iter().flat_map(|role| cluster.role(*role));
    all.filter(|one| seen.insert(one.name.clone()))
        .cloned()
        .collect()
}

fn first_healthy(all: &[Arc<Instance>]) -> Option<Arc<Instance>> {
    let healthy = all.iter().find(|one| one.found() == Health::Healthy);
    healthy.or(all.first()).cloned()
}

/// The answers in the order of the instances; `None`: it could not be asked.
pub async fn ask_all(asked: &[Arc<Instance>], path: &'static str) -> Vec<Option<Fetched>> {
    let answers = Rc::new(RefCell::new(vec![None; asked.len()]));
    let next = Rc::new(Cell::new(0));
    let end = Instant::now() + ALL;
    let asked: Rc<[Arc<Instance>]> = asked.into();
    let lanes: Vec<_> = (0..asked.len().min(AT_ONCE))
        .map(|_| {
            let (answers, next, asked) = (answers.clone(), next.clone(), asked.clone());
            monoio::spawn(async move {
                loop {
                    let at = next.replace(next.get() + 1);
                    let left = end.saturating_duration_since(Instant::now());
                    let Some(one) = asked.get(at).filter(|_| !left.is_zero()) else {
                        return;
                    };
                    let targets = one.targets.get();
                    let ask = fetch::Ask {
                        targets: &targets,
                        host: &one.host,
                        prefix: &one.prefix,
                        path,
                        trust: one.trust.get(),
                        key: None,
                    };
                    let answer = fetch::get(&ask, EACH.min(left)).await;
                    answers.borrow_mut()[at] = answer.ok();
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await;
    }
    answers.take()
}

/// `{"host:port":{"status":200,"type":"json","data":{..}},..}`
fn page(asked: &[Arc<Instance>], answers: &[Option<Fetched>]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (one, answer) in asked.iter().zip(answers) {
        if out.len() > 1 {
            out.push(b',');
        }
        put_string(&mut out, &one.name);
        match answer {
            Some(answer) => put_answer(&mut out, answer),
            None => {
                out.extend_from_slice(br#":{"status":500,"error":"Failed to connect to instance"}"#)
            }
        }
    }
    out.push(b'}');
    out
}

fn put_answer(out: &mut Vec<u8>, answer: &Fetched) {
    out.extend_from_slice(br#":{"status":"#);
    out.extend_from_slice(answer.status.to_string().as_bytes());
    // What only calls itself JSON would spoil the whole page.
    let json = serde_json::from_slice::<&RawValue>(&answer.body);
    match json {
        Ok(value) if answer.json => {
            out.extend_from_slice(br#","type":"json","data":"#);
            out.extend_from_slice(value.get().as_bytes());
        }
        _ => {
            out.extend_from_slice(br#","type":"text","data":"#);
            put_string(out, &String::from_utf8_lossy(&answer.body));
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(json: bool, body: &str) -> String {
        let mut out = Vec::new();
        let answer = Fetched {
            status: 200,
            json,
            body: body.into(),
        };
        put_answer(&mut out, &answer);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_engine_s_words_never_spoil_the_page() {
        assert_eq!(
            put(true, r#"{"a":[1.50]}"#),
            r#":{"status":200,"type":"json","data":{"a":[1.50]}}"#
        );
        for (json, body) in [(true, "{"), (true, ""), (false, "{}"), (true, "1}}")] {
            let text = put(json, body);
            let value: serde_json::Value = serde_json::from_str(&text[1..]).expect(&text);
            assert_eq!(
                (&value["type"], &value["data"]),
                (&"text".into(), &body.into())
            );
        }
    }
}
