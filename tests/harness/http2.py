"""HTTP/2 on plain connections: a client for what httpx hides, streams that are reset; a server that speaks nothing else."""

import socket
import threading
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError


class Http2:
    """A client of one connection."""

    def __init__(self, url: str, *, timeout_s: float = 10) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._authority = f"{host}:{port}"
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
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

    def statuses(self, count: int) -> list[int]:
        """The statuses of that many answers, once all of them have ended."""
        statuses, ended = [], 0
        while ended < count:
            for event in self._events():
                if isinstance(event, ResponseReceived):
                    statuses.append(int(dict(event.headers)[b":status"]))
                ended += isinstance(event, (StreamEnded, StreamReset))
        return statuses

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


class Http2Server:
    """A server with prior knowledge: HTTP/1.1 is a broken connection to it. `respond` makes a path's body."""

    def __init__(self, respond: Callable[[str], bytes]) -> None:
        self._respond = respond
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        self.address = f"{self.host}:{self.port}"
        self.posts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        requests: dict[int, dict[bytes, bytes]] = {}
        with client:
            client.sendall(connection.data_to_send())
            while received := client.recv(65536):
                try:
                    events = connection.receive_data(received)
                except ProtocolError:
                    return
                for event in events:
                    if isinstance(event, RequestReceived):
                        requests[event.stream_id] = dict(event.headers)
                    elif isinstance(event, DataReceived):
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, StreamEnded):
                        self._answer(connection, event.stream_id, requests.pop(event.stream_id))
                client.sendall(connection.data_to_send())

    def _answer(self, connection: H2Connection, stream: int, head: dict[bytes, bytes]) -> None:
        self.posts += head[b":method"] == b"POST"
        body = self._respond(head[b":path"].decode())
        connection.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
        # Below a frame's and a window's size.
        connection.send_data(stream, body, end_stream=True)
