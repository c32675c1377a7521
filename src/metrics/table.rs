//! The table of every metric: its key, labels, name and help. `cargo doc` on [`Counter`], [`Gauge`],
//! [`Histogram`], [`InstanceCounter`], [`InstanceHistogram`] and [`Sampled`] reads as its manual.
//!
//! **To extend:** add a row, then the line that observes it: `shard.inc(Counter::panics())`. A row is
//! `key(label: Values, ..) "name", "help";` and makes a constructor `key` that takes the label values.

use super::label::*;

/// One family as the scrape needs it.
pub(super) struct Row {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [LabelRow],
}

pub(super) struct LabelRow {
    pub name: &'static str,
    /// Empty for the error kinds, whose words come at run time.
    pub values: &'static [&'static str],
    pub count: usize,
}

impl Row {
    pub const fn cells(&self) -> usize {
        let (mut product, mut i) = (1, 0);
        while i < self.labels.len() {
            product *= self.labels[i].count;
            i += 1;
        }
        product
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// The first cell of the row called `name`; for a name that is not there, the number of all cells.
const fn base_of(table: &[Row], name: &str) -> usize {
    let (mut base, mut i) = (0, 0);
    while i < table.len() && !same(table[i].name, name) {
        base += table[i].cells();
        i += 1;
    }
    base
}

macro_rules! rows {
    (
        $(#[$doc:meta])* $key:ident in $table:ident:
        $($row:ident($($label:ident: $values:ty),*) $name:literal, $help:literal;)*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $key(u16);

        pub(super) const $table: &[Row] = &[$(Row {
            name: $name,
            help: $help,
            labels: &[$(LabelRow {
                name: stringify!($label),
                values: <$values as Label>::NAMES,
                count: <$values as Label>::COUNT,
            }),*],
        }),*];

        impl $key {
            /// Cells of the whole table.
            pub(super) const CELLS: usize = base_of($table, "");

            #[inline]
            pub(super) fn cell(self) -> usize {
                usize::from(self.0)
            }

            $(
                #[doc = concat!("`", $name, "`: ", $help)]
                #[inline]
                pub fn $row($($label: $values),*) -> $key {
                    const BASE: usize = base_of($table, $name);
                    let offset = 0;
                    $(let offset = offset * <$values as Label>::COUNT + $label.index();)*
                    $key((BASE + offset) as u16)
                }
            )*
        }

        const _: () = assert!($key::CELLS <= u16::MAX as usize);
    };
}

rows! {
    /// A count that a shard adds to.
    Counter in COUNTERS:
    requests(endpoint: Endpoint, code: Code)
        "pdrelay_requests_total", "Requests answered, by the status sent (499: the client left first).";
    connections_accepted()
        "pdrelay_connections_accepted_total", "Client connections accepted.";
    connections_rejected()
        "pdrelay_connections_rejected_total", "Client connections closed at once because a limit was met.";
    client_gone(stage: Stage)
        "pdrelay_client_gone_total", "Clients that left before their reply was complete, by stage.";
    broken_streams(reason: Broken)
        "pdrelay_broken_streams_total", "Replies that had begun and could not be finished.";
    request_errors(kind: ErrorKind)
        "pdrelay_request_errors_total", "Requests that ended in an error of this proxy, by kind.";
    retries(reason: Retry)
        "pdrelay_retries_total", "Calls to an instance that were made again, by what went wrong.";
    timeouts(wait: Wait)
        "pdrelay_timeouts_total", "Limits of timeouts.* that passed, by which.";
    prefill_skipped(reason: Skip)
        "pdrelay_prefill_skipped_total", "Requests sent to decode without a prefill.";
    kv_grants(outcome: Grant)
        "pdrelay_kv_grants_total", "KV blocks held for us by a prefill instance, by what became of them.";
    notice_waits(outcome: NoticeWait)
        "pdrelay_notice_waits_total", "Waits for notices that KV has arrived at decode, by how they ended.";
    first_tokens(outcome: FirstTokens)
        "pdrelay_first_tokens_total", "Streams whose first token was to come from prefill, by what became of it.";
    conversations(outcome: Conversation)
        "pdrelay_conversations_total", "Turns of conversations, by what became of the KV between them.";
    bytes(direction: Direction)
        "pdrelay_bytes_total", "Body bytes received from clients (in) and sent to them (out).";
    chunks()
        "pdrelay_chunks_total", "Pieces of streamed replies written to clients.";
    panics()
        "pdrelay_panics_total", "Panics that were caught; each one is a bug.";
}

rows! {
    /// A level that a shard moves up and down.
    Gauge in GAUGES:
    requests_in_flight()
        "pdrelay_requests_in_flight", "Requests being answered now.";
    connections_open()
        "pdrelay_connections_open", "Client connections open now.";
    pool_idle()
        "pdrelay_pool_idle", "Idle upstream connections kept for reuse.";
    body_memory_bytes()
        "pdrelay_body_memory_bytes", "Memory held by request bodies.";
    releases_pending()
        "pdrelay_kv_releases_pending", "KV blocks waiting to be released at their prefill instance.";
}

rows! {
    /// Durations that a shard observes.
    Histogram in HISTOGRAMS:
    stage(stage: Span)
        "pdrelay_stage_seconds", "Time per stage of a request; queue: of those only that had to wait for their turn.";
    chunk_gap()
        "pdrelay_chunk_gap_seconds", "Time between two pieces of one streamed reply.";
}

rows! {
    /// A count per instance; the labels `role` and `instance` come first by themselves.
    InstanceCounter in INSTANCE_COUNTERS:
    requests()
        "pdrelay_upstream_requests_total", "Requests sent to the instance.";
    connects()
        "pdrelay_upstream_connects_total", "Connections opened to the instance.";
    reused()
        "pdrelay_upstream_reused_total", "Requests sent on a connection that was already open.";
    failures(kind: Failure)
        "pdrelay_upstream_failures_total", "Calls that failed at the instance, by how.";
    ejections()
        "pdrelay_ejections_total", "Times the instance was taken out of choice after failures.";
}

rows! {
    /// Durations per instance; the labels `role` and `instance` come first by themselves.
    InstanceHistogram in INSTANCE_HISTOGRAMS:
    head()
        "pdrelay_upstream_head_seconds", "Time from a request's last byte sent to its response head.";
}

/// One family as a reader of the documents needs it.
pub struct Family {
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    /// Each with its values, where they are a fixed set.
    pub labels: Vec<(&'static str, &'static [&'static str])>,
}

/// All of our own families; those of xPyD-proxy are in `metrics/xpyd.rs`.
pub fn manual() -> Vec<Family> {
    const INSTANCE: [(&str, &[&str]); 2] = [("role", &[]), ("instance", &[])];
    let rows =
        |kind, rows: &'static [Row], first: &'static [(&'static str, &'static [&'static str])]| {
            rows.iter().map(move |row| Family {
                name: row.name,
                kind,
                help: row.help,
                labels: first
                    .iter()
                    .copied()
                    .chain(row.labels.iter().map(|l| (l.name, l.values)))
                    .collect(),
            })
        };
    let sampled = SAMPLED.iter().map(|row| Family {
        name: row.name,
        kind: match row.kind {
            SampledKind::Counter => "counter",
            SampledKind::Gauge => "gauge",
        },
        help: row.help,
        labels: row.labels.iter().map(|name| (*name, &[][..])).collect(),
    });
    rows("counter", COUNTERS, &[])
        .chain(rows("gauge", GAUGES, &[]))
        .chain(rows("histogram", HISTOGRAMS, &[]))
        .chain(rows("counter", INSTANCE_COUNTERS, &INSTANCE))
        .chain(rows("histogram", INSTANCE_HISTOGRAMS, &INSTANCE))
        .chain(sampled)
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampledKind {
    Counter,
    Gauge,
}

pub(super) struct SampledRow {
    pub kind: SampledKind,
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

macro_rules! sampled {
    ($($row:ident($($label:ident),*) $kind:ident $name:literal, $help:literal;)*) => {
        /// A value that is read at scrape time, by [`Metrics::on_scrape`](super::Metrics::on_scrape).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Sampled {
            $(#[doc = concat!("`", $name, "{", stringify!($($label),*), "}`: ", $help)] $row),*
        }

        pub(super) const SAMPLED: &[SampledRow] = &[$(SampledRow {
            kind: SampledKind::$kind,
            name: $name,
            help: $help,
            labels: &[$(stringify!($label)),*],
        }),*];
    };
}

sampled! {
    InstanceInFlight(role, instance) Gauge
        "pdrelay_instance_in_flight", "Requests at the instance now.";
    InstanceHealthy(role, instance) Gauge
        "pdrelay_instance_healthy", "1 if the last health probe passed.";
    InstanceEjected(role, instance) Gauge
        "pdrelay_instance_ejected", "1 while the instance is out of choice after failures.";
    InstanceWedged(role, instance) Gauge
        "pdrelay_instance_wedged", "1 while the instance holds requests and has been silent for too long.";
    InstanceDraining(role, instance) Gauge
        "pdrelay_instance_draining", "1 while the instance takes no new requests.";
    Notices(kind) Counter
        "pdrelay_notices_total", "Notices taken in: counted, failed, unknown (a request that is over, or of another start) or unreadable.";
    NoticeSenders() Gauge
        "pdrelay_notice_senders", "Senders of notices that are connected now.";
    NoticeSendersRefused() Counter
        "pdrelay_notice_senders_refused_total", "Senders of notices that were sent away, since what they spoke was not understood.";
    NoticesOpen() Gauge
        "pdrelay_notices_open", "Requests whose notices are being counted.";
    Shard(shard, driver) Gauge
        "pdrelay_shard_info", "The I/O driver that a shard runs on.";
    Build(version) Gauge
        "pdrelay_build_info", "The running version.";
    LogDropped() Counter
        "pdrelay_log_lines_dropped_total", "Log lines lost because the writer could not keep up.";
    // The conventional names of every Prometheus client library, so that stock dashboards work.
    StartTime() Gauge
        "process_start_time_seconds", "Start of the process, in seconds since the epoch.";
    Cpu() Counter
        "process_cpu_seconds_total", "User and system CPU time spent.";
    ResidentMemory() Gauge
        "process_resident_memory_bytes", "Resident memory.";
    Threads() Gauge
        "process_threads", "Operating system threads.";
    OpenFiles() Gauge
        "process_open_fds", "Open file descriptors.";
    MaxFiles() Gauge
        "process_max_fds", "The limit of open file descriptors.";
}
