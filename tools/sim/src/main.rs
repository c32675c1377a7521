//! `pdsim`: simulated engines from the command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pdsim::cli::main(std::env::args_os())
}
