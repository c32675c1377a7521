//! The transcript: what an engine received, byte for byte, and what became of each request.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use crate::ledger::lock;

const ENTRIES: usize = 100_000;
const BYTES: usize = 64 << 20;

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Received {
    /// Since the simulator's start.
    pub at: Duration,
    /// Numbers the connections of all engines.
    pub connection: u64,
    pub method: String,
    pub path: String,
    /// In order, names as received.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
    pub outcome: Outcome,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Still being worked on.
    Open,
    /// Answered to the end.
    Answered(u16),
    /// The client left before the end, so long after the simulator's start.
    ClientLeft { at: Duration },
    /// Ended on purpose by the fault of this name.
    Faulted(&'static str),
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Received>,
    /// Number of the entry in front.
    base: u64,
    bytes: usize,
}

/// An entry that can still be closed.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub transcript: &'a Transcript,
    pub number: u64,
}

impl Entry<'_> {
    pub fn close(&self, outcome: Outcome) {
        self.transcript.close(self.number, outcome);
    }
}

#[derive(Default)]
pub(crate) struct Transcript(Mutex<Ring>);

fn weight(entry: &Received) -> usize {
    let headers: usize = entry
        .headers
        .iter()
        .map(|(n, v)| n.len() + v.len() + 48)
        .sum();
    200 + entry.body.len() + headers
}

impl Transcript {
    /// Keeps `entry`; the number given back is for `close`.
    pub fn push(&self, entry: Received) -> u64 {
        let mut ring = lock(&self.0);
        ring.bytes += weight(&entry);
        ring.entries.push_back(entry);
        while ring.entries.len() > ENTRIES || (ring.bytes > BYTES && ring.entries.len() > 1) {
            let Some(old) = ring.entries.pop_front() else {
                break;
            };
            ring.bytes -= weight(&old);
            ring.base += 1;
        }
        ring.base + ring.entries.len() as u64 - 1
    }

    fn close(&self, number: u64, outcome: Outcome) {
        let mut ring = lock(&self.0);
        let Some(place) = number.checked_sub(ring.base) else {
            return;
        };
        if let Some(entry) = ring.entries.get_mut(place as usize) {
            entry.outcome = outcome;
        }
    }

    pub fn all(&self) -> Vec<Received> {
        lock(&self.0).entries.iter().cloned().collect()
    }
}
