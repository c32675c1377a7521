//! Several models behind one address: a request reaches engines of the model that it names, and no others.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pdrelay::config::{Config, Role};
use pdsim::EngineOptions;
use pdsim::Role::{Both, Decode, Prefill};

use crate::support::{Response, Rig, engine, eventually, rig_with};

fn serving(model: &str, role: pdsim::Role) -> EngineOptions {
    let mut engine = engine(role);
    engine.model = model.into();
    engine
}

/// Two aggregated engines of `a`, then P and D of `b`, then P and D of `c`; named in the config.
fn mixed(change: impl FnOnce(&mut Config)) -> Rig {
    let all = [
        ("a", Both),
        ("a", Both),
        ("b", Prefill),
        ("b", Decode),
        ("c", Prefill),
        ("c", Decode),
    ];
    let engines = all.map(|(model, role)| serving(model, role)).to_vec();
    rig_with("nixl", engines, |c| {
        c.models.strict = true;
        for (instance, (model, _)) in c.instances.iter_mut().zip(all) {
            instance.model = model.into();
        }
        change(c);
    })
}

fn ask(rig: &Rig, model: &str) -> Response {
    let body = format!(r#"{{"model":{model},"prompt":"hello","max_tokens":3}}"#);
    rig.post("/v1/completions", &body)
}

fn counts(rig: &Rig) -> Vec<usize> {
    let all = rig.sim.addresses().len();
    (0..all).map(|engine| rig.posts(engine).len()).collect()
}

#[test]
fn a_request_reaches_the_model_that_it_names() {
    let rig = mixed(|_| {});
    for _ in 0..4 {
        for model in [r#""a""#, r#""b""#, r#""\u0063""#] {
            let response = ask(&rig, model);
            assert_eq!(response.status, 200, "{model}: {}", response.text());
        }
    }
    // `a` went to one engine as a whole, `b` and `c` through two.
    assert_eq!(counts(&rig), [2, 2, 4, 4, 4, 4]);
    let whole = rig.posts(0);
    assert!(
        whole
            .iter()
            .all(|r| !String::from_utf8_lossy(&r.body).contains("kv_transfer"))
    );
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn a_model_that_nobody_serves_is_a_404() {
    let rig = mixed(|_| {});
    for stream in ["", r#","stream":true"#] {
        let body = format!(r#"{{"model":"no \"such\"","prompt":"x"{stream}}}"#);
        let response = rig.post("/v1/completions", &body);
        assert_eq!(response.status, 404, "{}", response.text());
        let error = &response.json()["error"];
        assert_eq!(error["message"], r#"The model 'no "such"' does not exist"#);
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert_eq!(counts(&rig), [0; 6]);
    assert_eq!(ask(&rig, r#""a""#).status, 200);
}

/// P of one model and D of another would be a false answer.
#[test]
fn requests_without_a_model_stay_within_one() {
    let rig = mixed(|c| {
        c.scheduling.prefill = "round_robin".into();
        c.scheduling.decode = "round_robin".into();
    });
    for name in ["", r#""model":null,"#] {
        for _ in 0..4 {
            let body = format!(r#"{{{name}"prompt":"hello","max_tokens":3}}"#);
            let response = rig.post("/v1/completions", &body);
            assert_eq!(response.status, 200, "{}", response.text());
        }
    }
    assert_eq!(counts(&rig), [0, 0, 4, 4, 4, 4]);
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

#[test]
fn a_model_has_its_own_policy_and_its_own_turn() {
    let rig = mixed(|c| {
        c.scheduling.prefill = "load_balanced".into();
        c.scheduling.decode = "load_balanced".into();
        let schedulers = &mut c.models.schedulers;
        schedulers.insert("a".into(), "round_robin".into());
        // Only for models that aggregated instances serve, and only known names.
        schedulers.insert("b".into(), "nonsense".into());
    });
    for _ in 0..5 {
        assert_eq!(ask(&rig, r#""a""#).status, 200);
        assert_eq!(ask(&rig, r#""b""#).status, 200);
    }
    assert_eq!(counts(&rig), [3, 2, 5, 5, 0, 0]);
}

#[test]
fn without_strictness_any_name_is_taken() {
    let one = rig_with(
        "nixl",
        vec![serving("dummy", Prefill), serving("dummy", Decode)],
        |_| {},
    );
    let body = r#"{"model":"dummy","prompt":"x","max_tokens":2}"#;
    assert_eq!(one.post("/v1/completions", body).status, 200);
    // The engines have the last word on the name, and they were asked.
    assert_eq!(ask(&one, r#""other""#).status, 404);
    assert_eq!(counts(&one), [2, 1]);

    let several = mixed(|c| {
        c.models.strict = false;
        // Serves whatever it serves: all that is not better placed.
        c.instances[1].model.clear();
    });
    for _ in 0..4 {
        assert_eq!(ask(&several, r#""a""#).status, 200);
        assert_eq!(ask(&several, r#""c""#).status, 200);
    }
    assert_eq!(counts(&several), [2, 2, 0, 0, 4, 4]);
}

/// What instances serve is learned from them where the config does not say it.
#[test]
fn models_are_learned() {
    let rig = mixed(|c| {
        c.instances.iter_mut().for_each(|i| i.model.clear());
        // Asked for all that.
        c.health_check.enabled = false;
    });
    eventually("all have said what they serve", || {
        ["a", "b", "c"]
            .iter()
            .all(|m| ask(&rig, &format!("\"{m}\"")).status == 200)
    });
    assert_eq!(ask(&rig, r#""d""#).status, 404);
    let models = rig.get("/status").json()["models"].clone();
    assert_eq!(models, serde_json::json!(["a", "b", "c"]));
    assert_eq!(rig.sim.ledger().violations, Vec::<String>::new());
}

/// Whether there is such a model cannot be said before all have been asked.
#[test]
fn a_model_that_may_yet_be_served_is_a_503() {
    // Accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let rig = mixed(|c| {
        let mut late = c.instances[0].clone();
        late.address = pdrelay::config::Address::tcp("127.0.0.1", address.port());
        late.model.clear();
        c.instances.push(late);
        c.health_check.enabled = false;
    });
    let response = ask(&rig, r#""late""#);
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.header("retry-after").is_some());
    assert_eq!(ask(&rig, r#""a""#).status, 200);
    drop(silent);
    // It was asked in vain: now nobody is left who might serve it.
    eventually("it is given up", || ask(&rig, r#""late""#).status == 404);
}

#[test]
fn a_mixed_cluster_is_ready_while_any_model_can_be_served() {
    let rig = mixed(|_| {});
    assert_eq!(rig.get("/ready").status, 200);
    for engine in 2..6 {
        rig.sim.kill(engine);
    }
    assert_eq!(ask(&rig, r#""b""#).status, 503);
    assert_eq!(rig.get("/ready").status, 200);
    assert_eq!(ask(&rig, r#""a""#).status, 200);
    // A request that names no model goes to whoever is up.
    let response = rig.post("/v1/completions", r#"{"prompt":"x","max_tokens":2}"#);
    assert_eq!(response.status, 200, "{}", response.text());
    for engine in 0..2 {
        rig.sim.kill(engine);
    }
    eventually("nobody is left", || rig.get("/ready").status == 503);
}

#[test]
fn an_instance_can_be_added_with_its_model() {
    let rig = mixed(|c| {
        c.admin_api_key = Some(pdrelay::config::Secret("k".into()));
        c.instances.truncate(4);
    });
    assert_eq!(ask(&rig, r#""c""#).status, 404);
    for (engine, role) in [(4, "prefill"), (5, "decode")] {
        let address = rig.sim.addresses()[engine];
        let body = format!(r#"{{"role":"{role}","address":"{address}","model":"c"}}"#);
        let mut client = rig.client();
        let key = "x-api-key: k\r\n";
        client.send(crate::support::post_bytes("/admin/instances", &body, key));
        let response = client.response();
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(
            response.text().contains(r#""model": "c""#),
            "{}",
            response.text()
        );
    }
    // Every shard sees it by the next request.
    for _ in 0..8 {
        assert_eq!(ask(&rig, r#""c""#).status, 200);
    }
}

/// An engine of one request per connection, that serves this model; none: it is down.
fn speaking(model: Arc<Mutex<Option<&'static str>>>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).unwrap_or(0);
            let Some(model) = *model.lock().unwrap() else {
                continue;
            };
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let body = match head.split(' ').nth(1) {
                Some("/v1/models") => {
                    assert!(
                        head.contains("authorization: Bearer engines-key\r\n"),
                        "{head}"
                    );
                    let length = if model == "two" {
                        r#","max_model_len":777"#
                    } else {
                        ""
                    };
                    format!(
                        r#"{{"object":"list","data":[{{"id":"{model}"{length}}},{{"id":"x"}}]}}"#
                    )
                }
                _ => "{}".to_owned(),
            };
            let (n, start) = (body.len(), "HTTP/1.1 200 OK\r\nconnection: close\r\n");
            let answer = match model {
                "two" => {
                    format!("{start}transfer-encoding: chunked\r\n\r\n{n:x}\r\n{body}\r\n0\r\n\r\n")
                }
                _ => format!("{start}content-length: {n}\r\n\r\n{body}"),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// An engine that was started anew is asked anew.
#[test]
fn another_model_after_a_restart_is_noticed() {
    let model = Arc::new(Mutex::new(Some("one")));
    let address = speaking(model.clone());
    let mut config = crate::support::config("aggregated", &[Role::Aggregated], &[address]);
    config.models.strict = true;
    config.health_check.interval = Duration::from_millis(30);
    config.openai_api_key = Some(pdrelay::config::Secret("engines-key".into()));
    let server = pdrelay::server::Server::start(config).unwrap();
    let get = |path: &str| crate::support::Client::connect(server.address).get(path);
    let ask = |model: &str| {
        let body = format!(r#"{{"model":"{model}","prompt":"x"}}"#);
        crate::support::Client::connect(server.address)
            .post("/v1/completions", &body)
            .status
    };
    let length = || get("/status").json()["instances"][0]["max_model_len"].clone();
    eventually("one is known", || ask("one") == 200);
    assert_eq!((ask("two"), length()), (404, 131_072.into()));
    *model.lock().unwrap() = None;
    eventually("it is known to be down", || get("/ready").status == 503);
    assert_eq!(ask("two"), 404);
    *model.lock().unwrap() = Some("two");
    eventually("two is known", || ask("two") == 200);
    assert_eq!((ask("one"), length()), (404, 777.into()));
}
