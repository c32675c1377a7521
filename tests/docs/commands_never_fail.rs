//! Every command in the README and in `docs/` is run as it stands there, without Docker, Python or curl.
//!
//! What the word behind `sh` says:
//!
//! | fence | what happens to its lines |
//! |---|---|
//! | `sh` | each must end with 0; a `curl` is sent by this test, and its status must be 2xx |
//! | `sh exit=N`, `sh status=N` | the same with another exit code or status |
//! | `sh server` | each stays: it must listen; killed at the end of its `##` section |
//! | `sh no-run` | not run: only for the programs in [`NOT_RUN`] |
//!
//! They run beside a copy of `configs/`, with `pdrelay`, `xpyd` and `pdsim` on the PATH. Ports are moved to free
//! ones, in commands and copied files alike; variables that are exported stay for the section.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{pages, read, root};
use crate::support::Client;

/// What a machine may lack, or what would change it.
const NOT_RUN: [&str; 4] = ["docker", "systemctl", "cargo", "vllm"];

/// Ports that the documents use, as ranges of [`WIDTH`].
const RANGES: [u16; 6] = [8000, 8100, 8200, 8300, 8860, 9100];
const WIDTH: u16 = 20;

struct Block {
    /// Behind `sh`.
    mark: String,
    lines: Vec<String>,
    section: usize,
    at: usize,
}

/// The `sh` blocks of a page; other blocks must not hide commands.
fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut section, mut fence): (usize, Option<String>) = (0, None);
    for (number, line) in text.lines().enumerate() {
        let at = number + 1;
        match (&fence, line.trim_start().strip_prefix("```")) {
            (None, Some(info)) => {
                let kind = info.split(' ').next().unwrap();
                let known = ["sh", "yaml", "json", "text", "rust", "ini", "http"].contains(&kind);
                assert!(known, "{page}:{at}: a block of kind '{info}'");
                if kind == "sh" {
                    blocks.push(Block {
                        mark: info[2..].trim().into(),
                        lines: Vec::new(),
                        section,
                        at,
                    });
                }
                fence = Some(kind.into());
            }
            (Some(_), Some(_)) => fence = None,
            (Some(kind), None) if kind == "sh" => {
                let lines = &mut blocks.last_mut().unwrap().lines;
                match lines.last_mut() {
                    Some(last) if last.ends_with('\\') => {
                        last.pop();
                        *last += line.trim_start();
                    }
                    _ if line.trim().is_empty() || line.trim().starts_with('#') => {}
                    _ => lines.push(line.trim().into()),
                }
            }
            (Some(kind), None) => {
                let hidden = ["pdrelay ", "xpyd ", "pdsim ", "curl ", "$ "];
                let hides = kind == "text" && hidden.iter().any(|h| line.starts_with(h));
                assert!(!hides, "{page}:{at}: a command in a {kind} block");
            }
            (None, None) if line.starts_with("## ") => section += 1,
            (None, None) => {}
        }
    }
    assert!(fence.is_none(), "{page}: a block without an end");
    blocks
}

/// Where a page's ports are on this machine.
struct Ports {
    base: u16,
}

impl Ports {
    /// Below what the system gives to others, free at this moment, and nobody else's of this process.
    fn find() -> Ports {
        static NEXT: Mutex<u16> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        let width = WIDTH * RANGES.len() as u16;
        for _ in 0..150 {
            // Processes that test at the same time begin elsewhere.
            let step = (*next + (std::process::id() % 150) as u16) % 150;
            *next += 1;
            let base = 10_000 + step * width;
            let mut all = base..base + width;
            if all.all(|p| TcpListener::bind(("127.0.0.1", p)).is_ok()) {
                return Ports { base };
            }
        }
        panic!("no free ports");
    }

