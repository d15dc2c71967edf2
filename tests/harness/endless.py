"""A model server whose streamed answers never end, and that knows how much was taken of them."""

import socket
import threading
import time

from harness.http1 import Head, RawServer, Wire, send_answer

CHUNK = b"1000\r\ndata: " + b"a" * (0x1000 - 8) + b"\n\n\r\n"


class Endless(RawServer):
    """Requests with `stream` in their body get an endless event stream, as fast as it is taken; others a short answer."""

    def __init__(self) -> None:
        self._count = threading.Lock()
        self.begun = 0
        self.gone = 0
        """Streams whose taker hung up."""
        self.taken_bytes = 0
        """Of all streams, by whoever is between here and the client. The kernel's own buffer here is kept small."""
        super().__init__(self._answer)

    def stands_still(self) -> bool:
        """Nothing was taken for half a second."""
        before = self.taken_bytes
        time.sleep(0.5)
        return self.taken_bytes == before

    def _answer(self, wire: Wire, head: Head) -> None:
        if b"stream" not in wire.read_body(head):
            return send_answer(wire)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        with self._count:
            self.begun += 1
        try:
            while True:
                wire.send(CHUNK)
                with self._count:
                    self.taken_bytes += len(CHUNK)
        finally:
            with self._count:
                self.gone += 1
