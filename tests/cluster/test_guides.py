"""docs/guides: each page's commands are run as its reader runs them, and what it says they print is compared.

The ```sh blocks of a page are one bash session, in order. A ```text block after one is what it prints, all of it, line by line; `…` stands for
anything within a line.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = sorted(page.stem for page in GUIDES.glob("*.md") if page.stem != "README")
LONGEST_S = 280
# What a reader needs; the session finds nothing else.
PROGRAMS = ["awk", "cat", "curl", "grep", "head", "mktemp", "rm", "seq", "sleep", "sort", "uniq", "wc"]
# Before the output of a step: where on the page it begins.
MARK = "\x1e"


class Malformed(Exception):
    """A page that would be tested in part only."""


@dataclass
class Step:
    line: int
    commands: list[str] = field(default_factory=list)
    expected: list[str] | None = None


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    block: list[str] | None = None
    # Whether an expected output may follow: nothing but empty lines stands between.
    after_commands = False
    for number, line in enumerate(page.splitlines(), 1):
        fence = re.match(r"\s*(```|~~~)", line)
        if block is not None and not fence:
            block.append(line)
        elif block is not None:
            block = None
        elif not fence:
            after_commands = after_commands and not line.strip()
        elif line == "```sh":
            found.append(Step(number))
            block, after_commands = found[-1].commands, True
        elif line == "```text":
            if not after_commands:
                raise Malformed(f"line {number}: an expected output without commands before it")
            block = found[-1].expected = []
            after_commands = False
        elif line == "```yaml":
            block, after_commands = [], False
        else:
            raise Malformed(f"line {number}: a block is sh, text or yaml, and begins at the margin")
    if block is not None:
        raise Malformed("the last block has no end")
    if not any(step.commands for step in found):
        raise Malformed("no commands")
    return found


def namespace(steps: list[Step]) -> str:
    """The one that the page makes first and deletes last."""
    first, last = steps[0].commands[0], steps[-1].commands[-1]
    name = first.removeprefix("kubectl create namespace ")
    if name == first or last != f"kubectl delete namespace {name}":
        raise Malformed("its first command makes a namespace, its last deletes it")
    return name


def script(page: str, steps: list[Step]) -> str:
    """The session. Its lines have the numbers that they have on the page, so that bash tells where it failed."""
    lines = ["trap 'echo \"line $LINENO: $BASH_COMMAND\" >&2' ERR"] + [""] * len(page.splitlines())
    for step in steps:
        lines[step.line - 1] = f"printf '\\036{step.line}\\n'"
        lines[step.line : step.line + len(step.commands)] = step.commands
    return "\n".join(lines)


def outputs(stdout: str) -> dict[int, list[str]]:
    """By the line at which the step begins."""
    parts = (part.partition("\n") for part in stdout.split(MARK)[1:])
    return {int(line): [line.rstrip() for line in output.splitlines()] for line, _, output in parts}


def agrees(expected: list[str], printed: list[str]) -> bool:
    patterns = [".*".join(map(re.escape, line.rstrip().split("…"))) for line in expected]
    return len(patterns) == len(printed) and all(map(re.fullmatch, patterns, printed))


@pytest.fixture
def kubectl() -> str:
    for needed in ("KUBECONFIG", "KUBECTL"):
        assert needed in os.environ, f"{needed} is not set; `cargo xtask cluster up` prints it"
    return os.environ["KUBECTL"]


@pytest.fixture
def environment(tmp_path: Path, kubectl: str) -> dict[str, str]:
    """A shell's, with the programs of a reader alone."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        path = shutil.which(name)
        assert path, f"{name} is not installed"
        (programs / name).symlink_to(path)
    (programs / "kubectl").symlink_to(kubectl)
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**own, "PATH": str(programs)}


@pytest.fixture
def gone(kubectl: str) -> Iterator[list[str]]:
    """Namespaces that are deleted when the test is over, however it ended."""
    names: list[str] = []
    yield names
    for name in names:
        subprocess.run([kubectl, "delete", "namespace", name, "--ignore-not-found", "--wait=false"], check=True, timeout=60)


@pytest.mark.timeout(LONGEST_S + 60)
@pytest.mark.parametrize("name", PAGES)
def test_a_guide_does_what_it_says(name, tmp_path, environment, gone):
    page = (GUIDES / f"{name}.md").read_text()
    told = steps(page)
    gone.append(namespace(told))
    session = tmp_path / f"{name}.md"
    session.write_text(script(page, told))
    # Files and not pipes: what the session leaves behind would hold those open.
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        bash = subprocess.Popen(
            ["/bin/bash", "-O", "inherit_errexit", "-euo", "pipefail", session],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        try:
            ended = str(bash.wait(LONGEST_S))
        except subprocess.TimeoutExpired:
            ended = f"after {LONGEST_S} s"
        finally:
            if bash.poll() is None:
                os.killpg(bash.pid, signal.SIGKILL)
                bash.wait()
    printed = outputs((tmp_path / "stdout").read_text())
    errors = (tmp_path / "stderr").read_text()
    last = max(printed, default=0)
    assert ended == "0", f"docs/guides/{name}.md: ended {ended} in the commands of line {last}:\n{printed.get(last)}\n{errors}"
    for step in told:
        if step.expected is not None and not agrees(step.expected, printed[step.line]):
            expected, got = "\n".join(step.expected), "\n".join(printed[step.line])
            pytest.fail(f"docs/guides/{name}.md:{step.line} says\n{expected}\nand it printed\n{got}\n{errors}")


def test_there_are_guides_and_the_index_names_each():
    assert PAGES
    index = (GUIDES / "README.md").read_text()
    assert sorted(set(re.findall(r"\]\(([a-z-]+)\.md\)", index))) == PAGES


@pytest.mark.parametrize(
    "page",
    [
        "# Title\nProse.\n",
        "# Title\n```sh\n```\n",
        "# Title\n```bash\ntrue\n```\n",
        "# Title\n- a list\n  ```sh\n  true\n  ```\n",
        "# Title\n```sh\ntrue\n",
        "# Title\n```text\noutput\n```\n",
        "# Title\n```sh\ntrue\n```\nProse.\n```text\noutput\n```\n",
        "# Title\n```sh\ntrue\n```\n```yaml\na: b\n```\n```text\noutput\n```\n",
    ],
)
def test_a_page_that_would_be_tested_in_part_is_refused(page):
    with pytest.raises(Malformed):
        steps(page)


def test_steps_keep_their_lines_and_their_outputs():
    page = "# Title\n```sh\na=1\n```\nProse.\n```sh\necho $a\necho b\n```\n\n```text\n1\nb\n```\n"
    told = steps(page)
    assert told == [Step(2, ["a=1"]), Step(6, ["echo $a", "echo b"], ["1", "b"])]
    ran = subprocess.run(["/bin/bash", "-eu"], input=script(page, told), capture_output=True, text=True, check=True)
    assert outputs(ran.stdout) == {2: [], 6: ["1", "b"]}


@pytest.mark.parametrize(
    "expected, printed, agree",
    [
        (["a … c"], ["a b c"], True),
        (["a … c"], ["a b d"], False),
        (["…"], ["a", "b"], False),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["a.c"], ["abc"], False),
        ([], ["a"], False),
        ([], [], True),
    ],
)
def test_an_expected_output_is_all_of_the_output(expected, printed, agree):
    assert agrees(expected, printed) is agree
