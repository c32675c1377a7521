//! The command line of `pdrelay`: what can be typed, and how it becomes a [`crate::config::Config`].

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use crate::config::quantity::parse_cpus;

use crate::config::LogLevel;
use crate::config::load::{self, Env, Known, Loaded, Overrides, Problem, Problems, Source};
use crate::config::quantity::parse_duration;

/// Proxy for disaggregated LLM serving: prefill, decode and encode engines behind one address.
#[derive(Debug, Parser)]
#[command(
    name = "pdrelay",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients until SIGTERM or SIGINT
    Serve(ServeArgs),
    /// Check a configuration, print what it means, and bind nothing; exit 1 with every mistake found
    Check(ServeArgs),
    /// Serve over simulated engines in this process: no GPU, no config
    Demo(DemoArgs),
    /// Look at this machine (topology, limits, io_uring) and say what to change before serving
    Doctor(DoctorArgs),
    /// Run simulated engines, or xPyD-proxy's dummy nodes: all of pdsim's arguments
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Sim {
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<std::ffi::OsString>,
    },
    /// Print the completion script of a shell
    Completions { shell: Shell },
    /// Run as vLLM's disagg_epd_proxy.py, v1 to v3, with its command line and HTTP surface
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Epd(Raw),
    /// Run as vLLM's disagg_proxy_multiturn.py, with its command line
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Multiturn(Raw),
    /// Run as LMCache's disaggregated prefill proxy, with its command line and HTTP surface
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Lmcache(Raw),
    /// Run as xPyD-proxy, 1.0 or 1.8, with its command line, files and HTTP surface
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Xpyd(Raw),
    /// Run as xPyD-proxy's start script, with its flags and environment
    #[command(disable_help_flag = true, disable_version_flag = true)]
    XpydStart(Raw),
    /// Run as llm-d's pd-sidecar, with its flags, environment and HTTP surface
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Sidecar(Raw),
    /// Run as llm-d-routing-sidecar, its first generation
    #[command(disable_help_flag = true, disable_version_flag = true)]
    RoutingSidecar(Raw),
    /// Print the YAML that means the same as another program's command line
    #[command(disable_version_flag = true)]
    Migrate {
        /// epd, lmcache, multiturn, sidecar, routing-sidecar, xpyd or xpyd-start; or the name that the program had,
        /// such as disagg_epd_proxy.py
        program: String,
        /// What that program was started with
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<String>,
    },
}

/// Another program's arguments, which only that program reads.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Raw {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub args: Vec<String>,
}

/// What `serve` and `check` take. Flags win over the file; a list replaces the file's list.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ServeArgs {
    /// YAML configuration; not needed if the instances are given by flags
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long)]
    pub host: Option<String>,
    /// Port to listen on [default: 8000]
    #[arg(long)]
    pub port: Option<u16>,
    /// error, warning, info or debug [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = LogLevel::parse)]
    pub log_level: Option<LogLevel>,
    /// Number of shards (threads that serve) [default: one per physical core]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// CPUs to run on, one shard each, such as 0,2-5
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpus: Option<CpuList>,
    /// Run only on the CPUs of this NUMA node
    #[arg(long, value_name = "NODE")]
    pub numa: Option<usize>,
    /// Wake each shard at most once in this time, such as 1ms (at most 10ms; 0: off): less CPU per token, which comes
    /// up to as much later [default: 0]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub batch_window: Option<Duration>,
    /// Keep looking for so long, such as 1ms (at most 10s; 0: off), before a shard waits: sooner, but it takes the
    /// core. Not together with --batch-window [default: 0]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub busy_poll: Option<Duration>,
    /// Protocol between the stages [default: sequential; aggregated if only such instances are given]
    #[arg(long, value_name = "NAME")]
    pub handshake: Option<String>,
    /// Prefill instances
    #[arg(short, long, num_args = 1.., value_name = "HOST:PORT")]
    pub prefill: Vec<String>,
    /// Decode instances
    #[arg(short, long, num_args = 1.., value_name = "HOST:PORT")]
    pub decode: Vec<String>,
    /// Instances that do prefill and decode
    #[arg(short, long, num_args = 1.., value_name = "HOST:PORT")]
    pub aggregated: Vec<String>,
    /// Model name that clients use [default: whatever the engines serve]
    #[arg(short, long)]
    pub model: Option<String>,
}

/// A list of CPUs as one argument.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuList(pub Vec<usize>);

fn cpu_list(text: &str) -> Result<CpuList, String> {
    parse_cpus(text).map(CpuList)
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct DemoArgs {
    /// Simulated prefill engines
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub prefill: u16,
    /// Simulated decode engines
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub decode: u16,
    /// Port to listen on; 0: any free one
    #[arg(long, default_value_t = 8868)]
    pub port: u16,
    /// Protocol between the stages
    #[arg(long, default_value = "nixl", value_name = "NAME")]
    pub handshake: String,
    /// Number of shards [default: one per physical core]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// CPUs to run on, one shard each, such as 0,2-5
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpus: Option<CpuList>,
    /// Send one streamed chat request, print its text and its time per stage, and exit
    #[arg(long)]
    pub once: bool,
}

/// As `serve` would be started.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct DoctorArgs {
    /// Number of shards [default: one per physical core]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// CPUs to run on, one shard each, such as 0,2-5
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpus: Option<CpuList>,
    /// Run only on the CPUs of this NUMA node
    #[arg(long, value_name = "NODE")]
    pub numa: Option<usize>,
    /// Exit with 1 if there is something to change
    #[arg(long)]
    pub strict: bool,
}

