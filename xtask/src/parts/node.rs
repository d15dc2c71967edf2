//! What the cluster tier needs beside the API server: kubelet and its companions, Envoy Gateway with its chart, and images of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::{HELM, Module, Scratch, envoy, go_program, kubernetes};
use crate::cache::{Cache, Part};
use crate::process::{must_succeed, stdout_of};

/// Programs of tests/kubernetes and the packages that they are built from: two of the node, two for pods.
const PROGRAMS: [(&str, &str); 4] = [
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("pause", "./pause"),
    ("hello", "./hello"),
];
const ENVOY_GATEWAY: &str = "github.com/envoyproxy/gateway";
const SUITE: &str = "sigs.k8s.io/gateway-api-inference-extension/conformance";
const ECHO: &str = "sigs.k8s.io/gateway-api/conformance/echo-basic";
/// As the suite's manifests call the server that requests are sent to …
const ECHO_IMAGE: &str = "gcr.io/k8s-staging-gateway-api/echo-basic:v20251106-v1.3.0-263-g47c3435c";
/// … and upstream's picker.
const PICKER_IMAGE: &str = "registry.k8s.io/gateway-api-inference-extension/lwepp:v1.6.0";
/// Pointsman itself, on the node.
pub(crate) const POINTSMAN_IMAGE: &str = "local/pointsman:1";

/// Where the parts are.
pub(crate) struct Node {
    /// The folders with the programs, as in `PATH`.
    pub(crate) programs: String,
    pub(crate) kubectl: PathBuf,
    /// The folder of the image archives.
    pub(crate) images: PathBuf,
    /// Envoy Gateway's Helm chart.
    pub(crate) chart: PathBuf,
}

/// An archive for the node: one program, found by its name.
struct Image {
    name: String,
    file: &'static str,
    program: PathBuf,
    /// What the program is started with, before what a pod says.
    arguments: &'static str,
}

/// Installs what is not there yet.
///
/// # Errors
/// No Go, no Python with pip, no package registry, or no room.
pub(crate) fn node(root: &Path, cache: &Cache) -> anyhow::Result<Node> {
    let programs = programs(root, cache)?;
    let coredns = go_program(root, cache, "coredns", ".")?;
    let helm = go_program(root, cache, "helm", HELM)?;
    let gateway = gateway_program(root, cache)?;
    let (version, chart) = chart(root, cache, &helm)?;
    let local = |file, program| Image { name: format!("local/{file}:1"), file, program, arguments: "" };
    let images = [
        local("pause", programs.join("pause")),
        local("hello", programs.join("hello")),
        local("coredns", coredns),
        local("envoy", envoy(root, cache)?),
        Image { name: gateway_image(&version), file: "envoy-gateway", program: gateway, arguments: "" },
    ];
    let images = pack(root, cache, "node-images", &images)?;
    let kubernetes = kubernetes(root, cache)?;
    let folders = [kubernetes.as_path(), &programs, helm.parent().context("a program is in a folder")?];
    let path = std::env::join_paths(folders)?.into_string().ok().context("the cache's path is no UTF-8")?;
    Ok(Node { programs: path, kubectl: kubernetes.join("kubectl"), images, chart })
}

/// Builds Envoy Gateway alone, and packs its chart.
///
/// # Errors
/// As [`node`].
pub(crate) fn envoy_gateway(root: &Path, cache: &Cache) -> anyhow::Result<()> {
    gateway_program(root, cache)?;
    chart(root, cache, &go_program(root, cache, "helm", HELM)?)?;
    Ok(())
}

fn gateway_program(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    go_program(root, cache, "envoy-gateway", &format!("{ENVOY_GATEWAY}/cmd/envoy-gateway"))
}

/// What upstream's conformance suite runs as, and with.
pub(crate) struct Suite {
    /// Its program.
    pub(crate) program: PathBuf,
    /// The release that it is of.
    pub(crate) version: String,
    /// Archives of images: Pointsman by [`POINTSMAN_IMAGE`], and by the names in the suite's manifests what they mean by them.
    pub(crate) archives: [PathBuf; 3],
}

/// Builds the suite and the server that its requests are sent to, and packs that, and Pointsman in the place of the picker of
/// upstream's.
///
/// # Errors
/// As [`node`]; or Pointsman's program is not there.
pub(crate) fn suite(root: &Path, cache: &Cache, pointsman: &Path) -> anyhow::Result<Suite> {
    let mut module = Module::new(root.join("tests/conformance"))?;
    module.recipe += &fs::read_to_string(module.folder.join("conformance_test.go"))?;
    let make = |folder: &Path| {
        let scratch = Scratch::new(cache)?;
        module.build_tests(".", &folder.join("conformance"), &scratch)?;
        module.build(ECHO, "-s -w", &folder.join("echo-basic"), &scratch)
    };
    let programs = cache.ensure(&Part { name: "conformance", recipe: module.recipe.clone(), make: &make })?;
    let [pointsman_name, picker, echo] = [POINTSMAN_IMAGE, PICKER_IMAGE, ECHO_IMAGE].map(str::to_owned);
    let pointsman = |name, file, arguments| Image { name, file, program: pointsman.to_owned(), arguments };
    let images = [
        pointsman(pointsman_name, "pointsman", ""),
        pointsman(picker, "lwepp", "epp --conformance"),
        Image { name: echo, file: "echo-basic", program: programs.join("echo-basic"), arguments: "" },
    ];
    let folder = pack(root, cache, "conformance-images", &images)?;
    Ok(Suite {
        program: programs.join("conformance"),
        version: module.version(SUITE)?,
        archives: images.map(|image| folder.join(format!("{}.tar", image.file))),
    })
}

