//! `cargo xtask chart`: the Helm chart, written by the operator itself.

use std::path::Path;
use std::process::Command;

use crate::process::must_succeed;

const CHART: &str = "charts/pointsman";

/// Writes it, or only checks it.
///
/// # Errors
/// It differs, or cannot be written.
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    // With the whole workspace, as the tests are built: alone the operator has other features of kube, and all of that is built again.
    let mut build = Command::new("cargo");
    must_succeed(build.current_dir(root).args(["build", "--quiet", "--workspace", "--examples"]))?;
    let mut chart = Command::new(root.join("target/debug/examples/chart"));
    chart.current_dir(root).arg(CHART);
    if check {
        chart.arg("--check");
    }
    must_succeed(&mut chart)
}
