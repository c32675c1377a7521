//! Whatever is in the file: an answer, and each problem on a line that the file has.

use proptest::prelude::*;

use super::super::load::Overrides;
use super::super::{Known, load, schema};
use super::{KNOWN, read};

fn judge(text: &str) {
    if let Err(problems) = read(text) {
        assert!(!problems.0.is_empty());
        // A line break of YAML that `lines` does not count, and the end of the file, may add one each.
        let breaks = text
            .matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
            .count();
        for problem in &problems.0 {
            assert!(problem.line <= breaks + 2, "{problem}\n{text:?}");
            _ = problem.to_string();
        }
    }
}

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("10.0.0.1:8100".to_owned()),
        Just("5s".to_owned()),
        Just("64MiB".to_owned()),
        Just("true".to_owned()),
        Just("~".to_owned()),
        Just("*a".to_owned()),
        Just("&a x".to_owned()),
        Just("!t x".to_owned()),
        Just("round_robin".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        "[ -~]{0,12}",
    ]
}

/// Flow YAML with our own keys in it.
fn value() -> impl Strategy<Value = String> {
    let names: Vec<String> = schema::keys()
        .iter()
        .map(|key| key.rsplit('.').next().unwrap_or(key).to_owned())
        .chain(
            [
                "nodes",
                "tp_size",
                "dp_size",
                "world_size_per_node",
                "address",
                "role",
                "<<",
            ]
            .map(Into::into),
        )
        .collect();
    scalar().prop_recursive(4, 32, 6, move |inner| {
        let names = proptest::sample::select(names.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|v| format!("[{}]", v.join(", "))),
            prop::collection::vec((names, inner), 0..6).prop_map(|v| {
                let entries: Vec<String> = v.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                format!("{{{}}}", entries.join(",\n "))
            }),
        ]
    })
}

/// Our keys, each in its section, with values that need not fit.
fn document() -> impl Strategy<Value = String> {
    let keys = proptest::sample::select(schema::keys());
    prop::collection::vec((keys, value()), 0..8).prop_map(|entries| {
        let line = |(key, value): &(String, String)| match key.split_once('.') {
            Some((section, key)) => format!("{section}: {{{key}: {value}}}\n"),
            None => format!("{key}: {value}\n"),
        };
        entries.iter().map(line).collect()
    })
}

proptest! {
    #[test]
    fn any_text(text in any::<String>()) {
        judge(&text);
    }

    #[test]
    fn any_yaml_like_text(text in "([a-z]{1,3}|[-:,\\[\\]{}&*!|>'\"%@`#? \t\r\n]|<<|: |- |\n  |\u{85}|\u{feff}|0x1f|\\.inf){0,60}") {
        judge(&text);
    }

    #[test]
    fn any_value_under_our_keys(text in document()) {
        judge(&text);
    }

    #[test]
    fn any_flags(
        prefill in prop::collection::vec(any::<String>(), 0..3),
        decode in prop::collection::vec("[a-z0-9.:\\[\\]/]{0,12}", 0..3),
        host in any::<Option<String>>(),
        port in any::<Option<u16>>(),
        shards in any::<Option<usize>>(),
        cpus in any::<Option<Vec<usize>>>(),
        handshake in any::<Option<String>>(),
    ) {
        let overrides =
            Overrides { prefill, decode, host, port, shards, cpus, handshake, ..Overrides::default() };
        let nothing = Known { handshakes: &[], policies: &[] };
        for known in [KNOWN, nothing] {
            if let Err(problems) = load(None, &overrides, &known, &|_| None) {
                prop_assert!(problems.0.iter().all(|p| p.line == 0));
            }
        }
    }
}
