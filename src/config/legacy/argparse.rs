//! A command line read as Python's `argparse` reads it: abbreviations, `--flag=value`, lists that end at the
//! next flag, and its words for what is wrong. The programs that pdrelay stands in for all use it, and
//! their users' scripts rely on such things.

/// What stands behind a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    One,
    /// One or more, up to the next flag.
    Many,
    /// One, or none at all.
    Optional,
}

#[derive(Debug)]
pub struct Flag {
    /// As they are typed; the first one is its name.
    pub names: &'static [&'static str],
    pub takes: Takes,
    /// How its value is called in the help; `{a,b}` are the only values there are.
    pub value: &'static str,
    pub about: &'static str,
}

#[derive(Debug)]
pub struct Parser {
    pub program: &'static str,
    /// Behind the program's name, before the flags.
    pub words: &'static str,
    pub about: &'static str,
    pub flags: &'static [Flag],
    /// What is given without a flag, all of it required.
    pub positionals: &'static [&'static str],
}

/// What was given: the last one counts where a flag was given twice.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given {
    flags: Vec<(&'static str, Vec<String>)>,
    pub positionals: Vec<String>,
    /// `-h`: nothing else counts.
    pub help: bool,
}

impl Given {
    pub fn has(&self, name: &str) -> bool {
        self.all(name).is_some()
    }

    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name)?.first().map(String::as_str)
    }

    pub fn all(&self, name: &str) -> Option<&[String]> {
        let found = self.flags.iter().find(|(flag, _)| *flag == name);
        found.map(|(_, values)| values.as_slice())
    }
}

/// `--help` is there without being listed.
static HELP: Flag = Flag {
    names: &["--help", "-h"],
    takes: Takes::Nothing,
    value: "",
    about: "show this help message and exit",
};

impl Parser {
    /// The error is the sentence to show.
    pub fn read(&self, args: &[String]) -> Result<Given, String> {
        let mut given = Given::default();
        let mut unknown: Vec<&str> = Vec::new();
        let mut rest = args.iter().map(String::as_str).peekable();
        let mut flags_over = false;
        while let Some(word) = rest.next() {
            if flags_over || !is_flag(word) {
                if given.positionals.len() < self.positionals.len() {
                    given.positionals.push(word.to_owned());
                } else {
                    unknown.push(word);
                }
                continue;
            }
            if word == "--" {
                flags_over = true;
                continue;
            }
            let Some((flag, attached)) = self.find(word)? else {
                unknown.push(word);
                continue;
            };
            if flag.names == HELP.names {
                given.help = true;
                return Ok(given);
            }
            let mut values: Vec<String> = Vec::new();
            match (flag.takes, attached) {
                (Takes::Nothing, Some(value)) => {
                    return Err(wrong(flag, &format!("ignored explicit argument '{value}'")));
                }
                (Takes::Nothing, None) => {}
                (_, Some(value)) => values.push(value.to_owned()),
                (takes, None) => {
                    let most = if takes == Takes::Many { usize::MAX } else { 1 };
                    while values.len() < most
                        && let Some(value) = rest.next_if(|word| !is_flag(word))
                    {
                        values.push(value.to_owned());
                    }
                    if values.is_empty() && takes != Takes::Optional {
                        let least = match takes {
                            Takes::Many => "expected at least one argument",
                            _ => "expected one argument",
                        };
                        return Err(wrong(flag, least));
                    }
                }
            }
            check_choice(flag, &values)?;
            given.flags.retain(|(name, _)| *name != flag.names[0]);
            given.flags.push((flag.names[0], values));
        }
        let missing = &self.positionals[given.positionals.len()..];
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(format!("the following arguments are required: {missing}"));
        }
        if !unknown.is_empty() {
            return Err(format!("unrecognized arguments: {}", unknown.join(" ")));
        }
        Ok(given)
    }

    /// The flag that a word means, and the value that hangs on it. None: no such flag.
    fn find<'a>(&self, word: &'a str) -> Result<Option<(&'static Flag, Option<&'a str>)>, String> {
        let flags = || self.flags.iter().chain([&HELP]);
        let exactly = |name: &str| flags().find(|flag| flag.names.contains(&name));
        if let Some(flag) = exactly(word) {
            return Ok(Some((flag, None)));
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        if !word.starts_with("--") {
            // `-p8000`, and `-p=8000`, which argparse reads in the same way.
            if let Some(flag) = exactly(name) {
                return Ok(Some((flag, value)));
            }
            let end = word.char_indices().nth(2).map_or(word.len(), |(i, _)| i);
            return Ok(exactly(&word[..end]).map(|flag| (flag, Some(&word[end..]))));
        }
        if let Some(flag) = exactly(name) {
            return Ok(Some((flag, value)));
        }
        let meant: Vec<(&'static str, &'static Flag)> = flags()
            .flat_map(|flag| flag.names.iter().map(move |known| (*known, flag)))
            .filter(|(known, _)| known.starts_with(name))
            .collect();
        match meant.as_slice() {
            [] => Ok(None),
            [(_, flag)] => Ok(Some((flag, value))),
            many => {
                let names: Vec<&str> = many.iter().map(|(known, _)| *known).collect();
                let names = names.join(", ");
                Err(format!("ambiguous option: {word} could match {names}"))
            }
        }
    }

    /// `usage: xpyd [proxy] [-h] [--config FILE] ...`, broken at 100 columns.
    pub fn usage(&self) -> String {
        let mut words = vec!["[-h]".to_owned()];
        for flag in self.flags {
            words.push(format!("[{}]", typed(flag, flag.names[0])));
        }
        words.extend(self.positionals.iter().map(|name| (*name).to_owned()));
        let head = format!("usage: {}{}", self.program, self.words);
        let margin = " ".repeat(head.len());
        let (mut text, mut column) = (head.clone(), head.len());
        for word in words {
            if column + 1 + word.len() > 100 {
                text += &format!("\n{margin}");
                column = head.len();
            }
            text += &format!(" {word}");
            column += 1 + word.len();
        }
        text + "\n"
    }

    pub fn help(&self) -> String {
        let mut text = format!("{}\n{}\n", self.usage(), self.about);
        if !self.positionals.is_empty() {
            text += "\npositional arguments:\n";
            for name in self.positionals {
                text += &format!("  {name}\n");
            }
        }
        text += "\noptions:\n";
        for flag in [&HELP].into_iter().chain(self.flags) {
            let names: Vec<String> = flag.names.iter().map(|name| typed(flag, name)).collect();
            text += &format!(
                "  {}\n                        {}\n",
                names.join(", "),
                flag.about
            );
        }
        text
    }

    /// What argparse says of a mistake; its exit code is 2.
    pub fn refusal(&self, why: &str) -> String {
        format!("{}{}: error: {why}\n", self.usage(), self.program)
    }
}

