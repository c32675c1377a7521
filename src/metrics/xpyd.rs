//! The metric families of xPyD-proxy 1.8, by its names, labels and buckets, so that its dashboards go on.
//!
//! Only for its surface. The labels (a prefill instance, a decode instance, a model that a client names) are
//! not known before, so these are maps, one per shard, each locked once per finished request and by a
//! scrape: the one exception to what this folder must never do, and no part of pdrelay's own face. At most
//! [`SETS_MAX`] label sets are kept in the process; what comes after them is counted as `other`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label sets of requests, and as many again of errors.
pub const SETS_MAX: usize = 1000;
/// A longer model name is `other`: it may be a client's word, and is kept.
const MODEL_MAX: usize = 256;

/// Where a name is not known (yet).
pub const UNKNOWN: &str = "unknown";
const OTHER: &str = "other";

/// Upper bounds in seconds, and how they are written. The last one has no bound.
const BOUNDS: [(f64, &str); 15] = [
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.075, "0.075"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (0.75, "0.75"),
    (1.0, "1.0"),
    (2.5, "2.5"),
    (5.0, "5.0"),
    (7.5, "7.5"),
    (10.0, "10.0"),
    (f64::INFINITY, "+Inf"),
];

/// The paths that are counted.
const ENDPOINTS: [&str; 2] = ["/v1/completions", "/v1/chat/completions"];

/// A measured part of a request with two stages: its family and what that says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Prefill,
    KvTransfer,
    Decode,
    Ttft,
    Tpot,
    E2e,
}

const PARTS: [(&str, &str); 6] = [
    (
        "proxy_prefill_duration_seconds",
        "Proxy-observed time from request start to completed prefill HTTP response",
    ),
    (
        "proxy_kv_transfer_duration_seconds",
        "Estimated KV transfer time: decode first HTTP chunk minus prefill HTTP response completion; includes decode waiting and first-token computation",
    ),
    (
        "proxy_decode_duration_seconds",
        "Total decode phase duration in seconds",
    ),
    (
        "proxy_ttft_seconds",
        "Proxy-observed TTFT approximation: request start to decode first HTTP chunk, or prefill HTTP response completion for prefill-first requests",
    ),
    (
        "proxy_tpot_seconds",
        "Average time per output token (decode phase) in seconds",
    ),
    (
        "proxy_e2e_latency_seconds",
        "Total end-to-end request latency in seconds",
    ),
];

/// Levels per instance: a family, and what it says of itself.
const LEVELS: [(&str, &str); 3] = [
    (
        "proxy_prefill_active_requests",
        "Number of requests currently in prefill stage",
    ),
    (
        "proxy_decode_active_requests",
        "Number of requests currently in decode stage",
    ),
    (
        "proxy_prefill_queue_depth",
        "Number of requests waiting for prefill (0 if no queueing exists)",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    NoInstance,
    Prefill,
    Decode,
}

impl Failure {
    pub const fn name(self) -> &'static str {
        match self {
            Failure::NoInstance => "no_available_instance",
            Failure::Prefill => "prefill_forward_error",
            Failure::Decode => "decode_forward_error",
        }
    }
}

/// Where a request with two stages went, and how long each part of it took.
#[derive(Debug, Clone, Default)]
pub struct Legs<'a> {
    pub prefill: Option<&'a str>,
    pub decode: Option<&'a str>,
    pub times: [Option<Duration>; PARTS.len()],
}

/// A finished request.
#[derive(Debug, Clone)]
pub struct Finished<'a> {
    pub chat: bool,
    pub total: Duration,
    pub model: Option<&'a str>,
    pub legs: Option<Legs<'a>>,
    /// At which instance it failed, and how.
    pub failure: Option<(&'a str, Failure)>,
}

/// What is read at scrape.
#[derive(Debug, Clone, Default)]
pub struct Levels {
    pub active: i64,
    pub instances: Vec<Level>,
}

#[derive(Debug, Clone)]
pub struct Level {
    pub name: String,
    /// Else it decodes.
    pub prefill: bool,
    pub model: String,
    pub requests: i64,
}

#[derive(Debug, Clone)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    sum: f64,
    created: f64,
}

impl Histogram {
    fn new() -> Histogram {
        Histogram {
            buckets: [0; BOUNDS.len()],
            sum: 0.0,
            created: now(),
        }
    }

    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|(bound, _)| seconds <= *bound);
        self.buckets[bucket.unwrap_or(BOUNDS.len() - 1)] += 1;
        self.sum += seconds;
    }

    fn add(&mut self, other: &Histogram) {
        for (sum, n) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += n;
        }
        self.sum += other.sum;
        self.created = self.created.min(other.created);
    }
}

#[derive(Debug, Clone, Copy)]
struct Count {
    value: u64,
    created: f64,
}

