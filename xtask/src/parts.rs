//! What the Python tests need: an installer, their libraries, real vLLM, models for it, real Envoy, h2spec, Helm, and Kubernetes.

mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cache::{Cache, Part};
use crate::process::{must_succeed, stdout_of};

pub(crate) use node::{Node, POINTSMAN_IMAGE, envoy_gateway, node, pointsman_image, suite};

const UV: &str = "uv==0.13.9";
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec";
const HELM: &str = "helm.sh/helm/v3/cmd/helm";

/// The programs of the test cluster and the packages that they are built from.
const KUBERNETES: [(&str, &str); 6] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
];

const EXTENSION: &str = "sigs.k8s.io/gateway-api-inference-extension";
/// Releases of the inference extension with their checksums, and the CRDs that each is the last to publish.
const CRDS: [(&str, &str, &[&str]); 4] = [
    (
        "v1.6.0",
        "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=",
        &["inference.networking.k8s.io_inferencepools.yaml"],
    ),
    (
        "v1.5.0",
        "h1:w9Awt60cmI1vM7Y6N81h8wDCBP0WkmxpdI7GKY0v070=",
        &[
            "inference.networking.x-k8s.io_inferenceobjectives.yaml",
            "inference.networking.x-k8s.io_inferencemodelrewrites.yaml",
        ],
    ),
    (
        "v1.4.0",
        "h1:V+5u0J64qDbLYx4M/PkpsGa5bjeRjWUVybQ00axEkE0=",
        &["inference.networking.x-k8s.io_inferencepools.yaml"],
    ),
    (
        "v0.5.1",
        "h1:OMpt4gKlPWkD+h5kHcZZVh4926kix2DSBPI7X5ntuCA=",
        &["inference.networking.x-k8s.io_inferencemodels.yaml"],
    ),
];

/// Where the parts are.
pub(crate) struct Parts {
    /// The interpreter with what tests/requirements.txt names.
    pub(crate) python: PathBuf,
    /// The interpreter with vLLM.
    pub(crate) vllm_python: PathBuf,
    /// The tiny model `tiny` and the adapters `lora-a` and `lora-b`.
    pub(crate) models: PathBuf,
    /// The conformance tool for HTTP/2.
    pub(crate) h2spec: PathBuf,
    /// Helm's program.
    pub(crate) helm: PathBuf,
    /// Envoy's program.
    pub(crate) envoy: PathBuf,
    /// That of the version that Envoy Gateway itself names.
    pub(crate) envoy_1_39: PathBuf,
    /// The folder of the programs of [`KUBERNETES`].
    pub(crate) kubernetes: PathBuf,
    /// The folder of the files of [`CRDS`].
    pub(crate) crds: PathBuf,
}

/// Installs what is not there yet.
///
/// # Errors
/// No Python from 3.11 on with pip, no Go, no package registry, or no room.
pub(crate) fn install(root: &Path, cache: &Cache) -> anyhow::Result<Parts> {
    let installer = Installer::new(cache)?;
    let python = installer.environment("blackbox", &root.join("tests/requirements.txt"))?;
    let vllm_python = installer.environment("vllm-0.32", &root.join("tests/real/vllm-0.32.txt"))?;
    let models = models(root, cache, &vllm_python)?;
    let h2spec = go_program(root, cache, "h2spec", H2SPEC)?;
    let helm = go_program(root, cache, "helm", HELM)?;
    let envoy = installer.envoy(root)?;
    let envoy_1_39 = installer.envoy_of("envoy-1.39", &root.join("tests/kubernetes/envoy-1.39.txt"))?;
    let kubernetes = kubernetes(root, cache)?;
    let crds = crds(cache)?;
    Ok(Parts { python, vllm_python, models, h2spec, helm, envoy, envoy_1_39, kubernetes, crds })
}

/// Installs real Envoy alone; its program.
///
/// # Errors
/// As [`install`].
pub(crate) fn envoy(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    Installer::new(cache)?.envoy(root)
}

/// Installs what the Python tests import alone; their interpreter.
///
/// # Errors
/// As [`install`].
pub(crate) fn python(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    Installer::new(cache)?.environment("blackbox", &root.join("tests/requirements.txt"))
}

/// The path of the machine's Python.
fn base_python() -> anyhow::Result<String> {
    let script = "import sys; print(sys.executable); sys.exit(sys.version_info < (3, 11))";
    let path =
        stdout_of(Command::new("python3").args(["-c", script])).context("Python 3.11 or newer is needed")?;
    Ok(path.trim().to_owned())
}

