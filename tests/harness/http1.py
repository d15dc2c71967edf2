"""HTTP/1.1 by hand and to the letter: a socket that reads messages as RFC 9112 says and takes nothing else, at either end.

A lenient reader would not notice what a proxy must never send, so here whatever the grammar does not allow is `Malformed`.
"""

import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from harness import pages
from harness.pages import Load

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/1\.1")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [\t -~\x80-\xff]*")
FIELD = re.compile(rb"(" + TOKEN + rb"):[\t ]*((?:[!-~\x80-\xff]|[\t ]+(?=[!-~\x80-\xff]))*)[\t ]*")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[\t ]*;[\t -~\x80-\xff]*)?)")
HEAD_BYTES_MAX = 4 << 20


class Malformed(Exception):
    """What came is not HTTP/1.1."""


class Cut(ConnectionError):
    """The connection ended inside a message that was sound so far."""


@dataclass
class Head:
    """A request's or an answer's head."""

    start: bytes
    headers: list[tuple[str, str]]

    @property
    def status(self) -> int:
        return int(STATUS_LINE.fullmatch(self.start).group(1))

    @property
    def method(self) -> str:
        return REQUEST_LINE.fullmatch(self.start).group(1).decode()

    @property
    def target(self) -> str:
        return REQUEST_LINE.fullmatch(self.start).group(2).decode()

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def header(self, name: str) -> str | None:
        """The only header of that name."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came more than once: {values}"
        return values[0] if values else None


class Wire:
    """One connection: what is sent is bytes, what is read are messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = bytearray()
        """All that ever came."""
        self._read = 0

    @classmethod
    def to(cls, url: str, *, timeout_s: float = 10, receive_buffer_bytes: int | None = None) -> "Wire":
        host, port = url.split("://")[-1].rsplit(":", 1)
        connection = socket.socket()
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.settimeout(timeout_s)
        connection.connect((host, int(port)))
        return cls(connection)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, sent: bytes) -> None:
        self.socket.sendall(sent)

    def try_send(self, sent: bytes) -> bool:
        """Sends to one who may have hung up; false if so."""
        try:
            self.socket.sendall(sent)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read_request(self) -> tuple[Head, bytes] | None:
        """A request and its body; None when the other side closed in good order before one."""
        head = self.read_head(REQUEST_LINE)
        return head and (head, self.read_body(head))

    def read_answer(self, *, to_head: bool = False) -> tuple[Head, bytes] | None:
        """An answer that is not interim, and its body; None when the other side closed in good order before one."""
        while (head := self.read_head(STATUS_LINE)) is not None:
            if head.status >= 200:
                return head, b"" if to_head else self.read_body(head)
        return None

    def read_head(self, start: re.Pattern[bytes]) -> Head | None:
        """The next message's head; its body is still to be read."""
        if not self._has(1):
            return None
        first = self._line()
        if not start.fullmatch(first):
            raise Malformed(f"start line {first!r}")
        headers = []
        while line := self._line():
            field = FIELD.fullmatch(line)
            if not field:
                raise Malformed(f"field line {line!r}")
            headers.append((field.group(1).decode().lower(), field.group(2).decode("latin-1")))
        head = Head(first, headers)
        if start is REQUEST_LINE and len(head.all("host")) != 1:
            raise Malformed(f"a request with {len(head.all('host'))} hosts")
        return head

    def read_body(self, head: Head) -> bytes:
        codings, lengths = head.all("transfer-encoding"), head.all("content-length")
        if codings and lengths or len(codings) > 1 or len(lengths) > 1:
            raise Malformed(f"two ways to tell the length: {codings} {lengths}")
        if codings:
            if codings != ["chunked"]:
                raise Malformed(f"transfer-encoding {codings}")
            return b"".join(self.chunks())
        if lengths:
            if not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
                raise Malformed(f"content-length {lengths[0]!r}")
            return self.exactly(int(lengths[0]))
        is_answer = STATUS_LINE.fullmatch(head.start)
        if not is_answer or head.status in (204, 304):
            return b""
        return self.to_the_end()

    def chunks(self):
        """A chunked body's chunks; its trailers are read and dropped."""
        while True:
            line = self._line()
            chunk = CHUNK.fullmatch(line)
            if not chunk:
                raise Malformed(f"chunk size {line!r}")
            size = int(chunk.group(1), 16)
            if size == 0:
                while line := self._line():
                    if not FIELD.fullmatch(line):
                        raise Malformed(f"trailer {line!r}")
                return
            yield self.exactly(size)
            if self.exactly(2) != b"\r\n":
                raise Malformed("a chunk's end")

    def exactly(self, count: int) -> bytes:
        if not self._has(count):
            raise Cut(f"{count - self._buffered()} bytes of a body are missing")
        self._read += count
        return bytes(self.received[self._read - count : self._read])

    def to_the_end(self) -> bytes:
        while self._fill():
            pass
        return self.exactly(self._buffered())

    def ended(self) -> bool:
        """Waits for the other side to say something or to hang up; whether it hung up, in good order or not."""
        try:
            return not self._has(1)
        except ConnectionError:
            return True

    def _line(self) -> bytes:
        searched = self._read
        while (end := self.received.find(b"\n", searched)) < 0:
            searched = len(self.received)
            if self._buffered() > HEAD_BYTES_MAX:
                raise Malformed("a line without an end")
            if not self._fill():
                raise Cut(f"ended inside {bytes(self.received[self._read :][:200])!r}")
        line = bytes(self.received[self._read : end])
        self._read = end + 1
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            raise Malformed(f"line ending of {line!r}")
        return line[:-1]

    def _buffered(self) -> int:
        return len(self.received) - self._read

    def _has(self, count: int) -> bool:
        while self._buffered() < count:
            if not self._fill():
                return False
        return True

    def _fill(self) -> bool:
        more = self.socket.recv(1 << 16)
        self.received += more
        return bool(more)


class RawServer:
    """A model server whose requests `serve` handles, given the connection (its body still unread) and the head, in a thread
    for each connection. Metrics and models are answered for it."""

    def __init__(self, serve: Callable[[Wire, Head], None], *, receive_buffer_bytes: int | None = None) -> None:
        self._serve = serve
        self._listener = socket.socket()
        if receive_buffer_bytes is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1024)
        self.host, self.port = self._listener.getsockname()
        self.address = f"{self.host}:{self.port}"
        self.wires: list[Wire] = []
        """Every connection that ever was."""
        self.malformed: list[str] = []
        """What came that was no HTTP/1.1, with all that its connection had brought before."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Wakes all threads, which close what is theirs: a number closed here would soon be another's while they still use it."""
        for connection in (self._listener, *(wire.socket for wire in self.wires)):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return self._listener.close()
            wire = Wire(connection)
            self.wires.append(wire)
            threading.Thread(target=self._connection, args=(wire,), daemon=True).start()

    def _connection(self, wire: Wire) -> None:
        try:
            while (head := wire.read_head(REQUEST_LINE)) is not None:
                if head.target == "/metrics":
                    send_answer(wire, pages.vllm(Load()).encode(), "text/plain; version=0.0.4")
                elif head.target == "/v1/models" and head.method == "GET":
                    send_answer(wire, b'{"object":"list","data":[{"id":"tiny","object":"model"}]}')
                else:
                    self._serve(wire, head)
        except Malformed as error:
            self.malformed.append(f"{error}: {bytes(wire.received[-2000:])!r}")
        except OSError:
            pass
        finally:
            wire.close()


def send_answer(wire: Wire, body: bytes = b'{"choices":[]}', content_type: str = "application/json") -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    wire.send(head.encode() + body)
