//! The project's own commands: `cargo xtask test`, `image`, `envoy`, `api`, `cluster`, `fuzz`, `layers`, `docs`, `bench`.
#![expect(clippy::print_stdout, reason = "what these commands make is text for the person who calls them")]

mod api;
mod cache;
mod chart;
mod cluster;
mod docs;
mod envoy;
mod fuzz;
mod image;
mod layers;
mod parts;
mod process;
mod schema;
mod tally;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Every test; installs what they need under ~/.cache/pointsman (POINTSMAN_CACHE names another place).
    Test {
        /// Only what needs nothing installed: format, lints, layers, documents, unit and property tests.
        #[arg(long)]
        fast: bool,
        /// Only what a real Envoy Gateway without a cluster shows; builds that first, 17 minutes on two cores.
        #[arg(long, conflicts_with = "fast")]
        envoy_gateway: bool,
    },
    /// Install what the tests need and nothing else.
    Install,
    /// Make the container image and its bill of materials, without Docker: docs/image.md.
    Image {
        /// How the program is compiled: cargo's profile.
        #[arg(long, default_value = image::RELEASE)]
        profile: String,
    },
    /// Run Envoy, the picker and simulated model servers together, as examples/envoy describes them, until ctrl-c.
    Envoy {
        /// Which of its configurations.
        #[arg(default_value = "buffered-partial")]
        example: envoy::Example,
    },
    /// Cut what overlays may change out of Kubernetes' OpenAPI document.
    Schema {
        /// Only check that it is what it should be.
        #[arg(long)]
        check: bool,
    },
    /// Write the Helm chart out of what `pointsman controller --install` prints.
    Chart {
        /// Write nothing; fail if the chart differs.
        #[arg(long)]
        check: bool,
    },
    /// A real Kubernetes API server with its controllers and a fake node, without containers.
    Api {
        #[command(subcommand)]
        api: api::Api,
    },
    /// A real Kubernetes of one node with containers and Envoy Gateway: docs/cluster.md.
    Cluster {
        #[command(subcommand)]
        cluster: cluster::Cluster,
    },
    /// Look for input that brings a parser down or makes it disagree with another: docs/fuzzing.md.
    Fuzz {
        /// One target; all of them one after the other unless named.
        target: Option<String>,
        /// How long each target runs, after its seeds; 0 replays the seeds alone.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Fail if a crate depends on what it must not know.
    Layers,
    /// Write the documents that are made from code.
    Docs {
        /// Write nothing; fail if a document differs from its source.
        #[arg(long)]
        check: bool,
    },
    /// Run the benchmarks: `cargo xtask bench -- --help` lists them.
    Bench {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let root = workspace_root()?;
    match task {
        Task::Test { fast, envoy_gateway } => {
            let tier = match (fast, envoy_gateway) {
                (true, _) => test::Tier::Fast,
                (_, true) => test::Tier::EnvoyGateway,
                _ => test::Tier::Full,
            };
            return test::run(&root, tier);
        }
        Task::Install => {
            parts::install(&root, &cache::Cache::open()?)?;
        }
        Task::Image { profile } => image::run(&root, &profile)?,
        Task::Envoy { example } => envoy::run(&root, example)?,
        Task::Api { api } => api::run(&root, api)?,
        Task::Cluster { cluster } => cluster::run(&root, cluster)?,
        Task::Schema { check } => schema::run(&root, check)?,
        Task::Chart { check } => chart::run(&root, check)?,
        Task::Fuzz { target, seconds } => fuzz::run(&root, target.as_deref(), seconds)?,
        Task::Layers => layers::check(&root)?,
        Task::Docs { check: true } => docs::check(&root)?,
        Task::Docs { check: false } => docs::write(&root)?,
        Task::Bench { arguments } => {
            let mut cargo = Command::new("cargo");
            let first = arguments.first().map(String::as_str);
            if matches!(first, Some("gateway" | "queue")) {
                cargo.env("POINTSMAN_ENVOY", parts::envoy(&root, &cache::Cache::open()?)?);
                for programs in [["pointsman", "pointsman"], ["bench", "faults"]] {
                    let [package, program] = programs;
                    let mut build = Command::new("cargo");
                    build.current_dir(&root).args([
                        "build",
                        "--release",
                        "--package",
                        package,
                        "--bin",
                        program,
                    ]);
                    process::must_succeed(&mut build)?;
                }
            }
            // `request` counts allocations, so it is a program with an allocator of its own.
            let program =
                if arguments.first().is_some_and(|name| name == "request") { "request" } else { "bench" };
            let rest = arguments.iter().filter(|name| *name != "request");
            cargo
                .current_dir(root)
                .args(["run", "--release", "--package", "bench", "--bin", program, "--"])
                .args(rest);
            process::must_succeed(&mut cargo)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The checkout that this program was built from.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map(Path::to_path_buf).context("the folder of xtask has no parent")
}
