"""Honest clients who ask while somebody attacks, and an eye on the memory of the one attacked."""

import threading
import time
from types import TracebackType

import httpx

from harness.pointsman import Pointsman
from harness.traffic import Traffic

SLOWEST_S_MAX = 20
"""No honest request may take longer. Far above what it takes at rest: attackers, clients, servers and the gateway share few cores."""


class Bystander:
    """From `with` to its end two clients ask again and again. At the end: each was answered with 200 and in time, and resident memory
    never grew by more than `growth_bytes_max`."""

    def __init__(
        self, pointsman: Pointsman, *, growth_bytes_max: int, requests: int = 10, slowest_s_max: float = SLOWEST_S_MAX
    ) -> None:
        self._pointsman = pointsman
        self._growth_bytes_max = growth_bytes_max
        self._requests = requests
        self._slowest_s_max = slowest_s_max
        self._traffic = Traffic(self._ask, clients=2)
        self._over = threading.Event()
        self._eye = threading.Thread(target=self._look)
        self.slowest_s = 0.0

    def __enter__(self) -> "Bystander":
        # What the first requests need is not the attack's.
        for _ in range(20):
            assert self._pointsman.complete().status_code == 200
        self.before_bytes = self.peak_bytes = self._pointsman.rss_bytes()
        self._eye.start()
        self._traffic.__enter__()
        self._traffic.more(self._requests)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._traffic.more(self._requests)
        finally:
            self._traffic.stop()
            self._over.set()
            self._eye.join()
        if kind is None:
            self._traffic.assert_unharmed()
            print(f"memory grew by {self.growth_bytes / 1e6:.1f} MB, slowest honest request {self.slowest_s:.2f} s")
            assert self.slowest_s < self._slowest_s_max
            assert self.growth_bytes < self._growth_bytes_max, f"{self.growth_bytes / 1e6:.1f} MB more at the peak"

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes

    def _ask(self, _number: int) -> httpx.Response:
        begin = time.monotonic()
        answer = self._pointsman.complete()
        self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
        time.sleep(0.01)
        return answer

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, self._pointsman.rss_bytes())
