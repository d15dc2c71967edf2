//! Pointsman on the node, and Envoy Gateway told of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::cache::Cache;
use crate::parts::{self, POINTSMAN_IMAGE};
use crate::process::{must_succeed, stdout_of};

const NAMESPACE: &str = "pointsman-system";
const CONTROLLER: &str = "deployment/pointsman-controller";

/// Pointsman's program: what `cargo xtask image` made unless named.
///
/// # Errors
/// It is not there.
pub(super) fn program(root: &Path, named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = named.map_or_else(|| root.join("target/image/pointsman"), Path::to_path_buf);
    ensure!(program.is_file(), "{} is not there; `cargo xtask image` makes it", program.display());
    Ok(program)
}

/// Starts the node where it does not run, gives it those images, installs the controller with those flags, and then Envoy Gateway with those
/// values.
///
/// # Errors
/// The cluster does not run, or the controller does not.
pub(super) fn run(
    root: &Path,
    cache: &Cache,
    program: &Path,
    archives: &[PathBuf],
    flags: &[&str],
    values: &[&str],
) -> anyhow::Result<parts::Node> {
    let node = super::up(root, cache, &[])?;
    must_succeed(super::script(root, cache).arg("load").args(archives))?;
    let kubectl = || {
        let mut kubectl = Command::new(&node.kubectl);
        kubectl
            .env("KUBECONFIG", super::kubeconfig(cache))
            .env("KUBECACHEDIR", cache.path("cluster-run/kubectl"));
        kubectl
    };
    // Before Envoy Gateway is told of it: that one looks for the kinds that it is told of when it starts, and waits for its
    // extension server.
    let installation = cache.path("cluster-run/installation.yaml");
    let mut install = Command::new(program);
    install.args(["controller", "--install", "--epp-image", POINTSMAN_IMAGE]).args(flags);
    fs::write(&installation, stdout_of(&mut install)?)?;
    stdout_of(kubectl().args(["apply", "--server-side", "--force-conflicts", "-f"]).arg(&installation))?;
    // The image may be another one by the same name.
    stdout_of(kubectl().args(["-n", NAMESPACE, "rollout", "restart", CONTROLLER]))?;
    stdout_of(kubectl().args(["-n", NAMESPACE, "rollout", "status", CONTROLLER, "--timeout=120s"]))?;
    let values: Vec<PathBuf> = values.iter().map(|file| root.join(file)).collect();
    super::up(root, cache, &values)
}
