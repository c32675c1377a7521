//! Pieces of a line: time, escaped text, JSON members.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Level;

const CUT_MARK: &str = "...";

/// RFC 3339, UTC, milliseconds.
pub(super) fn timestamp(time: SystemTime, out: &mut String) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    let ms = since.subsec_millis();
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z"
    );
}

/// The Gregorian date of a day since 1970-01-01, after Howard Hinnant's `civil_from_days`: years begin
/// in March, so that the leap day is the last one.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Milliseconds with three decimals.
pub(super) fn millis(duration: Duration, out: &mut String) {
    let us = duration.as_micros();
    let _ = write!(out, "{}.{:03}", us / 1000, us % 1000);
}

/// Whether a character could end a line, move the cursor or reorder what is read.
fn hides(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON escapes for what could forge a line; with `quoted` also for what could end a quoted value.
pub(super) fn escape(text: &str, quoted: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' | '\\' if quoted => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All of them are below U+10000: one escape each.
            c if hides(c) => drop(write!(out, "\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
}

/// A logfmt value: bare where that is safe, else quoted.
pub(super) fn value(text: &str, out: &mut String) {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/,+@[]".contains(&b);
    if !text.is_empty() && text.bytes().all(safe) {
        out.push_str(text);
    } else {
        quoted(text, out);
    }
}

pub(super) fn quoted(text: &str, out: &mut String) {
    out.push('"');
    escape(text, true, out);
    out.push('"');
}

/// The last character boundary at or before `max`.
fn whole(text: &str, max: usize) -> usize {
    (0..=max)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

/// Shortens to `max` bytes plus a mark.
pub(super) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(whole(text, max));
        text.push_str(CUT_MARK);
    }
}

/// [`cut`] for a boxed text; costs nothing for one that fits.
pub(super) fn cut_box(text: Box<str>, max: usize) -> Box<str> {
    if text.len() <= max {
        return text;
    }
    [&text[..whole(&text, max)], CUT_MARK].concat().into()
}

/// A JSON object being written, with the members that all lines have.
pub(super) struct Json<'a> {
    out: &'a mut String,
}

impl<'a> Json<'a> {
    pub fn object(time: SystemTime, level: Level, out: &'a mut String) -> Json<'a> {
        out.push_str("{\"time\":\"");
        timestamp(time, out);
        out.push('"');
        Json { out }.text("level", level.name())
    }

    fn key(self, key: &str) -> Json<'a> {
        self.out.extend([",\"", key, "\":"]);
        self
    }

    pub fn text(self, key: &str, text: &str) -> Json<'a> {
        let this = self.key(key);
        quoted(text, this.out);
        this
    }

    pub fn number(self, key: &str, n: u64) -> Json<'a> {
        let this = self.key(key);
        let _ = write!(this.out, "{n}");
        this
    }

    pub fn millis(self, key: &str, duration: Duration) -> Json<'a> {
        let this = self.key(key);
        millis(duration, this.out);
        this
    }

    pub fn close(self) {
        self.out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> String {
        let mut out = String::new();
        timestamp(
            UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7),
            &mut out,
        );
        out
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(at(0), "1970-01-01T00:00:00.007Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.007Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00.007Z");
        assert_eq!(at(1_795_226_584), "2026-11-21T02:03:04.007Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.007Z");
    }

    #[test]
    fn a_cut_keeps_whole_characters() {
        let mut text = "aé".repeat(10);
        cut(&mut text, 5);
        assert_eq!(text, "aéa...");
        assert_eq!(&*cut_box("aéaé".into(), 5), "aéa...");
        assert_eq!(&*cut_box("aéaé".into(), 6), "aéaé");
    }
}