/// pip puts one program into a folder of ours; the machine's own packages stay as they are.
fn make_uv(base: &str, folder: &Path) -> anyhow::Result<()> {
    let mut pip = Command::new(base);
    pip.args(["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--target"])
        .arg(folder)
        .arg(UV);
    must_succeed(&mut pip).context("pip is needed (Debian: apt-get install python3-pip)")
}

struct Installer<'a> {
    uv: PathBuf,
    base: String,
    cache: &'a Cache,
}

impl<'a> Installer<'a> {
    fn new(cache: &'a Cache) -> anyhow::Result<Self> {
        let base = base_python()?;
        let uv = cache.ensure(&Part {
            name: "uv",
            recipe: format!("{UV}\n{base}"),
            make: &|folder| make_uv(&base, folder),
        })?;
        Ok(Self { uv: uv.join("bin/uv"), base, cache })
    }

    fn envoy(&self, root: &Path) -> anyhow::Result<PathBuf> {
        self.envoy_of("programs", &root.join("tests/real/programs.txt"))
    }

    /// The Envoy that these requirements pin.
    fn envoy_of(&self, name: &'static str, requirements: &Path) -> anyhow::Result<PathBuf> {
        let python = self.environment(name, requirements)?;
        let script = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin/envoy')";
        Ok(PathBuf::from(stdout_of(Command::new(python).args(["-c", script]))?.trim()))
    }

    /// An environment with exactly what the requirements pin; its interpreter.
    fn environment(&self, name: &'static str, requirements: &Path) -> anyhow::Result<PathBuf> {
        let pinned = fs::read_to_string(requirements)
            .with_context(|| format!("{} cannot be read", requirements.display()))?;
        let make = |folder: &Path| {
            must_succeed(self.uv().args(["venv", "--quiet", "--python", &self.base]).arg(folder))?;
            must_succeed(self.uv().args(["pip", "sync", "--quiet", "--python"]).arg(folder).arg(requirements))
        };
        let recipe = format!("{}\n{pinned}", self.base);
        Ok(self.cache.ensure(&Part { name, recipe, make: &make })?.join("bin/python"))
    }

    fn uv(&self) -> Command {
        let mut uv = Command::new(&self.uv);
        uv.env("UV_CACHE_DIR", self.cache.path("uv-downloads")).env("UV_PYTHON_DOWNLOADS", "never");
        uv
    }
}

/// The tiny model and its adapters, made by the environment that serves them.
fn models(root: &Path, cache: &Cache, vllm_python: &Path) -> anyhow::Result<PathBuf> {
    let script = root.join("tests/real/make_models.py");
    let text = fs::read_to_string(&script).with_context(|| format!("{} cannot be read", script.display()))?;
    let make = |folder: &Path| {
        must_succeed(Command::new(vllm_python).arg(&script).arg(folder))?;
        ensure!(folder.join("tiny/config.json").exists(), "{} made no model", script.display());
        Ok(())
    };
    cache.ensure(&Part { name: "models", recipe: text, make: &make })
}

/// A program, built by Go from what tests/NAME pins.
fn go_program(root: &Path, cache: &Cache, name: &'static str, package: &str) -> anyhow::Result<PathBuf> {
    let module = Module::new(root.join("tests").join(name))?;
    let make = |folder: &Path| {
        let scratch = Scratch::new(cache)?;
        module.build(package, "-s -w", &folder.join(name), &scratch)
    };
    Ok(cache.ensure(&Part { name, recipe: module.recipe.clone(), make: &make })?.join(name))
}

/// The API server and what belongs to it, built by Go from what tests/kubernetes pins: some minutes the first time. The
/// folder of the programs.
///
/// # Errors
/// No Go, no module registry, or no room.
pub(crate) fn kubernetes(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    let module = Module::new(root.join("tests/kubernetes"))?;
    let make = |folder: &Path| {
        let flags = module.kubernetes_flags()?;
        let scratch = Scratch::new(cache)?;
        let build =
            |(name, package): &(&str, &str)| module.build(package, &flags, &folder.join(name), &scratch);
        KUBERNETES.iter().try_for_each(build)
    };
    cache.ensure(&Part { name: "kubernetes", recipe: module.recipe.clone(), make: &make })
}

