"""A scripted Envoy: external processing, access logs and health over gRPC, message by message.

The messages' types come from xds-protos, the transport from grpcio: nothing of the program under test.
"""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogCommon, HTTPAccessLogEntry
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
LOGS = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX = (
    ProcessingMode.NONE,
    ProcessingMode.STREAMED,
    ProcessingMode.BUFFERED,
    ProcessingMode.BUFFERED_PARTIAL,
    ProcessingMode.FULL_DUPLEX_STREAMED,
)
DESTINATION = "x-gateway-destination-endpoint"
SUBSET = "x-gateway-destination-endpoint-subset"
SERVED = "x-gateway-destination-endpoint-served"
ANSWER_S = 20.0
"""Longest wait for an answer: far above what one takes, for busy machines."""
CHUNK_BYTES_MAX = 62_000
"""Longest chunk of a body that is streamed back (ext-proc.md)."""

Fields = Iterable[tuple[str, str]]


# ---- messages


def struct(value: dict) -> Struct:
    return ParseDict(value, Struct())


def metadata(**namespaces: dict) -> Metadata:
    """Metadata by namespace; `__` in a name stands for a dot."""
    return Metadata(filter_metadata={name.replace("__", "."): struct(value) for name, value in namespaces.items()})


def header_map(fields: Fields) -> HeaderMap:
    """As Envoy has sent them for years: in `raw_value`."""
    return HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in fields])


def request_headers(
    path: str = "/v1/completions",
    *,
    method: str = "POST",
    more: Fields = (),
    end: bool = False,
    mode: int | None = FULL_DUPLEX,
    response_mode: int = NONE,
    context: Metadata | None = None,
) -> ProcessingRequest:
    """A stream's first message. `mode` None: without `protocol_config`, as Envoy below 1.32."""
    fields = [(":authority", "pool"), (":path", path), (":method", method), (":scheme", "http"), *more]
    config = None if mode is None else ProtocolConfiguration(request_body_mode=mode, response_body_mode=response_mode)
    head = HttpHeaders(headers=header_map(fields), end_of_stream=end)
    return ProcessingRequest(request_headers=head, protocol_config=config, metadata_context=context)


def request_body(body: bytes, end: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=end))


def request_trailers(fields: Fields = (("x-trailer", "a"),)) -> ProcessingRequest:
    return ProcessingRequest(request_trailers=HttpTrailers(trailers=header_map(fields)))


def response_headers(
    status: int = 200, *, more: Fields = (), end: bool = False, served: str | None = None
) -> ProcessingRequest:
    """With `served`, Envoy's metadata names the endpoint that answered."""
    head = HttpHeaders(headers=header_map([(":status", str(status)), *more]), end_of_stream=end)
    context = None if served is None else metadata(envoy__lb={SERVED: served})
    return ProcessingRequest(response_headers=head, metadata_context=context)


def response_body(body: bytes, end: bool = False) -> ProcessingRequest:
    return ProcessingRequest(response_body=HttpBody(body=body, end_of_stream=end))


def response_trailers(fields: Fields = (("x-trailer", "a"),)) -> ProcessingRequest:
    return ProcessingRequest(response_trailers=HttpTrailers(trailers=header_map(fields)))


def chunks(body: bytes, size: int) -> list[ProcessingRequest]:
    """A body in messages of this size; the last says that it is."""
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    return [request_body(part, end=number == len(parts) - 1) for number, part in enumerate(parts)]


# ---- what is read from answers


def kind(answer: ProcessingResponse) -> str:
    return answer.WhichOneof("response")


def mutation(answer: ProcessingResponse):
    """The header mutation of an answer to headers or a body."""
    return getattr(answer, kind(answer)).response.header_mutation


def headers_set(answer: ProcessingResponse) -> dict[str, str]:
    options = mutation(answer).set_headers
    return {option.header.key: (option.header.raw_value or option.header.value.encode()).decode() for option in options}


def picked(answer: ProcessingResponse) -> list[str] | None:
    """The endpoints that an answer names; header and metadata must say the same. None: it names none."""
    text = headers_set(answer).get(DESTINATION)
    namespaces = answer.dynamic_metadata.fields
    fields = namespaces["envoy.lb"].struct_value.fields if "envoy.lb" in namespaces else {}
    told = fields[DESTINATION].string_value if DESTINATION in fields else None
    assert text == told, f"the header says {text}, the metadata {told}"
    return None if text is None else text.split(",")


