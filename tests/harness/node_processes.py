"""The processes of a node that runs on this machine: what dies without being asked is killed, not deleted."""

import os
import signal
import subprocess
import time
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
def api_server_away() -> Iterator[None]:
    """No API server answers within the block: killed, and started again as it was."""
    pid_file = RUN / "pid/kube-apiserver"
    process = int(pid_file.read_text())
    command = Path(f"/proc/{process}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    environment = dict(line.split("=", 1) for line in Path(f"/proc/{process}/environ").read_bytes().decode().split("\0") if "=" in line)
    network = f"/proc/{process}/ns/net"
    # Held open: the namespace is found by it when the process is gone.
    held = os.open(network, os.O_RDONLY)
    try:
        os.kill(process, signal.SIGKILL)
        until = time.monotonic() + 10
        while Path(f"/proc/{process}/exe").exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield
    finally:
        with open(RUN / "log/kube-apiserver.log", "ab") as log:
            started = subprocess.Popen(
                ["nsenter", f"--net=/proc/self/fd/{held}", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(held,),
            )
        pid_file.write_text(f"{started.pid}\n")
        os.close(held)