/// The OpenAPI document of the Kubernetes that tests/kubernetes pins.
///
/// # Errors
/// No Go, or no module registry.
pub(crate) fn openapi(root: &Path) -> anyhow::Result<PathBuf> {
    let module = Module::new(root.join("tests/kubernetes"))?;
    must_succeed(module.command().args(["mod", "download", "k8s.io/kubernetes"]))?;
    let folder = stdout_of(module.command().args([
        "list",
        "-mod=readonly",
        "-m",
        "-f",
        "{{.Dir}}",
        "k8s.io/kubernetes",
    ]))?;
    Ok(Path::new(folder.trim()).join("api/openapi-spec/swagger.json"))
}

/// The CRDs of the inference extension as upstream published them.
fn crds(cache: &Cache) -> anyhow::Result<PathBuf> {
    let go = go()?;
    let make = |folder: &Path| {
        fs::create_dir_all(folder)?;
        CRDS.iter().try_for_each(|(version, checksum, files)| {
            let mut download = Command::new(&go);
            download.args(["mod", "download", "-json", &format!("{EXTENSION}@{version}")]);
            let told = stdout_of(&mut download)?;
            let of = |key: &str| {
                let line = told.lines().find_map(|line| line.trim().strip_prefix(&format!("\"{key}\": \"")));
                line.and_then(|rest| rest.split('"').next()).context("Go tells of the module in JSON")
            };
            let (came, source) = (of("Sum")?, Path::new(of("Dir")?).join("config/crd/bases"));
            ensure!(came == *checksum, "{EXTENSION}@{version} is {came}, and {checksum} is pinned");
            for file in *files {
                fs::write(folder.join(file), fs::read(source.join(file))?)?;
            }
            Ok(())
        })
    };
    cache.ensure(&Part { name: "kubernetes-crds", recipe: format!("{CRDS:?}"), make: &make })
}

/// What Go keeps of a build, some gigabytes that nobody needs again; gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(cache: &Cache) -> anyhow::Result<Self> {
        let folder = cache.path(&format!("go-build-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it is only in the way.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A folder with a go.mod that pins what is built from it.
struct Module {
    folder: PathBuf,
    go: PathBuf,
    /// Go's version, what is pinned, and the module's own program where it has one.
    recipe: String,
}

impl Module {
    fn new(folder: PathBuf) -> anyhow::Result<Self> {
        let go = go()?;
        let mut recipe = stdout_of(Command::new(&go).arg("version"))?;
        for name in ["go.mod", "go.sum"] {
            let file = folder.join(name);
            recipe +=
                &fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        }
        // Most modules only name what others published.
        recipe += &fs::read_to_string(folder.join("main.go")).unwrap_or_default();
        Ok(Self { folder, go, recipe })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.go);
        command.current_dir(&self.folder).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
        command
    }

    fn build(
        &self,
        package: &str,
        linker_flags: &str,
        program: &Path,
        scratch: &Scratch,
    ) -> anyhow::Result<()> {
        self.make(&["build"], package, linker_flags, program, scratch)
    }

    /// A program that runs the package's tests.
    fn build_tests(&self, package: &str, program: &Path, scratch: &Scratch) -> anyhow::Result<()> {
        self.make(&["test", "-c"], package, "-s -w", program, scratch)
    }

    fn make(
        &self,
        how: &[&str],
        package: &str,
        linker_flags: &str,
        program: &Path,
        scratch: &Scratch,
    ) -> anyhow::Result<()> {
        let mut build = self.command();
        build.env("GOCACHE", &scratch.0).args(how).args([
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            linker_flags,
            "-o",
        ]);
        must_succeed(build.arg(program).arg(package))
    }

    /// The linker's, with what Kubernetes' programs say of themselves; kubectl compares it with the server's.
    fn kubernetes_flags(&self) -> anyhow::Result<String> {
        let version = self.version("k8s.io/kubernetes")?;
        let minor = version.split('.').nth(1).context("a version has a minor part")?;
        let said = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].map(|package| {
            format!("-X {package}.gitVersion={version} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}")
        });
        Ok(format!("-s -w {}", said.join(" ")))
    }

    fn version(&self, module: &str) -> anyhow::Result<String> {
        let version =
            stdout_of(self.command().args(["list", "-mod=readonly", "-m", "-f", "{{.Version}}", module]))?;
        Ok(version.trim().to_owned())
    }
}

/// The machine's Go: by name, else where its own installer puts it.
fn go() -> anyhow::Result<PathBuf> {
    let found = ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|go| Command::new(go).arg("version").output().is_ok_and(|output| output.status.success()));
    found.map(PathBuf::from).context("Go is needed (https://go.dev/dl, or Debian: apt-get install golang)")
}
