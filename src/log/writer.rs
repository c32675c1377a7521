//! The writer thread: takes from the ring, formats, writes in large pieces.

use std::io::{self, ErrorKind, Write};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use super::ring::{CURRENT, Entry, Ring};
use super::{Format, Level, Options, Sink};

/// A quiet writer looks this often; the age of a line on the screen, and the cost of an idle process.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// A busy one looks this often.
const SLEEP_MIN: Duration = Duration::from_millis(1);
/// Written in pieces of about this size: one system call for hundreds of lines.
const PIECE_BYTES: usize = 64 * 1024;
/// How long the end of the process waits for a sink that does not accept.
const END_WAIT_MAX: Duration = Duration::from_secs(2);
/// A sink that is full (a non-blocking pipe) is tried again this often before lines are given up.
const FULL_RETRIES_MAX: u32 = 100;

/// Keeps the log running. Dropped, it writes what waits in the ring and ends the writer thread.
pub struct LogGuard {
    ring: &'static Ring,
    thread: Option<JoinHandle<()>>,
}

impl LogGuard {
    pub(super) fn ring(&self) -> &'static Ring {
        self.ring
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        CURRENT.unset(self.ring);
        self.ring.stop.store(true, Release);
        let Some(thread) = self.thread.take() else {
            return;
        };
        thread.thread().unpark();
        let deadline = Instant::now() + END_WAIT_MAX;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(SLEEP_MIN);
        }
        // One that still hangs in a write is left behind: the process must be able to end.
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

pub(super) fn start(options: Options) -> io::Result<LogGuard> {
    // Leaked on purpose: threads hold on to it without a count, and a process starts its log once.
    let ring: &'static Ring = Box::leak(Box::new(Ring::new(options.capacity)));
    let writer = Writer {
        ring,
        format: options.format,
        sink: options.sink,
        lost_told: 0,
    };
    let thread = thread::Builder::new()
        .name("pdrelay-log".into())
        .spawn(move || writer.run())?;
    let _ = ring.writer.set(thread.thread().clone());
    Ok(LogGuard {
        ring,
        thread: Some(thread),
    })
}

pub(super) fn flush(ring: &Ring, limit: Duration) {
    let deadline = Instant::now() + limit;
    // The round under way may already have passed us; the one after it has not.
    let target = ring.rounds.load(Acquire) + 2;
    while ring.rounds.load(Acquire) < target && Instant::now() < deadline {
        if let Some(thread) = ring.writer.get() {
            thread.unpark();
        }
        thread::sleep(SLEEP_MIN);
    }
}

struct Writer {
    ring: &'static Ring,
    format: Format,
    sink: Sink,
    /// Lost lines that the log itself has mentioned.
    lost_told: u64,
}

impl Writer {
    fn run(mut self) {
        let mut sleep = SLEEP_MIN;
        let mut piece = String::with_capacity(PIECE_BYTES + 4096);
        loop {
            // Read first: what was pushed before the stop is seen by the round after it.
            let stop = self.ring.stop.load(Acquire);
            let lines = self.round(&mut piece);
            self.ring.rounds.fetch_add(1, AcqRel);
            if lines == self.ring.capacity() {
                continue;
            }
            if stop {
                return;
            }
            // Busy: look soon, so that a burst finds room. Quiet: look ever less often.
            sleep = if lines > self.ring.capacity() / 8 {
                SLEEP_MIN
            } else {
                (sleep * 2).min(SLEEP_MAX)
            };
            thread::park_timeout(sleep);
        }
    }

    /// Writes all that waits now, but no more than the ring holds, so that a round ends even if lines
    /// come as fast as they are written; gives their number.
    fn round(&mut self, piece: &mut String) -> u64 {
        let (mut lines, mut in_piece) = (0, 0);
        while lines < self.ring.capacity()
            && let Some(entry) = self.ring.pop()
        {
            entry.format(self.format, piece);
            (lines, in_piece) = (lines + 1, in_piece + 1);
            if piece.len() >= PIECE_BYTES {
                self.write(piece, in_piece);
                in_piece = 0;
            }
        }
        let lost = self.ring.dropped.load(Relaxed);
        if lost > self.lost_told {
            let text = format!(
                "{} log lines were dropped, {lost} in all",
                lost - self.lost_told
            );
            let (time, level) = (SystemTime::now(), Level::Warning);
            Entry::Message {
                time,
                level,
                text: text.into(),
            }
            .format(self.format, piece);
            self.lost_told = lost;
        }
        self.write(piece, in_piece);
        lines
    }

    fn write(&mut self, piece: &mut String, lines: u64) {
        if piece.is_empty() {
            return;
        }
        let written = match &self.sink {
            Sink::Stderr => write_patiently(&mut io::stderr().lock(), piece.as_bytes()),
            Sink::Memory(bytes) => {
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(piece.as_bytes());
                Ok(())
            }
        };
        if written.is_err() {
            self.ring.lose(lines);
        }
        piece.clear();
    }
}

/// `write_all` that also survives a stderr which somebody has made non-blocking.
pub(super) fn write_patiently(sink: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    let mut full = 0;
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => (bytes, full) = (&bytes[n..], 0),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && full < FULL_RETRIES_MAX => {
                full += 1;
                thread::sleep(SLEEP_MIN * 10);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
