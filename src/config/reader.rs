//! Reading one YAML section by a table of its keys, and noting everything that is wrong on the way.
//!
//! A [`Section`] is a list of [`Row`]s: a key and how it is stored. [`At`] is one value with its place;
//! its methods store what is right and report what is not, so that one run finds every mistake.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::load::Problem;
use super::quantity::{parse_bytes, parse_duration, seconds_to_duration, show_bytes};
use super::yaml::{Node, Value};

/// One key of a section of the configuration.
pub struct Row<T> {
    pub name: &'static str,
    /// The key it is another spelling of, or empty. Both at once is an error.
    pub alias_of: &'static str,
    pub set: fn(&mut T, &mut At<'_, '_>),
}

pub struct Section<T: 'static> {
    /// How the section is called in "Unknown keys in NAME".
    pub name: &'static str,
    pub rows: &'static [Row<T>],
}

/// Where something was configured, for the problems found later.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub file: String,
    /// From 1; 0 on the command line.
    pub line: usize,
    /// What the user wrote there: `prefill[2]`, `--prefill`.
    pub path: String,
}

/// Everything found so far, and where each key was written.
#[derive(Debug)]
pub struct Report {
    file: String,
    root_line: usize,
    places: HashMap<String, Place>,
    /// An instance may be a URL. (Not to an old program that refuses them.)
    pub urls: bool,
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Report {
    /// `root_line` is the line to name for what is written nowhere (0: there is no file).
    pub fn new(file: &str, root_line: usize) -> Self {
        Report {
            file: file.into(),
            root_line,
            places: HashMap::new(),
            urls: true,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The place of `key`, of the nearest key around it, or of the whole.
    pub fn place(&self, key: &str) -> Place {
        let mut around = key;
        loop {
            if let Some(place) = self.places.get(around) {
                let path = if around == key { &place.path } else { key };
                return Place {
                    path: path.into(),
                    ..place.clone()
                };
            }
            match around.rfind(['.', '[']) {
                Some(end) => around = &around[..end],
                None => break,
            }
        }
        Place {
            file: self.file.clone(),
            line: self.root_line,
            path: key.into(),
        }
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    pub fn set_place(&mut self, key: &str, place: Place) {
        self.places.insert(key.into(), place);
    }

    /// No problem was reported at `key` or inside it, nor at the flag of its name.
    pub fn is_sound(&self, key: &str) -> bool {
        let inside = |p: &Problem| match p.path.trim_start_matches("--").strip_prefix(key) {
            Some(rest) => rest.is_empty() || rest.starts_with(['.', '[']),
            None => false,
        };
        !self.problems.iter().any(inside)
    }

    pub fn problem(&mut self, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        let place = self.place(key);
        self.problems.push(Problem::at(place, message, fix));
    }

    pub fn warning(&mut self, key: &str, message: impl Into<String>, fix: impl Into<String>) {
        let place = self.place(key);
        self.warnings.push(Problem::at(place, message, fix));
    }
}

/// One value, where it stands, and where to report.
pub struct At<'n, 'r> {
    pub node: &'n Node,
    pub path: String,
    line: usize,
    report: &'r mut Report,
}

impl<'n, 'r> At<'n, 'r> {
    pub fn urls(&self) -> bool {
        self.report.urls
    }

    pub fn root(node: &'n Node, report: &'r mut Report) -> Self {
        At {
            node,
            path: String::new(),
            line: node.line,
            report,
        }
    }

    fn place(&self) -> Place {
        Place {
            file: self.report.file.clone(),
            line: self.line,
            path: self.path.clone(),
        }
    }

    pub fn fail(&mut self, message: impl Into<String>, fix: impl Into<String>) {
        let problem = Problem::at(self.place(), message, fix);
        self.report.problems.push(problem);
    }

    pub fn warn(&mut self, message: impl Into<String>, fix: impl Into<String>) {
        let problem = Problem::at(self.place(), message, fix);
        self.report.warnings.push(problem);
    }

    pub fn is_null(&self) -> bool {
        self.node.value == Value::Null
    }

    /// The last part of the path, as messages name it.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// "NAME must be WHAT, got TYPE".
    pub fn mistyped(&mut self, what: &str) {
        let type_name = self.node.value.type_name();
        let message = format!("{} must be {what}, got {type_name}", self.name());
        let fix = match type_name {
            "NoneType" => "give it a value, or remove the key",
            "int" | "float" | "bool" if what == "a string" => "put it in quotes",
            _ => "",
        };
        self.fail(message, fix);
    }

    // --- Sections ---------------------------------------------------------------------------------

    /// Reads a mapping by its table. Nothing written (null) leaves the defaults. False: no mapping.
    pub fn section<T>(&mut self, target: &mut T, section: &Section<T>) -> bool {
        let Value::Map(_) = self.node.value else {
            if !self.is_null() {
                let got = self.node.value.type_name();
                // The old proxy has two ways of saying it.
                let section = if self.name() == "startup" {
                    " section"
                } else {
                    ""
                };
                let message = format!("'{}'{section} must be a mapping, got {got}", self.name());
                self.fail(message, "write its keys below it, indented");
            }
            return false;
        };
        let names: Vec<&str> = section.rows.iter().map(|row| row.name).collect();
        let mut seen: Vec<&str> = Vec::new();
        for index in self.entries() {
            let Value::Map(entries) = &self.node.value else {
                break;
            };
            let key = entries[index].key.as_str();
            let Some(row) = section.rows.iter().find(|row| row.name == key) else {
                let message = format!("Unknown keys in {}: ['{key}']", section.name);
                let fix = suggest_key(key, &names);
                self.entry(index).fail(message, fix);
                continue;
            };
            let canonical = if row.alias_of.is_empty() {
                row.name
            } else {
                row.alias_of
            };
            let twin = seen.iter().find(|other| {
                let spelled = section.rows.iter().find(|r| r.name == **other);
                **other == canonical || spelled.is_some_and(|r| r.alias_of == canonical)
            });
            if let Some(twin) = twin {
                let message = format!("'{key}' and '{twin}' are two spellings of one key");
                self.entry(index).fail(message, "keep one of them");
            }
            seen.push(key);
            (row.set)(target, &mut self.entry(index));
        }
        true
    }

    /// The indices of a mapping's entries; a key written twice is reported and given once.
    pub fn entries(&mut self) -> Vec<usize> {
        let node = self.node;
        let Value::Map(entries) = &node.value else {
            return Vec::new();
        };
        let mut firsts: HashMap<&str, usize> = HashMap::new();
        let mut indices = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match firsts.get(entry.key.as_str()) {
                Some(&first) => {
                    let message = format!("duplicate key '{}' (first on line {first})", entry.key);
                    self.entry(index).fail(message, "keep one of them");
                }
                None => {
                    firsts.insert(&entry.key, entry.line);
                    indices.push(index);
                }
            }
        }
        indices
    }

    /// One entry of a mapping, which must be there.
    pub fn entry(&mut self, index: usize) -> At<'n, '_> {
        let Value::Map(entries) = &self.node.value else {
            unreachable!("entry() of no mapping")
        };
        let entry = &entries[index];
        let dot = if self.path.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{}", self.path, entry.key);
        let line = match entry.node.value {
            // A collection is found by its key; a scalar by itself.
            Value::List(_) | Value::Map(_) => entry.line,
            _ => entry.node.line,
        };
        self.inside(path, line, &entry.node)
    }

    fn inside(&mut self, path: String, line: usize, node: &'n Node) -> At<'n, '_> {
        let place = Place {
            file: self.report.file.clone(),
            line,
            path: path.clone(),
        };
        self.report.places.entry(path.clone()).or_insert(place);
        At {
            node,
            path,
            line,
            report: self.report,
        }
    }

    /// Every item of a list; null is an empty list. False (and reported): it is no list.
    pub fn each(&mut self, what: &str, mut read: impl FnMut(&mut At<'n, '_>)) -> bool {
        let node = self.node;
        match &node.value {
            Value::Null => true,
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{}[{index}]", self.path);
                    read(&mut self.inside(path, item.line, item));
                }
                true
            }
            _ => {
                self.mistyped(what);
                false
            }
        }
    }

    // --- Values -----------------------------------------------------------------------------------

    pub fn text(&mut self) -> Option<&'n str> {
        match &self.node.value {
            Value::Text(text) => Some(text.trim()),
            _ => {
                self.mistyped("a string");
                None
            }
        }
    }

