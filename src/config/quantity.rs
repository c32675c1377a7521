//! Numbers with units, as people write them: `450s`, `64MiB`, `0,2-5`; and back.

use std::time::Duration;

/// The longest wait that can be asked for.
const DURATION_MAX: f64 = 366.0 * 24.0 * 3600.0;

/// More CPUs than any machine has.
const CPU_MAX: usize = 65_535;

/// `450s`, `100ms`, `500us`, `5m`, `1h`, or a plain number of seconds. The error is the sentence to show.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "" | "s" => 1.0,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("'{text}' is not a duration")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("'{text}' is not a duration"))?;
    seconds_to_duration(number * seconds)
}

pub fn seconds_to_duration(seconds: f64) -> Result<Duration, String> {
    if !(0.0..=DURATION_MAX).contains(&seconds) {
        return Err("a duration is from 0 to 366 days".into());
    }
    // Whole nanoseconds, so that 0.1 s is 100 ms and not 100.000000000000005.
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// `64MiB`, `16KiB`, `1GB`, or a plain number of bytes. The error is the sentence to show.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("'{text}' is not a byte size")),
    };
    let bad = || format!("'{text}' is not a byte size");
    if let Ok(number) = number.parse::<u64>() {
        return number.checked_mul(factor).ok_or_else(bad);
    }
    let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
    if (0.0..1e18).contains(&bytes) {
        Ok(bytes.round() as u64)
    } else {
        Err(bad())
    }
}

/// `0,2-5` -> 0, 2, 3, 4, 5. Order is kept: it is the shard order. The error is the sentence to show.
pub fn parse_cpus(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let number = |digits: &str| match digits.trim().parse::<usize>() {
            Ok(cpu) if cpu <= CPU_MAX => Ok(cpu),
            _ => Err(format!("'{part}' is not a CPU number or range")),
        };
        match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("the range '{part}' runs backwards"));
                }
                cpus.extend(first..=last);
            }
            None => cpus.push(number(part)?),
        }
        if cpus.len() > CPU_MAX + 1 {
            return Err("the list of CPUs is too long".into());
        }
    }
    Ok(cpus)
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// The largest unit that shows it whole: `5m`, `450s`, `100ms`.
pub fn show_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let units = [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    if nanos == 0 {
        return "0s".into();
    }
    match units.iter().find(|(size, _)| nanos.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", nanos / size),
        None => format!("{duration:?}"),
    }
}

/// The largest binary unit that shows it whole: `64MiB`.
pub fn show_bytes(bytes: usize) -> String {
    let units = [(1usize << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units
        .iter()
        .find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size))
    {
        Some((size, unit)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}
