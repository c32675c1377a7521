//! The writing side: what a shard holds, and the cells of one instance.

use std::cell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::cell::{Cell, HistogramCells, HistogramSum, cells};
use super::table::{Counter, Gauge, Histogram, InstanceCounter, InstanceHistogram};

/// All cells of one writer. Behind an `Arc` of its own and padded: no line is shared between writers.
#[derive(Debug)]
pub(super) struct WriterCells {
    pub counters: [Cell; Counter::CELLS],
    pub gauges: [Cell; Gauge::CELLS],
    pub histograms: [HistogramCells; Histogram::CELLS],
    /// Whether a [`ShardMetrics`] is out: the cells allow only one writer.
    taken: AtomicBool,
}

impl WriterCells {
    pub fn new() -> WriterCells {
        WriterCells {
            counters: cells(),
            gauges: cells(),
            histograms: std::array::from_fn(|_| HistogramCells::new()),
            taken: AtomicBool::new(false),
        }
    }
}

/// The right to write one shard's cells. It may be sent to its thread, but not shared between threads,
/// and exists once: the compiler and one check at start keep the cells single-writer.
#[derive(Debug)]
pub struct ShardMetrics {
    writer: usize,
    cells: Arc<CachePadded<WriterCells>>,
    not_sync: PhantomData<cell::Cell<()>>,
}

impl ShardMetrics {
    /// # Panics
    /// If the same cells are already being written.
    pub(super) fn take(writer: usize, cells: &Arc<CachePadded<WriterCells>>) -> ShardMetrics {
        assert!(
            !cells.taken.swap(true, AcqRel),
            "metrics of shard {writer} are already in use"
        );
        ShardMetrics {
            writer,
            cells: Arc::clone(cells),
            not_sync: PhantomData,
        }
    }

    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        self.cells.counters[counter.cell()].add(n);
    }

    #[inline]
    pub fn inc(&self, counter: Counter) {
        self.add(counter, 1);
    }

    #[inline]
    pub fn gauge_add(&self, gauge: Gauge, n: i64) {
        self.cells.gauges[gauge.cell()].add(n as u64);
    }

    #[inline]
    pub fn observe(&self, histogram: Histogram, duration: Duration) {
        self.cells.histograms[histogram.cell()].observe(duration);
    }

    /// Raises a gauge for as long as the result lives.
    #[inline]
    pub fn hold(self: &Rc<Self>, gauge: Gauge, n: i64) -> Held {
        self.gauge_add(gauge, n);
        Held {
            metrics: Rc::clone(self),
            gauge,
            n,
        }
    }
}

impl Drop for ShardMetrics {
    fn drop(&mut self) {
        // Release: the next writer continues from the values written here.
        self.cells.taken.store(false, Release);
    }
}

/// A part of a gauge that is given back when dropped.
#[derive(Debug)]
#[must_use = "a dropped Held gives its part of the gauge back at once"]
pub struct Held {
    metrics: Rc<ShardMetrics>,
    gauge: Gauge,
    n: i64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.gauge_add(self.gauge, self.n.wrapping_neg());
    }
}

#[derive(Debug)]
struct InstanceCells {
    counters: [Cell; InstanceCounter::CELLS],
    histograms: [HistogramCells; InstanceHistogram::CELLS],
}

/// The cells of one instance: a block per writer.
#[derive(Debug)]
pub struct InstanceMetrics {
    role: Box<str>,
    address: Box<str>,
    writers: Box<[CachePadded<InstanceCells>]>,
}

impl InstanceMetrics {
    pub(super) fn new(role: &str, address: &str, writers: usize) -> InstanceMetrics {
        let block = |_| {
            CachePadded::new(InstanceCells {
                counters: cells(),
                histograms: std::array::from_fn(|_| HistogramCells::new()),
            })
        };
        InstanceMetrics {
            role: role.into(),
            address: address.into(),
            writers: (0..writers).map(block).collect(),
        }
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    #[inline]
    pub fn inc(&self, by: &ShardMetrics, counter: InstanceCounter) {
        self.add(by, counter, 1);
    }

    #[inline]
    pub fn add(&self, by: &ShardMetrics, counter: InstanceCounter, n: u64) {
        if let Some(cells) = self.block(by) {
            cells.counters[counter.cell()].add(n);
        }
    }

    #[inline]
    pub fn observe(&self, by: &ShardMetrics, histogram: InstanceHistogram, duration: Duration) {
        if let Some(cells) = self.block(by) {
            cells.histograms[histogram.cell()].observe(duration);
        }
    }

    /// `None` only if `by` belongs to another, larger [`Metrics`](super::Metrics).
    #[inline]
    fn block(&self, by: &ShardMetrics) -> Option<&InstanceCells> {
        let block = self.writers.get(by.writer).map(|padded| &**padded);
        debug_assert!(block.is_some(), "metrics of another process");
        block
    }

    pub fn total(&self, counter: InstanceCounter) -> u64 {
        self.counter(counter.cell())
    }

    pub(super) fn counter(&self, cell: usize) -> u64 {
        self.writers.iter().map(|w| w.counters[cell].get()).sum()
    }

    pub(super) fn histogram(&self, cell: usize) -> HistogramSum {
        HistogramSum::of(self.writers.iter().map(|w| &w.histograms[cell]))
    }
}
