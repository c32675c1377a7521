//! What users of `disagg_epd_proxy.py` typed, and what it means here.

use std::time::Duration;

use pdrelay::config::legacy::{self, Call, Outcome, Terminal};
use pdrelay::config::{Config, Known, Role, Surface, epd::Version, write};

struct Silent(String);

impl Terminal for Silent {
    fn out(&mut self, text: &str) {
        self.0 += text;
    }
    fn err(&mut self, text: &str) {
        self.0 += text;
    }
    fn ask(&mut self, _: &str, _: Option<Duration>) -> Option<String> {
        None
    }
    fn stamp(&self) -> String {
        String::new()
    }
}

fn with<T>(
    line: &str,
    env: &[(&str, &str)],
    act: impl FnOnce(&'static legacy::Program, &mut Call) -> T,
) -> (T, String) {
    let args: Vec<String> = line.split_whitespace().map(Into::into).collect();
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let env = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let mut terminal = Silent(String::new());
    let done = act(
        legacy::by_name("epd").unwrap(),
        &mut Call {
            args: &args,
            known: &known,
            env: &env,
            terminal: &mut terminal,
        },
    );
    (done, terminal.0)
}

fn config(line: &str, env: &[(&str, &str)]) -> Config {
    let (outcome, said) = with(line, env, |program, call| (program.run)(call));
    match outcome {
        Outcome::Serve(serve) => serve.loaded.config,
        Outcome::Exit(code) => panic!("{line}: exit {code}: {said}"),
    }
}

fn refused(line: &str, env: &[(&str, &str)]) -> String {
    let (outcome, said) = with(line, env, |program, call| (program.run)(call));
    assert!(matches!(outcome, Outcome::Exit(2)), "{line}");
    said.lines().last().unwrap().to_owned()
}

fn places(config: &Config, role: Role) -> Vec<String> {
    let of_role = config.instances.iter().filter(|one| one.role == role);
    of_role.map(|one| one.address.to_string()).collect()
}

#[test]
fn names_of_the_program_are_known() {
    for name in [
        "disagg_epd_proxy",
        "/opt/x/disagg_epd_proxy.py",
        "disagg_encoder_proxy.py",
        "disagg_encoder_proxy",
    ] {
        assert_eq!(
            legacy::by_argv0(name).map(|program| program.name),
            Some("epd"),
            "{name}"
        );
    }
}

#[test]
fn urls_become_instances() {
    let line = "--encode-servers-urls http://e:1,,http://f:2/x/ --prefill-servers-urls=http://p:3 --decode-s http://d:4 --port 1900 --host ::1";
    let c = config(line, &[]);
    assert_eq!(places(&c, Role::Encode), ["e:1", "http://f:2/x"]);
    assert_eq!(places(&c, Role::Prefill), ["p:3"]);
    assert_eq!(places(&c, Role::Decode), ["d:4"]);
    assert_eq!((c.port, &*c.host, c.surface), (1900, "::1", Surface::Epd));
    assert_eq!(
        (&*c.handshake, c.epd.version, c.epd.rewrite),
        ("epd", Version::V3, true)
    );
    assert_eq!(
        (c.retry.max_retries, &c.retry.retryable_status_codes),
        (1, &vec![500])
    );
    for none in ["disable", "NONE", "Disable"] {
        let c = config(
            &format!("--enc http://e:1 --pref {none} --decode-s http://d:4,http://d:5"),
            &[],
        );
        assert_eq!(places(&c, Role::Aggregated), ["d:4", "d:5"]);
        assert!(places(&c, Role::Prefill).is_empty() && places(&c, Role::Decode).is_empty());
    }
}

const PAIR: &str = "--encode-servers-urls http://e:1 --decode-servers-urls http://d:4,http://d:5";

#[test]
fn flags_and_variables_mean_what_they_meant() {
    let c = config(
        &format!("{PAIR} --no-rewrite --decode-retries -3 --log-requests"),
        &[
            ("ENCODER_MAX_BATCH_SIZE", "4"),
            ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "3"),
        ],
    );
    assert_eq!(
        (c.epd.rewrite, c.epd.encoder_batch_max, c.retry.max_retries),
        (false, 4, 0)
    );
    assert_eq!(c.timeouts.pool_idle, Duration::from_millis(1500));
    let v1 = config(
        &format!("{PAIR} --epd-version v1"),
        &[("ENCODER_MAX_BATCH_SIZE", "-4")],
    );
    assert_eq!((v1.epd.version, v1.retry.max_retries), (Version::V1, 0));
    let c = config(
        &format!("{PAIR} --ec-consumer-zmq-addrs a:1,a:2,b:1,b:2 --ec-consumer-dp-size 2"),
        &[],
    );
    let consumers: Vec<_> = c
        .instances
        .iter()
        .filter(|i| i.role == Role::Aggregated)
        .map(|i| i.consumer.clone())
        .collect();
    assert_eq!(consumers[1].addresses, ["b:1", "b:2"]);
    assert_eq!(consumers[0].dp_size, 2);
    let key = [("ADMIN_API_KEY", "k")];
    let c = config(
        "--dynamic-registration --probe-interval 0.5 --fail-threshold 7 --evicted-ttl 0",
        &key,
    );
    assert!(c.epd.dynamic_registration && c.instances.is_empty() && c.epd.evicted_ttl.is_none());
    assert_eq!(c.health_check.interval, Duration::from_millis(500));
    assert_eq!(c.health_check.timeout, Duration::from_secs(2));
    assert_eq!(c.health_check.failure_threshold, 7);
    assert!(
        !config("--dynamic-registration --probe-interval 0", &key)
            .health_check
            .enabled
    );
}

