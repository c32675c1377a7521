//! Floor 0: the process log and the access line.
//!
//! * **For:** saying what happens, on stderr, without a shard ever waiting for it.
//! * **Must never:** block a shard: no write, no lock, no wake-up of the writer thread (a futex call);
//!   nor let a client forge a line. When the ring is full a line is dropped and counted.
//! * **To extend:** a new field of the access line is a field of [`Access`] and a line in `access.rs`.
//!
//! ```text
//!   shard 0 --+
//!   shard 1 --+--push--> ring (bounded, lock-free) --poll every 1 to 20 ms--> writer thread --> stderr
//!   control --+                                                               (formats there)
//! ```
//!
//! Before [`start`] and after its guard is dropped, messages go straight to stderr and access lines
//! nowhere.

mod access;
mod line;
mod repeat;
mod ring;
#[cfg(test)]
mod tests;
mod writer;

pub use access::{Access, End};
pub use repeat::{limited, limited_for};
pub use writer::LogGuard;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ring::{CURRENT, Entry};

/// Longest message kept; what is longer is cut with a mark.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// How much a message matters; a level shows itself and those above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    Error,
    Warning,
    Info,
    Debug,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Error, Level::Warning, Level::Info, Level::Debug];

    pub const fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// logfmt: `2026-11-21T02:03:04.123Z info access id=...`.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Clone)]
pub enum Sink {
    Stderr,
    /// For tests.
    Memory(Arc<Mutex<Vec<u8>>>),
}

#[derive(Debug, Clone)]
pub struct Options {
    pub level: Level,
    pub format: Format,
    /// Whether requests get an access line (only shown at level info or debug).
    pub access: bool,
    pub sink: Sink,
    /// Lines that can wait for the writer, at least 1. About 300 bytes each, held from the start.
    pub capacity: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            level: Level::Info,
            format: Format::Text,
            access: true,
            sink: Sink::Stderr,
            // 20 ms of 400,000 requests per second.
            capacity: 8192,
        }
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static ACCESS: AtomicBool = AtomicBool::new(false);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts the writer thread; the log runs until the guard is dropped, which writes what waits.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(options: Options) -> io::Result<LogGuard> {
    let (level, access) = (options.level, options.access);
    let guard = writer::start(options)?;
    LEVEL.store(level as u8, Relaxed);
    ACCESS.store(access && level >= Level::Info, Relaxed);
    CURRENT.set(guard.ring());
    Ok(guard)
}

/// Shows messages up to this level from now on. (Access lines stay as they were started.)
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Relaxed);
}

/// Whether a message of this level would be shown.
#[inline]
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Relaxed)
}

/// Whether access lines are written: if not, an [`Access`] need not be built.
#[inline]
pub fn access_enabled() -> bool {
    ACCESS.load(Relaxed)
}

/// Lines lost so far because the writer could not keep up.
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// Writes one access line.
pub fn access(access: Access) {
    if access_enabled()
        && let Some(ring) = CURRENT.get()
    {
        ring.push(Entry::Access(access.bounded()));
    }
}

/// Logs a text that exists already. The macros and [`error`] to [`debug`] make it only if it is shown.
pub fn write(level: Level, mut text: String) {
    line::cut(&mut text, MESSAGE_BYTES_MAX);
    let entry = Entry::Message {
        time: SystemTime::now(),
        level,
        text: text.into_boxed_str(),
    };
    match CURRENT.get() {
        Some(ring) => ring.push(entry),
        None => write_directly(&entry),
    }
}

fn write_directly(entry: &Entry) {
    let mut line = String::new();
    entry.format(Format::Text, &mut line);
    // There is nowhere to report that stderr is gone.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

fn write_if(level: Level, text: impl FnOnce() -> String) {
    if enabled(level) {
        write(level, text());
    }
}

pub fn error(text: impl FnOnce() -> String) {
    write_if(Level::Error, text);
}

pub fn warning(text: impl FnOnce() -> String) {
    write_if(Level::Warning, text);
}

pub fn info(text: impl FnOnce() -> String) {
    write_if(Level::Info, text);
}

/// As `info`, whatever the level: for what was asked for by a setting of its own.
pub fn always(text: impl FnOnce() -> String) {
    write(Level::Info, text());
}

pub fn debug(text: impl FnOnce() -> String) {
    write_if(Level::Debug, text);
}

/// Waits until what was logged so far is written, at most `limit`: before an abort or an exit that does
/// not drop the guard. Not for shards.
pub fn flush(limit: Duration) {
    if let Some(ring) = CURRENT.get() {
        writer::flush(ring, limit);
    }
}

#[macro_export]
macro_rules! log_error {
    ($($arg:tt)+) => { $crate::log::error(|| ::std::format!($($arg)+)) };
}

#[macro_export]
macro_rules! log_warning {
    ($($arg:tt)+) => { $crate::log::warning(|| ::std::format!($($arg)+)) };
}

#[macro_export]
macro_rules! log_info {
    ($($arg:tt)+) => { $crate::log::info(|| ::std::format!($($arg)+)) };
}

#[macro_export]
macro_rules! log_debug {
    ($($arg:tt)+) => { $crate::log::debug(|| ::std::format!($($arg)+)) };
}