/// How argparse calls a mistake with one flag's value.
pub fn wrong(flag: &Flag, why: &str) -> String {
    format!("argument {}: {why}", flag.names.join("/"))
}

fn typed(flag: &Flag, name: &str) -> String {
    match flag.takes {
        Takes::Nothing => name.to_owned(),
        Takes::One => format!("{name} {}", flag.value),
        Takes::Many => format!("{name} {0} [{0} ...]", flag.value),
        Takes::Optional => format!("{name} [{}]", flag.value),
    }
}

/// `-5` is a number, and `-` and `-a b` are no flags either.
fn is_flag(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-') && !word.contains(' ') && word.parse::<f64>().is_err()
}

fn check_choice(flag: &Flag, values: &[String]) -> Result<(), String> {
    let inner = flag
        .value
        .strip_prefix('{')
        .and_then(|v| v.strip_suffix('}'));
    let Some(choices) = inner else { return Ok(()) };
    let choices: Vec<&str> = choices.split(',').collect();
    for value in values {
        if !choices.contains(&value.as_str()) {
            let listed: Vec<String> = choices.iter().map(|c| format!("'{c}'")).collect();
            let listed = listed.join(", ");
            let why = format!("invalid choice: '{value}' (choose from {listed})");
            return Err(wrong(flag, &why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn flag(names: &'static [&'static str], takes: Takes, value: &'static str) -> Flag {
        Flag {
            names,
            takes,
            value,
            about: "",
        }
    }

    static PARSER: Parser = Parser {
        program: "prog",
        words: "",
        about: "",
        flags: &[
            flag(&["--prefill", "-p"], Takes::Many, "H:P"),
            flag(&["--port"], Takes::One, "INT"),
            flag(&["--force"], Takes::Nothing, ""),
            flag(&["--init", "-i"], Takes::Optional, "PATH"),
            flag(&["--mode"], Takes::One, "{direct,nixl}"),
        ],
        positionals: &[],
    };

    fn read(line: &str) -> Result<Given, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        PARSER.read(&args)
    }

    #[test]
    fn flags_are_read_as_argparse_reads_them() {
        let given = read("--pre a b --port=7 --fo -p c").unwrap();
        assert_eq!(given.all("--prefill").unwrap(), ["c"]);
        assert_eq!(given.one("--port"), Some("7"));
        assert!(given.has("--force") && !given.has("--init"));
        assert_eq!(read("-pa").unwrap().all("--prefill").unwrap(), ["a"]);
        assert_eq!(read("--port -5").unwrap().one("--port"), Some("-5"));
        let given = read("--init --force").unwrap();
        assert!(given.has("--init") && given.one("--init").is_none());
        assert_eq!(read("--init x").unwrap().one("--init"), Some("x"));
        assert!(read("--nope -h").unwrap().help);
    }

    #[test]
    fn mistakes_are_told_in_its_words() {
        for (line, why) in [
            (
                "--p a",
                "ambiguous option: --p could match --prefill, --port",
            ),
            ("--port", "argument --port: expected one argument"),
            ("--port --force", "argument --port: expected one argument"),
            (
                "-p",
                "argument --prefill/-p: expected at least one argument",
            ),
            (
                "--force=1",
                "argument --force: ignored explicit argument '1'",
            ),
            ("--nope x -z", "unrecognized arguments: --nope x -z"),
            (
                "--mode zmq",
                "argument --mode: invalid choice: 'zmq' (choose from 'direct', 'nixl')",
            ),
        ] {
            assert_eq!(read(line).unwrap_err(), why, "{line}");
        }
        let needy = Parser {
            positionals: &["path"],
            ..PARSER
        };
        assert_eq!(
            needy.read(&[]).unwrap_err(),
            "the following arguments are required: path"
        );
        assert!(PARSER.refusal("no").ends_with("prog: error: no\n"));
    }
}
