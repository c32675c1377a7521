//! A strict reader of the Prometheus text format 0.0.4: it panics at whatever a scraper could refuse.

use std::collections::BTreeMap;

pub struct Page {
    /// Series as written, without its value.
    samples: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Page {
    pub fn read(text: &str) -> Page {
        assert!(text.ends_with('\n'), "the last line must end");
        let mut page = Page {
            samples: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let help = line
                .strip_prefix("# HELP ")
                .unwrap_or_else(|| panic!("HELP before {line}"));
            let (family, help) = help.split_once(' ').expect("help text");
            assert!(is_name(family, true) && !help.is_empty(), "{line}");
            let kind = lines
                .next()
                .and_then(|line| line.strip_prefix("# TYPE "))
                .expect("TYPE");
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, family);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(
                kind == "counter",
                family.ends_with("_total"),
                "name of {kind} {family}"
            );
            let twice = page.kinds.insert(family.into(), kind.into());
            assert!(twice.is_none(), "{family} is declared twice");
            let mut series = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                series.push(page.sample(line, family, kind));
            }
            assert!(!series.is_empty(), "{family} is empty");
            if kind == "histogram" {
                page.check_histogram(family, &series);
            }
        }
        page
    }

    fn sample(&mut self, line: &str, family: &str, kind: &str) -> Series {
        let (key, value) = line.rsplit_once(' ').expect("a value");
        let value = value.parse().unwrap_or_else(|_| panic!("value of {line}"));
        let series = Series::read(key, value);
        match series
            .name
            .strip_prefix(family)
            .expect("a sample of its family")
        {
            "" => assert_ne!(kind, "histogram"),
            "_bucket" | "_sum" | "_count" => assert_eq!(kind, "histogram"),
            other => panic!("{other} in {line}"),
        }
        assert!(kind == "gauge" || value >= 0.0, "{line}");
        assert!(
            self.samples.insert(key.into(), value).is_none(),
            "{key} is there twice"
        );
        series
    }

    /// Rising bounds, rising counts, `+Inf` equal to `_count`, for each set of other labels.
    fn check_histogram(&self, family: &str, series: &[Series]) {
        let mut sets: BTreeMap<&[(String, String)], Vec<&Series>> = BTreeMap::new();
        for one in series {
            let labels = one.labels.as_slice();
            let own = if one.name.ends_with("_bucket") {
                labels.len() - 1
            } else {
                labels.len()
            };
            sets.entry(&labels[..own]).or_default().push(one);
        }
        for set in sets.values() {
            let (mut bound, mut count) = (f64::NEG_INFINITY, 0.0);
            let (buckets, rest) = set.split_at(set.len() - 2);
            for bucket in buckets {
                let (name, le) = bucket.labels.last().unwrap();
                assert_eq!(name, "le");
                let le: f64 = le.parse().unwrap();
                assert!(
                    le > bound && bucket.value >= count,
                    "{family} {:?}",
                    bucket.labels
                );
                (bound, count) = (le, bucket.value);
            }
            assert_eq!(bound, f64::INFINITY);
            assert!(rest[0].name.ends_with("_sum") && rest[1].name.ends_with("_count"));
            assert_eq!(rest[1].value, count, "{family}");
        }
    }

    pub fn value(&self, series: &str) -> f64 {
        *self
            .samples
            .get(series)
            .unwrap_or_else(|| panic!("{series} is not on the page"))
    }

    pub fn families(&self) -> usize {
        self.kinds.len()
    }

    pub fn is_counter(&self, family: &str) -> bool {
        self.kinds.get(family).is_some_and(|kind| kind == "counter")
    }

    pub fn sum_of(&self, family: impl Fn(&str) -> bool) -> f64 {
        let name = |key: &str| key.split('{').next().unwrap().to_owned();
        self.samples
            .iter()
            .filter(|(key, _)| family(&name(key)))
            .map(|(_, value)| value)
            .sum()
    }

    pub fn assert_not_before(&self, earlier: &Page) {
        for (key, before) in &earlier.samples {
            let name = key.split('{').next().unwrap();
            let part = |suffix: &str| {
                name.strip_suffix(suffix)
                    .map(|family| self.kinds.get(family))
            };
            let in_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .any(|s| part(s).flatten().is_some());
            if in_histogram || self.is_counter(name) {
                assert!(self.value(key) >= *before, "{key} went backwards");
            }
        }
    }
}

struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Series {
    fn read(key: &str, value: f64) -> Series {
        let (name, labels) = match key.split_once('{') {
            None => (key, Vec::new()),
            Some((name, rest)) => (name, read_labels(rest.strip_suffix('}').expect("a brace"))),
        };
        assert!(is_name(name, true), "{key}");
        Series {
            name: name.into(),
            labels,
            value,
        }
    }
}

fn read_labels(mut rest: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name, false), "label {name}");
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("escape {c}"),
                },
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        match &after[end + 1..] {
            "" => return labels,
            more => rest = more.strip_prefix(',').expect("a comma"),
        }
    }
}

fn is_name(name: &str, colon: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colon && c == ':');
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}
