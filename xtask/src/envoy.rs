//! `cargo xtask envoy`: simulated model servers, the picker and real Envoy before them, as examples/envoy describes it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::cache::Cache;
use crate::{parts, process};

/// How often to look whether one of the programs has ended.
const LOOK: Duration = Duration::from_millis(200);

/// A configuration of examples/envoy.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Example {
    /// What we recommend: the picker sees the beginning of a body and names endpoints to fall back on.
    BufferedPartial,
    /// The endpoint picker protocol as other gateways speak it: bodies stream through the picker.
    FullDuplex,
}

impl Example {
    /// Its file, and the picker's flags that it wants.
    fn parts(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Example::BufferedPartial => ("buffered-partial.yaml", &[]),
            Example::FullDuplex => ("full-duplex.yaml", &["--fallback-endpoints", "0"]),
        }
    }
}

/// Runs all three until ctrl-c, or until one of them ends.
///
/// # Errors
/// A program cannot be built, installed or started, or ends.
pub(crate) fn run(root: &Path, example: Example) -> anyhow::Result<()> {
    process::must_succeed(Command::new("cargo").current_dir(root).args(["build", "--package", "pointsman"]))?;
    let envoy = parts::envoy(root, &Cache::open()?)?;
    let (config, flags) = example.parts();
    let examples = root.join("examples/envoy");
    let pointsman = || {
        let mut command = Command::new(root.join("target/debug/pointsman"));
        command.current_dir(&examples);
        command
    };
    let mut house = House(Vec::new());
    house.start_and_wait("sim", pointsman().args(["sim", "--count", "3", "--listen", "127.0.0.1:8001"]))?;
    house.start_and_wait(
        "epp",
        pointsman().args(["epp", "-f", "pool.yaml", "--bind", "127.0.0.1"]).args(flags),
    )?;
    house.start(
        "envoy",
        Command::new(envoy).current_dir(&examples).args(["--log-level", "warn", "-c", config]),
    )?;
    println!(
        "\nEnvoy listens at http://127.0.0.1:10000, its admin page at http://127.0.0.1:9901, the picker's at http://127.0.0.1:9090\n\n  \
         curl -s http://127.0.0.1:10000/v1/completions -H 'content-type: application/json' -d '{{\"prompt\":\"Which track?\",\"max_tokens\":8}}'\n  \
         curl -s http://127.0.0.1:9090/metrics | grep pointsman_picks_total\n\nctrl-c ends all of it."
    );
    house.watch()
}

/// The programs that run; they are killed when it goes out of scope.
struct House(Vec<(&'static str, Child)>);

impl House {
    fn start(&mut self, name: &'static str, command: &mut Command) -> anyhow::Result<&mut Child> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.0.push((name, child));
        Ok(&mut self.0.last_mut().context("it was just put there")?.1)
    }

    /// Starts a program of ours, and returns once it has said that it is ready.
    fn start_and_wait(&mut self, name: &'static str, command: &mut Command) -> anyhow::Result<()> {
        let stdout = self.start(name, command.stdout(Stdio::piped()))?.stdout.take();
        let mut line = String::new();
        BufReader::new(stdout.context("stdout was asked for and is not there")?).read_line(&mut line)?;
        if !line.starts_with("ready ") {
            bail!("{name} ended before it was ready: what it says is above");
        }
        print!("{name}: {line}");
        Ok(())
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            for (name, child) in &mut self.0 {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended with {status}: what it says is above");
                }
            }
            sleep(LOOK);
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