    /// Waits until all are free again: the kernel closes what a killed process had in its ring only after its end.
    fn settle(&self) {
        let end = Instant::now() + Duration::from_secs(15);
        for port in self.base..self.base + WIDTH * RANGES.len() as u16 {
            while let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                assert!(Instant::now() < end, "{port}: {error}");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn of(&self, port: u16) -> Option<u16> {
        let range = RANGES
            .iter()
            .position(|r| (*r..*r + WIDTH).contains(&port))?;
        Some(self.base + range as u16 * WIDTH + (port - RANGES[range]))
    }

    /// Every number that is such a port and stands where a port stands.
    fn moved(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, from) = rest.split_at(start);
            out += before;
            let end = from
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(from.len());
            let (digits, after) = from.split_at(end);
            let places = [":", "port ", "port: ", "port=", "PORT=", "base "];
            let here = places.iter().any(|p| out.ends_with(p));
            let port = digits
                .parse()
                .ok()
                .filter(|_| here)
                .and_then(|p| self.of(p));
            match port {
                Some(port) => out += &port.to_string(),
                None => out += digits,
            }
            rest = after;
        }
        out + rest
    }
}

/// A folder with what the commands need; gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str, ports: &Ports) -> Place {
        let folder = format!("pdrelay-docs-{}-{name}", std::process::id());
        let place = Place(std::env::temp_dir().join(folder));
        let bin = place.0.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for name in ["pdrelay", "xpyd"] {
            let to = bin.join(name);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pdrelay"), to).unwrap();
        }
        let built = place.0.join("target");
        std::fs::create_dir_all(&built).unwrap();
        std::os::unix::fs::symlink(&bin, built.join("release")).unwrap();
        let pdsim = bin.join("pdsim");
        std::fs::write(&pdsim, "#!/bin/sh\nexec pdrelay sim \"$@\"\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&pdsim, executable).unwrap();
        copy(&root().join("configs"), &place.0.join("configs"), ports);
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path, ports: &Ports) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to, ports),
            false => {
                std::fs::copy(entry.path(), &to).unwrap();
                let text = std::fs::read_to_string(&to).unwrap();
                std::fs::write(&to, ports.moved(&text)).unwrap();
            }
        }
    }
}

/// A server of the page. Dropped: its whole group is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: a plain syscall; the group is the child's own, and it has not been waited for.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// One section of one page.
struct Scene<'a> {
    place: &'a Place,
    ports: &'a Ports,
    exports: Vec<String>,
    running: Vec<Running>,
    count: usize,
    /// How long a `curl` may get another answer than it should.
    patience: Duration,
}

