//! YAML text -> [`Node`]s that know their line.
//!
//! Two libraries, because neither does both jobs: `serde_yaml` gives typed values (and is the parser
//! whose reading counts), but no positions once a value was read; `saphyr-parser` gives every node's
//! position. Both see the same text, their two trees have the same shape, and the lines of the second
//! are laid over the first, child by child. Should they ever disagree about a shape, the values stay
//! right and only a line is that of the parent.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use saphyr_parser::{Event, Parser};
use serde::de::{
    Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// One value and the line (from 1) where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In written order, duplicates kept, merge keys (`<<`) already merged.
    Map(Vec<Entry>),
    /// A value with a local tag (`!name`); pdrelay knows none.
    Tagged(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub node: Node,
}

impl Value {
    /// Python's word for the type: the old proxy's messages use it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "NoneType",
            Value::Bool(_) => "bool",
            Value::Integer(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::List(_) => "list",
            Value::Map(_) => "dict",
            Value::Tagged(_) => "a tagged value",
        }
    }
}

/// Why a text is no YAML, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Malformed {
    pub line: usize,
    pub message: String,
}

/// An empty document is `Null`.
pub fn parse(text: &str) -> Result<Node, Malformed> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(line) = too_deep(text) {
        let message = format!("nested more than {DEPTH_MAX} deep");
        return Err(Malformed { line, message });
    }
    // serde_yaml first: it bounds depth and alias expansion, so what follows is safe to recurse into.
    let raw = serde_yaml::from_str::<Raw>(text).map_err(|error| Malformed {
        line: error.location().map_or(1, |at| at.line().max(1)),
        message: error.to_string(),
    })?;
    Ok(lay(raw, marks(text).as_deref(), 1))
}

/// What serde_yaml reads: like `serde_yaml::Value`, but duplicate keys survive to be reported.
enum Raw {
    Leaf(Value),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Bool(v)))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Integer(v.into())))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Integer(v.into())))
    }
    fn visit_i128<E>(self, v: i128) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Integer(v)))
    }
    fn visit_u128<E>(self, v: u128) -> Result<Raw, E> {
        Ok(Raw::Leaf(
            i128::try_from(v).map_or(Value::Float(v as f64), Value::Integer),
        ))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Float(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Text(v.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Raw, A::Error> {
        let (tag, inner) = data.variant::<String>()?;
        inner.newtype_variant::<Raw>()?;
        Ok(Raw::Leaf(Value::Tagged(tag)))
    }
}

/// A node's line, and its children's: items of a list; key, value, key, value, ... of a map.
#[derive(Debug, Default)]
struct Mark {
    line: usize,
    children: Vec<Rc<Mark>>,
}

/// Deeper than serde_yaml lets through; below what a recursive drop could not take.
const DEPTH_MAX: usize = 256;

/// The line where brackets open deeper than any configuration does. Both parsers say so themselves, but only
/// after they have read on, and that takes the square of the depth: a minute for 100 kB of `[`. So without
/// them, as far as it takes: quoted texts and comments do not count.
fn too_deep(text: &str) -> Option<usize> {
    let (mut depth, mut line, mut before) = (0usize, 1, b'\n');
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let starts = before.is_ascii_whitespace() || b"[{,:".contains(&before);
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'\'' | b'"' if starts => {
                while let Some(inner) = bytes.next().filter(|inner| *inner != byte) {
                    line += usize::from(inner == b'\n');
                    if inner == b'\\' && byte == b'"' {
                        bytes.next();
                    }
                }
            }
            b'#' if before.is_ascii_whitespace() => {
                bytes.find(|rest| *rest == b'\n');
                line += 1;
            }
            b'\n' => line += 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some(line);
        }
        before = byte;
    }
    None
}

