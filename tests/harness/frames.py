"""HTTP/2 frame by frame: a client that says what no honest one would. Honest ones are in http2.py."""

import socket
import ssl
from dataclasses import dataclass
from enum import IntEnum

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
REFUSED_STREAM, ENHANCE_YOUR_CALM = 0x7, 0xB
INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, HEADER_TABLE_SIZE = 0x4, 0x3, 0x1


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The first 4 bytes: an error code, a window's growth; of GOAWAY the error code, too."""
        at = 4 if self.kind == Kind.GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    rows = ((globals()[name.upper()], value) for name, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in rows))


def window_update(stream: int, growth: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, growth.to_bytes(4, "big"))


def reset(stream: int, code: int = 8) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


class Frames:
    """One connection. Nothing is answered for the test: no window is opened, settings and pings are acknowledged only where `polite`."""

    def __init__(
        self, url: str, *, tls: ssl.SSLContext | None = None, begin: bytes = PREFACE + settings(), polite: bool = False
    ) -> None:
        host, port = url.split("://")[1].split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self._polite = polite
        self._encoder, self._decoder = Encoder(), Decoder()
        self.last_stream: int | None = None
        """The last stream that counts, once GOAWAY has told."""
        self._answers: dict[int, dict[str, str]] = {}
        self._buffer = b""
        self.send(begin)

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, sent: bytes) -> None:
        self.socket.sendall(sent)

    def try_send(self, sent: bytes) -> bool:
        """Sends to one who may have hung up; false if so."""
        try:
            self.socket.sendall(sent)
        except OSError:
            return False
        return True

    def block(self, path: str = "/v1/completions", method: str = "POST", more: tuple[tuple[str, str], ...] = ()) -> bytes:
        """A request's head, compressed."""
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)]
        return self.encode([*pseudo, *more])

    def encode(self, fields: list) -> bytes:
        """Fields as they are, compressed; nothing is checked."""
        return self._encoder.encode(fields)

    def ask(self, stream: int, path: str = "/v1/completions", body: bytes | None = None, **head: object) -> None:
        """A whole request. Without a body it is a GET."""
        if body is None:
            block = self.block(path, "GET", **head)
            return self.send(frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, block))
        self.send(frame(Kind.HEADERS, END_HEADERS, stream, self.block(path, **head)))
        self.send(frame(Kind.DATA, END_STREAM, stream, body))

    def fields(self, head: Frame) -> dict[str, str]:
        """The fields of a HEADERS frame that has no padding; every one must be decoded, in order."""
        return dict(self._decoder.decode(head.payload))

    def read(self) -> Frame | None:
        """The next frame; None at the connection's end, in good order or not."""
        try:
            head = self._exactly(9)
            payload = self._exactly(int.from_bytes(head[:3], "big"))
        except ConnectionError:
            return None
        found = Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
        if found.kind == Kind.GOAWAY:
            self.last_stream = int.from_bytes(payload[:4], "big")
        if self._polite and found.kind in (Kind.PING, Kind.SETTINGS) and not found.flags & ACK:
            self.try_send(frame(found.kind, ACK, 0, payload if found.kind == Kind.PING else b""))
        return found

    def until(self, kind: Kind, stream: int | None = None) -> Frame:
        """Reads on to the next such frame."""
        while True:
            found = self.read()
            assert found is not None, f"the connection ended before {kind.name}"
            if found.kind == kind and stream in (None, found.stream):
                return found

    def answer(self, stream: int) -> dict[str, str]:
        """The head of this stream's answer; those of others are kept for later."""
        while stream not in self._answers:
            head = self.until(Kind.HEADERS)
            self._answers[head.stream] = self.fields(head)
        return self._answers.pop(stream)

    def to_the_end(self) -> list[Frame]:
        """All that comes until the connection's end."""
        frames = []
        while (found := self.read()) is not None:
            frames.append(found)
        return frames

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionResetError
            self._buffer += more
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken
