//! `cargo xtask test`: every step by name and time; the first failure stops and says how to repeat it.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::parts::{self, Parts};
use crate::process::{follow, line_of};
use crate::tally::Tally;
use crate::{chart, docs, fuzz, layers, schema};

/// Which steps.
#[derive(Clone, Copy)]
pub(crate) enum Tier {
    /// What needs nothing installed.
    Fast,
    /// That, what meets the built program, and real parts.
    Full,
    /// A real Envoy Gateway without a cluster, alone.
    EnvoyGateway,
}

/// Runs the steps of a tier.
///
/// # Errors
/// A program that a step needs cannot be started.
pub(crate) fn run(root: &Path, tier: Tier) -> anyhow::Result<ExitCode> {
    let mut steps = Steps { root, done: Vec::new() };
    let passed = match tier {
        Tier::Fast => steps.fast()?,
        Tier::Full => steps.fast()? && steps.full()?,
        Tier::EnvoyGateway => steps.envoy_gateway()?,
    };
    steps.close();
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Steps<'a> {
    root: &'a Path,
    done: Vec<Done>,
}

/// A step that ended.
struct Done {
    name: &'static str,
    took: Duration,
    tally: Tally,
    passed: bool,
}

impl Steps<'_> {
    /// What needs nothing installed. False at the first step that fails, here and below.
    fn fast(&mut self) -> anyhow::Result<bool> {
        Ok(self.cargo("format", &["fmt", "--all", "--check"])?
            && self.cargo("format, fuzz", &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])?
            && self.check("layers", "cargo xtask layers", layers::check)
            && self.check("documents", "cargo xtask docs --check", docs::check)
            && self.cargo(
                "lints",
                &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
            )?
            && self.cargo("unit tests", &["test", "--workspace", "--quiet"])?)
    }

    /// What meets the built program, and real parts.
    fn full(&mut self) -> anyhow::Result<bool> {
        let Some(parts) = self.prepare()? else { return Ok(false) };
        Ok(self.pytest("black box", "tests/blackbox", &parts)?
            && self.check("schema", "cargo xtask schema --check", |root| schema::run(root, true))
            && self.check("chart", "cargo xtask chart --check", |root| chart::run(root, true))
            && self.pytest("kubernetes", "tests/kubernetes", &parts)?
            && self.pytest("real parts", "tests/real", &parts)?
            && self.check("fuzzing", "cargo xtask fuzz", fuzz::test))
    }

    fn envoy_gateway(&mut self) -> anyhow::Result<bool> {
        let Some(parts) = self.prepare()? else { return Ok(false) };
        let installed = self.check("install Envoy Gateway", "cargo xtask cluster up", |root| {
            parts::envoy_gateway(root, &Cache::open()?)
        });
        Ok(installed && self.pytest("Envoy Gateway", "tests/kubernetes/file_mode.py", &parts)?)
    }

    /// Builds the program and installs the parts; none where that fails.
    fn prepare(&mut self) -> anyhow::Result<Option<Parts>> {
        // The same units as `cargo test` builds, so this links one program and compiles nothing twice.
        if !self.cargo("build", &["build", "--workspace", "--bins", "--tests", "--quiet"])? {
            return Ok(None);
        }
        let mut parts = None;
        self.check("install", "cargo xtask install", |root| {
            parts = Some(parts::install(root, &Cache::open()?)?);
            Ok(())
        });
        Ok(parts)
    }

    fn cargo(&mut self, name: &'static str, arguments: &[&str]) -> anyhow::Result<bool> {
        self.program(name, Command::new("cargo").args(arguments))
    }

    fn pytest(&mut self, name: &'static str, tests: &str, parts: &Parts) -> anyhow::Result<bool> {
        let mut pytest = Command::new(&parts.python);
        pytest
            .env("POINTSMAN_BIN", self.root.join("target/debug/pointsman"))
            .env("POINTSMAN_VLLM_PYTHON", &parts.vllm_python)
            .env("POINTSMAN_MODELS", &parts.models)
            .env("POINTSMAN_ENVOY", &parts.envoy)
            .env("POINTSMAN_ENVOY_1_39", &parts.envoy_1_39)
            .env("POINTSMAN_H2SPEC", &parts.h2spec)
            .env("POINTSMAN_HELM", &parts.helm)
            .env("POINTSMAN_KUBERNETES", &parts.kubernetes)
            .env("POINTSMAN_CRDS", &parts.crds)
            .args(["-m", "pytest", tests]);
        self.program(name, &mut pytest)
    }

    /// A step that is a program: it passed if it exits with 0. Counts the tests it reports, else one.
    fn program(&mut self, name: &'static str, command: &mut Command) -> anyhow::Result<bool> {
        begin(name);
        let (started, mut tally) = (Instant::now(), Tally::default());
        let passed = follow(command.current_dir(self.root), |line| {
            println!("{line}");
            tally += Tally::read(line);
        })?;
        if tally == Tally::default() || (!passed && tally.failed == 0) {
            tally += Tally::one(passed);
        }
        Ok(self.end(Done { name, took: started.elapsed(), tally, passed }, &line_of(command)))
    }

    /// A step that is a function of ours.
    fn check(
        &mut self,
        name: &'static str,
        repeat: &str,
        check: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> bool {
        begin(name);
        let started = Instant::now();
        let outcome = check(self.root);
        if let Err(error) = &outcome {
            println!("error: {error:#}");
        }
        let passed = outcome.is_ok();
        self.end(Done { name, took: started.elapsed(), tally: Tally::one(passed), passed }, repeat)
    }

    fn end(&mut self, done: Done, repeat: &str) -> bool {
        let passed = done.passed;
        if !passed {
            println!("\n{} failed. To repeat it, in {}:\n  {repeat}", done.name, self.root.display());
        }
        self.done.push(done);
        passed
    }

    /// A line for each step, then the sum of all tests.
    fn close(&self) {
        println!();
        let mut sum = Tally::default();
        for Done { name, took, tally, passed } in &self.done {
            let (verdict, seconds) = (if *passed { "ok" } else { "FAILED" }, took.as_secs_f64());
            println!(
                "{verdict:<6} {name:<10} {seconds:>7.1} s   {} passed, {} failed",
                tally.passed, tally.failed
            );
            sum += *tally;
        }
        println!("\n{} passed, {} failed", sum.passed, sum.failed);
    }
}

fn begin(name: &str) {
    println!("\n── {name}");
}
