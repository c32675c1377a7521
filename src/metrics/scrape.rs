//! The reading side: sums the cells of all writers into the families of the `prometheus` crate, whose
//! registry checks and orders them and whose encoder writes the text.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::cell::{BUCKETS, HistogramSum, bound_ns};
use super::shard::InstanceMetrics;
use super::table::*;
use super::{Inner, process};

/// Collects the values of [`Sampled`] rows while a scrape is made.
#[derive(Debug, Default)]
pub struct Scrape {
    samples: HashMap<usize, Vec<proto::Metric>>,
    seen: HashSet<(usize, Vec<Box<str>>)>,
}

impl Scrape {
    /// Adds one sample; `labels` are the values in the order of the row's labels. A second sample with
    /// the same labels would spoil the whole scrape, so only the first one counts.
    pub fn add(&mut self, row: Sampled, labels: &[&str], value: f64) {
        let index = row as usize;
        let SampledRow {
            kind,
            name,
            labels: names,
            ..
        } = &SAMPLED[index];
        debug_assert_eq!(labels.len(), names.len(), "labels of {name}");
        let key = labels.iter().map(|&label| label.into()).collect();
        if labels.len() != names.len() || !self.seen.insert((index, key)) {
            return;
        }
        let pairs: Vec<_> = names.iter().copied().zip(labels.iter().copied()).collect();
        let metric = match kind {
            SampledKind::Counter => counter(&pairs, value),
            SampledKind::Gauge => gauge(&pairs, value),
        };
        self.samples.entry(index).or_default().push(metric);
    }
}

/// The one collector of the registry.
pub(super) struct CellCollector {
    pub inner: Arc<Inner>,
    pub descs: Vec<Desc>,
}

impl CellCollector {
    pub fn new(inner: Arc<Inner>) -> prometheus::Result<CellCollector> {
        let mut descs = Vec::new();
        let mut describe = |name: &str, help: &str, labels: Vec<&str>| {
            let labels = labels.into_iter().map(str::to_owned).collect();
            Desc::new(name.into(), help.into(), labels, HashMap::new()).map(|desc| descs.push(desc))
        };
        for row in COUNTERS.iter().chain(GAUGES).chain(HISTOGRAMS) {
            describe(
                row.name,
                row.help,
                row.labels.iter().map(|label| label.name).collect(),
            )?;
        }
        for row in INSTANCE_COUNTERS.iter().chain(INSTANCE_HISTOGRAMS) {
            let own = row.labels.iter().map(|label| label.name);
            describe(
                row.name,
                row.help,
                ["role", "instance"].into_iter().chain(own).collect(),
            )?;
        }
        for row in SAMPLED {
            describe(row.name, row.help, row.labels.to_vec())?;
        }
        Ok(CellCollector { inner, descs })
    }

    fn collect_shards(&self, families: &mut Vec<MetricFamily>) {
        let inner = &*self.inner;
        let kinds = inner.error_kinds;
        families.extend(collect(
            COUNTERS,
            MetricType::COUNTER,
            kinds,
            |cell, labels, out| {
                out.push(counter(labels, inner.counter(cell) as f64));
            },
        ));
        families.extend(collect(
            GAUGES,
            MetricType::GAUGE,
            kinds,
            |cell, labels, out| {
                out.push(gauge(labels, inner.gauge(cell) as f64));
            },
        ));
        families.extend(collect(
            HISTOGRAMS,
            MetricType::HISTOGRAM,
            kinds,
            |cell, labels, out| {
                out.push(histogram(labels, &inner.histogram(cell), 1));
            },
        ));
    }

