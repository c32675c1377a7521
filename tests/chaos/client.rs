//! A client that streams or not, keeps its connection or not, pipelines, reads slowly, and leaves.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::world::World;
use crate::support::{Client, Response, completion, post_bytes};

/// How one request ended, for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This status, complete.
    Whole(u16),
    /// Begun with this status and broken off.
    Broken(u16),
    /// The client left before it knew.
    Left,
    /// Sent behind a request whose answer closed the connection.
    Unanswered,
}

pub struct Asked {
    pub id: String,
    pub end: End,
    /// On the simulator's clock, when the head of its answer was here.
    pub head_at: Option<Duration>,
}

struct Ask {
    id: String,
    prompt: String,
    tokens: u32,
    stream: bool,
    /// Its engines are asked for garbage, which in a well-framed answer is passed on as it is.
    garbage: bool,
    /// Its engines end their answers by closing, so that nobody can tell a cut one.
    until_close: bool,
    bytes: Vec<u8>,
}

/// One client's life: about `requests` requests. What it saw, and what was wrong with it.
pub fn live(world: &World, number: u64, requests: usize) -> (Vec<Asked>, Vec<String>) {
    let mut dice = Dice::new(world.seed, 100 + number);
    let (mut seen, mut wrong) = (Vec::new(), Vec::new());
    let mut connection: Option<Client> = None;
    while seen.len() < requests {
        sleep(dice.ms(0, 12));
        let mut client = connection.take().unwrap_or_else(|| world.rig.client());
        let together = if dice.percent(20) {
            dice.within(2, 4)
        } else {
            1
        };
        let asks: Vec<Ask> = (0..together)
            .map(|i| {
                ask(
                    world,
                    &mut dice,
                    &format!("s{}c{number}r{}", world.seed, seen.len() as u64 + i),
                )
            })
            .collect();
        let all: Vec<u8> = asks.iter().flat_map(|a| a.bytes.clone()).collect();
        if dice.percent(10) {
            // In two pieces.
            let (one, two) = all.split_at(dice.within(1, all.len() as u64) as usize);
            let sent = send(&mut client, one);
            sleep(dice.ms(0, 8));
            if sent {
                send(&mut client, two);
            }
        } else {
            send(&mut client, &all);
        }
        let leave_at = (world.departures && dice.percent(25)).then(|| dice.within(0, together));
        let mut open = true;
        for (i, ask) in asks.into_iter().enumerate() {
            let id = ask.id.clone();
            let mut end = End::Unanswered;
            let mut head_at = None;
            if open && leave_at == Some(i as u64) {
                depart(&mut client, &mut dice);
                (open, end) = (false, End::Left);
            } else if open {
                match answer(world, &mut client, &mut dice, &mut head_at) {
                    Some(response) => {
                        wrong.extend(judge(&ask, &response).map(|w| format!("{id}: {w}")));
                        end = match response.complete {
                            true => End::Whole(response.status),
                            false => End::Broken(response.status),
                        };
                        open = response.complete && response.header("connection") != Some("close");
                    }
                    None => {
                        wrong.push(format!("{id}: the connection ended without an answer"));
                        open = false;
                    }
                }
            } else if leave_at.is_some_and(|at| at < i as u64) {
                end = End::Left;
            }
            seen.push(Asked { id, end, head_at });
        }
        if open && dice.percent(70) {
            connection = Some(client);
        }
    }
    (seen, wrong)
}

