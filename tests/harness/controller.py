"""`pointsman controller` as a process."""

import re
import subprocess
import time
from pathlib import Path

import httpx

from harness.pointsman import Pointsman, command

READY = re.compile(r"ready metrics=(\S+:\d+) extension=(\S+:\d+)\n")


class Controller(Pointsman):
    """One controller, told where the API server is."""

    def __init__(self, folder: Path, kubeconfig: object, gateway_namespace: str, *arguments: object) -> None:
        self.log_file = folder / f"controller-{time.monotonic_ns()}.log"
        named = ("--kubeconfig", kubeconfig, "--gateway-namespace", gateway_namespace, "--metrics-port", "0")
        named += () if "--extension-port" in arguments else ("--extension-port", "0")
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command("controller", "--bind", "127.0.0.1", *named, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        line = self._first_line()
        ready = READY.fullmatch(line)
        assert ready, f"it is not ready: {line!r}\n{self.log()}"
        self.admin, self.extension = f"http://{ready.group(1)}", ready.group(2)
        self.client = httpx.Client(base_url=self.admin, timeout=30, trust_env=False)

    def standing(self) -> str:
        """`waits`, `lists` or `leads`."""
        return self.admin_get("/state").json()["standing"]

    def is_listed(self) -> bool:
        """Whether it leads and has seen everything once."""
        return self.standing() == "leads"
