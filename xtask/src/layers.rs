//! The arrows of ARCHITECTURE.md, held: who may depend on whom, and what each crate must not know.
//!
//! Normal and build dependencies count; what only a crate's tests use does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::process;

/// What one crate may see.
struct Layer {
    name: &'static str,
    /// Crates of this workspace that it may depend on.
    may: &'static [&'static str],
    /// Crates of others that it must not depend on, because its job would leak.
    never: &'static [&'static str],
}

/// I/O, clocks and chance are passed in: tests and replay run in virtual time.
const PURE: &[&str] = &[
    "tokio",
    "tokio-util",
    "futures-util",
    "hyper",
    "hyper-util",
    "http",
    "http-body",
    "axum",
    "tower",
    "reqwest",
    "rand",
    "fastrand",
    "getrandom",
    "notify",
    "tracing",
    "kube",
    "tonic",
    "prost",
];
const KUBERNETES_AND_ENVOY: &[&str] = &["kube", "k8s-openapi", "tonic", "prost"];
const ANY_DOOR: &[&str] = &["hyper", "hyper-util", "axum", "kube", "k8s-openapi", "tonic", "prost"];

#[rustfmt::skip]
const LAYERS: &[Layer] = &[
    Layer { name: "pool", may: &[], never: PURE },
    Layer { name: "inference", may: &[], never: PURE },
    Layer { name: "telemetry", may: &[], never: KUBERNETES_AND_ENVOY },
    Layer { name: "sim", may: &[], never: KUBERNETES_AND_ENVOY },
    Layer { name: "tls", may: &[], never: KUBERNETES_AND_ENVOY },
    Layer { name: "grpc", may: &["tls"], never: KUBERNETES_AND_ENVOY },
    Layer { name: "endpoints", may: &["pool", "tls"], never: KUBERNETES_AND_ENVOY },
    Layer { name: "flow", may: &[], never: PURE },
    Layer { name: "routing", may: &["endpoints", "pool"], never: PURE },
    Layer { name: "director", may: &["pool", "inference", "endpoints", "flow", "routing", "telemetry"], never: ANY_DOOR },
    Layer { name: "gateway", may: &["director", "inference", "telemetry", "tls"], never: KUBERNETES_AND_ENVOY },
    Layer { name: "protobuf", may: &[], never: PURE },
    Layer { name: "ext-proc", may: &["inference", "protobuf"], never: PURE },
    Layer { name: "envoy-gateway", may: &["grpc", "pool", "protobuf"], never: &["hyper", "hyper-util", "axum", "kube", "k8s-openapi", "tonic", "prost"] },
    Layer { name: "picker", may: &["director", "ext-proc", "grpc", "protobuf"], never: &["hyper", "hyper-util", "axum", "kube", "k8s-openapi", "tonic", "prost"] },
    Layer { name: "operator", may: &["pool", "director", "envoy-gateway", "telemetry"], never: &["tonic", "prost"] },
    Layer { name: "pointsman", may: &["pool", "endpoints", "director", "envoy-gateway", "gateway", "grpc", "operator", "picker", "telemetry", "sim", "inference", "tls"], never: &[] },
    Layer { name: "bench", may: &["pool", "inference", "endpoints", "flow", "routing", "director", "gateway", "telemetry", "sim"], never: &[] },
    Layer { name: "xtask", may: &["pool", "telemetry"], never: &[] },
];

/// The part of `cargo metadata` that is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for a normal one.
    kind: Option<String>,
}

/// Checks the workspace at `root`.
///
/// # Errors
/// Names every arrow that is not allowed.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(["metadata", "--format-version", "1", "--no-deps"]);
    let metadata: Metadata = serde_json::from_str(&process::stdout_of(&mut cargo)?)
        .context("cargo metadata is not as expected")?;
    let violations = violations(&metadata, LAYERS);
    if !violations.is_empty() {
        bail!("layers are broken (the table is in xtask/src/layers.rs):\n  {}", violations.join("\n  "));
    }
    println!("{} crates, every arrow goes down", metadata.packages.len());
    Ok(())
}

