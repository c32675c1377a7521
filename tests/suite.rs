//! One test binary. Each file is named by the failure it forbids.
//!
//! What pdrelay promises (README), and the tests that hold it to that:
//!
//! | promise | tests |
//! |---|---|
//! | 1 drop-in | `cli/old_command_lines_never_stop_working` `docs/rows_never_lie` |
//! | 2 byte-exact | `http/bodies_never_reach_engines_changed` |
//! | 2 | `http/framing_never_changes_body_bytes` |
//! | 2 | `wire/splices_never_touch_other_bytes` |
//! | 3 true statuses | `failures/engine_errors_never_change_on_their_way` |
//! | 3 | `http/broken_streams_never_end_clean` |
//! | 4 departed clients noticed | `http/departed_clients_never_keep_an_engine_busy` |
//! | 5 no stranded KV | `handshakes/departed_clients_never_strand_kv` `matrix/table` |
//! | 6 no prefill without need | `handshakes/spent_params_never_travel_again` |
//! | 6 | `failures/dead_instances_never_cost_a_request` |
//! | 7 nobody gets another's bytes | `http/never_crossed` |
//! | 7 | `http/stale_connections_never_fail_a_request` |
//! | 7 | `wire/stale_bodies_never_reach_the_next_answer` |
//! | 8 nothing leaks | `failures/load_never_stays_behind` `chaos/world` |
//! | 9 everything has a limit | `http/hostile_sizes_never_stop_the_proxy` |
//! | 9 | `http/slow_clients_never_hold_a_place` |
//! | 9 | `failures/deadlines_never_pass_unnoticed` |
//! | 10 it explains itself | `failures/metrics_never_disagree_with_what_was_done` |
//! | 10 | `cli/access_lines_are_never_forged` |

#[path = "../benches/counting.rs"]
mod counting;
mod support;

mod chaos;
mod cli;
mod docs;
mod epd;
mod failures;
mod first_token;
mod handshakes;
mod http;
mod lmcache;
mod matrix;
mod multiturn;
mod sidecar;
mod structure;
mod wire;
mod xpyd;

/// For the one test that counts; until then it is the system's.
#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;