impl Count {
    fn add(slot: &mut Option<Count>, n: u64, created: f64) {
        let count = slot.get_or_insert(Count { value: 0, created });
        count.value += n;
        count.created = count.created.min(created);
    }

    fn inc(slot: &mut Option<Count>) {
        let created = slot.map_or_else(now, |count| count.created);
        Count::add(slot, 1, created);
    }
}

/// A model's label: a client's word or the configuration's, by one rule, so that one model is one label.
fn model_label(name: &str) -> &str {
    match name.len() {
        0 => UNKNOWN,
        n if n > MODEL_MAX => OTHER,
        _ => name,
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// One pair of instances and one model.
#[derive(Debug, Clone, Default)]
struct Set {
    prefills: Option<Count>,
    decodes: Option<Count>,
    parts: [Option<Histogram>; PARTS.len()],
}

/// What one shard has counted.
#[derive(Debug, Clone, Default)]
struct Shard {
    requests: [Option<Count>; ENDPOINTS.len()],
    durations: [Option<Histogram>; ENDPOINTS.len()],
    sets: HashMap<String, Set>,
    errors: HashMap<String, Option<Count>>,
    /// Reused to look label sets up.
    key: String,
}

/// The families of one process.
#[derive(Debug)]
pub struct Families {
    shards: Box<[Mutex<Shard>]>,
    sets: Mutex<HashSet<String>>,
    errors: Mutex<HashSet<String>>,
}

/// Parts of a key; no address contains it, and the model comes last.
const APART: char = '\u{1f}';

impl Families {
    pub fn new(shards: usize) -> Families {
        Families {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            sets: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    /// Counts one finished request of shard `index`.
    pub fn finished(&self, index: usize, request: &Finished) {
        let mut shard = lock(&self.shards[index]);
        let shard = &mut *shard;
        let endpoint = usize::from(request.chat);
        Count::inc(&mut shard.requests[endpoint]);
        shard.durations[endpoint]
            .get_or_insert_with(Histogram::new)
            .observe(request.total);
        let model = model_label(request.model.unwrap_or_default());
        if let Some(legs) = &request.legs {
            let (prefill, decode) = (
                legs.prefill.unwrap_or(UNKNOWN),
                legs.decode.unwrap_or(UNKNOWN),
            );
            let key = join(&mut shard.key, [decode, prefill, model]);
            let set = entry(&mut shard.sets, key, &self.sets);
            if legs.prefill.is_some() {
                Count::inc(&mut set.prefills);
            }
            if legs.decode.is_some() {
                Count::inc(&mut set.decodes);
            }
            for (part, time) in set.parts.iter_mut().zip(legs.times) {
                if let Some(time) = time {
                    part.get_or_insert_with(Histogram::new).observe(time);
                }
            }
        }
        if let Some((instance, failure)) = request.failure {
            let key = join(&mut shard.key, [failure.name(), instance, model]);
            Count::inc(entry(&mut shard.errors, key, &self.errors));
        }
    }

    /// Appends all families to the page.
    pub fn render(&self, levels: &Levels, out: &mut String) {
        let all = self.sum();
        let page = &mut Page { out };
        page.counter(
            ("proxy_requests_total", "Total number of proxy requests"),
            &endpoints(&all.requests),
        );
        page.histogram(
            (
                "proxy_request_duration_seconds",
                "Request duration in seconds",
            ),
            &endpoints(&all.durations),
        );
        page.head(
            "proxy_active_requests",
            "Number of currently active requests",
            "gauge",
        );
        page.line("proxy_active_requests", &[], levels.active as f64);
        for (part, about) in PARTS.iter().enumerate() {
            page.histogram(*about, &of(&all.sets, |set| set.parts[part].clone()));
        }
        for (level, about) in LEVELS.iter().enumerate() {
            page.levels(*about, level, &levels.instances);
        }
        page.counter(
            (
                "proxy_prefill_requests_total",
                "Total number of requests routed to each prefill instance",
            ),
            &of(&all.sets, |set| set.prefills),
        );
        page.counter(
            (
                "proxy_decode_requests_total",
                "Total number of requests routed to each decode instance",
            ),
            &of(&all.sets, |set| set.decodes),
        );
        let errors: BTreeMap<_, _> = all.errors.iter().collect();
        let errors: Vec<_> = errors
            .into_iter()
            .filter_map(|(key, count)| {
                let names = ["error_type", "instance", "model"];
                Some((labels(names, key), (*count)?))
            })
            .collect();
        page.counter(
            (
                "proxy_instance_errors_total",
                "Total number of errors per instance and error type",
            ),
            &errors,
        );
    }

    fn sum(&self) -> Shard {
        let mut all = Shard::default();
        for shard in &self.shards {
            let shard = lock(shard).clone();
            for (to, from) in all.requests.iter_mut().zip(shard.requests) {
                add_count(to, from);
            }
            for (to, from) in all.durations.iter_mut().zip(&shard.durations) {
                add_histogram(to, from);
            }
            for (key, from) in shard.sets {
                let to = all.sets.entry(key).or_default();
                add_count(&mut to.prefills, from.prefills);
                add_count(&mut to.decodes, from.decodes);
                for (to, from) in to.parts.iter_mut().zip(&from.parts) {
                    add_histogram(to, from);
                }
            }
            for (key, from) in shard.errors {
                add_count(all.errors.entry(key).or_default(), from);
            }
        }
        all
    }
}

fn add_count(to: &mut Option<Count>, from: Option<Count>) {
    if let Some(from) = from {
        Count::add(to, from.value, from.created);
    }
}

fn add_histogram(to: &mut Option<Histogram>, from: &Option<Histogram>) {
    match (to, from) {
        (Some(to), Some(from)) => to.add(from),
        (to @ None, Some(from)) => *to = Some(from.clone()),
        (_, None) => {}
    }
}

fn join<'a>(key: &'a mut String, parts: [&str; 3]) -> &'a str {
    key.clear();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            key.push(APART);
        }
        key.push_str(part);
    }
    key
}

