//! The command lines of other programs, each ending in a [`Config`](super::Config).
//!
//! * **For:** starting pdrelay with the command line, files and environment of the program that it
//!   replaces: what its users typed, what it printed and how it ended; and telling them the same in our
//!   own YAML (`pdrelay migrate`).
//! * **Must never:** serve, open a socket, read a clock, or know of the process it runs in: all that comes
//!   in by the [`Call`], and what is to be served goes out as an [`Outcome`].
//! * **To extend:** one folder per program with a [`Program`], and its row in [`PROGRAMS`]. Programs that
//!   read their arguments with Python's argparse use [`argparse`].

pub mod argparse;
pub mod epd;
pub mod goflag;
pub mod lmcache;
pub mod multiturn;
pub mod sidecar;
pub mod xpyd;

use std::path::PathBuf;
use std::time::Duration;

use super::load::{Env, Known, Loaded, Problems};
use super::write::Note;

/// A program that pdrelay stands in for.
pub struct Program {
    /// The subcommand of `pdrelay`.
    pub name: &'static str,
    /// What the binary, or a link to it, may be called, without `.py` or `.sh`.
    pub argv0: &'static [&'static str],
    pub run: fn(&mut Call) -> Outcome,
    /// The same command line as a configuration.
    /// The error is the exit code: why was said.
    pub migrate: fn(&mut Call) -> Result<Migrated, u8>,
}

pub static PROGRAMS: &[&Program] = &[
    &epd::PROGRAM,
    &lmcache::PROGRAM,
    &multiturn::PROGRAM,
    &sidecar::PROGRAM,
    &sidecar::ROUTING,
    &xpyd::PROGRAM,
    &xpyd::start::PROGRAM,
];

/// By its subcommand.
pub fn by_name(name: &str) -> Option<&'static Program> {
    PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .copied()
}

/// By what the binary was called as: `/usr/bin/xpyd`, `MicroPDProxyServer.py`.
pub fn by_argv0(argv0: &str) -> Option<&'static Program> {
    let name = argv0.rsplit('/').next().unwrap_or_default();
    let name = [".py", ".sh"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name);
    PROGRAMS
        .iter()
        .find(|program| program.argv0.contains(&name))
        .copied()
}

/// One start of such a program.
pub struct Call<'a> {
    /// Without the program's own name.
    pub args: &'a [String],
    pub known: &'a Known<'a>,
    pub env: Env<'a>,
    pub terminal: &'a mut dyn Terminal,
}

/// Whom the program talks to.
pub trait Terminal {
    fn out(&mut self, text: &str);
    fn err(&mut self, text: &str);
    /// One line, without its end; `None`: the input is over, or nothing came in time.
    fn ask(&mut self, prompt: &str, patience: Option<Duration>) -> Option<String>;
    /// The local time as `20261121_053731`, for names of files.
    fn stamp(&self) -> String;
}

/// Reads everything again, for a reload.
pub type Again = Box<dyn Fn(&Known, Env) -> Result<Loaded, Problems>>;

/// What is left to do.
pub enum Outcome {
    /// Nothing: it ends with this.
    Exit(u8),
    Serve(Box<Serve>),
}

/// A command line as a configuration.
pub struct Migrated {
    pub loaded: Loaded,
    /// What will be different.
    pub notes: Vec<Note>,
}

pub struct Serve {
    pub loaded: Loaded,
    /// The file that is watched.
    pub file: Option<PathBuf>,
    pub again: Again,
    /// Where all output goes as well.
    pub log: Option<PathBuf>,
}
