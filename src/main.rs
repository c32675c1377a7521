//! The binary: reads the command line, starts a server, waits for a signal.

use std::process::ExitCode;

use clap::Parser;
use pdrelay::cli::{self, Cli, Command};
use pdrelay::config::load::{Known, Loaded, std_env};
use pdrelay::config::{LogLevel, check};
use pdrelay::{demo, handshake, log, policy, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Serve(args) => match load(&args) {
            Ok(loaded) => serve(loaded),
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
    let (handshakes, policies) = (handshake::names(), policy::names());
    let known = Known {
        handshakes: &handshakes,
        policies: &policies,
    };
    cli::config_from(args, &known, &std_env).map_err(|problems| {
        eprintln!("{problems}");
        ExitCode::FAILURE
    })
}

fn show_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
}

fn serve(loaded: Loaded) -> ExitCode {
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
    let signal = signals.wait();
    log::info(|| {
        format!(
            "{}: draining for up to {} s",
            signal.name(),
            drain.as_secs()
        )
    });
    if !server.drain(drain) {
        log::warning(|| "timeouts.drain is over: what still ran was cut off".into());
    }
    // As a shell and a supervisor expect of a program that a signal ended.
    ExitCode::from(128 + signal.number() as u8)
}

fn level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warning => log::Level::Warning,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
    }
}
