//! xPyD-proxy's users start pdrelay with what they have: commands, links, scripts, files, variables.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Program, Ran, command, finish, free_port, root, run};
use crate::support::eventually;

/// A folder that is gone with the test, to start programs in.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = format!("pdrelay-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// `pdrelay ARGS`, here.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.current_dir(&self.0).env_remove("XPYD_CONFIG");
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args))
    }

    /// The same under another name.
    fn run_as(&self, name: &str, args: &[&str]) -> Ran {
        let link = self.0.join(name);
        symlink(env!("CARGO_BIN_EXE_pdrelay"), &link).unwrap();
        finish(self.as_program(&link, args))
    }

    fn as_program(&self, path: &Path, args: &[&str]) -> Command {
        let mut like = Command::new(path);
        like.args(args)
            .current_dir(&self.0)
            .env_remove("XPYD_CONFIG")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        like
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const LISTS: &str = "model: m\nprefill: [127.0.0.1:1]\ndecode: [127.0.0.1:2]\nhost: 127.0.0.1\n";

#[test]
fn any_name_of_it_works() {
    let folder = Folder::new("names");
    let version = concat!("xpyd 1.8.0 (pdrelay ", env!("CARGO_PKG_VERSION"), ")\n");
    for name in ["xpyd", "xpyd.py", "MicroPDProxyServer.py"] {
        let ran = folder.run_as(name, &["--version"]);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (Some(0), version),
            "{name}: {}",
            ran.err
        );
    }
    let ran = folder.run(&["xpyd", "--version"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), version));
    let ran = folder.run_as("xpyd_start_proxy.sh", &["--help"]);
    assert!(
        ran.code == Some(0) && ran.out.contains("XPYD_PREFILL_IPS"),
        "{}",
        ran.err
    );
    let ran = folder.run(&["xpyd", "--help"]);
    assert!(
        ran.code == Some(0) && ran.out.starts_with("usage: xpyd [proxy]"),
        "{}",
        ran.out
    );
    let ran = folder.run(&["xpyd", "--nope"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(
        ran.err
            .ends_with("xpyd: error: unrecognized arguments: --nope\n"),
        "{}",
        ran.err
    );
}

#[test]
fn files_are_looked_for_in_the_old_order() {
    let folder = Folder::new("order");
    folder.write("xpyd.yaml", "port: 0\n");
    folder.write("env.yaml", "port: 0\n");
    folder.write("flag.yaml", "port: 0\n");
    let with = |args: &[&str], variable: bool| {
        let mut command = folder.command(&[&["xpyd"][..], args].concat());
        if variable {
            command.env("XPYD_CONFIG", "env.yaml");
        }
        finish(command)
    };
    let ran = with(&[], false);
    assert_eq!(
        ran.out,
        "No config specified; found ./xpyd.yaml and using it.\n"
    );
    assert!(
        ran.err
            .starts_with("xpyd: failed to load config: ./xpyd.yaml:1: "),
        "{}",
        ran.err
    );
    assert_eq!(ran.code, Some(1));
    let ran = with(&[], true);
    assert!(
        ran.err
            .starts_with("xpyd: failed to load config: env.yaml:1: "),
        "{}",
        ran.err
    );
    assert_eq!(ran.out, "");
    let ran = with(&["--conf", "flag.yaml"], true);
    assert!(
        ran.err
            .starts_with("xpyd: failed to load config: flag.yaml:1: "),
        "{}",
        ran.err
    );
}

#[test]
fn a_start_without_anything_leaves_a_config_behind() {
    let folder = Folder::new("nothing");
    let ran = folder.run(&["xpyd", "proxy"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(
        ran.out,
        "No config specified and ./xpyd.yaml was not found; starting config initialization.\n\
         Configure interactively? [y/N] (5s timeout): \nConfig template written to xpyd.yaml\n"
    );
    let ran = folder.run(&["xpyd", "--validate-config", "xpyd.yaml"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.out
            .starts_with("Config is valid: xpyd.yaml\n  topology: "),
        "{}",
        ran.out
    );
    let ran = folder.run(&["xpyd", "--init-config"]);
    assert_eq!(ran.code, Some(2));
    let why = "xpyd: error: config already exists: xpyd.yaml; use --force to overwrite\n";
    assert!(ran.err.ends_with(why), "{}", ran.err);
}

/// Nobody at the keyboard, but the keyboard is there.
#[test]
fn a_question_never_waits_for_ever() {
    let folder = Folder::new("patience");
    let mut command = folder.command(&["xpyd"]);
    command.stdin(std::process::Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().unwrap();
    let keyboard = child.stdin.take();
    let mut program = Program::of(child);
    assert_eq!(program.wait().code(), Some(0));
    let took = began.elapsed();
    assert!(
        took > Duration::from_secs(4) && took < Duration::from_secs(15),
        "{took:?}"
    );
    assert!(folder.read("xpyd.yaml").contains("model:"));
    drop(keyboard);
}

#[test]
fn the_old_command_line_serves() {
    let folder = Folder::new("serves");
    let port = free_port().to_string();
    folder.write(
        "x.yaml",
        &format!("{LISTS}startup: {{wait_timeout_seconds: 0}}\n"),
    );
    let args = ["xpyd", "-c", "x.yaml", "--port", &port, "--roundrobin"];
    let mut program = Program::of(folder.command(&args).spawn().unwrap());
    let line = format!("listens on http://127.0.0.1:{port}\n");
    eventually("it listens", || program.err.so_far().contains(&line));
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
}

const SIZES: [&str; 16] = [
    "-pn", "2", "-pt", "8", "-pd", "2", "-pw", "8", "-dn", "2", "-dt", "8", "-dd", "2", "-dw", "8",
];

#[test]
fn the_start_script_starts() {
    let folder = Folder::new("script");
    let port = free_port().to_string();
    let start = |mut command: Command| {
        command
            .args(SIZES)
            .env("XPYD_PREFILL_IPS", "127.0.0.1 127.0.0.1")
            .env("XPYD_DECODE_IPS", "127.0.0.1 127.0.0.1")
            .env("XPYD_PROXY_PORT", &port)
            .env("model_path", "/models/m")
            .env("PDRELAY", env!("CARGO_BIN_EXE_pdrelay"))
            .env_remove("XPYD_LOG")
            .env_remove("XPYD_DRY_RUN");
        command
    };
    let line = format!(
        "Running: pdrelay xpyd --model /models/m --prefill 127.0.0.1:8100 127.0.0.1:8100 --decode \
         127.0.0.1:8200 127.0.0.1:8200 --port {port}"
    );
    let mut command = start(folder.command(&["xpyd-start"]));
    command.env("XPYD_DRY_RUN", "1");
    let ran = finish(command);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(0), &*format!("{line}\n")),
        "{}",
        ran.err
    );

    let shim = root().join("configs/shims/xpyd_start_proxy.sh");
    let mut command = start(folder.as_program(&shim, &[]));
    command.env("XPYD_DRY_RUN", "1");
    let ran = finish(command);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (Some(0), &*format!("{line}\n")),
        "{}",
        ran.err
    );

    // For real, with all output in a file as well, in a folder that is made for it.
    let mut command = start(folder.command(&["xpyd-start"]));
    command.env("XPYD_LOG", "new/logs");
    let mut program = Program::of(command.spawn().unwrap());
    let log = || {
        let Ok(entries) = std::fs::read_dir(folder.0.join("new/logs")) else {
            return String::new();
        };
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut logs = names.filter(|n| n.starts_with("ProxyServer_") && n.ends_with(".log"));
        logs.next()
            .map(|name| folder.read(&format!("new/logs/{name}")))
            .unwrap_or_default()
    };
    eventually("its log says so", || log().contains(&format!(":{port}\n")));
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
    assert!(
        program
            .out
            .text()
            .starts_with(&format!("{line} 2>&1 | tee new/logs/ProxyServer_"))
    );

    // Where there can be no such file it serves all the same, as with `| tee`.
    let mut command = start(folder.command(&["xpyd-start"]));
    command.env("XPYD_LOG", "/dev/null/logs");
    let mut program = Program::of(command.spawn().unwrap());
    eventually("it serves", || {
        program.err.so_far().contains(&format!(":{port}\n"))
    });
    program.signal(libc::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
    assert!(program.err.text().contains("WARNING: /dev/null/logs/"));

    let ran = finish({
        let mut command = start(folder.command(&["xpyd-start"]));
        command.env_remove("XPYD_DECODE_IPS");
        command
    });
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(
        ran.err.starts_with("ERROR: XPYD_DECODE_IPS is not set"),
        "{}",
        ran.err
    );
}

/// The file that old start scripts call with Python, where there is one.
#[test]
fn the_old_python_file_starts() {
    let folder = Folder::new("python");
    folder.write("x.yaml", LISTS);
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let shim = root().join("configs/shims/MicroPDProxyServer.py");
    let shim = shim.to_str().unwrap();
    let with = |pdrelay: &str| {
        let args = [shim, "--validate-config", "x.yaml"];
        let mut command = folder.as_program(Path::new("python3"), &args);
        command.env("PDRELAY", pdrelay);
        finish(command)
    };
    let ran = with(env!("CARGO_BIN_EXE_pdrelay"));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.out.starts_with("Config is valid: x.yaml\n"),
        "{}",
        ran.out
    );
    let ran = with("/nowhere/pdrelay");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("put pdrelay on the PATH"), "{}", ran.err);
}

/// Each of the Python files is the program that it is named after, and takes its command line.
#[test]
fn old_python_files_never_start_another_program() {
    let folder = Folder::new("shims");
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("configs/shims")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "py") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let shim = path.to_str().unwrap();
        let mut command = folder.as_program(Path::new("python3"), &[shim, "--help"]);
        command.env("PDRELAY", env!("CARGO_BIN_EXE_pdrelay"));
        let ran = finish(command);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{name}");
        assert_eq!(ran.out, folder.run_as(name, &["--help"]).out, "{name}");
        let executable =
            std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(executable & 0o111, 0o111, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 5);
}

