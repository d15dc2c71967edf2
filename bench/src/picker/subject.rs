//! What is measured: floors of ours, programs that are started here, and servers that already run.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::endpoints::Endpoints;

/// How long a program may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// The empty servers: what each is called, its program, and its threads.
const FLOORS: [(&str, &str, &str); 4] = [
    ("tonic-2", "floor-tonic", "2"),
    ("tonic-1", "floor-tonic", "1"),
    ("h2-2", "floor-h2", "2"),
    ("h2-1", "floor-h2", "1"),
];

/// How a subject is come by.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// One of [`FLOORS`].
    Floor(&'static str),
    /// A command line with `{port}`, `{manifest}` and `{endpoints}` in it.
    Command { name: String, line: String },
    /// A server that runs, and its process where it is on this machine.
    Running { name: String, address: SocketAddr, pid: Option<u32> },
}

impl Source {
    /// A floor by its name.
    pub(crate) fn floor(name: &str) -> anyhow::Result<Source> {
        let names = FLOORS.map(|(name, ..)| name);
        match names.into_iter().find(|known| *known == name) {
            Some(name) => Ok(Source::Floor(name)),
            None => bail!("no floor {name:?}: expected one of {}", names.join(", ")),
        }
    }

    /// `NAME=COMMAND`.
    pub(crate) fn command(text: &str) -> anyhow::Result<Source> {
        let (name, line) = text.split_once('=').context("expected NAME=COMMAND")?;
        ensure!(line.contains("{port}"), "the command of {name} has no {{port}} in it");
        Ok(Source::Command { name: name.to_owned(), line: line.to_owned() })
    }

    /// `NAME=IP:PORT` or `NAME=IP:PORT@PID`.
    pub(crate) fn running(text: &str) -> anyhow::Result<Source> {
        let (name, place) = text.split_once('=').context("expected NAME=IP:PORT or NAME=IP:PORT@PID")?;
        let (address, pid) = match place.split_once('@') {
            Some((address, pid)) => {
                (address, Some(pid.parse().context("expected a process number after @")?))
            }
            None => (place, None),
        };
        let address = address.parse().with_context(|| format!("expected IP:PORT, not {address:?}"))?;
        Ok(Source::Running { name: name.to_owned(), address, pid })
    }
}

/// A server that is measured; one that was started here ends when this is dropped.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
    pub(crate) pid: Option<u32>,
    child: Option<Child>,
}

impl Subject {
    /// Starts what must be started and waits until it listens. `cpus` are those that a started program may use, as
    /// `taskset` takes them.
    pub(crate) fn new(
        source: &Source,
        endpoints: &Endpoints,
        tls: bool,
        cpus: Option<&str>,
    ) -> anyhow::Result<Subject> {
        let port = free_port()?;
        match source {
            Source::Floor(floor) => {
                let (_, program, threads) =
                    FLOORS.into_iter().find(|(name, ..)| name == floor).context("no such floor")?;
                let words = vec![
                    beside_this_program(program)?.display().to_string(),
                    format!("--port={port}"),
                    format!("--threads={threads}"),
                ];
                Subject::start(floor, port, &words, false, cpus)
            }
            Source::Command { name, line } => {
                let all: Vec<String> = endpoints.addresses.iter().map(ToString::to_string).collect();
                let manifest = endpoints.manifest().display().to_string();
                let words: Vec<String> = line
                    .split_whitespace()
                    .map(|word| {
                        word.replace("{port}", &port.to_string())
                            .replace("{manifest}", &manifest)
                            .replace("{endpoints}", &all.join(","))
                    })
                    .collect();
                Subject::start(name, port, &words, tls, cpus)
            }
            Source::Running { name, address, pid } => {
                Ok(Subject { name: name.clone(), address: *address, tls, pid: *pid, child: None })
            }
        }
    }

    fn start(
        name: &str,
        port: u16,
        words: &[String],
        tls: bool,
        cpus: Option<&str>,
    ) -> anyhow::Result<Subject> {
        let pinned = cpus.map(|cpus| ["taskset", "-c", cpus].map(str::to_owned));
        let words: Vec<&String> = pinned.iter().flatten().chain(words).collect();
        let (program, arguments) = words.split_first().context("an empty command")?;
        // What it prints is not ours to show: the table goes to stdout.
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut subject = Subject {
            name: name.to_owned(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            tls,
            pid: Some(child.id()),
            child: Some(child),
        };
        subject.wait_until_it_listens()?;
        Ok(subject)
    }

    fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("{} ended before it listened: {status}", self.name);
            }
            ensure!(begin.elapsed() < START_MAX, "{} does not listen on {}", self.name, self.address);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Builds the floors with the profile of this program, so that what is measured is what the sources say.
pub(crate) fn build_floors() -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "bench", "--bin", "floor-tonic", "--bin", "floor-h2"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("cannot run cargo")?;
    ensure!(status.success(), "the floors do not build");
    Ok(())
}

fn beside_this_program(program: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().unwrap_or(Path::new(".")).join(program))
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_from_text() {
        assert!(Source::floor("h2-1").is_ok());
        assert!(Source::floor("h2").is_err_and(|error| error.to_string().contains("tonic-2, tonic-1")));
        assert!(Source::command("ours=pointsman epp --grpc-port {port}").is_ok());
        assert!(Source::command("ours=pointsman epp").is_err());
        let running = Source::running("ours=127.0.0.1:9002@77").expect("a source");
        assert!(matches!(running, Source::Running { pid: Some(77), .. }), "{running:?}");
        assert!(Source::running("ours=localhost").is_err());
    }
}