#[test]
fn mistakes_end_with_2_and_are_told() {
    let begins = "disagg_epd_proxy.py: error: ";
    for (line, env, why) in [
        (
            "",
            &[][..],
            "the following arguments are required: --encode-servers-urls, --decode-servers-urls",
        ),
        (
            "--encode-servers-urls http://e:1 --decode-servers-urls ,",
            &[],
            "the following arguments are required: --decode-servers-urls",
        ),
        (
            "--encode-servers-urls",
            &[],
            "argument --encode-servers-urls: expected one argument",
        ),
        ("--nope", &[], "unrecognized arguments: --nope"),
        (
            "--ec 1",
            &[],
            "ambiguous option: --ec could match --ec-consumer-zmq-addrs, --ec-consumer-dp-size",
        ),
        ("--port x", &[], "argument --port: invalid int value: 'x'"),
        (
            "--epd-version v9",
            &[],
            "argument --epd-version: invalid choice: 'v9' (choose from 'v1', 'v2', 'v3')",
        ),
        (
            "--dynamic-registration",
            &[],
            "--dynamic-registration needs the variable ADMIN_API_KEY",
        ),
        (
            "--fail-threshold 0",
            &[],
            "--fail-threshold must be at least 1",
        ),
        (
            "--probe-timeout -1",
            &[],
            "--probe-timeout must not be negative",
        ),
    ] {
        assert_eq!(refused(line, env), format!("{begins}{why}"), "{line}");
    }
    for (more, env, why) in [
        ("--ec-consumer-dp-size 0", &[][..], "at least 1"),
        (
            "--ec-consumer-zmq-addrs a:1",
            &[],
            "has 1 addresses, but 2 are needed",
        ),
        (
            "--ec-consumer-zmq-addrs a:1,a:2 --prefill-servers-urls http://p:1",
            &[],
            "does not go with --prefill-servers-urls",
        ),
        ("--decode-servers-urls d::4", &[], "IPv6"),
        (
            "",
            &[("ENCODER_MAX_BATCH_SIZE", "-1")],
            "ENCODER_MAX_BATCH_SIZE must be a whole number",
        ),
        (
            "",
            &[("ENCODER_MAX_BATCH_SIZE", "two")],
            "ENCODER_MAX_BATCH_SIZE must be a number",
        ),
        (
            "--dynamic-registration",
            &[("ADMIN_API_KEY", "k")],
            "does not go with --dynamic-registration",
        ),
    ] {
        let said = refused(&format!("{PAIR} {more}"), env);
        assert!(
            said.starts_with(begins) && said.contains(why),
            "{more}: {said}"
        );
    }
    let (outcome, help) = with("--help", &[], |program, call| (program.run)(call));
    assert!(matches!(outcome, Outcome::Exit(0)) && help.starts_with("usage: disagg_epd_proxy.py"));
}

/// The YAML that is printed means the same.
#[test]
fn a_migrated_line_means_the_same() {
    for line in [
        format!("{PAIR} --ec-consumer-zmq-addrs a:1,a:2 --no-rewrite --epd-version v2"),
        format!("{PAIR} --prefill-servers-urls http://p:1/x --log-requests"),
    ] {
        let wanted = config(&line, &[]);
        let (migrated, said) = with(&line, &[], |program, call| (program.migrate)(call));
        let migrated = migrated.unwrap_or_else(|code| panic!("{code}: {said}"));
        let text = write::yaml(&migrated.loaded.config, &migrated.notes);
        let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
        let known = Known {
            handshakes: &handshakes,
            policies: &policies,
        };
        let again =
            pdrelay::config::from_str(&text, "x", &known).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(again, wanted, "{text}");
        assert!(text.contains("Made by `pdrelay migrate epd`"), "{text}");
    }
}
