//! Every mistake at once, each on its own line.

use super::super::yaml::{self, Node, Value};
use super::{PD, bad, good, read, refused};

#[test]
fn every_mistake_is_reported_with_its_line() {
    let text = "\
# a comment
model: 7
port: 99999
log_level: loud

prefill:
  - 10.0.0.1:8100
  # another
  - 10.0.0.1
  - ftp://10.0.0.1:8100
decode: [10.0.0.2:8200,
  10.0.0.2:0,
  {address: 10.0.0.3:1, weigth: 2}]
limits:
  body_bytes_max: 64 monkeys
  head_bytes_max: 1
  json_depth_max: true
timeouts: {connect: 0, prefil: 5s,
  head: 30s, drain: -1}
retry: [1]
foo: bar
";
    assert_eq!(
        refused(text),
        "\
x.yaml:2: model: model must be a string, got int (put it in quotes)
x.yaml:3: port: port must be between 1 and 65535, got 99999
x.yaml:4: log_level: log_level must be one of ['debug', 'error', 'info', 'warning'], got 'loud' (known: debug, error, info, warning)
x.yaml:9: prefill[1]: Invalid instance format: 10.0.0.1; write host:port, for example 10.0.0.1:8100
x.yaml:10: prefill[2]: Invalid instance format: ftp://10.0.0.1:8100; a URL begins with http:// or https://
x.yaml:12: decode[1]: Port out of range in instance 10.0.0.2:0: use 1 to 65535
x.yaml:13: decode[2].weigth: Unknown keys in an instance: ['weigth'] (did you mean 'weight'?)
x.yaml:15: limits.body_bytes_max: body_bytes_max: '64 monkeys' is not a byte size (write 64MiB, 16KiB, 1GB, or a number of bytes)
x.yaml:16: limits.head_bytes_max: head_bytes_max must be between 1KiB and 16MiB, got 1 bytes
x.yaml:17: limits.json_depth_max: json_depth_max must be an integer, got bool
x.yaml:18: timeouts.connect: connect must be above 0 (every wait has an end: write a long one, such as 24h)
x.yaml:18: timeouts.prefil: Unknown keys in timeouts: ['prefil'] (did you mean 'prefill'?)
x.yaml:19: timeouts.drain: drain: a duration is from 0 to 366 days (write 450s, 100ms, 500us, 5m, 1h, or a number of seconds)
x.yaml:20: retry: 'retry' must be a mapping, got list (write its keys below it, indented)
x.yaml:21: foo: Unknown keys in YAML config: ['foo'] (configs/reference.yaml shows every key)"
    );
}

#[test]
fn anchors_are_followed_to_where_the_value_is_written() {
    let text = "prefill: &p\n- 10.0.0.1:8100\n- wrong\ndecode: [10.0.0.2:1]\nencode: *p\n";
    let problems = refused(text);
    assert!(
        problems.contains("x.yaml:3: prefill[1]: Invalid"),
        "{problems}"
    );
    assert!(
        problems.contains("x.yaml:3: encode[1]: Invalid"),
        "{problems}"
    );
}

#[test]
fn merge_keys_fill_what_is_not_written() {
    let text = "retry: &r\n  max_retries: 7\n  enabled: false\nhealth_check:\n  <<: *r\n";
    let problems = bad(text);
    assert_eq!(
        problems,
        "x.yaml:4: health_check.max_retries: Unknown keys in health_check: ['max_retries'] \
         (it belongs under 'retry')"
    );
    let config = good(
        "health_check: &h\n  enabled: false\ncircuit_breaker:\n  <<: [*h]\n  failure_threshold: 9\n",
    );
    assert!(!config.circuit_breaker.enabled && config.circuit_breaker.failure_threshold == 9);
    let config = good("health_check: &h\n  enabled: false\nretry: {<<: *h, enabled: true}\n");
    assert!(config.retry.enabled);
}

#[test]
fn duplicate_keys_are_errors() {
    assert_eq!(
        bad("port: 1\nretry:\n  enabled: true\n  enabled: false\nport: 2\n"),
        "x.yaml:6: retry.enabled: duplicate key 'enabled' (first on line 5) (keep one of them)\n\
         x.yaml:7: port: duplicate key 'port' (first on line 3) (keep one of them)"
    );
}

#[test]
fn a_key_in_the_wrong_place_is_sent_home() {
    assert!(bad("body_bytes_max: 1MiB").ends_with("(it belongs under 'limits')"));
    assert!(bad("limits: {log_level: info}").ends_with("(it belongs at the top level)"));
    assert!(bad("shard: 2").ends_with("(did you mean 'shards'?)"));
    assert!(bad("health-check: {}").ends_with("(did you mean 'health_check'?)"));
    assert!(bad("8000: 2").contains("Unknown keys in YAML config: ['8000']"));
}