/// What `migrate` prints is what `check` and `serve` read; a line apart says how it would be served.
#[test]
fn migrated_files_load() {
    let folder = Folder::new("migrate");
    for (name, args) in [
        (
            "xpyd",
            vec![
                "--model",
                "m",
                "--prefill",
                "p:1",
                "--decode",
                "d:1",
                "d:1",
                "--roundrobin",
            ],
        ),
        (
            "xpyd",
            vec![
                "-c",
                "lists.yaml",
                "--port",
                "7",
                "--first-token-source",
                "prefill",
            ],
        ),
        (
            "xpyd",
            vec!["-c", "models.yaml", "--disaggregated-mode", "nixl"],
        ),
    ] {
        folder.write("lists.yaml", LISTS);
        let models = root().join("configs/xpyd-instances.yaml");
        std::fs::copy(models, folder.0.join("models.yaml")).unwrap();
        let ran = folder.run(&[&["migrate", name][..], &args].concat());
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        folder.write("ours.yaml", &ran.out);
        let ours = folder.run(&["check", "-c", "ours.yaml"]);
        assert_eq!((ours.code, ours.err.as_str()), (Some(0), ""), "{}", ran.out);
        assert!(ours.out.contains("surface          xpyd\n"), "{}", ours.out);
        assert!(
            ran.out.starts_with("# Made by `pdrelay migrate xpyd`."),
            "{}",
            ran.out
        );
    }
    // By the name that the program had, with or without its ending and its folder, it is the same.
    for (name, ours, args) in [
        (
            "disagg_epd_proxy",
            "epd",
            &["--encode-servers-urls=e:1", "--decode-servers-urls=d:1"][..],
        ),
        (
            "./disagg_epd_proxy.py",
            "epd",
            &["--encode-servers-urls=e:1", "--decode-servers-urls=d:1"],
        ),
        (
            "disagg_encoder_proxy",
            "epd",
            &["--encode-servers-urls=e:1", "--decode-servers-urls=d:1"],
        ),
        ("disagg_proxy_server", "lmcache", &[]),
        ("disagg_proxy_multiturn", "multiturn", &[]),
        ("pd-sidecar", "sidecar", &["--port=1"]),
        ("llm-d-routing-sidecar", "routing-sidecar", &["--port=1"]),
        (
            "MicroPDProxyServer.py",
            "xpyd",
            &["--model=m", "--prefill", "p:1", "--decode", "d:1"],
        ),
    ] {
        let ran = folder.run(&[&["migrate", name][..], args].concat());
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.err);
        let same = folder.run(&[&["migrate", ours][..], args].concat());
        assert_eq!(ran.out, same.out, "{name}");
    }
    let ran = folder.run(&["migrate", "xpyd", "--version"]);
    assert_eq!(ran.code, Some(2));
    let ran = folder.run(&["migrate", "nginx"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("xpyd, xpyd-start"), "{}", ran.err);
    let help = run(&["--help"]);
    for word in ["xpyd", "xpyd-start", "migrate"] {
        assert!(help.out.contains(word), "{}", help.out);
    }
}
