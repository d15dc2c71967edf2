"""The node that `cargo xtask cluster up` starts; these tests start none."""

import time
from collections.abc import Callable, Iterator

import pytest

from harness.node import Node


@pytest.fixture(scope="session", autouse=True)
def binary() -> None:
    """None is needed: what runs here runs in pods."""


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


@pytest.fixture
def soon() -> Callable[[Callable[[], object], object], None]:
    """Waits until a question has that answer: proxies hear of a Service or a route a moment after its object says so."""

    def soon(question: Callable[[], object], answer: object) -> None:
        until = time.monotonic() + 30
        while (got := question()) != answer:
            assert time.monotonic() < until, f"{got!r} after 30 s, and not {answer!r}"
            time.sleep(0.1)

    return soon
