//! Several models behind one address, and the options of policies.

use super::super::load::Overrides;
use super::super::{Config, Role};
use super::{addresses, bad, good, odd, read, read_with, refused};

fn of_models(config: &Config) -> Vec<String> {
    let shown =
        |i: &super::super::InstanceConfig| format!("{} {} {}", i.role.name(), i.address, i.model);
    config.instances.iter().map(shown).collect()
}

const BOTH: &str = "
models:
- name: b
  prefill: [p:1]
  decode: ['d:1', {address: 'd:2', weight: 2}]
- name: a
  aggregated: [x:1, x:2]
  scheduler: roundrobin
";

#[test]
fn models_are_instances_in_short() {
    let config = read(BOTH).unwrap();
    assert_eq!(
        of_models(&config),
        [
            "prefill p:1 b",
            "decode d:1 b",
            "decode d:2 b",
            "aggregated x:1 a",
            "aggregated x:2 a"
        ]
    );
    assert_eq!(config.instances[2].weight, 2.0);
    assert_eq!(config.models.schedulers["a"], "round_robin");
    assert!(config.models.strict);
    assert_eq!(
        (config.model.as_str(), config.handshake.as_str()),
        ("", "sequential")
    );
    let long = "instances: [{address: 'x:1', role: aggregated, model: a}, \
                {address: 'p:1', role: prefill, model: b}, {address: 'd:1', role: decode, model: b}]";
    let config = read(long).unwrap();
    assert!(config.models.strict);
    assert_eq!(addresses(&config, Role::Aggregated), ["x:1"]);
    let topology = "models: [{name: m, prefill: [p:1], decode: {nodes: ['d:1'], tp_size: 1, dp_size: 2, \
                    world_size_per_node: 2}}]";
    let config = read(topology).unwrap();
    assert_eq!(addresses(&config, Role::Decode), ["d:1", "d:2"]);
    assert_eq!(config.model, "m");
}

#[test]
fn only_files_with_models_are_strict() {
    assert!(!good("model: m").models.strict);
    let unnamed = "instances: [{address: 'p:1', role: prefill}, {address: 'd:1', role: decode}]";
    assert!(!read(unnamed).unwrap().models.strict);
    let old = format!("surface: xpyd\n{unnamed}");
    assert!(read(&old).unwrap().models.strict);
}

#[test]
fn models_without_their_engines_are_refused() {
    for (text, why) in [
        (
            "models: [{aggregated: ['a:1']}]",
            "models[0]: Each model in 'models' must have a non-empty 'name'.",
        ),
        (
            "models: [{name: a, aggregated: ['a:1'], weight: 2}]",
            "models[0].weight: Unknown keys in model 'a': ['weight']",
        ),
        (
            "models: [{name: a, aggregated: ['a:1'], decode: ['b:1']}]",
            "models[0]: Model 'a' cannot have both 'aggregated' and 'prefill'/'decode' fields.",
        ),
        (
            "models: [{name: a, decode: ['b:1']}]",
            "models: Model 'a' requires at least one prefill and one decode instance (or use all \
             aggregated instances). (add a prefill instance)",
        ),
        (
            "instances: [{address: 'a:1', role: decode, model: a}, {address: 'b:1', role: dual, model: a}]",
            "instances: Model 'a' mixes aggregated and prefill/decode instances.",
        ),
        (
            "models: [{name: a, aggregated: [b]}]",
            "models[0].aggregated[0]: Invalid instance format: b",
        ),
        ("models: [a]", "models[0]: models[0] must be {name, prefill"),
        (
            "models: {}",
            "models: models must be a list of {name, prefill",
        ),
        (
            "models: [{name: a, aggregated: ['a:1']}]\ninstances: [{address: 'b:1', role: dual}]",
            "models: Cannot specify both 'models' and 'instances'.",
        ),
    ] {
        let problems = refused(text);
        let start = format!("x.yaml:1: {why}");
        assert!(problems.starts_with(&start), "{text}:\n{problems}");
        assert_eq!(problems.lines().count(), 1, "{text}:\n{problems}");
    }
    let problems = bad("models: [{name: a, aggregated: ['a:1']}]");
    let start = "x.yaml:3: models: Cannot use 'instances' or 'models' together with legacy";
    assert!(problems.starts_with(start), "{problems}");
}

#[test]
fn policies_of_models_are_for_aggregated_ones() {
    let warned = |text: &str| {
        let loaded = read_with(text, &Overrides::default()).unwrap();
        assert!(loaded.config.models.schedulers.is_empty());
        loaded.warnings[0].to_string()
    };
    let text = "models: [{name: a, prefill: [p:1], decode: [d:1], scheduler: round_robin}]";
    assert!(warned(text).contains("scheduler has no effect: it is for aggregated models only"));
    let text = "models: [{name: a, aggregated: ['a:1'], scheduler: fastest}]";
    assert!(warned(text).contains("Invalid scheduler 'fastest' of model 'a'; expected one of"));
}

#[test]
fn options_of_policies() {
    let rings = |lines: &str| {
        let scheduling = good(lines).scheduling;
        (scheduling.virtual_nodes, scheduling.prefix_length)
    };
    assert_eq!(rings(""), (160, 256));
    assert_eq!(
        rings("scheduling: {virtual_nodes: 5, prefix_length: 6}"),
        (5, 6)
    );
    let old = "consistent_hash: {virtual_nodes: 64}\ncache_aware: {prefix_length: 32}\n";
    assert_eq!(
        rings(&format!("scheduling: consistent_hash\n{old}")),
        (64, 32)
    );
    // The ring of cache_aware has no such key there.
    assert_eq!(rings(&format!("scheduling: cache_aware\n{old}")), (160, 32));
    let config =
        "scheduling: consistent_hash\nscheduling_config: {consistent_hash: {virtual_nodes: 9}}";
    assert_eq!(rings(config), (9, 256));
    assert_eq!(
        good("roundrobin: true\nscheduling: {virtual_nodes: 5}")
            .scheduling
            .decode,
        "round_robin"
    );
    assert!(odd("power_of_two: {}\nloadbalanced:\nload_balanced: {}\nround_robin: {}").is_empty());
    assert!(
        bad("power_of_two: {seed: 1}")
            .contains("Unknown keys in a policy without options: ['seed']")
    );
    assert!(bad("consistent_hash: {virtual_nodes: 0}").contains("virtual_nodes must be between 1"));
}
