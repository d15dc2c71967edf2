//! `cargo xtask fuzz`: builds the targets of `fuzz/` with coverage and runs them. A stable compiler will do.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, bail, ensure};

use crate::process::{line_of, must_succeed, stdout_of};

/// What is fuzzed: a program each in `fuzz/targets`, with seeds in `fuzz/corpus` and words in `fuzz/dictionaries`.
const TARGETS: [(&str, &str); 8] = [
    ("body", "body"),
    ("body_tree", "body"),
    ("answer", "answer"),
    ("answer_tree", "answer"),
    ("metrics", "metrics"),
    ("manifest", "manifest"),
    ("ext_proc", "ext_proc"),
    ("settings", "settings"),
];

/// Counters at every edge and what comparisons compare, as libFuzzer wants them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// Limits on one input: what takes longer or more is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
const MEMORY_MIB_MAX: u32 = 1024;
const INPUT_BYTES_MAX: u32 = 4096;

/// How many inputs each target is given among the tests.
const TEST_RUNS: u32 = 20_000;

/// How far to look for input that finds something, after the seeds.
#[derive(Clone, Copy)]
enum Search {
    /// For so many seconds; what is found to be of interest is kept for the next time.
    Seconds(u32),
    /// So many inputs, the same each time.
    Runs(u32),
}

/// What CI does: the code in `fuzz/` passes its lints, and a short run of every target finds nothing. The run is the same on
/// every machine: what it finds comes from what was changed, not from luck.
///
/// # Errors
/// A lint, or a finding.
pub(crate) fn test(root: &Path) -> anyhow::Result<()> {
    must_succeed(cargo(root, &["clippy", "--bins"], &host()?).args(["--", "-D", "warnings"]))?;
    search(root, None, Search::Runs(TEST_RUNS))
}

/// Replays the seeds of `target`, or of all, then looks for more for so many seconds each; 0 only replays.
///
/// # Errors
/// No such target, a compiler that is missing (the engine is C++), or a finding: the error says how to repeat it.
pub(crate) fn run(root: &Path, target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    search(root, target, if seconds == 0 { Search::Runs(0) } else { Search::Seconds(seconds) })
}

fn search(root: &Path, target: Option<&str>, search: Search) -> anyhow::Result<()> {
    let chosen: Vec<_> =
        TARGETS.iter().filter(|(name, _)| target.is_none_or(|target| target == *name)).collect();
    let known = TARGETS.map(|(name, _)| name).join(", ");
    ensure!(!chosen.is_empty(), "there is no such target: expected one of {known}");
    let programs = build(root)?;
    for (name, dictionary) in chosen {
        let scratch = root.join("target/fuzz/run").join(name);
        if matches!(search, Search::Runs(1..)) && scratch.exists() {
            fs::remove_dir_all(&scratch)
                .with_context(|| format!("{} cannot be emptied", scratch.display()))?;
        }
        fs::create_dir_all(scratch.join("corpus"))
            .with_context(|| format!("{} cannot be made", scratch.display()))?;
        let log = scratch.join("log");
        let mut fuzzer = fuzzer(&programs, name);
        fuzzer
            .args(match search {
                Search::Seconds(seconds) => vec![format!("-max_total_time={seconds}")],
                Search::Runs(runs) => vec![format!("-runs={runs}"), "-seed=1".to_owned()],
            })
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-dict={}", root.join("fuzz/dictionaries").join(dictionary).display()))
            .arg(format!("-artifact_prefix={}/", scratch.display()))
            .args([scratch.join("corpus"), root.join("fuzz/corpus").join(name)])
            .stderr(File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?);
        let status = fuzzer.status().with_context(|| format!("cannot start {name}"))?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if !status.success() {
            println!("{}", said.lines().skip_while(|line| !is_finding(line)).collect::<Vec<_>>().join("\n"));
            let again = line_of(&self::fuzzer(&programs, name));
            bail!(
                "{name} found something: {} holds the input. To repeat it:\n  {again} FILE",
                scratch.display()
            );
        }
        let last = said
            .lines()
            .rev()
            .find(|line| line.starts_with('#') && line.contains(" cov: "))
            .unwrap_or("nothing was run");
        println!("{name:<12} {last}");
    }
    Ok(())
}

/// Whether what follows in a log is what was found.
fn is_finding(line: &str) -> bool {
    line.contains("panicked at") || line.contains("ERROR: libFuzzer") || line.contains("ALARM")
}

fn fuzzer(programs: &Path, name: &str) -> Command {
    let mut fuzzer = Command::new(programs.join(name));
    fuzzer.args([format!("-timeout={INPUT_SECONDS_MAX}"), format!("-rss_limit_mb={MEMORY_MIB_MAX}")]);
    fuzzer
}

/// Builds the targets; the folder that they are in.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let host = host()?;
    must_succeed(&mut cargo(root, &["build", "--bins"], &host))
        .context("the engine is C++: is g++ or clang installed?")?;
    Ok(root.join("target/fuzz").join(host).join("release"))
}

/// The machine's own target.
fn host() -> anyhow::Result<String> {
    let version = stdout_of(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(host.to_owned())
}

/// Cargo in the workspace of the targets, which has a target folder of its own. Lints and build have the same flags, so
/// that both share what is built for this machine, the engine above all.
fn cargo(root: &Path, command: &[&str], host: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With a target named, build scripts and macros are built without these flags: they link no engine.
    cargo.args(command).args(["--quiet", "--release", "--target", host]);
    cargo.env("RUSTFLAGS", COVERAGE).current_dir(root.join("fuzz"));
    cargo
}
