"""Clients that ask all the time, for tests of what changes while they do."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from harness.upstream import Upstream
from harness.wait import until


class Traffic:
    """Clients in threads, each asking again as soon as it has its answer, from `with` to its end. Every answer must be a 200."""

    def __init__(self, ask: Callable[[int], httpx.Response], clients: int = 4) -> None:
        self.ask = ask
        self.answered = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._count = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, requests: int = 20) -> None:
        """Waits until that many more are answered: begun, most of them, after this call."""
        goal = self.answered + requests + len(self._threads)
        deadline = time.monotonic() + 20
        while self.answered < goal and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.answered >= goal, f"traffic stands still; failures: {self.failures[:5]}"

    def assert_unharmed(self) -> None:
        """Ends it: something was asked, nothing failed."""
        self.stop()
        assert not self.failures, f"{len(self.failures)} of {self.answered}: {self.failures[:5]}"
        assert self.answered > 0

    def _client(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                answer = self.ask(number)
                failure = None if answer.status_code == 200 else f"{answer.status_code}: {answer.text[:300]}"
            except httpx.HTTPError as error:
                failure = repr(error)
            with self._count:
                self.answered += 1
                if failure:
                    self.failures.append(failure)


def burst(servers: list[Upstream], asks: list[Callable[[], httpx.Response]], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Asks all at the same moment, one thread each. No server answers until all requests are in flight and `meanwhile` is
    done: where they went shows how they were spread, whatever the machine's speed. All must be answered with 200."""
    for server in servers:
        server.held = True
    with ThreadPoolExecutor(len(asks)) as clients:
        answers = [clients.submit(ask) for ask in asks]
        try:
            until(
                lambda: sum(server.in_flight for server in servers) == len(asks),
                within=20,
                what=f"{len(asks)} are in flight",
            )
            meanwhile()
        finally:
            for server in servers:
                server.held = False
    statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * len(asks)
