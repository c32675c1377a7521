//! The fault matrix as data: what a client, the engines and the operator see of each fault, in each stage,
//! under each handshake. `tests/matrix/mod.rs` makes it happen; `docs/failures.md` is written from it.

use std::fmt;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Refuse,
    AcceptThenClose,
    Hang,
    SlowHead,
    BadHead,
    Status4xx,
    Status5xx,
    HalfHead,
    HalfBody,
    Rst,
    CleanEarlyEnd,
    Garbage,
    Stall,
    SlowClient,
    ClientGone,
    /// As `ClientGone`, where this D has never taken KV from this P.
    ClientGoneUnmet,
}

impl What {
    pub const ALL: [What; 16] = [
        What::Refuse,
        What::AcceptThenClose,
        What::Hang,
        What::SlowHead,
        What::BadHead,
        What::Status4xx,
        What::Status5xx,
        What::HalfHead,
        What::HalfBody,
        What::Rst,
        What::CleanEarlyEnd,
        What::Garbage,
        What::Stall,
        What::SlowClient,
        What::ClientGone,
        What::ClientGoneUnmet,
    ];

    pub const fn words(self) -> &'static str {
        match self {
            What::Refuse => "connection refused",
            What::AcceptThenClose => "accepted, then closed",
            What::Hang => "hangs before its head",
            What::SlowHead => "slow head, within the limit",
            What::BadHead => "a head that is no HTTP",
            What::Status4xx => "4xx (422)",
            What::Status5xx => "5xx (503)",
            What::HalfHead => "half a head, then closed",
            What::HalfBody => "half a body, then closed",
            What::Rst => "reset in the body",
            What::CleanEarlyEnd => "well-framed but incomplete body",
            What::Garbage => "garbage in the body",
            What::Stall => "silence in the body",
            What::SlowClient => "the client does not read",
            What::ClientGone => "the client leaves",
            What::ClientGoneUnmet => "the client leaves, D and P never met",
        }
    }
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Prefill,
    /// The client asks for a whole answer: D's head comes when all is done.
    DecodeHead,
    /// The client asks for a stream, and D's head has been passed on.
    Stream,
}

impl Stage {
    pub const ALL: [Stage; 3] = [Stage::Prefill, Stage::DecodeHead, Stage::Stream];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// All of it, and right.
    Whole,
    /// An error of pdrelay's, as JSON.
    Error,
    /// What the engine said, byte for byte, well framed.
    Engines,
    /// A part, then an SSE `error` event, then a broken connection (no final chunk).
    Event,
    /// A part, then a broken connection.
    Cut,
    /// Nobody is there to read it.
    Nobody,
}

impl Body {
    pub const fn words(self) -> &'static str {
        match self {
            Body::Whole => "whole answer",
            Body::Error => "error JSON",
            Body::Engines => "the engine's own words",
            Body::Event => "a part, an `error` event, broken off",
            Body::Cut => "a part, broken off",
            Body::Nobody => "nobody there",
        }
    }
}

/// One cell. All numbers are of one client request, with one instance per role.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expect {
    /// Sent, or (499) noted.
    pub status: u16,
    pub body: Body,
    /// Requests that P and D read.
    pub p: u64,
    pub d: u64,
    /// `pdrelay_retries_total`.
    pub retries: u64,
    /// `pdrelay_upstream_failures_total` of the faulty instance, by kind. Of all others: none.
    pub blame: &'static [(&'static str, u64)],
    /// KV in the engines' own books: fetched by a D, released by a D, left to its lease.
    pub kv: [u64; 3],
    /// `pdrelay_kv_grants_total`: spent, released, expired_unreleased.
    pub grants: [u64; 3],
    /// With a second, healthy instance of the faulty one's role the client gets its whole answer, and this
    /// is what all P and all D read.
    pub saved: Option<(u64, u64)>,
}

