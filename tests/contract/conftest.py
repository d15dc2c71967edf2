"""Fixtures: programs and servers that are gone when their test is."""

import pytest

from contract.harness import PoolFile, Pointsman, Upstream, eventually


@pytest.fixture
def up():
    """Starts `pointsman up` with the arguments given."""
    started = []

    def up(*arguments):
        started.append(Pointsman(*arguments))
        return started[-1]

    yield up
    for pointsman in started:
        pointsman.stop()


@pytest.fixture
def servers():
    """Starts so many fake model servers, all with the options given."""
    started = []

    def servers(count, **options):
        new = [Upstream(**options) for _ in range(count)]
        started.extend(new)
        return new

    yield servers
    for server in started:
        server.stop()


@pytest.fixture
def pool(tmp_path, up, servers):
    """Writes a pool's file and starts the gateway on it: (pointsman, file, servers)."""

    def pool(count=3, annotations=None, version="v1", **options):
        made = servers(count, **options)
        file = PoolFile(tmp_path / "pool.yaml", made, annotations, version)
        pointsman = up("-f", file.path)
        for server in made:
            eventually(lambda: server.scrapes)
        return pointsman, file, made

    return pool
