//! `fix-config PATH`: repairs what is plainly meant, and names what its owner should look at.

use serde_yaml::{Mapping, Value};

use super::super::Terminal;
use super::super::argparse::{Flag, Parser, Takes};

static PARSER: Parser = Parser {
    program: "xpyd fix-config",
    words: "",
    about: "Repairs spelling, white space and missing ports in a configuration.",
    flags: &[
        Flag {
            names: &["--write"],
            takes: Takes::Nothing,
            value: "",
            about: "write it back, with a backup beside it; comments are lost",
        },
        Flag {
            names: &["--interactive"],
            takes: Takes::Nothing,
            value: "",
            about: "stop at each suggestion until Enter is pressed",
        },
    ],
    positionals: &["config_path"],
};

pub fn run(args: &[String], terminal: &mut dyn Terminal) -> u8 {
    let given = match PARSER.read(args) {
        Ok(given) => given,
        Err(why) => {
            terminal.err(&PARSER.refusal(&why));
            return 2;
        }
    };
    if given.help {
        terminal.out(&PARSER.help());
        return 0;
    }
    let path = given.positionals[0].as_str();
    match fix(
        path,
        given.has("--write"),
        given.has("--interactive"),
        terminal,
    ) {
        Ok(()) => 0,
        Err(why) => {
            terminal.err(&format!("Error: {why}\n"));
            1
        }
    }
}

fn fix(
    path: &str,
    write: bool,
    interactive: bool,
    terminal: &mut dyn Terminal,
) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("config file not found: {path}"),
        _ => format!("config file cannot be read: {path}: {error}"),
    })?;
    let parsed: Value =
        serde_yaml::from_str(&text).map_err(|error| format!("malformed YAML: {error}"))?;
    let Value::Mapping(mut map) = parsed else {
        return Err("YAML config must be a mapping.".into());
    };
    let mut fixes = Fixes::default();
    fixes.whole(&mut map);
    let suggestions = suggest(&map);
    let count = fixes.done.len();
    if count > 0 {
        terminal.out(&format!("✅ Fixed {count} issue(s):\n"));
        fixes.done.iter().for_each(|line| terminal.out(line));
    }
    if !suggestions.is_empty() {
        let gap = if count > 0 { "\n" } else { "" };
        let count = suggestions.len();
        terminal.out(&format!("{gap}⚠️  {count} issue(s) need your attention:\n"));
        for line in &suggestions {
            terminal.out(&format!("  - {line}\n"));
            if interactive {
                terminal.ask("    Press Enter to continue...", None);
            }
        }
    }
    if count == 0 {
        if suggestions.is_empty() {
            terminal.out("✅ No issues found.\n");
        }
        return Ok(());
    }
    let fixed = serde_yaml::to_string(&map).map_err(|error| error.to_string())?;
    if !write {
        terminal.out(&format!("\n--- Fixed config ---\n{fixed}\n"));
        return Ok(());
    }
    let backup = format!("{path}.{}.bak", terminal.stamp());
    let written = std::fs::copy(path, &backup).and_then(|_| std::fs::write(path, &fixed));
    written.map_err(|error| format!("cannot write {path}: {error}"))?;
    terminal.out(&format!(
        "\nBackup saved to: {backup}\nFixed config written to: {path}\n\n\
         Note: --write does not preserve YAML comments or formatting.\n"
    ));
    Ok(())
}

const SCHEDULERS: [&str; 5] = [
    "loadbalanced",
    "roundrobin",
    "consistent_hash",
    "power_of_two",
    "cache_aware",
];
const ROLES: [&str; 4] = ["prefill", "decode", "aggregated", "dual"];
const LISTS: [&str; 3] = ["prefill", "decode", "aggregated"];

#[derive(Default)]
struct Fixes {
    /// One line each, as it is shown.
    done: Vec<String>,
}

impl Fixes {
    fn note(&mut self, path: &str, old: &str, new: &str, why: &str) {
        self.done.push(format!(
            "  - {path}: {} → {} ({why})\n",
            repr(old),
            repr(new)
        ));
    }

