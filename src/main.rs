//! The binary: reads the command line, starts a server, waits for a signal.

use std::process::ExitCode;

use clap::Parser;
use pdrelay::cli::{self, Cli, Command};
use pdrelay::config::load::{Known, Loaded, std_env};
use pdrelay::config::{LogLevel, Problems, check};
use pdrelay::{demo, handshake, log, policy, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Serve(args) => match load(&args) {
            Ok(loaded) => serve(args, loaded),
            Err(code) => code,
        },
        Command::Check(args) => match load(&args) {
            Ok(loaded) => {
                show_warnings(&loaded);
                print!("{}", check::print(&loaded.config));
                ExitCode::SUCCESS
            }
            Err(code) => code,
        },
        Command::Demo(args) => demo::run(&args),
        Command::Completions { shell } => {
            cli::write_completions(shell, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn load(args: &cli::ServeArgs) -> Result<Loaded, ExitCode> {
    read(args).map_err(|problems| {
        eprintln!("{problems}");
        ExitCode::FAILURE
    })
}

fn read(args: &cli::ServeArgs) -> Result<Loaded, Problems> {
    let (handshakes, policies) = (handshake::names(), policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    cli::config_from(args, &known, &std_env)
}

fn show_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
}

fn serve(args: cli::ServeArgs, loaded: Loaded) -> ExitCode {
    show_warnings(&loaded);
    let config = loaded.config;
    let _log = match log::start(log::Options {
        level: level(config.log_level),
        access: config.log_level >= LogLevel::Info,
        ..log::Options::default()
    }) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("the log cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let drain = config.timeouts.drain;
    // Before any thread starts, so that all of them leave the signals to this one.
    let signals = signal::block();
    let server = match pdrelay::server::Server::start(config) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for line in &server.shard_lines {
        log::info(|| line.clone());
    }
    eprintln!(
        "pdrelay {} listens on http://{}",
        env!("CARGO_PKG_VERSION"),
        server.address
    );
    server.on_failure(signal::raise_end);
    if let Some(file) = &args.config {
        watch_file(file.clone());
    }
    let signal = loop {
        let signal = signals.wait();
        if !signal.is_reload() {
            break signal;
        }
        reload(&server, &args);
    };
    if let Some(why) = server.failure() {
        eprintln!("pdrelay: {why}");
        return ExitCode::FAILURE;
    }
    log::info(|| {
        format!(
            "{}: draining for up to {} s",
            signal.name(),
            drain.as_secs()
        )
    });
    // Whoever asks a second time does not want to wait.
    signals.let_through();
    if !server.drain(drain) {
        log::warning(|| "timeouts.drain is over: what still ran was cut off".into());
    }
    // As a shell and a supervisor expect of a program that a signal ended.
    ExitCode::from(128 + signal.number() as u8)
}

/// Reads the same file with the same flags again. A mistake in it changes nothing.
fn reload(server: &pdrelay::server::Server, args: &cli::ServeArgs) {
    match read(args) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                log::warning(|| format!("reload: {warning}"));
            }
            if let Err(why) = server.reload(loaded.config) {
                log::error(|| format!("reload: refused, nothing is changed: {why}"));
            }
        }
        Err(problems) => {
            for problem in &problems.0 {
                log::error(|| format!("reload: refused, nothing is changed: {problem}"));
            }
        }
    }
}

/// Looks at the file once a second; a change is a reload. Editors and configuration mounts replace files
/// in many ways, and all of them change what `stat` says.
fn watch_file(file: std::path::PathBuf) {
    let look = move |file: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(file)
            .ok()
            .map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    };
    let watch = move || {
        let mut seen = look(&file);
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            let now = look(&file);
            // Gone for a moment while it is replaced: not a change yet.
            if now.is_some() && now != seen {
                seen = now;
                signal::raise_reload();
            }
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("config".into())
        .spawn(watch)
    {
        log::error(|| format!("the configuration file is not watched: {error}"));
    }
}

fn level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warning => log::Level::Warning,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
    }
}