@dataclass
class Outcome:
    """What the peer answered to one request, until it was settled."""

    answers: list[ProcessingResponse] = field(default_factory=list)

    @property
    def immediate(self):
        return next((answer.immediate_response for answer in self.answers if kind(answer) == "immediate_response"), None)

    @property
    def status(self) -> int:
        """200 where an endpoint was picked, else that of the immediate answer."""
        return 200 if self.immediate is None else self.immediate.status.code

    @property
    def headers(self) -> dict[str, str]:
        """Of the immediate answer."""
        options = self.immediate.headers.set_headers
        return {option.header.key: (option.header.raw_value or option.header.value.encode()).decode() for option in options}

    @property
    def picker(self) -> ProcessingResponse:
        """The one answer that names endpoints."""
        (answer,) = [answer for answer in self.answers if kind(answer) != "immediate_response" and picked(answer)]
        return answer

    @property
    def pick(self) -> list[str]:
        assert self.immediate is None, f"{self.status}: {self.immediate.body.decode()}"
        return picked(self.picker)

    @property
    def removed(self) -> set[str]:
        """Names of headers that any answer takes away."""
        return {name for answer in self.answers for name in mutation(answer).remove_headers}

    @property
    def body_chunks(self) -> list:
        """The chunks that were streamed back."""
        bodies = [answer.request_body for answer in self.answers if kind(answer) == "request_body"]
        return [body.response.body_mutation.streamed_response for body in bodies]

    @property
    def metadata(self) -> dict[str, Struct]:
        """All dynamic metadata, by namespace."""
        merged: dict[str, Struct] = {}
        for answer in self.answers:
            for name, value in answer.dynamic_metadata.fields.items():
                merged.setdefault(name, Struct()).MergeFrom(value.struct_value)
        return merged


# ---- the connection


@dataclass(frozen=True)
class End:
    """How a stream ended."""

    code: grpc.StatusCode
    details: str


