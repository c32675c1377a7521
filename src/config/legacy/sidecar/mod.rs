//! llm-d's sidecar of a decode engine, in its three generations: `llm-d-routing-sidecar` (g1), and `pd-sidecar`
//! of the inference scheduler (g2) and of the router (g3).
//!
//! * **For:** its command lines at once, since none contradicts another; its YAML, whose keys are the flags; its
//!   environment.
//! * **Must never:** know how a connector works: `handshake/` does.
//! * **To extend:** a flag is a row in `flag.rs` and its line in `translate.rs`.

pub mod flag;
mod translate;

use super::goflag::{self, Given};
use super::{Call, Migrated, Outcome, Program, Serve};
use crate::config::load;
use crate::config::load::{Env, Known, Loaded, Problem, Problems};
use crate::config::sidecar::Generation;
use crate::config::write::Note;
use crate::config::yaml::{self, Node, Value};

/// Under its own name: as of now.
pub static PROGRAM: Program = Program {
    name: "sidecar",
    argv0: &["pd-sidecar"],
    run: |call| run(call, "pd-sidecar", Generation::G3),
    migrate: |call| migrate(call, "pd-sidecar", Generation::G3),
};

pub static ROUTING: Program = Program {
    name: "routing-sidecar",
    argv0: &["llm-d-routing-sidecar"],
    run: |call| run(call, "llm-d-routing-sidecar", Generation::G1),
    migrate: |call| migrate(call, "llm-d-routing-sidecar", Generation::G1),
};

fn run(call: &mut Call, program: &'static str, generation: Generation) -> Outcome {
    let given = match goflag::read(call.args, flag::known) {
        Ok(given) if given.help => {
            call.terminal.out(&flag::help(program));
            return Outcome::Exit(0);
        }
        Ok(given) => given,
        Err(why) => {
            call.terminal
                .err(&format!("{why}\n{}", flag::help(program)));
            return Outcome::Exit(2);
        }
    };
    match read(&given, generation, call.known, call.env) {
        Ok(loaded) => {
            for line in translate::ignored(&given) {
                call.terminal.err(&format!("{program}: {line}\n"));
            }
            Outcome::Serve(Box::new(Serve {
                loaded,
                file: given.one("configuration-file").map(Into::into),
                again: Box::new(move |known, env| read(&given, generation, known, env)),
                log: None,
            }))
        }
        Err(problems) => {
            call.terminal.err(&format!("{program}: {problems}\n"));
            Outcome::Exit(1)
        }
    }
}

fn migrate(call: &mut Call, program: &'static str, generation: Generation) -> Result<Migrated, u8> {
    let given = goflag::read(call.args, flag::known).map_err(|why| {
        call.terminal.err(&format!("{why}\n"));
        2
    })?;
    if given.help {
        call.terminal.out(&flag::help(program));
        return Err(0);
    }
    let loaded = read(&given, generation, call.known, call.env).map_err(|problems| {
        call.terminal.err(&format!("{program}: {problems}\n"));
        1
    })?;
    let notes = translate::ignored(&given);
    let notes = notes.into_iter().map(|line| Note::on("", line)).collect();
    Ok(Migrated { loaded, notes })
}

fn problem(message: impl Into<String>, fix: &str) -> Problems {
    Problems(vec![Problem {
        file: "command line".into(),
        line: 0,
        path: String::new(),
        message: message.into(),
        fix: fix.into(),
    }])
}

/// Flags over YAML over environment.
fn read(
    given: &Given,
    generation: Generation,
    known: &Known,
    env: Env,
) -> Result<Loaded, Problems> {
    let mut all = given.clone();
    if let Some((text, label)) = configuration(given)? {
        add_yaml(&mut all, &text, &label)?;
    }
    let asked = translate::asked(&all, generation, env).map_err(|why| problem(why, ""))?;
    load::load_over(asked.defaults, None, &asked.overrides, known, env)
}

/// The YAML and what messages call it.
fn configuration(given: &Given) -> Result<Option<(String, String)>, Problems> {
    match (given.one("configuration"), given.one("configuration-file")) {
        (Some(_), Some(_)) => {
            let why = "configuration and configuration-file are both given";
            Err(problem(why, "keep one of them"))
        }
        (Some(text), None) => Ok(Some((text.to_owned(), "--configuration".into()))),
        (None, Some(path)) => Ok(Some((load::read(path.as_ref())?, path.to_owned()))),
        (None, None) => Ok(None),
    }
}

/// A key counts where its flag was not given.
fn add_yaml(all: &mut Given, text: &str, label: &str) -> Result<(), Problems> {
    let at = |line, path: &str, message: String, fix: &str| {
        Problems(vec![Problem {
            file: label.to_owned(),
            line,
            path: path.to_owned(),
            message,
            fix: fix.into(),
        }])
    };
    let node = yaml::parse(text)
        .map_err(|bad| at(bad.line, "", format!("Malformed YAML: {}", bad.message), ""))?;
    let entries = match &node.value {
        Value::Null => return Ok(()),
        Value::Map(entries) => entries,
        other => {
            let got = other.type_name();
            let message = format!("the configuration must be a mapping, got {got}");
            return Err(at(
                node.line,
                "",
                message,
                "write flags as keys: port: 8000",
            ));
        }
    };
    for entry in entries {
        let (key, line) = (entry.key.as_str(), entry.node.line);
        let Some((name, takes)) = flag::known(key).filter(|_| !key.starts_with("configuration"))
        else {
            let names: Vec<&str> = flag::FLAGS.iter().map(|flag| flag.name).collect();
            let fix = crate::config::reader::suggest(key, &names);
            return Err(at(line, key, "unknown key".into(), &fix));
        };
        if all.has(name) {
            continue;
        }
        let Some(value) = words(&entry.node) else {
            let got = entry.node.value.type_name();
            return Err(at(line, key, format!("a {got} is no value for it"), ""));
        };
        all.add(name, takes, &value);
    }
    Ok(())
}

/// A value as it would be typed.
fn words(node: &Node) -> Option<String> {
    match &node.value {
        Value::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(words).collect();
            Some(items?.join(","))
        }
        Value::Bool(on) => Some(on.to_string()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Text(text) => Some(text.clone()),
        Value::Map(_) | Value::Null | Value::Tagged(_) => None,
    }
}
