//! The command line. Wiring only: each subcommand reads its flags, puts the parts together and waits.

mod check;
mod cli;
mod endpoint_flag;
mod logging;
mod shutdown;
mod sim;
mod sources;
mod up;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Up(flags) => run(&flags.logging, up::run(&flags)),
        cli::Command::Sim(flags) => run(&flags.logging, sim::run(&flags)),
        cli::Command::Check(flags) => check::run(&flags),
    }
}

/// Runs a server to its end: exit 0 after an orderly shutdown, 2 when it cannot start.
fn run(logging: &cli::Logging, server: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    if let Err(error) = logging::init(logging) {
        return fail(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed, logging or not")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(2)
}