class Stream:
    """One external processing stream, as Envoy has one for each request."""

    def __init__(self, call) -> None:
        self._sends: queue.SimpleQueue[ProcessingRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[ProcessingResponse | End] = queue.SimpleQueue()
        self._call = call(iter(self._sends.get, None))
        self._ended: End | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def send(self, *messages: ProcessingRequest) -> Stream:
        for message in messages:
            self._sends.put(message)
        return self

    def half_close(self) -> Stream:
        """No message will follow: how Envoy ends a stream that it needs no more."""
        self._sends.put(None)
        return self

    def cancel(self) -> None:
        """RST_STREAM."""
        self._call.cancel()
        self._sends.put(None)

    def answer(self, expected: str | None = None, within: float = ANSWER_S) -> ProcessingResponse:
        """The next answer."""
        found = self._next(within)
        assert not isinstance(found, End), f"the stream ended: {found}"
        assert expected in (None, kind(found)), f"{kind(found)} instead of {expected}: {found}"
        return found

    def end(self, within: float = ANSWER_S) -> End:
        """How the stream ended; nothing else may come before."""
        found = self._next(within)
        assert isinstance(found, End), f"an answer that nobody asked for: {found}"
        return found

    def rest(self, within: float = ANSWER_S) -> list[ProcessingResponse]:
        """All answers to the stream's end, whatever that is."""
        answers = []
        while not isinstance(found := self._next(within), End):
            answers.append(found)
        return answers

    def is_silent(self, for_s: float = 0.3) -> bool:
        """Whether nothing is answered for that long."""
        try:
            found = self._answers.get(timeout=for_s)
        except queue.Empty:
            return True
        raise AssertionError(f"an answer that nobody asked for: {found}")

    def settled(self, outcome: Outcome, *, last: str, within: float = ANSWER_S) -> Outcome:
        """Reads on until an answer of the kind `last`, for a body the one with its end, or an immediate one."""
        while True:
            answer = self.answer(within=within)
            outcome.answers.append(answer)
            if kind(answer) == "immediate_response":
                return outcome
            if kind(answer) == last:
                if last != "request_body" or not outcome.body_chunks[-1].ByteSize() or outcome.body_chunks[-1].end_of_stream:
                    return outcome

    def _next(self, within: float) -> ProcessingResponse | End:
        if self._ended is not None:
            return self._ended
        try:
            found = self._answers.get(timeout=within)
        except queue.Empty:
            raise AssertionError(f"no answer within {within} s") from None
        if isinstance(found, End):
            self._ended = found
        return found

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError:
            pass
        self._answers.put(End(self._call.code(), self._call.details()))


POOL = "x-pointsman-pool"


class Log:
    """An access log stream."""

    def __init__(self, call, name: str) -> None:
        self._sends: queue.SimpleQueue[StreamAccessLogsMessage | None] = queue.SimpleQueue()
        self._call = call(iter(self._sends.get, None), wait_for_ready=True)
        identifier = StreamAccessLogsMessage.Identifier(log_name=name)
        self._sends.put(StreamAccessLogsMessage(identifier=identifier, http_logs=self._entries([])))

    def entries(self, *entries: HTTPAccessLogEntry) -> None:
        self._sends.put(StreamAccessLogsMessage(http_logs=self._entries(entries)))

    def half_close(self) -> None:
        self._sends.put(None)

    def cancel(self) -> None:
        self._call.cancel()
        self._sends.put(None)

    @staticmethod
    def _entries(entries: Iterable[HTTPAccessLogEntry]) -> StreamAccessLogsMessage.HTTPAccessLogEntries:
        return StreamAccessLogsMessage.HTTPAccessLogEntries(log_entry=entries)


def entry_for(outcome: Outcome, status: int = 200) -> HTTPAccessLogEntry:
    """Envoy's entry for a request: with the metadata that the picker gave it."""
    entry = HTTPAccessLogEntry(common_properties=AccessLogCommon(metadata=Metadata(filter_metadata=outcome.metadata)))
    entry.response.response_code.value = status
    return entry


class Peer:
    """One connection. `pool` is named by every stream, as a picker of many asks for."""

    def __init__(self, address: str, *, root: bytes | None = None, name: str | None = None, pool: str | None = None) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if root is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            named = [*options, *([("grpc.ssl_target_name_override", name)] if name else [])]
            self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root), named)
        process = self.channel.stream_stream(PROCESS, ProcessingRequest.SerializeToString, ProcessingResponse.FromString)
        self._process = partial(process, metadata=[(POOL, pool)] if pool is not None else None)
        self._logs = self.channel.stream_unary(
            LOGS, StreamAccessLogsMessage.SerializeToString, StreamAccessLogsResponse.FromString
        ).future

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def stream(self, *messages: ProcessingRequest) -> Stream:
        """A new stream that begins with these messages."""
        return Stream(self._process).send(*messages)

    def log(self, name: str = "pointsman") -> Log:
        return Log(self._logs, name)

    def ask(self, body: bytes, *, mode: int = FULL_DUPLEX, chunk: int = 16_384, **head: object) -> tuple[Stream, Outcome]:
        """A request as Envoy has it in this mode, until it is settled; the stream stays open."""
        stream, outcome = self.stream(request_headers(mode=mode, **head)), Outcome()
        if mode == FULL_DUPLEX:
            stream.send(*chunks(body, chunk))
            return stream, stream.settled(outcome, last="request_body")
        stream.settled(outcome, last="request_headers")
        if mode != NONE and outcome.immediate is None:
            for message in chunks(body, chunk if mode == STREAMED else len(body) or 1):
                stream.send(message)
                stream.settled(outcome, last="request_body")
        return stream, outcome

    def health(self, service: str, within: float = ANSWER_S) -> str:
        """What gRPC health says of a service."""
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        return HEALTH[check(health_request(service), timeout=within, wait_for_ready=True)]


HEALTH = {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING", b"\x08\x03": "SERVICE_UNKNOWN"}


def health_request(service: str) -> bytes:
    """`grpc.health.v1.HealthCheckRequest`."""
    return (b"\x0a" + bytes([len(service)]) + service.encode()) if service else b""


def certificate(address: str) -> bytes:
    """The certificate that is served there, as PEM."""
    host, port = address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)), timeout=10).encode()
