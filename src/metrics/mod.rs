//! Floor 0: counting, without slowing what is counted.
//!
//! * **For:** the numbers of `/metrics`. A shard writes cells that only it writes, with plain moves; a
//!   scrape, on the control thread, sums the cells of all shards and encodes them.
//! * **Must never:** look up a label by string, allocate, or use a locked instruction per request.
//! * **To extend:** one row in `table.rs`, and the line that observes it.
//!
//! ```text
//!   shard 0   ShardMetrics --writes--> cells 0 --+
//!   shard 1   ShardMetrics --writes--> cells 1 --+--sum--> Registry --> text   (Metrics::render)
//!   control   ShardMetrics --writes--> cells 2 --+            ^
//!                                                             +-- on_scrape callbacks (Sampled rows)
//! ```

mod cell;
mod label;
mod process;
mod scrape;
mod shard;
mod table;
#[cfg(test)]
mod tests;
pub mod xpyd;

pub use label::{
    Broken, Code, Conversation, Direction, Endpoint, ErrorKind, Failure, FirstTokens, Grant,
    NoticeWait, Retry, Skip, Span, Stage, Wait,
};
pub use process::open_files;
pub use scrape::Scrape;
pub use shard::{Held, InstanceMetrics, ShardMetrics};
pub use table::{
    Counter, Family, Gauge, Histogram, InstanceCounter, InstanceHistogram, Sampled, manual,
};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;
use prometheus::{Registry, TextEncoder};

use cell::HistogramSum;
use scrape::CellCollector;
use shard::WriterCells;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Instances with cells of their own; those above share one block, so that a discovery source gone
/// wild cannot fill the memory.
pub const INSTANCES_MAX: usize = 4096;

type Callback = Arc<dyn Fn(&mut Scrape) + Send + Sync>;

/// All cells and how to read them. One per process (or per test).
pub struct Metrics {
    inner: Arc<Inner>,
    registry: Registry,
}

/// What the collector inside the registry reads; apart from [`Metrics`] so that they own no circle.
struct Inner {
    /// One per shard, and the last one for the control thread.
    writers: Box<[Arc<CachePadded<WriterCells>>]>,
    error_kinds: &'static [&'static str],
    instances: Mutex<Instances>,
    callbacks: Mutex<Vec<Callback>>,
}

#[derive(Default)]
struct Instances {
    known: Vec<Arc<InstanceMetrics>>,
    overflow: Option<Arc<InstanceMetrics>>,
}

impl Metrics {
    pub fn new(shards: usize) -> Arc<Metrics> {
        Metrics::with_error_kinds(shards, &[])
    }

    /// `error_kinds` are the words of [`ErrorKind`]: the first 64 of them.
    ///
    /// # Panics
    /// If the table of metrics names one family twice, or badly: a test would have said so.
    pub fn with_error_kinds(shards: usize, error_kinds: &'static [&'static str]) -> Arc<Metrics> {
        let inner = Arc::new(Inner {
            writers: (0..=shards)
                .map(|_| Arc::new(CachePadded::new(WriterCells::new())))
                .collect(),
            error_kinds,
            instances: Mutex::default(),
            callbacks: Mutex::default(),
        });
        let registry = Registry::new();
        CellCollector::new(Arc::clone(&inner))
            .and_then(|collector| registry.register(Box::new(collector)))
            .unwrap_or_else(|error| panic!("the table of metrics is wrong: {error}"));
        Arc::new(Metrics { inner, registry })
    }

    /// The writing end of shard `index`, to be moved to its thread.
    ///
    /// # Panics
    /// If there is no such shard, or its writing end is already out.
    pub fn shard(&self, index: usize) -> ShardMetrics {
        assert!(
            index + 1 < self.inner.writers.len(),
            "there is no shard {index}"
        );
        ShardMetrics::take(index, &self.inner.writers[index])
    }

    /// The writing end of the control thread.
    ///
    /// # Panics
    /// If it is already out.
    pub fn control(&self) -> ShardMetrics {
        let index = self.inner.writers.len() - 1;
        ShardMetrics::take(index, &self.inner.writers[index])
    }

    /// The cells of one instance, made at the first call. Not for the path of a request: it locks.
    pub fn instance(&self, role: &str, address: &str) -> Arc<InstanceMetrics> {
        let writers = self.inner.writers.len();
        let mut instances = lock(&self.inner.instances);
        let known = instances
            .known
            .iter()
            .find(|i| i.role() == role && i.address() == address);
        if let Some(instance) = known {
            return Arc::clone(instance);
        }
        if instances.known.len() >= INSTANCES_MAX {
            let shared = || Arc::new(InstanceMetrics::new("other", "other", writers));
            return Arc::clone(instances.overflow.get_or_insert_with(shared));
        }
        let instance = Arc::new(InstanceMetrics::new(role, address, writers));
        instances.known.push(Arc::clone(&instance));
        instance
    }

    /// Cells that no page shows: of a server that is no instance.
    pub fn unlisted(&self) -> Arc<InstanceMetrics> {
        let writers = self.inner.writers.len();
        Arc::new(InstanceMetrics::new("", "", writers))
    }

    /// Stops reporting an instance that has left the cluster. Whoever still holds it may go on writing.
    /// If it comes back it starts from zero, which Prometheus takes for a restart.
    pub fn forget_instance(&self, role: &str, address: &str) {
        lock(&self.inner.instances)
            .known
            .retain(|i| i.role() != role || i.address() != address);
    }

    /// Has `callback` called at every scrape, to add the values of [`Sampled`] rows.
    pub fn on_scrape(&self, callback: Box<dyn Fn(&mut Scrape) + Send + Sync>) {
        lock(&self.inner.callbacks).push(callback.into());
    }

    /// The sum over all shards now.
    pub fn total(&self, counter: Counter) -> u64 {
        self.inner.counter(counter.cell())
    }

    /// The sum over all shards now.
    pub fn level(&self, gauge: Gauge) -> i64 {
        self.inner.gauge(gauge.cell())
    }

    /// The level of one shard now.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn level_of(&self, shard: usize, gauge: Gauge) -> i64 {
        self.inner.writers[shard].gauges[gauge.cell()].get() as i64
    }

    /// Observations counted by all shards so far.
    pub fn observed(&self, histogram: Histogram) -> u64 {
        self.inner.histogram(histogram.cell()).count()
    }

    /// The whole page in Prometheus text format. Takes milliseconds: for the control thread.
    pub fn render(&self) -> String {
        let encoded = TextEncoder::new().encode_to_string(&self.registry.gather());
        encoded.unwrap_or_else(|error| format!("# not encoded: {error}\n"))
    }
}

impl Inner {
    fn counter(&self, cell: usize) -> u64 {
        self.writers
            .iter()
            .map(|writer| writer.counters[cell].get())
            .sum()
    }

    fn gauge(&self, cell: usize) -> i64 {
        let cells = self.writers.iter().map(|writer| writer.gauges[cell].get());
        cells.fold(0, u64::wrapping_add) as i64
    }

    fn histogram(&self, cell: usize) -> HistogramSum {
        HistogramSum::of(self.writers.iter().map(|writer| &writer.histograms[cell]))
    }

    /// Copies, so that no lock is held while a scrape is made.
    fn instances(&self) -> Vec<Arc<InstanceMetrics>> {
        let instances = lock(&self.instances);
        instances
            .known
            .iter()
            .chain(&instances.overflow)
            .cloned()
            .collect()
    }

    fn callbacks(&self) -> Vec<Callback> {
        lock(&self.callbacks).clone()
    }
}

/// What these locks guard is whole at every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
