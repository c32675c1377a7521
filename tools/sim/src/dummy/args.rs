//! `pdsim dummy --role prefill ...`, and what people typed before: `uvicorn dummy_nodes.prefill_node:app ...`
//! with `pdsim` (or a link to it named `uvicorn`) in the place of `uvicorn`.

use std::ffi::OsString;
use std::net::IpAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::DummyOptions;

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Prefill,
    Decode,
}

/// A dummy node as xPyD-proxy 1.0 has them: every answer is about a quick brown fox.
#[derive(Parser)]
#[command(name = "pdsim dummy", version)]
struct Cli {
    #[arg(long, value_enum)]
    role: Role,
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// 0: any
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// The model's name in /v1/models
    #[arg(long, env = "DUMMY_MODEL_ID", default_value = "dummy")]
    model: String,
    #[arg(long, env = "DUMMY_MAX_MODEL_LEN", default_value_t = 131_072)]
    max_model_len: u64,
    /// Seconds before an answer, for each token of the prompt
    #[arg(long, env = "PREFILL_DELAY_PER_TOKEN", default_value = "0.001", value_parser = seconds)]
    prefill_delay_per_token: Duration,
    /// Seconds before each character of a stream
    #[arg(long, env = "DECODE_DELAY_PER_TOKEN", default_value = "0.01", value_parser = seconds)]
    decode_delay_per_token: Duration,
    /// uvicorn's; accepted and without effect, as are --workers and --reload
    #[arg(long, hide = true)]
    log_level: Option<String>,
    #[arg(long, hide = true)]
    workers: Option<u32>,
    #[arg(long, hide = true)]
    reload: bool,
    #[arg(long, hide = true)]
    no_access_log: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .trim()
        .parse()
        .map_err(|_| "a number of seconds is wanted")?;
    Duration::try_from_secs_f64(number).map_err(|e| e.to_string())
}

/// Is this a command line for a dummy node? Then as `pdsim dummy` takes it.
pub(crate) fn dummy_line(args: &[OsString]) -> Option<Vec<OsString>> {
    let word = |at: usize| args.get(at).and_then(|a| a.to_str()).unwrap_or("");
    if word(1) == "dummy" {
        return Some(args[1..].to_vec());
    }
    // The application may stand anywhere in uvicorn's line; `uvicorn` may have been left at its start.
    let apps = |a: &OsString| a.to_str().is_some_and(|a| a.starts_with("dummy_nodes."));
    let app = args.iter().skip(1).position(apps)? + 1;
    let name = word(app).trim_start_matches("dummy_nodes.");
    // What is neither is refused by name where roles are read.
    let role = name.strip_suffix("_node:app").unwrap_or(name);
    let mut line: Vec<OsString> = ["dummy", "--role", role].map(OsString::from).to_vec();
    let first = if word(1) == "uvicorn" { 2 } else { 1 };
    line.extend_from_slice(&args[first..app]);
    line.extend_from_slice(&args[app + 1..]);
    Some(line)
}

/// Prints help or a mistake and gives the exit code, where there is nothing to start.
pub(crate) fn read(line: Vec<OsString>) -> Result<DummyOptions, clap::Error> {
    let cli = Cli::try_parse_from(line)?;
    let host = match cli.host.as_str() {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        other => other.parse().map_err(|_| {
            let message = format!("--host must be an IP address or localhost, got '{other}'\n");
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
        })?,
    };
    Ok(DummyOptions {
        prefill: matches!(cli.role, Role::Prefill),
        host,
        port: cli.port,
        model: cli.model,
        max_model_len: cli.max_model_len,
        prefill_delay: cli.prefill_delay_per_token,
        decode_delay: cli.decode_delay_per_token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<String> {
        let args: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        let line = dummy_line(&args)?;
        Some(
            line.iter()
                .map(|a| a.to_str().unwrap())
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    #[test]
    fn old_lines_mean_what_they_meant() {
        for (typed, meant) in [
            (
                "pdsim dummy --role prefill --port 1",
                Some("dummy --role prefill --port 1"),
            ),
            (
                "pdsim dummy_nodes.prefill_node:app --port 8100",
                Some("dummy --role prefill --port 8100"),
            ),
            (
                "uvicorn dummy_nodes.decode_node:app --host 0.0.0.0",
                Some("dummy --role decode --host 0.0.0.0"),
            ),
            (
                "pdsim uvicorn dummy_nodes.decode_node:app",
                Some("dummy --role decode"),
            ),
            (
                "uvicorn --port 1 dummy_nodes.prefill_node:app --reload",
                Some("dummy --role prefill --port 1 --reload"),
            ),
            (
                "pdsim dummy_nodes.encode_node:app",
                Some("dummy --role encode"),
            ),
            ("pdsim --prefill 1", None),
            ("pdsim", None),
            ("pdsim other.module:app", None),
        ] {
            assert_eq!(line(typed).as_deref(), meant, "{typed}");
        }
    }

    #[test]
    fn bad_hosts_and_delays_are_refused() {
        for more in [
            "--host nowhere.example",
            "--prefill-delay-per-token soon",
            "--decode-delay-per-token -1",
            "--port 70000",
        ] {
            let text = format!("dummy --role decode {more}");
            let args = text.split(' ').map(OsString::from).collect();
            assert!(read(args).is_err(), "{more}");
        }
    }
}