/// The archive of [`POINTSMAN_IMAGE`] with that program.
///
/// # Errors
/// No room.
pub(crate) fn pointsman_image(root: &Path, cache: &Cache, program: &Path) -> anyhow::Result<PathBuf> {
    let image = Image {
        name: POINTSMAN_IMAGE.to_owned(),
        file: "pointsman",
        program: program.to_owned(),
        arguments: "",
    };
    Ok(pack(root, cache, "pointsman-image", &[image])?.join("pointsman.tar"))
}

/// What the chart calls it.
fn gateway_image(version: &str) -> String {
    format!("docker.io/envoyproxy/gateway:{version}")
}

/// The folder of [`PROGRAMS`].
fn programs(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    let module = Module::new(root.join("tests/kubernetes"))?;
    let mut recipe = module.recipe.clone();
    for own in ["pause", "hello"] {
        recipe += &fs::read_to_string(module.folder.join(own).join("main.go"))?;
    }
    let make = |folder: &Path| {
        let flags = module.kubernetes_flags()?;
        let scratch = Scratch::new(cache)?;
        let build =
            |(name, package): &(&str, &str)| module.build(package, &flags, &folder.join(name), &scratch);
        PROGRAMS.iter().try_for_each(build)
    };
    cache.ensure(&Part { name: "kubernetes-node", recipe, make: &make })
}

/// Envoy Gateway's version and chart, packed from what its module has of it: published are the templates, and a release puts in
/// its own image.
fn chart(root: &Path, cache: &Cache, helm: &Path) -> anyhow::Result<(String, PathBuf)> {
    let module = Module::new(root.join("tests/envoy-gateway"))?;
    let version = module.version(ENVOY_GATEWAY)?;
    let make = |folder: &Path| {
        must_succeed(module.command().args(["mod", "download", ENVOY_GATEWAY]))?;
        let told = ["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", ENVOY_GATEWAY];
        let published =
            PathBuf::from(stdout_of(module.command().args(told))?.trim()).join("charts/gateway-helm");
        fs::create_dir_all(folder)?;
        let copy = folder.join("gateway-helm");
        must_succeed(
            Command::new("cp").args(["--recursive", "--no-preserve=mode"]).arg(published).arg(&copy),
        )?;
        let values = fs::read_to_string(copy.join("values.tmpl.yaml"))
            .context("Envoy Gateway's module has no values for its chart")?
            .replace("${GatewayImage}", &gateway_image(&version))
            .replace("${GatewayImagePullPolicy}", "IfNotPresent");
        ensure!(!values.contains("${"), "Envoy Gateway's chart wants more than an image: {values}");
        fs::write(copy.join("values.yaml"), values)?;
        let mut package = Command::new(helm);
        package.args(["package", "--version", &version, "--app-version", &version, "--destination"]);
        must_succeed(package.arg(folder).arg(&copy))
    };
    let part = Part { name: "envoy-gateway-chart", recipe: module.recipe.clone(), make: &make };
    let chart = cache.ensure(&part)?.join(format!("gateway-helm-{version}.tgz"));
    Ok((version, chart))
}

/// The folder of the archives, as tests/cluster/image.sh makes them.
fn pack(root: &Path, cache: &Cache, name: &'static str, images: &[Image]) -> anyhow::Result<PathBuf> {
    let script = root.join("tests/cluster/image.sh");
    let mut recipe = fs::read_to_string(&script)?;
    for image in images {
        let about = fs::metadata(&image.program)
            .with_context(|| format!("{} cannot be packed", image.program.display()))?;
        recipe += &format!("{} {} {:?} {}\n", image.name, about.len(), about.modified()?, image.arguments);
    }
    let make = |folder: &Path| {
        fs::create_dir_all(folder)?;
        images.iter().try_for_each(|image| {
            let inside = format!("/usr/local/bin/{}", image.file);
            let mut file = image.program.clone().into_os_string();
            file.push("=");
            file.push(&inside);
            let archive = folder.join(format!("{}.tar", image.file));
            let entry = format!("{inside} {}", image.arguments);
            must_succeed(Command::new(&script).arg(&image.name).arg(archive).arg(entry.trim_end()).arg(file))
        })
    };
    cache.ensure(&Part { name, recipe, make: &make })
}