/// The positions of the first document; what was seen before an error counts.
fn marks(text: &str) -> Option<Rc<Mark>> {
    let mut parser = Parser::new_from_str(text);
    let mut anchors: HashMap<usize, Rc<Mark>> = HashMap::new();
    let mut open: Vec<(Mark, usize)> = Vec::new();
    while let Some(Ok((event, span))) = parser.next_event() {
        let line = span.start.line();
        let (done, anchor) = match event {
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if open.len() >= DEPTH_MAX {
                    return None;
                }
                open.push((
                    Mark {
                        line,
                        children: Vec::new(),
                    },
                    anchor,
                ));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (mark, anchor) = open.pop()?;
                (Rc::new(mark), anchor)
            }
            Event::Scalar(_, _, anchor, _) => (
                Rc::new(Mark {
                    line,
                    ..Mark::default()
                }),
                anchor,
            ),
            Event::Alias(anchor) => {
                let there = anchors.get(&anchor).cloned();
                (
                    there.unwrap_or_else(|| {
                        Rc::new(Mark {
                            line,
                            ..Mark::default()
                        })
                    }),
                    0,
                )
            }
            _ => continue,
        };
        if anchor != 0 {
            anchors.insert(anchor, done.clone());
        }
        match open.last_mut() {
            Some((parent, _)) => parent.children.push(done),
            None => return Some(done),
        }
    }
    // Broken off: close what is open, innermost first.
    let mut last: Option<Rc<Mark>> = None;
    while let Some((mut mark, _)) = open.pop() {
        mark.children.extend(last);
        last = Some(Rc::new(mark));
    }
    last
}

fn lay(raw: Raw, mark: Option<&Mark>, above: usize) -> Node {
    let line = mark.map_or(above, |m| m.line);
    let child = |i: usize| mark.and_then(|m| m.children.get(i)).map(Rc::as_ref);
    let value = match raw {
        Raw::Leaf(value) => value,
        Raw::List(items) => Value::List(
            items
                .into_iter()
                .enumerate()
                .map(|(i, raw)| lay(raw, child(i), line))
                .collect(),
        ),
        Raw::Map(entries) => {
            let entries = entries.into_iter().enumerate().map(|(i, (key, value))| {
                let at = child(2 * i).map_or(line, |m| m.line);
                let mut node = lay(value, child(2 * i + 1), at);
                if node.value == Value::Null {
                    node.line = at; // nothing is written there
                }
                Entry {
                    key: key_text(key),
                    line: at,
                    node,
                }
            });
            Value::Map(merge(entries.collect()))
        }
    };
    Node { line, value }
}

fn key_text(key: Raw) -> String {
    match key {
        Raw::Leaf(Value::Text(text)) => text,
        Raw::Leaf(Value::Null) => "null".into(),
        Raw::Leaf(Value::Bool(v)) => v.to_string(),
        Raw::Leaf(Value::Integer(v)) => v.to_string(),
        Raw::Leaf(Value::Float(v)) => v.to_string(),
        Raw::Leaf(_) | Raw::List(_) | Raw::Map(_) => "?".into(),
    }
}

/// `<<: *base` (or a list of them): keys that are not written here come from there.
fn merge(entries: Vec<Entry>) -> Vec<Entry> {
    let is_merge = |e: &Entry| {
        e.key == "<<"
            && match &e.node.value {
                Value::Map(_) => true,
                Value::List(items) => items.iter().all(|n| matches!(n.value, Value::Map(_))),
                _ => false,
            }
    };
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_merge);
    for entry in merges {
        let sources = match entry.node.value {
            Value::List(items) => items,
            _ => vec![entry.node],
        };
        for source in sources {
            let Value::Map(inherited) = source.value else {
                continue;
            };
            for entry in inherited {
                if !own.iter().any(|mine| mine.key == entry.key) {
                    own.push(entry);
                }
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_without_end_are_refused_at_once() {
        for text in ["model: ", "a:\n  b: "] {
            for open in ["[", "{a: ", "[{a: "] {
                let began = std::time::Instant::now();
                let bad = parse(&format!("{text}{}", open.repeat(200_000))).unwrap_err();
                assert_eq!(bad.message, "nested more than 256 deep");
                let took = began.elapsed();
                assert!(took < std::time::Duration::from_secs(5), "{took:?}");
            }
        }
        let deep = format!("a: 1\n# [\nb: \"\\\"[\n[\"\nc: {}", "[".repeat(300));
        assert_eq!(parse(&deep).unwrap_err().line, 5);
        // Many are fine, where they close.
        let many = format!("a: [{}1]", "[],".repeat(5_000));
        assert!(matches!(parse(&many).unwrap().value, Value::Map(_)));
        for quoted in ["a: '{}'", "a: \"\\\"{}\"", "a: 1 # {}", "{a: '{}'}"] {
            let text = quoted.replace("{}", &"[".repeat(5_000));
            assert!(parse(&text).is_ok(), "{quoted}");
        }
    }
}