#[test]
fn malformed_yaml_names_its_line() {
    for (text, line) in [
        ("port: 1\nprefill: [a\ndecode: b\n", 3),
        ("port: 1\n\tport: 2\n", 2),
        ("a: 1\nb: 2\n c: 3\n", 3),
        ("a: *nothing\n", 1),
    ] {
        let problems = refused(text);
        let start = format!("x.yaml:{line}: Malformed YAML in x.yaml: ");
        assert!(problems.starts_with(&start), "{text:?}: {problems}");
    }
    let deep = format!("a: {}", "[".repeat(5_000));
    assert!(refused(&deep).contains("Malformed YAML in x.yaml"));
    let deep = format!("a: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(refused(&deep).contains("Malformed YAML in x.yaml"));
    assert!(refused("a: &a [*a]").contains("Malformed YAML"));
    assert!(refused("a: 1\n---\nb: 2\n").contains("Malformed YAML"));
}

#[test]
fn a_file_that_is_no_mapping_is_refused() {
    for text in ["", "# nothing\n", "---\n", "null"] {
        assert!(
            refused(text).ends_with("YAML config must be a mapping, got NoneType"),
            "{text:?}: {}",
            refused(text)
        );
    }
    assert_eq!(
        refused("- a\n- b\n"),
        "x.yaml:1: YAML config must be a mapping, got list"
    );
    assert_eq!(
        refused("7"),
        "x.yaml:1: YAML config must be a mapping, got int"
    );
}

#[test]
fn what_is_missing_is_reported_where_it_should_be() {
    assert_eq!(
        refused("# top\nport: 1\nprefill: [10.0.0.1:1]\n"),
        "x.yaml:2: decode: Please specify at least one decode node. (handshake sequential needs \
         decode: [host:port])"
    );
    assert_eq!(
        refused("port: 1\nprefill: [10.0.0.1:1]\ndecode:\n"),
        "x.yaml:3: decode: Please specify at least one decode node. (handshake sequential needs \
         decode: [host:port])"
    );
}

#[test]
fn crlf_a_byte_order_mark_and_flow_style_keep_their_lines() {
    let text = "\u{feff}prefill: [a:1]\r\ndecode: [b:1]\r\nport: x\r\n";
    assert_eq!(
        refused(text),
        "x.yaml:3: port: port must be an integer, got str"
    );
    let text = "{prefill: [a:1],\n decode: [b:1],\n retry: {\n  enabled: 3}}\n";
    assert_eq!(
        refused(text),
        "x.yaml:4: retry.enabled: enabled must be true or false, got int"
    );
    let text = "--- \n# c\n? prefill\n: [a:1]\n? decode\n: - b:1\n  - c\n";
    assert!(refused(text).starts_with("x.yaml:7: decode[1]: Invalid instance format: c"));
    let text = format!("{PD}model: |\n  two\n  lines\nport: >-\n  x\n");
    assert!(
        refused(&text).starts_with("x.yaml:7: port:"),
        "{}",
        refused(&text)
    );
}

#[test]
fn values_without_a_text_are_on_the_line_of_their_key() {
    assert_eq!(
        bad("port:\nhost: a\n"),
        "x.yaml:3: port: port must be an integer, got NoneType (give it a value, or remove the key)"
    );
    let problems = bad("limits:\n  json_depth_max:\n\n\nshards: 0\n");
    assert!(
        problems.starts_with("x.yaml:4: limits.json_depth_max:"),
        "{problems}"
    );
}

#[test]
fn tags_are_refused_where_they_stand() {
    assert_eq!(
        bad("port: !port 7\n"),
        "x.yaml:3: port: port must be an integer, got a tagged value"
    );
    assert_eq!(good("port: !!str 7\n").port, 7);
}

#[test]
fn a_missing_file_says_so() {
    let problems = super::super::from_file("/nowhere/x.yaml", &super::KNOWN).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "Config file not found: /nowhere/x.yaml"
    );
    let problems = super::super::from_file("/", &super::KNOWN).unwrap_err();
    assert!(
        problems
            .to_string()
            .starts_with("Config file cannot be read: /: ")
    );
}

fn lines(node: &Node, out: &mut Vec<usize>) {
    out.push(node.line);
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| lines(item, out)),
        Value::Map(entries) => entries.iter().for_each(|entry| lines(&entry.node, out)),
        _ => {}
    }
}

#[test]
fn every_node_has_its_line() {
    let node = yaml::parse("a:\n- 1\n- - 2\n  - 3\n\nb: {c: 4,\n d: [5,\n 6]}\n").unwrap();
    let mut seen = Vec::new();
    lines(&node, &mut seen);
    assert_eq!(seen, [1, 2, 2, 3, 3, 4, 6, 6, 7, 7, 8]);
}

#[test]
fn where_only_one_parser_reads_on_the_values_stay_right() {
    // The unindented flow item is an error to YAML 1.2, and none to serde_yaml.
    let text = "prefill: [a:1,\nx]\ndecode: [b:1]\n";
    assert!(refused(text).starts_with("x.yaml:1: prefill[1]: Invalid instance format: x"));
}

#[test]
fn alias_bombs_are_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let before = format!("*a{}, ", i - 1).repeat(10);
        text.push_str(&format!(
            "a{i}: &a{i} [{}]\n",
            before.trim_end_matches(", ")
        ));
    }
    assert!(
        read(&text)
            .unwrap_err()
            .to_string()
            .contains("repetition limit exceeded")
    );
}
