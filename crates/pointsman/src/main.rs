//! The command line. Wiring only: each subcommand reads its flags, puts the parts together and waits.

mod check;
mod cli;
mod controller;
mod endpoint_flag;
mod epp;
mod files;
mod house;
mod listen;
mod logging;
mod render;
mod shutdown;
mod sim;
mod sources;
mod up;

use std::process::ExitCode;

use clap::Parser;

use logging::LogControl;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().command {
        cli::Command::Up(flags) => run(&flags.logging, |log| up::run(&flags, log)),
        cli::Command::Epp(flags) => run(&flags.logging(), |log| epp::run(&flags, log)),
        cli::Command::Controller(flags) if flags.install => match controller::install(&flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        cli::Command::Controller(flags) => run(&flags.logging, |log| controller::run(&flags, log)),
        cli::Command::Sim(flags) => run(&flags.logging, |_| sim::run(&flags)),
        cli::Command::Check(flags) => check::run(&flags),
        cli::Command::Render(flags) => render::run(&flags),
    }
}

/// Runs a server to its end: exit 0 after an orderly shutdown, 2 when it cannot start.
fn run<S: Future<Output = anyhow::Result<()>>>(
    logging: &cli::Logging,
    server: impl FnOnce(LogControl) -> S,
) -> ExitCode {
    let log = match logging::init(logging) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(server(log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed, logging or not")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(2)
}
