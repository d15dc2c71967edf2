"""Waiting for something to become true, with a deadline."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

IN_FORCE_S = 1.0
"""A change is in force within this time of the write: the contract."""


def until(probe: Callable[[], T], *, within: float, what: str) -> T:
    """Asks `probe` until it gives something true, and returns that. `what` tells in a failure what was waited for."""
    deadline = time.monotonic() + within
    while True:
        # Looks once more after the deadline: a slow machine is not a failure.
        late = time.monotonic() > deadline
        found = probe()
        if found:
            return found
        assert not late, f"not within {within} s: {what}"
        time.sleep(0.02)


def holds(probe: Callable[[], object], *, over: float, what: str) -> None:
    """Asserts that `probe` stays true for that long."""
    deadline = time.monotonic() + over
    while time.monotonic() < deadline:
        assert probe(), f"did not hold: {what}"
        time.sleep(0.02)


def is_refused(address: str) -> bool:
    """Whether nobody listens at this `host:port` or URL. A listener that closes at that moment answers with a reset."""
    host, port = address.split("://")[-1].rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False