    pub fn boolean(&mut self) -> Option<bool> {
        match &self.node.value {
            Value::Bool(value) => Some(*value),
            // YAML 1.1's words, which the old proxy's parser reads as booleans.
            Value::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "yes" | "on" | "true" | "y" => Some(true),
                "no" | "off" | "false" | "n" => Some(false),
                _ => {
                    self.mistyped("true or false");
                    None
                }
            },
            _ => {
                self.mistyped("true or false");
                None
            }
        }
    }

    /// A whole number; numeric strings are accepted, as the old proxy does.
    pub fn whole(&mut self) -> Option<i128> {
        let value = match &self.node.value {
            Value::Integer(value) => Some(*value),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                Some(*value as i128)
            }
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        if value.is_none() {
            self.mistyped("an integer");
        }
        value
    }

    pub fn integer<N: TryFrom<i128> + Display + PartialOrd>(
        &mut self,
        range: RangeInclusive<N>,
    ) -> Option<N> {
        let whole = self.whole()?;
        match N::try_from(whole) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                let (low, high) = (range.start(), range.end());
                let message = format!(
                    "{} must be between {low} and {high}, got {whole}",
                    self.name()
                );
                self.fail(message, "");
                None
            }
        }
    }

    pub fn float(&mut self, range: RangeInclusive<f64>) -> Option<f64> {
        let value = match &self.node.value {
            Value::Integer(value) => *value as f64,
            Value::Float(value) => *value,
            Value::Text(text) if text.trim().parse::<f64>().is_ok() => {
                text.trim().parse().unwrap_or(f64::NAN)
            }
            _ => {
                self.mistyped("a number");
                return None;
            }
        };
        if range.contains(&value) {
            return Some(value);
        }
        let (low, high) = (range.start(), range.end());
        let what = match *high {
            f64::MAX => format!("a number from {low} on"),
            high => format!("between {low} and {high}"),
        };
        let message = format!("{} must be {what}, got {value}", self.name());
        self.fail(message, "");
        None
    }

    /// A wait above zero: `450s`, `100ms`, or a number of seconds.
    pub fn duration(&mut self) -> Option<Duration> {
        let value = self.duration_or_zero()?;
        if value.is_zero() {
            let message = format!("{} must be above 0", self.name());
            self.fail(
                message,
                "every wait has an end: write a long one, such as 24h",
            );
            return None;
        }
        Some(value)
    }

    pub fn duration_or_zero(&mut self) -> Option<Duration> {
        let parsed = match &self.node.value {
            Value::Integer(value) => seconds_to_duration(*value as f64),
            Value::Float(value) => seconds_to_duration(*value),
            Value::Text(text) => parse_duration(text),
            _ => {
                self.mistyped("a duration");
                return None;
            }
        };
        self.or_fail(
            parsed,
            "write 450s, 100ms, 500us, 5m, 1h, or a number of seconds",
        )
    }

    /// The old proxy's plain numbers: `interval_seconds: 10`, `initial_backoff_ms: 100`.
    pub fn duration_in(&mut self, unit: Duration) -> Option<Duration> {
        let number = self.float(0.0..=f64::MAX)?;
        self.or_fail(seconds_to_duration(number * unit.as_secs_f64()), "")
    }

    pub fn bytes(&mut self, range: RangeInclusive<usize>) -> Option<usize> {
        let parsed = match &self.node.value {
            Value::Integer(value) => {
                u64::try_from(*value).map_err(|_| format!("'{value}' is not a byte size"))
            }
            Value::Text(text) => parse_bytes(text),
            _ => {
                self.mistyped("a byte size");
                return None;
            }
        };
        let bytes = self.or_fail(parsed, "write 64MiB, 16KiB, 1GB, or a number of bytes")?;
        match usize::try_from(bytes) {
            Ok(bytes) if range.contains(&bytes) => Some(bytes),
            _ => {
                let (low, high) = (show_bytes(*range.start()), show_bytes(*range.end()));
                let message = format!(
                    "{} must be between {low} and {high}, got {bytes} bytes",
                    self.name()
                );
                self.fail(message, "");
                None
            }
        }
    }

    fn or_fail<V>(&mut self, parsed: Result<V, String>, fix: &str) -> Option<V> {
        match parsed {
            Ok(value) => Some(value),
            Err(why) => {
                let message = format!("{}: {why}", self.name());
                self.fail(message, fix);
                None
            }
        }
    }
}

