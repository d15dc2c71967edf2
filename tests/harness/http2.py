"""An HTTP/2 client over one plain connection, for what httpx hides: streams that are reset."""

import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event


class Http2:
    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._authority = f"{host}:{port}"
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._connection = H2Connection(H2Configuration(client_side=True))
        self._connection.initiate_connection()
        self._flush()

    def post(self, path: str, body: bytes) -> int:
        """Sends a request; its stream."""
        stream = self._connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", self._authority)]
        self._connection.send_headers(stream, [*head, ("content-type", "application/json")])
        self._connection.send_data(stream, body, end_stream=True)
        self._flush()
        return stream

    def read_until(self, stream: int, words: bytes) -> bytes:
        """What the stream brings until it has brought these words."""
        received = b""
        while words not in received:
            for event in self._events():
                if isinstance(event, DataReceived) and event.stream_id == stream:
                    received += event.data
        return received

    def cancel(self, stream: int) -> None:
        self._connection.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    def close(self) -> None:
        self._socket.close()

    def _events(self) -> list[Event]:
        received = self._socket.recv(65536)
        assert received, "the connection ended"
        events = self._connection.receive_data(received)
        for event in events:
            if isinstance(event, DataReceived):
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._flush()
        return events

    def _flush(self) -> None:
        self._socket.sendall(self._connection.data_to_send())
