use super::super::quantity::{parse_bytes, parse_cpus, parse_duration, show_bytes, show_duration};
use std::time::Duration;

#[test]
fn durations_have_units() {
    let cases = [
        ("450s", 450_000_000),
        ("100ms", 100_000),
        ("500us", 500),
        ("5m", 300_000_000),
        ("1h", 3_600_000_000),
        ("7", 7_000_000),
        ("0.1", 100_000),
        ("1.5s", 1_500_000),
        (" 2 s ", 2_000_000),
        ("0", 0),
    ];
    for (text, micros) in cases {
        assert_eq!(
            parse_duration(text),
            Ok(Duration::from_micros(micros)),
            "{text}"
        );
    }
    for text in [
        "", "s", "-1s", "1d", "1S", "1.2.3s", "1e9", "ten", "NaN", "inf", "9999999h",
    ] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn byte_sizes_have_units() {
    let cases = [
        ("64MiB", 64 << 20),
        ("16KiB", 16 << 10),
        ("1GB", 1_000_000_000),
        ("1gib", 1 << 30),
        ("2 TiB", 2 << 40),
        ("1.5KiB", 1536),
        ("12345", 12345),
        ("10B", 10),
        ("3kb", 3000),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, bytes) in cases {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in [
        "",
        "MiB",
        "-1",
        "1M",
        "64Mib2",
        "18446744073709551615KiB",
        "1.2.3MB",
        "x",
    ] {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

#[test]
fn cpu_lists_have_ranges() {
    assert_eq!(parse_cpus("0,2-5"), Ok(vec![0, 2, 3, 4, 5]));
    assert_eq!(parse_cpus(" 7 , 3-3 "), Ok(vec![7, 3]));
    for text in [
        "",
        ",",
        "a",
        "5-2",
        "1-",
        "-1",
        "1-2-3",
        "0-99999999",
        "70000",
    ] {
        assert!(parse_cpus(text).is_err(), "{text}");
    }
}

#[test]
fn shown_as_people_write_them() {
    let shown = |ms| show_duration(Duration::from_millis(ms));
    assert_eq!(shown(0), "0s");
    assert_eq!(shown(1), "1ms");
    assert_eq!(shown(1500), "1500ms");
    assert_eq!(shown(450_000), "450s");
    assert_eq!(shown(300_000), "5m");
    assert_eq!(shown(3_600_000), "1h");
    assert_eq!(show_duration(Duration::from_micros(50)), "50us");
    assert_eq!(show_bytes(0), "0");
    assert_eq!(show_bytes(64 << 20), "64MiB");
    assert_eq!(show_bytes(1000), "1000");
    assert_eq!(show_bytes(1536), "1536");
}
