use super::super::Role;
use super::{addresses, read, refused};

fn decode(lines: &str) -> String {
    refused(&format!("prefill: [10.0.0.1:8100]\ndecode:\n{lines}"))
}

#[test]
fn two_prefill_of_tp8_get_one_port_each() {
    let config = read(
        "prefill:\n  nodes: [10.0.0.1:8100, 10.0.0.2:8100]\n  tp_size: 8\n  dp_size: 2\n  \
         world_size_per_node: 8\ndecode: [10.0.0.3:8200]\n",
    )
    .unwrap();
    assert_eq!(
        addresses(&config, Role::Prefill),
        ["10.0.0.1:8100", "10.0.0.2:8100"]
    );
}

#[test]
fn sixteen_decode_of_tp1_count_up_on_each_node() {
    let config = read(
        "prefill: [10.0.0.9:8100]\ndecode: {nodes: [10.0.0.1:8200, 10.0.0.2:8200], tp_size: 1, \
         dp_size: 16, world_size_per_node: 8}\n",
    )
    .unwrap();
    let expected: Vec<String> = ["10.0.0.1", "10.0.0.2"]
        .iter()
        .flat_map(|host| (8200..=8207).map(move |port| format!("{host}:{port}")))
        .collect();
    assert_eq!(addresses(&config, Role::Decode), expected);
}

#[test]
fn ports_count_instances_not_accelerators() {
    let config = read(
        "prefill: [10.0.0.9:8100]\ndecode: {nodes: [h:8200], tp_size: 4, dp_size: 2, \
         world_size_per_node: 8}\n",
    )
    .unwrap();
    assert_eq!(addresses(&config, Role::Decode), ["h:8200", "h:8201"]);
}

#[test]
fn an_instance_over_two_nodes_has_the_first_ones_address() {
    let config = read(
        "prefill: [10.0.0.9:8100]\ndecode: {nodes: [a:1, b:1, c:1, d:1], tp_size: 16, dp_size: 2, \
         world_size_per_node: 8}\n",
    )
    .unwrap();
    assert_eq!(addresses(&config, Role::Decode), ["a:1", "c:1"]);
}

#[test]
fn world_size_need_not_be_a_power_of_two() {
    let config = read(
        "prefill: [10.0.0.9:8100]\ndecode: {nodes: ['[::1]:1', b:1, c:1, d:1], tp_size: 4, dp_size: 4, \
         world_size_per_node: 4}\n",
    )
    .unwrap();
    assert_eq!(
        addresses(&config, Role::Decode),
        ["[::1]:1", "b:1", "c:1", "d:1"]
    );
    let config = read(
        "prefill: [10.0.0.9:8100]\ndecode: {nodes: [a:1, b:1], tp_size: 2, dp_size: 3, \
         world_size_per_node: 3}\n",
    );
    assert!(
        config
            .unwrap_err()
            .to_string()
            .contains("dp_size must be a power of two, got 3")
    );
}

#[test]
fn sizes_that_do_not_match_the_machines_are_refused() {
    assert_eq!(
        decode("  nodes: [a:8200]\n  tp_size: 2\n  dp_size: 1\n  world_size_per_node: 8\n"),
        "x.yaml:2: decode: decode topology invalid: tp_size(2) * dp_size(1) != nodes(1) * \
         world_size_per_node(8)"
    );
}

#[test]
fn every_topology_mistake_is_named() {
    assert_eq!(
        decode("  nodes: [a:1]\n  tp: 2\n  dp_size: 1\n"),
        "x.yaml:2: decode: decode topology config missing keys: ['tp_size', 'world_size_per_node']\n\
         x.yaml:4: decode.tp: decode topology config has unknown keys: ['tp'] \
         (known: nodes, tp_size, dp_size, world_size_per_node)"
    );
    assert_eq!(
        decode(
            "  nodes:\n    - a\n    - b:x\n    - 10.0.0.300:1\n    - 7\n  tp_size: 0\n  dp_size: x\n  \
             world_size_per_node: 1\n"
        ),
        "x.yaml:4: decode.nodes[0]: decode invalid node format: a (write host:port, with the port of its first instance)\n\
         x.yaml:5: decode.nodes[1]: decode invalid port in node b:x (write host:port, with the port of its first instance)\n\
         x.yaml:6: decode.nodes[2]: decode invalid node format: 10.0.0.300:1: Invalid host in instance 10.0.0.300:1: '10.0.0.300' does not appear to be an IPv4 or IPv6 address, nor a host name (write host:port, with the port of its first instance)\n\
         x.yaml:7: decode.nodes[3]: nodes[3] must be a string, got int (put it in quotes)\n\
         x.yaml:8: decode.tp_size: decode tp_size must be a positive integer, got 0\n\
         x.yaml:9: decode.dp_size: dp_size must be an integer, got str"
    );
    assert_eq!(
        refused("decode: 7\nprefill: [a:1]"),
        "x.yaml:1: decode: decode must be a list of addresses or a topology dict, got int \
         (write decode: [10.0.0.1:8100])"
    );
    assert!(refused("aggregated: {nodes: []}").contains("must be a list of addresses, got dict"));
}

#[test]
fn huge_sizes_end_in_an_error_and_not_in_memory() {
    let text = "  nodes: [a:65535]\n  tp_size: 1\n  dp_size: 1099511627776\n  \
                world_size_per_node: 1099511627776\n";
    assert!(decode(text).contains("node a:65535 has no port left for its instance 1"));
    let text = "  nodes: [a:1]\n  tp_size: 9223372036854775808\n  dp_size: 9223372036854775808\n  \
                world_size_per_node: 18446744073709551615\n";
    assert!(decode(text).contains("decode topology invalid"));
}
