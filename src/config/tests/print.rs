use super::super::check::print;
use super::good;

#[test]
fn the_defaults_are_not_repeated() {
    assert_eq!(
        print(&good("")),
        "\
listen           0.0.0.0:8000
model            (any)
handshake        sequential
scheduling       prefill least_load, decode least_load, load view at most 1ms old
prefill          1 instance
                 10.0.0.1:8100
decode           1 instance
                 10.0.0.2:8200
shards           one per physical core
limits           defaults
timeouts         defaults
retry            on, defaults
health_check     on, defaults
circuit_breaker  on, defaults
log_level        info
openai_api_key   (not set)
admin_api_key    (not set)
"
    );
}

#[test]
fn what_differs_is_shown_and_secrets_are_not() {
    let text = print(&good(
        "model: m\nhost: '::'\nlimits: {body_bytes_max: 128MiB}\ntimeouts: {prefill: 450s, head: 1m}\n\
         retry: {enabled: false}\nhealth_check: {path: /ping}\ncpus: 0-2\nforward: [/x, /y/*]\n\
         openai_api_key: s3cret\ncircuit_breaker: {window: 1h}\n",
    ));
    for line in [
        "listen           [::]:8000",
        "model            m",
        "limits           body_bytes_max 128MiB (default 64MiB)",
        "timeouts         head 1m (default 30s), prefill 450s (default 5m)",
        "retry            off",
        "health_check     on, path /ping (default /health)",
        "circuit_breaker  on, window 1h (default 1m)",
        "shards           3 on CPUs 0,1,2",
        "forward          /x /y/*",
        "openai_api_key   (set)",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    assert!(!text.contains("s3cret"));
}

#[test]
fn weights_and_repeated_instances_are_shown() {
    let text =
        print(&super::read("aggregated: ['a:1', {address: 'b:1', weight: 2.5}, 'a:1']").unwrap());
    assert!(text.contains("aggregated       3 instances\n"), "{text}");
    assert!(text.contains("                 b:1 weight 2.5\n"), "{text}");
}

#[test]
fn side_ports_are_read_shown_and_prefill_s_alone() {
    let text =
        "handshake: sglang\nprefill: ['a:1', {address: 'a:2', side_port: 9001}]\ndecode: ['d:1']";
    let config = super::read(text).unwrap();
    let ports: Vec<_> = config.instances.iter().map(|one| one.side_port).collect();
    assert_eq!(ports, [None, Some(9001), None]);
    let written = super::super::write::yaml(&config, &[]);
    assert!(written.contains("side_port: 9001"), "{written}");
    assert_eq!(super::read(&written).unwrap().instances, config.instances);
    for (wrong, words) in [
        ("{address: 'a:1', side_port: 0}", "between 1 and 65535"),
        ("{address: 'a:1', side_port: x}", "side_port"),
    ] {
        let text = format!("prefill: [{wrong}]\ndecode: ['d:1']");
        let said = super::read(&text).unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
    let text = "prefill: ['a:1']\ndecode: [{address: 'd:1', side_port: 1}]";
    let said = super::read(text).unwrap_err().to_string();
    assert!(
        said.contains("a decode instance has no side_port"),
        "{said}"
    );
}
