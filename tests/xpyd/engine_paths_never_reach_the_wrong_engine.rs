//! Tokenize, embeddings and their kin: checked, and sent on as they are to the first engine that can
//! take them.

use super::{object, raw, rig, rig_where};
use crate::support::{Rig, engines, eventually, rig_with};

const PATHS: [(&str, &str, &str); 10] = [
    (
        "/tokenize",
        r#"{"model":"dummy", "prompt":"caf\u00e9 1e2"}"#,
        "model, prompt",
    ),
    (
        "/detokenize",
        r#"{"model":"dummy","tokens":[1]}"#,
        "model, tokens",
    ),
    (
        "/v1/embeddings",
        r#"{"model":"dummy","input":"a"}"#,
        "model, input",
    ),
    (
        "/pooling",
        r#"{"model":"dummy","messages":[],"input":"a"}"#,
        "model, messages",
    ),
    (
        "/score",
        r#"{"model":"dummy","text_1":"a","text_2":"b","predictions":1}"#,
        "model, text_1, text_2, predictions",
    ),
    (
        "/v1/score",
        r#"{"model":"dummy","text_1":"a","text_2":"b","predictions":1}"#,
        "model, text_1, text_2, predictions",
    ),
    (
        "/rerank",
        r#"{"model":"dummy","query":"a","documents":["b"]}"#,
        "model, query, documents",
    ),
    (
        "/v1/rerank",
        r#"{"model":"dummy","query":"a","documents":["b"]}"#,
        "model, query, documents",
    ),
    (
        "/v2/rerank",
        r#"{"model":"dummy","query":"a","documents":["b"]}"#,
        "model, query, documents",
    ),
    (
        "/invocations",
        r#"{"model":"dummy","prompt":"a"}"#,
        "model, prompt",
    ),
];

#[test]
fn bodies_arrive_as_sent_and_answers_come_back() {
    let rig = rig(2, 1);
    for (path, body, _) in PATHS {
        // No content type is asked for here; what was read as JSON is sent on as JSON: `curl -d` calls it
        // a form, and vLLM then refuses it.
        let form = "content-type: application/x-www-form-urlencoded\r\n";
        let response = raw(&rig, "POST", path, form, body);
        let all = rig.posts(0);
        let last = all
            .last()
            .unwrap_or_else(|| panic!("{path} did not arrive"));
        assert_eq!(
            (last.path.as_str(), String::from_utf8_lossy(&last.body)),
            (path, body.into())
        );
        let types = last
            .headers
            .iter()
            .filter(|(name, _)| name == "content-type");
        let types: Vec<_> = types.map(|(_, value)| value.as_str()).collect();
        assert_eq!(types, ["application/json"], "{path}");
        let known = path != "/invocations";
        assert_eq!(response.status, if known { 200 } else { 404 }, "{path}");
    }
    assert_eq!(rig.posts(1).len() + rig.posts(2).len(), 0);
}

#[test]
fn what_is_missing_is_named() {
    let rig = rig(1, 1);
    for (path, _, all) in PATHS {
        for (body, message) in [
            ("{}", format!("Missing required fields: {all}")),
            ("[]", format!("Missing required fields: {all}")),
            ("{", "Invalid JSON in request body".into()),
            ("", "Invalid JSON in request body".into()),
        ] {
            let response = raw(&rig, "POST", path, "", body);
            assert_eq!(response.status, 400, "{path} {body}");
            assert_eq!(response.text(), object(&message, "invalid_request_error"));
        }
    }
    let response = raw(&rig, "POST", "/tokenize", "", r#"{"model":"dummy"}"#);
    let message = "Missing required fields: prompt";
    assert_eq!(response.text(), object(message, "invalid_request_error"));
    assert_eq!(rig.posts(0).len(), 0, "nothing of it reached an engine");
}

fn tokenize(rig: &Rig, model: &str) -> crate::support::Response {
    let body = format!(r#"{{"model":"{model}","prompt":"a"}}"#);
    raw(rig, "POST", "/tokenize", "", &body)
}

#[test]
fn the_next_engine_is_asked_when_the_first_is_gone() {
    let rig = rig_where(2, 1, |config| config.health_check.enabled = false);
    rig.sim.kill(0);
    assert_eq!(tokenize(&rig, "dummy").status, 200);
    assert_eq!(rig.posts(1).len(), 1);
}

#[test]
fn an_engine_of_the_model_is_asked_and_no_other() {
    let models = ["a", "b", "a", "c"];
    let mut list = engines(2, 2);
    for (engine, model) in list.iter_mut().zip(models) {
        engine.model = model.into();
    }
    let rig = rig_with("sequential", list, |config| {
        super::face(config);
        config.models.strict = true;
        for (one, model) in config.instances.iter_mut().zip(models) {
            one.model = model.into();
        }
    });
    super::open(&rig);
    let count = |rig: &Rig| [0, 1, 2, 3].map(|i| rig.posts(i).len());
    assert_eq!(tokenize(&rig, "b").status, 200);
    assert_eq!(count(&rig), [0, 1, 0, 0]);
    assert_eq!(
        tokenize(&rig, "c").status,
        200,
        "a decode engine can do it, too"
    );
    assert_eq!(count(&rig), [0, 1, 0, 1]);
    let response = tokenize(&rig, "x");
    assert_eq!(response.status, 404);
    assert_eq!(
        response.text(),
        object("The model 'x' does not exist", "invalid_request_error")
    );
    rig.sim.kill(1);
    eventually("its death is seen", || tokenize(&rig, "b").status != 200);
    eventually("nobody is left", || tokenize(&rig, "b").status == 503);
    assert_eq!(count(&rig)[0], 0, "never one of another model");
}