    fn collect_instances(&self, families: &mut Vec<MetricFamily>) {
        let instances = self.inner.instances();
        // Clones the labels once per instance and cell, on the control thread.
        let each = |labels: &[(&str, &str)], add: &mut dyn FnMut(&InstanceMetrics, &Labels)| {
            for instance in &instances {
                let mut all = vec![("role", instance.role()), ("instance", instance.address())];
                all.extend_from_slice(labels);
                add(instance, &all);
            }
        };
        families.extend(collect(
            INSTANCE_COUNTERS,
            MetricType::COUNTER,
            &[],
            |cell, labels, out| {
                each(labels, &mut |i, all| {
                    out.push(counter(all, i.counter(cell) as f64))
                });
            },
        ));
        let kind = MetricType::HISTOGRAM;
        families.extend(collect(
            INSTANCE_HISTOGRAMS,
            kind,
            &[],
            |cell, labels, out| {
                // Every other bound: with hundreds of instances the lines are what a scrape costs.
                each(labels, &mut |i, all| {
                    out.push(histogram(all, &i.histogram(cell), 2))
                });
            },
        ));
    }

    fn collect_samples(&self, families: &mut Vec<MetricFamily>) {
        let mut scrape = Scrape::default();
        scrape.add(Sampled::Build, &[env!("CARGO_PKG_VERSION")], 1.0);
        scrape.add(Sampled::LogDropped, &[], crate::log::dropped() as f64);
        process::sample(&mut scrape);
        for callback in self.inner.callbacks() {
            callback(&mut scrape);
        }
        for (index, metrics) in scrape.samples {
            let row = &SAMPLED[index];
            let kind = match row.kind {
                SampledKind::Counter => MetricType::COUNTER,
                SampledKind::Gauge => MetricType::GAUGE,
            };
            families.push(family(row.name, row.help, kind, metrics));
        }
    }
}

impl Collector for CellCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        self.collect_shards(&mut families);
        self.collect_instances(&mut families);
        self.collect_samples(&mut families);
        families
    }
}

type Labels<'a> = [(&'a str, &'a str)];

/// Walks a table cell by cell; `add` gets each cell's index and label values.
fn collect(
    table: &'static [Row],
    kind: MetricType,
    error_kinds: &[&str],
    mut add: impl FnMut(usize, &Labels, &mut Vec<proto::Metric>),
) -> Vec<MetricFamily> {
    let mut base = 0;
    let mut families = Vec::with_capacity(table.len());
    for row in table {
        let mut metrics = Vec::with_capacity(row.cells());
        for offset in 0..row.cells() {
            // `None`: a spare cell that has no word.
            if let Some(labels) = labels_at(row, offset, error_kinds) {
                add(base + offset, &labels, &mut metrics);
            }
        }
        base += row.cells();
        families.push(family(row.name, row.help, kind, metrics));
    }
    families
}

/// The label values of a cell: the reverse of what the constructors in `table.rs` compute.
fn labels_at<'a>(
    row: &Row,
    mut offset: usize,
    error_kinds: &[&'a str],
) -> Option<Vec<(&'static str, &'a str)>> {
    let mut labels = Vec::with_capacity(row.labels.len());
    for label in row.labels.iter().rev() {
        let at = offset % label.count;
        let word = match label.values {
            [] => error_kinds.get(at).copied()?,
            values => values[at],
        };
        labels.push((label.name, word));
        offset /= label.count;
    }
    labels.reverse();
    Some(labels)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn pairs(labels: &Labels) -> Vec<LabelPair> {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

fn counter(labels: &Labels, value: f64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(value);
    let mut metric = proto::Metric::from_label(pairs(labels));
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &Labels, value: f64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = proto::Metric::from_label(pairs(labels));
    metric.set_gauge(gauge);
    metric
}

/// With every `step`-th bound; the encoder adds `+Inf` from the count.
fn histogram(labels: &Labels, cells: &HistogramSum, step: usize) -> proto::Metric {
    let mut buckets = Vec::with_capacity(BUCKETS);
    let mut below = 0;
    for bucket in 0..BUCKETS - 1 {
        below += cells.buckets[bucket];
        if bucket % step == 0 {
            let mut bound = proto::Bucket::default();
            bound.set_upper_bound(bound_ns(bucket) as f64 / 1e9);
            bound.set_cumulative_count(below);
            buckets.push(bound);
        }
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(cells.count());
    histogram.set_sample_sum(cells.sum_ns as f64 / 1e9);
    let mut metric = proto::Metric::from_label(pairs(labels));
    metric.set_histogram(histogram);
    metric
}