fn ask(world: &World, dice: &mut Dice, id: &str) -> Ask {
    let prompt = format!(
        "{id} asks {}",
        "something ".repeat(dice.within(1, 30) as usize)
    );
    let tokens = dice.within(1, 14) as u32;
    let stream = dice.percent(60);
    let mut header = format!("x-request-id: {id}\r\n");
    if dice.percent(12) {
        let fault = dice.one(&[
            "accept-then-close",
            "refuse",
            "slow-head:40",
            "bad-head",
            "status:503",
            "status:500",
            "status:422",
            "half-head",
            "half-body",
            "reset-mid-stream:2",
            "garbage",
            "stall:2",
            "hang-before-head",
            "slow-reader",
        ]);
        let stage = dice.one(&["-prefill", "-decode"]);
        header += &format!("x-sim-fault{stage}: {fault}\r\n");
    }
    let garbage = header.contains("garbage");
    if dice.percent(15) {
        let shape = dice.one(&[
            "chunk-ext",
            "trailers",
            "close-delimited",
            "split-chunks",
            "103-first",
            "http10",
        ]);
        header += &format!("x-sim-shape: {shape}\r\n");
    }
    let until_close = header.contains("close-delimited") || header.contains("http10");
    // Now and then large enough for the writes that gather.
    let more = match dice.percent(8) {
        true => format!(r#","user":"{}""#, "x".repeat(40_000)),
        false => String::new(),
    };
    let more = format!(r#","max_tokens":{tokens},"stream":{stream}{more}"#);
    let bytes = post_bytes(world.path(), &completion(&prompt, &more), &header);
    Ask {
        id: id.to_owned(),
        prompt,
        tokens,
        stream,
        garbage,
        until_close,
        bytes,
    }
}

/// False if the proxy has closed meanwhile.
fn send(client: &mut Client, bytes: &[u8]) -> bool {
    use std::io::Write;
    client.stream.write_all(bytes).is_ok()
}

/// The next answer; `None` if the connection ends before its head.
fn answer(
    world: &World,
    client: &mut Client,
    dice: &mut Dice,
    head_at: &mut Option<Duration>,
) -> Option<Response> {
    let slow = dice.percent(10);
    while !client.rest.windows(4).any(|w| w == b"\r\n\r\n") {
        if client.closed() {
            return None;
        }
        if slow {
            sleep(dice.ms(1, 10));
        }
    }
    *head_at = Some(world.rig.sim.elapsed());
    if slow {
        sleep(dice.ms(1, 60));
    }
    Some(client.response())
}

/// Leaves at some moment: at once or in a while, before or within its answer, with a FIN or a reset.
fn depart(client: &mut Client, dice: &mut Dice) {
    sleep(dice.ms(0, 60));
    // Within its answer; if that is not here already, its first bytes are waited for.
    if dice.percent(40) && client.rest.is_empty() {
        let began = Instant::now();
        client.closed();
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "nothing came for 15 s"
        );
    }
    let socket = socket2::SockRef::from(&client.stream);
    if dice.percent(30) {
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
    let how = dice.one(&[std::net::Shutdown::Both, std::net::Shutdown::Write]);
    let _ = client.stream.shutdown(how);
}

/// What is wrong with an answer, whatever else happened.
fn judge(ask: &Ask, response: &Response) -> Option<String> {
    let right = pdsim::expected(pdsim::prompt_hash(&ask.prompt), 0, ask.tokens);
    let text = response.text();
    let status = response.status;
    let whole = response.complete && !(ask.until_close && cut(ask, status, &text));
    match (status, whole) {
        (200, true) if ask.stream => {
            let said = generated(&text);
            if text.contains("[DONE]") && said == right {
                return None;
            }
            // The engine's own word that it could not load the KV; as it came.
            let engines = said.is_empty() && text.contains("KV load failure");
            (!engines).then(|| format!("a whole stream that is wrong: {text:?}, not {right:?}"))
        }
        (200, true) if ask.garbage && response.body.iter().all(|b| *b == 0xfe) => None,
        (200, true) => {
            let said = match serde_json::from_slice::<serde_json::Value>(&response.body) {
                Ok(_) => response.generated(),
                Err(_) => "(no JSON)".into(),
            };
            (said != right)
                .then(|| format!("a whole answer that is wrong: {text:?}, not {right:?}"))
        }
        (200, false) if ask.stream => {
            let said = generated(&text);
            let foreign = !right.starts_with(&said) || text.contains("[DONE]");
            foreign.then(|| format!("a broken stream with foreign bytes: {text:?}, not {right:?}"))
        }
        (200, false) => {
            let mark = pdsim::mark(pdsim::prompt_hash(&ask.prompt));
            let foreign = text.contains("\"text\":\" w") && !text.contains(&mark);
            foreign.then(|| format!("a broken answer with foreign bytes: {text:?}"))
        }
        // Errors are whole: a head with a length, and JSON behind it.
        (422 | 500 | 502 | 503 | 504, true) => {
            let error = serde_json::from_slice::<serde_json::Value>(&response.body);
            let good = error.is_ok_and(|e| e["error"]["message"].is_string());
            (!good).then(|| format!("{status} with {text:?}"))
        }
        // D's own error, cut by its fault: begun is begun.
        (422 | 500 | 503, false) => None,
        _ => Some(format!(
            "{status}, complete: {}, {text:?}",
            response.complete
        )),
    }
}

/// Does the answer lack its end? Errors are JSON, streamed or not.
fn cut(ask: &Ask, status: u16, text: &str) -> bool {
    match ask.stream && status == 200 {
        true => !text.contains("[DONE]"),
        false => !text.ends_with('}'),
    }
}

/// The text of all complete events.
fn generated(text: &str) -> String {
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    let events = whole
        .split("\n\n")
        .filter_map(|e| e.trim_start().strip_prefix("data: "));
    let values = events.filter_map(|e| serde_json::from_str::<serde_json::Value>(e).ok());
    values
        .filter_map(|v| v["choices"][0]["text"].as_str().map(str::to_owned))
        .collect()
}
