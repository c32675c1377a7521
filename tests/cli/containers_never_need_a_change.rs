//! `configs/docker/`: what its files say works, as far as that can be seen without a container engine: each
//! command is run as the image's entry point gets it, with services' names and ports put in place.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Program, command};
use crate::support::{Client, completion, eventually};

fn docker(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("configs/docker")
        .join(name)
}

/// A folder on the PATH that is gone with the test.
struct Bin(PathBuf);

impl Bin {
    fn new(name: &str) -> Bin {
        let path =
            std::env::temp_dir().join(format!("pdrelay-image-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Bin(path)
    }

    /// What the container would run for these arguments.
    fn entry(&self, args: &[String]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        // `command` gives pipes and a clean environment; the program is the shell that Docker would start.
        let mut like = command(&[]);
        like.env("PATH", format!("{}:{path}", self.0.display()));
        let mut entry = Command::new("sh");
        entry
            .arg(docker("entrypoint.sh"))
            .args(args)
            .stdin(Stdio::null());
        entry.stdout(Stdio::piped()).stderr(Stdio::piped());
        for (key, value) in like.get_envs() {
            match value {
                Some(value) => entry.env(key, value),
                None => entry.env_remove(key),
            };
        }
        entry
    }
}

impl Drop for Bin {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn old_images_commands_mean_what_they_meant() {
    let bin = Bin::new("words");
    for name in ["pdrelay", "pdsim"] {
        let file = bin.0.join(name);
        std::fs::write(&file, format!("#!/bin/sh\necho {name} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (given, run) in [
        ("serve --port 1", "pdrelay serve --port 1"),
        ("--help", "pdrelay --help"),
        ("pdrelay check", "pdrelay check"),
        ("pdsim --prefill 1", "pdsim --prefill 1"),
        (
            "python3 core/MicroPDProxyServer.py --model m",
            "pdrelay xpyd --model m",
        ),
        (
            "python MicroPDProxyServer.py --port 1",
            "pdrelay xpyd --port 1",
        ),
        (
            "python3 -m core.MicroPDProxyServer -c x",
            "pdrelay xpyd -c x",
        ),
        ("python3 -m xpyd.proxy -c x", "pdrelay xpyd -c x"),
        ("xpyd proxy -c x", "pdrelay xpyd proxy -c x"),
        (
            "bash core/xpyd_start_proxy.sh -pn 1",
            "pdrelay xpyd-start -pn 1",
        ),
        (
            "uvicorn dummy_nodes.decode_node:app --port 1",
            "pdrelay sim dummy_nodes.decode_node:app --port 1",
        ),
        (
            "python3 -m uvicorn dummy_nodes.prefill_node:app",
            "pdrelay sim dummy_nodes.prefill_node:app",
        ),
    ] {
        let ran = bin.entry(&words(given)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), run, "{given}");
        assert!(ran.status.success());
    }
    let ran = bin.entry(&words("python3 train.py")).output().unwrap();
    assert_eq!(ran.status.code(), Some(127));
}

/// Whatever the Dockerfile copies from here is here, and it does not run as root.
#[test]
fn the_image_has_its_parts() {
    let text = std::fs::read_to_string(docker("Dockerfile")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copies = text.lines().filter_map(|l| l.strip_prefix("COPY "));
    let mut ours = 0;
    for copy in copies.filter(|c| !c.contains("--from")) {
        let words: Vec<&str> = copy.split(' ').filter(|w| !w.starts_with("--")).collect();
        let (_, sources) = words.split_last().unwrap();
        ours += sources.len();
        sources
            .iter()
            .for_each(|s| assert!(root.join(s).exists(), "{s}"));
    }
    assert_eq!(ours, 2);
    assert!(text.lines().any(|l| l == "USER pdrelay"));
    let entry = text
        .lines()
        .find_map(|l| l.strip_prefix("ENTRYPOINT [\"")?.strip_suffix("\"]"))
        .unwrap();
    assert!(
        text.lines()
            .any(|l| l.starts_with("COPY") && l.ends_with(entry))
    );
    for package in ["-p pdrelay", "-p pdsim"] {
        assert!(text.contains(package), "{package}");
    }
}

/// Replaces `NAME:PORT` of each service, wherever it stands.
fn in_place(text: &str, ports: &BTreeMap<String, (u16, u16)>) -> String {
    ports
        .iter()
        .fold(text.to_owned(), |text, (name, (old, new))| {
            text.replace(&format!("{name}:{old}"), &format!("127.0.0.1:{new}"))
        })
}

/// `docker compose up`, without Docker. The proxy's command needs `pdrelay xpyd`.
#[test]
fn the_compose_file_comes_up() {
    let text = std::fs::read_to_string(docker("docker-compose.yml")).unwrap();
    let mut file: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    file.apply_merge().unwrap();
    let services = file["services"].as_mapping().unwrap();
    let bin = Bin::new("compose");
    symlink(env!("CARGO_BIN_EXE_pdrelay"), bin.0.join("pdrelay")).unwrap();
    let strings = |value: &serde_yaml::Value| -> Vec<String> {
        let list = value.as_sequence().into_iter().flatten();
        list.map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let mut ports = BTreeMap::new();
    let mut nodes = Vec::new();
    for (name, service) in services {
        let name = name.as_str().unwrap().to_owned();
        assert_eq!(
            service["build"]["dockerfile"], "configs/docker/Dockerfile",
            "{name}"
        );
        let mut line = strings(&service["command"]);
        if name == "proxy" {
            continue;
        }
        let port = line.iter().position(|w| w == "--port").unwrap() + 1;
        let old: u16 = line[port].parse().unwrap();
        line[port] = "0".into();
        let mut entry = bin.entry(&line);
        for (key, value) in service["environment"].as_mapping().unwrap() {
            entry.env(key.as_str().unwrap(), value.as_str().unwrap());
        }
        let program = Program::of(entry.spawn().unwrap());
        eventually("the node says where it is", || {
            program.out.so_far().contains('\n')
        });
        let said = program.out.so_far();
        let new = said.trim().rsplit(':').next().unwrap().parse().unwrap();
        ports.insert(name, (old, new));
        nodes.push(program);
    }
    assert_eq!(nodes.len(), 4);
    let proxy = &services["proxy"];
    // The volume says which file is seen where.
    let volume = &strings(&proxy["volumes"])[0];
    let (from, to) = volume.split_once(':').unwrap();
    let config = std::fs::read_to_string(docker(from)).unwrap();
    let ours = bin.0.join("xpyd.yaml");
    let port = super::free_port();
    let config = in_place(&config, &ports).replace("port: 8868", &format!("port: {port}"));
    assert!(
        !config.contains("prefill-") && !config.contains("decode-"),
        "{config}"
    );
    std::fs::write(&ours, config).unwrap();
    let line: Vec<String> = strings(&proxy["command"])
        .into_iter()
        .map(
            |word| match to.starts_with(&word) && word.starts_with('/') {
                true => ours.display().to_string(),
                false => word,
            },
        )
        .collect();
    assert!(line.contains(&ours.display().to_string()), "{line:?}");
    let _proxy = Program::of(bin.entry(&line).spawn().unwrap());
    let address = ([127, 0, 0, 1], port).into();
    eventually("the proxy listens", || {
        std::net::TcpStream::connect(address).is_ok()
    });
    let ask =
        |more: &str| Client::connect(address).post("/v1/completions", &completion("Hello", more));
    eventually("the proxy is ready", || ask("").status == 200);
    for _ in 0..8 {
        assert_eq!(ask(r#","max_tokens":9"#).generated(), "The quick");
        let stream = ask(r#","max_tokens":9,"stream":true"#);
        assert_eq!(
            (stream.generated().as_str(), stream.complete),
            ("The quick", true)
        );
    }
    // Every node had its part.
    for (name, (_, port)) in &ports {
        let page = Client::connect(([127, 0, 0, 1], *port).into())
            .get("/metrics")
            .text();
        let asked = page
            .lines()
            .any(|l| l.contains(r#"endpoint="/v1/completions""#) && !l.ends_with(" 0"));
        let role = name.split('-').next().unwrap();
        let first = name.ends_with('1');
        assert!(page.contains(role) && (asked || !first), "{name}: {page}");
    }
}
