//! The binary: reads the command line, starts a server, waits for a signal.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pdrelay::cli::{self, Cli, Command};
use pdrelay::config::legacy::{self, Again, Call, Migrated, Outcome, Program};
use pdrelay::config::load::{Env, Known, Loaded, std_env};
use pdrelay::config::{LogLevel, Problems, check, write};
use pdrelay::{demo, doctor, handshake, log, policy, signal, terminal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some((program, args)) = stand_in() {
        return run_as(program, &args);
    }
    let cli = Cli::parse();
    match cli.command {
        Command::Serve(args) => match load(&args) {
            Ok(loaded) => serve(Start {
                file: args.config.clone(),
                again: Box::new(move |known, env| cli::config_from(&args, known, env)),
                loaded,
            }),
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
        Command::Doctor(args) => doctor::run(&args),
        Command::Sim { args } => demo::sim(args),
        Command::Completions { shell } => {
            cli::write_completions(shell, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Migrate { program, args } => migrate(&program, &args),
        // Without arguments, which `stand_in` leaves to nobody.
        Command::Epd(_)
        | Command::Lmcache(_)
        | Command::Multiturn(_)
        | Command::Sidecar(_)
        | Command::RoutingSidecar(_)
        | Command::Xpyd(_)
        | Command::XpydStart(_) => {
            unreachable!("stand_in() took it")
        }
    }
}

/// The program that this process stands in for: by what it was called as, or by its first argument. Its
/// arguments are its own: nobody else looks at them.
fn stand_in() -> Option<(&'static Program, Vec<String>)> {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let argv0 = args.next()?;
    if let Some(program) = legacy::by_argv0(&argv0) {
        return Some((program, args.collect()));
    }
    let program = legacy::by_name(&args.next()?)?;
    Some((program, args.collect()))
}

fn run_as(program: &Program, args: &[String]) -> ExitCode {
    let outcome = with_known(|known| {
        (program.run)(&mut Call {
            args,
            known,
            env: &std_env,
            terminal: &mut terminal::Standard,
        })
    });
    let start = match outcome {
        Outcome::Exit(code) => return ExitCode::from(code),
        Outcome::Serve(start) => start,
    };
    if let Some(log) = &start.log
        && let Err(error) = terminal::tee(log)
    {
        // As with `| tee`: without the copy, but it runs.
        let log = log.display();
        eprintln!("WARNING: {log} cannot be written ({error}): the log is only here");
    }
    serve(Start {
        loaded: start.loaded,
        file: start.file,
        again: start.again,
    })
}

/// Another program's command line as our YAML.
fn migrate(name: &str, args: &[String]) -> ExitCode {
    // Whoever migrates knows the other program by its own name.
    let named = legacy::by_name(name).or_else(|| legacy::by_argv0(name));
    let Some(program) = named else {
        let names: Vec<&str> = legacy::PROGRAMS.iter().map(|p| p.name).collect();
        eprintln!(
            "error: '{name}' is no program that can be migrated: {}; or its own name, such as disagg_epd_proxy.py",
            names.join(", ")
        );
        return ExitCode::from(2);
    };
    let migrated = with_known(|known| {
        (program.migrate)(&mut Call {
            args,
            known,
            env: &std_env,
            terminal: &mut terminal::Standard,
        })
    });
    match migrated {
        Ok(Migrated { loaded, notes }) => {
            show_warnings(&loaded);
            print!("{}", write::yaml(&loaded.config, &notes));
            ExitCode::SUCCESS
        }
        Err(code) => ExitCode::from(code),
    }
}

fn load(args: &cli::ServeArgs) -> Result<Loaded, ExitCode> {
    with_known(|known| cli::config_from(args, known, &std_env)).map_err(|problems| {
        eprintln!("{problems}");
        ExitCode::FAILURE
    })
}

fn with_known<T>(then: impl FnOnce(&Known) -> T) -> T {
    let (handshakes, policies) = (handshake::names(), policy::names());
    then(&Known {
        handshakes: &handshakes,
        policies: &policies,
    })
}

fn show_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
}

/// What is served, and how it is read again.
struct Start {
    loaded: Loaded,
    /// Watched: a change is a reload.
    file: Option<PathBuf>,
    again: Again,
}

fn serve(start: Start) -> ExitCode {
    show_warnings(&start.loaded);
    let config = start.loaded.config;
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
    let secret = config.tls.as_ref().is_some_and(|tls| tls.strict);
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
        "pdrelay {} listens on {}://{}",
        env!("CARGO_PKG_VERSION"),
        if secret { "https" } else { "http" },
        server.address
    );
    if let Some(address) = server.notices() {
        log::info(|| format!("notices are taken at tcp://{address}"));
    }
    for (_, address) in server.addresses.iter().skip(1) {
        eprintln!("and on {address}");
    }
    server.on_failure(signal::raise_end);
    if let Some(file) = start.file {
        watch_file(file);
    }
    let signal = loop {
        let signal = signals.wait();
        if !signal.is_reload() {
            break signal;
        }
        reload(&server, &start.again);
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
    let began = std::time::Instant::now();
    if server.drain(drain) {
        log::info(|| format!("drained after {:.1} s", began.elapsed().as_secs_f64()));
    }
    // As a shell and a supervisor expect of a program that a signal ended.
    ExitCode::from(128 + signal.number() as u8)
}

/// Reads the same file with the same flags again. A mistake in it changes nothing.
fn reload(server: &pdrelay::server::Server, again: &Again) {
    let env: Env = &std_env;
    let loaded: Result<Loaded, Problems> = with_known(|known| again(known, env));
    match loaded {
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
fn watch_file(file: PathBuf) {
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
