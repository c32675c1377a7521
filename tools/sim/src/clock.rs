//! Wall-clock seconds and the `date` header, formatted once per second and thread.

use std::cell::{Cell, RefCell};
use std::time::{SystemTime, UNIX_EPOCH};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Reads the system's clock. The thread's sweep does it, so that requests need not.
pub(crate) fn refresh() {
    NOW.set(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    );
}

/// As of the last `refresh`.
pub(crate) fn unix_seconds() -> u64 {
    NOW.get()
}

/// Appends the time `seconds` as HTTP writes it.
pub(crate) fn push_date(out: &mut Vec<u8>, seconds: u64) {
    DATE.with_borrow_mut(|(at, text)| {
        if *at != seconds {
            *at = seconds;
            *text = date(seconds);
        }
        out.extend_from_slice(text.as_bytes());
    });
}

fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let days = seconds / 86_400;
    // Days to civil date, counting years from March so that the leap day comes last.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (week, name) = (DAYS[(days % 7) as usize], MONTHS[month as usize - 1]);
    format!("{week}, {day:02} {name} {year} {h:02}:{m:02}:{s:02} GMT")
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right() {
        assert_eq!(super::date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(super::date(1_709_208_000), "Thu, 29 Feb 2024 12:00:00 GMT");
    }
}
