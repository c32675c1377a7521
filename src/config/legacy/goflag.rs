//! A command line read as Go's `flag` and `pflag` read it: one dash or two, `--flag=value`, switches that take no
//! word of their own, and their words for what is wrong.

/// What stands behind a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// `--flag`, or `--flag=false`.
    Switch,
    One,
    /// Given again, or with commas, it is one list.
    List,
}

/// What was given, in order; where a flag was given twice the last one counts, but for lists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Given {
    flags: Vec<(&'static str, Vec<String>)>,
    pub help: bool,
}

impl Given {
    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name)?.last().map(String::as_str)
    }

    pub fn all(&self, name: &str) -> Option<&[String]> {
        let found = self.flags.iter().find(|(flag, _)| *flag == name);
        found.map(|(_, values)| values.as_slice())
    }

    pub fn has(&self, name: &str) -> bool {
        self.all(name).is_some()
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.flags.iter().map(|(name, _)| *name)
    }

    pub fn add(&mut self, name: &'static str, takes: Takes, value: &str) {
        let values = match takes {
            Takes::List => value.split(',').map(|v| v.trim().to_owned()).collect(),
            _ => vec![value.to_owned()],
        };
        match self.flags.iter_mut().find(|(flag, _)| *flag == name) {
            Some((_, known)) if takes == Takes::List => known.extend(values),
            Some((_, known)) => *known = values,
            None => self.flags.push((name, values)),
        }
    }
}

/// `known`: the flag of this name. The error is the sentence to show.
pub fn read(
    args: &[String],
    known: impl Fn(&str) -> Option<(&'static str, Takes)>,
) -> Result<Given, String> {
    let mut given = Given::default();
    let mut rest = args.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let name = match name {
            Some("") => break,
            Some(name) => name,
            None => return Err(format!("unexpected argument: {word}")),
        };
        let (name, attached) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        if matches!(name, "h" | "help") {
            given.help = true;
            return Ok(given);
        }
        let Some((name, takes)) = known(name) else {
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let value = match (takes, attached) {
            (_, Some(value)) => value,
            (Takes::Switch, None) => "true",
            (_, None) => match rest.next() {
                Some(value) => value,
                None => return Err(format!("flag needs an argument: -{name}")),
            },
        };
        if takes == Takes::Switch && boolean(value).is_none() {
            let what = "parse error";
            return Err(format!(
                "invalid boolean value {value:?} for -{name}: {what}"
            ));
        }
        given.add(name, takes, value);
    }
    Ok(given)
}

/// As Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// As Go's `time.ParseDuration`, of whole and broken numbers: `200ms`, `1.5s`, `1m30s`, `0`.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    if text == "0" {
        return Some(std::time::Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let unit = &rest[..end.unwrap_or(rest.len())];
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number * size;
        rest = &rest[unit.len()..];
    }
    if text.is_empty() {
        return None;
    }
    std::time::Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn given(line: &str) -> Result<Given, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let known = |name: &str| match name {
            "port" => Some(("port", Takes::One)),
            "secure" => Some(("secure", Takes::Switch)),
            "list" => Some(("list", Takes::List)),
            _ => None,
        };
        read(&args, known)
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let read = given("-port=1 --port 2 -secure --list a,b -list=c").unwrap();
        assert_eq!(read.one("port"), Some("2"));
        assert_eq!(read.one("secure"), Some("true"));
        assert_eq!(read.all("list").unwrap(), ["a", "b", "c"]);
        assert_eq!(given("-secure=F").unwrap().one("secure"), Some("F"));
        assert!(given("-nope -h").is_err() && given("-h -nope").unwrap().help);
        for (line, why) in [
            ("-nope", "flag provided but not defined: -nope"),
            ("-port", "flag needs an argument: -port"),
            ("x", "unexpected argument: x"),
            (
                "-secure=maybe",
                "invalid boolean value \"maybe\" for -secure: parse error",
            ),
            // A switch takes no word: what follows is nobody's.
            ("-secure false", "unexpected argument: false"),
        ] {
            assert_eq!(given(line).unwrap_err(), why, "{line}");
        }
    }

    #[test]
    fn durations_are_go_s() {
        for (text, ms) in [("200ms", 200), ("1.5s", 1500), ("1m30s", 90_000), ("0", 0)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "1x", "-1s", "1.2.3s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