impl fmt::Display for Expect {
    /// As it would be written in this file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Expect {
            status,
            body,
            p,
            d,
            kv,
            grants,
            ..
        } = self;
        write!(f, "gets({status}, {body:?}).asked({p}, {d})")?;
        if self.retries > 0 {
            write!(f, ".retries({})", self.retries)?;
        }
        if !self.blame.is_empty() {
            write!(f, ".blames(&{:?})", self.blame)?;
        }
        if *kv != [0; 3] || *grants != [0; 3] {
            write!(f, ".kv({kv:?}, {grants:?})")?;
        }
        match self.saved {
            Some((p, d)) => write!(f, ".saved({p}, {d})"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Cell {
    Happens(Expect),
    /// Cannot happen, and why not.
    Never(&'static str),
}

pub struct Row {
    pub what: What,
    pub stage: Stage,
    pub nixl: Cell,
    pub sequential: Cell,
    pub aggregated: Cell,
}

impl Row {
    pub fn cells(&self) -> [(&'static str, &Cell); 3] {
        [
            ("nixl", &self.nixl),
            ("sequential", &self.sequential),
            ("aggregated", &self.aggregated),
        ]
    }
}

const fn gets(status: u16, body: Body) -> Expect {
    Expect {
        status,
        body,
        p: 0,
        d: 0,
        retries: 0,
        blame: &[],
        kv: [0; 3],
        grants: [0; 3],
        saved: None,
    }
}

impl Expect {
    const fn asked(self, p: u64, d: u64) -> Expect {
        Expect { p, d, ..self }
    }

    const fn retries(self, retries: u64) -> Expect {
        Expect { retries, ..self }
    }

    const fn blames(self, blame: &'static [(&'static str, u64)]) -> Expect {
        Expect { blame, ..self }
    }

    /// Fetched, released, left to its lease; and what pdrelay counts: spent, released, not released.
    const fn kv(self, kv: [u64; 3], grants: [u64; 3]) -> Expect {
        Expect { kv, grants, ..self }
    }

    const fn saved(self, p: u64, d: u64) -> Expect {
        Expect {
            saved: Some((p, d)),
            ..self
        }
    }
}

const fn row(what: What, stage: Stage, cells: [Cell; 3]) -> Row {
    let [nixl, sequential, aggregated] = cells;
    Row {
        what,
        stage,
        nixl,
        sequential,
        aggregated,
    }
}

/// The same for all handshakes: it cannot happen.
const fn never(what: What, stage: Stage, why: &'static str) -> Row {
    row(what, stage, [Cell::Never(why); 3])
}

const NO_P: Cell = Cell::Never("aggregated has no prefill leg");
const NO_GRANT: Cell = Cell::Never("no KV is handed over by pdrelay");
const BY_THEN: &str = "the head has come by then";
const NO_READER: &str = "nothing is sent to the client in this stage";

use Body::{Cut, Engines, Error, Event, Nobody, Whole};
use Cell::Happens as In;
use Stage::{DecodeHead, Prefill, Stream};
use What::*;

#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    // ---- the prefill leg ----------------------------------------------------------------------------
    row(Refuse, Prefill, [
        In(gets(503, Error).blames(&[("connect", 1)]).saved(1, 1)),
        In(gets(503, Error).blames(&[("connect", 1)]).saved(1, 1)),
        NO_P,
    ]),
    row(AcceptThenClose, Prefill, [
        In(gets(502, Error).retries(2).blames(&[("reset", 3)]).saved(1, 1)),
        In(gets(502, Error).retries(2).blames(&[("reset", 3)]).saved(1, 1)),
        NO_P,
    ]),
    row(Hang, Prefill, [
        In(gets(504, Error).asked(1, 0).blames(&[("timeout", 1)]).saved(2, 1)),
        In(gets(504, Error).asked(1, 0).blames(&[("timeout", 1)]).saved(2, 1)),
        NO_P,
    ]),
    row(SlowHead, Prefill, [
        In(gets(200, Whole).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Whole).asked(1, 1)),
        NO_P,
    ]),
    row(BadHead, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(Status4xx, Prefill, [
        In(gets(422, Engines).asked(1, 0)),
        In(gets(422, Engines).asked(1, 0)),
        NO_P,
    ]),
    row(Status5xx, Prefill, [
        In(gets(503, Engines).asked(3, 0).retries(2).blames(&[("status_5xx", 3)]).saved(2, 1)),
        In(gets(503, Engines).asked(3, 0).retries(2).blames(&[("status_5xx", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(HalfHead, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(HalfBody, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(Rst, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(CleanEarlyEnd, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(Garbage, Prefill, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).kv([0, 0, 3], [0, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("bad_response", 3)]).saved(2, 1)),
        NO_P,
    ]),
    row(Stall, Prefill, [
        In(gets(504, Error).asked(1, 0).blames(&[("timeout", 1)]).kv([0, 0, 1], [0, 0, 0]).saved(2, 1)),
        In(gets(504, Error).asked(1, 0).blames(&[("timeout", 1)]).saved(2, 1)),
        NO_P,
    ]),
    never(SlowClient, Prefill, NO_READER),
    row(ClientGone, Prefill, [
        In(gets(499, Nobody).asked(1, 0)),
        In(gets(499, Nobody).asked(1, 0)),
        NO_P,
    ]),
    never(ClientGoneUnmet, Prefill, "no D is asked yet"),

    // ---- the decode leg up to its head; for faults of the body the client asks for a whole answer -----
    row(Refuse, DecodeHead, [
        In(gets(502, Error).asked(1, 0).blames(&[("connect", 2)]).kv([0, 0, 1], [0, 0, 1]).saved(1, 1)),
        In(gets(502, Error).asked(1, 0).blames(&[("connect", 1)]).saved(1, 1)),
        In(gets(502, Error).asked(0, 0).blames(&[("connect", 1)]).saved(0, 1)),
    ]),
    row(AcceptThenClose, DecodeHead, [
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).kv([0, 0, 3], [3, 0, 0]).saved(2, 1)),
        In(gets(502, Error).asked(3, 0).retries(2).blames(&[("reset", 3)]).saved(2, 1)),
        In(gets(502, Error).asked(0, 0).retries(2).blames(&[("reset", 3)]).saved(0, 1)),
    ]),
    row(Hang, DecodeHead, [
        In(gets(504, Error).asked(1, 1).blames(&[("timeout", 1)]).kv([0, 0, 1], [1, 0, 0]).saved(2, 2)),
        In(gets(504, Error).asked(1, 1).blames(&[("timeout", 1)]).saved(2, 2)),
        In(gets(504, Error).asked(0, 1).blames(&[("timeout", 1)]).saved(0, 2)),
    ]),
    row(SlowHead, DecodeHead, [
        In(gets(200, Whole).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Whole).asked(1, 1)),
        In(gets(200, Whole).asked(0, 1)),
    ]),
    row(BadHead, DecodeHead, [
        In(gets(502, Error).asked(3, 3).retries(2).blames(&[("bad_response", 3)]).kv([3, 0, 0], [3, 0, 0]).saved(2, 2)),
        In(gets(502, Error).asked(3, 3).retries(2).blames(&[("bad_response", 3)]).saved(2, 2)),
        In(gets(502, Error).asked(0, 3).retries(2).blames(&[("bad_response", 3)]).saved(0, 2)),
    ]),
    row(Status4xx, DecodeHead, [
        In(gets(422, Engines).asked(1, 1).kv([0, 0, 1], [1, 0, 0])),
        In(gets(422, Engines).asked(1, 1)),
        In(gets(422, Engines).asked(0, 1)),
    ]),
    row(Status5xx, DecodeHead, [
        In(gets(503, Engines).asked(3, 3).retries(2).blames(&[("status_5xx", 3)]).kv([0, 0, 3], [3, 0, 0]).saved(2, 2)),
        In(gets(503, Engines).asked(3, 3).retries(2).blames(&[("status_5xx", 3)]).saved(2, 2)),
        In(gets(503, Engines).asked(0, 3).retries(2).blames(&[("status_5xx", 3)]).saved(0, 2)),
    ]),
    row(HalfHead, DecodeHead, [
        In(gets(502, Error).asked(3, 3).retries(2).blames(&[("bad_response", 3)]).kv([3, 0, 0], [3, 0, 0]).saved(2, 2)),
        In(gets(502, Error).asked(3, 3).retries(2).blames(&[("bad_response", 3)]).saved(2, 2)),
        In(gets(502, Error).asked(0, 3).retries(2).blames(&[("bad_response", 3)]).saved(0, 2)),
    ]),
    row(HalfBody, DecodeHead, [
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)])),
        In(gets(200, Cut).asked(0, 1).blames(&[("reset", 1)])),
    ]),
    row(Rst, DecodeHead, [
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)])),
        In(gets(200, Cut).asked(0, 1).blames(&[("reset", 1)])),
    ]),
    row(CleanEarlyEnd, DecodeHead, [
        In(gets(200, Engines).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Engines).asked(1, 1)),
        In(gets(200, Engines).asked(0, 1)),
    ]),
    row(Garbage, DecodeHead, [
        In(gets(200, Engines).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Engines).asked(1, 1)),
        In(gets(200, Engines).asked(0, 1)),
    ]),
    row(Stall, DecodeHead, [
        In(gets(200, Cut).asked(1, 1).blames(&[("timeout", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Cut).asked(1, 1).blames(&[("timeout", 1)])),
        In(gets(200, Cut).asked(0, 1).blames(&[("timeout", 1)])),
    ]),
    never(SlowClient, DecodeHead, NO_READER),
    row(ClientGone, DecodeHead, [
        In(gets(499, Nobody).asked(1, 1).kv([0, 1, 0], [1, 0, 0])),
        In(gets(499, Nobody).asked(1, 1)),
        In(gets(499, Nobody).asked(0, 1)),
    ]),
    row(ClientGoneUnmet, DecodeHead, [
        In(gets(499, Nobody).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        NO_GRANT,
        NO_GRANT,
    ]),

    // ---- the decode stream ----------------------------------------------------------------------------
    never(Refuse, Stream, "the connection is there by then"),
    never(AcceptThenClose, Stream, "the connection is in use by then"),
    never(Hang, Stream, BY_THEN),
    never(SlowHead, Stream, BY_THEN),
    never(BadHead, Stream, BY_THEN),
    never(Status4xx, Stream, BY_THEN),
    never(Status5xx, Stream, BY_THEN),
    never(HalfHead, Stream, BY_THEN),
    row(HalfBody, Stream, [
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Cut).asked(1, 1).blames(&[("reset", 1)])),
        In(gets(200, Cut).asked(0, 1).blames(&[("reset", 1)])),
    ]),
    row(Rst, Stream, [
        In(gets(200, Event).asked(1, 1).blames(&[("reset", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Event).asked(1, 1).blames(&[("reset", 1)])),
        In(gets(200, Event).asked(0, 1).blames(&[("reset", 1)])),
    ]),
    row(CleanEarlyEnd, Stream, [
        In(gets(200, Engines).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Engines).asked(1, 1)),
        In(gets(200, Engines).asked(0, 1)),
    ]),
    row(Garbage, Stream, [
        In(gets(200, Event).asked(1, 1).blames(&[("bad_response", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Event).asked(1, 1).blames(&[("bad_response", 1)])),
        In(gets(200, Event).asked(0, 1).blames(&[("bad_response", 1)])),
    ]),
    row(Stall, Stream, [
        In(gets(200, Event).asked(1, 1).blames(&[("timeout", 1)]).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Event).asked(1, 1).blames(&[("timeout", 1)])),
        In(gets(200, Event).asked(0, 1).blames(&[("timeout", 1)])),
    ]),
    row(SlowClient, Stream, [
        In(gets(200, Cut).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Cut).asked(1, 1)),
        In(gets(200, Cut).asked(0, 1)),
    ]),
    row(ClientGone, Stream, [
        In(gets(200, Nobody).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        In(gets(200, Nobody).asked(1, 1)),
        In(gets(200, Nobody).asked(0, 1)),
    ]),
    row(ClientGoneUnmet, Stream, [
        In(gets(200, Nobody).asked(1, 1).kv([1, 0, 0], [1, 0, 0])),
        NO_GRANT,
        NO_GRANT,
    ]),
];