    fn whole(&mut self, map: &mut Mapping) {
        self.model(map, "model", "model");
        for key in LISTS {
            self.list(map, key, key);
        }
        self.scheduler(map, "scheduling", "scheduling");
        for (i, item) in items(map, "models") {
            self.model(item, "name", &format!("models[{i}].name"));
            for key in LISTS {
                self.list(item, key, &format!("models[{i}].{key}"));
            }
            self.scheduler(item, "scheduler", &format!("models[{i}].scheduler"));
        }
        for (i, item) in items(map, "instances") {
            let path = format!("instances[{i}].role");
            self.trim(item, "role", &path, "extra whitespace trimmed");
            self.spell(item, "role", &path, &ROLES, "role normalized");
            if let Some(Value::String(text)) = item.get_mut("address") {
                self.address(text, &format!("instances[{i}].address"));
            }
            self.model(item, "model", &format!("instances[{i}].model"));
        }
    }

    fn model(&mut self, map: &mut Mapping, key: &str, path: &str) {
        self.trim(map, key, path, "model name whitespace trimmed");
    }

    fn trim(&mut self, map: &mut Mapping, key: &str, path: &str, why: &str) {
        if let Some(Value::String(text)) = map.get_mut(key)
            && text.trim() != text
        {
            let new = text.trim().to_owned();
            self.note(path, text, &new, why);
            *text = new;
        }
    }

    fn list(&mut self, map: &mut Mapping, key: &str, path: &str) {
        let Some(Value::Sequence(items)) = map.get_mut(key) else {
            return;
        };
        for (i, item) in items.iter_mut().enumerate() {
            if let Value::String(text) = item {
                self.address(text, &format!("{path}[{i}]"));
            }
        }
    }

    fn address(&mut self, text: &mut String, path: &str) {
        let trimmed = text.trim().to_owned();
        if trimmed != *text {
            self.note(path, text, &trimmed, "extra whitespace trimmed");
            *text = trimmed;
        }
        if text == "localhost" || text.parse::<std::net::Ipv4Addr>().is_ok() {
            let new = format!("{text}:8000");
            self.note(path, text, &new, "default port added");
            *text = new;
        }
    }

    fn scheduler(&mut self, map: &mut Mapping, key: &str, path: &str) {
        self.trim(map, key, path, "extra whitespace trimmed");
        self.spell(map, key, path, &SCHEDULERS, "scheduler typo corrected");
    }

    fn spell(&mut self, map: &mut Mapping, key: &str, path: &str, words: &[&str], why: &str) {
        let Some(Value::String(text)) = map.get_mut(key) else {
            return;
        };
        // least_load is ours, and no misspelling.
        if words.contains(&text.as_str()) || text == "least_load" {
            return;
        }
        if let Some(near) = nearest(text, words) {
            self.note(path, text, near, why);
            *text = near.to_owned();
        }
    }
}

/// The mappings of a list.
fn items<'m>(map: &'m mut Mapping, key: &str) -> impl Iterator<Item = (usize, &'m mut Mapping)> {
    let items = match map.get_mut(key) {
        Some(Value::Sequence(items)) => items.as_mut_slice(),
        _ => &mut [],
    };
    items
        .iter_mut()
        .enumerate()
        .filter_map(|(i, item)| Some((i, item.as_mapping_mut()?)))
}

