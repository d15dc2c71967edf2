"""Fixtures of all tests: programs and servers that are gone when the test is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.manifests import PoolFile
from harness.pointsman import BINARY, Pointsman
from harness.upstream import Upstream


@pytest.fixture(scope="session", autouse=True)
def binary() -> None:
    assert BINARY.exists(), f"{BINARY} is missing: `cargo build` makes it, POINTSMAN_BIN names another"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pointsman]]:
    """Starts `pointsman up` with the arguments given."""
    started: list[Pointsman] = []

    def start(*arguments: object) -> Pointsman:
        started.append(Pointsman(tmp_path, *arguments))
        return started[-1]

    yield start
    for pointsman in started:
        pointsman.close()


@pytest.fixture
def upstreams() -> Iterator[Callable[..., list[Upstream]]]:
    """Starts that many fake model servers, all with the options given."""
    made: list[Upstream] = []

    def upstreams(count: int, **options: object) -> list[Upstream]:
        new = [Upstream(**options).up() for _ in range(count)]
        made.extend(new)
        return new

    yield upstreams
    for upstream in made:
        upstream.down()


@pytest.fixture
def pool_file(tmp_path: Path) -> Callable[..., PoolFile]:
    """Writes a manifest file with one pool and the servers given."""

    def pool_file(servers: list[Upstream], annotations: dict[str, str] | None = None) -> PoolFile:
        return PoolFile(tmp_path / "pool.yaml", servers, annotations)

    return pool_file