impl Scene<'_> {
    fn shell(&self, line: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        let exports = self.exports.join("\n");
        command
            .arg("-c")
            .arg(format!("{exports}\n{line}"))
            .current_dir(&self.place.0)
            .env("PATH", format!("{}/bin:{path}", self.place.0.display()))
            .env_remove("OPENAI_API_KEY")
            .env_remove("ADMIN_API_KEY")
            .env_remove("XPYD_CONFIG")
            .stdin(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// Runs one line to its end; its exit code and all it said.
    fn run(&self, line: &str) -> (Option<i32>, String) {
        let said = self.place.0.join("said");
        let file = std::fs::File::create(&said).unwrap();
        let mut command = self.shell(line);
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut running = Running(command.spawn().expect("sh starts"));
        let began = Instant::now();
        let status = loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                break status;
            }
            assert!(
                began.elapsed() < Duration::from_secs(15),
                "it does not end: {line}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        (
            status.code(),
            std::fs::read_to_string(&said).unwrap_or_default(),
        )
    }

    /// Starts a server and waits until it listens.
    fn start(&mut self, line: &str) {
        self.count += 1;
        let said = self.place.0.join(format!("server-{}", self.count));
        let file = std::fs::File::create(&said).unwrap();
        let mut command = self.shell(line);
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut running = Running(command.spawn().expect("sh starts"));
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            // `... listens on http://ADDRESS`, or `ROLE ADDRESS` of a simulator: its last engine counts.
            let listens = text.lines().rev().find_map(|l| {
                let last = l.split_whitespace().last()?;
                let last = last.strip_prefix("http://").unwrap_or(last);
                last.replace("0.0.0.0", "127.0.0.1")
                    .parse::<SocketAddr>()
                    .ok()
            });
            if listens.is_some_and(|address| TcpStream::connect(address).is_ok()) {
                break;
            }
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none(), "{line} ended: {ended:?}\n{text}");
            assert!(
                began.elapsed() < Duration::from_secs(15),
                "{line} does not listen:\n{text}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.running.push(running);
    }

    /// Sends what a `curl` line would send. A proxy that has just been started may not be ready yet.
    fn curl(&self, line: &str, expected: Option<u16>) -> Result<(), String> {
        let (code, words) = self.run(&line.replacen("curl", "printf '%s\\n'", 1));
        assert_eq!(code, Some(0), "{line}: {words}");
        let request = Request::of(words.lines());
        let began = Instant::now();
        loop {
            let (status, body) = request.send();
            let good = expected.map_or(status / 100 == 2, |e| e == status);
            if good {
                return Ok(());
            }
            if began.elapsed() > self.patience {
                return Err(format!("{status}: {body}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What curl would send.
struct Request {
    method: String,
    address: SocketAddr,
    path: String,
    fields: String,
    body: String,
}

impl Request {
    fn of<'a>(mut words: impl Iterator<Item = &'a str>) -> Request {
        let (mut method, mut url, mut fields) = (None, None, String::new());
        let (mut body, mut typed) = (None, false);
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("a value").to_owned();
            match word {
                "-X" => method = Some(value()),
                "-H" => {
                    let field = value();
                    typed |= field.to_lowercase().starts_with("content-type:");
                    fields += &format!("{field}\r\n");
                }
                "-d" => body = Some(value()),
                "-I" => method = Some("HEAD".into()),
                "-N" | "-s" | "-i" | "-sN" | "-L" => {}
                _ if word.starts_with("http://") => url = Some(word.to_owned()),
                other => panic!("curl {other} is not known here"),
            }
        }
        let url = url.expect("an address");
        let rest = url.strip_prefix("http://").unwrap();
        let (address, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
        if body.is_some() && !typed {
            fields += "content-type: application/x-www-form-urlencoded\r\n";
        }
        let fallback = if body.is_some() { "POST" } else { "GET" };
        Request {
            method: method.unwrap_or_else(|| fallback.into()),
            address: address
                .replace("localhost", "127.0.0.1")
                .parse()
                .expect(address),
            path: format!("/{path}"),
            fields,
            body: body.unwrap_or_default(),
        }
    }

    fn send(&self) -> (u16, String) {
        if TcpStream::connect(self.address).is_err() {
            return (0, "nobody listens".into());
        }
        let mut client = Client::connect(self.address);
        client.send(format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\n{}content-length: {}\r\n\r\n{}",
            self.method,
            self.path,
            self.address,
            self.fields,
            self.body.len(),
            self.body
        ));
        let answer = client.response_to(&self.method);
        assert!(answer.complete, "{} ends early", self.path);
        (answer.status, answer.text())
    }
}

/// Runs a page and gives what failed, and how many lines ran.
fn perform(page: &str, seed: usize) -> (usize, Vec<String>) {
    let ports = Ports::find();
    let text = read(page);
    let (mut count, mut wrong) = (0, Vec::new());
    let blocks = blocks(page, &text);
    let last = blocks.last().map_or(0, |b| b.section);
    for section in 0..=last {
        let own: Vec<&Block> = blocks.iter().filter(|b| b.section == section).collect();
        if own.is_empty() {
            continue;
        }
        ports.settle();
        let place = Place::new(&format!("{seed}-{section}"), &ports);
        let mut scene = Scene {
            place: &place,
            ports: &ports,
            exports: Vec::new(),
            running: Vec::new(),
            count: 0,
            patience: Duration::from_secs(6),
        };
        for block in own {
            for line in &block.lines {
                if let Err(why) = play(&mut scene, &block.mark, line) {
                    wrong.push(format!("{page}:{}: {line}\n  {why}", block.at));
                }
                count += usize::from(block.mark != "no-run");
            }
        }
    }
    (count, wrong)
}

fn play(scene: &mut Scene, mark: &str, line: &str) -> Result<(), String> {
    let program = line.split(' ').find(|w| !w.contains('=')).unwrap_or("");
    if mark == "no-run" {
        return match NOT_RUN.contains(&program) {
            true => Ok(()),
            false => Err(format!("{program} could be run")),
        };
    }
    let line = &scene.ports.moved(line);
    let number = |word: &str| {
        let value = mark.split(' ').find_map(|m| m.strip_prefix(word));
        value.map(|v| v.parse::<u16>().expect(mark))
    };
    let known = ["", "server"].contains(&mark) || mark.contains('=');
    assert!(known, "a block marked '{mark}'");
    if line.starts_with("export ") || line.starts_with("cd ") {
        scene.exports.push(line.clone());
        return Ok(());
    }
    if mark == "server" {
        scene.start(line);
        return Ok(());
    }
    if program == "curl" {
        return scene.curl(line, number("status="));
    }
    let (code, said) = scene.run(line);
    let expected = i32::from(number("exit=").unwrap_or(0));
    match code == Some(expected) {
        true => Ok(()),
        false => Err(format!("exit {code:?}: {said}")),
    }
}

#[test]
fn every_command_works_as_it_stands() {
    let mut pages: Vec<String> = pages().iter().map(|p| p.display().to_string()).collect();
    pages.push("README.md".into());
    let each = pages.iter().enumerate().map(|(seed, page)| {
        let page = page.clone();
        std::thread::spawn(move || perform(&page, seed))
    });
    let running: Vec<_> = each.collect();
    let (mut count, mut wrong) = (0, Vec::new());
    for (one, page) in running.into_iter().zip(&pages) {
        match one.join() {
            Ok((lines, failed)) => {
                count += lines;
                wrong.extend(failed);
            }
            Err(_) => wrong.push(format!("{page}: see above")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 40, "only {count} commands were found");
}

/// YAML in the documents is good YAML: a fragment is put behind two instances.
#[test]
fn every_yaml_is_taken() {
    use pdrelay::config::load::{self, Known, Overrides, Source};
    let (handshakes, policies) = (pdrelay::handshake::names(), pdrelay::policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for block in text.split("```yaml\n").skip(1) {
            let yaml = block.split("```").next().unwrap();
            let roles = [
                "prefill:",
                "decode:",
                "instances:",
                "models:",
                "aggregated:",
            ];
            let whole = yaml.lines().any(|l| roles.iter().any(|r| l.starts_with(r)));
            let text = match whole {
                true => yaml.to_owned(),
                false => format!("prefill: [127.0.0.1:1]\ndecode: [127.0.0.1:2]\n{yaml}"),
            };
            let source = Source {
                text: &text,
                label: "block",
                file: None,
            };
            let loaded = load::load(Some(source), &Overrides::default(), &known, &|_| None);
            if let Err(problems) = loaded {
                panic!("{}: {problems}\n{yaml}", page.display());
            }
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} blocks");
}

#[test]
fn only_ports_are_moved() {
    let ports = Ports { base: 20_000 };
    for (text, moved) in [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:20000/v1"),
        (
            "--port 8868 --decode d:8201",
            "--port 20088 --decode d:20041",
        ),
        ("port: 8000 # 8000", "port: 20000 # 8000"),
        ("--port-base 9100", "--port-base 20100"),
        ("max_tokens: 8000, 10.8100", "max_tokens: 8000, 10.8100"),
        ("XPYD_PROXY_PORT=8868", "XPYD_PROXY_PORT=20088"),
    ] {
        assert_eq!(ports.moved(text), moved);
    }
}

/// What a failing document would look like to this test.
#[test]
fn a_wrong_command_is_noticed() {
    let ports = Ports::find();
    let place = Place::new("wrong", &ports);
    let mut scene = Scene {
        place: &place,
        ports: &ports,
        exports: Vec::new(),
        running: Vec::new(),
        count: 0,
        patience: Duration::from_millis(100),
    };
    for (mark, line) in [
        ("", "pdrelay check --config configs/none.yaml"),
        ("", "pdrelay serve --no-such-flag"),
        ("exit=1", "pdrelay --version"),
        ("no-run", "pdrelay --version"),
    ] {
        assert!(play(&mut scene, mark, line).is_err(), "{mark}: {line}");
    }
    assert!(play(&mut scene, "", "pdrelay --version").is_ok());
    // Whatever is asked there is not found.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let text = format!("curl http://{address}/none");
    assert!(play(&mut scene, "", &text).is_err());
    assert!(play(&mut scene, "status=404", &text).is_ok());
}
