"""The fault-injecting TCP proxy (`bench/src/bin/faults.rs`) between two sides of a test."""

import os
import subprocess
from pathlib import Path

import httpx

from harness.pointsman import BINARY

PROXY = Path(os.environ.get("POINTSMAN_FAULTS", BINARY.parent / "faults"))
Rule = dict[str, object]


class Faults:
    """One process with a door for each target. The rules are explained where the proxy is."""

    def __init__(self, *targets: str, seed: int = 0) -> None:
        assert PROXY.exists(), f"{PROXY} is missing: `cargo build -p bench --bin faults` makes it"
        words = [word for target in targets for word in ("--to", target)]
        command = ["setpriv", "--pdeathsig", "KILL", str(PROXY), "--seed", str(seed), *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        ready = dict(word.split("=") for word in self._process.stdout.readline().split()[1:])
        self.addresses = ready["routes"].split(",")
        self._admin = httpx.Client(base_url=f"http://{ready['admin']}", trust_env=False)

    def rules(self, *rules: Rule) -> None:
        """In force for connections made from now on: those that are open are reset, so that none is older."""
        self._admin.put("/rules", json=list(rules)).raise_for_status()
        self._admin.delete("/connections").raise_for_status()

    def met(self) -> int:
        """How many faults have been met."""
        return self._admin.get("/").json()["met"]

    def close(self) -> None:
        self._admin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def rule(way: str, at: int | list[int], does: str | dict[str, int], **more: object) -> Rule:
    """A rule for connections that carry generation requests; scrapes are spared."""
    return {"way": way, "at": at, "does": does, "first": "POST", **more}
