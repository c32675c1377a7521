//! What happens when engines fail, seen from the client, the engines and the operator's pages.

mod a_dead_prefill_never_ejects_its_decodes;
mod broken_prefill_answers_never_reach_decode;
mod dead_instances_never_cost_a_request;
mod deadlines_never_pass_unnoticed;
mod engine_errors_never_change_on_their_way;
mod late_errors_never_pass_as_answers;
mod load_never_stays_behind;
mod metrics_never_disagree_with_what_was_done;
mod models_never_mix;
mod picks_never_depend_on_the_shard;
mod picks_never_herd;
mod readiness_never_lies;
mod recovery_never_waits_for_long;
mod useless_instances_never_join;

use crate::support::{Response, Rig, completion};

/// One short completion.
fn ask(rig: &Rig) -> Response {
    rig.post(
        "/v1/completions",
        &completion("some text", r#","max_tokens":3"#),
    )
}

/// The message of an OpenAI error body; checks the rest of its shape.
fn message(response: &Response) -> String {
    assert_eq!(response.header("content-type"), Some("application/json"));
    let body = response.json();
    let error = &body["error"];
    assert_eq!(error["code"], response.status, "{body}");
    assert!(
        error["type"].is_string() && error["param"].is_null(),
        "{body}"
    );
    error["message"].as_str().expect("a message").to_owned()
}

/// `/status` of this instance, by its position in the config.
fn standing(rig: &Rig, instance: usize) -> serde_json::Value {
    rig.get("/status").json()["instances"][instance].clone()
}

/// Is it left out of choice for a while?
fn left_out(rig: &Rig, instance: usize) -> bool {
    standing(rig, instance)["breaker"] == "open"
}

/// How often we say that this engine failed us in this way.
fn failures(rig: &Rig, engine: usize, kind: &str) -> f64 {
    let instance = format!("instance=\"{}\"", rig.sim.addresses()[engine]);
    let kind = format!("kind=\"{kind}\"");
    rig.sum("pdrelay_upstream_failures_total", &[&instance, &kind])
}
