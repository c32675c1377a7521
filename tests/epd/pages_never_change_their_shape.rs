//! The proxy's own pages, in the bytes that its clients know.

use pdsim::{EcMode, Fault};

use super::{engines, epd};
use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Response, eventually};

const ALL_WELL: &str = r#"{"proxy":"healthy","encode_cluster":"healthy","prefill_cluster":"healthy","decode_cluster":"healthy"}"#;

#[test]
fn health_tells_of_every_cluster() {
    let rig = epd(engines(2, 1, 1, EcMode::V2), |_| {});
    let response = rig.get("/health");
    assert_eq!((response.status, &*response.text()), (200, ALL_WELL));
    rig.sim.kill(1);
    let response = rig.get("/health");
    assert_eq!(response.status, 503);
    assert_eq!(
        response.text(),
        ALL_WELL.replacen(
            "\"encode_cluster\":\"healthy\"",
            "\"encode_cluster\":\"unhealthy\"",
            1
        )
    );
    let pair = epd(engines(1, 0, 0, EcMode::V2), |_| {});
    let response = pair.get("/health");
    assert_eq!(response.status, 200);
    assert_eq!(
        response.text(),
        ALL_WELL.replacen(
            "\"prefill_cluster\":\"healthy\"",
            "\"prefill_cluster\":\"empty\"",
            1
        )
    );
}

#[test]
fn models_come_from_whoever_decodes() {
    use pdrelay::config::{Role, Surface};
    let other = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"wrong":1}"#)));
    let decode = Scripted::start(|_, request| {
        let path = request.split(' ').nth(1).unwrap();
        Say::Bytes(answer("200 OK", &format!(r#"{{"asked":"{path}"}}"#)))
    });
    let roles = [Role::Encode, Role::Prefill, Role::Decode];
    let mut config = crate::support::config(
        "epd",
        &roles,
        &[other.address, other.address, decode.address],
    );
    config.surface = Surface::Epd;
    config.instances[1] = pdrelay::config::InstanceConfig::new(
        pdrelay::config::Address::tcp("localhost", other.address.port()),
        Role::Prefill,
    );
    let server = pdrelay::server::Server::start(config).unwrap();
    let get = |path: &str| Client::connect(server.address).get(path);
    assert_eq!(get("/v1/models").text(), r#"{"asked":"/v1/models"}"#);
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn profiles_are_asked_of_one_engine_per_role() {
    use pdrelay::config::{Role, Secret, Surface};
    let with = Scripted::start(|_, _| Say::Bytes(answer("200 OK", r#"{"on":true}"#)));
    let silent = Scripted::start(|_, _| Say::Bytes(answer("200 OK", "")));
    let without = Scripted::start(|_, _| Say::Bytes(answer("404 Not Found", "{}")));
    let failing = Scripted::start(|_, _| Say::Bytes(answer("500 Oh", "no")));
    let roles = [Role::Encode, Role::Prefill, Role::Decode];
    let ask = |three: [&Scripted; 3], path: &str| -> Response {
        let addresses = three.map(|one| one.address);
        let mut config = crate::support::config("epd", &roles, &addresses);
        config.surface = Surface::Epd;
        config.openai_api_key = Some(Secret("key".into()));
        let server = pdrelay::server::Server::start(config).unwrap();
        Client::connect(server.address).post(path, r#"{"a":1}"#)
    };
    let response = ask([&with, &without, &silent], "/start_profile");
    assert_eq!(
        (response.status, &*response.text()),
        (200, r#"{"encode":{"on":true},"prefill":null,"decode":{}}"#)
    );
    let asked = with.requests().pop().unwrap();
    assert!(asked.starts_with("POST /start_profile "), "{asked}");
    assert!(
        asked.contains("authorization: Bearer key\r\n") && asked.ends_with(r#"{"a":1}"#),
        "{asked}"
    );
    let gone = Scripted::start(|_, _| Say::Bytes(answer("404 Not Found", "{}")));
    let again = Scripted::start(|_, _| Say::Bytes(answer("404 Not Found", "{}")));
    let response = ask([&gone, &without, &again], "/stop_profile");
    assert_eq!(response.status, 503);
    assert_eq!(
        response.json()["detail"],
        "Profiling endpoints are disabled on all clusters"
    );
    let response = ask([&with, &failing, &silent], "/stop_profile");
    assert_eq!(
        (response.status, response.json()["detail"].as_str()),
        (500, Some("no"))
    );
}

#[test]
fn other_paths_and_methods_are_told_as_before() {
    let rig = epd(engines(1, 1, 1, EcMode::V2), |_| {});
    for path in ["/nowhere", "/v1/embeddings", "/instances", "/docs"] {
        let response = rig.get(path);
        assert_eq!(
            (response.status, &*response.text()),
            (404, r#"{"detail":"Not Found"}"#),
            "{path}"
        );
    }
    let response = rig.get("/v1/chat/completions");
    assert_eq!(
        (response.status, &*response.text()),
        (405, r#"{"detail":"Method Not Allowed"}"#)
    );
    assert_eq!(response.header("allow"), Some("POST"));
    let response = rig.post("/v1/chat/completions", "{");
    assert_eq!(response.status, 400);
    assert!(response.json()["detail"].is_string());
    assert_eq!(rig.get("/ready").status, 200);
    assert!(rig.get("/metrics").text().contains("pdrelay_"));
    rig.sim.set_fault(2, Some(Fault::Status(500)));
    eventually("it is not ready", || rig.get("/ready").status == 503);
}