/// The entry of this key, or of `other` once there are too many in the process.
fn entry<'a, V: Default>(
    map: &'a mut HashMap<String, V>,
    key: &str,
    known: &Mutex<HashSet<String>>,
) -> &'a mut V {
    let admitted = map.contains_key(key) || {
        let mut known = lock(known);
        known.contains(key) || (known.len() < SETS_MAX && known.insert(key.to_owned()))
    };
    let key = match admitted {
        true => key.to_owned(),
        false => [OTHER; 3].join(&APART.to_string()),
    };
    map.entry(key).or_default()
}

type Labels = Vec<(&'static str, String)>;

fn labels(names: [&'static str; 3], key: &str) -> Labels {
    let values = key.splitn(3, APART).map(str::to_owned);
    names.into_iter().zip(values).collect()
}

fn endpoints<T: Clone>(values: &[Option<T>; ENDPOINTS.len()]) -> Vec<(Labels, T)> {
    let all = ENDPOINTS.iter().zip(values);
    all.filter_map(|(name, value)| Some((vec![("endpoint", (*name).to_owned())], value.clone()?)))
        .collect()
}

/// One value of every set that has it.
fn of<T>(sets: &HashMap<String, Set>, pick: impl Fn(&Set) -> Option<T>) -> Vec<(Labels, T)> {
    let sorted: BTreeMap<_, _> = sets.iter().collect();
    let names = ["decode_instance", "prefill_instance", "model"];
    let all = sorted.into_iter().filter_map(|(key, set)| {
        let mut labels = labels(names, key);
        labels.sort_unstable();
        Some((labels, pick(set)?))
    });
    all.collect()
}

/// The text format as Python's client library writes it: labels sorted, values as floats, and for each
/// counter and histogram a family that says when it was made.
struct Page<'a> {
    out: &'a mut String,
}

impl Page<'_> {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (key, value)) in labels.iter().enumerate() {
            self.out.push(if i == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{key}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    c => self.out.push(c),
                }
            }
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value:?}");
    }

    fn counter(&mut self, (name, help): (&str, &str), rows: &[(Labels, Count)]) {
        self.head(name, help, "counter");
        for (labels, count) in rows {
            self.line(name, &borrowed(labels), count.value as f64);
        }
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let made = rows.iter().map(|(labels, count)| (labels, count.created));
        self.created(stem, help, made);
    }

    fn histogram(&mut self, (name, help): (&str, &str), rows: &[(Labels, Histogram)]) {
        self.head(name, help, "histogram");
        for (labels, histogram) in rows {
            let labels = borrowed(labels);
            let mut below = 0;
            for (n, (_, bound)) in histogram.buckets.iter().zip(BOUNDS) {
                below += n;
                let mut with_bound = labels.clone();
                with_bound.push(("le", bound));
                with_bound.sort_unstable();
                self.line(&format!("{name}_bucket"), &with_bound, below as f64);
            }
            self.line(&format!("{name}_count"), &labels, below as f64);
            self.line(&format!("{name}_sum"), &labels, histogram.sum);
        }
        let made = rows.iter().map(|(labels, one)| (labels, one.created));
        self.created(name, help, made);
    }

    fn created<'a>(
        &mut self,
        stem: &str,
        help: &str,
        rows: impl ExactSizeIterator<Item = (&'a Labels, f64)>,
    ) {
        if rows.len() == 0 {
            return;
        }
        let name = format!("{stem}_created");
        self.head(&name, help, "gauge");
        for (labels, created) in rows {
            self.line(&name, &borrowed(labels), created);
        }
    }

    /// `level`: its place in [`LEVELS`]. Nothing ever queues for a prefill.
    fn levels(&mut self, (name, help): (&str, &str), level: usize, instances: &[Level]) {
        self.head(name, help, "gauge");
        for one in instances.iter().filter(|one| one.prefill != (level == 1)) {
            let (prefill, decode) = match one.prefill {
                true => (one.name.as_str(), UNKNOWN),
                false => (UNKNOWN, one.name.as_str()),
            };
            let labels = [
                ("decode_instance", decode),
                ("model", model_label(&one.model)),
                ("prefill_instance", prefill),
            ];
            let value = if level == 2 { 0 } else { one.requests };
            self.line(name, &labels, value as f64);
        }
    }
}

