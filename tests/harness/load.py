"""Requests all the while something changes."""

import threading
from collections import Counter
from collections.abc import Callable


class Load:
    """Asks, four at once, until the block ends; how each ended."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.outcomes: Counter = Counter()
        self._ask, self._over = ask, threading.Event()

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def _run(self) -> None:
        while not self._over.is_set():
            self.outcomes[self._ask()] += 1

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
