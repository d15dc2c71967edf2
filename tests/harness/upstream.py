"""A model server that does what a test says: HTTP/1.1 by hand, so that every byte, delay and fault is known.

Everything public may be read and set from the test's thread while requests run: plain attributes, each read once where it is used.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from harness import pages
from harness.pages import Load
from harness.wait import until

HEAD_BYTES_MAX = 1 << 20


class Fault(Enum):
    """What goes wrong with a generation request."""

    RESET_AT_ONCE = auto()
    """The connection is reset as soon as the request is read."""
    HANG = auto()
    """Never a byte."""
    RESET_MID_ANSWER = auto()
    """Reset after half of the answer's chunks."""
    CLOSE_MID_ANSWER = auto()
    """Closed in good order after half of the answer's chunks, without the end of the body."""


class MetricsFault(Enum):
    """What goes wrong with the metrics page."""

    HANG = auto()
    RESET = auto()
    ENDLESS = auto()
    """100 MB of series that nobody asked for, then the honest page."""
    TRICKLE = auto()
    """A byte every 100 ms."""


@dataclass(frozen=True)
class Answer:
    """How generation requests are answered."""

    status: int = 200
    first_byte_s: float = 0.0
    """From the whole request to the answer's first byte."""
    tokens: int = 4
    token_interval_s: float = 0.0
    fault: Fault | None = None
    prompt_tokens: int = 10
    cached_tokens: int = 0
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    at: float
    """`time.monotonic()` when it was whole; also below."""
    gone_at: float | None = None
    """When the other side went away before the answer's end."""
    done_at: float | None = None

    def header(self, name: str) -> str | None:
        """The only header of that name."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came more than once: {values}"
        return values[0] if values else None

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Upstream:
    """One server. Generation requests are those with a body."""

    host: str = "127.0.0.1"
    port: int = 0
    models: Iterable[str] | None = ("tiny",)
    """What `/v1/models` lists; None: it has no such page."""
    page: Callable[[Load], str | bytes] = pages.vllm
    load: Load = field(default_factory=Load)
    """Beside the requests that are really in flight here: the page counts those as running."""
    metrics_path: str = "/metrics"
    metrics_fault: MetricsFault | None = None
    answer: Answer = field(default_factory=Answer)
    requests: list[Seen] = field(default_factory=list)
    """Generation requests, whole ones, in the order they came."""
    scrapes: list[float] = field(default_factory=list)
    """When the metrics page was asked for."""
    other: list[Seen] = field(default_factory=list)
    """Requests for anything else."""
    connects: list[float] = field(default_factory=list)
    held: bool = False
    """While true, generation requests wait."""
    slots: int | None = None
    """How many generate at once, the others wait and the page says so; None: all."""

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._slots = asyncio.Semaphore(1_000_000 if self.slots is None else self.slots)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def in_flight(self) -> int:
        return sum(seen.done_at is None and seen.gone_at is None for seen in self.requests)

    def answers(self, **changes: object) -> None:
        """Changes some fields of `answer`."""
        self.answer = replace(self.answer, **changes)

    def up(self) -> Upstream:
        """Listens: on a free port the first time, later on the same."""
        assert self._server is None, "it is up"
        _run(self._up())
        return self

    def down(self) -> None:
        """Refuses connections and resets those there are, as a killed process does."""
        if self._server is not None:
            _run(self._down())

    async def _up(self) -> None:
        def protocol() -> asyncio.Protocol:
            return asyncio.StreamReaderProtocol(_Reader(), self._connection)

        self._server = await asyncio.get_running_loop().create_server(
            protocol, self.host, self.port, backlog=1024, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        self._server.close()
        for writer in list(self._connections):
            _reset(writer)
        self._server = None

    async def _connection(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self.connects.append(time.monotonic())
        self._connections.add(writer)
        try:
            while (seen := await _read_request(reader, writer)) is not None:
                await self._serve(seen, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _serve(self, seen: Seen, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        """Answers, and sees at once when the other side goes away."""
        if seen.body:
            self.requests.append(seen)
        answering = asyncio.ensure_future(self._page_for(seen)(seen, writer))
        watching = asyncio.ensure_future(reader.ended.wait())
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not answering.done():
            answering.cancel()
            seen.gone_at = time.monotonic()
            raise ConnectionError("the other side is gone")
        watching.cancel()
        try:
            await answering
            seen.done_at = time.monotonic()
        except ConnectionError:
            seen.gone_at = time.monotonic()
            raise

    def _page_for(self, seen: Seen) -> Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]:
        if seen.target == self.metrics_path:
            self.scrapes.append(time.monotonic())
            return self._metrics
        if seen.body:
            return self._generate
        self.other.append(seen)
        return self._models if seen.target == "/v1/models" else self._not_found

    async def _metrics(self, _seen: Seen, writer: asyncio.StreamWriter) -> None:
        running = min(self.in_flight, 1_000_000 if self.slots is None else self.slots)
        waiting = self.load.waiting + self.in_flight - running
        page = self.page(replace(self.load, running=self.load.running + running, waiting=waiting))
        page = page.encode() if isinstance(page, str) else page
        match self.metrics_fault:
            case None:
                await _send(writer, 200, page, "text/plain; version=0.0.4; charset=utf-8")
            case MetricsFault.HANG:
                await asyncio.sleep(3600)
            case MetricsFault.RESET:
                _reset(writer)
                raise ConnectionError
            case MetricsFault.TRICKLE:
                writer.write(_head(200, "text/plain", len(page)))
                for byte in page:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1)
            case MetricsFault.ENDLESS:
                size = 100_000_000
                row = b'vllm:nobody_asked_for_this{le="0.123456"} 0.0\n' * 4096
                writer.write(_head(200, "text/plain", size + len(page)))
                for begin in range(0, size, len(row)):
                    writer.write(row[: size - begin])
                    await writer.drain()
                writer.write(page)
                await writer.drain()

    async def _models(self, _seen: Seen, writer: asyncio.StreamWriter) -> None:
        if self.models is None:
            return await self._not_found(_seen, writer)
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": name} for name in self.models]
        await _send_json(writer, 200, {"object": "list", "data": models})

    async def _not_found(self, _seen: Seen, writer: asyncio.StreamWriter) -> None:
        await _send_json(writer, 404, {"detail": "Not Found"})

    async def _generate(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        answer = self.answer
        if answer.fault is Fault.RESET_AT_ONCE:
            _reset(writer)
            raise ConnectionError
        if answer.fault is Fault.HANG:
            await asyncio.sleep(3600)
        while self.held:
            await asyncio.sleep(0.01)
        async with self._slots:
            await asyncio.sleep(answer.first_byte_s)
            await self._answer(seen, answer, writer)

    async def _answer(self, seen: Seen, answer: Answer, writer: asyncio.StreamWriter) -> None:
        asked = _asked(seen)
        if asked is None:
            error = {"message": "no JSON object with a prompt", "type": "BadRequestError", "param": None, "code": 400}
            await _send_json(writer, 400, {"error": error})
        elif answer.status != 200:
            error = {"message": f"{self.address} says {answer.status}", "type": "ServerError", "code": answer.status}
            await _send_json(writer, answer.status, {"error": error}, answer.headers)
        elif asked.get("stream"):
            await self._stream(asked, answer, writer)
        else:
            await self._whole(asked, answer, writer)

    async def _whole(self, asked: dict, answer: Answer, writer: asyncio.StreamWriter) -> None:
        choice = {"index": 0, "text": "word " * answer.tokens, "finish_reason": "length"}
        if "messages" in asked:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        body = json.dumps(self._event(asked, choices=[choice], usage=_usage(answer))).encode()
        if answer.fault is None:
            return await _send(writer, 200, body, "application/json", answer.headers)
        writer.write(_head(200, "application/json", len(body)) + body[: len(body) // 2])
        await writer.drain()
        await _break_off(writer, answer.fault)

    async def _stream(self, asked: dict, answer: Answer, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, "text/event-stream; charset=utf-8", None, answer.headers))
        for number in range(answer.tokens):
            if answer.fault is not None and number >= answer.tokens // 2:
                return await _break_off(writer, answer.fault)
            choice = {"index": 0, "text": f"word{number} ", "finish_reason": None}
            if "messages" in asked:
                choice["delta"] = {"content": choice.pop("text")}
            await _send_event(writer, json.dumps(self._event(asked, choices=[choice])))
            await asyncio.sleep(answer.token_interval_s)
        if (asked.get("stream_options") or {}).get("include_usage"):
            await _send_event(writer, json.dumps(self._event(asked, choices=[], usage=_usage(answer))))
        await _send_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _event(self, asked: dict, **fields: object) -> dict:
        return {"id": "made-up", "model": asked.get("model"), "system_fingerprint": self.address, **fields}


def counts(upstreams: Iterable[Upstream]) -> list[int]:
    """Generation requests that each has seen."""
    return [len(upstream.requests) for upstream in upstreams]


def forget(upstreams: Iterable[Upstream]) -> None:
    """Begins counting anew."""
    for upstream in upstreams:
        upstream.requests.clear()


def scraped_again(upstreams: Iterable[Upstream]) -> None:
    """Waits until each has been asked for its metrics twice from now on: what they say now is known by then."""
    before = [(upstream, len(upstream.scrapes)) for upstream in upstreams]
    until(
        lambda: all(len(upstream.scrapes) >= count + 2 for upstream, count in before),
        within=5,
        what="every server is asked for its metrics at least once a second",
    )


class _Reader(asyncio.StreamReader):
    """Tells when the other side has ended, without reading on."""

    def __init__(self) -> None:
        super().__init__(limit=HEAD_BYTES_MAX)
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: BaseException) -> None:
        super().set_exception(exc)
        self.ended.set()


def _asked(seen: Seen) -> dict | None:
    """The body as a model server takes it; None for one that it refuses."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        asked = json.loads(seen.body, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or not asked.keys() & {"prompt", "messages", "input"}:
        return None
    return asked