/// Stores what was read; what was not leaves the default.
pub fn put<V>(target: &mut V, value: Option<V>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// For a key that its section does not know: the nearest one, where it belongs, or what there is.
fn suggest_key(key: &str, known: &[&str]) -> String {
    if nearest(key, known).is_none() {
        let homes: Vec<String> = super::schema::keys()
            .iter()
            .filter_map(|full| match full.rsplit_once('.') {
                Some((section, name)) => (name == key).then(|| format!("under '{section}'")),
                None => (full == key).then(|| "at the top level".into()),
            })
            .collect();
        if !homes.is_empty() {
            return format!("it belongs {}", homes.join(" or "));
        }
        if known.len() > KEYS_SHOWN {
            return "configs/reference.yaml shows every key".into();
        }
    }
    suggest(key, known)
}

/// More than this are too many to list in a message.
const KEYS_SHOWN: usize = 16;

/// "did you mean 'x'?", or what there is.
pub fn suggest(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => "remove it".into(),
        None => format!("known: {}", known.join(", ")),
    }
}

fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let distance = |other: &str| strsim::damerau_levenshtein(&word, &plain(other));
    let best = known.iter().min_by_key(|other| distance(other))?;
    let allowed = (word.chars().count() * 2 / 5).clamp(1, 4);
    (distance(best) <= allowed).then_some(best)
}