/// What is odd, and not ours to decide: about models and who serves them.
fn suggest(map: &Mapping) -> Vec<String> {
    // Each model's addresses by the three roles, in written order.
    let mut models: Vec<(String, [Vec<String>; 3])> = Vec::new();
    let mut add = |name: &str, role: usize, address: &str| {
        let at = models.iter().position(|(known, _)| known == name);
        let at = at.unwrap_or_else(|| {
            models.push((name.to_owned(), Default::default()));
            models.len() - 1
        });
        models[at].1[role].push(address.to_owned());
    };
    let text = |item: &Value, key: &str| item.get(key)?.as_str().map(str::to_owned);
    let list = |value: Option<&Value>| value.and_then(Value::as_sequence).cloned();
    for item in list(map.get("models")).unwrap_or_default() {
        let Some(name) = text(&item, "name") else {
            continue;
        };
        for (role, key) in LISTS.iter().enumerate() {
            for address in list(item.get(key)).unwrap_or_default() {
                if let Value::String(address) = address {
                    add(&name, role, &address);
                }
            }
        }
    }
    for item in list(map.get("instances")).unwrap_or_default() {
        let role = text(&item, "role").map(|role| match role.as_str() {
            "dual" => "aggregated".to_owned(),
            _ => role,
        });
        let role = role.and_then(|role| LISTS.iter().position(|key| *key == role));
        let model = text(&item, "model").unwrap_or_default();
        if let (Some(role), Some(address)) = (role, text(&item, "address")) {
            add(&model, role, &address);
        }
    }

    let mut lines = Vec::new();
    let is_mixed = |[p, d, both]: &[Vec<String>; 3]| !both.is_empty() && p.len() + d.len() > 0;
    for (name, roles) in &models {
        if is_mixed(roles) {
            lines.push(format!(
                "model '{name}': Model '{name}' has both aggregated and prefill/decode instances. \
                 Consider converting all to aggregated or all to prefill/decode."
            ));
        }
    }
    let mut seen: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, roles) in &models {
        for address in roles.iter().flatten() {
            let at = seen.iter().position(|(known, _)| known == address);
            let at = at.unwrap_or_else(|| {
                seen.push((address, Vec::new()));
                seen.len() - 1
            });
            if !seen[at].1.contains(&name.as_str()) {
                seen[at].1.push(name);
            }
        }
    }
    for (address, names) in seen.iter().filter(|(_, names)| names.len() > 1) {
        let names: Vec<String> = names.iter().map(|name| repr(name)).collect();
        lines.push(format!(
            "address '{address}': Address '{address}' is used by multiple models: [{}]. Possible \
             conflict.",
            names.join(", ")
        ));
    }
    for (name, roles) in models.iter().filter(|(_, roles)| !is_mixed(roles)) {
        let [p, d, _] = roles.each_ref().map(Vec::len);
        let head = format!("model '{name}': Model '{name}' has {p} prefill");
        if p > 0 && d > 0 && p >= 4 * d {
            let ratio = p as f64 / d as f64;
            lines.push(format!(
                "{head} and {d} decode instances (ratio {ratio:.1}:1). Consider rebalancing."
            ));
        } else if p > 0 && d == 0 {
            lines.push(format!(
                "{head} but no decode instances. disaggregated mode requires both."
            ));
        } else if d > 0 && p == 0 {
            lines.push(format!(
                "model '{name}': Model '{name}' has {d} decode but no prefill instances. \
                 disaggregated mode requires both."
            ));
        }
    }
    lines
}

/// As Python shows a string.
fn repr(text: &str) -> String {
    match text.contains('\'') && !text.contains('"') {
        true => format!("\"{text}\""),
        false => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
    }
}

/// The word that is meant: the most alike, if at least 0.6 alike by Python's `difflib`.
fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    if text.chars().count() < 3 {
        return None;
    }
    let lower = text.to_lowercase();
    let alike = words.iter().map(|word| (ratio(word, &lower), *word));
    let best = alike.filter(|(ratio, _)| *ratio >= 0.6);
    best.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)))
        .map(|(_, word)| word)
}

/// Twice the matched characters over all characters, by Ratcliff and Obershelp: the longest common run,
/// then the same to its left and to its right.
fn ratio(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let all = a.len() + b.len();
    if all == 0 {
        return 1.0;
    }
    2.0 * matched(&a, &b) as f64 / all as f64
}

fn matched(a: &[char], b: &[char]) -> usize {
    let (mut start_a, mut start_b, mut longest) = (0, 0, 0);
    for i in 0..a.len() {
        for j in 0..b.len() {
            let run = a[i..]
                .iter()
                .zip(&b[j..])
                .take_while(|(x, y)| x == y)
                .count();
            if run > longest {
                (start_a, start_b, longest) = (i, j, run);
            }
        }
    }
    if longest == 0 {
        return 0;
    }
    let (end_a, end_b) = (start_a + longest, start_b + longest);
    matched(&a[..start_a], &b[..start_b]) + longest + matched(&a[end_a..], &b[end_b..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are Python's.
    #[test]
    fn likeness_is_that_of_difflib() {
        for (a, b, expected) in [
            ("loadbalanced", "loadbalance", 0.9565),
            ("roundrobin", "round_robin", 0.9524),
            ("decode", "decod", 0.9091),
            ("cache_aware", "zzz", 0.0),
            ("abcd", "bcde", 0.75),
        ] {
            assert!(
                (ratio(a, b) - expected).abs() < 1e-4,
                "{a} {b} {}",
                ratio(a, b)
            );
        }
        assert_eq!(
            nearest("consistenthash", &SCHEDULERS),
            Some("consistent_hash")
        );
        assert_eq!(nearest("agregated", &ROLES), Some("aggregated"));
        assert_eq!(nearest("zz", &ROLES), None);
        assert_eq!(nearest("fastest", &SCHEDULERS), None);
    }
}
