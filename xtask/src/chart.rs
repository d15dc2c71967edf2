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
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args([
        "run",
        "--quiet",
        "--package",
        "operator",
        "--example",
        "chart",
        "--",
        CHART,
    ]);
    if check {
        cargo.arg("--check");
    }
    must_succeed(&mut cargo)
}
