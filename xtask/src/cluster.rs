//! `cargo xtask cluster`: a real Kubernetes of one node on this machine, as tests/cluster/node.sh describes it.

mod conformance;
mod install;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Subcommand;

use crate::cache::Cache;
use crate::process::must_succeed;
use crate::{image, parts};

/// What of Debian the node needs, and a file by which to know each.
const PACKAGES: [(&str, &str); 7] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "/usr/sbin/nft"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("iproute2", "/usr/sbin/ip"),
    ("openssl", "/usr/bin/openssl"),
];

/// Envoy Gateway as users of Pointsman have it.
const VALUES: &str = "examples/envoy-gateway/values.yaml";

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Start it, or find it running; installs the Debian packages that it needs; prints KUBECONFIG=PATH and KUBECTL=PATH.
    Up {
        /// Values for Envoy Gateway's Helm chart, over those of tests/cluster/envoy-gateway.yaml; of several the last
        /// decides. Kept until others are named.
        #[arg(long = "values", value_name = "FILE")]
        values: Vec<PathBuf>,
    },
    /// Stop it and forget all that it held.
    Down,
    /// Give the node images that pods name.
    LoadImages {
        /// What `docker save` writes; the image of `cargo xtask image` unless named.
        archives: Vec<PathBuf>,
    },
    /// Start it if it does not run, install Pointsman, and show that all of it works.
    Test {
        /// Pointsman's program; the one of `cargo xtask image` unless named.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// Start it if it does not run, install Pointsman, break one thing after another under load, and print what requests noticed.
    WorstDay {
        /// Pointsman's program; the one of `cargo xtask image` unless named.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// Start it if it does not run, install Pointsman, and run upstream's conformance suite: conformance/README.md.
    Conformance {
        /// Pointsman's program; the one of `cargo xtask image` unless named.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// One test, by its short name, and no report; all of them unless named.
        #[arg(long, value_name = "NAME")]
        test: Option<String>,
    },
}

/// Starts, stops, feeds or tests the node.
///
/// # Errors
/// A program cannot be built or does not serve, an archive cannot be read, or this is not root.
pub(crate) fn run(root: &Path, cluster: Cluster) -> anyhow::Result<()> {
    let cache = Cache::open()?;
    match cluster {
        Cluster::Up { values } => {
            let node = up(root, &cache, &values)?;
            println!("KUBECONFIG={}\nKUBECTL={}", kubeconfig(&cache).display(), node.kubectl.display());
        }
        Cluster::Down => must_succeed(script(root, &cache).arg("down"))?,
        Cluster::LoadImages { archives } => {
            let archives = if archives.is_empty() { vec![image::archive_path(root)] } else { archives };
            for archive in &archives {
                ensure!(
                    archive.is_file(),
                    "{} is not there; `cargo xtask image` makes target/image/*.tar",
                    archive.display()
                );
            }
            must_succeed(script(root, &cache).arg("load").args(archives))?;
        }
        Cluster::Test { program } => pytest(root, &cache, program.as_deref(), "cluster")?,
        Cluster::WorstDay { program } => pytest(root, &cache, program.as_deref(), "cluster/worst_day.py")?,
        Cluster::Conformance { program, test } => {
            conformance::run(root, &cache, program.as_deref(), test.as_deref())?;
        }
    }
    Ok(())
}

/// Runs those tests against a node with Pointsman on it.
fn pytest(root: &Path, cache: &Cache, program: Option<&Path>, tests: &str) -> anyhow::Result<()> {
    let program = install::program(root, program)?;
    let image = parts::pointsman_image(root, cache, &program)?;
    let node = install::run(root, cache, &program, &[image], &[], &[VALUES])?;
    let mut pytest = Command::new(parts::python(root, cache)?);
    pytest
        .current_dir(root.join("tests"))
        .env("KUBECONFIG", kubeconfig(cache))
        .env("KUBECTL", &node.kubectl)
        .env("KUBECACHEDIR", cache.path("cluster-run/kubectl"))
        .env("POINTSMAN_IMAGE", parts::POINTSMAN_IMAGE)
        .env("POINTSMAN_CLUSTER_RUN", cache.path("cluster-run"))
        .args(["-m", "pytest", tests]);
    must_succeed(&mut pytest)
}

fn up(root: &Path, cache: &Cache, values: &[PathBuf]) -> anyhow::Result<parts::Node> {
    packages()?;
    let node = parts::node(root, cache)?;
    let values = values.iter().map(|file| {
        let path = file.canonicalize().with_context(|| format!("{} cannot be read", file.display()))?;
        path.into_os_string().into_string().ok().context("a path to values is no UTF-8")
    });
    let values = values.collect::<anyhow::Result<Vec<_>>>()?.join("\n");
    let mut up = script(root, cache);
    up.env("BIN", &node.programs).env("IMAGES", &node.images).env("CHART", &node.chart).arg("up");
    if !values.is_empty() {
        up.env("VALUES", values);
    }
    must_succeed(&mut up)?;
    Ok(node)
}

/// Installs what is missing of Debian.
fn packages() -> anyhow::Result<()> {
    let missing = PACKAGES.into_iter().filter(|(_, file)| !Path::new(file).exists());
    let missing: Vec<_> = missing.map(|(package, _)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing from Debian: {}", missing.join(" "));
    let told = || format!("the node needs {}; on Debian, as root, apt-get installs them", missing.join(", "));
    must_succeed(Command::new("apt-get").args(["update", "-qq"])).with_context(told)?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-qq", "--no-install-recommends"]);
    must_succeed(install.args(&missing)).with_context(told)
}

fn script(root: &Path, cache: &Cache) -> Command {
    let mut script = Command::new(root.join("tests/cluster/node.sh"));
    // `down` and `load` start nothing of the project's own.
    script.env("BIN", "/usr/bin").env("RUN", cache.path("cluster-run"));
    script
}

fn kubeconfig(cache: &Cache) -> PathBuf {
    cache.path("cluster-run/admin.kubeconfig")
}
