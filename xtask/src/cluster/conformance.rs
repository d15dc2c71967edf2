//! `cargo xtask cluster conformance`: upstream's conformance suite of the inference extension, as conformance/README.md describes it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use crate::cache::Cache;
use crate::parts;
use crate::process::follow;

/// Envoy Gateway as its users know it, and as the suite wants it.
const VALUES: [&str; 2] = ["examples/envoy-gateway/values.yaml", "tests/conformance/values.yaml"];

/// Runs the suite with that Pointsman, what `cargo xtask image` made unless named: all of it, and files the report; or one test.
///
/// # Errors
/// A program cannot be built, the cluster does not run, or a test fails.
pub(super) fn run(
    root: &Path,
    cache: &Cache,
    program: Option<&Path>,
    test: Option<&str>,
) -> anyhow::Result<()> {
    let program = super::install::program(root, program)?;
    let suite = parts::suite(root, cache, &program)?;
    let flags = ["--pickers=self-hosted", "--conformance"];
    super::install::run(root, cache, &program, &suite.archives, &flags, &VALUES)?;

    let report = report_path(root, &suite.version);
    let mut suite = Command::new(&suite.program);
    suite
        .env("KUBECONFIG", super::kubeconfig(cache))
        .args(["-test.run=^TestConformance$", "-test.v", "-test.timeout=0", "--gateway-class=eg"])
        .args(["--conformance-profiles=Gateway", "--organization=pointsman", "--project=pointsman"])
        .arg(concat!("--version=", env!("CARGO_PKG_VERSION")));
    match test {
        Some(test) => suite.arg(format!("--run-test={test}")),
        None => {
            fs::create_dir_all(report.parent().context("a file is in a folder")?)?;
            suite.arg(format!("--report-output={}", report.display()))
        }
    };
    let log = cache.path("cluster-run/log/conformance.log");
    let begin = Instant::now();
    if !tell(&mut suite, &log)? {
        bail!("the suite fails; all that it says: {}", log.display());
    }
    println!("passed in {:.0} s; all that it says: {}", begin.elapsed().as_secs_f64(), log.display());
    if test.is_none() {
        judge(&report)?;
        println!("{}", report.display());
    }
    Ok(())
}

/// Runs it with all that it says in a file, and shows how each test ended; whether all passed.
fn tell(suite: &mut Command, log: &Path) -> anyhow::Result<bool> {
    let mut file = File::create(log).with_context(|| format!("{} cannot be made", log.display()))?;
    let mut written = Ok(());
    let passed = follow(suite, |line| {
        if written.is_ok() {
            written = writeln!(file, "{line}");
        }
        if line.trim_start().starts_with("--- ") {
            println!("{line}");
        }
    })?;
    written.with_context(|| format!("{} cannot be written", log.display()))?;
    Ok(passed)
}

/// Where upstream's rules put the report of an implementation.
fn report_path(root: &Path, version: &str) -> PathBuf {
    let name = concat!(env!("CARGO_PKG_VERSION"), "-default-gateway-report.yaml");
    root.join("conformance/reports").join(version).join("gateway/pointsman").join(name)
}

/// A suite may pass with tests that it left out.
fn judge(report: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(report).with_context(|| format!("{} was not written", report.display()))?;
    for wanted in ["result: success", "Failed: 0", "Skipped: 0"] {
        ensure!(text.contains(wanted), "{} does not say `{wanted}`", report.display());
    }
    Ok(())
}