fn borrowed(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

/// What these locks guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(model: &'a str, ms: u64) -> Finished<'a> {
        let time = Some(Duration::from_millis(ms));
        Finished {
            chat: false,
            total: Duration::from_millis(ms),
            model: Some(model),
            legs: Some(Legs {
                prefill: Some("10.0.0.1:1"),
                decode: Some("10.0.0.2:2"),
                times: [time; 6],
            }),
            failure: Some(("10.0.0.1:1", Failure::Prefill)),
        }
    }

    fn page(families: &Families) -> String {
        let mut out = String::new();
        families.render(&Levels::default(), &mut out);
        out
    }

    #[test]
    fn shards_are_summed_and_bounds_are_inclusive() {
        let families = Families::new(2);
        families.finished(0, &request("m", 5));
        families.finished(1, &request("m", 6));
        families.finished(1, &request("m", 60_000));
        let page = page(&families);
        let set = r#"decode_instance="10.0.0.2:2","#;
        let rest = r#"model="m",prefill_instance="10.0.0.1:1"}"#;
        for (le, count) in [("0.005", 1), ("0.01", 2), ("10.0", 2), ("+Inf", 3)] {
            let line = format!("proxy_ttft_seconds_bucket{{{set}le=\"{le}\",{rest} {count}.0\n");
            assert!(page.contains(&line), "{line}\n{page}");
        }
        for line in [
            format!("proxy_ttft_seconds_count{{{set}{rest} 3.0\n"),
            format!("proxy_prefill_requests_total{{{set}{rest} 3.0\n"),
            "proxy_requests_total{endpoint=\"/v1/completions\"} 3.0\n".into(),
            "proxy_instance_errors_total{error_type=\"prefill_forward_error\",instance=\"10.0.0.1:1\",model=\"m\"} 3.0\n".into(),
        ] {
            assert!(page.contains(&line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_client_s_names_never_fill_the_memory() {
        let families = Families::new(2);
        for i in 0..SETS_MAX + 500 {
            families.finished(i % 2, &request(&format!("m{i}"), 1));
        }
        families.finished(0, &request(&"x".repeat(10_000), 1));
        families.finished(0, &request("m0", 1));
        let page = page(&families);
        let lines = |start: &str| page.lines().filter(|l| l.starts_with(start)).count();
        assert_eq!(lines("proxy_e2e_latency_seconds_count{"), SETS_MAX + 1);
        assert_eq!(lines("proxy_instance_errors_total{"), SETS_MAX + 1);
        let count = |model: &str| {
            let of = |l: &&str| {
                l.starts_with("proxy_decode_requests_total{") && l.contains(&format!("\"{model}\""))
            };
            let line = page.lines().find(of).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            (count("m0").as_str(), count("other").as_str()),
            ("2.0", "501.0")
        );
    }

    #[test]
    fn a_long_name_is_one_label_in_all_families() {
        let long = "x".repeat(MODEL_MAX + 1);
        let families = Families::new(1);
        families.finished(0, &request(&long, 1));
        let level = |prefill| Level {
            name: "10.0.0.1:1".into(),
            prefill,
            model: long.clone(),
            requests: 1,
        };
        let levels = Levels {
            active: 1,
            instances: vec![level(true), level(false)],
        };
        let mut page = String::new();
        families.render(&levels, &mut page);
        assert!(!page.contains(&long), "{page}");
        let gauge = "proxy_decode_active_requests{decode_instance=\"10.0.0.1:1\",model=\"other\"";
        assert!(page.contains(gauge), "{page}");
    }

    #[test]
    fn a_name_cannot_break_its_line() {
        let families = Families::new(1);
        families.finished(0, &request("a\"b\\c\nd\u{1f}e", 1));
        let page = page(&families);
        assert!(page.contains("model=\"a\\\"b\\\\c\\nd\u{1f}e\""), "{page}");
    }
}
