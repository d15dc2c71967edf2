//! `cargo xtask api`: a real Kubernetes API on this machine, as tests/kubernetes/cluster.sh describes it.

use std::path::Path;
use std::process::Command;

use clap::Subcommand;

use crate::cache::Cache;
use crate::{parts, process};

#[derive(Clone, Copy, Subcommand)]
pub(crate) enum Api {
    /// Start it, or find it running; prints KUBECONFIG=PATH and KUBECTL=PATH.
    Up,
    /// Stop it and forget all that it held.
    Down,
}

/// Starts or stops the API server and what belongs to it.
///
/// # Errors
/// A program cannot be built or does not serve, or this is not root.
pub(crate) fn run(root: &Path, api: Api) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    let programs = parts::kubernetes(root, &cache)?;
    let run = cache.path("kubernetes-run");
    let mut command = Command::new(root.join("tests/kubernetes/cluster.sh"));
    command.env("BIN", &programs).env("RUN", &run).arg(match api {
        Api::Up => "up",
        Api::Down => "down",
    });
    process::must_succeed(&mut command)?;
    if let Api::Up = api {
        println!(
            "KUBECONFIG={}\nKUBECTL={}",
            run.join("admin.kubeconfig").display(),
            programs.join("kubectl").display()
        );
    }
    Ok(())
}
