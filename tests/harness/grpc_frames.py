"""gRPC on bare HTTP/2 frames (frames.py): calls that no library would make."""

from dataclasses import dataclass

from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from harness.ext_proc import PROCESS
from harness.frames import END_HEADERS, END_STREAM, Frames, Kind, frame

FRAME_BYTES = 16_384
"""Longest payload that anyone takes."""
CONTENT_TYPE = ("content-type", "application/grpc")
TRAILERS = ("te", "trailers")


def message(payload: bytes, *, length: int | None = None, flag: int = 0) -> bytes:
    """gRPC's own frame; `length` and `flag` may lie."""
    return bytes([flag]) + (len(payload) if length is None else length).to_bytes(4, "big") + payload


def head(client: Frames, stream: int = 1, path: str = PROCESS, *, more: tuple = (TRAILERS, CONTENT_TYPE), **block: object) -> bytes:
    """A call's first frame."""
    return frame(Kind.HEADERS, END_HEADERS, stream, client.block(path, more=more, **block))


def data(payload: bytes, stream: int = 1, *, end: bool = False) -> bytes:
    """DATA frames with this payload."""
    parts = [payload[at : at + FRAME_BYTES] for at in range(0, len(payload), FRAME_BYTES)] or [b""]
    last = len(parts) - 1
    return b"".join(frame(Kind.DATA, END_STREAM if end and number == last else 0, stream, part) for number, part in enumerate(parts))


def said(*messages: ProcessingRequest) -> bytes:
    """Messages, each in gRPC's frame."""
    return b"".join(message(each.SerializeToString()) for each in messages)


@dataclass
class Heard:
    """What one stream brought until it ended, was reset, or its connection was closed."""

    answers: list[ProcessingResponse]
    fields: dict[str, str]
    """Of the head and the trailers."""
    reset: int | None
    """The error code of RST_STREAM."""
    closed: bool
    """Whether the connection was."""

    @property
    def refused(self) -> bool:
        """Whether the call ended in anything but success."""
        return self.closed or self.reset is not None or self.fields.get("grpc-status", "0") != "0" or self.fields.get(":status") != "200"


def hear(client: Frames, stream: int = 1, *, answers: int | None = None) -> Heard:
    """Reads one stream on to its end, or to that many answers."""
    heard, payload = Heard([], {}, None, False), b""
    while answers is None or len(heard.answers) < answers:
        found = client.read()
        if found is None or (found.kind == Kind.GOAWAY and found.number):
            heard.closed = True
            return heard
        if found.kind == Kind.HEADERS:
            fields = client.fields(found)
            heard.fields |= fields if found.stream == stream else {}
        if found.stream != stream:
            continue
        if found.kind == Kind.RST_STREAM:
            heard.reset = found.number
            return heard
        if found.kind == Kind.DATA:
            payload += found.payload
        while len(payload) >= 5 and len(payload) >= 5 + (size := int.from_bytes(payload[1:5], "big")):
            heard.answers.append(ProcessingResponse.FromString(payload[5 : 5 + size]))
            payload = payload[5 + size :]
        if found.kind in (Kind.HEADERS, Kind.DATA) and found.flags & END_STREAM:
            return heard
    return heard