fn violations(metadata: &Metadata, layers: &[Layer]) -> Vec<String> {
    let ours: BTreeSet<_> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let gone = layers.iter().filter(|layer| !ours.contains(layer.name));
    let mut found: Vec<_> = gone
        .map(|layer| format!("{}: in the table and not in the workspace; take its row out", layer.name))
        .collect();
    for package in &metadata.packages {
        let name = &package.name;
        let Some(layer) = layers.iter().find(|layer| layer.name == name) else {
            found.push(format!("{name}: not in the table; give it a row"));
            continue;
        };
        let dependencies: BTreeSet<_> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
            .map(|dependency| dependency.name.as_str())
            .collect();
        for on in dependencies {
            if ours.contains(on) && !layer.may.contains(&on) {
                let may = if layer.may.is_empty() { "nothing".to_owned() } else { layer.may.join(", ") };
                found.push(format!("{name} -> {on}: of this workspace {name} may know {may}"));
            } else if layer.never.contains(&on) {
                found.push(format!("{name} -> {on}: {name} must not know it"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Layer] = &[
        Layer { name: "ground", may: &[], never: &["tokio"] },
        Layer { name: "door", may: &["ground"], never: &[] },
    ];

    /// A dependency and its kind, as in cargo's metadata.
    type On<'a> = (&'a str, Option<&'a str>);

    /// What is wrong with a workspace of these crates, by [`TABLE`].
    fn found_in(packages: &[(&str, &[On<'_>])]) -> Vec<String> {
        let packages = packages.iter().map(|(name, dependencies)| {
            let dependencies =
                dependencies.iter().map(|(name, kind)| serde_json::json!({"name": name, "kind": kind}));
            serde_json::json!({"name": name, "dependencies": dependencies.collect::<Vec<_>>()})
        });
        let metadata = serde_json::json!({"packages": packages.collect::<Vec<_>>()});
        violations(&serde_json::from_value(metadata).expect("as cargo prints it"), TABLE)
    }

    #[test]
    fn arrows_of_the_table_pass() {
        assert_eq!(
            found_in(&[("ground", &[("serde", None)]), ("door", &[("ground", None), ("tokio", None)])]),
            [""; 0]
        );
    }

    #[test]
    fn an_arrow_upwards_is_named_with_what_is_allowed() {
        assert_eq!(
            found_in(&[("ground", &[("door", None)]), ("door", &[])]),
            ["ground -> door: of this workspace ground may know nothing"]
        );
    }

    #[test]
    fn a_forbidden_crate_of_others_is_named_for_normal_and_build_dependencies() {
        for kind in [None, Some("build")] {
            assert_eq!(
                found_in(&[("ground", &[("tokio", kind)]), ("door", &[])]),
                ["ground -> tokio: ground must not know it"]
            );
        }
    }

    #[test]
    fn what_only_tests_use_is_free() {
        let dev = Some("dev");
        assert_eq!(found_in(&[("ground", &[("tokio", dev), ("door", dev)]), ("door", &[])]), [""; 0]);
    }

    #[test]
    fn the_table_and_the_workspace_name_the_same_crates() {
        assert_eq!(
            found_in(&[("ground", &[]), ("new", &[])]),
            [
                "door: in the table and not in the workspace; take its row out",
                "new: not in the table; give it a row"
            ]
        );
    }

    #[test]
    fn the_tables_own_arrows_have_no_cycle() {
        let mut placed = BTreeSet::new();
        while let Some(layer) = LAYERS.iter().find(|layer| {
            !placed.contains(layer.name) && layer.may.iter().all(|below| placed.contains(below))
        }) {
            placed.insert(layer.name);
        }
        assert_eq!(placed.len(), LAYERS.len(), "only these have a place: {placed:?}");
    }
}
