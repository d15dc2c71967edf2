"""The processes of a node that runs on this machine: what dies without being asked is killed, not deleted."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUN = Path(os.environ.get("POINTSMAN_CLUSTER_RUN", Path.home() / ".cache/pointsman/cluster-run"))


def of_pod(pod: dict) -> list[int]:
    """The processes of a pod's containers; kubelet puts each pod below a cgroup with its uid in the name."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if pod["metadata"]["uid"] in (folder / "cgroup").read_text() and (folder / "comm").read_text() != "pause\n":
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def kill(pods: list[dict], how: signal.Signals = signal.SIGKILL) -> None:
    processes = [process for pod in pods for process in of_pod(pod)]
    assert processes, "no process of these pods is on this machine"
    for process in processes:
        os.kill(process, how)


@contextmanager
def control_plane_away() -> Iterator[None]:
    """No API server answers within the block: killed, and started again as it was. With it go those that lead by a Lease where control planes
    are as in production, and end when they cannot renew it: one that outlived it would take every node for lost at its return."""
    daemons = [Daemon(name) for name in ("kube-controller-manager", "kube-scheduler", "kube-apiserver")]
    for daemon in daemons:
        daemon.kill()
    try:
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.start()


class Daemon:
    """A program that tests/cluster/node.sh started, and how."""

    def __init__(self, name: str) -> None:
        self._name = name
        process = int(self._pid_file.read_text())
        words = lambda file: Path(f"/proc/{process}/{file}").read_bytes().decode().rstrip("\0").split("\0")
        self._process, self._command = process, words("cmdline")
        self._environment = dict(word.split("=", 1) for word in words("environ") if "=" in word)
        # Held open: the network namespace is found by it when the process is gone.
        self._network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)

    @property
    def _pid_file(self) -> Path:
        return RUN / "pid" / self._name

    def kill(self) -> None:
        os.kill(self._process, signal.SIGKILL)

    def start(self) -> None:
        with open(RUN / f"log/{self._name}.log", "ab") as log:
            started = subprocess.Popen(
                ["nsenter", f"--net=/proc/self/fd/{self._network}", *self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(self._network,),
            )
        self._pid_file.write_text(f"{started.pid}\n")
        os.close(self._network)
