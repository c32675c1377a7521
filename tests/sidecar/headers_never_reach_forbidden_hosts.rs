//! Whom a header may name: by address, network or name, and by port, which the original never looked at.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pdrelay::config::sidecar::{Allow, Pool, Target};
use pdrelay::server::Server;

use super::{beside_with, post_plain, says};
use crate::support::eventually;

const FORBIDDEN: &str = "Forbidden: prefill target not allowed by SSRF protection\n";

#[test]
fn only_listed_targets_are_asked() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let other = says("200 OK", "{}");
    let port = p.address.port();
    for (allowed, named, status) in [
        (format!("127.0.0.1:{port}"), p.address.to_string(), 200),
        ("127.0.0.0/8".into(), p.address.to_string(), 200),
        (
            format!("localhost:{port}"),
            format!("localhost:{port}"),
            200,
        ),
        // An allowed host is no allowance for all that listens there.
        (format!("127.0.0.1:{port}"), other.address.to_string(), 403),
        ("10.0.0.0/8".into(), p.address.to_string(), 403),
        // A name that happens to lead to an allowed address is not that address.
        (
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            403,
        ),
        // Nobody is allowed by an empty list.
        (String::new(), p.address.to_string(), 403),
    ] {
        let server = beside_with("sidecar", d.address, &[], |config| {
            let targets = allowed.split_whitespace();
            config.sidecar.as_mut().unwrap().allow = Some(Allow {
                targets: targets.map(|text| Target::parse(text).unwrap()).collect(),
                pool: None,
            });
        });
        let before = (p.bodies().len(), d.bodies().len(), other.bodies().len());
        let more = format!("x-prefiller-host-port: {named}\r\n");
        let response = post_plain(&server, "/v1/completions", r#"{"prompt":"x"}"#, &more);
        assert_eq!(response.status, status, "{allowed}: {named}");
        if status == 403 {
            assert_eq!(response.text(), FORBIDDEN);
            let after = (p.bodies().len(), d.bodies().len(), other.bodies().len());
            assert_eq!(before, after, "nobody was asked");
        }
    }
}

/// A Kubernetes API with one InferencePool and its pods; what it is told to say next goes to whoever watches.
struct Api {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Paths that were asked for, with their tokens.
    asked: Vec<String>,
    pods: Vec<(String, String)>,
    watchers: Vec<TcpStream>,
    /// So many watches are answered with 410.
    gone: usize,
}

fn pod((name, ip): &(String, String), version: u32) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}},"status":{{"podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]}}}}"#
    )
}

fn say(stream: &mut TcpStream, status: &str, body: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}

impl Api {
    fn start(port: u16) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Api {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let state = api.state.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut bytes = Vec::new();
                let mut room = [0; 4096];
                while !bytes.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut room) {
                        Ok(n) if n > 0 => bytes.extend_from_slice(&room[..n]),
                        _ => break,
                    }
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut state = state.lock().unwrap();
                state.asked.push(text.clone());
                if text.contains("/inferencepools/pool ") {
                    let body = format!(
                        r#"{{"spec":{{"selector":{{"matchLabels":{{"app":"x","role":"p"}}}},"targetPorts":[{{"number":{port}}}]}}}}"#
                    );
                    say(&mut stream, "200 OK", &body);
                } else if text.contains("watch=true") {
                    if state.gone > 0 {
                        state.gone -= 1;
                        say(&mut stream, "410 Gone", "{}");
                        continue;
                    }
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).unwrap();
                    state.watchers.push(stream);
                } else {
                    let items: Vec<String> = state.pods.iter().map(|one| pod(one, 7)).collect();
                    let items = items.join(",");
                    let body =
                        format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":[{items}]}}"#);
                    say(&mut stream, "200 OK", &body);
                }
            }
        });
        api
    }

    fn tell(&self, line: &str) {
        let line = format!("{line}\n");
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        for watcher in &mut self.state.lock().unwrap().watchers {
            let _ = watcher.write_all(chunk.as_bytes());
        }
    }

    /// The API ends all watches, as it does each half minute.
    fn end_watches(&self) {
        for mut watcher in self.state.lock().unwrap().watchers.drain(..) {
            let _ = watcher.write_all(b"0\r\n\r\n");
        }
    }

    fn lists(&self) -> usize {
        self.asked("/pods?") - self.asked("watch=true")
    }

    fn asked(&self, what: &str) -> usize {
        let state = self.state.lock().unwrap();
        state
            .asked
            .iter()
            .filter(|text| text.contains(what))
            .count()
    }
}

/// A sidecar that admits the pods of this API's pool.
fn pooled(api: &Api, d: SocketAddr, token: std::path::PathBuf) -> Server {
    beside_with("sidecar", d, &[], |config| {
        config.sidecar.as_mut().unwrap().allow = Some(Allow {
            targets: Vec::new(),
            pool: Some(Pool {
                name: "pool".into(),
                namespace: "ns".into(),
                api_server: Some(format!("http://{}", api.address)),
                token_file: token,
                ..Pool::default()
            }),
        });
    })
}

fn prefilled_by(server: &Server, p: &str) -> u16 {
    let more = format!("x-prefiller-host-port: {p}\r\n");
    post_plain(server, "/v1/completions", r#"{"prompt":"x"}"#, &more).status
}

/// The API has forgotten where our watch stood, and says so with the status of the next one: all is listed again.
#[test]
fn a_watch_that_is_gone_never_leaves_the_pool_as_it_was() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let api = Api::start(p.address.port());
    let server = pooled(&api, d.address, "/nonexistent".into());
    let here = p.address.to_string();
    eventually("it watches", || api.asked("watch=true&") == 1);
    assert_eq!((prefilled_by(&server, &here), api.lists()), (403, 1));
    // Nobody is told of this one by a watch.
    {
        let mut state = api.state.lock().unwrap();
        state.pods.push(("p-1".into(), "127.0.0.1".into()));
        state.gone = 1;
    }
    api.end_watches();
    eventually("it lists again", || prefilled_by(&server, &here) == 200);
    assert_eq!(api.lists(), 2);
    eventually("it watches again", || api.asked("watch=true&") == 3);
    // Who is out of the list is let in no more.
    api.state.lock().unwrap().pods.clear();
    api.state.lock().unwrap().gone = 1;
    api.end_watches();
    eventually("it lists again", || prefilled_by(&server, &here) == 403);

    // An API that can do nothing else is not asked all the time.
    eventually("it watches again", || api.asked("watch=true&") == 5);
    api.state.lock().unwrap().gone = 3;
    let (began, before) = (Instant::now(), api.lists());
    api.end_watches();
    eventually("it watches for good", || {
        api.state.lock().unwrap().watchers.len() == 1
    });
    // The first at once, then one after 1 s, and one after 2 s.
    assert_eq!(api.lists() - before, 3);
    assert!(began.elapsed() > Duration::from_millis(2500));
}

#[test]
fn the_pods_of_an_inference_pool_are_followed() {
    let (p, d) = (says("200 OK", "{}"), says("200 OK", "{}"));
    let api = Api::start(p.address.port());
    let token = std::env::temp_dir().join(format!("pdrelay-token-{}", std::process::id()));
    std::fs::write(&token, "secret-token\n").unwrap();
    let server = pooled(&api, d.address, token.clone());
    let status = |named: &str| prefilled_by(&server, named);
    let here = p.address.to_string();
    // Nobody is in the pool.
    assert_eq!(status(&here), 403);
    eventually("it watches", || api.asked("watch=true&") == 1);
    let one = ("p-1".to_owned(), "127.0.0.1".to_owned());
    let event = |kind: &str, version: u32| {
        api.tell(&format!(
            r#"{{"type":"{kind}","object":{}}}"#,
            pod(&one, version)
        ));
    };
    event("ADDED", 8);
    eventually("it is let in", || status(&here) == 200);
    // The host is allowed, but no pod of the pool serves there.
    assert_eq!(status(&d.address.to_string()), 403);
    event("DELETED", 9);
    eventually("it is let in no more", || status(&here) == 403);
    // From where it was told last, with its token, and only the pods that the pool selects.
    {
        let state = api.state.lock().unwrap();
        let list = state
            .asked
            .iter()
            .find(|text| text.contains("/pods?"))
            .unwrap();
        assert!(
            list.starts_with("GET /api/v1/namespaces/ns/pods?labelSelector=app%3Dx%2Crole%3Dp "),
            "{list}"
        );
        assert!(
            list.contains("authorization: Bearer secret-token\r\n"),
            "{list}"
        );
        let watch = state
            .asked
            .iter()
            .find(|text| text.contains("watch=true"))
            .unwrap();
        assert!(watch.contains("resourceVersion=7"), "{watch}");
    }
    // Its memory begins later than what we know: a new list.
    api.state.lock().unwrap().pods.push(one.clone());
    let lists = api.lists();
    api.tell(r#"{"type":"ERROR","object":{"code":410,"reason":"Expired"}}"#);
    eventually("it lists again", || status(&here) == 200);
    assert_eq!(api.lists(), lists + 1);
    drop(server);
    std::thread::sleep(Duration::from_millis(10));
    let _ = std::fs::remove_file(token);
}
