//! The program as its user meets it: command line, messages, signals, exit codes.

mod access_lines_are_never_forged;
mod checks_never_stop_at_the_first_mistake;
mod containers_never_need_a_change;
mod demos_never_need_anything;
mod doctors_never_see_another_machine;
mod drains_never_lose_the_next_request;
mod old_command_lines_never_stop_working;
mod probes_never_leak_descriptors;
mod secrets_are_never_printed;
mod signals_never_cut_what_can_finish;
mod stalls_never_pass_as_engine_failures;
mod starts_never_fail_without_a_reason;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Client, eventually};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdrelay"));
    command
        .args(args)
        .env_remove("OPENAI_API_KEY")
        .env_remove("ADMIN_API_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a run that ends by itself leaves behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(args: &[&str]) -> Ran {
    finish(command(args))
}

fn finish(mut command: Command) -> Ran {
    let mut program = Program::of(command.spawn().expect("the program starts"));
    let status = program.wait();
    Ran {
        code: status.code(),
        out: program.out.text(),
        err: program.err.text(),
    }
}

/// One of the program's outputs, read as it comes.
#[derive(Clone)]
struct Output(Arc<Mutex<(String, bool)>>);

impl Output {
    fn of(pipe: impl Read + Send + 'static) -> Output {
        let output = Output(Arc::default());
        let kept = output.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8(std::mem::take(&mut line)).expect("UTF-8");
                kept.0.lock().unwrap().0 += &text;
            }
            kept.0.lock().unwrap().1 = true;
        });
        output
    }

    /// All of it so far.
    fn so_far(&self) -> String {
        self.0.lock().unwrap().0.clone()
    }

    /// All of it, once the program has ended.
    fn text(&self) -> String {
        eventually("the output ends", || self.0.lock().unwrap().1);
        self.so_far()
    }
}

/// A running program. Dropped: killed.
struct Program {
    child: Child,
    out: Output,
    err: Output,
}

impl Program {
    fn of(mut child: Child) -> Program {
        let out = Output::of(child.stdout.take().unwrap());
        let err = Output::of(child.stderr.take().unwrap());
        Program { child, out, err }
    }

    fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain syscall; the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `pdrelay serve` in front of simulated engines, 1P + 1D.
struct Serving {
    program: Program,
    address: SocketAddr,
    sim: pdsim::Sim,
}

impl Serving {
    fn start(handshake: &str, engines: Vec<pdsim::EngineOptions>, more: &[&str]) -> Serving {
        Serving::with(handshake, engines, more, |_| {})
    }

    fn with(
        handshake: &str,
        engines: Vec<pdsim::EngineOptions>,
        more: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Serving {
        let options = pdsim::Options {
            engines,
            ..pdsim::Options::default()
        };
        let sim = pdsim::Sim::start(options).expect("the simulator starts");
        let [p, d] = [0, 1].map(|i| sim.addresses()[i].to_string());
        let port = free_port().to_string();
        let mut args = vec!["serve", "--prefill", &p, "--decode", &d];
        args.extend(["--handshake", handshake]);
        if !more.contains(&"--host") {
            args.extend(["--host", "127.0.0.1"]);
        }
        args.extend(["--port", &port, "--shards", "1"]);
        args.extend(more);
        let mut command = command(&args);
        change(&mut command);
        // As a shell starts what it starts in the background.
        let ignore = || {
            // SAFETY: async-signal-safe, and a valid disposition.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: the closure does nothing but that call between fork and exec.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, ignore) };
        let program = Program::of(command.spawn().expect("the program starts"));
        let address = format!("127.0.0.1:{port}");
        eventually("it listens", || {
            let said = program.err.so_far();
            said.contains("listens on http://") && said.contains(&format!(":{port}\n"))
        });
        Serving {
            program,
            address: address.parse().unwrap(),
            sim,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Ends it and gives all it said.
    fn end(mut self) -> String {
        self.program.signal(libc::SIGTERM);
        self.program.wait();
        self.program.out.text() + &self.program.err.text()
    }
}

/// A port for a program that is yet to start. Below those that the kernel gives to outgoing connections (from
/// 32,768 on): one of a test beside this one would have it by then.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id();
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (first.wrapping_add(turn) % 12_000) as u16;
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// A file that is gone with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let folder = std::env::temp_dir().join(format!("pdrelay-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // The folder goes with its last file.
        let _ = self.0.parent().map(std::fs::remove_dir);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
