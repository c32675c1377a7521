//! The command line: see `pdload --help`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use pdload::args::Args;
use pdload::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    let (json, allow_errors) = (args.json.clone(), args.allow_errors);
    let report = match pdload::run::run(args) {
        Ok(report) => report,
        Err(message) => {
            eprintln!("pdload: {message}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = print(&report, json.as_deref()) {
        eprintln!("pdload: {error}");
        return ExitCode::FAILURE;
    }
    if report.clean() || allow_errors {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(report: &Report, json: Option<&str>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match json {
        Some("-") => {
            serde_json::to_writer_pretty(&mut out, report)?;
            return writeln!(out);
        }
        Some(path) => {
            let mut text = serde_json::to_vec_pretty(report)?;
            text.push(b'\n');
            std::fs::write(path, text)?;
        }
        None => {}
    }
    write!(out, "{report}")
}