async def _read_request(reader: _Reader, writer: asyncio.StreamWriter) -> Seen | None:
    """One request with its whole body, or None at the connection's end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    named = dict(headers)
    if named.get("expect") == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in named.get("transfer-encoding", ""):
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(named.get("content-length", "0")))
    return Seen(method, target, headers, body, time.monotonic())


async def _read_chunks(reader: _Reader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return body


def _head(status: int, content_type: str, length: int | None, more: Iterable[tuple[str, str]] = ()) -> bytes:
    body = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    rows = "".join(f"{name}: {value}\r\n" for name, value in more)
    return f"HTTP/1.1 {status} Whatever\r\ncontent-type: {content_type}\r\n{body}\r\n{rows}\r\n".encode()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, content_type: str, more: Iterable[tuple[str, str]] = ()
) -> None:
    writer.write(_head(status, content_type, len(body), more) + body)
    await writer.drain()


async def _send_json(
    writer: asyncio.StreamWriter, status: int, value: object, more: Iterable[tuple[str, str]] = ()
) -> None:
    await _send(writer, status, json.dumps(value).encode(), "application/json", more)


async def _send_event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
    await writer.drain()


async def _break_off(writer: asyncio.StreamWriter, fault: Fault) -> None:
    # What was sent gets there first: a reset overtakes it.
    await asyncio.sleep(0.05)
    if fault is Fault.RESET_MID_ANSWER:
        _reset(writer)
    raise ConnectionError


def _usage(answer: Answer) -> dict:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.tokens,
        "total_tokens": answer.prompt_tokens + answer.tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


_loop: asyncio.AbstractEventLoop | None = None


def _run(work: Awaitable[None]) -> None:
    """Runs on the one event loop of all servers, which lives in a thread of its own."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
        threading.Thread(target=_loop.run_forever, daemon=True, name="upstreams").start()
    asyncio.run_coroutine_threadsafe(work, _loop).result(10)
