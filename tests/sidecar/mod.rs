//! llm-d's sidecar: its command lines, its headers, its connectors, its TLS.

mod failed_prefills_never_break_their_policy;
mod headers_never_reach_forbidden_hosts;
mod legs_never_differ_from_the_originals;
mod media_never_misses_its_encoder;
mod old_flags_never_stop_working;
mod parts_never_lose_a_word;
mod requests_never_reach_decode_changed;
mod secrets_never_travel_in_the_clear;
mod simulated_engines_never_see_a_difference;
mod strict_engines_never_complain;

use std::net::SocketAddr;
use std::time::Duration;

use pdrelay::config::Config;
use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::config::load::Known;
use pdrelay::server::Server;

use crate::support::scripted::{Say, Scripted, answer};
use crate::support::{Client, Response, post_bytes};

/// Keeps what a program says.
#[derive(Default)]
pub struct Heard {
    pub out: String,
    pub err: String,
}

impl Terminal for Heard {
    fn out(&mut self, text: &str) {
        self.out += text;
    }
    fn err(&mut self, text: &str) {
        self.err += text;
    }
    fn ask(&mut self, _: &str, _: Option<Duration>) -> Option<String> {
        None
    }
    fn stamp(&self) -> String {
        String::new()
    }
}

/// What a command line (and an environment) amounts to; the error: what it said, and its exit code.
pub fn started(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Config, (String, u8)> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let mut heard = Heard::default();
    let look = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let program = legacy::by_name(program).or_else(|| legacy::by_argv0(program));
    let outcome = (program.expect("a program").run)(&mut Call {
        args: &args,
        known: &known,
        env: &look,
        terminal: &mut heard,
    });
    match outcome {
        Outcome::Serve(serve) => Ok(serve.loaded.config),
        Outcome::Exit(code) => Err((heard.err + &heard.out, code)),
    }
}

/// A sidecar in front of this D, on any port; `args`: as typed.
pub fn beside(program: &str, d: SocketAddr, args: &[&str]) -> Server {
    beside_with(program, d, args, |_| {})
}

pub fn beside_with(
    program: &str,
    d: SocketAddr,
    args: &[&str],
    change: impl FnOnce(&mut Config),
) -> Server {
    if std::env::var_os("PDRELAY_TEST_LOG").is_none() {
        pdrelay::log::set_level(pdrelay::log::Level::Error);
    }
    let port = format!("--vllm-port={}", d.port());
    let mut all = vec![port.as_str()];
    all.extend(args);
    let mut config = started(program, &all, &[]).unwrap_or_else(|(said, _)| panic!("{said}"));
    config.host = "127.0.0.1".into();
    config.port = 0;
    config.cores.shards = Some(1);
    change(&mut config);
    Server::start(config).expect("the sidecar starts")
}

/// An engine that says one thing.
pub fn says(status: &'static str, body: &'static str) -> Scripted {
    Scripted::start(move |_, _| Say::Bytes(answer(status, body)))
}

/// A POST with P named in its header, and further header lines.
pub fn post(server: &Server, path: &str, body: &str, p: &Scripted, more: &str) -> Response {
    let named = format!("x-prefiller-host-port: {}\r\n{more}", p.address);
    post_plain(server, path, body, &named)
}

pub fn post_plain(server: &Server, path: &str, body: &str, more: &str) -> Response {
    let mut client = Client::connect(server.address);
    client.send(post_bytes(path, body, more));
    client.response()
}

/// The lines of a request's head with this name.
pub fn fields<'a>(request: &'a str, name: &str) -> Vec<&'a str> {
    let head = request.split("\r\n\r\n").next().unwrap_or_default();
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let of = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
    of.map(|(_, value)| value).collect()
}

pub const T6: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