impl ServeArgs {
    pub fn overrides(&self) -> Overrides {
        let ServeArgs {
            config: _,
            host,
            port,
            log_level,
            shards,
            cpus,
            numa,
            batch_window,
            busy_poll,
            handshake,
            prefill,
            decode,
            aggregated,
            model,
        } = self.clone();
        let cpus = cpus.map(|CpuList(cpus)| cpus);
        Overrides {
            model,
            host,
            port,
            log_level,
            handshake,
            prefill,
            decode,
            aggregated,
            shards,
            cpus,
            numa,
            batch_window,
            busy_poll,
            ..Overrides::default()
        }
    }

    fn names_instances(&self) -> bool {
        !(self.prefill.is_empty() && self.decode.is_empty() && self.aggregated.is_empty())
    }
}

/// File and flags and environment, checked together.
pub fn config_from(args: &ServeArgs, known: &Known, env: Env) -> Result<Loaded, Problems> {
    let Some(path) = &args.config else {
        if !args.names_instances() {
            return Err(Problems(vec![Problem {
                file: String::new(),
                line: 0,
                path: String::new(),
                message: "there is nothing to serve: neither a config file nor instances".into(),
                fix: "give --config FILE, or --prefill and --decode, or --aggregated".into(),
            }]));
        }
        return load::load(None, &args.overrides(), known, env);
    };
    let text = load::read(path)?;
    let label = path.display().to_string();
    let source = Source {
        text: &text,
        label: &label,
        file: Some(path),
    };
    load::load(Some(source), &args.overrides(), known, env)
}

/// Writes the completion script for `pdrelay`.
pub fn write_completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "pdrelay", out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    const KNOWN: Known<'static> = Known {
        handshakes: &["sequential", "nixl", "lmcache", "aggregated"],
        policies: &[
            "round_robin",
            "least_load",
            "load_balanced",
            "consistent_hash",
            "cache_aware",
            "power_of_two",
        ],
    };

    fn command(line: &str) -> Command {
        match Cli::try_parse_from(line.split_whitespace()) {
            Ok(cli) => cli.command,
            Err(error) => panic!("{line}: {error}"),
        }
    }

    fn serve(line: &str) -> Result<Loaded, Problems> {
        match command(line) {
            Command::Serve(args) | Command::Check(args) => config_from(&args, &KNOWN, &|_| None),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_alone_are_enough() {
        let config = serve(
            "pdrelay serve --prefill a:1 b:1 --decode c:1 --decode d:1 --handshake nixl --port 9 \
             --host :: --log-level debug --cpus 0,2-3 --model m",
        )
        .unwrap()
        .config;
        assert_eq!(config.file, None);
        assert_eq!(config.handshake, "nixl");
        assert_eq!((config.host.as_str(), config.port), ("::", 9));
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.cores.cpus, Some(vec![0, 2, 3]));
        assert_eq!(config.model, "m");
        let roles: Vec<Role> = config.instances.iter().map(|i| i.role).collect();
        assert_eq!(
            roles,
            [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode]
        );
        let config = serve("pdrelay serve --aggregated a:1 --shards 2 --numa 1")
            .unwrap()
            .config;
        assert_eq!(config.handshake, "aggregated");
        assert_eq!((config.cores.shards, config.cores.numa), (Some(2), Some(1)));
    }

    #[test]
    fn nothing_to_serve_is_a_clear_error() {
        assert_eq!(
            serve("pdrelay serve --port 80").unwrap_err().to_string(),
            "there is nothing to serve: neither a config file nor instances (give --config FILE, \
             or --prefill and --decode, or --aggregated)"
        );
        assert_eq!(
            serve("pdrelay check --config /nowhere.yaml")
                .unwrap_err()
                .to_string(),
            "Config file not found: /nowhere.yaml"
        );
        assert_eq!(
            serve("pdrelay serve --prefill a:1")
                .unwrap_err()
                .to_string(),
            "command line: decode: Please specify at least one decode node. (handshake sequential \
             needs decode: [host:port])"
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/sequential.yaml");
        let line = format!("pdrelay check -c {path} --port 1234 --decode x:1");
        let config = serve(&line).unwrap().config;
        assert_eq!(config.file, Some(PathBuf::from(path)));
        assert_eq!(config.port, 1234);
        let decode = config.instances.iter().filter(|i| i.role == Role::Decode);
        assert_eq!(
            decode.map(|i| i.address.to_string()).collect::<Vec<_>>(),
            ["x:1"]
        );
    }

    #[test]
    fn wrong_flags_are_usage_errors() {
        for line in [
            "pdrelay",
            "pdrelay serve --port 70000",
            "pdrelay serve --log-level loud",
            "pdrelay serve --cpus 3-1",
            "pdrelay serve --prefil a:1",
            "pdrelay demo --prefill 0",
            "pdrelay completions csh",
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let version = Cli::try_parse_from(["pdrelay", "--version"]).unwrap_err();
        assert_eq!(version.exit_code(), 0);
        assert!(version.to_string().starts_with("pdrelay "));
    }

    #[test]
    fn the_demo_has_defaults() {
        let Command::Demo(args) = command("pdrelay demo") else {
            panic!()
        };
        assert_eq!(
            (args.prefill, args.decode, args.port, args.once),
            (2, 2, 8868, false)
        );
        assert_eq!(args.handshake, "nixl");
        let Command::Demo(args) = command("pdrelay demo --prefill 1 --once --cpus 1") else {
            panic!()
        };
        assert_eq!(
            (args.prefill, args.once, args.cpus),
            (1, true, Some(CpuList(vec![1])))
        );
    }

    #[test]
    fn completions_know_the_commands() {
        let mut out = Vec::new();
        write_completions(Shell::Bash, &mut out);
        let text = String::from_utf8(out).unwrap();
        for word in ["serve", "check", "demo", "completions", "--log-level"] {
            assert!(text.contains(word), "{word}");
        }
    }
}
