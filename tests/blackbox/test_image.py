"""`cargo xtask image`: read as a stranger reads it, and its program run with nothing else in the root (docs/image.md)."""

import hashlib
import io
import json
import re
import shlex
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from harness.pointsman import READY, ROOT, Pointsman

# Compiling what is shipped takes its time where nothing of it is compiled yet; a test has the usual time beside that.
pytestmark = pytest.mark.timeout(120, func_only=True)
MAKE_S_MAX = 3600

VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
FOLDER = ROOT / "target/image/dev"

# What a container runtime does, as far as the program can tell: a root of its own, the user, and no environment.
CONTAINER = """
import ctypes, os, signal, sys
libc, (root, user) = ctypes.CDLL(None), sys.argv[1:3]
os.chroot(root)
os.chdir("/")
os.setgroups([])
os.setgid(int(user.split(":")[1]))
os.setuid(int(user.split(":")[0]))
PR_SET_PDEATHSIG = 1
libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.execve(sys.argv[3], sys.argv[3:], {})
"""


@dataclass
class Image:
    """An archive, followed from its index to its only layer."""

    files: dict[str, bytes]
    reference: dict
    manifest: dict
    config: dict
    layer: bytes

    @classmethod
    def read(cls, archive: bytes) -> "Image":
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        (reference,) = json.loads(files["index.json"])["manifests"]
        manifest = json.loads(blob(files, reference))
        (layer,) = manifest["layers"]
        return cls(files, reference, manifest, json.loads(blob(files, manifest["config"])), blob(files, layer))

    def program(self) -> tuple[tarfile.TarInfo, bytes]:
        """The only file."""
        with tarfile.open(fileobj=io.BytesIO(self.layer)) as tar:
            (member,) = tar.getmembers()
            return member, tar.extractfile(member).read()

    def command(self, root: Path, *arguments: object) -> list[str]:
        start = [*self.config["config"]["Entrypoint"], *map(str, arguments)]
        return [sys.executable, "-c", CONTAINER, str(root), self.config["config"]["User"], *start]


def blob(files: dict[str, bytes], descriptor: dict) -> bytes:
    """What a descriptor leads to, if it is what it says."""
    algorithm, digest = descriptor["digest"].split(":")
    content = files[f"blobs/{algorithm}/{digest}"]
    assert (sha256(content), len(content)) == (digest, descriptor["size"])
    return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Contained(Pointsman):
    """`pointsman up` in the image's root."""

    def __init__(self, image: Image, root: Path, folder: Path, *arguments: object) -> None:
        self.log_file = folder / f"pointsman-{time.monotonic_ns()}.log"
        listen = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                image.command(root, "up", *listen, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        ready = READY.fullmatch(self._first_line())
        assert ready, f"it is not ready:\n{self.log()}"
        self.gateway, self.admin = ready.groups()
        self.client = httpx.Client(base_url=self.gateway, timeout=30, trust_env=False)


def make() -> None:
    command = ["cargo", "xtask", "image", "--profile", "dev"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MAKE_S_MAX)
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.fixture(scope="module")
def archive() -> bytes:
    usual = ROOT / "target/debug/pointsman"
    before = usual.stat() if usual.exists() else None
    make()
    after = usual.stat() if usual.exists() else None
    assert (before and (before.st_ino, before.st_mtime_ns)) == (after and (after.st_ino, after.st_mtime_ns))
    return (FOLDER / f"pointsman-{VERSION}.tar").read_bytes()


@pytest.fixture(scope="module")
def image(archive: bytes) -> Image:
    return Image.read(archive)


@pytest.fixture(scope="module")
def materials(archive: bytes) -> str:
    return (FOLDER / f"pointsman-{VERSION}.cdx.json").read_text()


@pytest.fixture
def root(image: Image, tmp_path: Path) -> Path:
    """The layer, unpacked."""
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    member, program = image.program()
    (root / member.name).write_bytes(program)
    (root / member.name).chmod(member.mode)
    return root


@pytest.fixture
def contain(image: Image, root: Path, tmp_path: Path) -> Iterator[Callable[..., Contained]]:
    """Starts `pointsman up` in the root with the arguments given."""
    started: list[Contained] = []

    def contain(*arguments: object) -> Contained:
        started.append(Contained(image, root, tmp_path, *arguments))
        return started[-1]

    yield contain
    for pointsman in started:
        pointsman.close()


def test_it_holds_the_program_and_nothing_else(image):
    member, program = image.program()
    assert (member.name, member.isreg(), member.mode, member.uid, member.gid) == ("pointsman", True, 0o755, 0, 0)
    assert program == (FOLDER / "pointsman").read_bytes()
    assert image.config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{sha256(image.layer)}"]}
    assert (image.config["os"], image.config["architecture"]) == ("linux", "amd64")


def test_both_of_its_formats_lead_to_the_same(image):
    (docker,) = json.loads(image.files["manifest.json"])
    digests = [image.manifest["config"]["digest"], *(layer["digest"] for layer in image.manifest["layers"])]
    assert [docker["Config"], *docker["Layers"]] == [f"blobs/{digest.replace(':', '/')}" for digest in digests]
    assert docker["RepoTags"] == [f"pointsman:{VERSION}"]
    assert image.reference["annotations"]["io.containerd.image.name"] == f"docker.io/library/pointsman:{VERSION}"
    paths = {f"blobs/{digest.replace(':', '/')}" for digest in [image.reference["digest"], *digests]}
    assert set(image.files) == {"oci-layout", "index.json", "manifest.json", *paths}


def test_it_says_what_it_is(image):
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    labels = image.config["config"]["Labels"]
    assert labels.pop("org.opencontainers.image.revision") in (revision, f"{revision}-dirty")
    assert labels == {
        "org.opencontainers.image.title": "pointsman",
        "org.opencontainers.image.version": VERSION,
        "org.opencontainers.image.licenses": "Apache-2.0",
    }


def test_the_same_source_makes_the_same_bytes(archive, materials):
    make()
    assert (FOLDER / f"pointsman-{VERSION}.tar").read_bytes() == archive
    assert (FOLDER / f"pointsman-{VERSION}.cdx.json").read_text() == materials


def test_the_program_runs_with_nothing_else_in_its_root(image, root):
    outcome = subprocess.run(image.command(root, "--version"), capture_output=True, text=True, timeout=30)
    assert (outcome.returncode, outcome.stdout) == (0, f"pointsman {VERSION}\n"), outcome.stderr


def test_it_serves_as_the_images_user(image, contain):
    pointsman = contain("--sim", 1)
    user, group = image.config["config"]["User"].split(":")
    status = Path(f"/proc/{pointsman.process.pid}/status").read_text()
    assert re.search(r"^Uid:\s+(.*)$", status, re.M).group(1).split() == [user] * 4
    assert re.search(r"^Gid:\s+(.*)$", status, re.M).group(1).split() == [group] * 4
    answer = pointsman.chat(model=pointsman.client.get("/v1/models").json()["data"][0]["id"])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_it_finds_servers_by_etc_hosts(contain, root, upstreams):
    (server,) = upstreams(1)
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("127.0.0.1 engine.test\n")
    pointsman = contain("--endpoint", f"engine.test:{server.port}")
    assert pointsman.complete().status_code == 200


def test_it_finds_servers_by_dns_as_a_pod_does(contain, root, upstreams):
    (server,) = upstreams(1)
    (root / "etc").mkdir()
    with names({"engine.models.svc.cluster.local": "127.0.0.1"}) as nameserver:
        search = "search models.svc.cluster.local svc.cluster.local cluster.local"
        (root / "etc/resolv.conf").write_text(f"{search}\nnameserver {nameserver}\noptions ndots:5\n")
        pointsman = contain("--endpoint", f"engine:{server.port}")
        assert pointsman.complete().status_code == 200


def test_the_bill_of_materials_is_cyclonedx(materials):
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(materials) is None


def test_the_bill_of_materials_is_of_this_program(image, materials):
    bill = json.loads(materials)
    whole = bill["metadata"]["component"]
    assert (whole["name"], whole["version"]) == ("pointsman", VERSION)
    assert whole["hashes"] == [{"alg": "SHA-256", "content": sha256(image.program()[1])}]
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
    for part in bill["components"]:
        checksum = checksums[part["name"], part["version"]]
        kind = "cargo" if checksum else "generic"
        assert part["purl"] == part["bom-ref"] == f"pkg:{kind}/{part['name']}@{part['version']}"
        assert part.get("hashes") == ([{"alg": "SHA-256", "content": checksum}] if checksum else None)
        assert part["licenses"][0]["expression"]


def test_the_bill_of_materials_names_what_is_linked_and_no_more(materials):
    bill = json.loads(materials)
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    found, left = set(), [bill["metadata"]["component"]["bom-ref"]]
    while left:
        reference = left.pop()
        if reference not in found:
            found.add(reference)
            left.extend(needs[reference])
    assert found == set(needs)
    assert found == {part["bom-ref"] for part in [bill["metadata"]["component"], *bill["components"]]}
    parts = {part["name"] for part in bill["components"]}
    assert parts >= {"director", "operator", "tokio", "rustls", "ring", "kube", "libmimalloc-sys", "serde"}
    while_compiling = {"cc", "syn", "quote", "proc-macro2", "serde_derive", "clap_derive", "tokio-macros", "autocfg"}
    of_tests = {"bench", "xtask", "proptest", "insta", "tempfile", "turmoil", "divan", "cyclonedx-bom"}
    assert not parts & (while_compiling | of_tests)


def test_the_dockerfile_makes_the_same_image(image):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    (builder, scratch) = [at for at, (word, _) in enumerate(lines) if word == "FROM"]
    channel = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    assert re.fullmatch(rf"rust:{re.escape(channel)}-\S+ AS builder", lines[builder][1])
    assert lines[scratch][1] == "scratch"
    final = dict(lines[scratch + 1 :])
    config = image.config["config"]
    assert set(final) == {"ARG", "LABEL", "COPY", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT"}
    assert (final["USER"], final["WORKDIR"]) == (config["User"], config["WorkingDir"])
    assert json.loads(final["ENTRYPOINT"]) == config["Entrypoint"]
    assert set(final["EXPOSE"].split()) == set(config["ExposedPorts"])
    labels = dict(label.split("=", 1) for label in shlex.split(final["LABEL"]))
    revision = "org.opencontainers.image.revision"
    assert labels.pop(revision) == "${REVISION}"
    assert labels == {key: value for key, value in config["Labels"].items() if key != revision}
    *flags, _, to = final["COPY"].split()
    assert (flags, to) == (["--from=builder", "--chown=0:0", "--chmod=0755"], "/pointsman")


@contextmanager
def names(addresses: dict[str, str]) -> Iterator[str]:
    """A name server on port 53 of an address that nobody else has; it knows these names and no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.77.0.53", 53))
        server.settimeout(0.2)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    query, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                server.sendto(dns_answer(query, addresses), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield "127.77.0.53"
        finally:
            over.set()
            thread.join()


def dns_answer(query: bytes, addresses: dict[str, str]) -> bytes:
    """RFC 1035: the header, the question again, and an address where the name has one and it is asked for."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    question = query[12 : at + 5]
    (kind,) = struct.unpack("!H", question[-4:-2])
    address = addresses.get(".".join(labels).lower())
    answer = b""
    if address and kind == 1:
        answer = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address)
    flags = 0x8180 if address else 0x8183
    return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if answer else 0, 0, 0) + question + answer
